"""Reading a benchmark: the embedded one, the hub's, or a folder in the hub's layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from tel_edge.eval.benchmarks import ot_mini
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.extras import need
from tel_edge.runtime.files import digest, jsonl
from tel_edge.runtime.questions.categories import Category
from tel_edge.runtime.questions.prompt import LETTERS
from tel_edge.runtime.questions.question import Question, from_row

HUB = "GSMA/ot-full"
# The logarithm of a chance that no data set has by chance.
UNLIKELY = math.log(1e-9)
Say = Callable[[str], None]


@dataclass(frozen=True)
class BenchmarkRow:
    """A row as it stands: its `file`, its `place` in it, and its number in the whole category.

    `columns` is None where a line holds no JSON object, for the `reason` given, or nothing at all.
    """

    file: str
    place: str
    at: int
    columns: Mapping[str, Any] | None
    reason: str = ""


@dataclass(frozen=True)
class Rejected:
    """A row that is no question: where it is, as "file, line 3" or "file, row 2", and why.

    Lines count from 1 as in editors, rows of parquet files and of the hub from 0 as in pandas.
    """

    place: str
    reason: str


@dataclass(frozen=True)
class Benchmark:
    """The questions of one category, in the order of the rows, and the rows left out."""

    dataset: str
    category: str
    questions: tuple[Question, ...]
    rejected: tuple[Rejected, ...]

    @property
    def digest(self) -> str:
        """Return a SHA-256 over every question: id, text, choices and answer."""
        return digest.of_value([(q.id, q.text, q.choices, q.answer) for q in self.questions])


def read(
    dataset: str, category: Category, strict: bool = False, say: Say = lambda _: None
) -> Benchmark:
    """Read one category of `dataset`: `ot-mini`, `ot-full` or a folder.

    Malformed rows are left out and recorded; with `strict` the first one raises `InputError`, as
    does a data set that is not there, has no good row, or has all of one file in another again.
    `say` is told, a line each, how many rows were left out and why the first, and what looks wrong.
    """
    questions, rejected, files = [], [], []
    beyond = 0
    for row in rows(dataset, category):
        if row.columns is None and not row.reason:
            continue
        try:
            if row.columns is None:
                raise InputError(row.reason)
            question = from_row(row.columns, category, f"{category.name}/{row.at}", len(LETTERS))
            if question.answer is None:
                raise InputError("column 'answer' is missing")
            questions.append(question)
            files.append(row.file)
        except InputError as error:
            if strict:
                raise InputError(
                    f"{row.file}, {row.place}: {error}\n"
                    "mend the row, or leave out --strict to skip it"
                ) from None
            rejected.append(Rejected(f"{row.file}, {row.place}", str(error)))
            beyond += _just_beyond(row.columns or {}, category)
    if not questions:
        raise InputError(
            f"{dataset}: no usable question for {category.name}"
            + (f"; first reason: {rejected[0].reason}" if rejected else "")
        )
    if rejected:
        say(
            f"warning: {category.name}: {len(rejected)} of {len(rejected) + len(questions)} rows "
            f"are no questions and were left out; the first: {rejected[0].place}: "
            f"{rejected[0].reason}"
        )
    if shifted := _shifted(questions, beyond, category):
        say(
            f"warning: {category.name}: {shifted}: they seem to count from 1, and all others are "
            "one letter off; subtract 1 from each"
        )
    _check_files(questions, files, say)
    # A folder goes by its own name: where it lies on this machine is nobody's business.
    called = Path(dataset).resolve().name
    return Benchmark(called, category.name, tuple(questions), tuple(rejected))


def _shifted(questions: Sequence[Question], beyond: int, category: Category) -> str | None:
    """Return what looks as if answers counted from 1: the last choice's is beyond, none is 0."""
    first = sum(question.answer == 0 for question in questions)
    if beyond > first:
        return f"{first or 'no'} answers are 0 and {beyond} equal the number of choices"
    # No last choice is right, which puts no row beyond: how likely is it that no first one is?
    chance = sum(math.log1p(-1 / len(question.choices)) for question in questions)
    if not category.labels and not first and chance < UNLIKELY:
        return f"no answer of {len(questions)} is 0"
    return None


def _just_beyond(columns: Mapping[str, Any], category: Category) -> bool:
    """Return whether the row's answer is the number of its choices, as the last one's from 1 is."""
    answer, choices = columns.get("answer"), category.labels or columns.get("choices")
    return isinstance(choices, (list, tuple)) and answer == len(choices)


def _check_files(questions: Sequence[Question], files: Sequence[str], say: Say) -> None:
    """Raise `InputError` if all questions of one file stand in another; tell where some do."""
    of: dict[str, set[tuple[Any, ...]]] = {}
    for question, file in zip(questions, files, strict=True):
        of.setdefault(file, set()).add((question.text, question.choices, question.answer))
    for one, other in combinations(of, 2):
        shared = len(of[one] & of[other])
        if shared == min(len(of[one]), len(of[other])):
            raise InputError(
                f"{one} and {other} hold the same questions; leave one of them in the folder"
            )
        if shared:
            say(f"warning: {shared} questions of {other} stand in {one} too")


def rows(dataset: str, category: Category) -> Iterator[BenchmarkRow]:
    """Yield every row of one category as it stands; `at` is the number in a question's id.

    Empty lines, which are no rows, have a number too. Raises `InputError` for a data set that is
    not there, and for a file that is no UTF-8.
    """
    if dataset == "ot-mini":
        for at, row in enumerate(ot_mini.rows(category.name)):
            yield BenchmarkRow(f"ot-mini/{category.name}", f"row {at}", at, row)
    elif dataset == "ot-full":
        yield from _hub_rows(category)
    else:
        yield from _folder_rows(Path(dataset), category)


def _hub_rows(category: Category) -> Iterator[BenchmarkRow]:
    datasets = need("datasets", "train")
    try:
        loaded = datasets.load_dataset(HUB, category.name, split="test")
    except Exception as error:
        # Offline, not logged in, no such config: the client's first line says which.
        reason = str(error).strip().split("\n")[0][:200]
        raise InputError(
            f"{HUB} cannot be had from the hub: {reason}\n"
            "download it elsewhere and pass the folder: --dataset DIR"
        ) from error
    for at, row in enumerate(loaded):
        yield BenchmarkRow(f"{HUB}/{category.name}", f"row {at}", at, row)


def _folder_rows(folder: Path, category: Category) -> Iterator[BenchmarkRow]:
    if not folder.is_dir():
        raise InputError(f"no data set {str(folder)!r}: neither ot-mini, ot-full nor a folder")
    part = folder / category.name
    files = sorted([*part.glob("test-*.parquet"), *part.glob("test*.jsonl")])
    if not files:
        there = " ".join(sorted(file.name for file in part.glob("*"))[:5])
        raise InputError(
            f"{part}: no test-*.parquet and no test*.jsonl"
            + (f"; there is {there}: unpack, convert or rename what is to be read" if there else "")
        )
    at = 0
    for file in files:
        name = f"{category.name}/{file.name}"
        for row in _lines(file, name, at) if file.suffix == ".jsonl" else _table(file, name, at):
            yield row
            at = row.at + 1


def _lines(file: Path, name: str, start: int) -> Iterator[BenchmarkRow]:
    # Bytes that are no UTF-8 get through here, so that they are one row's fault.
    with file.open(encoding="utf-8", errors="surrogateescape") as stream:
        for at, line in enumerate(stream):
            place = f"line {at + 1}"
            try:
                if not at:
                    jsonl.check_start(line)
            except InputError as error:
                raise InputError(f"{file}: {error}") from None
            try:
                yield BenchmarkRow(name, place, start + at, jsonl.parsed(line))
            except InputError as error:
                yield BenchmarkRow(name, place, start + at, None, str(error))


def _table(file: Path, name: str, start: int) -> Iterator[BenchmarkRow]:
    parquet = need("pyarrow.parquet", "report")
    try:
        table = parquet.ParquetFile(file)
    except Exception as error:
        raise InputError(f"{file}: not a readable parquet file ({error})") from error
    at = 0
    for batch in table.iter_batches():
        for columns in batch.to_pylist():
            yield BenchmarkRow(name, f"row {at}", start + at, columns)
            at += 1
