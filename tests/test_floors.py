"""Who may import whom: floors, the wings on them, and the drawing of both in the docs."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import floors


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    return floors.arrows()


def test_no_module_and_no_place_is_part_of_a_circle(arrows: dict[str, set[str]]) -> None:
    assert floors.circle(arrows) == []
    assert floors.circle(floors.between(arrows)) == []


def test_a_circle_is_found() -> None:
    assert floors.circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


def test_a_floor_has_no_more_than_ten_places(arrows: dict[str, set[str]]) -> None:
    places = set(floors.places(arrows).values())
    for floor in floors.FLOORS:
        assert len([place for place in places if re.match(rf"{floor}\b", place)]) <= 10


NAMED = re.compile(
    r"`((?:runtime|eval|export|train)(?:\.[a-z_]+)+)|\b((?:runtime|eval|export|train|tests|scripts)/"
    r"[a-z_/]+\.(?:py|sh))"
)


@pytest.mark.parametrize("file", [*sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("*.md"))])
def test_what_the_docs_name_is_there(file: Path) -> None:
    for dotted, path in NAMED.findall(file.read_text(encoding="utf-8")):
        # Behind a module may stand a name in it.
        parts = dotted.split(".")
        places = (
            [ROOT / path]
            if path
            else [ROOT / "/".join(parts[:size]) for size in range(2, len(parts) + 1)]
        )
        assert any(p.is_dir() or p.with_suffix(p.suffix or ".py").is_file() for p in places), (
            dotted or path
        )


def test_the_drawing_in_the_docs_is_that_of_the_code() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    [drawn] = re.findall(r"```mermaid\n(.*?)```", text, re.DOTALL)
    assert drawn == floors.drawing(), "run: python scripts/floors.py"


ALLOWED = {floor: {floor, *others} for floor, others in floors.FLOORS.items()}


def imported(path: Path) -> set[str]:
    """Return the sub-packages of tel_edge that a file imports, at its top or in a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            assert node.module
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            top, *rest = name.split(".")
            assert top not in ALLOWED, f"{path.name} imports bare {name}"
            if top == "tel_edge" and rest:
                found.add(rest[0])
    return found - {"__version__"}


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_what_is_below_them(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 3
    assert {path: imported(path) - ALLOWED[package] for path in files} == {
        path: set() for path in files
    }


def test_what_is_handed_on_is_where_it_is_said_to_be() -> None:
    for name, module in floors.HANDED_ON.items():
        floor, own = name.split(".")
        there = getattr(importlib.import_module(f"tel_edge.{module}"), own)
        assert getattr(importlib.import_module(f"tel_edge.{floor}"), own) is there
