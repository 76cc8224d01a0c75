"""The decision card: what stands first in the terminal, in Markdown and on the page."""

from __future__ import annotations

from collections.abc import Iterator

from tel_edge.eval.findings.decision import DEPLOY, IN_PART, WORTH, Worth
from tel_edge.eval.findings.findings import Report
from tel_edge.eval.findings.ladder import Rung
from tel_edge.eval.reports.tables import Table, megabytes, number, percent, points
from tel_edge.runtime.bundles import formats


def headline(report: Report) -> str:
    """Return the verdict in one line."""
    return report.decision.headline


def sentences(report: Report) -> tuple[str, ...]:
    """Return what it costs, how sure it is and what it leaves out, a sentence each."""
    return tuple(_sentences(report))


def _sentences(report: Report) -> Iterator[str]:
    made = report.decision
    rung = chosen(report)
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
    if report.checks:
        count = len(report.checks)
        yield (
            f"the report's own checks found {count} thing{'s' if count > 1 else ''} that should "
            "not be so: look at them before you trust any number"
        )


def cost(report: Report, rung: Rung) -> str:
    """Return disk, memory and time of a variant, and on which machine that was."""
    memory = f", {megabytes(rung.memory)} MB of memory" if rung.memory is not None else ""
    where = machine(report, rung.variant)
    return (
        f"{megabytes(rung.bytes)} MB on disk{memory}, {number(rung.milliseconds)} ms a question "
        f"(p50, median over the categories; {where})"
    )


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
    said = []
    for key, form in (("machine", "{}"), ("threads", "{} threads"), ("date", "{}")):
        values = list(dict.fromkeys(str(each[key]) for each in found if each.get(key) is not None))
        if values:
            said.append(form.format(" or ".join(values)))
    busy = max((each.get("load") or 0 for each in found), default=0)
    return ", ".join(said) + (f", beside a load of {busy:.1f} by others" if busy >= 1 else "")


def chosen(report: Report) -> Rung | None:
    """Return the variant that the decision is about, over all categories."""
    return next((r for r in report.ladder if r.variant == report.decision.variant), None)


def table(report: Report) -> Table:
    """Return what the chosen variant is worth in each category."""
    return Table(
        ("category", "Pass@1 (95 %)", "guess", "to bare", "to trivial", "all orders", "verdict"),
        tuple(_row(each) for each in report.decision.categories),
    )  # fmt: skip


def _row(each: Worth) -> tuple[str, ...]:
    return (
        each.category,
        percent(each.pass1),
        "-" if each.chance is None else f"{100 * each.chance:.0f}",
        "-" if each.over_bare is None else points(each.over_bare).split(" ")[0],
        "-" if each.over_trivial is None else points(each.over_trivial).split(" ")[0],
        "-" if each.all_orders is None else f"{100 * each.all_orders.value:.1f}",
        each.verdict,
    )


def commands(report: Report) -> tuple[str, ...]:
    """Return what to type to ship it, nothing where there is nothing to ship."""
    rung = chosen(report)
    if rung is None or report.decision.verdict not in (DEPLOY, IN_PART):
        return ()
    return (
        f"tel-report --backbone {report.backbone} --write",
        f"tel-run --bundle {report.backbone}{formats.option(rung.format)} --quant {rung.quant}",
    )
