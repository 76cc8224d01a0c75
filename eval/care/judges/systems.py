"""Who is judged: runs of a sweep or files of answers by name, and the dialogues that all have."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tel_edge.eval import documents
from tel_edge.eval.care.answers import tables
from tel_edge.eval.care.answers.cases import Case, Cases
from tel_edge.eval.care.answers.records import SCHEMA_VERSION, Record, read
from tel_edge.eval.care.judges.studies import Answer
from tel_edge.eval.care.judges.verdicts import System
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import digest, jsonl


@dataclass(frozen=True)
class Judged:
    """A system with its answers by id of the dialogue; `backbone` is "unknown" where none is said.

    `records` lacks those whose prompt was too long.
    """

    system: System
    backbone: str
    records: Mapping[str, Record]

    def cut(self, prompts: Sequence[str]) -> int:
        """Return how many of its answers to these dialogues were cut at the limit."""
        return sum(not self.records[id_].stopped for id_ in prompts)


def of_files(given: Sequence[str]) -> list[Judged]:
    """Return the systems of `NAME=CARE.JSONL`. Raises `InputError`."""
    made: dict[str, Judged] = {}
    for text in given:
        name, found, place = text.partition("=")
        if not (name and found and place):
            raise InputError(f"--answers {text}: NAME=FILE is needed, such as best=care.jsonl")
        if name in made:
            raise InputError(f"--answers {text}: {name} was named before")
        path = Path(place)
        if not path.is_file():
            raise InputError(f"--answers {text}: no such file; tel-eval --category care makes one")
        summary = _summary(path.with_suffix(".json")) or {}
        made[name] = _judged(name, path, str(summary.get("backbone", "unknown")), {})
    return [*made.values()]


def of_sweep(
    home: Path, part: str, variant: str | None, dataset: Path, say: Callable[[str], None]
) -> list[Judged]:
    """Return the runs of a sweep with their answers to a part, all by the same variant.

    Without `variant` it is the largest with the adapter that every run has. Failed runs are left
    out. Raises `InputError` where answers are missing, with the command that makes them.
    """
    rows = {path.stem: _row(path) for path in sorted(home.glob("rows/*.json"))}
    if not rows:
        raise InputError(f"--sweep {home}: no rows/*.json, so no sweep is here; see tel-sweep")
    if failed := [run for run, row in rows.items() if row.get("error")]:
        say(f"warning: runs without an adapter are left out: {', '.join(failed)}")
    rows = {run: row for run, row in rows.items() if run not in failed}
    there = {run: _variants(home / "runs" / run, part) for run in rows}
    wanted = dict.fromkeys(name for found in there.values() for name in found)
    common = [
        name
        for name in ([variant] if variant else wanted)
        if all(name in found for found in there.values())
    ]
    if not rows or not common:
        _missing(home, part, variant, dataset, rows, there)
    sizes = {name: max(found[name][0] for found in there.values()) for name in common}
    name = max(common, key=lambda one: (sizes[one], one))
    say(f"answers of {name} in each of {len(rows)} runs")
    return [_judged(run, *there[run][name][1:], row) for run, row in rows.items()]


def _row(path: Path) -> dict[str, Any]:
    try:
        row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        of, failed = row["category"], row.get("error")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: no row of a sweep ({error}); run tel-sweep again") from None
    if of != "care" and not failed:
        raise InputError(f"{path}: a run on {of}; a sweep of care is needed")
    return row


def _summary(path: Path) -> dict[str, Any] | None:
    try:
        made: dict[str, Any] = documents.read(path, SCHEMA_VERSION)
        return made
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _variants(home: Path, part: str) -> dict[str, tuple[int, Path, str]]:
    """Return (bytes, file of answers, backbone) of each variant with an adapter in a workspace."""
    found = {}
    for path in sorted(home.glob(f"results/*/*/{tables.name(part)}.json")):
        made, answers = _summary(path), path.with_suffix(".jsonl")
        if made and made["variant"]["adapter"] and answers.is_file():
            size = int(made["variant"]["backbone_bytes"])
            found[str(made["variant"]["name"])] = (size, answers, str(made["backbone"]))
    return found


def _missing(
    home: Path,
    part: str,
    variant: str | None,
    dataset: Path,
    rows: Mapping[str, Mapping[str, Any]],
    there: Mapping[str, Mapping[str, Any]],
) -> None:
    lacking = [run for run, of in there.items() if variant not in of and (variant or not of)]
    if not rows:
        raise InputError(f"--sweep {home}: no run of it ended well; run tel-sweep again")
    if not lacking:
        raise InputError(
            f"--sweep {home}: no variant that all runs have answers of; there are: "
            f"{' '.join(sorted({name for of in there.values() for name in of}))}"
        )
    shown = ", ".join(lacking[:4]) + (f" and {len(lacking) - 4} more" if len(lacking) > 4 else "")
    of = f" by {variant}" if variant else ""
    backbone = shlex.quote(str(rows[lacking[0]]["options"]["backbone"]))
    where = '"$run"' if len(lacking) > 1 else shlex.quote(str(home / "runs" / lacking[0]))
    both = f"--workspace {where} --backbone {backbone}"
    typed = (
        f"tel-export {both} --adapter care && tel-eval {both} --category care "
        f"--dataset {shlex.quote(str(dataset))} --part {part} --no-bare"
    )
    if len(lacking) > 1:
        typed = f"for run in {shlex.quote(str(home / 'runs'))}/*; do {typed}; done"
    raise InputError(f"no answers{of} to the {part} part of: {shown}; type\n{typed}")


def _judged(name: str, path: Path, backbone: str, row: Mapping[str, Any]) -> Judged:
    records = [*read(path)]
    runs = {record.run for record in records}
    if len(runs) != 1:
        raise InputError(f"{path}: answers of {len(runs)} runs, of one are needed; see tel-eval")
    answered = {one.id: one for one in records if one.texts and not one.fault}
    return Judged(System(name, str(path), runs.pop(), row), backbone, answered)


def backbone(judged: Sequence[Judged]) -> str:
    """Return the backbone of all systems, or all of theirs."""
    return ", ".join(dict.fromkeys(one.backbone for one in judged))


def asked(
    judged: Sequence[Judged], cases: Cases, count: int, seed: int, say: Callable[[str], None]
) -> list[Case]:
    """Return `count` dialogues that all systems answered, of as many scenarios as there are.

    Raises `InputError` for answers to other dialogues than the data set has.
    """
    if len(judged) < 2:
        raise InputError(f"{len(judged)} system; two at least are compared")
    known = {case.id: case for case in cases.cases}
    common = {*known}
    for one in judged:
        there = known.keys() & one.records.keys()
        if other := [id_ for id_ in there if one.records[id_].asked != known[id_].asked]:
            raise InputError(
                f"{one.system.answers}: {other[0]} is another dialogue than that of "
                f"{cases.dataset}; pass the data set that was asked, or run tel-eval again"
            )
        common &= there
    if not common:
        fewest = min(judged, key=lambda one: len(known.keys() & one.records.keys()))
        raise InputError(
            f"no dialogue of {cases.dataset} ({cases.part}) has answers of all {len(judged)} "
            f"systems; {fewest.system.name} has {len(known.keys() & fewest.records.keys())}"
        )
    count = min(count, len(known))
    if len(common) < count:
        say(f"warning: {len(common)} dialogues have answers of all systems, {count} were wanted")
    return spread([case for id_, case in known.items() if id_ in common], count, seed)


def spread(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    """Return `count` dialogues, one of every scenario before any has two; the seed draws which."""
    groups: dict[str, list[tuple[str, Case]]] = {}
    for case in cases:
        drawn = digest.of_value([seed, "prompt", case.id])
        groups.setdefault(case.scenario, []).append((drawn, case))
    ranked = [
        (place, digest.of_value([seed, "scenario", scenario]), case.id, case)
        for scenario, group in groups.items()
        for place, (_, case) in enumerate(sorted(group, key=lambda one: one[0]))
    ]
    return [case for *_, case in sorted(ranked, key=lambda one: one[:3])[:count]]


def answers(judged: Sequence[Judged], cases: Sequence[Case]) -> list[Answer]:
    """Return what every system answered to these dialogues."""
    return [
        Answer(one.system.name, case.id, one.records[case.id].texts, one.records[case.id].ended)
        for one in judged
        for case in cases
    ]


def placed(judged: Sequence[Judged], workspace: Path, folder: Path) -> tuple[System, ...]:
    """Return the systems as a study in `folder` names them: within a workspace by relative paths.

    `folder / system.answers` is the file in both cases.
    """

    def place(text: str) -> str:
        path, root = Path(text).resolve(), workspace.resolve()
        inside = path.is_relative_to(root)
        return os.path.relpath(path, folder.resolve()) if inside else str(path)

    return tuple(replace(one.system, answers=place(one.system.answers)) for one in judged)


def written_by(dataset: Path, part: str) -> tuple[str, ...]:
    """Return who wrote the references of a part: `template`, or names of models."""

    def of(row: Mapping[str, Any]) -> str:
        source = row.get("source")
        found = source if isinstance(source, dict) else {}
        kind = str(found.get("kind", "unknown"))
        return kind if kind == "template" else str(found.get("model", kind))

    return tuple(dict.fromkeys(name for _, name in jsonl.read(dataset / f"{part}.jsonl", of)))
