"""The runs of a sweep as tasks of Ray. A run whose worker or node is lost is repeated."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tel_edge.runtime.device.child import GRACE
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.extras import need
from tel_edge.runtime.files.atomic import replace_folder
from tel_edge.train.sweeps.runners import TRAIN, SweepOutcome, SweepTask, alone, last_line

# The file by which a worker sees whether the sweep's folder is on a disk that it shares.
MARK = ".sweep"
# Ray is to report to nobody. A Ray of one's own is to listen to this machine only, for which it has
# this switch and no option (`_node_ip_address="127.0.0.1"` is replaced by an outer address); it is
# read when Ray is imported, and by the workers.
PRIVATE = {"RAY_USAGE_STATS_ENABLED": "0"}
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@dataclass(frozen=True)
class Cluster:
    """Where Ray runs: `address` is `local`, `auto` or host:port.

    `gpus` is what a run takes of them (None: 1 where the cluster has any, else 0), `cpus` its
    cores, `retries` how often a run is repeated whose worker or node was lost, `jobs` the most
    runs at a time (None: what the cluster has room for).
    """

    address: str
    gpus: float | None = None
    cpus: int = 1
    retries: int = 3
    jobs: int | None = None


def on_ray(
    tasks: Sequence[SweepTask], cluster: Cluster, command: Sequence[str] = TRAIN
) -> Generator[SweepOutcome]:
    """Run the tasks on a Ray cluster and give each outcome, exactly one a task, as it is there.

    Raises `InputError` where there is no such cluster. Closing the iterator ends what still runs.
    """
    with _environment(PRIVATE | (LOOPBACK if cluster.address == "local" else {})):
        yield from _joined(_imported(), tasks, cluster, command)


def _imported() -> Any:
    try:
        return need("ray", "cluster")
    except (ImportError, InputError):
        raise
    except Exception as error:
        # Ray imports amdsmi, which the extra energy brings and which raises a KeyError where the
        # library of AMD's driver is not there.
        raise InputError(
            f"ray cannot be imported: {type(error).__name__} {error}\n"
            "if there is no AMD GPU here, amdsmi is in the way: pip uninstall amdsmi"
        ) from error


def _joined(
    ray: Any, tasks: Sequence[SweepTask], cluster: Cluster, command: Sequence[str]
) -> Generator[SweepOutcome]:
    ours = not ray.is_initialized()
    try:
        if ours:
            _join(ray, cluster.address)
        mark = _mark(tasks)
        # Ray's own retries are off: they would be neither counted nor bounded together with
        # those here, which a lost result needs as well.
        work = ray.remote(max_retries=0, num_cpus=cluster.cpus, num_gpus=_gpus(ray, cluster))(
            _on_worker
        )
        yield from _gather(ray, tasks, cluster, partial(_submit, work, tuple(command), mark))
    finally:
        if ours:
            ray.shutdown()


def _submit(work: Any, command: Sequence[str], mark: str, task: SweepTask) -> Any:
    return work.options(name=task.name).remote(task, command, mark)


def _gather(
    ray: Any, tasks: Sequence[SweepTask], cluster: Cluster, submit: Callable[[SweepTask], Any]
) -> Generator[SweepOutcome]:
    queue = deque(tasks)
    waiting: dict[Any, SweepTask] = {}
    attempts = dict.fromkeys((task.name for task in tasks), 0)
    try:
        while queue or waiting:
            while queue and len(waiting) < (cluster.jobs or len(tasks)):
                task = queue.popleft()
                attempts[task.name] += 1
                waiting[submit(task)] = task
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            task = waiting.pop(ready)
            tried = attempts[task.name]
            try:
                outcome = replace(ray.get(ready), attempts=tried)
            except ray.exceptions.RayError as error:
                # A lost node, a crashed worker, a lost result, or a worker that cannot even
                # import what it is to run.
                if tried <= cluster.retries:
                    queue.append(task)
                    continue
                outcome = SweepOutcome(
                    task.name, attempts=tried, error=f"lost {tried} times: {last_line(str(error))}"
                )
            yield _kept(task, outcome)
    finally:
        for ref in waiting:
            ray.cancel(ref, force=True)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _join(ray: Any, address: str) -> None:
    common = {"log_to_driver": False, "logging_level": "error", "configure_logging": False}
    if address == "local":
        ray.init(address, include_dashboard=False, **common)
        if not ray.util.get_node_ip_address().startswith(("127.", "::1")):
            raise WorkError("Ray would listen to other machines: it was loaded before the sweep")
        return
    try:
        host, sign, port = address.rpartition("://")[2].rpartition(":")
        if sign and port.isdigit():
            # Ray itself would try for more than a minute.
            socket.create_connection((host.strip("[]"), int(port)), GRACE).close()
        ray.init(address, **common)
    except (OSError, RuntimeError, ValueError, OverflowError) as error:
        raise InputError(
            f"--ray {address}: no cluster there ({last_line(str(error))})\n"
            "start one with: ray start --head; or use --ray local"
        ) from error


def _gpus(ray: Any, cluster: Cluster) -> float:
    """Return the GPUs that a run takes; Ray would wait for ever for those that nobody has."""
    there = float(ray.cluster_resources().get("GPU", 0))
    if cluster.gpus is None:
        return 1.0 if there >= 1 else 0.0
    if cluster.gpus and there == 0 and cluster.address == "local":
        raise InputError(f"--gpus {cluster.gpus:g}: this machine has no GPU that Ray can see")
    return cluster.gpus


def _mark(tasks: Sequence[SweepTask]) -> str:
    """Put the file into the sweep's folder by which workers know that they share it."""
    text = f"{os.uname().nodename} {os.getpid()} {time.time_ns()}"
    for folder in {task.home.parents[1] for task in tasks}:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).write_text(text, encoding="utf-8")
    return text


def _on_worker(task: SweepTask, command: Sequence[str], mark: str) -> SweepOutcome:
    """Run `task` on a worker: where the driver wants it, or in a folder of the worker's own."""
    try:
        shared = (task.home.parents[1] / MARK).read_text(encoding="utf-8") == mark
    except OSError:
        shared = False
    if shared:
        return alone(task, command)
    root = Path(tempfile.mkdtemp(prefix="tel-sweep-"))
    try:
        own = replace(task, home=root / task.name)
        outcome = alone(own, command)
        files = sorted((own.home / outcome.adapter).iterdir()) if outcome.adapter else []
        carried = {f"{outcome.adapter}/{file.name}": file.read_bytes() for file in files}
        return replace(outcome, files=carried)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _kept(task: SweepTask, outcome: SweepOutcome) -> SweepOutcome:
    """Write the adapter that came with the outcome, if any, into the run's workspace."""
    if not outcome.files:
        return outcome
    partial = task.home / ".carried"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, content in outcome.files.items():
        (partial / Path(name).name).write_bytes(content)
    replace_folder(partial, task.home / outcome.adapter)
    return replace(outcome, files={})
