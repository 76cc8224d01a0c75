"""One category of the report: its variants beside the reference, and what a reader must know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tel_edge.eval.benchmarks import duplicates
from tel_edge.eval.benchmarks.duplicates import Duplicates
from tel_edge.eval.findings import calibration, leakage, sizes
from tel_edge.eval.findings.answers import Answers
from tel_edge.eval.findings.calibration import Bin
from tel_edge.eval.findings.leakage import Leakage
from tel_edge.eval.findings.paired import Change
from tel_edge.eval.scoring import baselines, records
from tel_edge.eval.scoring.baselines import Baseline, Baselines
from tel_edge.eval.scoring.records import Summary
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.workspace import Workspace

# Below this the 95 % interval of a share is wider than 19 points.
FEW = 100
# What answers depend on beside the questions, by its names in `Summary.made_with`.
MADE_OF = ("backbone", "adapter", "prompt")


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
    duplicates: Duplicates | None = None


def section(
    workspace: Workspace,
    name: str,
    known: Sequence[Answers],
    moved: Sequence[Answers],
    reference: str,
    changes: Mapping[str, Mapping[str, Change]],
) -> Section:
    """Return the section of category `name`: what is `known` of it, and in `moved` orders.

    `changes` are those against `reference` by variant and category.
    """
    to = named(known, reference)
    summaries = [each.summary for each in known]
    made, notes = _floor(workspace, name, to.summary if to else summaries[0])
    top = best(made)
    rows = []
    for each in known:
        summary, change = each.summary, changes.get(each.summary.variant.name, {}).get(name)
        beaten = summary.variant.adapter and top and top.share.value >= summary.pass1.low
        own = bins([each])
        rows.append(
            VariantRow(
                summary,
                None if each is to else change,
                to is not None and records.same_questions(summary, to.summary),
                calibration.expected_calibration_error(own, len(each.ids)) if own else None,
                top.name if beaten and top else None,
                to is None or records.same_training(summary, to.summary),
            )
        )
    leaks, alike = None, _duplicates(workspace, to.summary) if to else None
    if to and to.ids:
        pairs = [
            (plain, each)
            for each in moved
            if (plain := named(known, each.summary.variant.name))
            and each.ids
            and _same_files(plain.summary, each.summary)
        ]
        leaks = leakage.measure(to, pairs, alike)
    title = CATEGORIES[name].title if name in CATEGORIES else name
    said = (*notes, *_notes(rows, made, to), *_stale(known, moved))
    return Section(name, title, tuple(rows), made, leaks, said, alike)


def _same_files(plain: Summary, moved: Summary) -> bool:
    """Return whether other orders were asked of the same questions, prompt, backbone and adapter.

    The ids of questions say nothing of the data set.
    """
    made = [
        (*records.questions_of(each)[:3], *(each.made_with.get(name) for name in MADE_OF))
        for each in (plain, moved)
    ]
    return made[0] == made[1]


def _stale(known: Sequence[Answers], moved: Sequence[Answers]) -> tuple[str, ...]:
    names = [
        each.summary.variant.name
        for each in moved
        if (plain := named(known, each.summary.variant.name))
        and not _same_files(plain.summary, each.summary)
    ]
    if not names:
        return ()
    return (
        f"asked in other orders with other files or questions than these, so not counted: "
        f"{', '.join(names)}; run tel-eval again",
    )


def _floor(workspace: Workspace, name: str, of: Summary) -> tuple[Baselines | None, list[str]]:
    """Return the trivial baselines of the questions of `of`, and what is to say of them."""
    path = records.baselines_path(workspace, name)
    if not path.is_file():
        return None, ["no trivial baselines to compare with; tel-eval --baselines makes them"]
    made = baselines.read(path)
    if (made.dataset, made.part, made.split) != records.questions_of(of)[:3]:
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


def order(summary: Summary) -> tuple[bool, tuple[int, str], int, str]:
    """Return the key that sorts bare before adapted variants, and the largest of each first."""
    variant = summary.variant
    return variant.adapter, sizes.rank(variant.format), -variant.backbone_bytes, variant.name


def named(variants: Sequence[Answers], name: str) -> Answers | None:
    """Return the variant of that name, None where it is not among them."""
    return next((each for each in variants if each.summary.variant.name == name), None)


def bins(own: Sequence[Answers]) -> tuple[Bin, ...]:
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
