"""The reference paper's three figures from measured results, as inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tel_edge.eval.findings import published
from tel_edge.eval.findings.paper import RANKED, Line, Paper, RankPoint
from tel_edge.eval.reports.paper_tables import votes
from tel_edge.eval.reports.plots import COLOURS, INK, STYLE, WIDE, Plot, keyed, shown, svg
from tel_edge.eval.scoring.records import Summary
from tel_edge.eval.statistics import Share
from tel_edge.runtime.bundles.backbones import BACKBONES
from tel_edge.runtime.extras import need
from tel_edge.runtime.questions.categories import CATEGORIES

PUBLISHED = "published"
# Inches of a bar and of the room between two categories.
BAR, ROOM = 0.15, 0.13
LARGE = "large reference"


def plots(paper: Paper) -> tuple[Plot, ...]:
    """Draw the figures there are numbers for. Raises `InputError` if matplotlib is missing."""
    need("matplotlib", "report")
    style = need("matplotlib.style", "report")
    figure = need("matplotlib.figure", "report")
    shown = [line for line in paper.lines if line.after]
    groups = [[n for n in shown if n.backbone == name] for name in _names(shown)]
    beside = any(line.published for line in shown)
    hollow = " Hollow diamonds are published values, not measured here." if beside else ""
    bars = (
        "Bars are the share of right answers on the test part, lines their 95 % intervals; "
        "before and after adaptation"
    )
    if any(paper.reference(line) for line in shown):
        bars += ", and the large reference model of the family"
    count = 3 if any(paper.reference(line) for line in shown) else 2
    tall = 0.9 + len(shown) * (count * BAR + ROOM) + 0.55 * len(groups)
    k = votes(paper)
    every: list[tuple[str, str, float, Callable[[Any], None]]] = []
    if shown:
        accuracy, majority = (
            partial(_bars, paper, groups, "Pass@1"),
            partial(_bars, paper, groups, k),
        )
        every += [
            ("Figure 1: Pass@1 before and after", f"{bars}.{hollow}", tall, accuracy),
            (f"Figure 2: {k} before and after", f"{bars}.", tall, majority),
        ]
    if paper.ranks:
        dashed = any(point.published for points in paper.ranks.values() for point in points)
        caption = f"Maj@4 on {RANKED} with 95 % intervals against the adapter's size, by rank r."
        if dashed:
            caption += (
                " The dashed line is published, not measured here; the sizes of its ranks that are "
                "not printed are in proportion to the rank."
            )
        every.append(("Figure 3: rank", caption, 3.6, partial(_sizes, paper)))
    made = []
    with style.context(["default", STYLE]):
        for title, caption, height, draw in every:
            canvas = figure.Figure(figsize=(WIDE, height), layout="constrained")
            draw(canvas)
            name = "paper" + title.partition(":")[0].removeprefix("Figure ")
            made.append(Plot(title, caption, svg(canvas, name, title)))
    return tuple(made)


def _names(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(line.backbone for line in lines))


def _bars(paper: Paper, groups: Sequence[Sequence[Line]], measure: str, canvas: Any) -> None:
    """Draw a panel a backbone, categories downwards, a bar each for before, after and reference."""
    picks: list[tuple[str, Callable[[Line], Summary | None]]] = [
        ("before", lambda line: line.before),
        ("after", lambda line: line.after),
    ]
    if any(paper.reference(line) for group in groups for line in group):
        picks.append((LARGE, paper.reference))
    thick = BAR / (len(picks) * BAR + ROOM)
    panels = canvas.subplots(
        len(groups), 1, squeeze=False, sharex=True,
        gridspec_kw={"height_ratios": [len(group) for group in groups]},
    )[:, 0]  # fmt: skip
    for axes, group in zip(panels, groups, strict=True):
        for at, line in enumerate(group):
            for place, (name, pick) in enumerate(picks):
                y = at + (place - (len(picks) - 1) / 2) * thick
                summary = pick(line)
                if summary:
                    share = summary.pass1 if measure == "Pass@1" else summary.majority
                    _bar(axes, y, share, thick, COLOURS[place])
                # The paper's Table 2 is of adapted backbones, and of Pass@1 alone.
                if name == "after" and line.published and measure == "Pass@1":
                    axes.plot(line.published.unseen, y, **_hollow())
        named = [CATEGORIES[n.category].title if n.category in CATEGORIES else n.category
                 for n in group]  # fmt: skip
        axes.set_yticks(range(len(group)), [shown(name) for name in named])
        axes.set_ylim(len(group) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#888888", alpha=0.3, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_title(shown(_title(paper, group)), fontsize=10, loc="left")
        axes.set_xlim(0, 100)
    panels[-1].set_xlabel(f"{measure}, %")
    patches, lines = need("matplotlib.patches", "report"), need("matplotlib.lines", "report")
    keys = [patches.Patch(color=COLOURS[at], label=name) for at, (name, _) in enumerate(picks)]
    if measure == "Pass@1" and any(line.published for group in groups for line in group):
        keys.append(lines.Line2D([], [], label=f"{PUBLISHED}, after", **_hollow()))
    keyed(canvas, keys)


def _title(paper: Paper, group: Sequence[Line]) -> str:
    """Return the backbone's name, and below it that of the reference model if it was scored."""
    name = group[0].backbone
    made = next((found for line in group if (found := paper.reference(line))), None)
    if not made:
        return name
    known = BACKBONES.get(name)
    return f"{name}; {LARGE}:\n{known.reference if known and known.reference else made.backbone}"


def _bar(axes: Any, y: float, share: Share, thick: float, colour: str) -> None:
    axes.barh(y, share.value * 100, thick * 0.9, color=colour)
    axes.hlines(y, share.low * 100, share.high * 100, color=INK, linewidth=1)


def _sizes(paper: Paper, canvas: Any) -> None:
    axes, lines = canvas.add_subplot(), need("matplotlib.lines", "report")
    axes.set_xscale("log")
    keys = []
    for at, (name, points) in enumerate(paper.ranks.items()):
        colour = COLOURS[at % len(COLOURS)]
        for size, share, rank in _measured(points):
            axes.vlines(size, share.low * 100, share.high * 100, color=colour, linewidth=1.5)
            axes.annotate(
                f"r {rank}", (size, share.value * 100), (5, 5), textcoords="offset points",
                fontsize=9, color=colour,
            )  # fmt: skip
        own = [(size, share.value * 100) for size, share, _ in _measured(points)]
        look = {"marker": "o", "markersize": 5, "linewidth": 1.3, "color": colour}
        axes.plot(*zip(*own, strict=True), **look)
        keys.append(lines.Line2D([], [], label=shown(name), **look))
        # Several runs of a rank have the same value beside them.
        known = {point.rank: point.published for point in points if point.published}
        if known:
            xs = [published.rank_bytes(known[rank]) / 1e6 for rank in sorted(known)]
            dashed = {**_hollow(), "linestyle": "--", "linewidth": 1.2, "color": colour}
            axes.plot(xs, [known[rank].majority for rank in sorted(known)], **dashed)
            label = f"{PUBLISHED}, {shown(name)}"
            keys.append(lines.Line2D([], [], label=label, **dashed))
    ticker = need("matplotlib.ticker", "report")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    # Room for the ranks' names; a single point has no width of its own.
    low, high = axes.dataLim.intervalx
    axes.set_xlim(low / 1.4, high * 1.6)
    axes.set_ylim(0, 100)
    axes.grid(axis="y", color="#888888", alpha=0.3, linewidth=0.5)
    axes.set_xlabel("adapter, MB (logarithmic)")
    axes.set_ylabel(f"Maj@4 on {RANKED}, %")
    keyed(canvas, keys)


def _measured(points: Sequence[RankPoint]) -> list[tuple[float, Share, int]]:
    """Return megabytes, share and rank of each point that was measured."""
    return [
        (point.adapter_bytes / 1e6, point.majority, point.rank)
        for point in points
        if point.adapter_bytes is not None and point.majority
    ]


def _hollow() -> dict[str, Any]:
    """Return the look of a published value."""
    return {
        "marker": "D",
        "linestyle": "none",
        "markersize": 6,
        "color": INK,
        "markerfacecolor": "none",
        "markeredgewidth": 1.3,
    }
