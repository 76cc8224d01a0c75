"""One adapter a category, one for all, or merged ones: their scores on the test parts beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tel_edge.eval import documents
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files.atomic import write_text
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.workspace import Workspace
from tel_edge.train.job import JOINT, RECORD, WEIGHTS

SCHEMA_VERSION = 1
OWN = "own"


@dataclass(frozen=True)
class Column:
    """Adapters of one kind: the scores by category, and the bytes of all files together.

    `splits` are the digests of the splits that the scores belong to, `notes` what has to be said
    of them.
    """

    name: str
    adapters: int
    bytes: int
    scores: Mapping[str, Mapping[str, Any]]
    splits: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def value(self, name: str) -> float | None:
        """Return Pass@1 of a category, None where it was not scored."""
        return float(self.scores[name]["pass1"]["value"]) if name in self.scores else None


def compare(workspace: Workspace, backbone: str) -> tuple[dict[str, Any], str]:
    """Write reports/adapters.md and .json; return the document and the table.

    Raises `InputError` where no adapter of the backbone has scores of its test part.
    """
    found = [column for column in _columns(workspace.adapter(backbone, "x").parent) if column]
    columns, notes = _comparable(found)
    rows = [name for name in CATEGORIES if any(name in column.scores for column in columns)]
    if not rows:
        raise InputError(
            f"{workspace.adapter(backbone, 'x').parent}: no adapter has scores of its test part; "
            f"run: tel-train --score, with and without --joint, and tel-merge --score"
        )
    # A mean over other categories is another measure.
    common = [name for name in rows if all(name in column.scores for column in columns)]
    document = {
        "schema_version": SCHEMA_VERSION,
        "backbone": backbone,
        "columns": [
            {
                "name": column.name,
                "adapters": column.adapters,
                "bytes": column.bytes,
                "mean_pass1": _mean(column, common),
                "scores": dict(column.scores),
            }
            for column in columns
        ],
        "categories": rows,
        "mean_over": common,
        "notes": notes,
    }
    text = "\n".join(_table(backbone, columns, rows, common, notes)) + "\n"
    documents.write(workspace.reports / "adapters.json", document)
    write_text(workspace.reports / "adapters.md", text)
    return document, text


def _columns(folder: Path) -> Iterator[Column | None]:
    own = [read for name in CATEGORIES if (read := _read(folder / name, name))]
    if own:
        yield Column(
            OWN,
            len(own),
            sum(column.bytes for column in own),
            {name: row for column in own for name, row in column.scores.items()},
            {name: value for column in own for name, value in column.splits.items()},
        )
    yield _read(folder / JOINT, JOINT)
    for path in sorted(folder.glob("*")):
        if not path.name.startswith("."):
            yield _read(path, path.name, merged=True)


def _read(folder: Path, name: str, merged: bool = False) -> Column | None:
    """Return the column of one adapter, None without scores; `merged` for merged ones only."""
    path = folder / RECORD
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if "test" not in record or (merged and "merged" not in record):
            return None
        scores = {row["category"]: row for row in record["test"]}
        for row in scores.values():
            _ = [float(row["pass1"][field]) for field in ("value", "low", "high", "of")]
        splits = record.get("splits") or {record["category"]: record["split"]}
        notes = tuple(_contamination(name, record))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not the record of a training ({error!r})") from None
    return Column(name, 1, (folder / WEIGHTS).stat().st_size, scores, splits, notes)


def _contamination(name: str, record: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is to be said of texts that are one category's test and another's training."""
    if len(record.get("splits") or ()) < 2:
        return
    merged = record.get("merged")
    counts = merged.get("contaminated") if merged else {}
    if counts is None or not (merged or "shared" in (record.get("rows") or {})):
        yield (
            f"{name} is of before texts that categories share were looked for: if there are any, "
            "its scores are too good"
        )
        return
    for of, count in counts.items():
        yield (
            f"{name}: {count} questions of {of} are left out, since their text stands in the train "
            "part of another category"
        )


def _comparable(columns: list[Column]) -> tuple[list[Column], list[str]]:
    """Return the columns without scores of other questions than the first's, and what that was."""
    splits: dict[str, str] = {}
    made, notes = [], []
    for column in columns:
        kept = {}
        for name, row in column.scores.items():
            if splits.setdefault(name, column.splits[name]) == column.splits[name]:
                kept[name] = row
            else:
                notes.append(f"{column.name} was scored on other questions of {name}: left out")
        made.append(replace(column, scores=kept))
        notes += column.notes
    return made, notes


def _mean(column: Column, names: list[str]) -> float | None:
    values = [value for name in names if (value := column.value(name)) is not None]
    return sum(values) / len(values) if values else None


def _table(
    backbone: str, columns: list[Column], rows: list[str], common: list[str], notes: list[str]
) -> Iterator[str]:
    yield f"# Adapters of {backbone}: one a category, one for all, merged ones"
    yield ""
    yield (
        "Pass@1 of the test parts with 95 % Wilson intervals, scored by the trainer with the "
        "unquantized backbone."
    )
    yield ""
    yield _line("category", "questions", *(column.name for column in columns))
    yield _line("---", *("---:" for _ in range(len(columns) + 1)))
    for name in rows:
        of = next(column.scores[name]["pass1"]["of"] for column in columns if name in column.scores)
        yield _line(name, f"{of:,}", *(_cell(column, name) for column in columns))
    means = [_mean(column, common) for column in columns]
    yield _line(
        f"mean of {len(common)}", "", *("-" if mean is None else f"{mean:.3f}" for mean in means)
    )
    yield _line(
        "adapters, MB", "", *(f"{column.adapters}, {column.bytes / 1e6:.2f}" for column in columns)
    )
    if notes:
        yield ""
        yield from (f"- {note}" for note in notes)


def _cell(column: Column, name: str) -> str:
    if name not in column.scores:
        return "-"
    share = column.scores[name]["pass1"]
    return f"{share['value']:.3f} ({share['low']:.3f}-{share['high']:.3f})"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
