"""The decision card: what stands first in the terminal, in Markdown and on the page."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from tel_edge.eval.findings.decision import DEPLOY, IN_PART, UNDECIDED
from tel_edge.eval.findings.findings import Report
from tel_edge.eval.findings.ladder import Rung
from tel_edge.eval.findings.worth import WORTH, Worth
from tel_edge.eval.reports.tables import Table, megabytes, number, percent, points
from tel_edge.runtime.bundles import formats

# The benchmark inside the package.
EMBEDDED = "ot-mini"
# Columns of the card's table, in the words of `columns`.
COLUMNS = ("category", "verdict", "Pass@1 (95 %)", "guess", "bare", "trivial", "all orders")


def headline(report: Report) -> str:
    """Return the verdict in one line."""
    return report.decision.headline


def sentences(report: Report) -> tuple[str, ...]:
    """Return what it costs, how sure it is and what it leaves out, a sentence each."""
    return tuple(_sentences(report))


def _sentences(report: Report) -> Iterator[str]:
    made = report.decision
    rung = chosen(report)
    yield _measured(report)
    if rung is not None:
        yield f"it takes {cost(report, rung)}"
    for each in made.categories:
        if each.verdict != WORTH:
            yield f"{each.category}: {each.verdict}, {each.reason}"
    yield from made.sentences
    if made.left_out:
        names = "; ".join(
            f"{name} ({', '.join(lacks)})" for name, lacks in sorted(made.left_out.items())
        )
        yield f"left out, not scored on every category: {names}"
    without = [section.category for section in report.sections]
    decided = {each.category for each in made.categories}
    if made.categories and (bare := [name for name in without if name not in decided]):
        yield f"no adapter in {', '.join(bare)}: the bare backbone answers there"
    if report.checks and made.verdict != UNDECIDED:
        count = len(report.checks)
        yield (
            f"the report's own checks found {count} thing{'s' if count > 1 else ''} that should "
            "not be so: look at them before you trust any number"
        )


def _measured(report: Report) -> str:
    """Return on what all of it was measured, and what that says of other questions."""
    asked = [section.rows[0].summary for section in report.sections if section.rows]
    names = " and ".join(dict.fromkeys(summary.dataset for summary in asked))
    count = sum(summary.questions for summary in asked)
    toy = ", whose facts are invented: it says nothing of real ones" if names == EMBEDDED else ""
    return (
        f"measured with {report.backbone} on the {report.part} part of {names}, {count:,} questions"
        f" in {len(asked)} categor{'y' if len(asked) == 1 else 'ies'}{toy}"
    )


def cost(report: Report, rung: Rung) -> str:
    """Return disk, memory and time of a variant, and on which machine that was."""
    there = report.device.get(rung.variant)
    used = there.memory if there else rung.memory
    memory = f", {megabytes(used)} MB of memory beside the mapped file" if used is not None else ""
    disk = f"{megabytes(rung.bytes)} MB on disk{memory}"
    if there:
        where = _where(there.machine, there.threads, there.date)
        return f"{disk}, {number(there.milliseconds)} ms a question (tel-bench on {where})"
    slowest = f" to {number(rung.slowest)}" if rung.slowest > rung.milliseconds else ""
    return (
        f"{disk}, {number(rung.milliseconds)}{slowest} ms a question (p50, median and largest of "
        f"the categories; {machine(report, rung.variant)})"
    )


def _where(machine: str, threads: object, date: object) -> str:
    said = [machine, f"{threads} threads" if threads else "", str(date or "")]
    return ", ".join(filter(None, said))


def machine(report: Report, variant: str) -> str:
    """Return where and when a variant was timed, or that nobody noted it."""
    found = [
        row.summary.measured
        for section in report.sections
        for row in section.rows
        if row.summary.variant.name == variant and row.summary.measured
    ]
    if not found:
        return "nobody noted on which machine"

    def joined(key: str) -> str:
        values = (str(each[key]) for each in found if each.get(key) is not None)
        return " or ".join(dict.fromkeys(values))

    busy = max((each.get("load") or 0 for each in found), default=0)
    where = _where(joined("machine"), joined("threads"), joined("date"))
    return where + (f", beside a load of {busy:.1f} by others" if busy >= 1 else "")


def chosen(report: Report) -> Rung | None:
    """Return the variant that the decision is about, over all categories."""
    return next((r for r in report.ladder if r.variant == report.decision.variant), None)


def table(report: Report) -> Table:
    """Return what the chosen variant is worth in each category."""
    made = report.decision
    return Table(COLUMNS, tuple(_row(each, made.variant) for each in made.categories), words=2)


def columns(report: Report) -> str:
    """Return what the columns of `table` mean, "" where it has no row."""
    made = report.decision.categories
    if not made:
        return ""
    bare = " or ".join(dict.fromkeys(each.bare for each in made if each.bare)) or "none"
    orders = " or ".join(dict.fromkeys(each.orders_of for each in made if each.orders_of))
    own = orders == report.decision.variant
    asked = f"over all orders of the options{'' if own else f' (*: of {orders})'}"
    asked = asked if orders else "not asked"
    return (
        f"Pass@1 of {report.decision.variant} in the benchmark's order of options; guess: of "
        f"guessing; bare, trivial: points over the backbone without adapter ({bare}) and over the "
        f"best rule without a model; all orders: Pass@1 {asked}"
    )


def _orders(each: Worth, variant: str | None) -> str:
    shown = f"{100 * each.all_orders.value:.1f}" if each.all_orders else "-"
    return shown if each.orders_of == variant else f"{shown}*"


def _row(each: Worth, variant: str | None) -> tuple[str, ...]:
    return (
        each.category,
        "no deploy" if each.verdict == "do not deploy" else each.verdict,
        percent(each.pass1),
        "-" if each.chance is None else f"{100 * each.chance:.0f}",
        "-" if each.over_bare is None else points(each.over_bare).split(" ")[0],
        "-" if each.over_trivial is None else points(each.over_trivial).split(" ")[0],
        "-" if each.all_orders is None else _orders(each, variant),
    )


def commands(report: Report) -> tuple[str, ...]:
    """Return what to type to ship it, nothing where there is nothing to ship."""
    rung, budget = chosen(report), report.decision.budget
    if rung is None or report.decision.verdict not in (DEPLOY, IN_PART):
        return ()
    if rung.texts:
        bundle = (report.home or Path("tel-workspace")) / "bundles" / report.backbone
        # A bundle's decision is about letters.
        option = f"{formats.option(rung.format)} --quant {rung.quant}"
        return (f"tel-run --bundle {bundle}{option} --protocol generate questions.jsonl",)
    limits = (
        ("--margin", 100 * budget.margin if budget != type(budget)() else None),
        ("--max-mb", None if budget.bytes is None else budget.bytes / 1e6),
        ("--max-ms", budget.milliseconds),
        ("--max-memory", None if budget.memory is None else budget.memory / 1e6),
    )
    asked = "".join(f" {name} {value:g}" for name, value in limits if value is not None)
    asked += "".join(f" --bench {shlex.quote(str(path))}" for path in report.bench)
    place = f" --workspace {shlex.quote(str(report.home))}" if report.home else ""
    return (
        f"tel-report --backbone {report.backbone}{place}{asked} --write --ship tel-deploy",
        "tel-run --bundle tel-deploy questions.jsonl",
    )
