"""The files of a report, and what they need beside the results: the questions' texts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tel_edge.eval.benchmarks import benchmark, facets
from tel_edge.eval.benchmarks.facets import Facets
from tel_edge.eval.benchmarks.split import split
from tel_edge.eval.findings.findings import Report
from tel_edge.eval.reports import (
    browse,
    compare,
    page,
    paper_plots,
    plots,
    render,
    report_document,
    tables,
)
from tel_edge.eval.reports.plots import Plot
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import lock
from tel_edge.runtime.files.atomic import write_text
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.workspace import Workspace


@dataclass(frozen=True)
class Texts:
    """What the data set says of the questions, by id; empty where it is not to be had.

    `parts` are the numbers of questions in train, validation and test, by category.
    """

    questions: Mapping[str, Question] = field(default_factory=dict)
    facets: Mapping[str, Facets] = field(default_factory=dict)
    parts: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)


def compared(
    both: tuple[str, str], workspace: Workspace, backbone: str, out: Path
) -> dict[str, Any]:
    """Print and write what became of the answers from one of `--compare` to the other."""
    first, second = both
    made = compare.compare(
        (first, second),
        compare.runs(first, workspace, backbone),
        compare.runs(second, workspace, backbone),
    )
    shown = compare.table(made)
    found = [f"{each.category}: {each.text}" for each in made.checks]
    print("\n".join([*tables.aligned(shown), *made.left_out, *found]))
    document = compare.document(made)
    title = f"# {tables.escaped(first)} and {tables.escaped(second)}"
    notes = [tables.escaped(note) for note in (*made.left_out, *found, compare.sentence(made))]
    text = "\n\n".join([title, tables.tabled(shown), *notes]) + "\n"
    # Written in a moment, so nobody need be told of waiting.
    with lock.held(out, math.inf, lambda _: None, inside=True):
        write_text(out / "compare.md", text)
        write_json(out / "compare.json", document)
    print(f"{out / 'compare.md'}; {compare.sentence(made)}")
    return document


def read_texts(dataset: str, report: Report, say: Callable[[str], None]) -> Texts:
    """Read the questions of the report's data set where `dataset` is that one.

    Where it is not to be had the report goes without them, and `say` is told why.
    """
    questions: dict[str, Question] = {}
    known: dict[str, Facets] = {}
    parts: dict[str, tuple[int, int, int]] = {}
    seed = report.settings.get("seed", "42")
    wanted = {row.summary.dataset for section in report.sections for row in section.rows}
    for section in report.sections:
        category = CATEGORIES.get(section.category)
        if category is None:
            continue
        try:
            made = benchmark.read(dataset, category, say=say)
            if made.dataset not in wanted:
                say(
                    f"results are of {' '.join(sorted(wanted))}, not of {made.dataset}: no texts "
                    "of questions; pass --dataset",
                )
                return Texts()
            questions |= {question.id: question for question in made.questions}
            known |= facets.read(dataset, category)
            # Results of several seeds have several splits.
            if seed.isdecimal():
                dealt = split(made.questions, int(seed))
                parts[category.name] = len(dealt.train), len(dealt.validation), len(dealt.test)
        except InputError as error:
            say(f"no texts of questions: {error}")
            return Texts()
    return Texts(questions, known, parts)


def write(
    report: Report,
    out: Path,
    texts: Texts | None = None,
    without_texts: bool = False,
    questions: bool = True,
) -> tuple[dict[str, Any], str]:
    """Write report.md, report.json and report.html, each in one step.

    `without_texts` leaves what the data set says of questions out, and without `questions` the
    page has no browser of them: right answers are the data set's too.

    Returns the document of `report.json`, and why there is no `report.html` or an empty text:
    without matplotlib the others are made all the same.
    """
    document, missing = report_document.document(report), ""
    texts = texts or Texts()
    try:
        figures = drawn(report)
        known = Texts() if without_texts else texts
        shown = browse.document(
            report.answers if questions else {},
            report.reference,
            known.questions,
            known.facets,
            decided=report.decision.variant,
        )
        write_text(out / "report.html", page.page(report, figures, browse.fragment(shown)))
    except InputError as error:
        missing = str(error)
        # An older page would contradict the new table.
        (out / "report.html").unlink(missing_ok=True)
    write_text(out / "report.md", render.markdown(report, figures=not missing))
    write_json(out / "report.json", document)
    return document, missing


def drawn(report: Report) -> list[Plot]:
    """Return all plots, the paper's behind the first, the tall ones last."""
    own = list(plots.plots(report))
    return [*own[:-2], *paper_plots.plots(report.paper), *own[-2:]]


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document in one step, the same bytes for the same contents."""
    write_text(path, json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
