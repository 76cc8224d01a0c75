"""One run of a sweep as its file has it: what it was, and what came of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tel_edge.eval.statistics import Share
from tel_edge.runtime.files.atomic import write_text
from tel_edge.train.sweeps.runners import SweepOutcome

SCHEMA_VERSION = 1
NUMBERS = ("validation_loss", "validation_pass1")


@dataclass(frozen=True)
class SweepRow:
    """One run: what it was, and what came of it or the `error` that it ended with.

    `pass1` and `majority` (of four votes) are of the test part, the validation figures those of
    the epoch that was kept, its loss in nats. `joules` were measured, None where nothing could;
    `stated_joules` follow from a power that somebody stated. `record` is the whole training.json.

    A run on dialogues has no accuracy but `losses`, loss and perplexity by part, and the share of
    answers that ended, `stops`, where that was measured.
    """

    run: str
    digest: str
    options: Mapping[str, str]
    error: str | None = None
    category: str = ""
    questions: int = 0
    pass1: Share | None = None
    majority: Share | None = None
    validation_loss: float = math.nan
    validation_pass1: float = math.nan
    adapter: str = ""
    adapter_bytes: int = 0
    parameters: int = 0
    seconds: float = 0.0
    wall_seconds: float = 0.0
    joules: float | None = None
    stated_joules: float | None = None
    attempts: int = 1
    record: Mapping[str, Any] | None = None
    losses: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    stops: Share | None = None

    @property
    def loss(self) -> str:
        """Return which tokens the loss is over; losses of two kinds cannot be compared."""
        return str(((self.record or {}).get("config") or {}).get("loss", "answer"))


def row(options: Mapping[str, str], digest: str, outcome: SweepOutcome) -> SweepRow:
    """Return the row of a run that has ended; a record that lacks a figure is an error too."""
    made: dict[str, Any] = {"run": outcome.name, "digest": digest, "options": dict(options)}
    made |= {"wall_seconds": outcome.wall_seconds, "attempts": outcome.attempts}
    if outcome.record is None:
        return SweepRow(**made, error=outcome.error or "nothing came back")
    record = outcome.record
    try:
        energy = record.get("energy") or {}
        return SweepRow(
            **made,
            **(_spoken(record) if "losses" in record else _scored(record)),
            validation_loss=record["best"]["validation_loss"],
            adapter=outcome.adapter,
            adapter_bytes=outcome.adapter_bytes,
            parameters=record["parameters"],
            seconds=record["seconds"],
            joules=energy.get("joules"),
            stated_joules=energy.get("stated_joules"),
            record=record,
        )
    except (KeyError, TypeError, ValueError) as error:
        return SweepRow(**made, error=f"training.json is not as expected: {error!r}")


def _scored(record: Mapping[str, Any]) -> dict[str, Any]:
    (scored,) = record["test"]
    return {
        "category": scored["category"],
        "questions": scored["questions"],
        "pass1": Share(**scored["pass1"]),
        "majority": Share(**scored["majority"]),
        "validation_pass1": record["best"]["validation_pass1"],
    }


def _spoken(record: Mapping[str, Any]) -> dict[str, Any]:
    stopped = (record.get("stop_rate") or {}).get("stopped")
    return {
        "category": record["category"],
        "losses": record["losses"],
        "stops": Share(**stopped) if stopped else None,
    }


def read_row(path: Path) -> SweepRow | None:
    """Return the row that `write_row` left at `path`, None where there is no whole one."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if known.pop("schema_version") != SCHEMA_VERSION:
            return None
        for name in ("pass1", "majority", *(("stops",) if "stops" in known else ())):
            known[name] = Share(**known[name]) if known[name] else None
        # A failed run's figures are no numbers, which JSON has no word for.
        lost = dict.fromkeys((n for n in NUMBERS if known[n] is None), math.nan)
        return SweepRow(**{**known, **lost})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def document(made: SweepRow) -> dict[str, Any]:
    """Return the row as JSON has it, null for what is unknown."""
    found = asdict(made)
    lost = dict.fromkeys(n for n in NUMBERS if not math.isfinite(found[n]))
    # A row of questions is as it was before there were dialogues.
    for name in ("losses", "stops") if not made.losses else ():
        del found[name]
    return {"schema_version": SCHEMA_VERSION, **found, **lost}


def write_row(path: Path, made: SweepRow) -> None:
    """Write the row in one step."""
    write_text(path, json.dumps(document(made), indent=1, ensure_ascii=False) + "\n")
