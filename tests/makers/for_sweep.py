"""What the tests of sweep share."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tel_edge.eval.statistics import share
from tel_edge.train.commands import sweep, train
from tel_edge.train.sweeps.sweep_plan import SweepRun, plan
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


def row(run: str, loss: float, right: int, **more: Any) -> SweepRow:
    made = share(right, 100)
    figures: dict[str, Any] = {"category": "3gpp_tsg", "questions": 100, "adapter_bytes": 10**6}
    figures |= {"pass1": made, "majority": made, "validation_loss": loss, "validation_pass1": 0.5}
    return SweepRow(run, "d", {"rank": "4"}, **(figures | more))
