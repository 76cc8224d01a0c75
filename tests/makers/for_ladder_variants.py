"""What the tests of ladder variants share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.benchmarks.split import Split, split
from tel_edge.eval.commands import evaluate
from tel_edge.eval.scoring.records import Summary, read_summary
from tel_edge.runtime.bundles.formats import Format
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.workspace import Workspace

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both engines are installed, whatever is installed here."""
    monkeypatch.setattr(Format, "installed", lambda row: True)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A workspace with a bundle, and 30 questions in `data`, of which 6 are in the test part."""
    fake.dataset(tmp_path / "data", "oranbench", fake.rows(30))
    fake.bundle(folder(tmp_path), split=parts(tmp_path).digest)
    return tmp_path


@pytest.fixture
def tel_eval(home: Path, run_command: Command) -> Command:
    def made(*argv: str, opener: Any = None, quiet: bool = True) -> tuple[int, str, str]:
        work = partial(evaluate.work, opener=opener or fake.FakeOpener(), isolated=False)
        common = ["--workspace", str(home), "--dataset", str(home / "data")]
        common += ["--quiet"] if quiet else []
        # Other orders and baselines are made by default; most tests are about something else.
        common += [] if "--baselines" in argv or "--decisive" in argv else ["--no-baselines"]
        common += [] if "--rotations" in argv else ["--no-rotations"]
        return run_command(evaluate.parser(), work, *common, *argv)

    return made


def folder(home: Path) -> Path:
    return home / "bundles" / "tel-nano"


def parts(home: Path, category: str = "oranbench") -> Split:
    return split(benchmark.read(str(home / "data"), CATEGORIES[category]).questions, 42)


def out(home: Path, variant: str, *where: Any, category: str = "oranbench") -> Path:
    return Workspace(home).results("tel-nano", variant, category, *where)


def summary(home: Path, variant: str, *where: Any, category: str = "oranbench") -> Summary:
    return read_summary(out(home, variant, *where, category=category).with_suffix(".json"))
