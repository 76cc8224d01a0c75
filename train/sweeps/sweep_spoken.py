"""What a sweep on dialogues found: its table, and which losses rank the runs in which way."""

from __future__ import annotations

from collections.abc import Sequence

from tel_edge.eval.reports.tables import Table, percent
from tel_edge.train.sweeps.sweep_row import SweepRow

# The parts that losses are of, the one that the epoch was chosen by first.
PARTS = ("validation", "test", "unseen")
HOUR = 3600.0


def table(rows: Sequence[SweepRow], stated: Sequence[float | None]) -> Table:
    """Return the runs as a table; `stated` are joules that follow from a stated power."""
    header = ["category", "run", *(f"{name} loss" for name in PARTS), "perplexity"]
    header += ["stop rate (95 %)", "adapter MB", "parameters", "seconds", "Wh"]
    header += ["stated Wh"] if any(value is not None for value in stated) else []
    cells = []
    for each, said in zip(rows, stated, strict=True):
        losses = [each.losses.get(name) for name in PARTS]
        line = [
            each.category,
            each.run,
            *("-" if of is None else f"{of['loss']:.4f}" for of in losses),
        ]
        line += [f"{each.losses['validation']['perplexity']:.3f}"]
        line += [percent(each.stops) if each.stops else "-"]
        line += [f"{each.adapter_bytes / 1e6:.2f}", f"{each.parameters:,}", f"{each.seconds:,.0f}"]
        line += [_hours(each.joules)]
        line += [_hours(said)] if "stated Wh" in header else []
        cells.append(tuple(line))
    return Table(tuple(header), tuple(cells), words=2)


def _hours(joules: float | None) -> str:
    return "-" if joules is None else f"{joules / HOUR:,.3f}"


def meaning(rows: Sequence[SweepRow]) -> str:
    """Return in words where the run with the lowest validation loss is by the other losses."""
    if len(rows) < 2:
        return "One run: nothing to rank."
    chosen = min(rows, key=lambda row: (row.validation_loss, row.run))
    said = []
    for name in PARTS[1:]:
        if all(name in row.losses for row in rows):
            own = chosen.losses[name]["loss"]
            place = 1 + sum(row.losses[name]["loss"] < own for row in rows)
            said.append(f"place {place} of {len(rows)} by the {name} part's")
    where = f", is at {' and at '.join(said)}" if said else " has no other loss"
    return (
        f"The run with the lowest validation loss, {chosen.run}{where}. A loss says how well "
        "references are foretold, not how good an answer is."
    )


UNITS = (
    "Losses in nats a token of the assistant's, on the references of each part, at the epoch with "
    "the lowest validation loss; perplexity: e to the validation loss; stop rate: of answers that "
    "were written greedily, those that ended by themselves, - where nobody measured; Wh: measured "
    "by this machine's counters over the training, - where there is none; stated Wh: not "
    "measured, seconds times a power that was stated."
)
