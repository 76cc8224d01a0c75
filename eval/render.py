"""The report as text: plain for the terminal, Markdown for GitHub. `page` makes the HTML."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

from tel_edge.eval.findings import Report, Row, Section, best, formats
from tel_edge.eval.router import Measured
from tel_edge.eval.sizes import Best, Footprint
from tel_edge.eval.statistics import Share

WIDTH = 110


@dataclass(frozen=True)
class Table:
    """Cells as text. The first `words` columns are flushed left, the others right."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1


def results(report: Report, section: Section) -> Table:
    """Return the table of one category, a row for each variant.

    There is a column for the format as soon as one of them is not GGUF.
    """
    named = ("format",) if set(formats(report)) != {"gguf"} else ()
    votes = sorted({row.summary.k for each in report.sections for row in each.rows})
    header = (
        "category",
        "variant",
        *named,
        "n",
        "Pass@1 (95 %)",
        f"Maj@{votes[0] if len(votes) == 1 else 'k'} (95 %)",
        "points",
        "disk MB",
        "memory MB",
        "ms p50 / p95",
    )
    rows = tuple(_cells(row, bool(named)) for row in section.rows)
    return Table(header, rows, words=2 + len(named))


def floor(section: Section) -> str:
    """Return the sentence on chance and the best trivial baseline, or nothing."""
    made, top = section.baselines, best(section.baselines)
    if not made or not top:
        return ""
    return f"chance {made.chance:.1%}, best trivial baseline {top.name} {top.share.value:.1%}"


def footprint(report: Report) -> Table:
    """Return the disk table: one backbone with all adapters against a merged model each."""
    return Table(
        ("type", "adapters", "backbone MB", "adapters MB", "together MB", "merged models MB"),
        tuple(
            (
                f"{made.quant} ({made.format.upper()})",
                str(made.categories),
                megabytes(made.backbone),
                megabytes(made.adapters),
                megabytes(made.together),
                _merged(made),
            )
            for made in report.footprints
        ),
    )


def _merged(made: Footprint) -> str:
    """Return the sum that the disk of a merged model each is."""
    shared = f" + {megabytes(made.tokenizer)}" if made.tokenizer else ""
    each = megabytes(made.backbone - made.tokenizer)
    return f"{made.categories} x {each}{shared} = {megabytes(made.merged)}"


def baselines(report: Report) -> Table:
    """Return every trivial baseline of every category."""
    return Table(
        ("category", "baseline", "n", "right (95 %)"),
        tuple(
            (section.category, made.name, str(made.share.of), percent(made.share))
            for section in report.sections
            if section.baselines
            for made in section.baselines.baselines
        ),
        words=2,
    )


def trainings(report: Report) -> Table:
    """Return time, size and configuration of each adapter's training."""
    return Table(
        ("category", "configuration", "seconds", "parameters"),
        tuple(
            (
                made.category,
                ", ".join(f"{name} {value}" for name, value in sorted(made.config.items())) or "-",
                "-" if made.seconds is None else f"{made.seconds:,.0f}",
                "-" if made.parameters is None else f"{made.parameters:,}",
            )
            for made in report.trainings
        ),
        words=2,
    )


def settings(report: Report) -> Table:
    """Return what the results were made with."""
    return Table(("setting", "value"), tuple(sorted(report.settings.items())), words=2)


def units(report: Report) -> str:
    """Return the sentence that explains the columns."""
    parts = ", of ONNX with data file and tokenizer," if "onnx" in formats(report) else ""
    return (
        "Pass@1 and Maj@k in percent with 95 % Wilson intervals; points: Pass@1 less that of "
        f"{report.reference}; disk: backbone{parts} and adapter; memory: anonymous / file-backed, "
        "of which the system may drop the latter; MB: 10^6 bytes; ms: a question's share of the "
        "decode that it was packed into"
    )


def verdict(report: Report) -> tuple[str, ...]:
    """Return which variant is the smallest without a loss seen, then what to think of that."""
    found = report.smallest
    of = f"all {found.categories} categories" if found.categories > 1 else "the one category"
    lines = [
        f"smallest variant whose Pass@1 interval overlaps that of {report.reference} in {of}: "
        f"{found.variant}, {megabytes(found.bytes)} MB",
        "overlap means that no loss was seen with so many questions, not that there is none",
    ]
    if found.bare:
        lines.append(
            f"without an adapter {', '.join(found.bare)} overlaps too: "
            "these results do not show that the adapters help"
        )
    if len(formats(report)) > 1:
        lines += _formats(report)
    return tuple(lines)


def _formats(report: Report) -> tuple[str, ...]:
    """Return which format's best variant is smaller and which took less time, as measured."""
    made, names = report.formats, {each.format for each in report.formats}
    if without := [name.upper() for name in formats(report) if name not in names]:
        return (
            f"no {' or '.join(without)} variant overlaps {report.reference} everywhere, "
            "so the formats are not compared",
        )
    each = "; ".join(
        f"{_named(best)}, {megabytes(best.bytes)} MB, {_number(best.median)} ms a question"
        for best in made
    )
    small, quick = min(made, key=lambda m: m.bytes), min(made, key=lambda m: m.median)
    of, others = len(quick.milliseconds), [best for best in made if best is not quick]
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
        time = f"{who}took the least time" + (f", in {won} of {of} categories" if of > 1 else "")
    return (
        f"the smallest variant of each format that overlaps {report.reference} so: {each} "
        "(p50, median over the categories)",
        f"of these {size} and {time}; each was timed once, on the machine and under the load of "
        "its run, so a small difference in time may be chance",
    )


def _named(made: Best) -> str:
    return f"{made.variant} ({made.format.upper()})"


def text(report: Report) -> str:
    """Return what the terminal shows, lines of about 110 columns."""
    tables = [results(report, section) for section in report.sections]
    rows = tuple(row for table in tables for row in table.rows)
    whole = Table(tables[0].header, rows, tables[0].words)
    head, *lines = aligned(whole)
    shown, at = [head, "-" * len(head)], 0
    for section in report.sections:
        shown += lines[at : at + len(section.rows)]
        at += len(section.rows)
        for note in filter(None, (floor(section), *section.notes)):
            shown += _wrapped(note, "    ")
        shown.append("")
    if report.footprints:
        shown += ["one backbone and all adapters, or a merged model for each category", ""]
        shown += [*aligned(footprint(report)), ""]
    return "\n".join([*shown, *_wrapped(units(report), "")])


def markdown(report: Report, figures: bool) -> str:
    """Return `report.md`; `figures` says that report.html with its plots lies beside it."""
    parts = [
        f"# {escaped(report.backbone)}: accuracy and footprint",
        *map(escaped, verdict(report)),
    ]
    for section in report.sections:
        parts += [f"## {escaped(section.title)}", tabled(results(report, section))]
        notes = [note for note in (floor(section), *section.notes) if note]
        parts.append("\n".join(f"- {escaped(note)}" for note in notes))
    if report.footprints:
        parts += ["## Disk", "One backbone and all adapters, or a merged model for each category."]
        parts.append(tabled(footprint(report)))
    if (made := baselines(report)).rows:
        parts += ["## Trivial baselines", tabled(made)]
    if report.trainings:
        parts += ["## Training", tabled(trainings(report))]
    if report.router:
        parts += ["## Router", escaped(router_text(report.router))]
        parts += [tabled(router_figures(report.router)), tabled(router_matrix(report.router))]
    parts += ["## Settings", tabled(settings(report)), escaped(units(report))]
    if figures:
        parts.append("Plots: [report.html](report.html). All numbers: [report.json](report.json).")
    else:
        parts.append("All numbers: [report.json](report.json).")
    return "\n\n".join(part for part in parts if part) + "\n"


def router_text(made: Measured) -> str:
    """Return what the router is, how it was measured and how its tables are read."""
    trained = "" if made.seconds is None else f", trained in {made.seconds:,.0f} s"
    return (
        f"A request without a category goes to one of {len(made.whole.categories)}, chosen by a "
        f"linear model over hashed n-grams ({megabytes(made.bytes)} MB{trained}; "
        f"{made.microseconds_p50:,.0f} µs a request), or below a probability of "
        f"{made.threshold:.2f} to the bare backbone. Measured on the {made.part} part of "
        f"{made.dataset}, {made.whole.right.of:,} questions. It tells these categories from each "
        "other; a request that belongs to none of them is seldom noticed. Rows of the second table "
        "are what the requests (question and choices) are, columns where they went."
    )


def router_figures(made: Measured) -> Table:
    """Return the router's shares, with the choices and without."""
    wordings = {
        "right (an abstention is wrong)": "right",
        "right among those routed": "routed",
        "right without abstaining": "forced",
        "abstained": "abstained",
    }
    return Table(
        ("percent (95 %)", "question and choices", "question alone"),
        tuple(
            (wording, *(percent(getattr(each, name)) for each in (made.whole, made.alone)))
            for wording, name in wordings.items()
        ),
    )


def router_matrix(made: Measured) -> Table:
    """Return how many requests of each category went where."""
    return Table(
        ("", *made.whole.categories, "abstained"),
        tuple(
            (name, *(f"{count:,}" for count in row))
            for name, row in zip(made.whole.categories, made.whole.counts, strict=True)
        ),
    )


def aligned(table: Table) -> list[str]:
    """Return the table as lines of equal width, the header first."""
    rows = [table.header, *table.rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if at < table.words else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def tabled(table: Table) -> str:
    """Return the table in GitHub's Markdown."""
    marks = (":---" if at < table.words else "---:" for at in range(len(table.header)))
    rows = [table.header, tuple(marks), *(tuple(map(escaped, row)) for row in table.rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def escaped(cell: str) -> str:
    """Return the text so that Markdown shows it as it is, in a table too."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(cell.split()))


def percent(made: Share) -> str:
    """Return a share and its interval in percent."""
    return f"{made.value * 100:.1f} [{made.low * 100:.1f}-{made.high * 100:.1f}]"


def megabytes(count: int | None) -> str:
    """Return bytes in units of 10^6."""
    return "-" if count is None else _number(count / 1e6)


def _cells(row: Row, named: bool) -> tuple[str, ...]:
    made = row.summary
    return (
        made.category,
        made.variant.name,
        *((made.variant.format.upper(),) if named else ()),
        f"{made.questions:,}",
        percent(made.pass1),
        percent(made.majority),
        "-" if row.points is None else f"{round(row.points, 1) + 0.0:+.1f}",
        megabytes(row.disk),
        f"{megabytes(made.memory_anonymous)} / {megabytes(made.memory_file)}",
        f"{_number(made.milliseconds_p50)} / {_number(made.milliseconds_p95)}",
    )


def _number(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _wrapped(sentence: str, indent: str) -> list[str]:
    return textwrap.wrap(
        sentence, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
