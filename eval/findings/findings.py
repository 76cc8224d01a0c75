"""What the files of a workspace say about a backbone: the contents of the report, unformatted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tel_edge.eval.findings import answers, checks, ladder, paired, paper, sizes
from tel_edge.eval.findings.answers import Answers
from tel_edge.eval.findings.benched import Benched, by_variant
from tel_edge.eval.findings.calibration import Bin
from tel_edge.eval.findings.checks import Finding, Trained
from tel_edge.eval.findings.decision import Budget, Decision, Evidence, decide
from tel_edge.eval.findings.ladder import Best, Rung
from tel_edge.eval.findings.paired import Change
from tel_edge.eval.findings.paper import Paper
from tel_edge.eval.findings.sections import Section, bins, named, order, section
from tel_edge.eval.findings.settings import settings
from tel_edge.eval.findings.sizes import Footprint
from tel_edge.eval.findings.worth import Category
from tel_edge.eval.scoring import records, router_figures, trainings
from tel_edge.eval.scoring.records import Summary
from tel_edge.eval.scoring.trainings import Training
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.workspace import Workspace


@dataclass(frozen=True)
class Report:
    """Everything that the report says; `reference` is the variant that others are compared to.

    `device` has what was measured of variants where they are to run, `formats` the best variant of
    each format, `reliability` the bins of the reference and of
    the recommended variant over all categories, `answers` the records by category, for the page.
    """

    backbone: str
    part: str
    reference: str
    sections: tuple[Section, ...]
    ladder: tuple[Rung, ...]
    decision: Decision
    device: Mapping[str, Benched]
    footprints: tuple[Footprint, ...]
    formats: tuple[Best, ...]
    reliability: Mapping[str, tuple[Bin, ...]]
    trainings: tuple[Training, ...]
    settings: Mapping[str, str]
    checks: tuple[Finding, ...]
    paper: Paper
    answers: Mapping[str, tuple[Answers, ...]]
    router: router_figures.Measured | None = None
    # Questions of each part, by category; none where the data set is not to be had.
    parts: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    # As the commands to ship it name them: the workspace where it is not in its usual place, and
    # the files that `device` is from.
    home: Path | None = None
    bench: tuple[Path, ...] = ()


def collect(
    workspace: Workspace,
    backbone: str,
    published: bool = False,
    budget: Budget | None = None,
    benched: Sequence[Benched] | None = None,
) -> Report:
    """Read the results of a backbone, a pure function of the files, the budget and `benched`.

    `benched` is what was measured on the device to deploy to. The results are its records and
    summaries, the trivial baselines and near-duplicates, each adapter's `training.json`, the
    router's figures, and for the paper's tables those of other backbones; all but the first may be
    missing. Raises `InputError` if there are no results or a file is broken.
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
    trained = tuple(_trainings(workspace, backbone, known))
    changes = _changes(known, reference)
    sections = tuple(
        section(workspace, name, known[name], moved[name], reference, changes) for name in names
    )
    results: dict[str, dict[str, Summary]] = {}
    for made in sections:
        for row in made.rows:
            if row.same_questions and row.same_training:
                results.setdefault(row.summary.variant.name, {})[made.category] = row.summary
    rungs = ladder.rungs(results, changes, decided_on)
    found = _all_checks(workspace, every, part, known, reference, trained)
    routed = router_figures.report_path(workspace)
    device = None if benched is None else by_variant(benched, summaries)
    decided = decide(
        Evidence(
            reference,
            part,
            rungs,
            {
                made.category: Category(
                    known[made.category],
                    made.baselines,
                    made.leakage.rotations if made.leakage else (),
                    made.duplicates,
                )
                for made in sections
                if made.category in decided_on
            },
            {s.variant.name: tuple(results.get(s.variant.name, ())) for s in summaries},
            found,
            device,
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
        device=device or {},
        footprints=sizes.footprints(summaries),
        formats=ladder.by_format(rungs, results, reference),
        reliability=_reliability(known, (reference, decided.variant or reference)),
        trainings=trained,
        settings=settings(summaries),
        checks=found,
        paper=paper.collect(workspace, None, published),
        answers=known,
        router=router_figures.read(routed) if routed.is_file() else None,
    )


def _trainings(
    workspace: Workspace, backbone: str, known: Mapping[str, Sequence[Answers]]
) -> Iterator[Training]:
    """Yield the records of the trainings that the scored adapters are of, where they are there."""
    for category, variants in known.items():
        made = trainings.read(workspace, backbone, category)
        sources = {each.summary.variant.source for each in variants} - {None}
        # Results of an older version do not say which training they are of.
        if made and (not sources or trainings.source(workspace, backbone, category) in sources):
            yield made


def _part(name: str) -> int:
    return records.PARTS.index(name)


def _answers(
    workspace: Workspace, summaries: Sequence[Summary], category: str
) -> tuple[Answers, ...]:
    """Return the records of a category's variants, in the order of the rows."""
    own = sorted((s for s in summaries if s.category == category), key=order)
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
        to = named(variants, reference)
        for each in variants:
            if to and to.ids and each.ids and records.comparable(each.summary, to.summary):
                name = each.summary.variant.name
                found.setdefault(name, {})[category] = paired.change(to, each)
    return {name: paired.corrected(of) for name, of in found.items()}


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
        own = [each for variants in known.values() if (each := named(variants, name))]
        if made := bins(own):
            found[name] = made
    return found


def variants(report: Report) -> tuple[str, ...]:
    """Return the names of all variants, in the order of the rows."""
    made = sorted((row.summary for section in report.sections for row in section.rows), key=order)
    return tuple(dict.fromkeys(summary.variant.name for summary in made))


def formats(report: Report) -> tuple[str, ...]:
    """Return the formats of all variants, in the order of the rows."""
    made = {row.summary.variant.format for section in report.sections for row in section.rows}
    return tuple(sorted(made, key=sizes.rank))
