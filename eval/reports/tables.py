"""Tables of text, and numbers as reports write them; nothing here knows what a report says."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tel_edge.eval.statistics import Interval, Share


@dataclass(frozen=True)
class Table:
    """Cells as text. The first `words` columns are flushed left, the others right."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1


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


def points(made: Interval) -> str:
    """Return a difference of shares and its interval in percentage points."""
    value, low, high = (round(100 * one, 1) + 0.0 for one in (made.value, made.low, made.high))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def probability(p: float) -> str:
    """Return p with three digits after the point."""
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def megabytes(count: float | None) -> str:
    """Return bytes in units of 10^6."""
    return "-" if count is None else number(count / 1e6)


def number(value: float | None, digits: int = 1) -> str:
    """Return a number, without digits after the point from 100 on; a dash for None."""
    if value is None:
        return "-"
    return f"{value:,.{digits}f}" if value < 100 else f"{value:,.0f}"
