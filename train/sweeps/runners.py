"""How the runs of a sweep are executed: each in a process of its own, which may crash alone.

Here as processes of this machine; `ray_runner` has them started by the workers of a cluster.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tel_edge.runtime.device import child
from tel_edge.runtime.device.child import GRACE
from tel_edge.runtime.files import lock
from tel_edge.runtime.processors import cores
from tel_edge.train.job import RECORD, WEIGHTS

# What Python is given to make it tel-train, which ends when its sweep does.
TRAIN = child.command("tel_edge.train.commands.train", "tel-train")
# Seconds: between two looks at the children, and for what has a run's folder.
PAUSE, PATIENCE = 0.05, 20.0


@dataclass(frozen=True)
class SweepTask:
    """A training to run: tel-train's options `argv`, and the folder that is its workspace.

    `home` is `.../sweeps/NAME/runs/RUN`, `home.name` the run's name. `bundles` is the folder of
    the bundles that `--over-quant` reads, None where they are not needed. `scored` is whether
    the test part's questions are answered.
    """

    argv: tuple[str, ...]
    home: Path
    bundles: Path | None = None
    scored: bool = True

    @property
    def name(self) -> str:
        """Return the run's name."""
        return self.home.name


@dataclass(frozen=True)
class SweepOutcome:
    """What came of a run: the record of its training, or `error`, one line.

    `adapter` is the adapter's folder below the run's workspace, `adapter_bytes` the size of its
    weights, `wall_seconds` the whole process. `files` holds the adapter's files, by their path
    below the run's workspace, when the worker's disk is not the driver's. `attempts` counts the
    times that the run was given to a worker.
    """

    name: str
    record: Mapping[str, Any] | None = None
    adapter: str = ""
    adapter_bytes: int = 0
    wall_seconds: float = 0.0
    error: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    attempts: int = 1


@dataclass
class Live:
    """A run's process, its lock and open files, and when it began (`time.monotonic`)."""

    task: SweepTask
    child: subprocess.Popen[Any]
    open: ExitStack
    began: float


def start(task: SweepTask, command: Sequence[str], threads: int | None = None) -> Live:
    """Start the run's process; `command` is what Python is given to be tel-train.

    Raises `lock.Busy` when another process has this run for longer than `PATIENCE`.
    """
    with ExitStack() as opened:
        opened.enter_context(lock.held(task.home, PATIENCE, lambda _: None, inside=True))
        link = task.home / "bundles"
        if task.bundles is not None and not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(task.bundles.resolve(), target_is_directory=True)
        out = opened.enter_context((task.home / "stdout.txt").open("wb"))
        err = opened.enter_context((task.home / "stderr.txt").open("wb"))
        limit = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        # The process of a lost worker, which ends with it, may have the adapter for a moment more.
        score = ("--score",) if task.scored else ()
        more = (*score, "--quiet", "--json", "--wait", str(PATIENCE))
        live = child.started(
            [*command, "--workspace", str(task.home), *task.argv, *more],
            stdout=out,
            stderr=err,
            env={**limit, **os.environ},
            # A group of its own: an interrupt at the terminal is the sweep's to handle, and what
            # the training starts itself ends with it.
            start_new_session=True,
        )
        if live.stdin:
            opened.callback(live.stdin.close)
        return Live(task, live, opened.pop_all(), time.monotonic())


def finish(live: Live) -> SweepOutcome:
    """Wait for the run's process and return what came of it."""
    code = live.child.wait()
    live.open.close()
    made = SweepOutcome(live.task.name, wall_seconds=round(time.monotonic() - live.began, 1))
    if code:
        return replace(made, error=_reason(code, live.task.home / "stderr.txt"))
    try:
        last = (live.task.home / "stdout.txt").read_text(encoding="utf-8").splitlines()[-1]
        (said,) = json.loads(last)["adapters"]
        folder = Path(said["path"])
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        size = (folder / WEIGHTS).stat().st_size
        below = folder.resolve().relative_to(live.task.home.resolve())
    except (OSError, ValueError, LookupError, TypeError) as error:
        return replace(made, error=f"the run ended well but left no whole adapter ({error})")
    return replace(made, record=record, adapter=below.as_posix(), adapter_bytes=size)


def stop(live: Live) -> None:
    """End the run's process, and all that it started, if it still runs."""
    for how, wait in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        if live.child.poll() is None:
            try:
                os.killpg(live.child.pid, how)
                live.child.wait(wait)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
    live.open.close()


def local(
    tasks: Sequence[SweepTask], jobs: int, command: Sequence[str] = TRAIN
) -> Generator[SweepOutcome]:
    """Run the tasks as processes here, `jobs` at a time, and give each outcome as it is there.

    Closing the iterator ends what still runs.
    """
    threads = max(1, cores() // jobs) if jobs > 1 else None
    queue, alive = deque(tasks), list[Live]()
    try:
        while queue or alive:
            while queue and len(alive) < jobs:
                task = queue.popleft()
                try:
                    alive.append(start(task, command, threads))
                except lock.Busy as error:
                    yield SweepOutcome(task.name, error=str(error))
            for live in [one for one in alive if one.child.poll() is not None]:
                outcome = finish(live)
                alive.remove(live)
                yield outcome
            time.sleep(PAUSE)
    finally:
        for live in alive:
            stop(live)


def alone(task: SweepTask, command: Sequence[str]) -> SweepOutcome:
    """Run one task here and wait for it; what is raised meanwhile ends its process."""
    try:
        live = start(task, command)
    except lock.Busy as error:
        return SweepOutcome(task.name, error=str(error))
    try:
        return finish(live)
    finally:
        stop(live)


def _reason(code: int, log: Path) -> str:
    """Return why a run failed: its last line or its own message, and the signal that ended it."""
    text = log.read_text(encoding="utf-8", errors="replace")
    # A message has two lines at most, and the cause is in the first.
    _, own, message = text.rpartition("tel-train: ")
    said = " ".join(f"{own}{message}".split())[:500] if own else last_line(text)
    if code < 0:
        return f"ended by {child.ending(code)}" + (f": {said}" if said else "")
    return said or f"exit code {code}"


def last_line(text: str) -> str:
    """Return the last line that is not blank, cut at 500 characters, or an empty text."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""
