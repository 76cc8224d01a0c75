"""Of several adapters of a category every command takes the same, and says if it is unmeasured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest

from tel_edge.eval.commands import evaluate
from tel_edge.eval.scoring import variants
from tel_edge.runtime import cli
from tel_edge.runtime.bundles import bundle, manifest
from tel_edge.runtime.bundles.manifest import BundleFile, Manifest
from tel_edge.runtime.commands import bench, run


def add(
    folder: Path, quant: str, size: int, measured: bool, category: str = "oranbench"
) -> Manifest:
    """Add an adapter of another type to a bundle, the larger the more bytes `size` are."""
    path = folder / f"nano-{category}-{quant}.gguf"
    keys = {"general__type": "adapter", "tel_edge__backbone__weights": fake.WEIGHTS}
    path.write_bytes(fake.gguf(**keys, general__name="x" * size))
    made = manifest.read(folder)
    file = manifest.describe(
        folder, path, kind="adapter", format="gguf", quant=quant, category=category,
        backbone=fake.WEIGHTS, rank=8, parity=fake.PARITY if measured else None,
    )  # fmt: skip
    manifest.write(made.with_file(file), folder)
    return manifest.read(folder)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a workspace whose bundle has an adapter of the usual type."""
    fake.bundle(tmp_path / "bundles" / "tel-nano")
    return tmp_path


def scored(made: Manifest, folder: Path) -> list[BundleFile]:
    """Return the adapters that tel-eval scores by itself."""
    of = {"gguf": made.quants()}
    found = variants.variants(folder, made, "oranbench", of)
    return [adapter for _, _, adapter in found if adapter]


def served(command: Any, opener: Any, home: Path, *argv: str) -> fake.FakeOpener:
    made = opener()
    options = ["--workspace", str(home), *argv]
    assert cli.run(command.parser(), lambda args: command.work(args, made), options) == 0
    return made


QUESTION = ("Which?", "--choice", "red", "--choice", "green")


@pytest.mark.parametrize("measured", [True, False])
def test_a_larger_type_beside_the_usual_one_is_used_by_no_command(
    measured: bool, home: Path, capsys: Any
) -> None:
    folder = home / "bundles" / "tel-nano"
    made = add(folder, "F32", 5000, measured)
    usual = made.find("adapter", "F16", "oranbench")
    assert usual
    assert made.find("adapter", None, "oranbench") != usual
    assert bundle.adapter_file(folder, made, "oranbench") == usual
    assert set(scored(made, folder)) == {usual}
    opener = served(run, fake.FakeOpener, home, "--category", "oranbench", *QUESTION)
    assert opener.engines[0].adapters["oranbench"].digest == usual.sha256
    args = bench.parser().parse_args(["--workspace", str(home), "--quant", "F16"])
    args.category = None
    assert [one.adapter for one in bench.subjects(args)] == [usual]
    assert "never compared" not in capsys.readouterr().err


def test_one_that_was_measured_comes_before_the_usual_type(home: Path) -> None:
    folder = home / "bundles" / "tel-nano"
    made = manifest.read(folder)
    made = made.with_file(replace(bundle.adapter_file(folder, made, "oranbench"), parity=None))
    manifest.write(made, folder)
    made = add(folder, "Q8_0", 10, True)
    assert bundle.adapter_file(folder, made, "oranbench").quant == "Q8_0"
    assert {file.quant for file in scored(made, folder)} == {"Q8_0"}


def test_of_types_that_nobody_measured_the_usual_one_is_taken(home: Path) -> None:
    folder = home / "bundles" / "tel-nano"
    made = manifest.read(folder)
    made = made.with_file(replace(bundle.adapter_file(folder, made, "oranbench"), parity=None))
    manifest.write(made, folder)
    made = add(folder, "F32", 5000, False)
    assert bundle.adapter_file(folder, made, "oranbench").quant == "F16"


def unmeasured(home: Path) -> None:
    """Take the figures of the adapter and of the smallest backbone out of the manifest."""
    folder = home / "bundles" / "tel-nano"
    made = manifest.read(folder)
    for file in made.files:
        if file.kind == "adapter" or file.quant == "Q4_K_M":
            made = made.with_file(replace(file, parity=None))
    manifest.write(made, folder)


def test_tel_run_says_once_what_nobody_measured(home: Path, capsys: Any) -> None:
    unmeasured(home)
    served(run, fake.FakeOpener, home, "--category", "oranbench", *QUESTION)
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "compared" in one]
    assert line.startswith("warning: never compared with PEFT, so its answers may be others: ")
    assert "nano-Q4_K_M.gguf, nano-oranbench-LoRA.gguf;" in line
    served(run, fake.FakeOpener, home, "--no-adapter", "--quant", "F16", *QUESTION)
    assert "never compared" not in capsys.readouterr().err


def test_tel_eval_says_once_what_nobody_measured(home: Path, tmp_path: Path, capsys: Any) -> None:
    unmeasured(home)
    data = fake.dataset(tmp_path / "data", "oranbench", fake.rows(20))
    argv = ["--workspace", str(home), "--dataset", str(data), "--category", "oranbench"]
    opener = fake.FakeOpener()
    code = cli.run(
        evaluate.parser(), lambda args: evaluate.work(args, opener, isolated=False), argv
    )
    assert code == 0
    said = [one for one in capsys.readouterr().err.splitlines() if "never compared" in one]
    assert len(said) == 1
    assert "nano-F16.gguf" not in said[0]
