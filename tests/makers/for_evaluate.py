"""What the tests of evaluate share."""

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
from tel_edge.runtime.bundles.formats import Format
from tel_edge.runtime.questions.categories import CATEGORIES

Command = Callable[..., tuple[int, str, str]]
ORAN = CATEGORIES["oranbench"]


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The formats whose engine is installed, whatever is installed here."""
    names = {"gguf", "onnx"}
    monkeypatch.setattr(Format, "installed", lambda row: row.name in names)
    return names


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A workspace with a bundle and, in `data`, 30 questions of which 6 are in the test part."""
    fake.dataset(tmp_path / "data", "oranbench", fake.rows(30))
    fake.bundle(tmp_path / "bundles" / "tel-nano", split=parts(tmp_path).digest)
    return tmp_path


def parts(home: Path, seed: int = 42) -> Split:
    return split(benchmark.read(str(home / "data"), ORAN).questions, seed)


@pytest.fixture
def tel_eval(home: Path, run_command: Command) -> Callable[..., tuple[int, str, str]]:
    def made(
        *argv: str, opener: Any = None, isolated: bool = False, quiet: bool = True
    ) -> tuple[int, str, str]:
        work = partial(evaluate.work, opener=opener or fake.FakeOpener(), isolated=isolated)
        common = ["--workspace", str(home), "--dataset", str(home / "data")]
        common += ["--quiet"] if quiet else []
        # Other orders and baselines are made by default; most tests are about something else.
        common += [] if "--baselines" in argv or "--decisive" in argv else ["--no-baselines"]
        common += [] if "--rotations" in argv or "--decisive" in argv else ["--no-rotations"]
        argv = tuple(word for word in argv if word != "--decisive")
        return run_command(evaluate.parser(), work, *common, *argv)

    return made


def out(home: Path, variant: str, suffix: str = ".jsonl") -> Path:
    return home / "results" / "tel-nano" / variant / f"oranbench{suffix}"
