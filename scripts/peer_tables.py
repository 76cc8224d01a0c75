"""The tables of bench_peers.py: functions of what it has measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench_tables import head, line, spread
from contender_tasks import WARM
from runtime_tables import MODES, Log, rates, ratios

from tel_edge.runtime.questions.votes import pick, probabilities

GGUF, ONNX, REFERENCE = "tel-edge GGUF", "tel-edge ONNX", "float32"
# How a contender has the adapter: on its backbone, or in its weights.
ON, MERGED = "on", "merged"
TITLES = {"pass": "Pass@1", "maj": "Maj@4"}


@dataclass(frozen=True)
class Contender:
    """One that answers: its weights' type, `ON` or `MERGED`, and what measures it once."""

    name: str
    weights: str
    adapter: str
    measure: Callable[[], dict[str, Any]]


def tables(
    contenders: Sequence[Contender], log: Log, missing: Mapping[str, str], machine: str
) -> str:
    """Return all tables as Markdown, who is fastest, and who is left out and why."""
    measured = [one for one in contenders if log.of(one.name)]
    parts = {"peers-speed": _speed(measured, log), "peers-agreement": _agreement(measured, log)}
    made = [f"<!-- table: {name} -->\n" + "\n".join(lines) for name, lines in parts.items()]
    made.append(fastest(measured, log))
    made += [
        f"left out{' after some rounds' if log.of(name) else ''}: {name}: {reason}"
        for name, reason in missing.items()
    ]
    versions = [next(iter(log.of(one.name).values())).get("version") for one in measured]
    known = [one for one in dict.fromkeys(versions) if one]
    return "\n\n".join([*made, "; ".join([log.conditions, *known, machine]), ""])


def fastest(contenders: Sequence[Contender], log: Log) -> str:
    """Return the line that names who answers most questions/s, by the median."""
    found = []
    for mode in MODES:
        middle = {
            one.name: statistics.median(made.values())
            for one in contenders
            if (made := rates(log, one.name, mode))
        }
        if middle:
            best = max(middle, key=middle.__getitem__)
            found.append(f"{TITLES[mode]} {best} ({middle[best]:.2f} questions/s)")
    return f"fastest: {', '.join(found) or 'nobody was measured'}"


def divergence(reference: Sequence[float], other: Sequence[float]) -> float:
    """Return the Kullback-Leibler divergence, in nats, of two questions' labels.

    Both are log-probabilities, which are taken among the labels alone.
    """
    pairs = zip(probabilities(reference), probabilities(other), strict=True)
    return math.fsum(a * math.log(a / max(b, 1e-30)) for a, b in pairs if a > 0)


def _speed(contenders: Sequence[Contender], log: Log) -> Iterator[str]:
    times = [f"times {name}" for name in (GGUF, ONNX)]
    yield from head(
        "contender", *(c for mode in MODES for c in (f"{TITLES[mode]} questions/s", *times))
    )
    for one in contenders:
        cells: list[str] = []
        for mode in MODES:
            made = rates(log, one.name, mode)
            shares = [ratios(made, rates(log, ours, mode)) for ours in (GGUF, ONNX)]
            cells += [
                spread(list(values), ".2f") if values else "" for values in (made.values(), *shares)
            ]
        yield line(one.name, *cells)


def _agreement(contenders: Sequence[Contender], log: Log) -> Iterator[str]:
    expected = log.of(REFERENCE)[0]["logprobs"][WARM:]
    right = [pick(values) for values in expected]
    yield from head(
        *("contender", "type", "adapter", "Pass@1 picks as float32's"), "mean KL to float32, nats"
    )
    for one in contenders:
        made = next(iter(log.of(one.name).values()))["pass"]
        same = sum(a == b for a, b in zip(made["picks"], right, strict=True))
        known = made.get("logprobs")
        apart = [divergence(a, b) for a, b in zip(expected, known, strict=True)] if known else []
        cell = f"{statistics.fmean(apart):.4f}" if apart else "it gives none"
        yield line(one.name, one.weights, one.adapter, f"{same} of {len(right)}", cell)
