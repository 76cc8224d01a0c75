"""The script for the reference paper's tables: its plan."""

from __future__ import annotations

import re
import subprocess

import pytest
from conftest import ROOT

from tel_edge.runtime.bundles.backbones import BACKBONES

SCRIPTS = ROOT / "scripts"


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
    assert [line.split(".")[0].strip() for line in lines] == [str(n + 1) for n in range(21)]
    assert sum("tel-train" in line for line in lines) == 3
    assert sum("tel-sweep" in line and "3gpp_tsg" in line for line in lines) == 3
    named = [line.split()[-1] for line in lines if "--reference" in line]
    assert named == [BACKBONES[name].reference for name in ("llama-3.2-1b", "qwen3-0.6b")]
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


def test_all_parts_go_to_one_workspace_and_into_one_report() -> None:
    lines = plan("home")
    scored = [line for line in lines if "tel-eval" in line and "--reference" not in line]
    assert [("--part train --quant F16" in line) for line in scored] == [False, True] * 3
    assert all("--workspace home --backbone" in line for line in scored)
    assert lines[-1].endswith(
        ".venv/bin/tel-report --workspace home --backbone llama-3.2-1b --published --out home/paper"
    )
