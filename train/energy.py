"""What a training record says of energy; `tel_edge.runtime.device.energy` reads the counters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from tel_edge.runtime.device.energy import Energy


def recorded(energy: Energy, seconds: float, examples: int, watts: float | None) -> dict[str, Any]:
    """Return the fields of a record: measured joules, and apart from them the stated ones.

    `watts` is a power that somebody states for the machine; what follows from it is called so.
    """
    joules = energy.joules
    stated = None if watts is None else watts * seconds

    def each(value: float | None) -> float | None:
        return None if value is None or not examples else value / examples * 1000

    return {
        **{f"{name}_joules": value for name, value in asdict(energy).items()},
        "joules": joules,
        "joules_per_1000_examples": each(joules),
        "stated_watts": watts,
        "stated_joules": stated,
        "stated_joules_per_1000_examples": each(stated),
        "examples": examples,
    }


def restored(values: Mapping[str, Any]) -> Energy:
    """Return an `Energy` that `asdict` has turned into JSON."""
    return replace(Energy(), **{name: values.get(name) for name in asdict(Energy())})
