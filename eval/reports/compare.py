"""`tel-report --compare A B`: two bundles, two workspaces or two variants on the same questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tel_edge.eval.findings import answers, checks, paired
from tel_edge.eval.findings.answers import Answers
from tel_edge.eval.findings.checks import Finding
from tel_edge.eval.findings.paired import Change
from tel_edge.eval.reports.report_document import change_document
from tel_edge.eval.reports.tables import Table, megabytes, number, percent, points, probability
from tel_edge.eval.scoring import earlier, records
from tel_edge.eval.scoring.records import Summary
from tel_edge.runtime.bundles import manifest
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.workspace import Workspace

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ComparedRun:
    """A scored variant on one category: its summary and the JSONL file of its records."""

    summary: Summary
    records: Path


@dataclass(frozen=True)
class ComparedPair:
    """One category of one variant, before and after; `change` is None without records."""

    category: str
    before: Summary
    after: Summary
    change: Change | None


@dataclass(frozen=True)
class Comparison:
    """`pairs` by variant, named as `before -> after` where the names differ.

    `pooled` is over all questions of a variant's pairs. `left_out` says in a sentence each what
    could not be compared, `checks` are what a sound pipeline does not do.
    """

    names: tuple[str, str]
    pairs: Mapping[str, tuple[ComparedPair, ...]]
    pooled: Mapping[str, Change]
    left_out: tuple[str, ...]
    checks: tuple[Finding, ...] = ()


def runs(named: str, workspace: Workspace, backbone: str) -> list[ComparedRun]:
    """Return the runs of the test part that `named` stands for.

    It is a bundle (its results in the workspace are found by the files' digests), another
    workspace, a folder of one variant's results, or the name of a variant of the workspace. Raises
    `InputError` where it is none of these or nothing was scored.
    """
    path = Path(named)
    if (path / manifest.NAME).is_file():
        made = manifest.read(path)
        digests = {file.sha256 for file in made.files}
        every = [*_of(workspace, made.backbone.name), *_earlier(workspace, made.backbone.name)]
        found = [run for run in every if _made_of(run.summary, digests)]
        remedy = f"score it: tel-eval --bundle {named}"
    elif (path / "results").is_dir():
        found, remedy = _of(Workspace(path), backbone), f"tel-eval --workspace {named}"
    elif path.is_dir():
        found = [
            ComparedRun(records.read_summary(file), file.with_suffix(".jsonl"))
            for file in sorted(path.glob("*.json"))
            if not records.spoken(file)
        ]
        remedy = "name a folder such as results/tel-nano/lora-F16"
    else:
        every = _of(workspace, backbone)
        found = [run for run in every if run.summary.variant.name == named]
        there = ", ".join(dict.fromkeys(run.summary.variant.name for run in every)) or "none"
        remedy = f"name a bundle, a workspace or a variant (there: {there})"
    found = [r for r in found if r.summary.part == "test" and not r.summary.rotated]
    if not found:
        raise InputError(f"{named}: no results to compare; {remedy}")
    return found


def _of(workspace: Workspace, backbone: str) -> list[ComparedRun]:
    return [
        ComparedRun(s, workspace.results(s.backbone, s.variant.name, s.category, s.part, s.rotated))
        for s in records.summaries(workspace, backbone)
    ]


def _earlier(workspace: Workspace, backbone: str) -> list[ComparedRun]:
    """Return the runs whose place others have taken."""
    folders = sorted((workspace.root / "results" / backbone).glob(f"*/{earlier.FOLDER}"))
    return [
        ComparedRun(summary, path)
        for folder in folders
        for path, summary in earlier.summaries(folder.parent)
    ]


def _made_of(summary: Summary, digests: set[str]) -> bool:
    made = summary.made_with
    return made.get("backbone") in digests and made.get("adapter") in {None, *digests}


def compare(
    names: tuple[str, str], before: Sequence[ComparedRun], after: Sequence[ComparedRun]
) -> Comparison:
    """Pair the runs by variant and category and compare their answers question by question.

    Where each side is one variant, or has one with an adapter and no name is on both, those are
    paired whatever their names are. Raises `InputError` if nothing can be paired.
    """
    ours, theirs = _by_variant(before), _by_variant(after)
    if len(ours) == len(theirs) == 1:
        together = [(next(iter(ours)), next(iter(theirs)))]
    else:
        together = [(name, name) for name in ours if name in theirs]
        if not together:
            # Of two bundles with one type each the bare backbone may have been scored too.
            one, other = _adapted(ours), _adapted(theirs)
            together = [(one, other)] if one and other else []
    pairs: dict[str, tuple[ComparedPair, ...]] = {}
    pooled = {}
    paired_up = {name for pair in together for name in pair}
    alone = [name for name in (*ours, *theirs) if together and name not in paired_up]
    left_out = [f"{name}: in one of the two only" for name in alone]
    checked: list[Finding] = []
    for first, second in together:
        title = first if first == second else f"{first} -> {second}"
        made, said, found = _pairs(title, ours[first], theirs[second])
        left_out += said
        checked += found
        if made:
            pairs[title] = made
            changes = [pair.change for pair in made]
            known = [change for change in changes if change]
            if len(known) == len(changes):
                pooled[title] = paired.pooled(known)
    if not pairs:
        reasons = "; ".join(left_out) or (
            f"variants {', '.join(ours)} against {', '.join(theirs)} have no name in common"
        )
        raise InputError(f"nothing of {names[0]} and {names[1]} can be compared: {reasons}")
    return Comparison(names, pairs, pooled, tuple(left_out), tuple(checked))


def _adapted(of: Mapping[str, Mapping[str, ComparedRun]]) -> str | None:
    """Return the only variant with an adapter, None where there are several or none."""
    own = [
        name
        for name, runs in of.items()
        if any(run.summary.variant.adapter for run in runs.values())
    ]
    return own[0] if len(own) == 1 else None


def _by_variant(of: Sequence[ComparedRun]) -> dict[str, dict[str, ComparedRun]]:
    found: dict[str, dict[str, ComparedRun]] = {}
    for run in of:
        # Runs whose place others have taken come last.
        found.setdefault(run.summary.variant.name, {}).setdefault(run.summary.category, run)
    return found


def _pairs(
    title: str, before: Mapping[str, ComparedRun], after: Mapping[str, ComparedRun]
) -> tuple[tuple[ComparedPair, ...], list[str], list[Finding]]:
    changes: dict[str, Change] = {}
    found: list[Finding] = []
    alone = [name for name in (*before, *after) if (name in before) != (name in after)]
    said = [f"{title}, {name}: scored in one of the two only" for name in alone]
    both = [name for name in before if name in after]
    compared: list[str] = []
    for name in both:
        one, other = before[name], after[name]
        if not records.same_questions(one.summary, other.summary):
            said.append(f"{title}, {name}: scored on other questions")
            continue
        if not records.same_training(one.summary, other.summary):
            said.append(
                f"{title}, {name}: adapters of two trainings, so more than the type differs"
            )
        if one.records.resolve() == other.records.resolve():
            said.append(f"{title}, {name}: both are {one.records}, so there is nothing to compare")
            continue
        compared.append(name)
        first, second = (answers.read(run.records, run.summary) for run in (one, other))
        if first.ids and second.ids:
            found += checks.between(name, _called(first, "before"), _called(second, "after"))
            changes[name] = paired.change(first, second)
        else:
            said.append(f"{title}, {name}: no records, only the summaries are shown")
    corrected = paired.corrected(changes)
    made = [
        ComparedPair(name, before[name].summary, after[name].summary, corrected.get(name))
        for name in compared
    ]
    return tuple(made), said, found


def _called(of: Answers, name: str) -> Answers:
    """Return the answers of a variant that is called `name` from here on."""
    summary = replace(of.summary, variant=replace(of.summary.variant, name=name))
    return replace(of, summary=summary)


def table(made: Comparison) -> Table:
    """Return a row for each pair, and one for all questions of a variant."""
    rows = []
    for title, pairs in made.pairs.items():
        for pair in pairs:
            one, other = pair.before, pair.after
            rows.append(
                (
                    title, pair.category, f"{one.questions:,}", percent(one.pass1),
                    percent(other.pass1), *_changed(pair.change),
                    f"{_disk(one)} -> {_disk(other)}",
                    f"{number(one.milliseconds_p50)} -> {number(other.milliseconds_p50)}",
                )
            )  # fmt: skip
        if title in made.pooled and len(pairs) > 1:
            change = made.pooled[title]
            rows.append((title, "all", f"{change.of:,}", "", "", *_changed(change), "", ""))
    return Table(
        ("variant", "category", "n", "Pass@1 before", "after", "points (95 %)", "lost/won",
         "p (Holm)", "verdict", "disk MB", "ms p50"),
        tuple(rows),
        words=2,
    )  # fmt: skip


def _changed(change: Change | None) -> tuple[str, ...]:
    if change is None:
        return ("-",) * 4
    return (
        points(change.points),
        f"{change.lost}/{change.won}",
        probability(change.adjusted),
        change.verdict,
    )


def _disk(summary: Summary) -> str:
    return megabytes(summary.variant.disk)


def document(made: Comparison) -> dict[str, Any]:
    """Return `compare.json`: `names`, `pairs` and `pooled` by variant, `left_out`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "names": list(made.names),
        "pairs": {
            title: [{**asdict(pair), "change": change_document(pair.change)} for pair in of]
            for title, of in made.pairs.items()
        },
        "pooled": {title: change_document(change) for title, change in made.pooled.items()},
        "left_out": list(made.left_out),
        "checks": [asdict(finding) for finding in made.checks],
    }


def sentence(made: Comparison) -> str:
    """Return what became of all of it, in one line."""
    if certain := [finding for finding in made.checks if finding.certain]:
        return f"nothing can be concluded: {certain[0].text}"
    parts = ["look at the checks first"] if made.checks else []
    for title, pairs in made.pairs.items():
        change = made.pooled.get(title)
        if change is None:
            continue
        worse = [p.category for p in pairs if p.change and p.change.verdict == "loss"]
        said = f"loss in {', '.join(worse)}" if worse else change.verdict
        parts.append(f"{title}: {points(change.points)} points, {said}")
    return "; ".join(parts) or "no records to compare by"
