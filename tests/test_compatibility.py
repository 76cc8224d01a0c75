"""The table of what other tools write says what the tests say."""

from __future__ import annotations

import ast
import re

import pytest
from conftest import ROOT

NAMED = re.compile(r"`(test_\w+)::(test_\w+)`")


def rows() -> list[list[str]]:
    """Return the cells of every row of the tables, without their heads."""
    text = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    made = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in made if row[0] not in ("what is there", "---")]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:40])
def test_each_row_has_an_outcome_and_a_test_that_is_there(row: list[str]) -> None:
    what, outcome, words, tests = row
    assert what
    assert words
    assert outcome in ("works", "said", "refused")
    assert NAMED.sub("", tests).strip(", ") == "", "no other words beside the tests"
    named = NAMED.findall(tests)
    assert named
    for module, function in named:
        tree = ast.parse(next((ROOT / "tests").rglob(f"{module}.py")).read_text(encoding="utf-8"))
        there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert function in there, f"{module} has no {function}"


def test_the_readme_leads_there() -> None:
    assert "(docs/compatibility.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
