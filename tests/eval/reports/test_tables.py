"""Cells, numbers and what Markdown must not read."""

from __future__ import annotations

import pytest

from tel_edge.eval.reports import tables
from tel_edge.eval.reports.tables import Table
from tel_edge.eval.statistics import Interval, share

SMALL = Table(("name", "n", "what"), (("a", "1,000", "x"), ("long", "2", "")), words=1)


def test_columns_are_aligned_words_left_and_numbers_right() -> None:
    assert tables.aligned(SMALL) == [
        "name      n  what",
        "a     1,000     x",
        "long      2",
    ]
    assert tables.aligned(Table(("a", "b"), ())) == ["a  b"]


def test_markdown_by_hand() -> None:
    assert tables.tabled(SMALL) == (
        "| name | n | what |\n| :--- | ---: | ---: |\n| a | 1,000 | x |\n| long | 2 |  |"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        ("<script>", r"\<script\>"),
        ("[x](y) `c` *d* _e_ #f", r"\[x\](y) \`c\` \*d\* \_e\_ \#f"),
        ("a\\|b", r"a\\\|b"),
        # A line's end would end the row.
        ("two\r\n lines\t", "two lines"),
    ],
)
def test_markdown_shows_what_is_there(text: str, shown: str) -> None:
    assert tables.escaped(text) == shown
    assert tables.tabled(Table(("x",), ((text,),))).splitlines()[2:] == [f"| {shown} |"]


def test_shares_and_differences() -> None:
    assert tables.percent(share(15, 20)) == "75.0 [53.1-88.8]"
    assert tables.points(Interval(-0.0123, -0.02, 0.0004)) == "-1.2 [-2.0, +0.0]"
    # Nothing is less than nothing only in the digits that are not shown.
    assert tables.points(Interval(-0.0001, -0.0004, 0.0)) == "+0.0 [+0.0, +0.0]"


@pytest.mark.parametrize(
    ("p", "shown"), [(1, "1.000"), (0.0314, "0.031"), (0.001, "0.001"), (0.0009, "<0.001")]
)
def test_probabilities(p: float, shown: str) -> None:
    assert tables.probability(p) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (0, "0.0"),
        (9.96, "10.0"),
        (99.94, "99.9"),
        (100.4, "100"),
        (12_345.6, "12,346"),
    ],
)
def test_numbers(value: float | None, shown: str) -> None:
    assert tables.number(value) == shown
    assert tables.megabytes(None if value is None else value * 1e6) == shown


def test_digits() -> None:
    assert tables.number(0.01234, 4) == "0.0123"
