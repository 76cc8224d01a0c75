"""How the runs of a sweep are executed: each in a process of its own, which may crash alone.

Here as processes of this machine; `ray_runner` has them started by the workers of a cluster.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.packed import cores
from tel_edge.train.job import RECORD, WEIGHTS

# What Python is given to make it tel-train, which ends when its sweep does.
TRAIN = (
    "-c",
    "from tel_edge.train.runners import end_with_parent; end_with_parent(); "
    "from tel_edge.train.train import main; main()",
)
PARENT = "TEL_SWEEP_PARENT"
# Seconds: between two looks at the children, from a polite to a hard end, for a run's lock.
PAUSE, GRACE, PATIENCE = 0.05, 5.0, 20.0


@dataclass(frozen=True)
class Task:
    """A training to run: tel-train's options `argv`, and the folder that is its workspace.

    `home` is `.../sweeps/NAME/runs/RUN`, `home.name` the run's name. `bundles` is the folder of
    the bundles that `--over-quant` reads, None where they are not needed.
    """

    argv: tuple[str, ...]
    home: Path
    bundles: Path | None = None

    @property
    def name(self) -> str:
        """Return the run's name."""
        return self.home.name


@dataclass(frozen=True)
class Outcome:
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
    """A run's process, its open files and when it began (`time.monotonic`)."""

    task: Task
    child: subprocess.Popen[bytes]
    open: Sequence[IO[Any]]
    began: float


def end_with_parent(pause: float = 0.5) -> None:
    """Let this process end soon after its parent has, so that no training is left running.

    A worker that is killed cannot clean up after itself, and its run is repeated elsewhere.
    """
    # From the environment, since it may be gone before this process has come so far.
    parent = int(os.environ.get(PARENT, os.getppid()))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(pause)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def start(task: Task, command: Sequence[str], threads: int | None = None) -> Live:
    """Start the run's process; `command` is what Python is given to be tel-train.

    Raises `InputError` when another process is training this run for longer than `PATIENCE`.
    """
    task.home.mkdir(parents=True, exist_ok=True)
    link = task.home / "bundles"
    if task.bundles is not None and not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(task.bundles.resolve(), target_is_directory=True)
    lock = _locked(task.home / ".lock")
    out = (task.home / "stdout.txt").open("wb")
    err = (task.home / "stderr.txt").open("wb")
    limit = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    child = subprocess.Popen(
        [
            *(sys.executable, "-P", *command, "--workspace", str(task.home)),
            *(*task.argv, "--score", "--quiet", "--json"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        env={**limit, **os.environ, PARENT: str(os.getpid())},
        # A group of its own: an interrupt at the terminal is the sweep's to handle, and what the
        # training starts itself ends with it. It holds the lock for as long as it lives.
        start_new_session=True,
        pass_fds=(lock.fileno(),),
    )
    return Live(task, child, (lock, out, err), time.monotonic())


def finish(live: Live) -> Outcome:
    """Wait for the run's process and return what came of it."""
    code = live.child.wait()
    for stream in live.open:
        stream.close()
    made = Outcome(live.task.name, wall_seconds=round(time.monotonic() - live.began, 1))
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
    for stream in live.open:
        stream.close()


def local(tasks: Sequence[Task], jobs: int, command: Sequence[str] = TRAIN) -> Generator[Outcome]:
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
                except InputError as error:
                    yield Outcome(task.name, error=str(error))
            for live in [one for one in alive if one.child.poll() is not None]:
                outcome = finish(live)
                alive.remove(live)
                yield outcome
            time.sleep(PAUSE)
    finally:
        for live in alive:
            stop(live)


def alone(task: Task, command: Sequence[str]) -> Outcome:
    """Run one task here and wait for it; what is raised meanwhile ends its process."""
    try:
        live = start(task, command)
    except InputError as error:
        return Outcome(task.name, error=str(error))
    try:
        return finish(live)
    finally:
        stop(live)


def _locked(path: Path) -> IO[Any]:
    """Return the file, locked for this process and its child.

    The process of a lost worker may still be in the folder for a moment. Raises `InputError` when
    that lasts.
    """
    import fcntl

    stream = path.open("ab")
    until = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return stream
        except OSError:
            if time.monotonic() > until:
                stream.close()
                raise InputError(
                    f"{path.parent}: another process is training this run; wait until it ends"
                ) from None
            time.sleep(PAUSE)


def _reason(code: int, log: Path) -> str:
    """Return why a run failed: the last line it wrote, and the signal that ended it."""
    said = last_line(log.read_text(encoding="utf-8", errors="replace"))
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"ended by {name}" + (f": {said}" if said else "")
    return said or f"exit code {code}"


def last_line(text: str) -> str:
    """Return the last line that is not blank, cut at 500 characters, or an empty text."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""
