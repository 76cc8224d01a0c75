"""The plots of a study as inline SVG, in the look of the report's (`reports.plots`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tel_edge.eval.care.judges.verdicts import PANEL
from tel_edge.eval.care.study.found import StudyReport, StudyRow
from tel_edge.eval.care.study.losses import PARTS
from tel_edge.eval.care.study.strength import Standing
from tel_edge.eval.reports.plots import COLOURS, INK, STYLE, WIDE, Plot, keyed, shown, svg
from tel_edge.runtime.extras import need

HOUR = 3600.0
NUMBERS = "Numbers are those of the table's rows; colours are the adapted modules."
Draw = Callable[[Any, StudyReport], None]
Points = Sequence[tuple[int, float, Standing]]


def plots(report: StudyReport) -> tuple[Plot, ...]:
    """Draw what the study has numbers for. Raises `InputError` if matplotlib is missing."""
    need("matplotlib", "report")
    style = need("matplotlib.style", "report")
    figure = need("matplotlib.figure", "report")
    made = []
    with style.context(["default", STYLE]):
        for at, (title, caption, height, draw) in enumerate(_wanted(report)):
            canvas = figure.Figure(figsize=(WIDE, height), layout="constrained")
            draw(canvas, report)
            made.append(Plot(title, caption, svg(canvas, f"study{at}", title)))
    return tuple(made)


def _wanted(report: StudyReport) -> Iterator[tuple[str, str, float, Draw]]:
    if not report.standings.get(PANEL):
        return
    wins = "Share of wins over all other systems by the panel, with 95 % intervals over scenarios"
    if any(row.losses for row in report.rows):
        text = f"{wins}, against the loss on each part. {NUMBERS}"
        yield "Loss against quality", text, 3.6, _losses
    yield (
        "Ranks",
        "A line a system from its place by losses to that by each judge; 1 is best. A loss that "
        f"ranks as judges do has lines that do not cross. {NUMBERS}",
        1.2 + 0.24 * len(report.rows),
        _bumps,
    )
    cost, what = _cost(report)
    if any(cost(row) is not None for row in report.rows):
        yield "Quality against cost", f"{wins}, against {what}. {NUMBERS}", 3.4, _costs
    if report.cells:
        name = report.best.system if report.best else ""
        text = f"{report.cells_of}, in %: {name}, which the panel ranks first."
        rows = len({cell.cause for cell in report.cells})
        yield "Causes and contexts", text, 1.0 + 0.3 * rows, _heat
    if any(row.words for row in report.rows):
        text = f"{wins}, against the mean length of answers. {NUMBERS}"
        yield "Length against wins", text, 3.4, _words


def _cost(report: StudyReport) -> tuple[Callable[[StudyRow], float | None], str]:
    """Return what a training cost, and in words: energy if somebody measured it, else size."""
    if any(row.joules is not None for row in report.rows):
        return lambda row: None if row.joules is None else row.joules / HOUR, (
            "the energy of the training in Wh, measured"
        )
    return lambda row: None if row.bytes is None else row.bytes / 1e6, (
        "the adapter's size in MB, since no energy was measured"
    )


def _colours(report: StudyReport) -> dict[str, str]:
    kinds = dict.fromkeys(row.targets for row in report.rows)
    return {kind: COLOURS[at % len(COLOURS)] for at, kind in enumerate(kinds)}


def _legend(canvas: Any, report: StudyReport) -> None:
    lines = need("matplotlib.lines", "report")
    keys = [
        lines.Line2D([], [], marker="o", linestyle="none", color=colour, label=shown(kind))
        for kind, colour in _colours(report).items()
    ]
    if len(keys) > 1:
        keyed(canvas, keys)


def _scatter(axes: Any, report: StudyReport, value: Callable[[StudyRow], float | None]) -> None:
    """Draw shares of wins against a value of each row, with intervals and the rows' numbers."""
    colours = _colours(report)
    for at, (row, one) in enumerate(zip(report.rows, report.standings[PANEL], strict=True), 1):
        x = value(row)
        if x is None:
            continue
        y, colour = one.wins, colours[row.targets]
        if y.low is not None and y.high is not None:
            axes.vlines(x, 100 * y.low, 100 * y.high, color=colour, linewidth=1.2, alpha=0.7)
        axes.plot(x, 100 * y.value, "o", color=colour, markersize=5)
        axes.annotate(
            str(at), (x, 100 * y.value), xytext=(4, 3), textcoords="offset points", fontsize=8
        )
    axes.margins(x=0.12)
    axes.grid(axis="y", color="#888888", alpha=0.3, linewidth=0.5)


def _losses(canvas: Any, report: StudyReport) -> None:
    parts = [part for part in PARTS if any(part in row.losses for row in report.rows)]
    every = canvas.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    ticker = need("matplotlib.ticker", "report")
    for axes, part in zip(every, parts, strict=True):
        _scatter(axes, report, lambda row, part=part: row.losses.get(part))  # type: ignore[misc]
        axes.set_xlabel(f"{part} loss, nats")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(3))
    every[0].set_ylabel("wins, %")
    _legend(canvas, report)


def _costs(canvas: Any, report: StudyReport) -> None:
    axes = canvas.add_subplot()
    value, _ = _cost(report)
    _scatter(axes, report, value)
    measured = any(row.joules is not None for row in report.rows)
    axes.set_xlabel("energy of the training, Wh" if measured else "adapter, MB")
    axes.set_ylabel("wins, %")
    axes.set_xlim(left=0)
    _legend(canvas, report)


def _words(canvas: Any, report: StudyReport) -> None:
    axes = canvas.add_subplot()
    _scatter(axes, report, lambda row: row.words.value if row.words else None)
    axes.set_xlabel("words of an answer, mean")
    axes.set_ylabel("wins, %")
    _legend(canvas, report)


def _bumps(canvas: Any, report: StudyReport) -> None:
    axes = canvas.add_subplot()
    columns = _columns(report)
    colours = _colours(report)
    for at, row in enumerate(report.rows):
        known = [(x, ranks[at]) for x, (_, ranks) in enumerate(columns)]
        points = [(x, y) for x, y in known if y is not None]
        if not points:
            continue
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, "o-", color=colours[row.targets], linewidth=1.4, markersize=4)
        for x, y, side in ((xs[0], ys[0], -8), (xs[-1], ys[-1], 6)):
            axes.annotate(
                str(at + 1), (x, y), xytext=(side, -3), textcoords="offset points", fontsize=8,
                ha="right" if side < 0 else "left",
            )  # fmt: skip
    axes.set_xticks(
        range(len(columns)), [shown(name) for name, _ in columns],
        rotation=20 if len(columns) > 4 else 0,
    )  # fmt: skip
    axes.set_ylim(len(report.rows) + 0.5, 0.5)
    axes.set_yticks(range(1, len(report.rows) + 1))
    axes.set_ylabel("rank, 1 is best")
    axes.margins(x=0.08)
    _legend(canvas, report)


def _columns(report: StudyReport) -> list[tuple[str, list[float | None]]]:
    """Return ranks by each loss, by each judge and by the panel, in the order of the rows."""
    made: list[tuple[str, list[float | None]]] = []
    for part in PARTS:
        own = [row.losses.get(part) for row in report.rows]
        known = [loss for loss in own if loss is not None]
        if known:
            made.append(
                (
                    f"{part} loss",
                    [
                        None if loss is None else 1.0 + sum(other < loss for other in known)
                        for loss in own
                    ],
                )
            )
    for name, of in report.standings.items():
        # A panel of one is that one.
        if name != PANEL or len(report.panel) > 1:
            made.append((name, [float(one.rank) for one in of]))
    return made


def _heat(canvas: Any, report: StudyReport) -> None:
    patches = need("matplotlib.patches", "report")
    axes = canvas.add_subplot()
    causes = list(dict.fromkeys(cell.cause for cell in report.cells))
    contexts = list(dict.fromkeys(cell.context for cell in report.cells))
    for cell in report.cells:
        x, y = contexts.index(cell.context), causes.index(cell.cause)
        # Pale enough for the page's ink, on white and on black.
        look = {"facecolor": COLOURS[0], "alpha": 0.08 + 0.52 * cell.value, "linewidth": 0}
        axes.add_patch(patches.Rectangle((x - 0.5, y - 0.5), 1, 1, **look))
        axes.text(
            x, y, f"{100 * cell.value:.0f} ({cell.of})", ha="center", va="center", fontsize=8,
            color=INK,
        )  # fmt: skip
    axes.set_xticks(range(len(contexts)), [shown(name) for name in contexts])
    axes.set_yticks(range(len(causes)), [shown(name) for name in causes])
    axes.set_xlim(-0.5, len(contexts) - 0.5)
    axes.set_ylim(len(causes) - 0.5, -0.5)
    axes.tick_params(length=0)
