"""Writes a data set of dialogues: asks, judges, asks again, deals to parts, and says what came."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tel_edge.eval.care import duplicates, gates
from tel_edge.eval.care.dialogues import Dialogue, Wanted, messages
from tel_edge.eval.care.journal import Journal
from tel_edge.eval.care.panel import panel
from tel_edge.eval.care.scenarios import Scenario
from tel_edge.eval.care.writers import Writer
from tel_edge.runtime.errors import WorkError
from tel_edge.runtime.files import digest
from tel_edge.runtime.files.atomic import write_text

# How often a dialogue is asked for, and how many are asked for at a time.
TRIES, BLOCK = 3, 256
LICENCE = "apache-2.0"


@dataclass(frozen=True)
class Prices:
    """What a million tokens cost, read and written, and where it has to stop."""

    read: float = 0.0
    written: float = 0.0
    most: float | None = None

    def of(self, read: int, written: int) -> float:
        """Return what so many tokens cost."""
        return (read * self.read + written * self.written) / 1e6


def written(
    wanted: Sequence[Wanted],
    keys: Sequence[str],
    writer: Writer,
    journal: Journal,
    prices: Prices,
    step: Callable[[int], None],
) -> list[Dialogue]:
    """Return the dialogues that pass the gates, in the order of `wanted`; what is there is reused.

    `keys` are theirs in the journal. Each is asked for at most `TRIES` times; `step` is told how
    many were written, 0 for a try that was refused. Raises `WorkError` where the cost has reached
    its limit; what was written is kept.
    """
    judged = gates.gate([one.scenario.fix for one in wanted])
    if there := sum(name in journal.taken for name in keys):
        step(there)
    for tries in range(TRIES):
        todo = [
            at
            for at, name in enumerate(keys)
            if name not in journal.taken and len(journal.refused.get(name, ())) == tries
        ]
        # Where money has a limit, no more is asked for than may be in flight beyond it.
        size = BLOCK if prices.most is None else writer.parallel
        for start in range(0, len(todo), size):
            block = [(keys[at], wanted[at]) for at in todo[start : start + size]]
            _block(block, tries, writer, judged, journal, prices, step)
    return [
        Dialogue(one, messages(journal.taken[name]), writer.source)
        for one, name in zip(wanted, keys, strict=True)
        if name in journal.taken
    ]


def _block(
    asked: Sequence[tuple[str, Wanted]],
    tries: int,
    writer: Writer,
    judged: Callable[..., gates.Fault | None],
    journal: Journal,
    prices: Prices,
    step: Callable[[int], None],
) -> None:
    rows = []
    for at, (made, read, wrote) in writer.write([(one, tries) for _, one in asked]):
        name, one = asked[at]
        row: dict[str, Any] = {"key": name, "tokens": [read, wrote]}
        if isinstance(made, str):
            row |= {"gate": "form", "why": "no messages", "text": made[:2000]}
        elif fault := judged(one.scenario, made, one.turns):
            text = json.dumps([asdict(message) for message in made])
            row |= {"gate": fault.gate, "why": fault.text, "text": text[:2000]}
        else:
            row |= {"messages": [asdict(message) for message in made]}
        step(int("messages" in row))
        rows.append(row)
        # What costs time or money is kept one by one.
        if writer.source.kind != "template":
            journal.add(rows)
            rows = []
        if prices.most is not None and not (read and wrote):
            journal.add(rows)
            raise WorkError(
                "the server does not say how many tokens it used, so no --limit-cost holds"
            )
        spent = prices.of(*journal.tokens)
        if prices.most is not None and spent >= prices.most:
            raise WorkError(
                f"{spent:.2f} were spent, --limit-cost is {prices.most:.2f}; what was written is "
                "kept, the same command with a higher one goes on"
            )
    journal.add(rows)


def rejects(keys: Sequence[str], journal: Journal) -> dict[str, int]:
    """Return how many tries at dialogues with these keys each gate refused."""
    tries = (gate for name in keys for gate in journal.refused.get(name, ()))
    return dict(sorted(Counter(tries).items()))


def finished(
    folder: Path,
    parts: dict[str, tuple[Scenario, ...]],
    dialogues: Sequence[Dialogue],
    about: dict[str, Any],
) -> dict[str, Any]:
    """Deal dialogues to files by the part of their scenario; return what `files.json` says.

    Near-duplicates are left out: within a scenario the later one, across parts the one to train on.
    """
    part_of = {one.id: name for name, part in parts.items() for one in part}
    kept = duplicates.within(dialogues)
    dealt: dict[str, list[Dialogue]] = {name: [] for name in parts}
    for dialogue in kept:
        dealt[part_of[dialogue.wanted.scenario.id]].append(dialogue)
    train = duplicates.across(
        dealt["train"], (one for name, of in dealt.items() if name != "train" for one in of)
    )
    left_out = {"within": len(dialogues) - len(kept), "across": len(dealt["train"]) - len(train)}
    dealt["train"] = train
    files = {}
    for name, of in dealt.items():
        text = "".join(json.dumps(one.row(), ensure_ascii=False) + "\n" for one in of)
        write_text(folder / f"{name}.jsonl", text)
        files[f"{name}.jsonl"] = {
            "rows": len(of),
            "scenarios": len({one.wanted.scenario.id for one in of}),
            "sha256": digest.of_file(folder / f"{name}.jsonl"),
        }
    made = {
        "licence": LICENCE,
        **about,
        "files": files,
        "near_duplicates": left_out,
        "panel": panel([one for of in dealt.values() for one in of], about["seed"]),
    }
    write_text(folder / "README.md", _card(made))
    # Last: a folder that has it is whole.
    write_text(folder / "files.json", json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    return made


def _card(made: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {name} | {of['rows']:,} | {of['scenarios']:,} |" for name, of in made["files"].items()
    )
    # A split without rows is one that `datasets` refuses.
    configs = "\n".join(
        f"  - split: {name.removesuffix('.jsonl')}\n    path: {name}"
        for name, of in made["files"].items()
        if of["rows"]
    )
    source = made["source"]
    return f"""---
license: {made["licence"]}
configs:
- config_name: default
  data_files:
{configs}
---

# Customer support dialogues

Written by {source["model"]} ({source["kind"]}) with seed {made["seed"]}; scenarios are split whole,
and the terms of `unseen` are in no other part.

| file | dialogues | scenarios |
|---|---:|---:|
{rows}

Fields: `id`, `scenario` (term.cause.context), `messages` (role, content), `facts` (term, cause,
context, check, fix, escalate), `style`, `source`.
"""
