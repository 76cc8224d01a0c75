"""Data sets as people make them: other answers, other encodings, the same rows twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest

from tel_edge.eval.benchmarks import benchmark, facets, source
from tel_edge.eval.benchmarks.benchmark import Benchmark
from tel_edge.export.gguf import calibration
from tel_edge.runtime import cli
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.train import job
from tel_edge.train.commands import train

ORAN = CATEGORIES["oranbench"]
FILE = "oranbench/test-00000-of-00001.jsonl"


def rows(answers: Sequence[Any], choices: Sequence[str] = ("red", "green", "blue", "white")) -> Any:
    return [
        {"question": f"Which is {at}?", "choices": list(choices), "answer": answer}
        for at, answer in enumerate(answers)
    ]


def read(folder: Path, told: list[str] | None = None) -> Benchmark:
    if told is None:
        return benchmark.read(str(folder), ORAN)
    return benchmark.read(str(folder), ORAN, say=told.append)


# Answers counted from 1.


FROM_ONE = (
    "warning: oranbench: no answers are 0 and 2 equal the number of choices: they seem to count "
    "from 1, and all others are one letter off; subtract 1 from each"
)
LEFT_OUT = (
    "warning: oranbench: 2 of 8 rows are no questions and were left out; "
    f"the first: {FILE}, line 4: answer 4 is outside the 4 choices, which count from 0"
)


def test_answers_counted_from_one_are_told_with_the_remedy(tmp_path: Path) -> None:
    told: list[str] = []
    made = read(fake.dataset(tmp_path, "oranbench", rows([1, 2, 3, 4, 1, 2, 3, 4])), told)
    assert told == [LEFT_OUT, FROM_ONE]
    assert len(made.questions) == 6


@pytest.mark.parametrize("answers", [[0, *[1, 2, 3, 4] * 6], [1, 2, 3] * 30])
def test_one_stray_row_hides_nothing(answers: list[int], tmp_path: Path) -> None:
    """A single 0 among many, or no row whose last choice is right."""
    told: list[str] = []
    read(fake.dataset(tmp_path, "oranbench", rows(answers)), told)
    assert [line for line in told if line.startswith("warning: ") and "count from 1" in line]


@pytest.mark.parametrize("answers", [[0, 1, 2, 3, 4], [1, 2, 3, 9], [1, 2, 3, 1]])
def test_answers_that_need_not_count_from_one(answers: list[int], tmp_path: Path) -> None:
    told: list[str] = []
    read(fake.dataset(tmp_path, "oranbench", rows(answers)), told)
    assert not [line for line in told if "count from 1" in line]


def test_every_command_tells_of_rows_that_are_left_out(tmp_path: Path, capsys: Any) -> None:
    """Training, evaluation, calibration and sweeps read through the same words."""
    folder = fake.dataset(tmp_path, "oranbench", rows([1, 2, 3, 4] * 8))
    # Warnings of the data stay where log lines go.
    first = f"the first: {FILE}, line 4: answer 4 is outside"
    argv = ["--dataset", str(folder), "--category", "oranbench", "--quiet"]
    job.jobs(train.parser().parse_args(argv))
    said = capsys.readouterr().err
    assert first in said
    assert "count from 1" in said
    evaluated = cli.parser("x", "x", "dataset", "category", "seed").parse_args(argv)
    source.sources(evaluated)
    assert first in capsys.readouterr().err
    told: list[str] = []
    calibration.prompts(str(folder), "oranbench", 42, None, told.append)
    assert any(first in line for line in told)


# What an answer may be.


MEANT = (
    (2, 2),
    (2.0, 2),
    ("C", 2),
    (" C ", 2),
    ("blue", 2),
    ("blue ", 2),
)


@pytest.mark.parametrize(("answer", "index"), MEANT)
def test_an_answer_is_an_index_a_letter_or_a_text(answer: Any, index: int, tmp_path: Path) -> None:
    (question,) = read(fake.dataset(tmp_path, "oranbench", rows([answer]))).questions
    assert question.answer == index


NOT_MEANT: tuple[tuple[Any, tuple[str, ...], str], ...] = (
    ("2", ("red", "green", "blue"), "an index is a number, and counts from 0"),
    ("D", ("red", "green", "blue"), "neither the text nor the letter"),
    ("c", ("red", "green", "blue"), "neither the text nor the letter"),
    ("A", ("B", "A"), "the letter of one choice and the text of another"),
    (1.5, ("red", "green"), "column 'answer' holds float"),
    (float("nan"), ("red", "green"), "column 'answer' is missing"),
)


@pytest.mark.parametrize(("answer", "choices", "reason"), NOT_MEANT)
def test_an_answer_of_two_meanings_or_none(
    answer: Any, choices: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    folder = fake.dataset(tmp_path, "oranbench", [*rows([0]), *rows([answer], choices)])
    (rejected,) = read(folder).rejected
    assert reason in rejected.reason


def test_a_letter_that_is_its_own_choice_has_one_meaning(tmp_path: Path) -> None:
    folder = fake.dataset(tmp_path, "oranbench", rows(["A", "3"], ["A", "3", "B"]))
    assert [question.answer for question in read(folder).questions] == [0, 1]


# Encodings.


def raw(folder: Path, content: bytes, name: str = "test.jsonl") -> Path:
    (folder / "oranbench").mkdir(parents=True, exist_ok=True)
    (folder / "oranbench" / name).write_bytes(content)
    return folder


LINES = [json.dumps(row) for row in rows([0, 1, 2])]


def test_byte_order_marks_and_windows_line_ends_lose_no_question(tmp_path: Path) -> None:
    marked = "\r\n".join(f"\ufeff{line}" for line in LINES)
    made = read(raw(tmp_path, marked.encode()))
    assert [question.answer for question in made.questions] == [0, 1, 2]
    assert made.rejected == ()


def test_empty_lines_are_no_rows_and_keep_their_number(tmp_path: Path) -> None:
    made = read(raw(tmp_path, f"\n{LINES[0]}\n \r\n{LINES[1]}\n\n".encode()))
    assert [question.id for question in made.questions] == ["oranbench/1", "oranbench/3"]
    assert made.rejected == ()
    assert not facets.read(str(tmp_path), ORAN)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("\n".join(LINES).encode("utf-16"), "this is UTF-16, not UTF-8; save it as UTF-8"),
        ("\n".join(LINES).encode("utf-16-be"), "this is UTF-16, not UTF-8"),
        (b"\x1f\x8b\x08\x00packed", "this is gzip, not UTF-8; unpack it first"),
    ],
)
def test_what_is_no_utf_8_at_all_is_called_by_its_name(
    content: bytes, said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        read(raw(tmp_path, content))
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "oranbench" / "test.jsonl"))


def test_a_list_over_several_lines_is_told(tmp_path: Path) -> None:
    content = "[\n" + ",\n".join(LINES) + "\n]"
    (first, *_) = read(raw(tmp_path, content.encode())).rejected
    assert first.place == "oranbench/test.jsonl, line 1"
    assert first.reason.startswith("not JSON Lines: a value over several lines begins here")


def test_files_of_another_form_are_named(tmp_path: Path) -> None:
    raw(tmp_path, b"x", "test.jsonl.gz")
    with pytest.raises(InputError, match=r"test\*\.jsonl; there is test\.jsonl\.gz: unpack"):
        read(tmp_path)


# The same rows twice.


def both(folder: Path, first: Sequence[Any], second: Sequence[Any]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw(folder, "\n".join(map(json.dumps, second)).encode())
    pq.write_table(pa.Table.from_pylist(list(first)), folder / "oranbench" / "test-0.parquet")
    return folder


def test_the_rows_of_one_file_in_another_are_refused(tmp_path: Path) -> None:
    made = rows([0, 1, 2, 3])
    for at, (first, second) in enumerate([(made, made), (made[:2], made), (made, made[1:])]):
        with pytest.raises(InputError) as caught:
            read(both(tmp_path / str(at), first, second))
        assert str(caught.value) == (
            "oranbench/test-0.parquet and oranbench/test.jsonl hold the same questions; "
            "leave one of them in the folder"
        )


def test_files_that_share_some_rows_are_told(tmp_path: Path) -> None:
    made, told = rows([0, 1, 2, 3]), list[str]()
    assert len(read(both(tmp_path, made[:3], made[2:]), told).questions) == 5
    assert told == [
        "warning: 1 questions of oranbench/test.jsonl stand in oranbench/test-0.parquet too"
    ]


def test_files_of_different_rows_are_one_data_set(tmp_path: Path) -> None:
    made, told = rows([0, 1, 2, 3]), list[str]()
    assert len(read(both(tmp_path, made[:2], made[2:]), told).questions) == 4
    assert told == []
