"""A study in words: chapters of tables, plain for the terminal, and Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from tel_edge.eval.care import panel as dialogues
from tel_edge.eval.care.answers import tables
from tel_edge.eval.care.judges.verdicts import CRITERIA, PANEL
from tel_edge.eval.care.study.drawn import HOUR
from tel_edge.eval.care.study.found import StudyReport, mark
from tel_edge.eval.care.study.losses import PAPER, PARTS, beside, places
from tel_edge.eval.care.study.people import EPSILON
from tel_edge.eval.care.study.strength import Standing
from tel_edge.eval.reports.render import NARROW, Chapter
from tel_edge.eval.reports.tables import (
    Table,
    aligned,
    escaped,
    megabytes,
    number,
    percent,
    probability,
    tabled,
)
from tel_edge.eval.statistics import Mean

CHECKS = (
    "What a sound study does not have. Nothing here is decided by itself: look at what is named "
    "before you trust the numbers below."
)
SYSTEMS = (
    "Losses in nats a token of the assistant's, on the references of each part, at the epoch with "
    "the lowest validation loss; perplexity: e to the validation loss; MB: 10^6 bytes; Wh: "
    "measured by counters over the training, - where nobody could; stated Wh: not measured, "
    "seconds times a power that was stated. Of the judged answers: stopped: ended by the model's "
    "own end token, %; F1 of facts, % (docs/care.md); words: mean."
)
RANKS = (
    "Wins: share of wins over all other systems by Bradley-Terry scores, in %. Ranks with the best "
    "and the worst place that they may have. Intervals are of 95 %, over scenarios. Equal length: "
    "of answers as long as each other, which is no better a truth where the longer says more. "
    "Marks: mean of the rubric's criteria, 1 to 5."
)
LOSS = (
    "Rank correlation of losses with scores: -1 is a loss that ranks as the judge does. Intervals "
    "are of a bootstrap over systems, p is of 2,000 random pairings; Holm: p corrected over "
    "judges, of the panel its own."
)
AUDIT = (
    "Missing: verdicts that nobody could read. Flips: pairs that the same place won both times; "
    "changed: with another outcome in the other order, ties counted in. "
    "First: share of the answer shown first, 50 without a preference. Length: what one standard "
    "deviation of length is worth in nats, of the same systems; longer wins: share of wins of the "
    "longer answer. Repeated: the same verdict when asked again. All but length in %."
)
TOGETHER = (
    "Alpha: Krippendorff's over pairs of answers, ordinal, with an interval over scenarios; W: "
    "Kendall's over systems; tau-b: of two judges' scores. 1: all agree; alpha 0: as by chance."
)
PEOPLE = (
    "Alternative-annotator test: whether a judge represents people at least as well as one of them "
    f"(epsilon {EPSILON:g}); winning: share of people whom it may replace, 50 % are needed. Kappa: "
    "Cohen's, over left, tie and right. Win rates: people's labels and the panel's verdicts "
    "together (PPI++), over the systems that each one met; labels have to be drawn by lot."
)


def chapters(report: StudyReport) -> tuple[Chapter, ...]:
    """Return all of the report that is text; chapters without a row are left out."""
    top = report.standings.get(PANEL, ())
    made = [
        Chapter("The report's own checks", CHECKS, (_checks(report),)),
        Chapter("Systems", SYSTEMS, (systems(report),)),
        Chapter("Ranks", RANKS, (ranks(report), _marks(report))),
        Chapter(
            "Loss against rank",
            LOSS,
            (_losses(report), beside([row.losses.get(PARTS[0]) for row in report.rows], top)),
            (PAPER,),
        ),
        Chapter("Judges", AUDIT, (_audits(report),)),
        Chapter("Judges together", TOGETHER, (_together(report), _alphas(report))),
        *_people(report),
        *_measured(report),
    ]
    kept = [chapter for chapter in made if any(table.rows for table in chapter.tables)]
    return (*kept, *_data(report))


def title(report: StudyReport) -> str:
    """Return what the report is called."""
    return f"Study {report.study.name}: {len(report.rows)} systems on {report.study.backbone}"


def sentences(report: StudyReport) -> tuple[str, ...]:
    """Return the verdict's sentences and what was judged, one each."""
    of = report.study
    homes = {case.scenario for case in report.prompts.values()}
    count = sum(one.pairs for one in report.audits)
    found = list(report.verdict.sentences)
    found.append(
        f"{count:,} pairs of answers to {len(of.prompts):,} prompts of {len(homes):,} scenarios "
        f"({of.part} part of {of.dataset}), each in both orders"
    )
    if report.findings:
        many = len(report.findings)
        found.append(
            f"the report's own checks found {many} thing{'s' * (many > 1)}: look at them before "
            "you trust any number"
        )
    found.append(PAPER)
    return tuple(found)


def _checks(report: StudyReport) -> Table:
    rows = [
        (one.kind, one.about or "-", one.text + (" (grave)" if one.grave else ""))
        for one in report.findings
    ]
    return Table(("check", "about", "finding"), tuple(rows), words=3)


def systems(report: StudyReport) -> Table:
    """Return what is known of each system beside what judges say."""
    stated = any(row.stated_joules is not None for row in report.rows)
    header = ["no.", "system", "targets", "LoRA rank", "rate", "parameters", "MB"]
    header += [f"{part} loss" for part in PARTS]
    header += ["perplexity", "Wh", *(["stated Wh"] if stated else [])]
    header += ["stopped", "F1", "words"]
    cells = []
    for at, row in enumerate(report.rows, 1):
        line = [str(at), row.system, row.targets, row.rank, row.learning_rate]
        line += ["-" if row.parameters is None else f"{row.parameters:,}", megabytes(row.bytes)]
        line += [_loss(row.losses.get(part)) for part in PARTS]
        line += ["-" if row.perplexity is None else f"{row.perplexity:.3f}", _hours(row.joules)]
        line += [_hours(row.stated_joules)] if stated else []
        line += [percent(row.stopped) if row.stopped else "-", _percent(row.f1)]
        line += [number(row.words.value) if row.words else "-"]
        cells.append(tuple(line))
    return Table(tuple(header), tuple(cells), words=3)


def ranks(report: StudyReport) -> Table:
    """Return shares of wins and ranks, by the panel and by each judge."""
    top, equal = report.standings.get(PANEL, ()), report.equal.get(PANEL, ())
    names = [name for name in report.standings if name != PANEL]
    alone = names == [*report.panel] and len(names) == 1
    header = ["no.", "system", "wins (95 %)", "rank"]
    header += [] if alone else [f"rank by {name}" for name in names]
    header += ["wins at equal length", "rank at equal length", "marks"]
    cells = []
    for at in sorted(range(len(top)), key=lambda at: top[at].rank):
        one, marks = top[at], mark(report, top[at].system)
        line = [str(at + 1), one.system, _percent(one.wins), places(one)]
        line += [] if alone else [places(report.standings[name][at]) for name in names]
        line += [_percent(equal[at].wins), places(equal[at])] if equal else ["-", "-"]
        cells.append((*line, "-" if marks is None else f"{marks:.2f}"))
    return Table(tuple(header), tuple(cells), words=2)


def _marks(report: StudyReport) -> Table:
    rows = [
        (name, *(f"{of[c].value:.2f}" if c in of else "-" for c in CRITERIA))
        for name, of in report.marks.items()
        if of
    ]
    return Table(("marks", *CRITERIA), tuple(rows))


def _losses(report: StudyReport) -> Table:
    rows = []
    for one in report.ranks:
        if one.judge == PANEL and len(report.panel) == 1:
            continue
        for of, adjusted in ((one.tau, one.adjusted), (one.rho, None)):
            known = of.value is not None and of.low is not None and of.high is not None
            shown = f"{of.value:+.2f} [{of.low:+.2f}, {of.high:+.2f}]" if known else "undefined"
            rows.append(
                (
                    f"{one.part} loss",
                    one.judge,
                    of.name,
                    str(of.n),
                    shown,
                    "-" if of.p is None else probability(of.p),
                    "-" if adjusted is None else probability(adjusted),
                )
            )
    header = ("loss", "judge", "coefficient", "systems", "value [95 %]", "p", "Holm")
    return Table(header, tuple(rows), words=3)


def _audits(report: StudyReport) -> Table:
    header = (
        *("judge", "kind", "pairs", "missing", "flips", "changed", "ties", "first"),
        *("length", "longer wins", "repeated", "own family"),
    )
    rows = [
        (
            one.judge,
            one.kind,
            f"{one.pairs:,}",
            f"{100 * one.missing.value:.1f}",
            percent(one.flips),
            f"{100 * one.changed.value:.1f}",
            f"{100 * one.ties.value:.1f}",
            _percent(one.first),
            _signed(one.length),
            f"{100 * one.longer.value:.1f}" if one.longer.of else "-",
            percent(one.repeated) if one.repeated.of else "-",
            ", ".join(one.own) or "-",
        )
        for one in report.audits
    ]
    return Table(header, tuple(rows), words=2)


def _together(report: StudyReport) -> Table:
    made = report.together
    if made is None:
        return Table(("judges", "alpha", "W"), ())
    rows = [("all", _plain(made.alpha), "-" if made.w is None else f"{made.w:.2f}", "-")]
    rows += [(f"{a}, {b}", "-", "-", f"{tau:+.2f}") for a, b, tau in made.taus]
    return Table(("judges", "alpha [95 %]", "W", "tau-b"), tuple(rows))


def _alphas(report: StudyReport) -> Table:
    of = report.together.marks if report.together else {}
    rows = [(name, "-" if value is None else f"{value:.2f}") for name, value in of.items()]
    return Table(("marks", "alpha"), tuple(rows))


def _people(report: StudyReport) -> Iterator[Chapter]:
    said = report.people
    if said is None:
        return
    tests = Table(
        ("judge", "people", "winning", "advantage", "may stand in"),
        tuple(
            (
                one.judge,
                str(one.people),
                "-" if one.winning is None else f"{100 * one.winning:.0f}",
                "-" if one.advantage is None else f"{100 * one.advantage:.0f}",
                one.why or ("yes" if one.passes else "no"),
            )
            for one in said.replaced
        ),
        words=1,
    )
    kappas = Table(
        ("who", "kappa [95 %]", "pairs"),
        tuple((f"{a}, {b}", _plain(of), f"{of.of:,}") for a, b, of in said.kappas),
    )
    wins = Table(
        ("system", "wins (95 %)", "labels"),
        tuple((name, _percent(of), str(of.of)) for name, of in said.wins.items()),
    )
    yield Chapter("People", PEOPLE, (tests, kappas, wins))


def _measured(report: StudyReport) -> Iterator[Chapter]:
    """Yield what quantization changes and what the device takes, as tel-eval measured it."""
    made = report.measured
    if made is None:
        return
    found = [
        Table(
            tuple(columns), tuple(tuple(show(one) for show in columns.values()) for one in beside)
        )
        for _, columns in tables.AGAINST
        if (beside := made.get("against", ()))
    ]
    notes = tuple(f"{one['variant']}: {one['verdict']}" for one in made.get("against", ()))
    text = "Exported types beside the largest of their kind (docs/care.md)."
    yield Chapter("Quantization", text, tuple(found), notes)
    times = Table(
        ("variant", "ms a dialogue", "peak MB"),
        tuple(
            (
                str(one["variant"]["name"]),
                number(one["milliseconds_p50"]),
                megabytes(one["memory_peak"]),
            )
            for one in made.get("variants", ())
        ),
    )
    text = "Median of greedy answers to whole dialogues, on the machine that tel-eval ran on."
    yield Chapter("Time and memory", text, (times,))


def _data(report: StudyReport) -> Iterator[Chapter]:
    """Yield what the data set is like, by its files.json."""
    made = report.data
    if made is None:
        return
    source, refused = made.get("source") or {}, made.get("rejects") or {}
    notes = [
        f"written by {source.get('model', '?')} ({source.get('kind', '?')}), seed "
        f"{made.get('seed', '?')}, licence {made.get('licence', '?')}"
    ]
    if refused:
        notes.append("refused: " + ", ".join(f"{gate} {n}" for gate, n in refused.items()))
    try:
        notes += dialogues.lines(made["panel"])
    except (KeyError, TypeError, ValueError):
        notes.append("no panel in files.json")
    yield Chapter("Data", f"files.json of {report.study.dataset}.", (), tuple(notes))


def text(report: StudyReport, full: bool = False) -> str:
    """Return what the terminal shows: verdict, who judged, ranks; with `full` all tables."""
    lines = [*_wrapped(f"{report.verdict.headline}."), "", *_wrapped(report.label), ""]
    for one in sentences(report):
        lines += _wrapped(f"- {one}")
    lines.append("")
    if full:
        for chapter in chapters(report):
            lines += [chapter.title, "", *_wrapped(chapter.text), ""]
            for table in chapter.tables:
                lines += [*aligned(table), ""] if table.rows else []
            lines += [f"- {note}" for note in chapter.notes]
            lines.append("")
        return "\n".join(lines).rstrip()
    top = report.standings.get(PANEL, ())
    rows = [
        _short(report, at, top[at]) for at in sorted(range(len(top)), key=lambda i: top[i].rank)
    ]
    lines += aligned(Table(("no.", "system", "val. loss", "wins (95 %)", "rank"), tuple(rows), 2))
    lines += ["", "all tables: tel-report --study --full, or report.md"]
    for found in report.findings:
        lines += ["", *_wrapped(f"{'GRAVE: ' if found.grave else ''}{found.text}")]
    return "\n".join(lines)


def _short(report: StudyReport, at: int, one: Standing) -> tuple[str, ...]:
    loss = _loss(report.rows[at].losses.get(PARTS[0]))
    return str(at + 1), one.system, loss, _percent(one.wins), places(one)


def markdown(report: StudyReport, figures: Sequence[str]) -> str:
    """Return report.md; `figures` are names of plots' files beside it."""
    parts = [
        f"# {escaped(title(report))}",
        f"**{escaped(sentence(report.verdict.headline))}.**",
        escaped(report.label),
        "\n".join(f"- {escaped(one)}" for one in sentences(report)),
        *(f"![{name}]({name})" for name in figures),
    ]
    for chapter in chapters(report):
        parts += [f"## {escaped(chapter.title)}", escaped(chapter.text)]
        parts += [tabled(table) for table in chapter.tables if table.rows]
        parts.append("\n".join(f"- {escaped(note)}" for note in chapter.notes))
    where = "Answers side by side: [report.html](report.html). " if figures else ""
    parts.append(f"{where}All numbers: [report.json](report.json). {escaped(report.label)}")
    return "\n\n".join(part for part in parts if part) + "\n"


def sentence(said: str) -> str:
    """Return a text with a capital at its beginning."""
    return said[:1].upper() + said[1:]


def _wrapped(said: str) -> list[str]:
    rest = "  " * said.startswith("- ")
    return textwrap.wrap(said, NARROW, subsequent_indent=rest, break_on_hyphens=False)


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _hours(joules: float | None) -> str:
    return "-" if joules is None else f"{joules / HOUR:,.3f}"


def _percent(of: Mean | None) -> str:
    if of is None:
        return "-"
    if of.low is None or of.high is None:
        return f"{100 * of.value:.1f}"
    return f"{100 * of.value:.1f} [{100 * max(0.0, of.low):.1f}-{100 * min(1.0, of.high):.1f}]"


def _plain(of: Mean | None) -> str:
    if of is None:
        return "-"
    ends = "" if of.low is None or of.high is None else f" [{of.low:.2f}, {of.high:.2f}]"
    return f"{of.value:.2f}{ends}"


def _signed(of: Mean | None) -> str:
    if of is None:
        return "-"
    ends = "" if of.low is None or of.high is None else f" [{of.low:+.2f}, {of.high:+.2f}]"
    return f"{of.value:+.2f}{ends}"
