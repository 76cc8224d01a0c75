"""`tel-eval --reference URL`: an endpoint, whatever it does."""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import fake_engine as fake
import for_reference
import pytest
from for_reference import Command, out, serving, summary

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.benchmarks.split import split
from tel_edge.eval.references import client, endpoint, reference
from tel_edge.eval.scoring.records import read_records, read_summary
from tel_edge.runtime.errors import WorkError
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.prompt import render

quick = for_reference.quick
home = for_reference.home
ask = for_reference.ask
model = for_reference.model
KEY = "sk-very-secret"
ORAN = CATEGORIES["oranbench"]


@pytest.mark.parametrize(
    ("shape", "path"),
    [("texts", "/completions"), ("content", "/completions"), ("chat", "/chat/completions")],
)
def test_labels_are_read_from_the_first_token(
    ask: Command, home: Path, shape: str, path: str
) -> None:
    with serving(shape) as server:
        code, said, error = ask(server.url)
        assert (code, error) == (0, "")
        body = server.asked[-1][1]
    test = split(benchmark.read(str(home / "data"), ORAN).questions, 42).test
    records = list(read_records(out(home)))
    assert [r.id for r in records] == [q.id for q in test]
    for record in records:
        for label, value in enumerate(record.logprobs):
            bound = math.log(0.01) - 1e-6
            shown = {record.gold: math.log(0.7), 0: math.log(0.7 if record.gold == 0 else 0.05)}
            assert value == pytest.approx(shown.get(label, bound), abs=2e-6)
        assert record.tokens == 7
    made = summary(home)
    assert made.pass1.value == 1
    assert (made.variant.format, made.variant.backbone_bytes) == ("endpoint", 0)
    assert made.memory_peak is None
    assert made.made_with["endpoint"]["path"] == path
    assert made.made_with["endpoint"]["unlisted"] == 0
    assert (body["max_tokens"], body["temperature"], body["model"]) == (1, 0, "org/Big-8B")
    prompts = [
        b["messages"][0]["content"] if path == endpoint.CHAT else b["prompt"]
        for p, b in server.asked
        if p == path
    ]
    assert {*prompts} == {render(question) for question in test}
    assert "Pass@1 1.000" in said


def test_fewer_tokens_are_asked_for_where_the_server_lists_no_more(
    ask: Command, home: Path
) -> None:
    with serving() as server:
        server.most = 5
        assert ask(server.url)[0] == 0
    asked = [body["logprobs"] for _, body in server.asked]
    assert asked == [20] + [5] * (len(asked) - 1)
    assert summary(home).made_with["endpoint"]["listed"] == 5


def test_picks_that_mean_nothing_are_counted(ask: Command, home: Path) -> None:
    with serving("words") as server:
        code, _, error = ask(server.url, quiet=False)
    assert code == 0
    made = summary(home)
    assert made.made_with["endpoint"]["unlisted"] == made.questions == 12
    assert "for 12 of 12 questions the server lists none of the labels" in error


def test_texts_are_parsed_and_drawn_with_a_seed_for_each(ask: Command, home: Path) -> None:
    with serving("no chat") as server:
        assert ask(server.url, "--protocol", "generate", "--max-tokens", "9")[0] == 0
    bodies = [body for path, body in server.asked if path == endpoint.COMPLETIONS]
    records = list(read_records(out(home, "Big-8B", "endpoint-generate")))
    assert all(record.pick == record.gold for record in records)
    assert len(bodies) == 5 * len(records)
    assert len({body["seed"] for body in bodies}) == len(bodies)
    assert [body["max_tokens"] for body in bodies] == [9] * len(bodies)
    assert {round(body["temperature"], 1) for body in bodies} == {0, 0.7}
    with serving("texts") as server:
        again = ask(server.url, "--protocol", "generate", "--reference-name", "other")
    assert again[0] == 0
    # Messages go before texts here, and a field that the server does not know is left out.
    assert {path for path, _ in server.asked} == {endpoint.CHAT}
    assert "chat_template_kwargs" not in server.asked[-1][1]
    other = list(read_records(out(home, "other", "endpoint-generate")))
    assert [r.draws for r in other] == [r.draws for r in records]


def test_results_do_not_depend_on_how_many_are_asked_at_a_time(ask: Command, home: Path) -> None:
    found = []
    for parallel in ("1", "7"):
        with serving() as server:
            server.before = lambda turn: time.sleep(0.02 * (turn % 3))
            name = f"p{parallel}"
            assert ask(server.url, "--parallel", parallel, "--reference-name", name)[0] == 0
        rows = read_records(out(home, name))
        found.append([(r.run, r.id, r.logprobs, r.draws) for r in rows])
    assert found[0] == found[1]


def test_a_server_that_is_busy_is_asked_again(ask: Command, home: Path) -> None:
    with serving() as server:
        busy = {1: (429, "{}", {"Retry-After": "0"}), 3: (503, "later", {}), 4: (500, "", {})}
        server.before = busy.get
        assert ask(server.url)[0] == 0
        assert len(server.asked) == summary(home).questions + 3


def test_a_run_goes_on_where_the_server_died(ask: Command, home: Path) -> None:
    with serving() as server:
        server.before = lambda turn: (500, '{"error": "out of memory"}', {}) if turn > 5 else None
        code, said, error = ask(server.url, "--parallel", "2")
    assert (code, said) == (1, "")
    assert error.count("\n") == 1
    assert "500 out of memory (6 attempts); what was done is kept" in error
    assert len(list(read_records(out(home)))) == 5
    with serving() as server:
        assert ask(server.url)[0] == 0
        assert len(server.asked) == 12 - 5
        # Another address of the same model; all is there.
        code, said, _ = ask(server.url)
        assert (code, "scored before" in said, len(server.asked)) == (0, True, 7)
    # With its name given nothing is asked at all.
    assert ask("http://127.0.0.1:9/v1", "--reference-model", "org/Big-8B")[0] == 0
    with serving() as server:
        # Votes at another temperature are drawn of what was answered.
        assert ask(server.url, "--temperature", "0.5")[0] == 0
        assert server.asked == []


def test_what_is_under_way_when_one_is_refused_is_kept(ask: Command, home: Path) -> None:
    with serving() as server:

        def before(turn: int) -> tuple[int, str, dict[str, str]] | None:
            # The third fails while those beside it are still asked.
            return (403, "{}", {}) if turn == 3 else time.sleep(0.3)

        server.before = before
        assert ask(server.url)[0] == 2
    assert 1 < len(list(read_records(out(home)))) < 6


def test_a_question_that_is_too_long_counts_as_wrong(ask: Command, home: Path) -> None:
    long = {**fake.rows(1)[0], "question": "gold 0 " + "long " * 500}
    fake.dataset(home / "data", "oranbench", [long, *fake.rows(20)])
    with serving() as server:
        assert ask(server.url, "--part", "test,validation,train")[0] == 0
    files = [out(home).with_name(f"oranbench{p}.json") for p in ("", ".validation", ".train")]
    assert sum(read_summary(file).too_long for file in files) == 1


def test_the_key_is_sent_and_nowhere_written(
    ask: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEL_API_KEY", KEY)
    with serving() as server:
        code, said, error = ask(server.url, "--json", quiet=False)
        assert code == 0
        assert server.keys == {f"Bearer {KEY}"}
        server.before = lambda _: (401, json.dumps({"error": {"message": f"wrong: {KEY}"}}), {})
        refused = ask(server.url, "--reference-name", "again")
    assert refused[0] == 2
    assert "401 wrong: ***; set TEL_API_KEY" in refused[2]
    written = "".join(path.read_text() for path in (home / "w").rglob("*") if path.is_file())
    assert written
    assert server.url not in written
    for text in (written, said, error, *refused[1:], repr(client.Client(server.url, KEY))):
        assert KEY not in text


def test_which_key_goes_where(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def key(url: str) -> str:
        return reference.connect(argparse.Namespace(reference=url, quiet=False)).key

    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    assert key("https://host/v1") == key("http://localhost:1/v1") == "theirs"
    assert key("http://host/v1") == ""
    monkeypatch.setenv("TEL_API_KEY", "ours")
    assert key("https://host/v1") == "ours"
    assert capsys.readouterr().err == ""
    assert key("http://host/v1") == "ours"
    assert "unencrypted; use https" in capsys.readouterr().err


def test_no_redirect_takes_the_key_elsewhere(ask: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEL_API_KEY", KEY)
    with serving() as other, serving() as server:
        server.before = lambda _: (302, "", {"Location": f"{other.url}/models"})
        code, _, error = ask(server.url)
    assert (code, other.keys) == (2, set())
    assert "302" in error


@pytest.mark.parametrize(
    ("shape", "before", "code", "said"),
    [
        ("silent", None, 2, "gives no log-probabilities; pass --protocol generate"),
        ("texts", (200, "<html>", {}), 2, "no JSON object comes back; is this the URL ending in"),
        ("texts", (200, "[]", {}), 2, "no JSON object comes back"),
        ("texts", (200, "{}", {}), 2, "no choices in the reply"),
        ("texts", (404, '{"error": {"message": "no model"}}', {}), 2, "completions: 404 no model"),
        ("texts", (502, "bad", {}), 1, "502 Bad Gateway (6 attempts)"),
    ],
)
def test_what_a_server_does_wrong_is_told_in_a_line(
    ask: Command, home: Path, shape: str, before: Any, code: int, said: str
) -> None:
    with serving(shape) as server:
        server.before = lambda _: before
        found, _, error = ask(server.url)
    assert (found, error.count("\n")) == (code, 1)
    assert said in error
    assert not out(home).with_suffix(".json").exists()


def test_a_reply_that_takes_too_long_is_a_failure() -> None:
    with serving() as server:
        server.before = lambda _: time.sleep(0.5)
        slow = client.Client(server.url, timeout=0.05, attempts=2, pause=0)
        with pytest.raises(WorkError, match=r"timed out \(2 attempts\)"):
            slow.request("/completions", {})
