"""`tel-run` from the outside: arguments and JSONL in, one record a line out."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fake_engine as fake
import numpy as np
import pytest
from conftest import INTERRUPTIBLE

from tel_edge.eval.scoring.router import save
from tel_edge.runtime.bundles import manifest
from tel_edge.runtime.commands import run
from tel_edge.runtime.engines.engine import Score
from tel_edge.runtime.questions import requests, votes
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.router import Router, features

Command = Callable[..., tuple[int, str, str]]
ASK = {"question": "gold 2", "choices": ["a", "b", "c", "d"]}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A workspace whose bundle has adapters for oranbench and 3gpp_tsg."""
    fake.bundle(tmp_path / "bundles" / "tel-nano", adapters=("oranbench", "3gpp_tsg"))
    return tmp_path


@pytest.fixture
def tel_run(
    home: Path, run_command: Command, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run the command with a fake engine; `lines` go to stdin."""

    def made(
        *argv: str, lines: Any = b"", opener: fake.FakeOpener | None = None
    ) -> tuple[int, str, str]:
        stdin = io.TextIOWrapper(io.BytesIO(lines)) if isinstance(lines, bytes) else lines
        monkeypatch.setattr("sys.stdin", stdin)
        work = partial(run.work, opener=opener or fake.FakeOpener())
        return run_command(run.parser(), work, "--workspace", str(home), *argv)

    return made


def records(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def jsonl(*rows: Any) -> bytes:
    return b"".join(
        (row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows
    )


def test_a_question_from_arguments(tel_run: Command) -> None:
    argv = ["--category", "oranbench", "--choice", "x", "--choice", "y", "--choice", "z"]
    code, out, err = tel_run(*argv, "is it gold 1?", "or gold 2?")
    assert code == 0
    wanted = [
        {"id": "1", "answer": "y", "index": 1, "probabilities": [0.15, 0.7, 0.15]},
        {"id": "2", "answer": "z", "index": 2, "probabilities": [0.15, 0.15, 0.7]},
    ]
    for record, head in zip(records(out), wanted, strict=True):
        logprobs = [math.log(share) for share in head["probabilities"]]  # type: ignore[attr-defined]
        drawn = votes.draws(logprobs, 4, 0.7, 42, str(head["id"]))
        tail = {"mass": 1.0, "votes": list(drawn), "majority": votes.majority(drawn)}
        assert record == head | tail
        assert list(record) == [*head, *tail]
    assert err == "2 answered with nano-Q4_K_M.gguf, 0 refused\n"


def test_a_category_with_labels_needs_no_choices(tel_run: Command) -> None:
    code, out, _ = tel_run("--category", "3gpp_tsg", "paging, gold 5")
    (record,) = records(out)
    assert code == 0
    assert record["answer"] == CATEGORIES["3gpp_tsg"].labels[5] == "RAN2"
    assert len(record["probabilities"]) == 16


BAD_LINES: list[tuple[Any, dict[str, Any]]] = [
    (b'{"question": "torn', {"error": "not JSON: "}),
    (b"[" * 100_000, {"error": "not JSON: "}),
    ([1], {"error": "not a JSON object"}),
    ({"choices": ["a", "b"]}, {"error": "column 'question' is missing"}),
    ({"question": "?"}, {"error": "column 'choices' is missing"}),
    ({"question": "  ", "choices": ["a", "b"]}, {"error": "empty question"}),
    ({"question": "?", "choices": ["a"]}, {"error": "1 choices; 2 to 16 can be answered"}),
    (
        {"question": "?", "choices": [str(at) for at in range(30)]},
        {"error": "30 choices; 2 to 16 can be answered"},
    ),
    ({**ASK, "category": "poetry"}, {"error": "unknown category 'poetry'; there are: teleqna"}),
    ({**ASK, "id": 7, "category": "teleqna"}, {"id": 7, "error": "no adapter for teleqna"}),
    ({**ASK, "question": "half \ud83d"}, {"error": "'\\ud83d' is no Unicode character"}),
    (
        {**ASK, "id": "half \ud83d"},
        {"id": "half \ud83d", "error": "'\\ud83d' is no Unicode character"},
    ),
    ({"id": 7}, {"id": 7, "error": "column 'question' is missing"}),
    ({"id": 1.5, "question": "?"}, {"id": 1.5, "error": "column 'choices' is missing"}),
    (b'{"id": NaN}', {"id": "nan", "error": "column 'question' is missing"}),
    (b'{"question": "caf\xe9", "choices": ["a", "b"]}', {"error": "is no Unicode character"}),
    ({**ASK, "question": "x" * 5000}, {"id": "LINE", "error": "tokens, the context holds 4096"}),
]


@pytest.mark.parametrize("at", range(len(BAD_LINES)))
def test_a_bad_line_gets_an_error_record_in_its_place(at: int, tel_run: Command) -> None:
    bad, wanted = BAD_LINES[at]
    code, out, err = tel_run("--category", "oranbench", lines=jsonl(ASK, b"", bad, ASK))
    first, second, third = records(out)
    assert code == 1
    assert (first["id"], third["id"]) == ("1", "4")
    assert first["answer"] == third["answer"] == "c"
    assert second["line"] == 3
    assert wanted["error"] in second["error"]
    assert second.get("id") == ("3" if wanted.get("id") == "LINE" else wanted.get("id"))
    assert "2 answered" in err
    assert "1 refused" in err


def test_lines_are_answered_in_order_with_their_ids_and_categories(tel_run: Command) -> None:
    lines = jsonl(
        {**ASK, "id": "one", "category": "oranbench"},
        {"question": "gold 15", "category": "3gpp_tsg", "id": None},
        {**ASK, "category": "oranbench", "answer": 0},
    )
    opener = fake.FakeOpener()
    code, out, _ = tel_run(lines=lines, opener=opener)
    assert code == 0
    assert [(r["id"], r["answer"]) for r in records(out)] == [
        ("one", "c"), ("2", "SA6"), ("3", "c")
    ]  # fmt: skip
    assert set(opener.opened[0][1]) == {"oranbench", "3gpp_tsg"}


def test_a_line_without_category_is_told_where_to_name_one(tel_run: Command) -> None:
    code, out, _ = tel_run(lines=jsonl(ASK))
    assert code == 1
    said = "no category in the line, none in --category, and no router in the bundle"
    assert records(out) == [{"line": 1, "error": said}]


def test_no_line_at_all_is_no_failure(tel_run: Command) -> None:
    assert tel_run("--category", "oranbench", "--quiet") == (0, "", "")


def test_probabilities_sum_to_one(tel_run: Command) -> None:
    _, out, _ = tel_run("--category", "oranbench", lines=jsonl(ASK))
    assert math.isclose(sum(records(out)[0]["probabilities"]), 1, abs_tol=1e-5)


def test_json_ends_stdout_with_the_counts(tel_run: Command) -> None:
    code, out, err = tel_run(
        "--category", "oranbench", "--json", "--quiet", lines=jsonl(ASK, {"question": 1})
    )
    assert code == 1
    document = records(out)[-1]
    timing = document.pop("timing")
    assert document == {"answered": 1, "refused": 1}
    assert timing.keys() == {"python", "open", "first_answer"}
    assert all(value is None or value >= 0 for value in timing.values())
    assert err == ""


def test_no_adapter_asks_the_bare_backbone(tel_run: Command, home: Path) -> None:
    """It needs no adapter in the bundle either."""
    (home / "bundles" / "tel-nano" / "nano-oranbench-LoRA.gguf").unlink()
    opener = fake.FakeOpener()
    lines = jsonl({**ASK, "category": "teleqna"}, {"question": 1})
    code, out, _ = tel_run("--no-adapter", lines=lines, opener=opener)
    assert code == 1
    assert records(out)[0]["probabilities"] == [0.25] * 4
    assert records(out)[1]["line"] == 2
    assert opener.opened[0][1] == []


def test_quant_and_bundle_choose_the_file(tel_run: Command, home: Path) -> None:
    fake.bundle(home / "elsewhere")
    opener = fake.FakeOpener()
    argv = ["--bundle", str(home / "elsewhere"), "--quant", "F16", "--category", "oranbench"]
    assert tel_run(*argv, opener=opener)[0] == 0
    assert opener.opened[0][0] == home / "elsewhere" / "nano-F16.gguf"


# Arguments, exit code, what is said on stderr.
COMMANDS: tuple[tuple[list[str], int, str], ...] = (
    (["--nonsense"], 2, "unrecognized arguments: --nonsense"),
    (["--category"], 2, "expected one argument"),
    (["--context", "many"], 2, "argument --context: 'many' is no whole number above 0"),
    (["--threads", "0"], 2, "argument --threads: '0' is no whole number above 0"),
    (["--categ", "oranbench"], 2, "unrecognized arguments"),
    (["--category", "poetry"], 2, "unknown category 'poetry'; there are: teleqna sixg_bench"),
    (["--category", "teleqna"], 2, "no adapter for teleqna (there: 3gpp_tsg oranbench)"),
    (["--backbone", "nothing"], 2, "no backbone 'nothing': it is neither a folder nor one of"),
    (["--backbone", "qwen3-0.6b"], 2, "no manifest.json, so this is no bundle"),
    (["--bundle", "nowhere"], 2, "--bundle nowhere: no such folder; make a bundle with tel-export"),
    (["--quant", "Q8_0"], 2, "no Q8_0 backbone (there: F16 Q4_K_M); run: tel-export --quant Q8_0"),
    (["a question", "--choice", "a", "--choice", "b", "--labels", "x,y"], 2, "give one"),
    (["a question"], 2, "questions given as arguments need their answers: --choice TEXT"),
    (["--adapter-file", "x.gguf"], 2, "--adapter-file needs --backbone-file; a bundle brings"),
    (["--backbone-file", "no.gguf"], 2, "no.gguf: "),
    (["--window", "0"], 2, "argument --window: '0' is no whole number above 0"),
    (["--max-adapters", "-1"], 2, "argument --max-adapters: '-1' is no whole number above 0"),
    (["--threshold", "2"], 2, "argument --threshold: '2' is no number from 0 to 1"),
    (["--protocol", "poem"], 2, "argument --protocol: invalid choice: 'poem'"),
    (["--temperature", "0"], 2, "--temperature 0.0: a number above 0 is needed"),
    (["-k", "0"], 2, "argument -k: '0' is no whole number above 0"),
    (["-k", "129"], 2, "argument -k: '129' is no whole number from 1 to 128"),
    (["-k", "9" * 5000], 2, "is no whole number above 0"),
    (["-k", "63", "--protocol", "generate"], 2, "-k 63: with --protocol generate at most 62 work"),
    (["--threads", "513"], 2, "argument --threads: '513' is no whole number from 1 to 512"),
    (["--context", str(2**31)], 2, "argument --context: '2147483648' is no whole number from 1"),
    (["--gpu-layers", "-2"], 2, "argument --gpu-layers: '-2' is no whole number from -1"),
    (["--seed", "-1"], 2, "argument --seed: '-1' is no whole number from 0 to 4294967295"),
    (["--seed", "1_0"], 2, "argument --seed: '1_0' is no whole number from 0"),
    (["--temperature", "nan"], 2, "--temperature nan: a number above 0 is needed"),
    (["--max-tokens", "0"], 2, "argument --max-tokens: '0' is no whole number above 0"),
    (["--category", "oranbench", "a question"], 2, "need their answers: --choice TEXT"),
)


@pytest.mark.parametrize(("argv", "code", "said"), COMMANDS)
def test_wrong_usage(argv: list[str], code: int, said: str, tel_run: Command) -> None:
    opener = fake.FakeOpener()
    found, out, err = tel_run(*argv, opener=opener)
    assert (found, out, opener.opened) == (code, "", [])
    assert said in err
    assert err.startswith("tel-run: ")
    assert len(err.splitlines()) <= 2


def test_choices_without_questions_are_not_mistaken_for_one(tel_run: Command) -> None:
    code, out, _ = tel_run("--category", "oranbench", "--choice", "a", "?")
    assert code == 1
    assert "1 choices" in records(out)[0]["error"]


def test_the_parser_is_no_other_than_that_of_the_command() -> None:
    made: argparse.Namespace = run.parser().parse_args([])
    assert (made.category, made.context, made.quant) == ("all", 4096, None)


MIXED = [
    {
        "question": f"gold {at % 3}" + " or so" * (at % 5),
        "category": "oranbench" if at % 3 else "3gpp_tsg",
        **({"choices": ["a", "b", "c"]} if at % 3 else {}),
    }
    for at in range(20)
]


def test_categories_of_a_window_are_asked_together_and_answered_in_order(tel_run: Command) -> None:
    opener = fake.FakeOpener()
    code, out, _ = tel_run(lines=jsonl(*MIXED), opener=opener)
    assert code == 0
    assert [record["id"] for record in records(out)] == [str(at + 1) for at in range(20)]
    assert [record["index"] for record in records(out)] == [at % 3 for at in range(20)]
    assert opener.engines[0].calls == [(7, "3gpp_tsg"), (13, "oranbench")]


@pytest.mark.parametrize("argv", [[], ["--protocol", "generate"]])
def test_answers_and_votes_are_the_same_whatever_the_window(
    argv: list[str], tel_run: Command
) -> None:
    lines, found = jsonl(*MIXED), []
    for window in ("1", "3", "256"):
        opener = fake.FakeOpener()
        code, out, _ = tel_run("--window", window, *argv, lines=lines, opener=opener)
        assert code == 0
        assert max(count for count, _ in opener.engines[0].calls) <= int(window)
        found.append(out)
    assert len(set(found)) == 1
    assert len(set(map(str, (record["votes"] for record in records(found[0]))))) > 1


def test_votes_are_drawn_as_they_are_asked_for(tel_run: Command) -> None:
    code, out, _ = tel_run("-k", "9", "--temperature", "3", "--seed", "5", lines=jsonl(*MIXED))
    assert code == 0
    for record, row in zip(records(out), MIXED, strict=True):
        count = 3 if "choices" in row else 16
        shares = fake.gold(str(row["question"]), "x", count)
        drawn = votes.draws([math.log(share) for share in shares], 9, 3.0, 5, record["id"])
        assert record["votes"] == list(drawn)
        assert record["majority"] == votes.majority(drawn)


def test_mass_is_that_of_all_labels(tel_run: Command) -> None:
    opener = fake.FakeOpener(rule=lambda prompt, adapter, labels: [0.1] * labels)
    _, out, _ = tel_run("--category", "oranbench", lines=jsonl(ASK), opener=opener)
    assert records(out)[0]["mass"] == 0.4
    assert records(out)[0]["probabilities"] == [0.25] * 4


def test_settings_reach_the_engine(tel_run: Command) -> None:
    argv = ["--exact", "--max-adapters", "2", "--threads", "3", "--context", "512"]
    opener = fake.FakeOpener()
    assert tel_run(*argv, "--gpu-layers", "-1", opener=opener)[0] == 0
    made = opener.engines[0].settings
    assert (made.exact, made.max_adapters, made.threads) == (True, 2, 3)
    assert (made.context, made.gpu_layers) == (512, -1)
    assert tel_run(opener=opener)[0] == 0
    made = opener.engines[1].settings
    assert (made.exact, made.max_adapters, made.threads, made.context) == (False, None, None, 4096)


def test_a_damaged_adapter_is_the_trouble_of_its_own_questions(
    tel_run: Command, home: Path
) -> None:
    path = home / "bundles" / "tel-nano" / "nano-3gpp_tsg-LoRA.gguf"
    path.write_bytes(path.read_bytes()[:-1])
    code, out, err = tel_run("--window", "8", lines=jsonl(*MIXED))
    assert code == 1
    assert "13 answered with nano-Q4_K_M.gguf, 7 refused" in err
    for at, record in enumerate(records(out)):
        assert record["id"] == str(at + 1)
        if at % 3:
            assert record["index"] == at % 3
        else:
            assert record["line"] == at + 1
            assert "nano-3gpp_tsg-LoRA.gguf: " in record["error"]
    # Asked for by name, it is refused before anything is read.
    opener = fake.FakeOpener()
    code, out, err = tel_run("--category", "3gpp_tsg", lines=jsonl(*MIXED), opener=opener)
    assert (code, out, opener.opened) == (2, "", [])
    assert "nano-3gpp_tsg-LoRA.gguf: " in err


def test_labels_in_words(tel_run: Command) -> None:
    argv = ["--category", "oranbench", "--labels", "yes, no ,maybe not"]
    rows = (
        {"question": "gold 1"},
        {"question": "gold 0", "labels": ["up", "down"]},
        {**ASK, "question": "gold 3"},
    )
    opener = fake.FakeOpener()
    code, out, _ = tel_run(*argv, lines=jsonl(*rows), opener=opener)
    assert code == 0
    assert [record["answer"] for record in records(out)] == ["no", "up", "d"]
    prompts = {text for text, _ in opener.engines[0].asked}
    assert "gold 1\nAnswer:" in prompts
    assert not any("maybe" in prompt for prompt in prompts)
    assert tel_run(*argv, "is it gold 2?")[1].startswith('{"id": "1", "answer": "maybe not"')


def test_labels_cannot_be_generated(tel_run: Command) -> None:
    lines = jsonl({"question": "gold 0", "labels": ["up", "down"]}, ASK)
    argv = ["--category", "oranbench", "--protocol", "generate"]
    code, out, _ = tel_run(*argv, lines=lines)
    assert code == 1
    assert "labels of a request can be scored only" in records(out)[0]["error"]
    assert records(out)[1]["index"] == 2


def test_answers_are_read_from_generated_texts(tel_run: Command) -> None:
    """The second sampled text says nothing."""
    argv = ["--category", "oranbench", "--protocol", "generate", "--quiet"]
    code, out, err = tel_run(*argv, lines=jsonl(ASK))
    assert (code, err) == (0, "")
    assert records(out) == [
        {
            "id": "1",
            "answer": "c",
            "index": 2,
            "text": "Well.\nANSWER: C",
            "votes": [2, None, 2, 2],
            "majority": 2,
        }
    ]
    code, out, _ = tel_run("--no-adapter", *argv[2:], "-k", "2", lines=jsonl(ASK))
    assert code == 0
    assert records(out) == [
        {
            "id": "1",
            "answer": None,
            "index": None,
            "text": "Hard to say.",
            "votes": [None, None],
            "majority": None,
        }
    ]


def test_generation_is_asked_for_as_it_is_told(tel_run: Command) -> None:
    class Watched(fake.FakeEngine):
        def generate(self, prompts: Any, adapter: str | None) -> Any:
            ways.extend(how for _, how in prompts)
            return super().generate(prompts, adapter)

    ways: list[Any] = []
    argv = ["--protocol", "generate", "-k", "3", "--temperature", "0.5", "--max-tokens", "7"]
    argv += ["--category", "3gpp_tsg", "--seed", "9"]
    opener = fake.FakeOpener(engine=Watched, writer=lambda *_: "I say SA4-bis, SA4")
    code, out, _ = tel_run(*argv, lines=jsonl({"question": "x", "id": "q"}), opener=opener)
    assert code == 0
    assert [(how.k, how.temperature, how.limit, how.seed) for how in ways] == [(3, 0.5, 7, "9 q")]
    # The first run that looks like a group counts, and SA4-bis is none.
    assert records(out)[0]["index"] is None
    opener = fake.FakeOpener(writer=lambda *_: "SA4.")
    _, out, _ = tel_run(*argv, lines=jsonl({"question": "x"}), opener=opener)
    assert records(out)[0]["answer"] == "SA4"


def routed(home: Path, threshold: float = 0.5) -> None:
    """Put a router into the bundle that finds oranbench likely, and 3gpp_tsg for "tdoc"."""
    folder = home / "bundles" / "tel-nano"
    weights = np.zeros((2, 2**12), np.float16)
    weights[1, features("tdoc", (), 2**12)[0]] = 50
    bias = np.array([2.0, 0.0], np.float32)
    path = folder / "router.safetensors"
    save(Router(("oranbench", "3gpp_tsg"), weights, bias, 1.0, threshold, "ab" * 32), path)
    known = {"kind": "router", "format": "safetensors", "quant": "F16", "source": "ab" * 32}
    made = manifest.read(folder)
    manifest.write(made.with_file(manifest.describe(folder, path, **known)), folder)


def test_a_router_finds_the_category_of_a_request_without_one(tel_run: Command, home: Path) -> None:
    routed(home)
    lines = jsonl(ASK, {"question": "tdoc gold 3"}, {**ASK, "category": "oranbench"})
    opener = fake.FakeOpener()
    code, out, _ = tel_run(lines=lines, opener=opener)
    assert code == 0
    one, two, three = records(out)
    assert list(one)[:3] == ["id", "category", "route_probability"]
    # 3gpp_tsg is none that a request with choices may have.
    assert (one["category"], one["route_probability"], one["answer"]) == ("oranbench", 1, "c")
    assert (two["category"], two["answer"]) == ("3gpp_tsg", "CT6")
    assert two["route_probability"] > 0.9
    assert "category" not in three
    assert Counter(adapter for _, adapter in opener.engines[0].asked) == {
        "oranbench": 2,
        "3gpp_tsg": 1,
    }
    # Where all of them are named, nothing is routed.
    _, out, _ = tel_run("--category", "oranbench", lines=jsonl(ASK))
    assert "category" not in records(out)[0]


def test_below_the_threshold_the_bare_backbone_answers(tel_run: Command, home: Path) -> None:
    routed(home, threshold=0.95)
    lines = jsonl({"question": "gold 1", "labels": ["up", "down"]})
    found = []
    for argv in ([], ["--threshold", "0.5"]):
        opener = fake.FakeOpener()
        code, out, _ = tel_run(*argv, lines=lines, opener=opener)
        assert code == 0
        (record,) = records(out)
        # 1 / (1 + exp(-2)): the router is as sure as before.
        assert record["route_probability"] == 0.880797
        found.append((record["category"], opener.engines[0].asked))
    assert found == [
        (None, [("gold 1\nAnswer:", None)]),
        ("oranbench", [("gold 1\nAnswer:", "oranbench")]),
    ]


def test_a_request_sent_to_a_category_without_adapter_is_the_bare_backbones(
    tel_run: Command, home: Path
) -> None:
    folder = home / "bundles" / "tel-nano"
    (folder / "manifest.json").unlink()
    fake.bundle(folder, adapters=("3gpp_tsg",))
    routed(home)
    opener = fake.FakeOpener()
    code, out, _ = tel_run(lines=jsonl(ASK, {**ASK, "category": "oranbench"}), opener=opener)
    assert code == 1
    first, second = records(out)
    assert first["category"] == "oranbench"
    assert [adapter for _, adapter in opener.engines[0].asked] == [None]
    # Who names the category means its adapter.
    assert second == {"id": "2", "line": 2, "error": "no adapter for oranbench"}


def test_a_damaged_router_is_refused(tel_run: Command, home: Path) -> None:
    routed(home)
    path = home / "bundles" / "tel-nano" / "router.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    opener = fake.FakeOpener()
    code, out, err = tel_run(lines=jsonl(ASK), opener=opener)
    assert (code, out, opener.opened) == (2, "", [])
    assert "router.safetensors: " in err
    # Who names the category needs none.
    assert tel_run("--category", "oranbench", lines=jsonl(ASK))[0] == 0


def test_loose_files_are_opened_with_a_warning(tel_run: Command, home: Path) -> None:
    folder = home / "bundles" / "tel-nano"
    (folder / "manifest.json").unlink()
    backbone, adapter = folder / "nano-F16.gguf", folder / "nano-oranbench-LoRA.gguf"
    opener = fake.FakeOpener()
    argv = ["--backbone-file", str(backbone), "--adapter-file", str(adapter)]
    code, out, err = tel_run(*argv, "--category", "oranbench", lines=jsonl(ASK), opener=opener)
    assert code == 0
    assert records(out)[0]["answer"] == "c"
    assert opener.opened == [(backbone, ["oranbench"])]
    assert "warning: nothing binds nano-F16.gguf and its 1 adapters to each other" in err
    assert "1 answered with nano-F16.gguf, 0 refused" in err
    # Several, each under the category that it is for.
    argv = ["--backbone-file", str(backbone)]
    for name in ("oranbench", "3gpp_tsg"):
        argv += ["--adapter-file", f"{name}={folder / f'nano-{name}-LoRA.gguf'}"]
    code, out, _ = tel_run(*argv, lines=jsonl(*MIXED), opener=opener)
    assert code == 0
    assert opener.opened[-1] == (backbone, ["3gpp_tsg", "oranbench"])
    # Without one it is the bare backbone that is asked.
    _, out, _ = tel_run("--backbone-file", str(backbone), lines=jsonl(ASK), opener=opener)
    assert records(out)[0]["probabilities"] == [0.25] * 4


def test_loose_files_that_do_not_belong_together_are_refused(tel_run: Command, home: Path) -> None:
    folder = home / "bundles" / "tel-nano"
    backbone, adapter = folder / "bound.gguf", folder / "nano-oranbench-LoRA.gguf"
    backbone.write_bytes(fake.gguf(tel_edge__backbone__weights="0" * 64))
    opener = fake.FakeOpener()
    argv = ["--backbone-file", str(backbone), "--adapter-file"]
    for text, said in (
        (f"oranbench={adapter}", "nano-oranbench-LoRA.gguf: made for another backbone than bound"),
        (f"oranbench={backbone}", "bound.gguf: no LoRA adapter (general.type)"),
        (f"poetry={adapter}", "unknown category 'poetry'"),
        (str(adapter), "pass --category, or CATEGORY="),
        ("oranbench=nowhere.gguf", "nowhere.gguf"),
    ):
        code, out, err = tel_run(*argv, text, lines=jsonl(ASK), opener=opener)
        assert (code, out, opener.opened) == (2, "", []), text
        assert said in err
        assert len(err.splitlines()) <= 2


@pytest.fixture
def piped() -> Iterator[Callable[[Any], Any]]:
    """Return what makes a stdin of a pipe that a thread writes the given parts into."""
    writers: list[threading.Thread] = []
    files: list[Any] = []

    def made(parts: Any) -> Any:
        out, into = os.pipe()

        def write() -> None:
            with open(into, "wb") as file:
                for part in parts:
                    file.write(part)
                    file.flush()

        writers.append(threading.Thread(target=write))
        writers[-1].start()
        files.append(open(out, encoding="utf-8"))  # noqa: SIM115
        return files[-1]

    yield made
    for file in files:
        file.close()
    for writer in writers:
        writer.join()


def test_a_line_of_any_length_is_one_error_and_soon(
    tel_run: Command, piped: Any, tmp_path: Path
) -> None:
    long = json.dumps({**ASK, "question": "long " * 6_400_000}).encode()
    lines = b"\n".join([jsonl(ASK).strip(), long, jsonl(ASK)])
    (tmp_path / "lines").write_bytes(lines)
    began = time.process_time()
    with (tmp_path / "lines").open(encoding="utf-8") as file:
        code, out, _ = tel_run("--category", "oranbench", lines=file)
    first, refused, last = records(out)
    assert refused == {"line": 2, "error": "more than 1,048,576 characters"}
    assert (code, first["answer"], last["answer"]) == (1, "c", "c")
    assert tel_run("--category", "oranbench", lines=piped([lines]))[1] == out
    assert time.process_time() - began < 4


def test_a_file_a_pipe_and_a_stream_without_either_are_read_alike(
    tel_run: Command, piped: Any, tmp_path: Path
) -> None:
    lines = jsonl(*MIXED, b"torn {", b'{"question": "caf\xe9"}', b"", ASK)[:-1]
    (tmp_path / "lines").write_bytes(lines)
    wanted = tel_run(lines=lines)
    assert wanted[0] == 1
    assert len(records(wanted[1])) == 23
    with (tmp_path / "lines").open(encoding="ascii") as file:
        assert tel_run(lines=file) == wanted
    torn = random.Random(3)
    cuts = sorted(torn.sample(range(1, len(lines)), 30))
    parts = [lines[a:b] for a, b in zip([0, *cuts], [*cuts, len(lines)], strict=True)]
    assert tel_run(lines=piped(parts)) == wanted


def test_ten_thousand_questions_take_the_memory_of_a_few_windows(
    tel_run: Command, piped: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Light(fake.FakeEngine):
        """Keeps nothing of what it is asked."""

        def score(self, items: Any, adapter: str | None) -> Iterator[tuple[int, Score]]:
            packed.append(len(items))
            for at in range(len(items)):
                yield at, Score((-1.0, -2.0), 1, 1, 1.0)

    class Watched(requests.Request):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            living.add(self)
            most.append(max(len(living), most.pop()))

    packed: list[int] = []
    living: weakref.WeakSet[Any] = weakref.WeakSet()
    most = [0]
    monkeypatch.setattr(requests, "Request", Watched)
    count, size = 10_000, 64
    row = {"question": "?", "choices": ["a", "b"]}
    argv = ["--window", str(size), "--category", "oranbench", "--quiet"]
    lines = piped(jsonl(row) for _ in range(count))
    code, out, _ = tel_run(*argv, lines=lines, opener=fake.FakeOpener(engine=Light))
    assert code == 0
    assert [record["id"] for record in records(out)] == [str(at + 1) for at in range(count)]
    assert sum(packed) == count
    assert max(packed) <= size
    # The window at work, the one read ahead, and what is in hands between.
    assert most[0] <= 3 * size + 3


def test_an_answer_goes_out_before_the_next_question_comes(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks one at a time is not kept waiting for a full window."""
    told: list[str] = []
    answered = threading.Semaphore(0)

    def questions() -> Iterator[bytes]:
        for _ in range(3):
            yield jsonl(ASK)
            assert answered.acquire(timeout=20)

    class Out(io.StringIO):
        def write(self, text: str) -> int:
            if text.strip():
                told.append(text)
                answered.release()
            return len(text)

    out, into = os.pipe()

    def write() -> None:
        with open(into, "wb", buffering=0) as file:
            for line in questions():
                file.write(line)

    writer = threading.Thread(target=write)
    writer.start()
    with open(out, encoding="utf-8") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setattr("sys.stdout", Out())
        args = run.parser().parse_args(["--workspace", str(home), "--category", "oranbench"])
        made = run.work(args, fake.FakeOpener())
    writer.join()
    assert (made["answered"], len(told)) == (3, 3)


CHILD = """
import sys, time
from functools import partial
sys.path.insert(0, sys.argv.pop(1))
import fake_engine as fake
from tel_edge.runtime import cli
from tel_edge.runtime.commands import run

def rule(prompt, adapter, labels):
    if "hang" in prompt:
        print("hanging", file=sys.stderr, flush=True)
        time.sleep(60)
    return fake.gold(prompt, adapter, labels)

sys.exit(cli.run(run.parser(), partial(run.work, opener=fake.FakeOpener(rule=rule))))
"""


def child(home: Path) -> subprocess.Popen[bytes]:
    """Start a process as `tel-run` is one, but for the engine, with pipes all around."""
    argv = ["--workspace", str(home), "--category", "oranbench", "--quiet"]
    return subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE + CHILD, str(Path(__file__).parent), *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_reader_that_goes_away_ends_it_without_a_word(home: Path) -> None:
    with child(home) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(jsonl(ASK))
        process.stdin.flush()
        assert b'"answer": "c"' in process.stdout.readline()
        process.stdout.close()
        # Its own stdin stays open: it must not wait for more questions.
        process.stdin.write(jsonl(ASK, ASK))
        process.stdin.flush()
        assert process.wait(20) == 0
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [(signal.SIGINT, 130, b"interrupted"), (signal.SIGTERM, 143, b"terminated")],
)
def test_an_interruption_leaves_what_was_answered(
    home: Path, shell: str, how: signal.Signals, code: int, said: bytes
) -> None:
    """The engine asks the longest first, so the answers that are there come before the gap."""
    with child(home) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        rows = [{**ASK, "question": "gold 2" + " or so" * at} for at in (9, 0, 5, 7)]
        rows[1]["question"] = "hang"
        process.stdin.write(jsonl(*rows))
        process.stdin.flush()
        assert process.stderr.readline() == b"hanging\n"
        process.send_signal(how)
        assert process.wait(20) == code
        told = records(process.stdout.read().decode())
        assert [(record["id"], record["answer"]) for record in told] == [
            ("1", "c"), ("3", "c"), ("4", "c")
        ]  # fmt: skip
        assert process.stderr.read() == b"tel-run: %s; what was finished is kept\n" % said
