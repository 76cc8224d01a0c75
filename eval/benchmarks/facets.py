"""What a data set says of its questions beside what is asked: how hard they are, what about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tel_edge.eval.benchmarks import benchmark
from tel_edge.runtime.questions.categories import Category


@dataclass(frozen=True)
class Facets:
    """The difficulty and the subject of a question in the data set's words; None: it says none."""

    difficulty: str | None
    subject: str | None


def read(dataset: str, category: Category) -> Mapping[str, Facets]:
    """Return the facets of one category of `dataset` by question id, "<category>/<row>".

    The columns are those of the data set card of https://huggingface.co/datasets/GSMA/ot-full:
    `difficulty` (oranbench, sixg_bench), the flag `difficult` (teletables), `subject` (teleqna) and
    `task_name` (sixg_bench). A row that has none of them is left out, and so is a value of another
    type. Raises `InputError` as `benchmark.read` does for a data set that is not there.
    """
    made = {}
    for row in benchmark.rows(dataset, category):
        columns = row.columns or {}
        found = Facets(_difficulty(columns), _text(columns, "subject", "task_name"))
        if found != Facets(None, None):
            made[f"{category.name}/{row.at}"] = found
    return made


def _difficulty(row: Mapping[str, Any]) -> str | None:
    if isinstance(flag := row.get("difficult"), bool):
        return "difficult" if flag else "ordinary"
    return _text(row, "difficulty")


def _text(row: Mapping[str, Any], *columns: str) -> str | None:
    """Return the first of the columns that holds words, without the space around them."""
    values = (row.get(column) for column in columns)
    return next((v.strip() for v in values if isinstance(v, str) and v.strip()), None)
