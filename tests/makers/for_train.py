"""What the tests of train share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import export_models as models
import fake_engine as fake
import pytest

from tel_edge.runtime.questions.question import Question
from tel_edge.train.commands import train

torch = pytest.importorskip("torch")

Command = Callable[..., tuple[int, str, str]]
CHOICES = ("red", "green", "blue", "white")


@pytest.fixture(autouse=True)
def whole_numbers() -> Iterator[None]:
    """Undo what training sets for the whole process; others test with the smallest numbers."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the backbone `base` and the data set `data`: 18 questions to train on."""
    root = tmp_path_factory.mktemp("train")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    models.backbone(root / "base", "llama", dtype=torch.float32, **small)
    fake.dataset(root / "data", "oranbench", fake.rows(30))
    return root


@pytest.fixture
def tel_train(made: Path, tmp_path: Path, run_command: Command) -> Command:
    def run(*argv: str) -> tuple[int, str, str]:
        return run_command(train.parser(), train.work, *common(made, tmp_path), *argv)

    return run


def common(made: Path, home: Path) -> list[str]:
    argv = ["--workspace", str(home), "--backbone", str(made / "base"), "--quiet"]
    argv += ["--dataset", str(made / "data"), "--category", "oranbench"]
    return [*argv, "--rank", "2", "--batch", "6", "--learning-rate", "0.01"]


def adapter(home: Path) -> Path:
    return home / "adapters" / "base" / "oranbench"


def record(home: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((adapter(home) / "training.json").read_text())
    return read


def questions(*lengths: int) -> list[Question]:
    return [
        Question(f"q/{at}", "oranbench", "xApp " * length, CHOICES, at % 4)
        for at, length in enumerate(lengths)
    ]


def jobs(made: Path, home: Path, *argv: str) -> list[train.Job]:
    return train.jobs(train.parser().parse_args([*common(made, home), *argv]))
