"""Studies with a known truth, and what their report finds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import made_study as made

from tel_edge.eval.care.judges import studies
from tel_edge.eval.care.judges.verdicts import Judge, PairVerdict
from tel_edge.eval.care.study import found
from tel_edge.runtime.workspace import Workspace

SCORES = (1.5, 0.9, 0.5, 0.0, -0.4, -0.9, -1.6)
STANDINS = [
    Judge("rules", "standin", "", "rules", "r"),
    Judge("lexical", "standin", "", "lexical", "l"),
]


def truth(scores: Sequence[float] = SCORES, **settings: float) -> made.Truth:
    return made.Truth(tuple(scores), (4.0,) * len(scores), **settings)


def home(folder: Path, of: made.Truth | None = None, prompts: int = 60, **how: Any) -> Workspace:
    made.write(folder / "studies" / "care", of or truth(), prompts=prompts, **how)
    return Workspace(folder)


def collected(workspace: Workspace, data: Path | None = None) -> found.StudyReport:
    return found.collect(workspace.root / "studies" / "care", workspace, data)


def kinds(of: found.StudyReport) -> set[str]:
    return {one.kind for one in of.findings}


def rewritten(workspace: Workspace, change: Callable[[PairVerdict], PairVerdict]) -> None:
    folder = workspace.root / "studies" / "care"
    studies.write_lines(folder / studies.PAIRS, [*map(change, studies.read_pairs(folder))])


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return home(tmp_path_factory.mktemp("usual"))
