"""`tel-sweep` with a trainer that trains nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import for_sweep
import pytest
from conftest import INTERRUPTIBLE, alive, until
from for_sweep import FAKE, Command, behave, calls, planned

from tel_edge.train.sweeps import ray_runner, runners
from tel_edge.train.sweeps.runners import SweepTask

tel_sweep = for_sweep.tel_sweep


def test_rows_are_made_once_and_reused(tel_sweep: Command, tmp_path: Path) -> None:
    data = behave(tmp_path / "data", right={"4": [60, 55], "8": [70, 72]})
    code, out, err = tel_sweep("--grid", "rank=4,8", "--jobs", "2", "--json")
    assert (code, err) == (0, "")
    assert sorted(calls(data)) == ["rank-4", "rank-8"]
    home = tmp_path / "home" / "sweeps" / "grid"
    row = json.loads((home / "rows" / "rank-8.json").read_text())
    assert (row["pass1"]["right"], row["majority"]["right"], row["adapter_bytes"]) == (70, 72, 8000)
    assert row["options"]["rank"] == "8"
    assert row["record"]["config"]["rank"] == 8
    assert (home / "runs" / "rank-8" / row["adapter"] / "training.json").is_file()
    *_, last, document = out.splitlines()
    assert last == f"sweep: 2 runs, 0 reused; best rank-8 Pass@1 0.700; report {home}/report.md"
    assert [made["run"] for made in json.loads(document)["rows"]] == ["rank-8", "rank-4"]

    # A wider grid makes what is new, another option of all makes all anew.
    code, out, _ = tel_sweep("--grid", "rank=4,8,16")
    assert (code, calls(data)[2:]) == (0, ["rank-16"])
    assert "sweep: 3 runs, 2 reused; best rank-8" in out
    tel_sweep("--grid", "rank=4,8", "--set", "epochs=2")
    assert len(calls(data)) == 5
    # A stated power changes no training, only what is stated.
    code, out, _ = tel_sweep("--grid", "rank=4,8", "--set", "epochs=2", "--watts", "30")
    assert len(calls(data)) == 5
    assert "stated joules" in out
    assert " 300\n" in out
    # Half a row is no row.
    (home / "rows" / "rank-4.json").write_text('{"schema_version": 1, "run": "rank-4"')
    tel_sweep("--grid", "rank=4,8", "--set", "epochs=2")
    assert calls(data)[5:] == ["rank-4"]


def test_a_failed_run_is_kept_with_its_reason_and_tried_again(
    tel_sweep: Command, tmp_path: Path
) -> None:
    data = behave(tmp_path / "data", fail=["4"], kill=["8"])
    code, out, _ = tel_sweep("--grid", "rank=4,8,16")
    assert code == 1
    assert "rank-4  failed: tel-train: out of memory" in out
    assert "rank-8  failed: ended by SIGKILL" in out
    assert "sweep: 3 runs, 0 reused, 2 failed; best rank-16" in out
    home = tmp_path / "home" / "sweeps" / "grid"
    assert json.loads((home / "rows" / "rank-4.json").read_text())["error"].endswith("memory")
    assert "| rank-4 | tel-train: out of memory |" in (home / "report.md").read_text()
    behave(data)
    code, out, _ = tel_sweep("--grid", "rank=4,8,16")
    assert (code, sorted(calls(data)[3:])) == (0, ["rank-4", "rank-8"])
    assert "failed" not in (home / "report.md").read_text().splitlines()[4:]


def test_every_run_failed(tel_sweep: Command, tmp_path: Path) -> None:
    behave(tmp_path / "data", fail=["4"])
    code, out, _ = tel_sweep("--grid", "rank=4")
    assert code == 1
    assert "sweep: 1 runs, 0 reused, 1 failed; report" in out


# How it is ended, its exit code, and what it says.
ENDS = {
    signal.SIGINT: (130, b"tel-sweep: interrupted; what was finished is kept\n"),
    signal.SIGTERM: (143, b"tel-sweep: terminated; what was finished is kept\n"),
    signal.SIGKILL: (-9, b""),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_sweep_that_is_killed_leaves_no_child_and_goes_on(
    tel_sweep: Command, tmp_path: Path, shell: str, how: signal.Signals
) -> None:
    data = behave(tmp_path / "data", seconds={"8": 60})
    code = INTERRUPTIBLE + (
        "import sys; from functools import partial; from tel_edge.runtime import cli; "
        "from tel_edge.train.commands import sweep; "
        f"sys.exit(cli.run(sweep.parser(), partial(sweep.work, command=({FAKE[0]!r},))))"
    )
    argv = ["--workspace", str(tmp_path / "home"), "--category", "3gpp_tsg"]
    argv += ["--dataset", str(data), "--grid", "rank=4,8"]
    child = subprocess.Popen([sys.executable, "-c", code, *argv], stderr=subprocess.PIPE)
    until(lambda: len(calls(data)) == 2)
    training = int((data / "calls.txt").read_text().split()[-1])
    child.send_signal(how)
    _, err = child.communicate(timeout=20)
    assert (child.returncode, err) == ENDS[how]
    until(lambda: not alive(training), 5)
    rows = tmp_path / "home" / "sweeps" / "grid" / "rows"
    assert [row.name for row in rows.iterdir()] == ["rank-4.json"]
    behave(data)
    code, out, _ = tel_sweep("--grid", "rank=4,8")
    assert (code, calls(data)) == (0, ["rank-4", "rank-8", "rank-8"])
    assert "2 runs, 1 reused" in out


def test_a_run_that_another_process_trains_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "PATIENCE", 0.2)
    data = behave(tmp_path / "data", seconds={"4": 30})
    (run,) = planned("--grid", "rank=4", "--dataset", str(data), "--category", "3gpp_tsg")
    task = SweepTask(run.argv, tmp_path / "sweep" / "runs" / run.name)
    live = runners.start(task, FAKE)
    (outcome,) = runners.local([task], 1, FAKE)
    assert "rank-4 is in use by " in (outcome.error or "")
    runners.stop(live)
    behave(data)
    (outcome,) = runners.local([task], 1, FAKE)
    assert outcome.error is None


def test_what_the_children_started_ends_with_them(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "import subprocess, sys, time; "
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        f"open({str(note)!r}, 'w').write(str(p.pid) + '\\n'); time.sleep(60)"
    )
    live = runners.start(SweepTask((), tmp_path / "runs" / "one"), ("-c", code))
    until(lambda: note.is_file() and note.read_text().endswith("\n"))
    runners.stop(live)
    until(lambda: not alive(int(note.read_text())), 5)


def test_a_worker_without_the_drivers_disk_sends_the_adapter(tmp_path: Path) -> None:
    data = behave(tmp_path / "data")
    (run,) = planned("--grid", "rank=4", "--dataset", str(data), "--category", "3gpp_tsg")
    task = SweepTask(run.argv, tmp_path / "sweep" / "runs" / run.name)
    mark = ray_runner._mark([task])
    here = ray_runner._on_worker(task, FAKE, mark)
    assert (dict(here.files), (task.home / here.adapter).is_dir()) == ({}, True)

    away = ray_runner._on_worker(task, FAKE, "of another sweep")
    assert away.error is None
    assert sorted(Path(name).name for name in away.files) == [
        "adapter_model.safetensors",
        "training.json",
    ]
    target = replace(task, home=tmp_path / "driver" / "runs" / run.name)
    kept = ray_runner._kept(target, away)
    assert dict(kept.files) == {}
    assert (target.home / kept.adapter / "adapter_model.safetensors").stat().st_size == 4000


def test_bundles_are_there_for_over_quant(tmp_path: Path) -> None:
    (tmp_path / "bundles" / "tel-nano").mkdir(parents=True)
    task = SweepTask((), tmp_path / "runs" / "one", tmp_path / "bundles")
    for _ in range(2):
        runners.finish(runners.start(task, ("-c", "pass")))
        assert (task.home / "bundles" / "tel-nano").is_dir()


def test_a_run_that_leaves_nothing_is_an_error(tmp_path: Path) -> None:
    live = runners.start(SweepTask((), tmp_path / "runs" / "one"), ("-c", "print('{}')"))
    assert "no whole adapter" in (runners.finish(live).error or "")
