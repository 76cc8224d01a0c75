"""What a sweep's report says."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import for_sweep
import pytest
from for_sweep import Command, behave, row

from tel_edge.runtime.errors import InputError
from tel_edge.train.sweeps import ray_runner, runners, sweep_plot, sweep_report, sweep_row
from tel_edge.train.sweeps.runners import SweepTask
from tel_edge.train.sweeps.sweep_row import SweepRow

tel_sweep = for_sweep.tel_sweep


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
