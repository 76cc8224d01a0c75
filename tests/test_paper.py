"""The script for the reference paper's tables: its plan, and the tables of what is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import fake_engine as fake
import pytest

from tel_edge.eval import evaluate
from tel_edge.runtime import cli

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import paper_tables as paper  # noqa: E402


def plan(*argv: str, **env: str) -> list[str]:
    done = subprocess.run(
        ["bash", SCRIPTS / "reproduce_paper.sh", "--dry-run", *argv],
        capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin", **env},
    )  # fmt: skip
    return done.stdout.splitlines()


def six(lines: list[str]) -> list[float]:
    found = [re.search(r"six adapters.* ([0-9.]+) h ", line) for line in lines]
    return [float(match[1]) for match in found if match]


def test_a_dry_run_is_the_whole_plan_with_hours() -> None:
    lines = plan()
    assert [line.split(".")[0].strip() for line in lines] == [str(n + 1) for n in range(19)]
    assert sum("tel-train" in line for line in lines) == 3
    assert sum("tel-sweep" in line and "3gpp_tsg" in line for line in lines) == 3
    hours = six(lines)
    # 10 epochs of 2.22 M tokens, 4 operations a weight, at 100 TFLOP/s.
    assert hours[0] == pytest.approx(10 * 2.22e6 * 4 * 1.24e9 / 1e14 / 3600, abs=0.11)
    assert six(plan(TFLOPS="400"))[0] < hours[0]


def test_a_rehearsal_is_capped_and_on_the_embedded_backbone() -> None:
    lines = plan("--rehearse", "folder", "home")
    assert len(lines) == 7
    assert all("tel-nano" in line for line in lines[:-1])
    assert "--max-train" in lines[0]
    assert "--dataset folder" in lines[0]


def test_tables_of_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--workspace", str(tmp_path), "--backbones", "tel-nano", "--out", str(tmp_path / "p")]
    assert cli.run(paper.parser(), paper.work, argv) == 2
    assert "no results of tel-nano" in capsys.readouterr().err
    fake.bundle(tmp_path / "bundles" / "tel-nano")
    data = tmp_path / "data"
    fake.dataset(data, "oranbench", fake.rows(30))
    score = ["--workspace", str(tmp_path), "--dataset", str(data), "--category", "oranbench"]

    def work(args: object) -> object:
        return evaluate.work(args, opener=fake.FakeOpener(fake.gold), isolated=False)  # type: ignore[arg-type]

    assert cli.run(evaluate.parser(), work, [*score, "--quiet", "--other-split"]) == 0  # type: ignore[arg-type]
    (line,) = [one for one in paper.lines(tmp_path, ["tel-nano"]) if one.unseen]
    assert (line.category, line.seen) == ("oranbench", None)
    table = paper.accuracies([line])
    assert "| tel-nano | oranbench | - |" in table
    drawn = paper.figures([line], {}, tmp_path)
    assert [path.name for path in drawn] == ["figure-1.svg", "figure-2.svg"]
    assert all(path.stat().st_size > 1000 for path in drawn)
