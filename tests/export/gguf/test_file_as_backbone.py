"""A GGUF file as the backbone: trained over, shipped as it is, answered with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import export_models as models
import fake_engine as fake
import gguf_files
import pytest
from conftest import shown

from tel_edge.export import ExportRequest
from tel_edge.export.commands import export
from tel_edge.export.exporting import export as exported
from tel_edge.runtime.bundles import bundle as bundles
from tel_edge.runtime.commands import run
from tel_edge.runtime.files import digest
from tel_edge.train.commands import train

pytest.importorskip("torch")
Command = Callable[..., tuple[int, str, str]]
# Keys of the exporter's own, which a file of another converter lacks.
OWN = "tel_edge."


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Q4_0 file as others make it."""
    home = tmp_path_factory.mktemp("foreign")
    base = models.backbone(home / "base", "llama")
    made = exported(
        ExportRequest(workspace=home, backbone=str(base), quant="Q4_0", verify=False, quiet=True)
    )
    taken = gguf_files.File.of((made.bundle / made.files[0][0].path).read_bytes())
    taken.keys = {name: value for name, value in taken.keys.items() if not name.startswith(OWN)}
    # A type that the exporter does not make itself.
    taken.put("general.file_type", 3).put("general.license", "mit")
    path = home / "Some-1M.Q4_1.gguf"
    path.write_bytes(taken.bytes())
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEL_CACHE", str(tmp_path_factory.getbasetemp() / "one-cache"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def argv(home: Path, foreign: Path) -> list[str]:
    return ["--workspace", str(home), "--backbone", str(foreign), "--quiet"]


def test_from_the_training_to_the_answer(foreign: Path, home: Path, run_command: Command) -> None:
    data = fake.dataset(home / "data", "oranbench", fake.rows(30))
    given = [*argv(home, foreign), "--dataset", str(data), "--category", "oranbench"]
    small = ["--rank", "2", "--epochs", "1"]
    code, _, err = run_command(train.parser(), train.work, *given, *small)
    assert code == 0, err
    folder = home / "adapters" / "Some-1M.Q4_1" / "oranbench"
    record = json.loads((folder / "training.json").read_text())
    assert record["backbone"]["file"] == digest.of_file(foreign)

    options = ["--adapter", "oranbench"]
    code, out, err = run_command(export.parser(), export.work, *argv(home, foreign), *options)
    assert code == 0, err
    bundle = home / "bundles" / "Some-1M.Q4_1"
    manifest = bundles.read(bundle)
    assert manifest.backbone.licence == "mit"
    (file,) = (one for one in manifest.files if one.kind == "backbone")
    assert (file.path, file.quant) == ("Some-1M.Q4_1.gguf", "Q4_1")
    assert (bundle / file.path).read_bytes() == foreign.read_bytes(), "the very file"
    assert file.parity is not None
    assert file.parity["conversion"] < 1e-4

    asked = ["--category", "oranbench", "--choice", "a", "--choice", "b", "Which one?"]
    code, out, err = run_command(run.parser(), run.work, *argv(home, foreign), *asked)
    assert code == 0, err
    assert json.loads(out.splitlines()[0])["answer"] in ("a", "b")


def test_so_is_a_file_that_was_exported_here(tmp_path: Path, run_command: Command) -> None:
    """Such a file states the weights that it was made from, which are not those that it has."""
    base = models.backbone(tmp_path / "base", "llama")
    first = exported(
        ExportRequest(
            workspace=tmp_path, backbone=str(base), quant="Q4_0", verify=False, quiet=True
        )
    )
    path = first.bundle / "base-Q4_0.gguf"
    data = fake.dataset(tmp_path / "data", "oranbench", fake.rows(30))
    given = argv(tmp_path, path)
    small = ["--dataset", str(data), "--category", "oranbench", "--rank", "2", "--epochs", "1"]
    code, _, err = run_command(train.parser(), train.work, *given, *small)
    assert code == 0, err
    types = ["--adapter", "oranbench", "--quant", "Q4_0,Q8_0"]
    code, _, err = run_command(export.parser(), export.work, *given, *types)
    assert code == 0, err
    bundle = tmp_path / "bundles" / "base-Q4_0"
    asked = ["--category", "oranbench", "--choice", "a", "--choice", "b", "Which one?"]
    for quant in ("Q4_0", "Q8_0"):
        code, _, err = run_command(run.parser(), run.work, *given, "--quant", quant, *asked)
        assert code == 0, err
    adapter = next(bundle.glob("*LoRA.gguf"))
    alone = ["--backbone-file", str(path), "--adapter-file", f"oranbench={adapter}"]
    code, _, err = run_command(run.parser(), run.work, *alone, "--quiet", *asked)
    assert code == 0, err
    assert bundles.read(bundle).backbone.origin == bundles.read(first.bundle).backbone.weights


def test_other_types_are_made_with_a_warning(
    foreign: Path, tmp_path: Path, run_command: Command
) -> None:
    given = [*argv(tmp_path, foreign)[:-1], "--quant", "Q4_1,Q8_0,F16", "--no-verify"]
    code, _, err = run_command(export.parser(), export.work, *given)
    assert code == 0, err
    assert "Q8_0, F16: made from Some-1M.Q4_1.gguf, which was quantized before (Q4_1)" in err
    bundle = tmp_path / "bundles" / "Some-1M.Q4_1"
    assert shown(bundle) == [
        "README.md", "Some-1M.Q4_1-F16.gguf", "Some-1M.Q4_1-Q8_0.gguf", "Some-1M.Q4_1.gguf",
        "manifest.json",
    ]  # fmt: skip
    before = {path.name: path.stat().st_mtime_ns for path in bundle.iterdir()}
    assert run_command(export.parser(), export.work, *given)[0] == 0
    assert {path.name: path.stat().st_mtime_ns for path in bundle.iterdir()} == before


def test_a_dry_run_tells_the_file_s_own_size(
    foreign: Path, tmp_path: Path, run_command: Command
) -> None:
    given = [*argv(tmp_path, foreign), "--dry-run", "--json"]
    code, out, err = run_command(export.parser(), export.work, *given)
    assert code == 0, err
    assert str(foreign.stat().st_size) in out.splitlines()[-1]


def test_another_file_is_another_backbone(
    foreign: Path, home: Path, tmp_path: Path, run_command: Command
) -> None:
    """An adapter over one file is refused over another of the same shape and name."""
    taken = gguf_files.File.of(foreign.read_bytes())
    at = taken.tensors["blk.0.ffn_up.weight"].offset
    other = bytearray(taken.data)
    other[at + 2] ^= 0x11
    taken.data = bytes(other)
    path = tmp_path / foreign.name
    path.write_bytes(taken.bytes())
    adapter = home / "adapters" / "Some-1M.Q4_1" / "oranbench"
    given = [*argv(tmp_path, path), "--adapter", str(adapter)]
    code, _, err = run_command(export.parser(), export.work, *given)
    assert code == 2
    assert "another backbone" in err


@pytest.mark.parametrize("damage", ["short", "text"])
def test_a_damaged_file_is_refused_in_one_line(
    foreign: Path, tmp_path: Path, run_command: Command, damage: str
) -> None:
    path = tmp_path / "model.gguf"
    content = foreign.read_bytes()
    path.write_bytes(content[:-5000] if damage == "short" else b"<html>not found</html>" * 9)
    for command in (train, export):
        code, _, err = run_command(command.parser(), command.work, *argv(tmp_path, path))
        assert code == 2
        assert str(path) in err
        assert len(err.splitlines()) <= 2
