"""Backbones that are called alike: names that stay two, and folders that one of them has."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import export_models as models
import fake_engine as fake
import pytest

from tel_edge.eval.commands import evaluate
from tel_edge.eval.references import located
from tel_edge.runtime.bundles import backbones
from tel_edge.runtime.bundles.manifest import PLAIN

Command = Callable[..., tuple[int, str, str]]


def called(root: Path, name: str) -> str:
    (root / name).mkdir(parents=True, exist_ok=True)
    return backbones.find(str(root / name)).name


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("final", "final"), ("my model (2)", "my-model-2-"), ("v1.0_b", "v1.0_b"), ("+", "-")],
)
def test_names_of_plain_letters_are_as_they_were(name: str, wanted: str, tmp_path: Path) -> None:
    assert called(tmp_path, name) == wanted


def test_names_of_other_scripts_stay_apart(tmp_path: Path) -> None:
    names = ["модель", "模型", "модель-v2", "模型-v2", "modèle", "modéle"]
    made = [called(tmp_path, name) for name in names]
    assert len(set(made)) == len(names)
    assert all(PLAIN.fullmatch(name) and not name.startswith(("-", ".")) for name in made)
    assert made[0].startswith("backbone-")
    assert made[2].startswith("v2-")
    # One file system keeps the accent apart from its letter, another does not.
    assert called(tmp_path, unicodedata.normalize("NFD", "modèle")) == made[4]
    assert located.plain("модель") != located.plain("模型")


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Two backbones called `final`, and a data set `data` of `oranbench` and `teleqna`."""
    torch = pytest.importorskip("torch")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    for at in (1, 2):
        models.backbone(
            tmp_path / f"r{at}" / "final", "llama", seed=at, dtype=torch.float32, **small
        )
    for category in ("oranbench", "teleqna"):
        fake.dataset(tmp_path / "data", category, fake.rows(30))
    yield tmp_path / "r1" / "final", tmp_path / "r2" / "final"
    torch.set_flush_denormal(False)


SHORT = ("--rank", "2", "--batch", "6", "--epochs", "1", "--quiet")


def test_training_and_merging_leave_anothers_adapters_alone(
    two: tuple[Path, Path], tmp_path: Path, run_command: Command
) -> None:
    from tel_edge.train.commands import merge, train

    common = ["--workspace", str(tmp_path), "--dataset", str(tmp_path / "data")]

    def tel_train(backbone: Path, *argv: str) -> tuple[int, str, str]:
        given = [*common, "--backbone", str(backbone), "--category", "oranbench", *SHORT, *argv]
        return run_command(train.parser(), train.work, *given)

    assert tel_train(two[0])[0] == 0
    first = tmp_path / "adapters" / "final" / "oranbench"
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    for argv in ([], ["--no-resume"], ["--category", "teleqna"], ["--rank", "4"]):
        code, out, err = tel_train(two[1], *argv)
        assert (code, out) == (2, "")
        assert f"{first}: of another backbone that is called final too" in err
        assert "pass another --workspace, rename the backbone's folder" in err
    assert before == {path.name: path.read_bytes() for path in first.iterdir()}
    assert {path.name for path in first.parent.iterdir() if path.is_dir()} == {"oranbench"}
    # The same backbone goes on, also from elsewhere.
    shutil.copytree(two[0], tmp_path / "moved" / "final")
    assert tel_train(tmp_path / "moved" / "final", "--category", "teleqna")[0] == 0

    argv = ["--method", "linear", "--adapter", "oranbench,teleqna", "--quiet"]
    given = [*common, "--backbone", str(two[1]), *argv]
    code, _, err = run_command(merge.parser(), merge.work, *given)
    assert (code, "made for another backbone" in err) == (2, True)


def test_a_sweep_leaves_anothers_runs_alone(
    two: tuple[Path, Path], tmp_path: Path, run_command: Command
) -> None:
    from for_sweep import FAKE, behave, calls

    from tel_edge.runtime.files import digest
    from tel_edge.train.commands import sweep

    data = behave(tmp_path / "fake")

    def tel_sweep(backbone: Path) -> tuple[int, str, str]:
        argv = ["--workspace", str(tmp_path), "--dataset", str(data), "--category", "oranbench"]
        argv += ["--backbone", str(backbone), "--grid", "rank=4,8", "--quiet"]
        return run_command(sweep.parser(), partial(sweep.work, command=FAKE), *argv)

    assert tel_sweep(two[0])[0] == 0
    home = tmp_path / "sweeps" / "grid"
    # What the training that trains nothing leaves has no backbone.
    kept = home / "runs" / "rank-8" / "adapters" / "final" / "oranbench" / "training.json"
    kept.parent.mkdir(parents=True)
    weights = digest.of_weights(two[0])
    kept.write_text(json.dumps({"backbone": {"weights": weights}}))
    before = {path: path.read_bytes() for path in home.rglob("*.json")}
    code, out, err = tel_sweep(two[1])
    assert (code, out) == (2, "")
    assert f"{kept.parent}: of another backbone that is called final too" in err
    assert len(calls(data)) == 2
    assert before == {path: path.read_bytes() for path in home.rglob("*.json")}


def test_an_evaluation_leaves_anothers_results_alone(tmp_path: Path, run_command: Command) -> None:
    fake.dataset(tmp_path / "data", "oranbench", fake.rows(30))
    fake.bundle(tmp_path / "one", adapters=(), name="final")
    fake.bundle(tmp_path / "two", adapters=(), name="final", weights="d" * 64)

    def tel_eval(bundle: str) -> tuple[int, str, str]:
        argv = ["--workspace", str(tmp_path), "--dataset", str(tmp_path / "data"), "--quiet"]
        argv += ["--category", "oranbench", "--bundle", str(tmp_path / bundle)]
        work = partial(evaluate.work, opener=fake.FakeOpener(), isolated=False)
        return run_command(evaluate.parser(), work, *argv)

    assert tel_eval("one")[0] == 0
    results = tmp_path / "results"
    before = {path: path.read_bytes() for path in results.rglob("*.json*")}
    code, out, err = tel_eval("two")
    assert (code, out) == (2, "")
    assert "oranbench.json: of another backbone that is called final too" in err
    assert len(err.splitlines()) == 2
    assert before == {path: path.read_bytes() for path in results.rglob("*.json*")}
    assert tel_eval("one")[0] == 0
    # A large model that happens to be called so is no backbone.
    (results / "final" / "base-F16").rename(results / "final" / "reference-F16")
    assert tel_eval("two")[0] == 0
