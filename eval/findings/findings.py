"""What the files of a workspace say about a backbone: the contents of the report, unformatted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tel_edge.eval.benchmarks import duplicates
from tel_edge.eval.findings import (
    answers,
    calibration,
    checks,
    ladder,
    leakage,
    paired,
    paper,
    sizes,
)
from tel_edge.eval.findings.answers import Answers
from tel_edge.eval.findings.calibration import Bin
from tel_edge.eval.findings.checks import Finding, Trained
from tel_edge.eval.findings.decision import Budget, Decision, Evidence, decide
from tel_edge.eval.findings.ladder import Best, Rung
from tel_edge.eval.findings.leakage import Leakage
from tel_edge.eval.findings.paired import Change
from tel_edge.eval.findings.paper import Paper
from tel_edge.eval.findings.settings import settings
from tel_edge.eval.findings.sizes import Footprint
from tel_edge.eval.scoring import baselines, records, router, trainings
from tel_edge.eval.scoring.baselines import Baseline, Baselines
from tel_edge.eval.scoring.records import Summary
from tel_edge.eval.scoring.trainings import Training
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.workspace import Workspace

# Below this the 95 % interval of a share is wider than 19 points.
FEW = 100


@dataclass(frozen=True)
class VariantRow:
    """One variant on one category. `change` is against the reference on the same questions.

    `change` is None for the reference itself, where the reference was scored on other questions or
    has an adapter of another training, or where there are no records. `trivial` names the trivial
    baseline that reaches into the interval of Pass@1 of a variant with an adapter, if one does.
    """

    summary: Summary
    change: Change | None
    same_questions: bool
    calibration_error: float | None = None
    trivial: str | None = None
    same_training: bool = True

    @property
    def disk(self) -> int:
        """Return the bytes of the backbone and the adapter."""
        return self.summary.variant.disk


@dataclass(frozen=True)
class Section:
    """One category: its variants, bare backbones first, by format, large before small."""

    category: str
    title: str
    rows: tuple[VariantRow, ...]
    baselines: Baselines | None
    leakage: Leakage | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """Everything that the report says; `reference` is the variant that others are compared to.

    `formats` has the best variant of each format, `reliability` the bins of the reference and of
    the recommended variant over all categories, `answers` the records by category, for the page.
    """

    backbone: str
    part: str
    reference: str
    sections: tuple[Section, ...]
    ladder: tuple[Rung, ...]
    decision: Decision
    footprints: tuple[Footprint, ...]
    formats: tuple[Best, ...]
    reliability: Mapping[str, tuple[Bin, ...]]
    trainings: tuple[Training, ...]
    settings: Mapping[str, str]
    checks: tuple[Finding, ...]
    paper: Paper
    answers: Mapping[str, tuple[Answers, ...]]
    router: router.Measured | None = None
    # Questions of each part, by category; none where the data set is not to be had.
    parts: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)


def collect(
    workspace: Workspace, backbone: str, published: bool = False, budget: Budget | None = None
) -> Report:
    """Read the results of a backbone, a pure function of the files and the budget.

    They are its records and summaries, the trivial baselines and near-duplicates, each adapter's
    `training.json`, the router's figures, and for the paper's tables those of other backbones; all
    but the first may be missing. Raises `InputError` if there are no results or a file is broken.
    """
    every = records.summaries(workspace, backbone)
    plain = [summary for summary in every if not summary.rotated]
    if not plain:
        raise InputError(
            f"{workspace.root / 'results' / backbone}: no results; "
            f"make some with: tel-eval --backbone {backbone}"
        )
    part = min((summary.part for summary in plain), key=_part)
    summaries = [summary for summary in plain if summary.part == part]
    names = [name for name in CATEGORIES if any(s.category == name for s in summaries)]
    names += sorted({s.category for s in summaries} - set(names))
    reference, decided_on = sizes.held_against(summaries, names)
    known = {name: _answers(workspace, summaries, name) for name in names}
    rotated = [summary for summary in every if summary.rotated and summary.part == part]
    moved = {name: _answers(workspace, rotated, name) for name in names}
    made = [trainings.read(workspace, backbone, name) for name in names]
    trained = tuple(training for training in made if training)
    changes = _changes(known, reference)
    sections = tuple(
        _section(workspace, name, known[name], moved[name], reference, changes) for name in names
    )
    results: dict[str, dict[str, Summary]] = {}
    for section in sections:
        for row in section.rows:
            if row.same_questions and row.same_training:
                results.setdefault(row.summary.variant.name, {})[section.category] = row.summary
    rungs = ladder.rungs(results, changes, decided_on)
    found = _all_checks(workspace, every, part, known, reference, trained)
    decided = decide(
        Evidence(
            reference,
            rungs,
            {name: known[name] for name in decided_on},
            {s.variant.name: tuple(results.get(s.variant.name, ())) for s in summaries},
            {section.category: section.baselines for section in sections},
            {s.category: s.leakage.rotations if s.leakage else () for s in sections},
            found,
        ),
        budget,
    )
    return Report(
        backbone=backbone,
        part=part,
        reference=reference,
        sections=sections,
        ladder=rungs,
        decision=decided,
        footprints=sizes.footprints(summaries),
        formats=ladder.by_format(rungs, results, reference),
        reliability=_reliability(known, (reference, decided.variant or reference)),
        trainings=trained,
        settings=settings(summaries),
        checks=found,
        paper=paper.collect(workspace, None, published),
        answers=known,
        router=router.read(routed) if (routed := router.report_path(workspace)).is_file() else None,
    )


def _part(name: str) -> int:
    return ("test", "validation", "train").index(name)


def _answers(
    workspace: Workspace, summaries: Sequence[Summary], category: str
) -> tuple[Answers, ...]:
    """Return the records of a category's variants, in the order of the rows."""
    own = sorted((s for s in summaries if s.category == category), key=_order)
    return tuple(_read(workspace, summary) for summary in own)


def _read(workspace: Workspace, s: Summary) -> Answers:
    path = workspace.results(s.backbone, s.variant.name, s.category, s.part, s.rotated)
    return answers.read(path, s)


def _changes(
    known: Mapping[str, Sequence[Answers]], reference: str
) -> dict[str, dict[str, Change]]:
    """Return, by variant and category, what changed against the reference; itself included."""
    found: dict[str, dict[str, Change]] = {}
    for category, variants in known.items():
        to = _named(variants, reference)
        for each in variants:
            if to and to.ids and each.ids and records.comparable(each.summary, to.summary):
                name = each.summary.variant.name
                found.setdefault(name, {})[category] = paired.change(to, each)
    return {name: paired.corrected(of) for name, of in found.items()}


def _named(variants: Sequence[Answers], name: str) -> Answers | None:
    return next((each for each in variants if each.summary.variant.name == name), None)


def _checks(
    known: Mapping[str, Sequence[Answers]], reference: str, trained: Sequence[Training]
) -> tuple[Finding, ...]:
    measured = {
        each.category: Trained(each.validation, "validation") for each in trained if each.validation
    }
    found: list[Finding] = []
    for category, variants in known.items():
        base = next(
            (v.summary.variant.name for v in variants if v.summary.variant.kind == "base"), None
        )
        found += checks.findings(category, variants, reference, base, measured.get(category))
    return (*found, *checks.across(known, reference, measured))


def _all_checks(
    workspace: Workspace,
    every: Sequence[Summary],
    part: str,
    known: Mapping[str, Sequence[Answers]],
    reference: str,
    trained: Sequence[Training],
) -> tuple[Finding, ...]:
    return (
        *_checks(known, reference, trained),
        # Of the other parts and orders only figures are shown; they are those of the records.
        *(
            finding
            for summary in every
            if summary.rotated or summary.part != part
            for finding in checks.of_records(_read(workspace, summary))
        ),
    )


def _reliability(
    known: Mapping[str, Sequence[Answers]], names: Sequence[str]
) -> dict[str, tuple[Bin, ...]]:
    """Return the bins of each variant over all categories in which it has probabilities."""
    found = {}
    for name in dict.fromkeys(names):
        own = [each for variants in known.values() if (each := _named(variants, name))]
        if bins := _bins(own):
            found[name] = bins
    return found


def _bins(own: Sequence[Answers]) -> tuple[Bin, ...]:
    """Return the reliability of the picks of several categories together."""
    import numpy as np

    scored = [each for each in own if each.scored]
    if not scored:
        return ()
    confidence = [calibration.probabilities(each.logprobs).max(axis=1) for each in scored]
    right = np.concatenate([each.right for each in scored])
    return calibration.reliability(np.concatenate(confidence), right)


def best(made: Baselines | None) -> Baseline | None:
    """Return the baseline with the largest share, the first of equal ones."""
    return max(made.baselines, key=lambda b: b.share.value, default=None) if made else None


def variants(report: Report) -> tuple[str, ...]:
    """Return the names of all variants, in the order of the rows."""
    made = sorted((row.summary for section in report.sections for row in section.rows), key=_order)
    return tuple(dict.fromkeys(summary.variant.name for summary in made))


def formats(report: Report) -> tuple[str, ...]:
    """Return the formats of all variants, in the order of the rows."""
    made = {row.summary.variant.format for section in report.sections for row in section.rows}
    return tuple(sorted(made, key=sizes.rank))


def _section(
    workspace: Workspace,
    name: str,
    known: Sequence[Answers],
    moved: Sequence[Answers],
    reference: str,
    changes: Mapping[str, Mapping[str, Change]],
) -> Section:
    to = _named(known, reference)
    summaries = [each.summary for each in known]
    made, notes = _floor(workspace, name, summaries)
    top = best(made)
    rows = []
    for each in known:
        summary, change = each.summary, changes.get(each.summary.variant.name, {}).get(name)
        beaten = summary.variant.adapter and top and top.share.value >= summary.pass1.low
        bins = _bins([each])
        rows.append(
            VariantRow(
                summary,
                None if each is to else change,
                to is not None and records.same_questions(summary, to.summary),
                calibration.expected_calibration_error(bins, len(each.ids)) if bins else None,
                top.name if beaten and top else None,
                to is None or records.same_training(summary, to.summary),
            )
        )
    leaks = None
    if to and to.ids:
        pairs = [
            (plain, each)
            for each in moved
            if (plain := _named(known, each.summary.variant.name))
            and each.ids
            # Ids say nothing of the data set.
            and records.questions_of(plain.summary)[:3] == records.questions_of(each.summary)[:3]
        ]
        leaks = leakage.measure(to, pairs, _duplicates(workspace, to.summary))
    title = CATEGORIES[name].title if name in CATEGORIES else name
    return Section(name, title, tuple(rows), made, leaks, (*notes, *_notes(rows, made, to)))


def _floor(
    workspace: Workspace, name: str, summaries: Sequence[Summary]
) -> tuple[Baselines | None, list[str]]:
    """Return the trivial baselines that are about these questions, and what is to say of them."""
    path = records.baselines_path(workspace, name)
    if not path.is_file():
        return None, ["no trivial baselines to compare with; tel-eval --baselines makes them"]
    made = baselines.read(path)
    if any((made.dataset, made.part, made.split) != records.questions_of(s)[:3] for s in summaries):
        text = "the trivial baselines on file are about other questions; run tel-eval --baselines"
        return None, [text]
    return made, []


def _duplicates(workspace: Workspace, to: Summary) -> duplicates.Duplicates | None:
    path = records.duplicates_path(workspace, to.category)
    made = duplicates.read(path) if path.is_file() else None
    same = made and (made.dataset, made.part, made.split) == records.questions_of(to)[:3]
    return made if same else None


def _notes(
    rows: Sequence[VariantRow], made: Baselines | None, reference: Answers | None
) -> tuple[str, ...]:
    """Return what a reader of the category's numbers must know, a sentence each."""
    notes, top = [], best(made)
    beaten = [row.summary.variant.name for row in rows if row.trivial]
    if top and beaten:
        notes.append(
            f"a trivial baseline does as well: {top.name} {top.share.value:.1%} "
            f"against {', '.join(beaten)}"
        )
    few = min(row.summary.questions for row in rows)
    if few < FEW:
        notes.append(f"{few} questions are too few to tell differences of a few points")
    if rejected := max(row.summary.rejected for row in rows):
        notes.append(f"{rejected} malformed rows of the data set left out")
    for row in rows:
        summary = row.summary
        if summary.too_long:
            notes.append(
                f"{summary.variant.name}: {summary.too_long} questions longer than the context, "
                "counted as wrong"
            )
        if summary.unparsed:
            notes.append(
                f"{summary.variant.name}: {summary.unparsed} texts give no answer, counted as wrong"
            )
        if reference and not row.same_questions:
            notes.append(f"{summary.variant.name}: scored on other questions, not compared")
        if reference and not row.same_training:
            notes.append(
                f"{summary.variant.name}: its adapter is of another training than that of "
                f"{reference.summary.variant.name}, not compared; export all types of one adapter "
                "and evaluate them again"
            )
    adapted = [row.summary for row in rows if row.summary.variant.adapter]
    unknown = [s.variant.name for s in adapted if s.variant.source is None]
    if unknown and len(adapted) > 1:
        notes.append(f"not noted which training the adapter is of: {', '.join(unknown)}")
    adrift = [
        row.summary.variant.name
        for row in rows
        if row.summary.label_mass is not None and row.summary.label_mass < 0.5
    ]
    if adrift:
        notes.append(f"less than half of the probability is on the labels: {', '.join(adrift)}")
    return tuple(notes)


def _order(summary: Summary) -> tuple[bool, tuple[int, str], int, str]:
    variant = summary.variant
    return variant.adapter, sizes.rank(variant.format), -variant.backbone_bytes, variant.name
