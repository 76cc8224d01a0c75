"""`tel-run` from the outside: arguments and JSONL in, one record a line out."""

from __future__ import annotations

import argparse
import io
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest

from tel_edge.runtime import run
from tel_edge.runtime.categories import CATEGORIES

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
        *argv: str, lines: bytes = b"", opener: fake.FakeOpener | None = None
    ) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
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
    assert records(out) == [
        {"id": "1", "answer": "y", "index": 1, "probabilities": [0.15, 0.7, 0.15]},
        {"id": "2", "answer": "z", "index": 2, "probabilities": [0.15, 0.15, 0.7]},
    ]
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
    ({**ASK, "id": 7, "category": "teleqna"}, {"id": "7", "error": "no adapter for teleqna"}),
    ({**ASK, "question": "half \ud83d"}, {"error": "'\\ud83d' is no Unicode character"}),
    ({**ASK, "id": "half \ud83d"}, {"error": "'\\ud83d' is no Unicode character"}),
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
    assert records(out) == [{"line": 1, "error": "no category in the line and none in --category"}]


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
    assert records(out)[-1] == {"answered": 1, "refused": 1}
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
    assert opener.opened[0][1] == {}


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
    (["--bundle", "nowhere"], 2, "nowhere: no manifest.json, so this is no bundle"),
    (["--quant", "Q8_0"], 2, "no Q8_0 backbone (there: F16 Q4_K_M); run: tel-export --quant Q8_0"),
    (["a question"], 2, "questions given as arguments need --category NAME"),
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
