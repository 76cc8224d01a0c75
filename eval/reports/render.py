"""The report in words: plain for the terminal, Markdown for GitHub. `page` makes the HTML."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from tel_edge.eval.findings import sizes
from tel_edge.eval.findings.findings import Report, formats
from tel_edge.eval.findings.ladder import Best
from tel_edge.eval.reports import card, paper_tables, report_tables, router_tables
from tel_edge.eval.reports.report_tables import MARK, floor
from tel_edge.eval.reports.tables import Table, aligned, escaped, megabytes, number, tabled

# Columns of the terminal's tables, and of what is shown without being asked for all.
WIDTH, NARROW = 110, 80


@dataclass(frozen=True)
class Chapter:
    """A heading of the report, what there is to say, and its tables."""

    title: str
    text: str
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()


def chapters(report: Report) -> tuple[Chapter, ...]:
    """Return all of the report that is text, in its order; chapters without a row are left out."""
    made = [
        Chapter("The report's own checks", CHECKS, (report_tables.checks(report),)),
        Chapter("Ladder", ladder_text(report), (report_tables.ladder(report),)),
        *(
            Chapter(
                section.title,
                "",
                (report_tables.results(report, section),),
                tuple(note for note in (floor(section), *section.notes) if note),
            )
            for section in report.sections
        ),
        Chapter("What the verdicts rest on", STATISTICS, (report_tables.statistics(report),)),
        *_paper(report),
        Chapter(
            "Leakage",
            LEAKAGE,
            (
                report_tables.leakage(report),
                report_tables.rotations(report),
                report_tables.positions(report),
                report_tables.baselines(report),
            ),
        ),
        Chapter("Memory and time", FOOTPRINT, (report_tables.footprint(report),)),
        Chapter(
            "Disk",
            "One backbone and all adapters, or a merged model for each category.",
            (report_tables.disk(report),),
        ),
        Chapter("Reliability", RELIABILITY, (report_tables.reliability(report),)),
        Chapter("Training", "", (report_tables.trainings(report),)),
        *_router(report),
        Chapter("Settings", units(report), (report_tables.settings(report),)),
    ]
    return tuple(chapter for chapter in made if any(table.rows for table in chapter.tables))


CHECKS = (
    "What a sound pipeline does not do. Nothing here is decided by itself: look at what is named "
    "before you trust the numbers below."
)
STATISTICS = (
    "Maj@k exact: its expectation over all draws. p: exact McNemar test of the changed answers, "
    "then with Holm's correction over the categories. KL: of the labels' distribution from the "
    "reference's, in nats. Calibration error: expected, ten bins. Label mass: what the model gives "
    "to all labels together. All others in percent."
)
LEAKAGE = (
    "How much of the score needs no understanding. Baselines are fitted on the train part; "
    f"{MARK} marks a score whose interval the best of them reaches. "
    "Near-duplicates are scored questions much like one of the train part. All orders: every "
    "question asked with its options in every cyclic order (tel-eval --rotations)."
)
FOOTPRINT = (
    "Anonymous memory is the process's own, file memory is mapped and the system may drop it; "
    "the largest over the categories. First answer: from opening the engine. A question's "
    "milliseconds are its share of the decode that it was packed into. Energy only where the "
    "machine has a counter, with all else that ran."
)
RELIABILITY = "Picks by the probability that the model gave them, over all categories."


def _paper(report: Report) -> list[Chapter]:
    """Return the paper's tables, and behind the last of them what is to say of them."""
    made = paper_tables.tables(report.paper, report.parts)
    said = paper_tables.notes(report.paper, report.parts)
    return [
        Chapter(title, "", (table,), said if at == len(made) - 1 else ())
        for at, (title, table) in enumerate(made)
    ]


def _router(report: Report) -> list[Chapter]:
    if not report.router:
        return []
    made = report.router
    tables = router_tables.figures(made), router_tables.matrix(made)
    return [Chapter("Router", router_tables.text(made), tables)]


def ladder_text(report: Report) -> str:
    """Return how the table of all variants is read."""
    count = len(report.sections)
    return (
        f"Pass@1 and Maj@k: plain means over {count} "
        f"categor{'y' if count == 1 else 'ies'}. The rest is over all "
        f"their questions, against {report.reference}: points with the 95 % interval of paired "
        "shares (Tango), exact McNemar test. no loss: not significant at 5 %, in no category "
        "either, and bounded below 1 point; n too small: so few questions could not show that; "
        "unclear: neither. front: no smaller variant is as accurate."
    )


def units(report: Report) -> str:
    """Return the sentence that explains the columns."""
    parts = ", of ONNX with data file and tokenizer," if "onnx" in formats(report) else ""
    return (
        f"{report.part} part. Pass@1 and Maj@k in percent with 95 % Wilson intervals; points: "
        f"Pass@1 less that of {report.reference}; lost/won: answers that turned wrong, and right; "
        f"{MARK}: a trivial baseline does as well; disk: backbone{parts} and adapter; "
        "MB: 10^6 bytes"
    )


def verdict(report: Report, compared: bool = True) -> tuple[str, ...]:
    """Return which variant to deploy and what that rests on, a sentence each.

    With `compared` also how the best variants of several formats compare.
    """
    lines = [card.headline(report), *card.sentences(report)]
    own = {rung.format for rung in report.ladder if rung.kind in ("lora", "merged")}
    if compared and len(own) > 1:
        lines += _formats(report, sorted(own, key=sizes.rank))
    return tuple(lines)


def _formats(report: Report, of: Sequence[str]) -> tuple[str, ...]:
    """Return which format's best variant is smaller and which took less time, as measured."""
    made, names = report.formats, {each.format for each in report.formats}
    if without := [name.upper() for name in of if name not in names]:
        return (
            f"no {' or '.join(without)} variant is shown to answer all questions as "
            f"{report.reference} does without a significant loss, so the formats are not compared",
        )
    each = "; ".join(
        f"{_named(best)}, {megabytes(best.bytes)} MB, {number(best.median)} ms a question, "
        f"{best.verdict}"
        for best in made
    )
    small, quick = min(made, key=lambda m: m.bytes), min(made, key=lambda m: m.median)
    count, others = len(quick.milliseconds), [best for best in made if best is not quick]
    won = sum(
        all(value < other.milliseconds[at] for other in others)
        for at, value in quick.milliseconds.items()
    )
    one_size = len({best.bytes for best in made}) == 1
    size = "they are of one size" if one_size else f"{_named(small)} is the smallest"
    time = "they took the same time"
    if len({best.median for best in made}) > 1:
        # One that is both is named once.
        who = "" if small is quick and not one_size else f"{_named(quick)} "
        times = f", in {won} of {count} categories" if count > 1 else ""
        time = f"{who}took the least time{times}"
    return (
        f"the smallest variant of each format without a significant loss: {each} "
        "(p50, median over the categories)",
        f"of these {size} and {time}; each was timed once, on the machine and under the load of "
        "its run, so a small difference in time may be chance",
    )


def _named(made: Best) -> str:
    return f"{made.variant} ({made.format.upper()})"


def text(report: Report, full: bool = False) -> str:
    """Return what the terminal shows: the decision and a narrow table, with `full` all tables."""
    shown = [*_card(report, full), ""]
    shown += _full(report) if full else _narrow(report)
    if report.checks:
        shown.append("THE REPORT'S OWN CHECKS")
        for finding in report.checks:
            doubt = "" if finding.certain else "perhaps: "
            where = " ".join(filter(None, (finding.category, finding.variant)))
            shown += _wrapped(f"{where}: {doubt}{finding.text}", "    ", WIDTH if full else NARROW)
        shown.append("")
    return "\n".join(shown).rstrip()


def _card(report: Report, full: bool) -> list[str]:
    first, *said = verdict(report, compared=full)
    word = report.decision.verdict.removesuffix(" in part")
    made, lines = card.table(report), _wrapped(word.upper() + first[len(word) :], "", NARROW)
    if made.rows:
        lines += ["", *aligned(made), "", *_wrapped(card.columns(report), "", NARROW)]
    lines.append("")
    for sentence in said:
        lines += _wrapped(f"- {sentence}", "", NARROW)
    if typed := card.commands(report):
        lines += ["", "to ship it:", *(f"    {line}" for line in typed)]
    return lines


def _narrow(report: Report) -> list[str]:
    """Return every variant over all categories in 80 columns."""
    made, left = report_tables.short(report)
    more = f"{left} variants more; " if left else ""
    end = f"{more}all tables: tel-report --full, or report.md"
    return [*aligned(made), "", end, ""] if made.rows else []


def _full(report: Report) -> list[str]:
    tables = [report_tables.results(report, section) for section in report.sections]
    rows = tuple(row for table in tables for row in table.rows)
    head, *lines = aligned(Table(tables[0].header, rows, tables[0].words))
    shown, at = [head, "-" * len(head)], 0
    for section in report.sections:
        shown += lines[at : at + len(section.rows)]
        at += len(section.rows)
        for note in filter(None, (floor(section), *section.notes)):
            shown += _wrapped(note, "    ")
        shown.append("")
    shown += [*_wrapped(units(report), ""), ""]
    # Before and after stand in the first table already.
    paper = [
        each
        for each in paper_tables.tables(report.paper, report.parts)
        if not each[0].startswith("Figures")
    ]
    for title, table in (
        ("all categories together", report_tables.ladder(report)),
        ("leakage: how much of the score needs no understanding", report_tables.leakage(report)),
        *paper,
        ("one backbone and all adapters, or a merged model for each category",
         report_tables.disk(report)),
    ):  # fmt: skip
        if table.rows:
            shown += [title, "", *aligned(table), ""]
    return shown


def markdown(report: Report, figures: bool) -> str:
    """Return `report.md`; `figures` says that report.html with its plots lies beside it."""
    first, *others = verdict(report)
    made = card.table(report)
    parts = [
        f"# {escaped(report.backbone)}: accuracy and footprint",
        f"**{escaped(first[:1].upper() + first[1:])}**",
        tabled(made) if made.rows else "",
        escaped(card.columns(report)),
        "\n".join(f"- {escaped(each)}" for each in others),
        "\n".join(("```", *card.commands(report), "```")) if card.commands(report) else "",
    ]
    for chapter in chapters(report):
        parts += [f"## {escaped(chapter.title)}", escaped(chapter.text)]
        parts += [tabled(table) for table in chapter.tables if table.rows]
        parts.append("\n".join(f"- {escaped(note)}" for note in chapter.notes))
    if figures:
        parts.append("Plots: [report.html](report.html). All numbers: [report.json](report.json).")
    else:
        parts.append("All numbers: [report.json](report.json).")
    return "\n\n".join(part for part in parts if part) + "\n"


def _wrapped(sentence: str, indent: str, width: int = WIDTH) -> list[str]:
    rest = indent + "  " * sentence.startswith("- ")
    return textwrap.wrap(
        sentence, width, initial_indent=indent, subsequent_indent=rest, break_on_hyphens=False
    )
