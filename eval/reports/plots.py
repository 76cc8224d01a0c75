"""The plots of the report as inline SVG, the same bytes for the same report.

Drawn on figures of their own, never through pyplot, whose figures are global. Text and axes take
the colour of the page, so that they can be read on light and on dark.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tel_edge.eval.findings.findings import Report, formats, variants
from tel_edge.eval.findings.paired import BOUND
from tel_edge.eval.findings.sections import Section, VariantRow, best
from tel_edge.eval.scoring.records import Variant
from tel_edge.runtime.extras import need

# Stands for `currentColor`, which matplotlib cannot say.
INK = "#010203"
# Mid tones that keep apart from each other, also for the colour-blind, on white and on black.
COLOURS = ("#3b82d6", "#e0791f", "#2f9e6e", "#c25a9c", "#a08a10", "#d1495b", "#7a6fd0", "#1fa3b5")
STYLE = {
    "svg.hashsalt": "tel-edge",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
# The points of each format in the order of `formats`; later ones share the last.
MARKERS = ("o", "s", "^")
# More variants than that are not told apart in one plot; the others are grey or left out.
MOST, REST = 12, "#9aa0a6"
# Inches, of which a telephone shows five at about two thirds of their size.
WIDE = 5.4
Draw = Callable[[Any, Report], None]


@dataclass(frozen=True)
class Plot:
    """One plot: `svg` is an element to put into a page, `caption` says how to read it."""

    title: str
    caption: str
    svg: str


def plots(report: Report) -> tuple[Plot, ...]:
    """Draw what the report has numbers for. Raises `InputError` if matplotlib is missing."""
    need("matplotlib", "report")
    style = need("matplotlib.style", "report")
    figure = need("matplotlib.figure", "report")
    rows = sum(len(_rows(report, section)) for section in report.sections)
    # Beyond two rows the legend takes room of its own.
    names = drawn(report)
    keys = 0.2 * max(0, math.ceil(len(names) / _columns(names)) - 2)
    tall = 1.1 + 0.17 * rows + 0.2 * len(report.sections) + keys
    shapes = _shapes(report)
    every: list[tuple[str, str, float, Draw]] = [
        (
            "Ladder",
            "Mean Pass@1 against the disk of the backbone and all adapters; the line joins what no "
            "smaller variant beats, the ring is the recommended one." + shapes,
            3.4 + keys,
            _ladder,
        )
    ]
    others = (rung for rung in report.ladder if rung.variant != report.reference)
    if any(rung.change and rung.kind != "base" for rung in others):
        every.append(
            (
                "Loss",
                f"Pass@1 less that of {report.reference} over all questions, with 95 % intervals; "
                "below the dotted line more than 1 point is lost." + shapes,
                3.4 + keys,
                _loss,
            )
        )
    if report.reliability:
        every.append(
            (
                "Reliability",
                "Share of right answers among picks of a probability, with 95 % intervals; on the "
                "dotted line the model knows how sure it may be.",
                3.4,
                _reliability,
            )
        )
    if any(training.curve for training in report.trainings):
        every.append(
            (
                "Training",
                "Loss by step: the train part as a line, the validation part dashed.",
                3.4,
                _curves,
            )
        )
    # The tall ones last, beside each other.
    every += [
        (
            "Pass@1",
            "Share of right answers with 95 % intervals; the dotted line is chance, "
            "the grey bar the best trivial baseline." + shapes,
            tall,
            _accuracy,
        ),
        (
            "Time",
            "Milliseconds per question: the point is the median, the line ends at the 95th "
            "percentile." + shapes,
            tall,
            _time,
        ),
    ]
    made = []
    with style.context(["default", STYLE]):
        for at, (title, caption, height, draw) in enumerate(every):
            canvas = figure.Figure(figsize=(WIDE, height), layout="constrained")
            draw(canvas, report)
            made.append(Plot(title, caption, svg(canvas, f"plot{at}", title)))
    return tuple(made)


def _shapes(report: Report) -> str:
    """Return the sentences on the points' shapes and on variants without a name, if any."""
    words = dict(zip(MARKERS, ("circles", "squares", "triangles"), strict=True))
    made = [f"{words[_marker(report, name)]} are {name.upper()}" for name in formats(report)]
    said = f" Of the points {', '.join(made)}." if len(made) > 1 else ""
    count, own = len(variants(report)), len(drawn(report))
    return said + (f" Of {count} variants {own} have a name here." if own < count else "")


def svg(canvas: Any, name: str, title: str) -> str:
    """Return the figure as one element whose ids are not those of another plot."""
    out = io.StringIO()
    canvas.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    text = text.replace(INK, "currentColor")
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1).strip()


def _accuracy(canvas: Any, report: Report) -> None:
    axes = canvas.add_subplot()
    places = _places(axes, report)
    for section in report.sections:
        rows = _rows(report, section)
        if not rows:
            continue
        ys = [places[_key(row)] for row in rows]
        top = best(section.baselines)
        span = {"ymin": min(ys) - 0.5, "ymax": max(ys) + 0.5}
        if section.baselines and top:
            # A wide pale bar, so that points on it stay visible.
            axes.vlines(top.share.value * 100, **span, color="#888888", linewidth=5, alpha=0.45)
            axes.vlines(
                section.baselines.chance * 100, **span, color=INK, linewidth=1, linestyle=":"
            )
        for row, y in zip(rows, ys, strict=True):
            share = row.summary.pass1
            axes.hlines(y, share.low * 100, share.high * 100, **_line(report, row))
            axes.plot(share.value * 100, y, **_mark(report, row.summary.variant.name))
    axes.set_xlim(0, 100)
    axes.set_xlabel("Pass@1, %")
    _legend(canvas, report)


def _time(canvas: Any, report: Report) -> None:
    axes = canvas.add_subplot()
    places = _places(axes, report)
    for section in report.sections:
        for row in _rows(report, section):
            made, y = row.summary, places[_key(row)]
            axes.hlines(y, made.milliseconds_p50, made.milliseconds_p95, **_line(report, row))
            axes.plot(made.milliseconds_p50, y, **_mark(report, made.variant.name))
    axes.set_xlim(left=0)
    axes.set_xlabel("ms per question")
    _legend(canvas, report)


def _ladder(canvas: Any, report: Report) -> None:
    axes = canvas.add_subplot()
    _sized(axes)
    front = sorted((rung.bytes, rung.pass1) for rung in report.ladder if rung.front)
    xs, ys = [size / 1e6 for size, _ in front], [100 * value for _, value in front]
    axes.step(xs, ys, where="post", color=INK, linewidth=0.8, alpha=0.6)
    for rung in report.ladder:
        at = max(rung.bytes, 1) / 1e6
        axes.plot(at, rung.pass1 * 100, **_mark(report, rung.variant, size=8))
        if rung.variant == report.decision.variant:
            axes.plot(at, rung.pass1 * 100, "o", markersize=16, color=INK, markerfacecolor="none")
    axes.set_ylim(0, 100)
    axes.grid(axis="y", color="#888888", alpha=0.3, linewidth=0.5)
    count = len(report.sections)
    axes.set_ylabel("Pass@1, %, " + (f"mean of {count}" if count > 1 else "one category"))
    _legend(canvas, report)


def _loss(canvas: Any, report: Report) -> None:
    axes = canvas.add_subplot()
    _sized(axes)
    axes.axhline(0, color=INK, linewidth=0.8, alpha=0.6)
    axes.axhline(-100 * BOUND, color=INK, linewidth=1, linestyle=":")
    for rung in report.ladder:
        if rung.change and rung.kind != "base":
            at, of = max(rung.bytes, 1) / 1e6, rung.change.points
            look = {"color": _colour(report, rung.variant)[0], "linewidth": 1.5}
            axes.vlines(at, 100 * of.low, 100 * of.high, **look)
            axes.plot(at, 100 * of.value, **_mark(report, rung.variant))
    axes.grid(axis="y", color="#888888", alpha=0.3, linewidth=0.5)
    axes.set_ylabel("points")
    _legend(canvas, report)


def _sized(axes: Any) -> None:
    """Make the x axis one of disk, whose types are some times each other's size."""
    ticker = need("matplotlib.ticker", "report")
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_xlabel("disk, MB (logarithmic)")


def _reliability(canvas: Any, report: Report) -> None:
    axes = canvas.add_subplot()
    axes.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle=":")
    for name, bins in report.reliability.items():
        look = {"color": _colour(report, name)[0], "linewidth": 1.3}
        xs = [100 * each.confidence for each in bins]
        axes.plot(xs, [100 * each.accuracy.value for each in bins], **look)
        for x, each in zip(xs, bins, strict=True):
            axes.vlines(x, 100 * each.accuracy.low, 100 * each.accuracy.high, **look)
            axes.plot(x, 100 * each.accuracy.value, **_mark(report, name))
    axes.set_xlim(0, 102)
    axes.set_ylim(0, 102)
    axes.set_xlabel("probability of the pick, %")
    axes.set_ylabel("right, %")
    axes.grid(color="#888888", alpha=0.3, linewidth=0.5)
    lines = need("matplotlib.lines", "report")
    keyed(
        canvas,
        [
            lines.Line2D([], [], label=shown(name), **_mark(report, name))
            for name in report.reliability
        ],
    )


def _curves(canvas: Any, report: Report) -> None:
    axes = canvas.add_subplot()
    drawn = [training for training in report.trainings if training.curve]
    for at, training in enumerate(drawn):
        colour = COLOURS[at % len(COLOURS)]
        for name, look in (("loss", ".-"), ("validation_loss", "o--")):
            points = [(p["step"], p[name]) for p in training.curve if {"step", name} <= p.keys()]
            if points:
                xs, ys = zip(*points, strict=True)
                axes.plot(xs, ys, look, color=colour, linewidth=1.3, markersize=4)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel("loss on the answer, nats")
    axes.grid(axis="y", color="#888888", alpha=0.3, linewidth=0.5)
    lines = need("matplotlib.lines", "report")
    keys = [
        lines.Line2D([], [], color=COLOURS[at % len(COLOURS)], label=shown(training.category))
        for at, training in enumerate(drawn)
    ]
    keyed(canvas, keys)


def _places(axes: Any, report: Report) -> dict[tuple[str, str], float]:
    """Give each row its height, categories apart and downwards, and label the categories."""
    places: dict[tuple[str, str], float] = {}
    y, ticks = 0.0, []
    for section in report.sections:
        rows = _rows(report, section)
        ticks.append(y + (len(rows) - 1) / 2)
        for row in rows:
            places[_key(row)] = y
            y += 1
        y += 1.1
    axes.set_yticks(ticks, [shown(section.title) for section in report.sections])
    axes.set_ylim(y - 1.3, -0.8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#888888", alpha=0.3, linewidth=0.5)
    return places


def drawn(report: Report) -> tuple[str, ...]:
    """Return the variants with colours and rows of their own: all, or of many the telling ones.

    Those are the reference and the bare backbone of its type, the recommended one, the best of each
    format, and what no smaller variant beats.
    """
    names = variants(report)
    if len(names) <= MOST:
        return names
    known = _known(report)
    telling = {
        report.reference,
        *filter(None, (report.decision.variant,)),
        *(best.variant for best in report.formats),
        *(rung.variant for rung in report.ladder if rung.front),
        *[name for name in names if known[name].kind == "base"][:1],
    }
    return tuple(name for name in names if name in telling)


def _known(report: Report) -> dict[str, Variant]:
    """Return all variants by name."""
    rows = (row for section in report.sections for row in section.rows)
    return {row.summary.variant.name: row.summary.variant for row in rows}


def _rows(report: Report, section: Section) -> list[VariantRow]:
    names = drawn(report)
    return [row for row in section.rows if row.summary.variant.name in names]


def _key(row: VariantRow) -> tuple[str, str]:
    return row.summary.category, row.summary.variant.name


def _marker(report: Report, format: str) -> str:
    return MARKERS[min(formats(report).index(format), len(MARKERS) - 1)]


def _colour(report: Report, name: str) -> tuple[str, Variant]:
    """Return the colour of the variant's type, grey for those not `drawn`, and the variant."""
    kinds, own = _known(report), drawn(report)
    if name not in own:
        return REST, kinds[name]
    types = list(dict.fromkeys((kinds[n].format, kinds[n].quant) for n in own))
    at = types.index((kinds[name].format, kinds[name].quant))
    return COLOURS[at % len(COLOURS)], kinds[name]


def _mark(report: Report, name: str, size: float = 6) -> dict[str, Any]:
    """Return the look of a variant's point: hollow without an adapter."""
    colour, variant = _colour(report, name)
    fill = colour if variant.adapter else "none"
    return {
        "marker": _marker(report, variant.format),
        "linestyle": "none",
        "markersize": size,
        "color": colour,
        "markerfacecolor": fill,
        "markeredgewidth": 1.5,
    }


def _line(report: Report, row: VariantRow) -> dict[str, Any]:
    return {"color": _colour(report, row.summary.variant.name)[0], "linewidth": 1.5}


def _legend(canvas: Any, report: Report) -> None:
    lines = need("matplotlib.lines", "report")
    names: Sequence[str] = drawn(report)
    keys = [lines.Line2D([], [], label=shown(name), **_mark(report, name)) for name in names]
    keyed(canvas, keys)


def _columns(names: Sequence[str]) -> int:
    """Return how many legend entries of such names go into the width."""
    return 3 if max(map(len, names), default=0) <= 18 else 2


def keyed(canvas: Any, keys: Sequence[Any]) -> None:
    """Put a legend of `keys`, artists with labels, above the axes."""
    # In reading order, where matplotlib would go down the columns.
    columns = _columns([key.get_label() for key in keys])
    ordered = [key for column in range(columns) for key in keys[column::columns]]
    canvas.legend(handles=ordered, loc="outside upper left", ncols=columns)


def shown(name: str) -> str:
    """Return a name that matplotlib takes as it is: no formula, no hidden legend entry."""
    return name.replace("$", r"\$").lstrip("_") or name
