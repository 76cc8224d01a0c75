"""`tel-sweep` with a training that trains nothing: plan, reuse, failures, kills, and the report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import INTERRUPTIBLE, alive, until

from tel_edge.eval.statistics import share
from tel_edge.runtime.errors import InputError
from tel_edge.train.commands import sweep, train
from tel_edge.train.sweeps import ray_runner, runners, sweep_plot, sweep_report, sweep_row
from tel_edge.train.sweeps.runners import SweepTask
from tel_edge.train.sweeps.sweep_plan import PRESETS, SweepRun, plan
from tel_edge.train.sweeps.sweep_row import SweepRow

FAKE = (str(Path(__file__).with_name("fake_train.py")),)
Command = Callable[..., tuple[int, str, str]]


def behave(folder: Path, **behaviour: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "behaviour.json").write_text(json.dumps(behaviour))
    (folder / "calls.txt").touch()
    return folder


def calls(data: Path) -> list[str]:
    """Which runs were started, in their order."""
    return [line.split()[0] for line in (data / "calls.txt").read_text().splitlines()]


@pytest.fixture
def tel_sweep(tmp_path: Path, run_command: Command) -> Command:
    def run(*argv: str) -> tuple[int, str, str]:
        data = ["--dataset", str(tmp_path / "data"), "--category", "3gpp_tsg"]
        argv = ("--workspace", str(tmp_path / "home"), *data, *argv)
        return run_command(sweep.parser(), partial(sweep.work, command=FAKE), *argv)

    return run


def planned(*argv: str) -> tuple[SweepRun, ...]:
    return plan(sweep.parser().parse_args(argv), train.parser)


def refused(*argv: str) -> str:
    with pytest.raises(InputError) as error:
        planned(*argv)
    return str(error.value)


# The plan


def test_the_presets_runs() -> None:
    ranks = planned("--preset", "rank")
    assert [run.name for run in ranks] == ["rank-4", "rank-8", "rank-16", "rank-32"]
    assert [run.options["alpha"] for run in ranks] == ["8", "16", "32", "64"]
    assert {run.options["category"] for run in ranks} == {"3gpp_tsg"}
    modules = planned("--preset", "modules", "--category", "teleqna")
    assert len({run.name for run in modules}) == 16
    assert modules[0].name == "targets-qv_rank-4"
    assert {run.options["category"] for run in modules} == {"teleqna"}
    three = planned("--preset", "backbones", "--category", "teleqna,oranbench")
    assert len(three) == 6
    assert three[0].name == "backbone-llama-3.2-1b_category-teleqna"
    assert "alpha" not in three[0].options
    assert set(PRESETS["rank"].reference) == {"4", "8", "16", "32"}


def test_a_grid_is_every_combination_in_tel_trains_words() -> None:
    runs = planned(
        *("--grid", "rank=4,08", "--grid", "targets=qv,q_proj+v_proj", "--grid", "rslora=yes,no"),
        *("--set", "max_train=50", "--category", "teleqna", "--seed", "7"),
    )
    assert len(runs) == 8
    last = runs[-1]
    assert last.name == "rank-8_targets-q-proj-v-proj_rslora-no"
    assert "--rank=8" in last.argv
    assert "--targets=q_proj,v_proj" in last.argv
    assert {"--max-train=50", "--seed=7"} < set(last.argv)
    assert "--rslora" not in last.argv
    assert "--rslora" in runs[0].argv
    assert len({run.digest for run in runs}) == 8


def test_a_preset_can_be_narrowed_and_widened() -> None:
    runs = planned("--preset", "rank", "--grid", "rank=2", "--grid", "seed=1,2")
    assert [run.name for run in runs] == ["rank-2_seed-1", "rank-2_seed-2"]
    assert planned("--preset", "rank", "--set", "alpha=5")[0].options["alpha"] == "5"


def test_without_a_category_there_is_a_run_for_each() -> None:
    assert len(planned("--grid", "rank=4,8")) == 12


def test_folders_are_absolute_for_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    (run,) = planned("--grid", "rank=4", "--dataset", "data", "--category", "teleqna")
    assert run.options["dataset"] == str(tmp_path / "data")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "nothing to vary"),
        (("--grid", "rank"), "OPTION=VALUE"),
        (("--grid", "rank=4,,8"), "OPTION=VALUE"),
        (("--grid", "depth=4"), "no option 'depth'"),
        (("--grid", "rank=four"), "no whole number above 0"),
        (("--grid", "rank=0"), "no whole number above 0"),
        (("--grid", "loss=most"), "invalid choice"),
        (("--grid", "targets=qv,head"), "no projection 'head'"),
        (("--grid", "dropout=1"), "dropout 1.0"),
        (("--grid", "learning-rate=-1"), "learning-rate -1.0"),
        (("--grid", "rslora=maybe"), "yes or no"),
        (("--grid", "recipe=cake"), "unknown recipe"),
        (("--grid", "backbone=nowhere"), "no backbone 'nowhere'"),
        (("--grid", "rank=4", "--dataset", "nowhere"), "no data set 'nowhere'"),
        (("--grid", "category=all"), "one category a run"),
        (("--grid", "rank=4", "--grid", "rank=8"), "given twice"),
        (("--grid", "rank=4", "--set", "rank=8"), "varies in this sweep"),
        (("--preset", "backbones", "--backbone", "qwen3-0.6b"), "varies in this sweep"),
        (("--grid", "rank=8,08"), "the same as another run"),
        (("--grid", "rank=4", "--set", "workspace=x"), "no option 'workspace'"),
    ],
)
def test_what_tel_train_would_not_take_is_refused_before_anything_runs(
    argv: tuple[str, ...], said: str
) -> None:
    assert said in refused(*argv)


def test_bad_names_and_shares_are_refused(tel_sweep: Command, tmp_path: Path) -> None:
    behave(tmp_path / "data")
    for argv, said in (
        (("--name", "../up"), "--name"),
        (("--watts", "0"), "--watts"),
        (("--gpus", "1.5"), "--gpus"),
        (("--retries", "-1"), "--retries"),
        (("--jobs", "0"), "--jobs"),
    ):
        code, _, err = tel_sweep("--grid", "rank=4", *argv)
        assert code == 2
        assert said in err
    assert not (tmp_path / "home").exists()


def test_a_dry_run_prints_the_runs_and_writes_nothing(tel_sweep: Command, tmp_path: Path) -> None:
    data = behave(tmp_path / "data")
    code, out, _ = tel_sweep("--grid", "rank=4,8", "--dry-run")
    assert code == 0
    assert out.splitlines()[0].startswith("rank-4  to run  tel-train --backbone=tel-nano")
    assert out.splitlines()[-1] == "sweep: 2 runs, 0 reused"
    assert calls(data) == []
    assert not (tmp_path / "home").exists()


# Running


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
        "from tel_edge.train import sweep; "
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


# The report


def row(run: str, loss: float, right: int, **more: Any) -> SweepRow:
    made = share(right, 100)
    figures: dict[str, Any] = {"category": "3gpp_tsg", "questions": 100, "adapter_bytes": 10**6}
    figures |= {"pass1": made, "majority": made, "validation_loss": loss, "validation_pass1": 0.5}
    return SweepRow(run, "d", {"rank": "4"}, **(figures | more))


def test_a_row_comes_back_as_it_was_written(tmp_path: Path) -> None:
    for at, made in enumerate((row("a", 1.0, 50), SweepRow("b", "d", {}, error="no"))):
        path = tmp_path / f"{at}.json"
        sweep_row.write_row(path, made)
        assert str(sweep_row.read_row(path)) == str(made)
        assert "NaN" not in path.read_text()
    assert sweep_row.read_row(tmp_path / "none.json") is None
    path.write_text('["not a row"]')
    assert sweep_row.read_row(path) is None


def test_correlations_by_hand() -> None:
    # Pairs of (loss, accuracy): 10 in all, of which one of accuracies is tied (50, 50), one
    # agrees (1.0 < 1.1 and 60 < 70) and eight do not: tau-b = (1 - 8) / sqrt(10 * 9).
    rows = [row("a", 1.0, 60), row("b", 1.1, 70), row("c", 1.2, 50), row("d", 1.3, 50)]
    rows.append(row("e", 1.4, 40))
    tau, rho, *_ = sweep_report.correlations(rows)
    assert tau.value == pytest.approx(-7 / 90**0.5)
    # Ranks 1 2 3 4 5 against 4 5 2.5 2.5 1: sum of products of what differs from 3 is -8.5.
    assert rho.value == pytest.approx(-8.5 / (10 * 9.5) ** 0.5)
    assert tau.low is not None
    assert tau.high is not None
    assert -1 <= tau.low <= tau.value <= tau.high <= 1
    assert sweep_report.correlations(rows) == sweep_report.correlations(rows)


def test_correlations_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    losses = [0.9, 0.7, 0.7, 1.2, 0.3, 0.5, 0.55, 0.9]
    rights = [40, 55, 40, 55, 60, 61, 20, 30]
    rows = [row(str(at), *pair) for at, pair in enumerate(zip(losses, rights, strict=True))]
    tau, rho, *_ = sweep_report.correlations(rows)
    assert tau.value == pytest.approx(stats.kendalltau(losses, rights).statistic)
    assert rho.value == pytest.approx(stats.spearmanr(losses, rights).statistic)


def test_few_and_equal_runs_have_no_correlation() -> None:
    rows = [row(name, 1.0 + at, 50) for at, name in enumerate("abcd")]
    assert sweep_report.correlations(rows[:3]) == ()
    assert "Too few runs" in sweep_report.meaning(rows[:3], ())
    found = sweep_report.correlations(rows)
    assert all(made.value is made.low is None for made in found)
    assert "no correlation is defined" in sweep_report.meaning(rows, found)
    assert sweep_report.meaning(rows[:1], ()) == "One run: nothing to rank."


def test_in_words_where_the_lowest_loss_is() -> None:
    rows = [row("a", 0.5, 60), row("b", 0.6, 70), row("c", 0.7, 65), row("d", 0.8, 10)]
    said = sweep_report.meaning(rows, sweep_report.correlations(rows))
    assert "a, is at place 3 of 4 by Pass@1, 10.0 points below the best, b; their int" in said
    assert "do not show that the loss ranks them" in said
    good = [row(str(at), at / 10, 90 - 3 * at) for at in range(12)]
    said = sweep_report.meaning(good, sweep_report.correlations(good))
    assert "0, is also the best by Pass@1." in said
    assert "does go with a higher accuracy" in said
    # Four runs in perfect order are one of 24 orders, so both ways are no less than 2 of 24.
    found = sweep_report.correlations(good[:4])
    assert found[0].value == -1
    assert found[0].p == pytest.approx(2 / 24, abs=0.02)
    assert "may be chance" in sweep_report.meaning(good[:4], found)
    bad = [row(str(at), at / 10, 10 + 3 * at) for at in range(12)]
    said = sweep_report.meaning(bad, sweep_report.correlations(bad))
    assert "at place 12 of 12 by Pass@1, 33.0 points below the best, 11." in said
    assert "a lower loss goes with a lower accuracy" in said


def test_runs_of_other_categories_and_losses_are_not_compared() -> None:
    rows = [
        row("a", 1, 50),
        row("b", 1, 60, category="teleqna"),
        row("c", 9, 70, record={"config": {"loss": "all"}}),
        SweepRow("d", "d", {}, error="failed"),
    ]
    by = sweep_report.groups(rows)
    assert {title: [r.run for r in found] for title, found in by.items()} == {
        "3gpp_tsg, loss over all": ["c"],
        "3gpp_tsg, loss over answer": ["a"],
        "teleqna, loss over answer": ["b"],
    }


def test_the_front_is_what_no_cheaper_run_beats() -> None:
    points = [(1.0, 0.5), (2.0, 0.4), (3.0, 0.7), (3.0, 0.6), (4.0, 0.7), (0.5, 0.2)]
    assert sweep_plot.front(points) == [5, 0, 2]
    assert sweep_plot.front([]) == []


def test_the_rank_presets_report(tel_sweep: Command, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rights = {"4": [30, 34], "8": [40, 41], "16": [35, 40], "32": [42, 43]}
    behave(tmp_path / "data", right=rights, loss={"4": 2.0, "8": 1.9, "16": 1.8, "32": 1.95})
    code, out, _ = tel_sweep("--preset", "rank", "--jobs", "4")
    assert code == 0
    home = tmp_path / "home" / "sweeps" / "rank"
    text = (home / "report.md").read_text()
    assert "paper Maj@4" in text
    assert "| 41.75 |" in text
    assert "43.03 MB" in text
    assert "rank-16, is at place 3 of 4" in out
    assert "| 3gpp\\_tsg | Pass@1 | Kendall tau-b | 4 |" in text
    assert "stated" not in out
    made = json.loads((home / "report.json").read_text())
    assert made["reference"]["majority"]["rank-4"] == "34.25"
    assert [each["name"] for each in made["correlations"]["3gpp_tsg"]][:2] == [
        "Kendall tau-b",
        "Spearman rho",
    ]
    svg = (home / "pareto.svg").read_text()
    assert "no energy counter on this machine" in svg
    assert "rank-32" in svg


def test_measured_energy_has_a_panel_of_its_own(tel_sweep: Command, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    behave(tmp_path / "data", joules={"4": 1200.0, "8": None})
    code, out, _ = tel_sweep("--grid", "rank=4,8", "--watts", "5")
    assert code == 0
    assert "1,200 J" in out
    svg = (tmp_path / "home" / "sweeps" / "grid" / "pareto.svg").read_text()
    assert "measured" in svg
    assert "no energy counter" not in svg
    header, *_ = [line for line in out.splitlines() if line.startswith("category ")]
    assert header.split()[-3:] == ["joules", "stated", "joules"]


def test_without_matplotlib_there_is_a_report_all_the_same(
    tel_sweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behave(tmp_path / "data")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = tel_sweep("--grid", "rank=4")
    assert code == 0
    assert "no pareto.svg: matplotlib is not installed" in err
    text = (tmp_path / "home" / "sweeps" / "grid" / "report.md").read_text()
    assert "pareto" not in text


def test_ray_is_asked_for_by_its_extra(
    tel_sweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behave(tmp_path / "data")
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = tel_sweep("--grid", "rank=4", "--ray", "local")
    assert code == 2
    assert "pip install 'tel-edge[cluster]'" in err


def test_a_ray_that_cannot_be_imported_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ray.py").write_text("raise KeyError('libamd_smi.so')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    with pytest.raises(InputError, match=r"libamd_smi.so'\nif .* pip uninstall amdsmi"):
        list(ray_runner.on_ray([], ray_runner.Cluster("local")))


def test_threads_are_shared_among_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = ("-c", "import os, sys; print(os.environ['OMP_NUM_THREADS'], file=sys.stderr); exit(1)")
    tasks = [SweepTask((), tmp_path / "runs" / name) for name in "ab"]
    said = {outcome.error for outcome in runners.local(tasks, 2, code)}
    assert said == {str(max(1, (os.cpu_count() or 1) // 2))}
