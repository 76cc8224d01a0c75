"""Writes a study's report: report.md with plots, report.json, and one page that needs no other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from tel_edge.eval.care.judges.verdicts import PANEL
from tel_edge.eval.care.study import drawn, told
from tel_edge.eval.care.study.found import StudyReport
from tel_edge.eval.care.study.losses import AGREE, DISAGREE, PAPER, UNTOLD
from tel_edge.eval.reports import browse, page
from tel_edge.eval.reports.plots import Plot
from tel_edge.eval.reports.reporting import write_json
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files.atomic import write_text

SCHEMA_VERSION = 1
# The look of the verdict, in the classes of the style sheet.
COLOURS = {AGREE: "deploy", DISAGREE: "deploy-in-part", UNTOLD: "undecided"}
# What a choice is in the browser: by whom it was won, 0 for a tie.
CODES = {"first": 1, "second": 2, "tie": 0, None: None}


def write(report: StudyReport, out: Path, texts: bool = True) -> tuple[dict[str, Any], str]:
    """Write all files of the report, each in one step.

    Without `texts` no word of a dialogue is in the page. Returns the document of report.json, and
    why there is neither page nor plot, or an empty text.
    """
    made, missing = document(report), ""
    names: list[str] = []
    for old in (*out.glob("study-*.svg"), out / "report.html"):
        # An older picture would contradict the new table.
        old.unlink(missing_ok=True)
    try:
        figures = drawn.plots(report)
        for plot in figures:
            names.append(f"study-{plot.title.lower().replace(' ', '-')}.svg")
            write_text(out / names[-1], alone(plot))
        write_text(out / "report.html", html(report, figures, texts))
    except InputError as error:
        missing = str(error)
    write_text(out / "report.md", told.markdown(report, names))
    write_json(out / "report.json", made)
    return made, missing


def alone(plot: Plot) -> str:
    """Return a plot as a picture of its own: on white, since it cannot take a page's colours."""
    text = plot.svg.replace("currentColor", "#222222")
    if "xmlns=" not in text.partition(">")[0]:
        text = text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return text.replace("<svg ", '<svg style="background:#ffffff" ', 1) + "\n"


def document(report: StudyReport) -> dict[str, Any]:
    """Return all numbers of the report as JSON has them; texts of answers are not among them."""
    of = report.study
    return {
        "schema_version": SCHEMA_VERSION,
        "study": of.name,
        "backbone": of.backbone,
        "dataset": of.dataset,
        "split": of.split,
        "part": of.part,
        "prompts": len(of.prompts),
        "judged_by": report.label,
        "panel": list(report.panel),
        "verdict": asdict(report.verdict),
        "published": PAPER,
        "findings": [asdict(one) for one in report.findings],
        "rows": [asdict(one) for one in report.rows],
        "standings": {name: [*map(asdict, own)] for name, own in report.standings.items()},
        "equal_length": {name: [*map(asdict, own)] for name, own in report.equal.items()},
        "losses": [asdict(one) for one in report.ranks],
        "judges": [asdict(one) for one in report.audits],
        "together": asdict(report.together) if report.together else None,
        "marks": {
            name: {criterion: asdict(mean) for criterion, mean in own.items()}
            for name, own in report.marks.items()
        },
        "people": asdict(report.people) if report.people else None,
        "cells": {"of": report.cells_of, "cells": [asdict(one) for one in report.cells]},
        "data": report.data,
        "measured": report.measured,
    }


def html(report: StudyReport, plots: Sequence[Plot], texts: bool) -> str:
    """Return the page. Every text of the study is escaped; no request leaves it."""
    verdict = report.verdict
    items = "".join(f"<li>{escape(told.sentence(one))}.</li>" for one in told.sentences(report))
    kind = COLOURS[verdict.kind]
    card = (
        f'<div class="verdict {kind}"><p class="headline">{escape(told.sentence(verdict.headline))}'
        f".</p><p>{escape(report.label)}</p><ul>{items}</ul></div>"
    )
    style = f"<style>\n{_file('answers.css')}</style>"
    parts = [style, card, page.figures(plots), *page.written(told.chapters(report))]
    parts += [
        fragment(browsed(report)) if texts else "",
        f'<p class="units">{escape(report.label)}</p>',
    ]
    return page.whole(told.title(report), parts, browse.policy(_script()))


def browsed(report: StudyReport) -> dict[str, Any]:
    """Return what the page's browser shows, as JSON values.

    - `systems`, `judges`: names; `start`: the two shown first, the best and the best that it met
    - `prompts`: a list of `id`, `cause`, `asked` (what the customer wrote), `reference`
    - `answers`: by system, for each prompt [text, whether it ended by itself], null for none
    - `verdicts`: by judge, for each prompt a list of [first, second, winner], of systems' indices
      and 1 for the first, 2 for the second, 0 for a tie, null for nothing readable
    """
    names = [row.system for row in report.rows]
    known = [name for name in report.study.prompts if name in report.prompts]
    prompt = {name: at for at, name in enumerate(known)}
    system = {name: at for at, name in enumerate(names)}
    judges = [one.judge for one in report.audits]
    verdicts: list[list[list[list[int | None]]]] = [[[] for _ in known] for _ in judges]
    for one in report.pairs:
        if not one.repeat and one.judge in judges and one.prompt in prompt:
            verdicts[judges.index(one.judge)][prompt[one.prompt]].append(
                [system[one.first], system[one.second], CODES[one.choice]]
            )
    answers = [[_answer(report, name, id_) for id_ in known] for name in names]
    top = [one.system for one in sorted(report.standings.get(PANEL, ()), key=lambda s: s.rank)]
    met = {(one.first, one.second) for one in report.pairs}
    beside = [name for name in top[1:] if (top[0], name) in met]
    start = [system[name] for name in (*top[:1], *beside[:1])]
    return {
        "systems": names,
        "judges": judges,
        "start": start if len(start) == 2 else [0, len(names) - 1],
        "prompts": [_prompt(report, id_) for id_ in known],
        "answers": answers,
        "verdicts": verdicts,
    }


def _answer(report: StudyReport, system: str, prompt: str) -> list[Any] | None:
    made = report.answers.get((system, prompt))
    return [made.text, all(made.ended)] if made else None


def _prompt(report: StudyReport, name: str) -> dict[str, str]:
    case = report.prompts[name]
    parts = case.scenario.rsplit(".", 2)
    asked = [one.content for one in case.messages if one.role == "user"]
    return {
        "id": case.id,
        "cause": parts[1] if len(parts) == 3 else "",
        "asked": "\n\n".join(asked),
        "reference": "\n\n".join(case.references),
    }


def fragment(made: dict[str, Any]) -> str:
    """Return the section of the browser, "" where there is nothing to browse."""
    if not made["prompts"] or len(made["systems"]) < 2:
        return ""
    note = (
        f"{len(made['prompts']):,} prompts, {len(made['systems'])} systems; pairs that no judge "
        "saw can be read too."
    )
    # Nothing in the data can end the element: "<" stands in JSON strings only.
    data = json.dumps(made, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    return (
        _file("answers.html").replace("{{notes}}", f'<p class="units">{note}</p>')
        + f'<script type="application/json" id="told">{data}</script>\n'
        + f"<script>{_script()}</script>"
    )


def _script() -> str:
    return browse.scripted(_file("answers.js"))


def _file(name: str) -> str:
    return (resources.files(__package__) / "page_files" / name).read_text(encoding="utf-8")
