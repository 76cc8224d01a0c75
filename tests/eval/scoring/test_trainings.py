"""What the report takes from `training.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tel_edge.eval.scoring import trainings
from tel_edge.eval.scoring.trainings import Training
from tel_edge.eval.statistics import share
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.workspace import Workspace


def read(home: Path, document: Any) -> Training | None:
    path = Workspace(home).adapter("tel-nano", "oranbench") / "training.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return trainings.read(Workspace(home), "tel-nano", "oranbench")


def test_everything_that_is_known(tmp_path: Path) -> None:
    made = read(
        tmp_path,
        {
            "seconds": 127,
            "parameters": 390_000,
            "config": {"rank": 16},
            "curve": [
                {"step": 10, "epoch": 1, "loss": 1.5, "validation_loss": float("nan"), "more": "x"},
                {"step": 20, "loss": None, "validation_loss": 0.5, "validation_pass1": 0.25},
                {"epoch": 3, "loss": 1.0},
            ],
            "best": {"epoch": 2, "validation_pass1": 0.75},
            "rows": {"train": 600, "validation": 200},
        },
    )
    assert made == Training(
        "oranbench",
        127.0,
        390_000,
        {"rank": 16},
        (
            {"step": 10.0, "epoch": 1.0, "loss": 1.5},
            {"step": 20.0, "validation_loss": 0.5, "validation_pass1": 0.25},
        ),
        share(150, 200),
    )


@pytest.mark.parametrize(
    "known",
    [
        {},
        {"best": None, "rows": None, "curve": None, "config": None},
        {"best": {"validation_pass1": 0.5}},
        {"best": {"validation_pass1": 0.5}, "rows": {"validation": 0}},
        {"rows": {"validation": 10}},
    ],
)
def test_nothing_need_be_known(known: dict[str, Any], tmp_path: Path) -> None:
    assert read(tmp_path, known) == Training("oranbench", None, None, {}, (), None)


def test_an_adapter_that_is_not_there(tmp_path: Path) -> None:
    assert trainings.read(Workspace(tmp_path), "tel-nano", "oranbench") is None


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        [],
        {"curve": [{"step": "x"}]},
        {"curve": [3]},
        {"seconds": "soon"},
        {"parameters": float("inf")},
        {"best": {"validation_pass1": float("nan")}, "rows": {"validation": 10}},
        {"best": [1], "rows": {"validation": 10}},
    ],
)
def test_anything_else_is_refused(broken: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training\.json: not the record of a training") as caught:
        read(tmp_path, broken)
    assert str(caught.value).splitlines()[1] == (
        "train again: tel-train --backbone tel-nano --category oranbench"
    )
