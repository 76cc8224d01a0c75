"""What `tel-bench --json` measured of variants on the device that they are to run on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tel_edge.eval.documents import number
from tel_edge.eval.scoring.records import Summary
from tel_edge.runtime.errors import InputError


@dataclass(frozen=True)
class Benched:
    """One file with one adapter (None: bare), on one machine.

    `sha256` is of the backbone's file; `milliseconds` is a question's share of the time that a
    batch of them takes, `memory` the process's anonymous bytes, None where it cannot be read.
    """

    sha256: str
    adapter: str | None
    milliseconds: float
    memory: int | None
    machine: str
    threads: int | None
    date: str | None


def read(path: Path) -> tuple[Benched, ...]:
    """Read what `tel-bench --json` printed, of one variant or several, once or often.

    The tables before the JSON may be there. Raises `InputError` for anything else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        documents = [json.loads(line) for line in lines if line.startswith("{")]
        found = [_benched(one) for document in documents for one in _variants(document)]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise InputError(
            f"{path}: not what tel-bench --json prints ({error}); run: tel-bench --json > {path}"
        ) from None
    if not found:
        raise InputError(f"{path}: no JSON of tel-bench; run: tel-bench --json > {path}")
    return tuple(found)


def _variants(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from document.get("variants", [document])


def _benched(of: Mapping[str, Any]) -> Benched:
    memory = None if of["memory"]["anonymous"] is None else number(of["memory"], "anonymous")
    return Benched(
        str(of["sha256"]),
        of["adapter"],
        1000 / number(of, "questions_per_second"),
        None if memory is None else int(memory),
        str(of["machine"]).partition(", features")[0],
        of["settings"].get("threads"),
        of.get("date"),
    )


def by_variant(made: Sequence[Benched], summaries: Sequence[Summary]) -> dict[str, Benched]:
    """Return what was measured by variant: of the same file, with an adapter if that has one.

    Of several measurements of one the slowest counts, with the most memory. Raises `InputError`
    where nothing that was measured is of a file that was scored, and for several machines.
    """
    machines = sorted({one.machine for one in made})
    if len(machines) > 1:
        raise InputError(
            f"--bench: measured on {len(machines)} machines ({'; '.join(machines)}); one decision "
            "is for one of them"
        )
    found: dict[str, Benched] = {}
    for summary in summaries:
        digest = summary.made_with.get("backbone")
        for one in made:
            if one.sha256 == digest and bool(one.adapter) == summary.variant.adapter:
                before = found.get(summary.variant.name, one)
                found[summary.variant.name] = replace(
                    max(before, one, key=lambda each: each.milliseconds),
                    memory=max((before.memory, one.memory), key=lambda each: each or 0),
                )
    if not found:
        raise InputError(
            "--bench: measured of other files than those that were evaluated; run tel-bench with "
            "the bundle of these results"
        )
    return found
