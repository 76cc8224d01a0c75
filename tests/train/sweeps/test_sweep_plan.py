"""The runs that a sweep's command line names."""

from __future__ import annotations

from pathlib import Path

import for_sweep
import pytest
from for_sweep import Command, behave, calls, planned

from tel_edge.runtime.errors import InputError
from tel_edge.train.sweeps.sweep_plan import PRESETS

tel_sweep = for_sweep.tel_sweep


def refused(*argv: str) -> str:
    with pytest.raises(InputError) as error:
        planned(*argv)
    return str(error.value)


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
    first = out.splitlines()[0]
    assert first.startswith("rank-4  to run  tel-train --backbone=tel-nano")
    assert first.endswith("/sweeps/grid/runs/rank-4"), "who types it gets the sweep's own adapter"
    assert out.splitlines()[-1] == "sweep: 2 runs, 0 reused"
    assert calls(data) == []
    assert not (tmp_path / "home").exists()
