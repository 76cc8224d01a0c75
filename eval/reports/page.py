"""The report as one HTML file: no network, light and dark, for the telephone and for paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from tel_edge.eval.findings.findings import Report
from tel_edge.eval.reports import browse, card, render
from tel_edge.eval.reports.plots import Plot
from tel_edge.eval.reports.render import Chapter
from tel_edge.eval.reports.tables import Table


def page(report: Report, plots: Iterable[Plot], browser: str = "") -> str:
    """Return the whole document. Every text of the report is escaped; the plots are put in.

    `browser` is the section of `browse.fragment`.
    """
    title = f"{report.backbone}: accuracy and footprint"
    parts = [_card(report), figures(plots), *written(render.chapters(report)), browser]
    return whole(title, parts, browse.policy())


def figures(plots: Iterable[Plot]) -> str:
    """Return the plots beside each other."""
    return f'<div class="plots">{"".join(map(_figure, plots))}</div>'


def written(chapters: Iterable[Chapter]) -> list[str]:
    """Return the elements of chapters, their texts escaped."""
    parts = []
    for chapter in chapters:
        parts.append(_heading(chapter.title))
        parts.append(f'<p class="units">{escape(chapter.text)}</p>' if chapter.text else "")
        parts += [table(each) for each in chapter.tables if each.rows]
        items = "".join(f"<li>{escape(note)}</li>" for note in chapter.notes)
        parts.append(f"<ul>{items}</ul>" if items else "")
    return parts


def whole(title: str, parts: Sequence[str], policy: str) -> str:
    """Return a document of elements that are HTML already, under its heading."""
    body = "\n".join(part for part in (f"<h1>{escape(title)}</h1>", *parts) if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{browse.style()}\n</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _card(report: Report) -> str:
    first, *others = render.verdict(report)
    made = card.table(report)
    # A sentence may begin with the name of a category or a variant, which have no other case.
    items = "".join(f"<li>{escape(line)}.</li>" for line in others)
    typed = "\n".join(card.commands(report))
    kind = report.decision.verdict.replace(" ", "-")
    return (
        f'<div class="verdict {kind}"><p class="headline">{escape(_sentence(first))}.</p>'
        + (
            table(made) + f'<p class="units">{escape(card.columns(report))}.</p>'
            if made.rows
            else ""
        )
        + f"<ul>{items}</ul>"
        + (f"<p>To ship it:</p><pre>{escape(typed)}</pre>" if typed else "")
        + "</div>"
    )


def _heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def _figure(plot: Plot) -> str:
    caption = f"<strong>{escape(plot.title)}.</strong> {escape(plot.caption)}"
    return f"<figure>\n{plot.svg}\n<figcaption>{caption}</figcaption>\n</figure>\n"


def table(shown: Table) -> str:
    """Return a table that scrolls by itself where the screen is narrow."""
    kinds = ["word" if at < shown.words else "" for at in range(len(shown.header))]
    head = "".join(_cell("th", *pair) for pair in zip(kinds, shown.header, strict=True))
    rows = "".join(
        "<tr>" + "".join(_cell("td", *pair) for pair in zip(kinds, row, strict=True)) + "</tr>\n"
        for row in shown.rows
    )
    # Can be reached by the keyboard, since it scrolls where the screen is narrow.
    return (
        f'<div class="wide" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}</tbody>\n</table></div>"
    )


def _cell(tag: str, kind: str, text: str) -> str:
    classes = " ".join(filter(None, (kind, "long" if len(text) > 40 else "")))
    named = f' class="{classes}"' if classes else ""
    return f"<{tag}{named}>{escape(text)}</{tag}>"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
