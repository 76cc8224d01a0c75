"""The Pareto plot of a sweep: accuracy against adapter size and against energy."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from tel_edge.eval.reports.plots import COLOURS, INK, STYLE, WIDE
from tel_edge.runtime.extras import need
from tel_edge.train.sweeps.sweep_row import SweepRow

Cost = Callable[[SweepRow], float | None]
# Labels of more points than these would lie on each other.
NAMED = 8


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which (cost, accuracy) no other beats: the cheapest first, each better than before."""
    kept: list[int] = []
    order = sorted(range(len(points)), key=lambda at: (points[at][0], -points[at][1]))
    for at in order:
        if not kept or points[at][1] > points[kept[-1]][1]:
            kept.append(at)
    return kept


def pareto(rows: Sequence[SweepRow]) -> str:
    """Return the plot of finished runs as an SVG file, a front for each category.

    Raises `InputError` if matplotlib is missing.
    """
    need("matplotlib", "report")
    style = need("matplotlib.style", "report")
    figure = need("matplotlib.figure", "report")
    with style.context(["default", STYLE]):
        canvas = figure.Figure(figsize=(WIDE, 6.6), layout="constrained")
        size, energy = canvas.subplots(2, 1)
        _panel(size, rows, "adapter, MB", lambda row: row.adapter_bytes / 1e6)
        if all(row.joules is None for row in rows):
            energy.text(0.5, 0.5, "no energy counter on this machine", ha="center", va="center")
            energy.set_axis_off()
        else:
            _panel(energy, rows, "energy of the training, J (measured)", lambda row: row.joules)
        _legend(canvas, sorted({row.category for row in rows}))
        out = io.StringIO()
        # Seen as a picture of its own, so on white: it cannot take the page's colours.
        canvas.savefig(
            out, format="svg", facecolor="white", metadata={"Date": None, "Creator": None}
        )
    return out.getvalue().replace(INK, "#222222")


def _panel(axes: Any, rows: Sequence[SweepRow], label: str, cost: Cost) -> None:
    names = sorted({row.category for row in rows})
    for at, name in enumerate(names):
        colour = COLOURS[at % len(COLOURS)]
        own = [row for row in rows if row.category == name]
        points = []
        for row in own:
            value = cost(row)
            if value is not None and row.pass1 is not None:
                points.append((value, row.pass1, row.run))
        for x, share, _ in points:
            axes.vlines(
                x, share.low * 100, share.high * 100, color=colour, linewidth=0.9, alpha=0.5
            )
            axes.plot(x, share.value * 100, "o", color=colour, markersize=5)
        best = [points[i] for i in front([(x, share.value) for x, share, _ in points])]
        if best:
            xs = [x for x, _, _ in best]
            ys = [share.value * 100 for _, share, _ in best]
            axes.step(xs, ys, where="post", color=colour, linewidth=1.3)
        for x, share, run in best if len(best) <= NAMED else ():
            axes.annotate(
                run.replace("$", r"\$"),
                (x, share.value * 100),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=7,
            )
    axes.margins(x=0.2)
    axes.set_xlim(left=0)
    axes.set_xlabel(label)
    axes.set_ylabel("test Pass@1, %")
    axes.grid(axis="y", color="#888888", alpha=0.3, linewidth=0.5)


def _legend(canvas: Any, names: Sequence[str]) -> None:
    if len(names) < 2:
        return
    lines = need("matplotlib.lines", "report")
    keys = [
        lines.Line2D([], [], color=COLOURS[at % len(COLOURS)], marker="o", label=name)
        for at, name in enumerate(names)
    ]
    canvas.legend(handles=keys, loc="outside upper left", ncols=3)
