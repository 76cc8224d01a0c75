"""What a device installs: the wheel with one engine's extra, in an environment of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# Megabytes that a device with onnxruntime needs, the interpreter's own files not counted.
MOST = 260
ASKED = ["--category", "oranbench", "--choice", "the E2 node", "--choice", "the SMO"]


@pytest.mark.slow
@pytest.mark.parametrize("pinned", [[], ["onnxruntime==1.23.2"]], ids=["newest", "oldest"])
def test_a_device_with_onnxruntime_alone_answers(tmp_path: Path, pinned: list[str]) -> None:
    shutil.copytree(ROOT, tmp_path / "source", symlinks=True, ignore=_ignored)
    home = tmp_path / "home"
    env = {**os.environ, "TEL_PROFILE": os.devnull, "TEL_CACHE": str(tmp_path / "cache")}
    made = [sys.executable, "-m", "tel_edge.export.commands.export", "--format", "onnx", "--quiet"]
    subprocess.run([*made, "--out", str(home), "--quant", "int4"], check=True, env=env)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    before = _megabytes(tmp_path / "venv")
    wheel = f"{tmp_path / 'source'}[onnx]"
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel, *pinned], check=True)
    size = _megabytes(tmp_path / "venv") - before
    # The oldest release that works brings sympy, which later ones do without.
    assert pinned or size < MOST
    there = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json"], check=True, capture_output=True
    )
    names = {row["name"] for row in json.loads(there.stdout)}
    assert {"onnxruntime", "tokenizers", "numpy"} <= names
    assert not names & {"torch", "onnx", "transformers", "llama-cpp-python"}
    run = [tmp_path / "venv/bin/tel-run", "--bundle", home, "--no-adapter", *ASKED, "Who asks?"]
    said = subprocess.run(run, check=True, capture_output=True, env=env, text=True)
    assert json.loads(said.stdout)["answer"] in ("the E2 node", "the SMO")
    print(f"{size:.0f} MB: {' '.join(sorted(names))}")


def _ignored(folder: str, names: list[str]) -> list[str]:
    return [n for n in names if n.startswith((".", "results-", "tel-workspace")) or n == "build"]


def _megabytes(folder: Path) -> float:
    files = (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return sum(file.stat().st_size for file in files) / 1e6
