"""One training over several processes, as `torchrun` and `accelerate launch` start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import shown

pytest.importorskip("torch")

RUN = [
    "-m",
    "tel_edge.train.commands.train",
    "--category",
    "oranbench",
    "--quiet",
    "--json",
    "--score",
]
SHORT = ["--max-train", "32", "--epochs", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_train_one_adapter(launcher: str, tmp_path: Path) -> None:
    command = Path(sys.executable).with_name(launcher)
    two = {
        "torchrun": ["--nproc_per_node", "2"],
        "accelerate": ["launch", "--cpu", "--num_processes", "2", "--num_machines", "1"],
    }[launcher]
    done = subprocess.run(
        [command, *two, *RUN, *SHORT, "--workspace", tmp_path],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    # One of them speaks.
    assert done.stdout.count("validation Pass@1") == 1
    assert len(json.loads(done.stdout.splitlines()[-1])["adapters"]) == 1
    folder = tmp_path / "adapters" / "tel-nano"
    assert shown(folder) == ["oranbench"]
    record = json.loads((folder / "oranbench" / "training.json").read_text())
    assert record["test"][0]["questions"] == 121
    # 32 questions in eight orders, in batches of 16 of both together.
    assert record["curve"][-1]["step"] == 16
