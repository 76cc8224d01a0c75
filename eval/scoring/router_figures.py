"""What a router is worth, and the file that says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tel_edge.eval import documents
from tel_edge.eval.statistics import Share
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.workspace import Workspace

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Confusion:
    """Where questions of each category went.

    `counts` has a row for each of `categories`, which the questions are of, and a column for each,
    which they were sent to, and last one for abstentions. `right` counts an abstention as wrong,
    `routed` leaves it out, `forced` takes the likeliest category however unlikely it is.
    """

    categories: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    right: Share
    routed: Share
    forced: Share
    abstained: Share


@dataclass(frozen=True)
class Measured:
    """What a router is worth on `part` of a data set, and what it costs.

    `whole` is measured on requests with their choices, `alone` on their questions alone; `others`
    is the share of requests of fields it was never shown that it leaves to the bare backbone, with
    their choices and alone (None in older files). `source`
    and `sha256` are of the router's file, `splits` the digests of the splits by category;
    `seconds` is what training took, None where a router was only measured, `microseconds_p50` and
    `_p95` what one request takes.
    """

    dataset: str
    part: str
    seed: int
    source: str
    sha256: str
    bytes: int
    buckets: int
    temperature: float
    threshold: float
    splits: Mapping[str, str]
    whole: Confusion
    alone: Confusion
    seconds: float | None
    microseconds_p50: float
    microseconds_p95: float
    schema_version: int = SCHEMA_VERSION
    others: Share | None = None
    others_alone: Share | None = None


def report_path(workspace: Workspace) -> Path:
    """Return where the figures of the workspace's router are kept."""
    return workspace.root / "results" / "router" / "router.json"


def write(workspace: Workspace, made: Measured) -> Path:
    """Write the figures to the workspace in one step and return the file."""
    path = report_path(workspace)
    documents.write(path, asdict(made))
    return path


def read(path: Path) -> Measured:
    """Read what `write` wrote. Raises `InputError` if it is something else."""
    try:
        document = documents.read(path, SCHEMA_VERSION)
        known = {
            each.name: document[each.name] for each in fields(Measured) if each.name in document
        }
        for name in ("others", "others_alone"):
            known[name] = _share(document[name]) if document.get(name) else None
        known |= {name: _confusion(document[name]) for name in ("whole", "alone")}
        numbers = ("temperature", "threshold", "microseconds_p50", "microseconds_p95")
        known |= {name: float(document[name]) for name in numbers}
        if known["seconds"] is not None:
            known["seconds"] = float(known["seconds"])
        known["bytes"] = int(document["bytes"])
        return Measured(**known)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: no figures of a router ({error}); tel-export --router") from None


def _confusion(document: Mapping[str, Any]) -> Confusion:
    names = tuple(map(str, document["categories"]))
    counts = tuple(tuple(int(count) for count in row) for row in document["counts"])
    if [len(row) for row in counts] != [len(names) + 1] * len(names):
        raise ValueError("counts are not a row for each category")
    made = {name: document[name] for name in ("right", "routed", "forced", "abstained")}
    return Confusion(names, counts, **{name: _share(each) for name, each in made.items()})


def _share(of: Mapping[str, Any]) -> Share:
    numbers = (float(of[name]) for name in ("value", "low", "high"))
    return Share(int(of["right"]), int(of["of"]), *numbers)
