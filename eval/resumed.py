"""A task that is finished, half done or new: what is missing is scored, what is there is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tel_edge.eval.records import (
    Record,
    Summary,
    Variant,
    line,
    measures,
    read_records,
    read_summary,
    write_summary,
)
from tel_edge.eval.scored import Task, Used
from tel_edge.eval.source import Source
from tel_edge.eval.statistics import Share
from tel_edge.runtime.atomic import replacing
from tel_edge.runtime.energy import Meter, power_mode
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.memory import Memory


def complete(
    task: Task,
    source: Source,
    variant: Variant,
    made_with: Mapping[str, Any],
    run: Callable[[Task], Used],
    meter: Meter | None = None,
    more: Callable[[Sequence[Record]], Mapping[str, Any]] | None = None,
) -> tuple[Summary, bool]:
    """Run what is missing of `task` and return (summary, whether all was there already).

    `run` appends records as they come, so a killed run goes on behind the last whole line; records
    made of other files or settings are dropped. `meter`, which has begun, measures the energy: it
    is this process's, for the counters are the machine's, and what reads them needs memory too.
    What `more` makes of the records is written beside `made_with`.
    """
    if there := finished(task):
        if there.variant != variant:
            # Written by a version that said less; the files are the same, so it is known now.
            there = replace(there, variant=variant)
            write_summary(task.out, there)
        return there, True
    wanted = {question.id for question in task.questions}
    kept = [record for record in read_records(task.out, task.run) if record.id in wanted]
    task.out.with_suffix(".json").unlink(missing_ok=True)
    with replacing(task.out) as partial:
        partial.write_text("".join(map(line, kept)), encoding="utf-8")
    done = {record.id for record in kept}
    rest = tuple(question for question in task.questions if question.id not in done)
    if meter:
        # Only what is read from here on is this run's.
        meter.read()
    # Of an engine that answers nothing, memory would be what it has not used.
    used = run(replace(task, questions=rest)) if rest else Used(0, Memory(None, None, 0))
    joules = meter.read().joules if meter else None
    scored = len(rest) - used.too_long
    found = list(read_records(task.out, task.run))
    how = task.settings
    summary = Summary(
        backbone=task.manifest.backbone.name,
        variant=variant,
        category=source.category.name,
        dataset=source.dataset,
        part=how.part,
        split=source.parts.digest,
        run=task.run,
        made_with={**made_with, **(more(found) if more else {})},
        rejected=source.rejected,
        k=how.k,
        memory_anonymous=used.memory.anonymous,
        memory_file=used.memory.file,
        # An endpoint's is not known.
        memory_peak=used.memory.peak or None,
        rotated=task.rotated,
        first_answer_ms=used.first_answer_ms,
        kv_bytes_per_token=used.kv_bytes_per_token,
        context=used.context,
        joules_per_question=None if joules is None or not scored else joules / scored,
        power_mode=power_mode(),
        **measures(found, used.too_long, how.k, how.temperature),
    )
    write_summary(task.out, summary)
    return summary, False


def finished(task: Task) -> Summary | None:
    """Return the summary of an earlier run of this very task, or None."""
    try:
        there = read_summary(task.out.with_suffix(".json"))
    except (InputError, FileNotFoundError):
        return None
    return there if there.run == task.run and task.out.exists() else None


def told(summary: Summary, width: int, reused: bool) -> str:
    """Return the line that the terminal shows of a summary."""
    notes = [*which(summary.part, summary.rotated), *["scored before"] * reused]
    return (
        f"{summary.category:<12} {summary.variant.name:<{width}} "
        f"Pass@1 {shown(summary.pass1)}  Maj@{summary.k} {shown(summary.majority)}  "
        f"{summary.milliseconds_p50:.1f} ms" + "".join(f"  ({note})" for note in notes)
    )


def which(part: str, rotated: bool) -> list[str]:
    """Return what is said of questions that are not the test part's as they are."""
    return [part] * (part != "test") + ["rotations"] * rotated


def shown(of: Share) -> str:
    """Return a share and its interval."""
    return f"{of.value:.3f} [{of.low:.3f}, {of.high:.3f}]"
