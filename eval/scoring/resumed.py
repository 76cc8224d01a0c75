"""A task that is finished, half done or new: what is missing is scored, what is there is kept."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from tel_edge.eval.benchmarks.source import CategorySource
from tel_edge.eval.scoring import earlier
from tel_edge.eval.scoring.records import (
    Record,
    Summary,
    Variant,
    measures,
    read_records,
    read_summary,
    whole,
    write_records,
    write_summary,
)
from tel_edge.eval.scoring.scored import ScoringTask, Used
from tel_edge.eval.statistics import Share
from tel_edge.runtime.device import profile
from tel_edge.runtime.device.energy import Meter
from tel_edge.runtime.device.memory import Memory
from tel_edge.runtime.device.power import mode as power_mode
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.files import lock
from tel_edge.runtime.processors import cores


def complete(
    task: ScoringTask,
    source: CategorySource,
    variant: Variant,
    made_with: Mapping[str, Any],
    run: Callable[[ScoringTask], Used],
    meter: Meter | None = None,
    more: Callable[[Sequence[Record]], Mapping[str, Any]] | None = None,
) -> tuple[Summary, bool]:
    """Run what is missing of `task` and return (summary, whether all was there already).

    `run` appends records as they come, so a killed run goes on behind the last whole line; records
    made of other files or settings are put away (`earlier`). `meter`, which has begun, measures the
    energy: it is this process's, for the counters are the machine's, and what reads them needs
    memory too. What `more` makes of the records is written beside `made_with`. One command at a
    time has the file; another one waits (`ScoringTask.wait`) and then finds the work done. Raises
    `WorkError` where the records are not one a question all the same.
    """
    if there := finished(task):
        if there.variant != variant:
            # Written by a version that said less; the files are the same, so it is known now.
            there = replace(there, variant=variant)
            write_summary(task.out, there)
        return there, True
    with lock.held(task.out, task.wait, lambda text: _say(task, text)):
        if there := finished(task):
            return there, True
        earlier.recall(task.out, task.run)
        if there := finished(task) or earlier.redrawn(task, variant, made_with):
            return there, True
        return _completed(task, source, variant, made_with, run, meter, more), False


def _say(task: ScoringTask, text: str) -> None:
    if not task.quiet:
        print(text, file=sys.stderr, flush=True)


def _completed(
    task: ScoringTask,
    source: CategorySource,
    variant: Variant,
    made_with: Mapping[str, Any],
    run: Callable[[ScoringTask], Used],
    meter: Meter | None,
    more: Callable[[Sequence[Record]], Mapping[str, Any]] | None,
) -> Summary:
    wanted = {question.id for question in task.questions}
    # Two commands at once may have left a question twice; either answer is right.
    aside = earlier.place(task.out, task.run)
    there = [record for path in (aside, task.out) for record in read_records(path, task.run)]
    kept = {record.id: record for record in there}
    if task.left_out and kept.keys() - wanted:
        # Half of all, of which only some are wanted now: whoever wants all again goes on there.
        write_records(aside, kept.values())
    kept = {id: record for id, record in kept.items() if id in wanted}
    task.out.with_suffix(".json").unlink(missing_ok=True)
    write_records(task.out, kept.values())
    rest = tuple(question for question in task.questions if question.id not in kept)
    # An endpoint's times are of elsewhere.
    where = None if variant.format == "endpoint" else measured_where(task.engine.threads)
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
        measured=where,
        left_out=task.left_out,
        **measures(found, used.too_long, how.k, how.temperature),
    )
    if summary.questions != len(task.questions) or not whole(summary, [r.id for r in found]):
        raise WorkError(
            f"{task.out}: {len(found)} records for {len(task.questions)} questions: something else "
            "writes there too; end it and run the same command again"
        )
    write_summary(task.out, summary)
    return summary


def measured_where(threads: int | None) -> dict[str, Any]:
    """Return where answers are timed: the machine, its threads, the date, what else runs there."""
    return {
        "machine": profile.machine().partition(", features")[0],
        "threads": threads or cores(),
        "date": datetime.now().astimezone().date().isoformat(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def finished(task: ScoringTask) -> Summary | None:
    """Return the summary of an earlier run of this very task, or None.

    One that is not of every question once, as two commands at the same time used to leave it, is
    none.
    """
    try:
        there = read_summary(task.out.with_suffix(".json"))
        # Who wants some of the questions is served where all were asked.
        more = task.left_out and there.questions > len(task.questions)
        if there.run != task.run or not (more or there.questions == len(task.questions)):
            return None
        ids = [record.id for record in read_records(task.out, task.run)]
    except (InputError, FileNotFoundError):
        return None
    return there if whole(there, ids) else None


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
    return [part] * (part != "test") + ["other orders of the options"] * rotated


def shown(of: Share) -> str:
    """Return a share and its interval."""
    return f"{of.value:.3f} [{of.low:.3f}, {of.high:.3f}]"
