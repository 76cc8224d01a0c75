"""Results in whose place others stand: kept by what they are of, and found again.

`results/<backbone>/<variant>/earlier/<name>.<run>.jsonl`, the summary beside it. A second bundle,
or another setting, takes the place of a result and erases nothing; who evaluates the first one
again finds it finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tel_edge.eval.scoring.records import (
    Record,
    Summary,
    Variant,
    measures,
    read_records,
    read_summary,
    whole,
    write_records,
    write_summary,
)
from tel_edge.eval.scoring.scored import ScoringTask, Settings
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import digest
from tel_edge.runtime.files.atomic import make_folder
from tel_edge.runtime.questions.votes import draws

FOLDER = "earlier"
# Settings that change votes alone, where the answer is the likeliest letter.
VOTES = ("k", "temperature", "seed", "limit")
# What is added to `made_with` once an endpoint has answered.
ADDED = {"endpoint"}


def place(out: Path, run: str) -> Path:
    """Return where the records of a run are kept while another's are at `out`."""
    return out.parent / FOLDER / f"{out.stem}.{run}.jsonl"


def summaries(folder: Path) -> Iterator[tuple[Path, Summary]]:
    """Yield (records, summary) of what is kept of one variant."""
    for path in sorted((folder / FOLDER).glob("*.json")):
        yield path.with_suffix(".jsonl"), read_summary(path)


def recall(out: Path, run: str) -> None:
    """Put the results of `run` to `out` if they are kept, and those that are there away."""
    there = next((record.run for record in read_records(out)), run)
    if there != run:
        # The summary first: records without one are finished again, it would be of none.
        _move(out, place(out, there), (".json", ".jsonl"))
    _move(place(out, run), out, (".jsonl", ".json"))


def _move(old: Path, new: Path, suffixes: tuple[str, ...]) -> None:
    for suffix in suffixes:
        if old.with_suffix(suffix).exists():
            make_folder(new.parent)
            old.with_suffix(suffix).replace(new.with_suffix(suffix))


def redrawn(task: ScoringTask, variant: Variant, made_with: Mapping[str, Any]) -> Summary | None:
    """Make the results of `task` of kept ones that differ in the settings of the votes alone.

    The probabilities are the same, so votes are drawn of them (of six decimals, as records have
    them) and nothing is asked. Returns None where no kept result has every question.
    """
    if task.settings.protocol != "letters":
        return None
    wanted = {question.id for question in task.questions}
    for path in sorted(place(task.out, "").parent.glob(f"{task.out.stem}.*.json")):
        try:
            summary = read_summary(path)
            found = list(read_records(path.with_suffix(".jsonl"), summary.run))
        except InputError:
            continue
        own = [record for record in found if record.id in wanted and record.logprobs]
        if not _same(summary.made_with, made_with) or not whole(summary, [r.id for r in found]):
            continue
        if len(own) + summary.too_long == len(task.questions) == summary.questions:
            return _redrawn(task, variant, made_with, summary, own)
    return None


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two `made_with` differ in what votes are drawn with at most."""

    def without(of: Mapping[str, Any]) -> str:
        settings = {name: at for name, at in dict(of["settings"]).items() if name not in VOTES}
        return digest.of_value({**of, "settings": settings, **dict.fromkeys(ADDED)})

    return without(one) == without(other)


def _redrawn(
    task: ScoringTask,
    variant: Variant,
    made_with: Mapping[str, Any],
    summary: Summary,
    found: list[Record],
) -> Summary:
    how: Settings = task.settings
    made = [
        replace(
            record,
            run=task.run,
            draws=draws(record.logprobs, how.k, how.temperature, how.seed, record.id),
        )
        for record in found
    ]
    write_records(task.out, made)
    added = {name: summary.made_with[name] for name in ADDED if name in summary.made_with}
    fresh = replace(
        summary,
        run=task.run,
        variant=variant,
        k=how.k,
        made_with={**made_with, **added},
        **measures(made, summary.too_long, how.k, how.temperature),
    )
    write_summary(task.out, fresh)
    return fresh
