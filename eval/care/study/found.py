"""All that a study's report says, read and computed once; how it is shown is others' work."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tel_edge.eval import documents
from tel_edge.eval.care.answers import cases, records, tables
from tel_edge.eval.care.answers.cases import Case
from tel_edge.eval.care.answers.records import Record, grouped, shared
from tel_edge.eval.care.judges import studies
from tel_edge.eval.care.judges.studies import Answer
from tel_edge.eval.care.judges.verdicts import CRITERIA, PANEL, PairVerdict, Study, System
from tel_edge.eval.care.study import audit, checks, losses, people, strength
from tel_edge.eval.care.study.audit import Audit, JudgesTogether
from tel_edge.eval.care.study.checks import StudyFinding
from tel_edge.eval.care.study.losses import PARTS, LossRank, Verdict
from tel_edge.eval.care.study.people import MODELS, WHO, PeopleSaid
from tel_edge.eval.care.study.strength import Fit, Standing
from tel_edge.eval.care.study.tallies import Tally, pooled, tallied
from tel_edge.eval.statistics import Mean, Share, clustered_mean
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import jsonl
from tel_edge.runtime.workspace import Workspace


@dataclass(frozen=True)
class StudyRow:
    """What is known of a system beside what judges say; None where it is not known.

    `losses` are in nats by part, `stopped`, `words` and `f1` of the judged answers, `f1` the mean
    by facts (docs/care.md).
    """

    system: str
    targets: str
    rank: str
    learning_rate: str
    parameters: int | None
    bytes: int | None
    losses: Mapping[str, float]
    perplexity: float | None
    joules: float | None
    stated_joules: float | None
    stopped: Share | None
    words: Mean | None
    f1: Mean | None


@dataclass(frozen=True)
class Cell:
    """The best system in one cause and context: a mean of 0 to 1 over `of` prompts."""

    cause: str
    context: str
    value: float
    of: int


@dataclass(frozen=True, eq=False)
class StudyReport:
    """A study and what it says. Mappings by judge have the panel under `PANEL`.

    `panel` names the judges that count together: the models, or the stand-ins where there are none.
    `equal` are standings at equal length, where that can be told. `data` is `files.json` of the
    data set, `measured` the care.json of the same backbone, None where they are not there.
    """

    study: Study
    folder: Path
    panel: tuple[str, ...]
    rows: tuple[StudyRow, ...]
    fits: Mapping[str, Fit | None]
    standings: Mapping[str, tuple[Standing, ...]]
    equal: Mapping[str, tuple[Standing, ...]]
    audits: tuple[Audit, ...]
    together: JudgesTogether | None
    marks: Mapping[str, Mapping[str, Mean]]
    ranks: tuple[LossRank, ...]
    verdict: Verdict
    findings: tuple[StudyFinding, ...]
    people: PeopleSaid | None
    cells: tuple[Cell, ...]
    cells_of: str
    data: Mapping[str, Any] | None
    measured: Mapping[str, Any] | None
    prompts: Mapping[str, Case]
    answers: Mapping[tuple[str, str], Answer]
    pairs: Sequence[PairVerdict]

    @property
    def label(self) -> str:
        """Return by whom it was judged, as every page says."""
        return people.judged_by(self.study, self.panel, self.people)

    @property
    def best(self) -> Standing | None:
        """Return the system that the panel ranks first."""
        return min(self.standings.get(PANEL, ()), key=lambda one: one.rank, default=None)


def place(workspace: Workspace, given: str) -> Path:
    """Return the folder of `--study`, a name in the workspace or a folder of its own."""
    named = studies.folder(workspace.root, given) if Path(given).name == given else None
    for folder in (named, Path(given)):
        if folder and (folder / studies.STUDY).is_file():
            return folder
    there = sorted(path.parent.name for path in workspace.root.glob(f"studies/*/{studies.STUDY}"))
    raise InputError(
        f"--study {given}: no {studies.STUDY} there; "
        + (f"this workspace has {' '.join(there)}" if there else "tel-judge makes a study")
    )


def collect(folder: Path, workspace: Workspace, dataset: Path | None) -> StudyReport:
    """Read a study and compute all that its report says.

    `dataset` is the folder of the data set, where it is not what the study names.
    Raises `InputError` for a folder that is no study, or in which nobody has judged.
    """
    study = studies.read_study(folder)
    pairs, rubric = studies.read_pairs(folder), studies.read_rubric(folder)
    prompts, answers = studies.read_prompts(folder), studies.read_answers(folder)
    names = tuple(one.name for one in study.systems)
    kinds = {one.name: one.kind for one in study.judges}
    if strange := {v.judge for v in pairs} - kinds.keys():
        raise InputError(
            f"{folder / studies.PAIRS}: {min(strange)} is no judge of {studies.STUDY}; move the "
            "file away"
        )
    labels = _by(studies.read_labels(folder))
    said = {name: tallied(of, names, both=False) for name, of in labels.items()}
    by = _by(pairs)
    tallies = {name: tallied(of, names) for name, of in by.items()}
    if alone := not any(len(one.won) for one in tallies.values()):
        by, tallies = labels, said
    if not tallies:
        raise InputError(f"{folder}: no pair was judged in both orders yet; run tel-judge")
    panel = tuple(name for name in tallies if kinds[name] in MODELS) or tuple(tallies)
    whole = {**tallies, PANEL: pooled([tallies[name] for name in panel])}
    fits = {name: strength.fitted(one) for name, one in whole.items()}
    lengths = {name: strength.fitted(one, lengths=True) for name, one in whole.items()}
    standings = _standings(fits, whole)
    audits = tuple(
        audit.audited(study, one, by[one.name], tallies[one.name], lengths[one.name])
        for one in study.judges
        if one.name in tallies
    )
    kept = {one.name: _records(folder, one, study) for one in study.systems}
    rows = tuple(_row(one, study, prompts, answers, kept[one.name]) for one in study.systems)
    own = {part: [row.losses.get(part) for row in rows] for part in PARTS}
    scores = {name: [one.score.value for one in of] for name, of in standings.items()}
    ranks = losses.against(own, scores)
    home = _home(study, workspace, dataset)
    trained = _trained(home) if home else None
    top = standings.get(PANEL, ())
    findings = (
        *checks.of_judges(audits),
        *checks.of_answers(names, study.prompts, answers),
        *checks.of_verdicts(pairs, answers),
        *checks.of_data({one.id: one.scenario for one in prompts.values()}, trained),
        *checks.of_size(
            fits[PANEL], top, sum(one.half for one in tallies.values()), len(whole[PANEL].won)
        ),
    )
    # What is wrong with a judge beside the panel does not touch what the panel says.
    aside = kinds.keys() - {*panel}
    broken = [one.text for one in findings if one.grave and one.about not in aside]
    who = WHO[kinds[panel[0]]]
    cells, cells_of = _cells(study, kept, top, whole[PANEL])
    return StudyReport(
        study=study,
        folder=folder,
        panel=panel,
        rows=rows,
        fits=fits,
        standings=standings,
        equal=_standings({name: of for name, of in lengths.items() if of and of.length}, whole),
        audits=audits,
        together=audit.together({name: tallies[name] for name in panel}, fits, rubric),
        marks=audit.marked(rubric, names, panel),
        ranks=ranks,
        verdict=losses.decided(ranks, own[PARTS[0]], top, fits[PANEL], broken, who),
        findings=findings,
        people=people.compared(
            said, {} if alone else {name: tallies[name] for name in panel}, whole[PANEL]
        ),
        cells=cells,
        cells_of=cells_of,
        data=_json(home / "files.json") if home else None,
        measured=_measured(workspace, study.backbone),
        prompts=prompts,
        answers=answers,
        pairs=[one for of in by.values() for one in of],
    )


def _by(verdicts: Sequence[PairVerdict]) -> dict[str, list[PairVerdict]]:
    """Return verdicts by judge."""
    found: dict[str, list[PairVerdict]] = {}
    for one in verdicts:
        found.setdefault(one.judge, []).append(one)
    return found


def _standings(
    fits: Mapping[str, Fit | None], tallies: Mapping[str, Tally]
) -> dict[str, tuple[Standing, ...]]:
    return {
        name: strength.standings(fit, len(tallies[name].won))
        for name, fit in fits.items()
        if fit is not None
    }


def _row(
    system: System,
    study: Study,
    prompts: Mapping[str, Case],
    answers: Mapping[tuple[str, str], Answer],
    kept: Sequence[Record],
) -> StudyRow:
    row = system.row
    options = row.get("options") or {}
    of = {part: made for part, made in (row.get("losses") or {}).items() if part in PARTS}
    own = [
        prompts[name]
        for name in study.prompts
        if name in prompts and (system.name, name) in answers
    ]

    def answer(case: Case) -> Answer:
        return answers[system.name, case.id]

    return StudyRow(
        system=system.name,
        targets=str(options.get("targets", "-")),
        rank=str(options.get("rank", "-")),
        learning_rate=str(options.get("learning-rate", "-")),
        parameters=row.get("parameters") or None,
        bytes=row.get("adapter_bytes") or None,
        losses={part: float(made["loss"]) for part, made in of.items()},
        perplexity=of[PARTS[0]].get("perplexity") if PARTS[0] in of else None,
        joules=row.get("joules"),
        stated_joules=row.get("stated_joules"),
        stopped=shared(own, lambda case: (int(all(answer(case).ended)), 1)) if own else None,
        words=clustered_mean(grouped(own, lambda case: float(answer(case).words))) if own else None,
        f1=clustered_mean(grouped(kept, lambda one: one.measured.f1)) if kept else None,
    )


def _records(folder: Path, system: System, study: Study) -> list[Record]:
    """Return what tel-eval left of a system's answers, nothing where that is not here."""
    path, wanted = folder / system.answers, set(study.prompts)
    try:
        made = [one for one in records.read(path, system.run) if one.id in wanted]
    except (InputError, OSError):
        return []
    return [*{one.id: one for one in made}.values()]


def _cells(
    study: Study, kept: Mapping[str, Sequence[Record]], top: Sequence[Standing], tally: Tally
) -> tuple[tuple[Cell, ...], str]:
    """Return the best system's F1 by cause and context, or its wins where there is no F1."""
    if not top:
        return (), ""
    at = min(range(len(top)), key=lambda at: top[at].rank)
    values = [(one.scenario, one.measured.f1) for one in kept[study.systems[at].name]]
    what = "F1 of facts, its number of prompts in brackets"
    if not values:
        what = "Share of wins, its number of pairs in brackets"
        values = [
            (scenario, won if left == at else 1 - won)
            for scenario, left, right, won in zip(
                tally.scenarios.tolist(), tally.left, tally.right, tally.won.tolist(), strict=True
            )
            if at in (left, right)
        ]
    found: dict[tuple[str, str], list[float]] = {}
    for scenario, value in values:
        # term.cause.context; scenarios of others' data sets may be called otherwise.
        parts = scenario.rsplit(".", 2)
        if len(parts) == 3:
            found.setdefault((parts[1], parts[2]), []).append(value)
    cells = tuple(Cell(*key, sum(of) / len(of), len(of)) for key, of in sorted(found.items()))
    return cells, what


def _home(study: Study, workspace: Workspace, given: Path | None) -> Path | None:
    """Return the data set's folder: the one given, or one of its name, here or in the workspace.

    Raises `InputError` for a given one that is not what was judged; others are passed by.
    """
    if given:
        if not _same(given, study):
            raise InputError(f"--dataset {given}: another data set than the one that was judged")
        return given
    for one in (Path(study.dataset), workspace.root / study.dataset):
        with suppress(InputError):
            if (one / "train.jsonl").is_file() and _same(one, study):
                return one
    return None


def _trained(folder: Path) -> frozenset[str] | None:
    """Return the scenarios of the training part, None where it is not here."""
    file = folder / "train.jsonl"
    if not file.is_file():
        return None
    return frozenset(str(row.get("scenario")) for _, row in jsonl.read(file, dict))


def _same(folder: Path, study: Study) -> bool:
    """Return whether a data set is the one that was judged, as far as its part is there."""
    there = (folder / f"{study.part}.jsonl").is_file()
    return not there or cases.read(folder, study.part).digest == study.split


def _json(path: Path) -> dict[str, Any] | None:
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return made if isinstance(made, dict) else None


def _measured(workspace: Workspace, backbone: str) -> dict[str, Any] | None:
    """Return what tel-eval measured of the same backbone's bundle."""
    path = workspace.root / "results" / backbone / f"{tables.name('test')}.json"
    try:
        made: dict[str, Any] = documents.read(path, tables.SCHEMA_VERSION)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return made


def mark(report: StudyReport, system: str) -> float | None:
    """Return a system's mean over all criteria, 1 to 5, None without marks."""
    of = report.marks.get(system) or {}
    return (
        sum(of[name].value for name in CRITERIA) / len(CRITERIA)
        if len(of) == len(CRITERIA)
        else None
    )
