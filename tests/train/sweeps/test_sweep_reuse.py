"""A sweep's row holds for the data and the backbone that it was made of, and no others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.benchmarks.split import split
from tel_edge.eval.statistics import share
from tel_edge.runtime.files import digest
from tel_edge.runtime.questions import prompt
from tel_edge.runtime.questions.categories import category
from tel_edge.train.commands import sweep, train
from tel_edge.train.sweeps import sweep_row
from tel_edge.train.sweeps.sweep_plan import plan
from tel_edge.train.sweeps.sweep_row import SweepRow

Command = Callable[..., tuple[int, str, str]]
RANKS = ("4", "8")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Return a folder with all of a backbone that a digest is of."""
    folder = tmp_path / "base"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return fake.dataset(tmp_path / "data", "oranbench", fake.rows(40))


@pytest.fixture
def tel_sweep(tmp_path: Path, base: Path, data: Path, run_command: Command) -> Command:
    """Return the command on a sweep of two ranks that both have a row."""
    argv = ["--workspace", str(tmp_path / "home"), "--backbone", str(base), "--dataset", str(data)]
    argv += ["--category", "oranbench", "--grid", "rank=4,8"]
    parts = split(benchmark.read(str(data), category("oranbench")).questions, 42)
    record = {
        "backbone": {
            "name": "base",
            "weights": digest.of_weights(base),
            "tokenizer": digest.of_tokenizer(base),
        },
        "split": parts.digest,
        "prompt": prompt.digest(),
    }
    # The one that is better on the validation part is worse on the test part.
    for run, seen, unseen in zip(
        plan(sweep.parser().parse_args(argv), train.parser), (0.9, 0.5), (50, 80), strict=True
    ):
        row = SweepRow(
            run.name, run.digest, run.options, category="oranbench", questions=100,
            pass1=share(unseen, 100), majority=share(unseen, 100), validation_loss=1 - seen,
            validation_pass1=seen, adapter_bytes=1000, parameters=10, seconds=1.0, record=record,
        )  # fmt: skip
        place = tmp_path / "home" / "sweeps" / "grid" / "rows" / f"{run.name}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        sweep_row.write_row(place, row)

    def run(*more: str) -> tuple[int, str, str]:
        return run_command(sweep.parser(), sweep.work, *argv, *more)

    return run


def reused(out: str) -> int:
    return sum("reused  tel-train" in line for line in out.splitlines())


def test_rows_of_the_same_contents_are_reused(tel_sweep: Command) -> None:
    code, out, err = tel_sweep("--dry-run")
    assert (code, reused(out), err) == (0, 2, "")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("model.safetensors", "the backbone"),
        ("tokenizer.json", "the backbone's tokenizer"),
    ],
)
def test_another_backbone_at_the_same_place_is_trained_again(
    tel_sweep: Command, base: Path, name: str, what: str
) -> None:
    (base / name).write_bytes(b'{"other": 1}')
    code, out, err = tel_sweep("--dry-run")
    assert (code, reused(out)) == (0, 0)
    assert err.splitlines() == [f"rank-{n}: {what} is another one since, run again" for n in RANKS]


def test_other_questions_at_the_same_place_are_trained_on_again(
    tel_sweep: Command, data: Path
) -> None:
    fake.dataset(data, "oranbench", fake.rows(41))
    code, out, err = tel_sweep("--dry-run")
    assert (code, reused(out)) == (0, 0)
    assert "rank-4: the data set is another one since, run again" in err


def test_what_cannot_be_compared_is_said_and_kept(tel_sweep: Command, base: Path) -> None:
    (base / "model.safetensors").unlink()
    code, out, err = tel_sweep("--dry-run")
    assert (code, reused(out)) == (0, 2)
    assert "rank-4: reused, though what it was made of cannot be compared: " in err
    assert "no *.safetensors" in err


def test_rows_of_an_older_version_say_nothing_and_are_kept(
    tel_sweep: Command, tmp_path: Path, data: Path
) -> None:
    for place in (tmp_path / "home" / "sweeps" / "grid" / "rows").iterdir():
        row = json.loads(place.read_text())
        place.write_text(json.dumps({**row, "record": {"config": {"loss": "answer"}}}))
    fake.dataset(data, "oranbench", fake.rows(41))
    assert reused(tel_sweep("--dry-run")[1]) == 2


def test_the_best_run_is_chosen_on_the_validation_part(tel_sweep: Command) -> None:
    code, out, _ = tel_sweep()
    assert code == 0
    assert "; best rank-4 Pass@1 0.500;" in out
    lines: list[Any] = [line.split() for line in out.splitlines()]
    table = [line[1] for line in lines if line and line[0] == "oranbench"]
    assert table == ["rank-4", "rank-8"]
