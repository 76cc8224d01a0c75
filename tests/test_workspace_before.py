"""A workspace that was made before modules stood in wings is accepted, and its files made again.

`fixtures/workspace.tar.xz` holds it: questions that an engine without a model was scored on, and a
tiny backbone with its adapter, exported in both formats; its report is of a later version, which
decides. A change that makes other digests of the same inputs fails here, and would have everybody
train, export and score again.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import fake_engine as fake
import pytest
from conftest import ROOT

from tel_edge.eval.commands import evaluate, report
from tel_edge.eval.scoring import records
from tel_edge.export import made
from tel_edge.export.commands import export
from tel_edge.runtime.bundles import formats, manifest

Command = Callable[..., tuple[int, str, str]]
COMMON = ("--workspace", ".", "--quiet")


@pytest.fixture
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with tarfile.open(ROOT / "tests" / "fixtures" / "workspace.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def engines(before: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engines be of the versions that the records were made with."""
    known = {}
    for file in sorted(before.glob("results/tel-nano/lora-*/oranbench.json")):
        summary = records.read_summary(file)
        known[summary.variant.format] = summary.made_with["engine"]
    monkeypatch.setattr(formats.Format, "version", lambda row: known[row.name])


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")
    )
    return {str(path): path.read_bytes() for path in files}


@pytest.mark.usefixtures("engines")
@pytest.mark.parametrize(
    "more",
    [
        ("--baselines", "--no-rotations"),
        ("--protocol", "generate"),
        ("--part", "train"),
        ("--rotations",),
        (),
    ],
)
def test_nothing_is_scored_again(before: Path, run_command: Command, more: tuple[str, ...]) -> None:
    results, opener = contents(before / "results"), fake.FakeOpener()
    work = partial(evaluate.work, opener=opener, isolated=False)
    code, said, _ = run_command(evaluate.parser(), work, *COMMON, "--dataset", "data", *more)
    assert (code, opener.opened) == (0, [])
    assert "0 scored now" in said
    assert contents(before / "results") == results


@pytest.mark.usefixtures("engines")
def test_records_are_scored_to_the_same_bytes(before: Path, run_command: Command) -> None:
    file = before / "results/tel-nano/lora-F16/oranbench.jsonl"
    wanted = file.read_bytes()
    file.write_bytes(wanted[: len(wanted) // 2])
    work = partial(evaluate.work, opener=fake.FakeOpener(), isolated=False)
    assert run_command(evaluate.parser(), work, *COMMON, "--dataset", "data")[0] == 0
    assert file.read_bytes() == wanted


def test_the_report_is_the_same_to_the_byte(before: Path, run_command: Command) -> None:
    pytest.importorskip("matplotlib")
    names = ("report.md", "report.json")
    wanted = [(before / "reports" / name).read_bytes() for name in names]
    for name in names:
        (before / "reports" / name).unlink()
    assert run_command(report.parser(), report.work, *COMMON, "--dataset", "data")[0] == 0
    assert [(before / "reports" / name).read_bytes() for name in names] == wanted


@pytest.mark.parametrize(
    ("options", "stale"),
    # The graphs of then had none of onnxruntime's operators.
    [(("--quant", "F16,Q8_0"), False), (("--format", "onnx", "--quant", "int8"), True)],
)
def test_nothing_is_exported_again_without_need(
    before: Path,
    run_command: Command,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    stale: bool,
) -> None:
    for module in ("gguf", "llama_cpp", "torch", "transformers", "peft", "onnxscript"):
        pytest.importorskip(module)
    files, known = contents(before / "bundles/base"), {}
    for file in manifest.read(before / "bundles/base").files:
        known |= file.made_by or {}
    real = made.installed
    monkeypatch.setattr(made, "installed", lambda package: known.get(package) or real(package))
    argv = (*COMMON, "--backbone", "base", "--adapter", "peft", *options)
    if stale:
        code, said, _ = run_command(export.parser(), export.work, *argv)
        assert code == 0
        assert said.count("written") == 1
        files = contents(before / "bundles/base")
    code, said, _ = run_command(export.parser(), export.work, *argv)
    assert code == 0
    assert "written" not in said
    assert contents(before / "bundles/base") == files
