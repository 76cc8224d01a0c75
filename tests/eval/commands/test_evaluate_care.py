"""`tel-eval --category care` with an engine that has no model: who is asked, and what is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fake_engine as fake
import for_answers
import pytest
from for_answers import Talks

pytest.importorskip("jinja2")

from tel_edge.eval.care.answers import cases
from tel_edge.eval.care.answers.records import Along, Record, read, read_along
from tel_edge.eval.commands import evaluate, report
from tel_edge.runtime.bundles.formats import Format

Command = Callable[..., tuple[int, str, str]]
TelEval = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Format, "installed", lambda _: True)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A workspace with a bundle that has an adapter for care, and eight dialogues in `data`."""
    for_answers.dataset(tmp_path / "data")
    fake.bundle(tmp_path / "bundles" / "tel-nano", adapters=("care",))
    return tmp_path


@pytest.fixture
def tel_eval(home: Path, run_command: Command) -> TelEval:
    def made(opener: Any, *argv: str, quiet: bool = True) -> tuple[int, str, str]:
        work = partial(evaluate.work, opener=opener, isolated=False)
        common = ["--workspace", str(home), *["--quiet"] * quiet, "--category", "care"]
        common += [] if "--dataset" in argv else ["--dataset", str(home / "data")]
        # The fake's tokens are characters.
        common += [] if "--max-tokens" in argv else ["--max-tokens", "900"]
        return run_command(evaluate.parser(), work, *common, *argv)

    return made


def right(home: Path) -> Talks:
    say = for_answers.answer(home / "data")
    return Talks({"F16": say, "Q4_K_M": say}, {"F16": 3.0, "Q4_K_M": 2.0})


def out(home: Path, variant: str, name: str = "care.jsonl") -> Path:
    return home / "results" / "tel-nano" / variant / name


def records(home: Path, variant: str) -> list[Record]:
    return list(read(out(home, variant)))


def test_every_variant_answers_and_is_compared(tel_eval: TelEval, home: Path) -> None:
    code, said, _ = tel_eval(right(home), "--json")
    assert code == 0
    [document] = json.loads(said.splitlines()[-1])["care"]
    names = [one["variant"]["name"] for one in document["variants"]]
    assert names == ["base-F16", "lora-F16", "base-Q4_K_M", "lora-Q4_K_M"]
    assert (document["dialogues"], document["scenarios"], document["left_out"]) == (8, 4, 0)
    for one in document["variants"]:
        figures = {name: made["value"] for name, made in one["figures"].items()}
        wanted = ("f1", "precision", "recall", "check", "fix", "escalate", "named", "stopped")
        assert [figures[name] for name in wanted] == [1.0] * 8
        assert figures["loops"] == figures["asks_secret"] == figures["too_long"] == 0
    pairs = [(one["variant"], one["reference"]) for one in document["against"]]
    assert pairs == [("base-Q4_K_M", "base-F16"), ("lora-Q4_K_M", "lora-F16")]
    one = document["against"][1]
    assert (one["lost"], one["won"], one["first"], one["same"]["value"]) == (0, 0, None, 1.0)
    assert one["verdict"] == "cannot be told (n too small)"
    # Both are the same but for one peak, so the divergence is known.
    size = for_answers.TalkingEngine.vocabulary
    p, q = (math.exp(peak) / (math.exp(peak) + size - 1) for peak in (3.0, 2.0))
    kl = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert one["kl"]["value"] == pytest.approx(kl, rel=1e-4)
    assert one["agreed"]["value"] == 1.0
    # A position for each token and for the one that ends the answer.
    along: list[Along] = list(read_along(out(home, "lora-Q4_K_M", "care.along.jsonl"),
                                         json_run(home)))  # fmt: skip
    theirs = {one.id: one for one in records(home, "lora-F16")}
    assert [len(one.kl) for one in along] == [len(theirs[one.id].tokens[0]) + 1 for one in along]
    beside = home / "results" / "tel-nano"
    assert json.loads((beside / "care.json").read_text()) == document
    page = (beside / "care.md").read_text()
    assert "lora-Q4_K_M beside lora-F16, 8 dialogues: cannot be told" in page
    assert "| lora-F16 | 100.0 [100.0, 100.0] |" in page


def json_run(home: Path) -> str:
    text = out(home, "lora-Q4_K_M", "care.along.jsonl").read_text()
    run: str = json.loads(text.splitlines()[0])["run"]
    return run


def test_what_a_limit_cut_off_is_followed_to_its_last_token(tel_eval: TelEval, home: Path) -> None:
    assert tel_eval(right(home), "--no-bare", "--max-tokens", "9")[0] == 0
    found = list(read_along(out(home, "lora-Q4_K_M", "care.along.jsonl"), json_run(home)))
    assert [(len(one.kl), len(one.gap)) for one in found] == [(9, 9)] * 8


def test_the_prompt_is_the_template_with_the_dialogue(tel_eval: TelEval, home: Path) -> None:
    opener = right(home)
    assert tel_eval(opener, "--quant", "F16", "--no-bare", "--limit", "1")[0] == 0
    [engine] = opener.engines
    [record] = records(home, "lora-F16")
    row = next(
        row
        for line in (home / "data" / "test.jsonl").read_text().splitlines()
        if (row := json.loads(line))["id"] == record.id
    )
    content = row["messages"][0]["content"]
    # The fake leaves the first character out, as it would a token that begins a text.
    assert engine.asked == [(f"s>[user]{content}\n[assistant]", "care")]
    assert record.texts == (row["messages"][1]["content"],)
    assert engine.closed


def test_what_is_there_is_not_asked_again(tel_eval: TelEval, home: Path) -> None:
    assert tel_eval(right(home), "--limit", "3")[0] == 0
    three = [one.id for one in records(home, "lora-F16")]
    opener = right(home)
    assert tel_eval(opener)[0] == 0
    assert opener.asked() == 4 * 5
    eight = [one.id for one in records(home, "lora-F16")]
    assert set(three) < set(eight)
    again = right(home)
    assert tel_eval(again)[0] == 0
    assert again.engines == []
    # Some of them again: nothing is asked, the others stay.
    code, said, _ = tel_eval(again, "--limit", "3", "--json")
    [document] = json.loads(said.splitlines()[-1])["care"]
    assert (code, again.engines, document["dialogues"], document["left_out"]) == (0, [], 3, 5)
    assert {one.id for one in records(home, "lora-F16")} == set(eight)


def test_a_run_that_was_killed_goes_on_behind_its_last_whole_line(
    tel_eval: TelEval, home: Path
) -> None:
    assert tel_eval(right(home), "--no-bare", "--quant", "F16")[0] == 0
    file = out(home, "lora-F16")
    whole = file.read_text()
    file.write_text("".join(whole.splitlines(keepends=True)[:5])[:-20])
    opener = right(home)
    assert tel_eval(opener, "--no-bare", "--quant", "F16")[0] == 0
    assert opener.asked() == 4
    assert file.read_text() == whole


def test_another_limit_or_another_dialogue_is_asked_anew(tel_eval: TelEval, home: Path) -> None:
    argv = ("--no-bare", "--quant", "F16")
    assert tel_eval(right(home), *argv)[0] == 0
    opener = right(home)
    assert tel_eval(opener, *argv, "--max-tokens", "9")[0] == 0
    assert opener.asked() == 8
    assert {one.stopped for one in records(home, "lora-F16")} == {False}
    assert {len(one.tokens[0]) for one in records(home, "lora-F16")} == {9}
    # The first ones were kept.
    opener = right(home)
    assert tel_eval(opener, *argv)[0] == 0
    assert opener.engines == []
    file = home / "data" / "test.jsonl"
    file.write_text(file.read_text().replace("?", "??", 1))
    opener = right(home)
    assert tel_eval(opener, *argv)[0] == 0
    assert opener.asked() == 1


def test_measures_of_kept_answers_are_made_anew(tel_eval: TelEval, home: Path) -> None:
    argv = ("--no-bare", "--quant", "F16")
    assert tel_eval(right(home), *argv)[0] == 0
    file = out(home, "lora-F16")
    whole = file.read_text()
    file.write_text(whole.replace('"named":true', '"named":false'))
    opener = right(home)
    assert tel_eval(opener, *argv)[0] == 0
    assert (opener.engines, file.read_text()) == ([], whole)


def test_each_exchange_is_answered_behind_the_models_own_answers(
    tel_eval: TelEval, home: Path
) -> None:
    for_answers.dataset(home / "data", count=1, each=1, turns=3)
    opener, say = right(home), for_answers.answer(home / "data")
    opener.says = {"F16": lambda prompt: say(prompt) + " Indeed."}
    assert tel_eval(opener, "--quant", "F16", "--no-bare")[0] == 0
    [record] = records(home, "lora-F16")
    row = json.loads((home / "data" / "test.jsonl").read_text())
    said = [message["content"] for message in row["messages"]]
    said[1::2] = [f"{text} Indeed." for text in said[1::2]]
    assert list(record.texts) == said[1::2]
    assert (record.measured.f1, record.stopped) == (1.0, True)
    [engine] = opener.engines
    assert [prompt.count("[assistant]") for prompt, _ in engine.asked] == [1, 2, 3]
    assert engine.asked[2][0] == (
        f"s>[user]{said[0]}\n[assistant]{said[1]}\n[user]{said[2]}\n[assistant]{said[3]}\n"
        f"[user]{said[4]}\n[assistant]"
    )


def test_a_variant_that_says_another_thing_loses_facts(tel_eval: TelEval, home: Path) -> None:
    opener = right(home)
    opener.says = {**opener.says, "Q4_K_M": lambda prompt: "Have you tried it off and on? " * 4}
    code, said, _ = tel_eval(opener, "--json", "--no-bare")
    [document] = json.loads(said.splitlines()[-1])["care"]
    [one] = document["against"]
    assert (code, one["lost"], one["won"], one["same"]["value"]) == (0, 24, 0, 0.0)
    assert one["f1"]["value"] == -1.0
    assert one["verdict"] == "loss"
    assert document["variants"][1]["figures"]["loops"]["value"] == 1.0


def test_a_bundle_without_an_adapter_has_its_backbone_measured(
    tel_eval: TelEval, home: Path
) -> None:
    fake.bundle(home / "bundles" / "tel-nano", adapters=("oranbench",))
    code, said, told = tel_eval(right(home), quiet=False)
    assert code == 0
    assert "no adapter for care, so only the bare backbone is measured" in told
    assert [line.split()[1] for line in said.splitlines()[:2]] == ["base-F16", "base-Q4_K_M"]
    code, _, told = tel_eval(right(home), "--no-bare")
    assert (code, "no adapter for care; leave --no-bare out" in told) == (2, True)


def test_an_adapter_of_another_data_set_is_refused(tel_eval: TelEval, home: Path) -> None:
    own = cases.read(home / "data", "test").digest
    fake.bundle(home / "bundles" / "tel-nano", adapters=("care",), split=own)
    assert tel_eval(right(home))[0] == 0
    fake.bundle(home / "bundles" / "tel-nano", adapters=("care",), split="another")
    code, _, told = tel_eval(right(home))
    assert (code, "trained on another data set than data" in told) == (2, True)
    assert tel_eval(right(home), "--other-split")[0] == 0


def test_a_prompt_that_is_too_long_says_nothing_right(tel_eval: TelEval, home: Path) -> None:
    opener = right(home)

    class Short(for_answers.TalkingEngine):
        def generate(self, prompts: Any, adapter: Any) -> Any:
            from tel_edge.runtime.engines.engine import Unanswered
            from tel_edge.runtime.errors import InputError

            yield from ((at, made) for at, made in super().generate(prompts, adapter) if at)
            raise Unanswered({0: InputError("900 tokens, the context holds 100")})

    def short(*given: Any) -> Any:
        made = opener(*given)
        made.__class__ = Short
        return made

    code, said, _ = tel_eval(short, "--json", "--no-bare", "--quant", "F16")
    [document] = json.loads(said.splitlines()[-1])["care"]
    figures = document["variants"][0]["figures"]
    assert code == 0
    assert (figures["too_long"]["right"], figures["stopped"]["right"]) == (1, 7)
    assert "too long" in said
    [one] = [one for one in records(home, "lora-F16") if one.fault]
    assert (one.texts, one.measured.f1) == ((), 0.0)


def test_tel_report_leaves_it_out_and_says_where_it_is(
    tel_eval: TelEval, home: Path, run_command: Command
) -> None:
    assert tel_eval(right(home), "--limit", "2")[0] == 0
    argv = ["--workspace", str(home), "--quiet", "--out", str(home / "report")]
    code, _, told = run_command(report.parser(), report.work, *argv)
    assert code == 2
    assert f"answers to customers are in {home / 'results' / 'tel-nano' / 'care.md'}" in told


def test_questions_beside_it_are_scored_and_reported_as_ever(
    tel_eval: TelEval, home: Path, run_command: Command
) -> None:
    fake.bundle(home / "bundles" / "tel-nano", adapters=("care", "oranbench"))
    fake.dataset(home / "questions", "oranbench", fake.rows(30))
    assert tel_eval(right(home), "--limit", "2")[0] == 0
    common = ["--workspace", str(home), "--dataset", str(home / "questions")]
    work = partial(evaluate.work, opener=fake.FakeOpener(), isolated=False)
    argv = [*common, "--no-baselines", "--no-rotations"]
    code, said, told = run_command(evaluate.parser(), work, *argv)
    assert (code, "care: not scored here; run: tel-eval --category care" in told) == (0, True)
    assert {line.split()[0] for line in said.splitlines()[:-1]} == {"oranbench"}
    argv = [*common, "--quiet", "--out", str(home / "report"), "--no-questions"]
    code, said, _ = run_command(report.parser(), report.work, *argv)
    place = home / "results" / "tel-nano"
    assert (code, f"answers to customers: {place / 'care.md'}" in said) == (0, True)
    argv = [*common, "--compare", str(place / "lora-F16"), str(place / "lora-Q4_K_M")]
    assert run_command(report.parser(), report.work, *argv)[0] == 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--rotations",), "--rotations: means nothing with --category care"),
        (("-k", "8"), "-k: means nothing"),
        (("--protocol", "generate"), "--protocol: means nothing"),
        (("--dataset", "ot-mini"), "--dataset ot-mini is no folder; make one with tel-generate"),
        (("--part", "unseen"), "no unseen.jsonl (there: test train)"),
        (("--category", "care,teleqna"), "care is evaluated by itself"),
    ],
)
def test_what_means_nothing_is_refused(
    tel_eval: TelEval, home: Path, argv: tuple[str, ...], said: str
) -> None:
    code, _, told = tel_eval(right(home), *argv)
    assert (code, said in told) == (2, True), told


def test_what_is_of_care_alone_is_refused_elsewhere(tel_eval: TelEval, home: Path) -> None:
    for argv, said in (
        (("--part", "unseen"), "--part unseen: questions have none"),
        (("--no-along",), "--no-along: means nothing without --category care"),
    ):
        code, _, told = tel_eval(right(home), "--category", "oranbench", *argv)
        assert (code, said in told) == (2, True), told


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"facts": {"check": "look"}}, "line 1: fix is 'None'"),
        ({"messages": [{"role": "assistant", "content": "Hello"}]}, "messages are of assistant"),
        ({"id": 7}, "line 1: id is '7', a str is needed"),
    ],
)
def test_a_row_that_is_no_dialogue_is_named(
    tel_eval: TelEval, home: Path, change: dict[str, Any], said: str
) -> None:
    file = home / "data" / "test.jsonl"
    first, *rest = file.read_text().splitlines(keepends=True)
    file.write_text("".join([json.dumps(json.loads(first) | change) + "\n", *rest]))
    code, _, told = tel_eval(Talks({}))
    assert (code, said in told, str(file) in told) == (2, True, True), told
