"""Draws the floors of docs/architecture.md from the imports: `python scripts/floors.py`.

A place is a wing (a folder of a floor), or what stands on a floor outside of the wings: its ground,
which needs no wing of that floor, and its top, which does.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The floors, the lowest first, and which of the others each may import.
FLOORS: dict[str, set[str]] = {
    "runtime": set(),
    "eval": {"runtime"},
    "train": {"runtime", "eval"},
    "export": {"runtime", "eval"},
}
Arrows = Mapping[str, set[str]]
# Names that a floor's own file hands on, and where they are.
HANDED_ON = {
    **{f"runtime.{name}": "runtime.answerer" for name in ("Answer", "Answerer", "Answering")},
    "runtime.EngineSettings": "runtime.engines.engine",
    "runtime.InputError": "runtime.errors",
    "runtime.WorkError": "runtime.errors",
    "export.ExportRequest": "export.request",
    "export.Exported": "export.exporting",
    "export.export": "export.exporting",
}


def modules() -> dict[str, Path]:
    """Return the file of each module by its name without "tel_edge."."""
    found = {}
    for floor in FLOORS:
        for file in sorted((ROOT / floor).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(part for part in parts if part != "__init__")] = file
    return found


def imports(file: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Yield the modules of ours that a file imports, at its top, later, or for types."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tel_edge."):
            base = str(node.module).removeprefix("tel_edge.")
            for name in node.names:
                inner = f"{base}.{name.name}"
                yield inner if inner in known else HANDED_ON.get(inner, base)
        elif isinstance(node, ast.Import):
            yield from (
                name.name.removeprefix("tel_edge.")
                for name in node.names
                if name.name.startswith("tel_edge.")
            )
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Exporter":
            # A row names the module that it loads.
            yield from (
                argument.value.removeprefix("tel_edge.")
                for argument in node.args
                if isinstance(argument, ast.Constant)
                and str(argument.value).startswith("tel_edge.")
            )


def arrows() -> dict[str, set[str]]:
    """Return, by module, the modules that it imports."""
    known = modules()
    # A package's own file hands on names that it imports from inside.
    return {
        name: {other for other in imports(file, known) if other in known} - {name}
        for name, file in known.items()
        if file.name != "__init__.py"
    }


def places(of: Arrows) -> dict[str, str]:
    """Return the place of each module: "floor.wing", "floor ground" or "floor top"."""
    found = {}
    for name in of:
        floor, *rest = name.split(".")
        if len(rest) > 1:
            found[name] = f"{floor}.{rest[0]}"
        else:
            below = (other.split(".") for other in reach(of, name))
            inner = any(other[0] == floor and len(other) > 2 for other in below)
            found[name] = f"{floor} {'top' if inner else 'ground'}"
    return found


def between(of: Arrows) -> dict[str, set[str]]:
    """Return, by place, the places that it imports from."""
    at = places(of)
    found: dict[str, set[str]] = {place: set() for place in at.values()}
    for name, others in of.items():
        found[at[name]] |= {at[other] for other in others if other in at} - {at[name]}
    return found


def circle(of: Arrows) -> list[str]:
    """Return a circle of arrows, empty where there is none."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for other in sorted(of.get(name, ())):
            if found := walk(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(of) if (found := walk(name, []))), [])


def reach(of: Arrows, start: str) -> set[str]:
    """Return all that can be reached from a place."""
    found: set[str] = set()
    left = [start]
    while left:
        for other in of.get(left.pop(), ()):
            if other not in found:
                found.add(other)
                left.append(other)
    return found


def drawing() -> str:
    """Return the floors as a Mermaid flowchart, arrows that follow from others left out."""
    of = arrows()
    at, by_place = places(of), between(of)
    lines = ["flowchart TD"]
    for floor in FLOORS:
        lines.append(f"  subgraph {floor}")
        for place in sorted(by_place):
            if place.split(".")[0].split(" ")[0] == floor:
                inside = sorted(name.split(".")[-1] for name, where in at.items() if where == place)
                title = place.partition(".")[2] or ", ".join(inside)
                lines.append(f'    {_id(place)}["{title}"]')
        lines.append("  end")
    for place, others in sorted(by_place.items()):
        for other in sorted(others):
            floors = {name.split(".")[0].split(" ")[0] for name in (place, other)}
            longer = any(other in reach(by_place, third) for third in others - {other})
            if len(floors) == 1 and not longer:
                lines.append(f"  {_id(place)} --> {_id(other)}")
    lines += [
        f"  {floor} ==> {other}"
        for floor, others in FLOORS.items()
        for other in sorted(others)
        if not any(other in FLOORS[third] for third in others)
    ]
    return "\n".join(lines) + "\n"


def _id(place: str) -> str:
    return place.replace(".", "_").replace(" ", "_")


if __name__ == "__main__":
    print(drawing(), end="")
