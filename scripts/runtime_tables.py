"""The tables of docs/performance.md: a function of what bench_runtime.py has measured."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench_tables import head, line, machine, spread

from tel_edge.runtime.files.atomic import write_text

# Names of steps, and how those begin of which there are several.
OURS, EXACT, SWAP = "tel-edge", "tel-edge, exact", "swap"
START, EFFECTS = "start of ", "effects on "
# Whose prompt the others ask with: how the names of their steps end.
OWN, CUSTOMARY = ", same prompt", ", customary prompt"
MODES = ("pass", "maj")
# Anonymous memory that is allowed beside the KV cache and the compute buffers.
BESIDE = 200_000_000

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Measurement:
    """What a step gave in a round, counted from 0; `conditions` are those it was made under.

    The only key of a contender that crashed is `crashed`.
    """

    step: str
    turn: int
    conditions: str
    values: Values


class Log:
    """The finished measurements, kept in a file; those of other conditions are passed over."""

    def __init__(self, path: Path, conditions: str, fresh: bool) -> None:
        self.path, self.conditions = path, conditions
        kept = path.is_file() and not fresh
        rows = [json.loads(text) for text in path.read_text().splitlines()] if kept else []
        self.done = [Measurement(**row) for row in rows]

    @property
    def mine(self) -> list[Measurement]:
        """Return the measurements made under these conditions, in the order they were made."""
        return [made for made in self.done if made.conditions == self.conditions]

    def has(self, step: str, turn: int) -> bool:
        """Return whether that step of the round is finished."""
        return any((made.step, made.turn) == (step, turn) for made in self.mine)

    def of(self, step: str) -> dict[int, Values]:
        """Return what a step gave, by round, without crashes."""
        found = {made.turn: made.values for made in self.mine if made.step == step}
        return {turn: values for turn, values in found.items() if "crashed" not in values}

    def names(self, start: str = "", end: str = "") -> list[str]:
        """Return what the names of steps hold between `start` and `end`."""
        steps = dict.fromkeys(made.step for made in self.mine)
        found = [step for step in steps if step.startswith(start) and step.endswith(end)]
        return [step.removeprefix(start).removesuffix(end) for step in found]

    def add(self, step: str, turn: int, values: Values) -> None:
        """Keep a measurement."""
        self.done.append(Measurement(step, turn, self.conditions, values))
        write_text(self.path, "".join(json.dumps(asdict(one)) + "\n" for one in self.done))


def tables(log: Log) -> str:
    """Return all tables as Markdown, each under the name of its place in docs/performance.md."""
    made = {
        "engine": _engine(log),
        "same-prompt": _rivals(log, OWN),
        "customary-prompt": _rivals(log, CUSTOMARY),
        "memory": _memory(log),
        "memory-limit": _limit(log),
        "swap": _swap(log),
        "warm-swap": _warm(log),
        "start": _start(log),
        "batch-effects": _effects(log),
    }
    parts = [f"<!-- table: {name} -->\n" + "\n".join(lines) for name, lines in made.items()]
    return "\n\n".join([*parts, f"{log.conditions}; {machine()}", ""])


def rates(log: Log, step: str, mode: str) -> dict[int, float]:
    """Return the questions/s of a step in the rounds that have them; `mode` is one of `MODES`."""
    found = {turn: values[mode] for turn, values in log.of(step).items() if mode in values}
    return {turn: len(made["picks"]) / made["seconds"] for turn, made in found.items()}


def ratios(some: Mapping[int, float], others: Mapping[int, float]) -> list[float]:
    """Return how many times as fast the first ones are, round by round."""
    return [rate / others[turn] for turn, rate in some.items() if turn in others]


def limit(log: Log) -> dict[str, Any]:
    """Return the largest anonymous memory of tel-edge beside what it may be, in bytes."""
    made = list(log.of(OURS).values())
    parts = made[0]["split"]
    anonymous = max(values["memory"]["anonymous"] or 0 for values in made)
    allowed = parts.get("kv", 0) + parts.get("compute", 0) + BESIDE
    return {"anonymous": anonymous, "allowed": allowed, "kept": anonymous <= allowed}


def _each(log: Log, step: str, what: str, mode: str) -> float:
    """Return the mean of a count a question, which is the same in every round."""
    made = next(iter(log.of(step).values()))[mode]
    return float(made[what] / len(made["picks"]))


def _engine(log: Log) -> Iterator[str]:
    made = log.of(OURS)
    plain = {turn: statistics.median(values["plain"]) for turn, values in made.items()}
    packed = {t: v["pass"]["decoded"] / v["pass"]["seconds"] for t, v in made.items()}
    ours, alone = (rates(log, step, "pass") for step in (OURS, EXACT))
    every = [rate for values in made.values() for rate in values["plain"]]
    yield from head("measure", "value")
    yield line("plain decode of 512 tokens, tokens/s", spread(every, ".1f"))
    yield line("packed, decoded tokens/s", spread(list(packed.values()), ".1f"))
    yield line("packed as a share of plain", spread(ratios(packed, plain), ".3f"))
    yield line("tokens of a prompt", f"{_each(log, OURS, 'tokens', 'pass'):.1f}")
    yield line("tokens decoded a question, packed", f"{_each(log, OURS, 'decoded', 'pass'):.1f}")
    yield line("packed, questions/s", spread(list(ours.values()), ".2f"))
    yield line("exact, questions/s", spread(list(alone.values()), ".2f"))
    yield line("packed as a multiple of exact", spread(ratios(ours, alone), ".2f"))


def _rivals(log: Log, form: str) -> Iterator[str]:
    yield from head(
        *("contender", "tokens of a prompt", "decoded, Pass@1", "decoded, Maj@4"),
        *("Pass@1 questions/s", "tel-edge is", "Maj@4 questions/s", "tel-edge is", "same picks"),
    )
    ours = {mode: rates(log, OURS, mode) for mode in MODES}
    others: list[dict[str, dict[int, float]]] = []
    for name in (OURS, EXACT, *log.names(end=form)):
        step = name if name in (OURS, EXACT) else name + form
        if not log.of(step):
            signs = {made.values["crashed"] for made in log.mine if made.step == step}
            yield line(name, f"crashed: {' '.join(sorted(signs))}", *[""] * 7)
            continue
        made = {mode: rates(log, step, mode) for mode in MODES}
        same = "" if step.endswith(CUSTOMARY) else _same(log, step)
        yield line(
            name,
            f"{_each(log, step, 'tokens', 'pass'):.1f}",
            *(f"{_each(log, step, 'decoded', mode):.1f}" for mode in MODES),
            *(cell for mode in MODES for cell in _rate(made[mode], ours[mode])),
            same,
        )
        if step != name:
            others.append(made)
    if others:
        cells: list[str] = []
        for mode in MODES:
            best = max(others, key=lambda made: statistics.median(made[mode].values()))
            cells += _rate(best[mode], ours[mode])
        yield line("the best of the others", *[""] * 3, *cells, "")


def _rate(theirs: Mapping[int, float], ours: Mapping[int, float]) -> tuple[str, str]:
    return spread(list(theirs.values()), ".2f"), f"{spread(ratios(ours, theirs), '.2f')} x"


def _same(log: Log, step: str) -> str:
    """Return how many of the letters that came are those of tel-edge's exact mode."""
    ours, theirs = (next(iter(log.of(s).values()))["pass"]["picks"] for s in (EXACT, step))
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if b >= 0]
    return f"{sum(a == b for a, b in pairs)} of {len(pairs)}"


def _memory(log: Log) -> Iterator[str]:
    yield from head("contender", "anonymous MB", "mapped files MB")
    for name in (OURS, EXACT, *(name + OWN for name in log.names(end=OWN))):
        made = [values["memory"] for values in log.of(name).values()]
        if made:
            parts = [[(one[kind] or 0) / 1e6 for one in made] for kind in ("anonymous", "file")]
            yield line(name.removesuffix(OWN), *(spread(part, ",.0f") for part in parts))


def _limit(log: Log) -> Iterator[str]:
    made, found = next(iter(log.of(OURS).values())), limit(log)
    yield from head("measure", "MB")
    yield line("the weights' file", f"{made['file'] / 1e6:,.1f}")
    for name, size in made["split"].items():
        yield line(f"{name}, as the engine says", f"{size / 1e6:,.1f}")
    yield line(f"limit: KV cache, compute buffers and {BESIDE / 1e6:.0f}", _mb(found["allowed"]))
    kept = "within the limit" if found["kept"] else "ABOVE THE LIMIT"
    yield line(f"anonymous, {kept}", _mb(found["anonymous"]))


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f}"


def _swap(log: Log) -> Iterator[str]:
    made = list(log.of(SWAP).values())
    names = {
        "use": ("setting the adapter, microseconds", 1000),
        "load": ("loading an adapter's file, ms", 1),
        "refill": (f"computing the shared prefix of {made[0]['prefix']} tokens again, ms", 1),
        "stay": ("one question, adapter of the question before it, ms", 1),
        "change": ("one question, another adapter, ms", 1),
    }
    yield from head("measure", "value")
    for key, (name, factor) in names.items():
        yield line(name, spread([factor * values["milliseconds"][key] for values in made], ",.1f"))


def _warm(log: Log) -> Iterator[str]:
    yield from head(
        *("measure", "answers", "picks unlike the cold ones", "largest difference"),
        "largest difference between the adapters",
    )
    for mode in ("exact", "packed"):
        made = [values["warm"][mode] for values in log.of(SWAP).values()]
        counts = [str(sum(one[name] for one in made)) for name in ("answers", "differing")]
        apart = [f"{max(one[name] for one in made):.2g}" for name in ("apart", "adapters")]
        yield line(mode, *counts, *apart)


def _start(log: Log) -> Iterator[str]:
    starts = {name: list(log.of(START + name).values()) for name in log.names(START)}
    names = dict.fromkeys(n for made in starts.values() for one in made for n in one["timing"])
    yield from head("backbone", "type", "first answer ms", *(f"{name} ms" for name in names))
    for backbone, made in starts.items():
        parts = [[one["timing"][name] for one in made if name in one["timing"]] for name in names]
        first = spread([one["first"] for one in made], ",.0f")
        cells = [spread(part, ",.0f") if part else "" for part in parts]
        yield line(backbone, made[0]["quant"], first, *cells)


def _effects(log: Log) -> Iterator[str]:
    yield from head(
        *("backbone", "type", "questions", "most in a decode"),
        *("picks that differ", "largest difference"),
    )
    for name in log.names(EFFECTS):
        for made in log.of(EFFECTS + name).values():
            yield line(
                *name.rsplit(" ", 1),
                *(str(made[count]) for count in ("questions", "packed")),
                f"{made['differing']} ({made['differing'] / made['questions']:.1%})",
                f"{made['apart']:.2g}",
            )
