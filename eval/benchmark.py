"""Reading a benchmark: the embedded one, the hub's, or a folder in the hub's layout."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tel_edge.eval import ot_mini
from tel_edge.runtime import digest
from tel_edge.runtime.categories import Category
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.extras import need
from tel_edge.runtime.prompt import LETTERS
from tel_edge.runtime.question import Question, from_row

HUB = "GSMA/ot-full"
# File, row from 0, and the columns; None where a line holds no JSON object.
Row = tuple[str, int, Mapping[str, Any] | None]


@dataclass(frozen=True)
class Rejected:
    """A row that is no question: where it is (`file`, `row` from 0) and why."""

    file: str
    row: int
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


def read(dataset: str, category: Category, strict: bool = False) -> Benchmark:
    """Read one category of `dataset`: `ot-mini`, `ot-full` or a folder.

    Malformed rows are left out and recorded; with `strict` the first one raises `InputError`, as
    does a data set that is not there or has no good row.
    """
    questions, rejected = [], []
    for file, at, row in rows(dataset, category):
        try:
            if row is None:
                raise InputError("not a JSON object")
            question = from_row(row, category, f"{category.name}/{at}", len(LETTERS))
            if question.answer is None:
                raise InputError("column 'answer' is missing")
            questions.append(question)
        except InputError as error:
            if strict:
                raise InputError(
                    f"{file}, row {at}: {error}\nmend the row, or leave out --strict to skip it"
                ) from None
            rejected.append(Rejected(file, at, str(error)))
    if not questions:
        raise InputError(
            f"{dataset}: no usable question for {category.name}"
            + (f"; first reason: {rejected[0].reason}" if rejected else "")
        )
    # A folder goes by its own name: where it lies on this machine is nobody's business.
    called = Path(dataset).resolve().name
    return Benchmark(called, category.name, tuple(questions), tuple(rejected))


def rows(dataset: str, category: Category) -> Iterator[Row]:
    """Yield every row of one category as it stands; its place is the number in a question's id.

    Raises `InputError` for a data set that is not there.
    """
    if dataset == "ot-mini":
        for at, row in enumerate(ot_mini.rows(category.name)):
            yield f"ot-mini/{category.name}", at, row
    elif dataset == "ot-full":
        yield from _hub_rows(category)
    else:
        yield from _folder_rows(Path(dataset), category)


def _hub_rows(category: Category) -> Iterator[Row]:
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
        yield f"{HUB}/{category.name}", at, row


def _folder_rows(folder: Path, category: Category) -> Iterator[Row]:
    if not folder.is_dir():
        raise InputError(f"no data set {str(folder)!r}: neither ot-mini, ot-full nor a folder")
    part = folder / category.name
    files = sorted([*part.glob("test-*.parquet"), *part.glob("test*.jsonl")])
    if not files:
        raise InputError(f"{part}: no test-*.parquet and no test*.jsonl")
    at = 0
    for file in files:
        for row in _file_rows(file):
            yield f"{category.name}/{file.name}", at, row
            at += 1


def _file_rows(file: Path) -> Iterator[Mapping[str, Any] | None]:
    if file.suffix == ".jsonl":
        # Bytes that are no UTF-8 get through here, so that they are one row's fault.
        with file.open(encoding="utf-8", errors="surrogateescape") as stream:
            for line in stream:
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                yield row if isinstance(row, dict) else None
        return
    parquet = need("pyarrow.parquet", "report")
    try:
        table = parquet.ParquetFile(file)
    except Exception as error:
        raise InputError(f"{file}: not a readable parquet file ({error})") from error
    for batch in table.iter_batches():
        yield from batch.to_pylist()
