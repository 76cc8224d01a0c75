"""`tel-sweep --ray` on a cluster of two nodes on this machine, one of which is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import INTERRUPTIBLE, alive, until
from for_sweep import FAKE, behave, calls

from tel_edge.train.commands import sweep
from tel_edge.train.sweeps import ray_runner, runners

try:
    import ray
except Exception as error:
    # No ImportError where a package that it imports is broken.
    pytest.skip(f"ray cannot be imported: {error!r}", allow_module_level=True)
pytestmark = pytest.mark.slow
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that runs nothing, and two nodes with room for one run each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # A node counts as dead after seconds, not after half a minute.
    monkeypatch.setenv("RAY_health_check_initial_delay_ms", "0")
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.nodes = [made.add_node(num_cpus=1, include_dashboard=False) for _ in range(2)]
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def tel_sweep(tmp_path: Path, run_command: Command) -> Command:
    def run(*argv: str) -> tuple[int, str, str]:
        data = ["--dataset", str(tmp_path / "data"), "--category", "3gpp_tsg"]
        argv = ("--workspace", str(tmp_path / "home"), *data, "--json", *argv)
        return run_command(sweep.parser(), partial(sweep.work, command=FAKE), *argv)

    return run


def rows(home: Path) -> dict[str, Any]:
    found = (home / "sweeps" / "grid" / "rows").glob("*.json")
    return {path.stem: json.loads(path.read_text()) for path in found}


def test_a_run_on_a_killed_node_is_repeated_and_each_row_is_there_once(
    cluster: Any, tel_sweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write = sweep.sweep_report.write_row

    def note(path: Path, made: Any) -> None:
        written.append(made.run)
        write(path, made)

    monkeypatch.setattr(sweep.sweep_report, "write_row", note)
    # Two at a time: the long one is in the middle on one node, whichever that is.
    data = behave(tmp_path / "data", seconds={"4": 1, "8": 60, "16": 1, "32": 1})
    killed: dict[str, int] = {}

    def kill() -> None:
        until(lambda: "rank-8" in calls(data) and len(written) >= 2, 120)
        lines = [line.split() for line in (data / "calls.txt").read_text().splitlines()]
        killed["training"] = int(dict(lines)["rank-8"])
        worker = int(Path(f"/proc/{killed['training']}/stat").read_text().split()[3])
        raylet = int(Path(f"/proc/{worker}/stat").read_text().split()[3])
        behave(data)
        (node,) = [n for n in cluster.nodes if raylet in _pids(n)]
        cluster.remove_node(node, allow_graceful=False)
        killed["nodes"] = 1

    def _pids(node: Any) -> set[int]:
        return {process.process.pid for of in node.all_processes.values() for process in of}

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    code, out, _ = tel_sweep("--grid", "rank=4,8,16,32", "--ray", cluster.address)
    killer.join(10)
    assert killed["nodes"] == 1
    assert not alive(killed["training"])
    made = rows(tmp_path / "home")
    assert code == 0, out
    assert sorted(made) == ["rank-16", "rank-32", "rank-4", "rank-8"]
    assert sorted(written) == sorted(made)
    assert {name: row["attempts"] for name, row in made.items()} == {
        "rank-4": 1, "rank-8": 2, "rank-16": 1, "rank-32": 1,
    }  # fmt: skip
    assert calls(data).count("rank-8") == 2
    assert made["rank-8"]["record"]["pid"] != killed["training"]

    code, out, _ = tel_sweep("--grid", "rank=4,8,16,32", "--ray", cluster.address)
    assert (code, len(calls(data))) == (0, 5)
    assert "4 runs, 4 reused" in out


def test_a_worker_that_dies_every_time_fails_after_the_retries(
    cluster: Any, tel_sweep: Command, tmp_path: Path
) -> None:
    data = behave(tmp_path / "data")
    # A training that takes its worker with it, which a run cannot do by failing.
    code = (
        "import os, signal; "
        f"open({str(data / 'calls.txt')!r}, 'a').write('x 0\\n'); "
        "os.kill(os.getppid(), signal.SIGKILL)"
    )
    tasks = [runners.SweepTask((), tmp_path / "home" / "runs" / "one")]
    where = ray_runner.Cluster(cluster.address, retries=1)
    (outcome,) = ray_runner.on_ray(tasks, where, ("-c", code))
    assert outcome.error is not None
    assert outcome.error.startswith("lost 2 times: ")
    assert (outcome.attempts, calls(data)) == (2, ["x", "x"])


def test_adapters_come_back_from_workers_that_share_no_disk(
    cluster: Any, tel_sweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Workers then find another mark than the driver's, or none, in what may be the sweep's folder.
    monkeypatch.setattr(ray_runner, "_mark", lambda tasks: "on another disk")
    behave(tmp_path / "data")
    code, _, _ = tel_sweep("--grid", "rank=4,8", "--ray", cluster.address)
    assert code == 0
    home = tmp_path / "home"
    for name, made in rows(home).items():
        folder = home / "sweeps" / "grid" / "runs" / name / made["adapter"]
        assert (folder / "adapter_model.safetensors").stat().st_size == made["adapter_bytes"]
        assert not (folder.parents[2] / "stdout.txt").exists()


def started(home: Path, data: Path, *argv: str) -> subprocess.Popen[str]:
    """A sweep in a process of its own, as Ray reads some settings when it is imported."""
    code = INTERRUPTIBLE + (
        "import sys; from functools import partial; from tel_edge.runtime import cli; "
        "from tel_edge.train.commands import sweep; "
        f"sys.exit(cli.run(sweep.parser(), partial(sweep.work, command=({FAKE[0]!r},))))"
    )
    common = ["--workspace", str(home), "--dataset", str(data), "--category", "3gpp_tsg"]
    return subprocess.Popen(
        [sys.executable, "-c", code, *common, "--ray", "local", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_ray_of_ones_own_listens_to_this_machine_only_and_ends(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    data = behave(tmp_path / "data", fail=["8"], seconds={"4": 3})
    sweeping = started(tmp_path / "home", data, "--grid", "rank=4,8")
    until(lambda: "rank-4" in calls(data), 60)
    there = [sweeping.pid, *(p.pid for p in psutil.Process(sweeping.pid).children(recursive=True))]
    listening = {
        made.laddr.ip
        for made in psutil.net_connections("tcp")
        if made.pid in there and made.status == psutil.CONN_LISTEN
    }
    assert listening
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    out, _ = sweeping.communicate(timeout=60)
    assert sweeping.returncode == 1
    assert "rank-8  failed: tel-train: out of memory" in out
    assert sorted(calls(data)) == ["rank-4", "rank-8"]
    until(lambda: not any(alive(pid) for pid in there), 30)


def test_an_interrupted_sweep_ends_its_training_on_ray(tmp_path: Path) -> None:
    data = behave(tmp_path / "data", seconds={"4": 60})
    sweeping = started(tmp_path / "home", data, "--grid", "rank=4")
    until(lambda: "rank-4" in calls(data), 60)
    training = int((data / "calls.txt").read_text().split()[1])
    sweeping.send_signal(signal.SIGINT)
    _, err = sweeping.communicate(timeout=60)
    assert sweeping.returncode == 130
    assert "what was finished is kept" in err
    until(lambda: not alive(training), 10)
    assert rows(tmp_path / "home") == {}


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:1", "nowhere.invalid:6379"])
def test_a_cluster_that_is_not_there_is_an_input_error(
    tel_sweep: Command, tmp_path: Path, address: str
) -> None:
    behave(tmp_path / "data")
    code, _, err = tel_sweep("--grid", "rank=4", "--ray", address)
    assert code == 2
    assert f"--ray {address}: no cluster there" in err
    assert "ray start --head" in err
