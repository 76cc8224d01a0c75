"""What a sweep found: rows, tables, the correlation of loss and accuracy, and the Pareto plot."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tel_edge.eval.reports.tables import Table, escaped, percent, tabled
from tel_edge.eval.statistics import FEWEST, RESAMPLES, Share
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files.atomic import write_text
from tel_edge.train.sweeps import sweep_spoken
from tel_edge.train.sweeps.sweep_row import SCHEMA_VERSION, SweepRow, document


@dataclass(frozen=True)
class Correlation:
    """A rank correlation over `n` runs with its 95 % bootstrap interval; None: undefined.

    `p` is the share of random pairings of the same losses and accuracies that correlate as
    strongly, either way. Of few runs the interval is too narrow, which `p` is not.
    """

    name: str
    accuracy: str
    n: int
    value: float | None
    low: float | None
    high: float | None
    p: float | None


def correlations(rows: Sequence[SweepRow]) -> tuple[Correlation, ...]:
    """Return how the validation loss ranks the runs against how the test accuracy does.

    -1: a smaller loss always goes with a higher accuracy. See `rank_correlations`; of fewer than
    `FEWEST` runs there are none.
    """
    # numpy, which --help needs none of.
    from tel_edge.eval.agreement import rank_correlations

    losses = [row.validation_loss for row in rows]
    return tuple(
        Correlation(each.name, accuracy, each.n, each.value, each.low, each.high, each.p)
        for accuracy, values in (
            ("Pass@1", [_value(row.pass1) for row in rows]),
            ("Maj@4", [_value(row.majority) for row in rows]),
        )
        for each in rank_correlations(losses, values)
    )


def groups(rows: Sequence[SweepRow]) -> dict[str, list[SweepRow]]:
    """Return the finished runs whose losses and accuracies can be compared, by a title."""
    made: dict[tuple[str, str], list[SweepRow]] = {}
    for each in ranked(rows):
        made.setdefault((each.category, each.loss), []).append(each)
    several = len({loss for _, loss in made}) > 1
    return {
        f"{category}, loss over {loss}" if several else category: found
        for (category, loss), found in made.items()
    }


def ranked(rows: Sequence[SweepRow]) -> list[SweepRow]:
    """Return the finished runs by category, in each the best on the validation part first.

    That is by Pass@1, if there is one, then by loss. A run chosen on the test part would look
    better than it is.
    """
    done = [each for each in rows if each.error is None]

    def place(row: SweepRow) -> tuple[Any, ...]:
        best = 0.0 if row.losses else -row.validation_pass1
        return row.category, best, row.validation_loss, row.run

    return sorted(done, key=place)


def meaning(rows: Sequence[SweepRow], found: Sequence[Correlation]) -> str:
    """Return in words whether the validation loss picks the best run of one group."""
    if len(rows) < 2:
        return "One run: nothing to rank."
    chosen = min(rows, key=lambda r: (r.validation_loss, r.run))
    top = max(rows, key=lambda r: _value(r.pass1))
    place = 1 + sum(_value(each.pass1) > _value(chosen.pass1) for each in rows)
    if place == 1:
        ties = sum(_value(each.pass1) == _value(top.pass1) for each in rows) - 1
        tied = f", together with {ties} more" if ties else ""
        said = f"The run with the lowest validation loss, {chosen.run}, is also the best by Pass@1"
        said += f"{tied}."
    else:
        lost = (_value(top.pass1) - _value(chosen.pass1)) * 100
        said = (
            f"The run with the lowest validation loss, {chosen.run}, is at place {place} of "
            f"{len(rows)} by Pass@1, {lost:.1f} points below the best, {top.run}"
        )
        overlap = chosen.pass1 and top.pass1 and chosen.pass1.high >= top.pass1.low
        said += "; their intervals overlap." if overlap else "."
    if not found:
        return f"{said} Too few runs for a correlation (fewer than {FEWEST})."
    return f"{said} {_correlated(found[0])}"


def _correlated(made: Correlation) -> str:
    if made.value is None or made.low is None or made.high is None or made.p is None:
        return "All losses or all accuracies are equal: no correlation is defined."
    if made.p >= 0.05 or made.low <= 0 <= made.high:
        ranks = "that may be chance, so these runs do not show that the loss ranks them"
    elif made.value < 0:
        ranks = "a lower loss does go with a higher accuracy in these runs"
    else:
        ranks = "a lower loss goes with a lower accuracy in these runs"
    return (
        f"A loss that ranks the runs rightly has tau-b -1; here it is {made.value:+.2f} "
        f"[{made.low:+.2f}, {made.high:+.2f}], p {_probability(made.p)}: {ranks}."
    )


def tables(
    rows: Sequence[SweepRow], watts: float | None = None, reference: Mapping[str, str] | None = None
) -> list[Table]:
    """Return the finished runs on questions as a table, and those on dialogues as one."""
    scored, spoken = _apart(rows)
    made = [table(scored, watts, reference)] if scored else []
    return made + (
        [sweep_spoken.table(spoken, [_stated(each, watts) for each in spoken])] if spoken else []
    )


def _apart(rows: Sequence[SweepRow]) -> tuple[list[SweepRow], list[SweepRow]]:
    return [row for row in rows if not row.losses], [row for row in rows if row.losses]


def table(
    rows: Sequence[SweepRow], watts: float | None = None, reference: Mapping[str, str] | None = None
) -> Table:
    """Return the finished runs as a table; `reference` are published figures by run."""
    stated = [_stated(each, watts) for each in rows]
    header = ["category", "run", "n", "Pass@1 (95 %)", "Maj@4 (95 %)"]
    header += ["paper Maj@4"] if reference else []
    header += ["val. loss", "val. Pass@1", "adapter MB", "parameters", "seconds", "joules"]
    header += ["stated joules"] if any(value is not None for value in stated) else []
    cells = []
    for each, said in zip(rows, stated, strict=True):
        line = [each.category, each.run, f"{each.questions:,}"]
        line += [_percent(each.pass1), _percent(each.majority)]
        line += [reference.get(each.run, "-")] if reference else []
        line += [f"{each.validation_loss:.3f}", f"{each.validation_pass1 * 100:.1f}"]
        line += [f"{each.adapter_bytes / 1e6:.2f}", f"{each.parameters:,}", f"{each.seconds:,.0f}"]
        line += [_number(each.joules)]
        line += [_number(said)] if "stated joules" in header else []
        cells.append(tuple(line))
    return Table(tuple(header), tuple(cells), words=2)


def correlation_table(found: Mapping[str, Sequence[Correlation]]) -> Table:
    """Return the correlations of every group as a table."""
    return Table(
        ("runs of", "validation loss against", "coefficient", "runs", "value [95 %]", "p"),
        tuple(
            (title, made.accuracy, made.name, str(made.n), *_interval(made))
            for title, group in found.items()
            for made in group
        ),
        words=3,
    )


def write(
    folder: Path,
    name: str,
    rows: Sequence[SweepRow],
    watts: float | None = None,
    reference: Mapping[str, str] | None = None,
    source: str = "",
) -> tuple[dict[str, Any], str]:
    """Write report.md, report.json and pareto.svg, each in one step.

    Returns the document of report.json, and why there is no plot or an empty text. `source` says
    where the figures of `reference` are from.
    """
    from tel_edge.train.sweeps.sweep_plot import pareto

    (done, spoken), missing = _apart(ranked(rows)), ""
    (folder / "pareto.svg").unlink(missing_ok=True)
    try:
        if done:
            write_text(folder / "pareto.svg", pareto(done))
    except InputError as error:
        missing = str(error)
    by = groups(done)
    found = {title: correlations(group) for title, group in by.items()}
    words = {title: meaning(group, found[title]) for title, group in by.items()}
    failed = [each for each in rows if each.error is not None]
    parts = [f"# Sweep {escaped(name)}", f"{len(rows)} runs, {len(failed)} failed."]
    if spoken:
        (shown,) = tables(spoken, watts)
        said = sweep_spoken.meaning(spoken)
        parts += ["## Runs on dialogues", tabled(shown), sweep_spoken.UNITS, escaped(said)]
        words[spoken[0].category] = said
    if done:
        parts += ["## Runs", tabled(table(done, watts, reference)), UNITS]
        parts += [escaped(source)] if reference else []
        parts += ["## Does the validation loss pick the best run?"]
        parts += [f"{escaped(title)}: {escaped(words[title])}" for title in by]
        shown = correlation_table(found)
        parts += [tabled(shown), CORRELATED] if shown.rows else []
    if done and not missing:
        parts += ["## Accuracy against cost", "![Pareto fronts](pareto.svg)", FRONT]
    if failed:
        parts += ["## Failed"]
        why = tuple((each.run, str(each.error)) for each in failed)
        parts += [tabled(Table(("run", "error"), why, words=2))]
    write_text(folder / "report.md", "\n\n".join(parts) + "\n")
    made = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        # Their training records are in the row files, which are read for more than a look.
        "rows": [document(replace(each, record=None)) for each in [*done, *spoken, *failed]],
        "stated_watts": watts,
        "reference": {"source": source, "majority": dict(reference)} if reference else None,
        "correlations": {t: [asdict(each) for each in group] for t, group in found.items()},
        "meaning": words,
    }
    write_text(folder / "report.json", json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    return made, missing


UNITS = (
    "Test part; percent with 95 % Wilson intervals, which say how sure the questions make a share, "
    "not how much another seed would change it. val.: validation part, at the epoch that was kept, "
    "loss in nats; adapter MB: 10^6 bytes of adapter\\_model.safetensors; seconds: training; "
    "joules: measured by this machine's counters over the training, - where there is none; stated "
    "joules: not measured, seconds times a power that was stated."
)
CORRELATED = (
    f"Rank correlation over runs with 95 % bootstrap intervals ({RESAMPLES:,} resamples). A loss "
    "that ranks runs rightly correlates negatively with accuracy, at best -1. Of few runs the "
    "interval is too narrow; p: share of random pairings that correlate as strongly, either way."
)
FRONT = "Points: runs with 95 % intervals; the step line joins those that no cheaper run beats."


def _stated(each: SweepRow, watts: float | None) -> float | None:
    # From the seconds, since a run that is reused may have been made with another statement.
    return each.stated_joules if watts is None else watts * each.seconds


def _value(made: Share | None) -> float:
    return made.value if made else math.nan


def _percent(made: Share | None) -> str:
    return percent(made) if made else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _interval(made: Correlation) -> tuple[str, str]:
    if made.value is None or made.low is None or made.high is None or made.p is None:
        return "undefined: all equal", "-"
    return f"{made.value:+.2f} [{made.low:+.2f}, {made.high:+.2f}]", _probability(made.p)


def _probability(p: float) -> str:
    """Return p, of which 2,000 random pairings give three digits."""
    return f"{p:.3f}" if p >= 0.001 else "below 0.001"
