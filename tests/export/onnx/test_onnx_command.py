"""`tel-export --format onnx`: what is in a bundle, made once and mended."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from onnx_models import CATEGORIES, QUANTS, Graph, Tiny, ids

from tel_edge.export.commands import export
from tel_edge.export.onnx import make
from tel_edge.export.onnx.quantize import ONNX_QUANTS
from tel_edge.runtime import cli
from tel_edge.runtime.bundles import bundle, manifest
from tel_edge.runtime.errors import WorkError
from tel_edge.runtime.files import digest

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
import for_onnx_command
from for_onnx_command import ADAPTER_FILES, names, states, tel_export

llama = for_onnx_command.llama
no_tracing = for_onnx_command.no_tracing
home = for_onnx_command.home
empty = for_onnx_command.empty
BACKBONES = [f"base-{quant}.onnx" for quant in QUANTS]


def test_what_is_in_a_bundle(onnx_home: Path, llama: Tiny) -> None:
    folder = onnx_home / "bundles" / "base"
    made = bundle.read(folder)
    data = [f"{name}.data" for name in BACKBONES]
    listed = {file.path for file in made.files}
    assert listed == {*BACKBONES, *data, *ADAPTER_FILES, "tokenizer.json"}
    assert names(folder) == listed | {"manifest.json", "README.md"}
    weights = digest.of_weights(llama.base)
    for file in made.files:
        manifest.verified(folder, file, again=True)
        assert file.format == "onnx"
        kinds = {".onnx": "backbone", ".data": "data", ".json": "tokenizer"}
        assert file.kind == kinds.get(Path(file.path).suffix, "adapter")
        if file.kind == "backbone":
            assert (file.source, file.options, file.category) == (weights, None, None)
            assert [part.path for part in made.parts(file)] == [
                file.path, f"{file.path}.data", "tokenizer.json"
            ]  # fmt: skip
            assert file.parity is not None
            assert 0 <= file.parity["conversion"] < 1e-4
            figures = {"prompts", "largest", "kl", "picks", "error", "conversion"}
            if file.quant != "fp32":
                figures.add("quantization")
                assert 0 < file.parity["quantization"] <= ONNX_QUANTS[file.quant].apart
            assert set(file.parity) == figures
        elif file.kind == "adapter":
            assert (file.quant, file.backbone, file.rank) == ("F32", weights, 8)
            assert (file.split, file.category in CATEGORIES) == ("5" * 64, True)
            assert file.parity is not None
            # It was measured over fp32.
            assert file.parity["error"] < 1e-4
            assert file.parity["adapter"] < 1e-3
        else:
            assert file.parity is None
    # Half as many bits, but a graph of the same size.
    assert made.quants(format="onnx") == ("fp32", "int8", "dynamic-int8", "int4")
    assert sorted(made.adapters("onnx")) == sorted(CATEGORIES)
    assert made.adapters() == made.quants() == ()


def test_what_binds_a_file_is_in_it(onnx_home: Path, llama: Tiny) -> None:
    from tel_edge.runtime.files import onnx_adapter, onnx_header
    from tel_edge.runtime.questions import prompt

    folder = onnx_home / "bundles" / "base"
    weights = digest.of_weights(llama.base)
    for quant, path in zip(QUANTS, BACKBONES, strict=True):
        header = onnx_header.check(folder / path)
        assert header.metadata == {
            "tel_edge.backbone.weights": weights,
            "tel_edge.prompt": prompt.digest(),
            "tel_edge.context": "512",
            "tel_edge.window": "0",
            "tel_edge.eos": str(llama.model.config.eos_token_id),
            "tel_edge.quant": quant,
        }
        content = (folder / path).read_bytes()
        for place in (onnx_home, llama.folder, Path(make.__file__).parents[2]):
            assert str(place).encode() not in content
    for path in ADAPTER_FILES:
        found = onnx_adapter.read(folder / path)
        assert (found.adapter_version, found.model_version) == (1, onnx_adapter.stamp(weights))
        assert len(found.tensors) == 28


def test_the_file_is_the_graph_with_slots_and_operators(onnx_home: Path, llama: Tiny) -> None:
    import numpy as np

    got = Graph(onnx_home / "bundles" / "base" / "base-fp32.onnx")(ids(20))[0]
    assert np.array_equal(got, Graph(llama.fused)(ids(20))[0])


def test_without_operators_the_file_is_the_graph_with_slots(
    llama: Tiny, empty: Path, capsys: Any
) -> None:
    import numpy as np

    asked = ["--no-fuse", "--quant", "fp32", "--no-verify"]
    assert tel_export(llama, empty, *asked) == 0
    file = empty / "bundles" / "base" / "base-fp32.onnx"
    assert np.array_equal(Graph(file)(ids(20))[0], Graph(llama.slots)(ids(20))[0])
    # One form does not pass for the other.
    capsys.readouterr()
    assert tel_export(llama, empty, *asked, "--json") == 0
    assert set(states(capsys).values()) == {"reused"}
    assert tel_export(llama, empty, *asked[1:], "--json") == 0
    assert states(capsys)["base-fp32.onnx"] == "written"
    assert np.array_equal(Graph(file)(ids(20))[0], Graph(llama.fused)(ids(20))[0])


def test_finished_work_is_reused(llama: Tiny, home: Path, capsys: Any) -> None:
    folder = home / "bundles" / "base"
    argv = ["--adapter", "all", "--quant", ",".join(QUANTS), "--json"]
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert tel_export(llama, home, *argv) == 0
    assert states(capsys) == dict.fromkeys([*BACKBONES, *ADAPTER_FILES], "reused")
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


DAMAGES: dict[str, tuple[str, str, set[str]]] = {
    "no data": ("base-int4.onnx.data", "gone", {"base-int4.onnx"}),
    "cut data": ("base-int4.onnx.data", "cut", {"base-int4.onnx"}),
    "changed data": ("base-int8.onnx.data", "flip", {"base-int8.onnx"}),
    "no graph": ("base-int4.onnx", "gone", {"base-int4.onnx"}),
    "cut fp32": ("base-fp32.onnx.data", "cut", {"base-fp32.onnx"}),
    "no adapter": (ADAPTER_FILES[1], "gone", {ADAPTER_FILES[1]}),
    "cut adapter": (ADAPTER_FILES[0], "cut", {ADAPTER_FILES[0]}),
}


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    if how != "gone":
        path.write_bytes(content[:-1] if how == "cut" else content)


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_is_made_again_and_nothing_else(
    name: str, llama: Tiny, home: Path, capsys: Any
) -> None:
    part, how, wanted = DAMAGES[name]
    folder = home / "bundles" / "base"
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    damage(folder / part, how)
    check = ["--check", str(folder)]
    assert tel_export(llama, home, *check) == 2
    assert part in capsys.readouterr().err
    argv = ["--adapter", "all", "--quant", ",".join(QUANTS), "--no-verify", "--json"]
    assert tel_export(llama, home, *argv) == 0
    found = {path for path, state in states(capsys).items() if state == "written"}
    assert found == wanted
    # The same bytes as before; that it was not measured this time is in the manifest.
    now = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert now.keys() == whole.keys()
    assert {at for at in now if now[at] != whole[at]} <= {"manifest.json", "README.md"}
    assert tel_export(llama, home, *check, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["not_verified"] == sorted(wanted)


def test_a_tokenizer_that_is_lost_comes_back(llama: Tiny, home: Path, capsys: Any) -> None:
    path = home / "bundles" / "base" / "tokenizer.json"
    content = path.read_bytes()
    damage(path, "cut")
    assert tel_export(llama, home, "--quant", "int4", "--no-verify", "--json") == 0
    capsys.readouterr()
    assert path.read_bytes() == content
    assert tel_export(llama, home, "--check", str(path.parent)) == 0


def test_force_makes_everything_again(llama: Tiny, home: Path, capsys: Any) -> None:
    argv = ["--adapter", "teleqna", "--quant", "int4", "--json", "--no-verify"]
    assert tel_export(llama, home, *argv) == 0
    assert set(states(capsys).values()) == {"reused"}
    assert tel_export(llama, home, *argv, "--force") == 0
    assert states(capsys) == {"base-int4.onnx": "written", ADAPTER_FILES[1]: "written"}
    # The fp32 in the bundle was the source, and stays.
    assert set(BACKBONES) < names(home / "bundles" / "base")


def test_the_default_leaves_no_fp32(llama: Tiny, empty: Path, capsys: Any) -> None:
    assert tel_export(llama, empty, "--json", "--no-verify") == 0
    assert states(capsys) == {"base-int4.onnx": "written"}
    folder = empty / "bundles" / "base"
    assert names(folder) == {
        "base-int4.onnx", "base-int4.onnx.data", "tokenizer.json", "manifest.json", "README.md"
    }  # fmt: skip
    # An adapter can be added, measured over what is there.
    assert tel_export(llama, empty, "--json", "--no-verify", "--adapter", "oranbench") == 0
    assert states(capsys) == {"base-int4.onnx": "reused", ADAPTER_FILES[0]: "written"}


def test_a_failure_leaves_what_was_finished(
    llama: Tiny, empty: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = make.quantize.quantize

    def fail(source: Path, out: Path, row: Any, step: Any) -> None:
        if row.name == "int4":
            out.with_name("half.data").write_bytes(b"x")
            raise WorkError("no more")
        real(source, out, row, step)

    argv = ["--quant", "int8,int4", "--no-verify"]
    with monkeypatch.context() as patch:
        patch.setattr(make.quantize, "quantize", fail)
        assert tel_export(llama, empty, *argv) == 1
    folder = empty / "bundles" / "base"
    assert {"base-int8.onnx", "base-int8.onnx.data"} < names(folder)
    assert not any(".partial" in name or "int4" in name or "fp32" in name for name in names(folder))
    capsys.readouterr()
    assert tel_export(llama, empty, *argv, "--json") == 0
    assert states(capsys) == {"base-int8.onnx": "reused", "base-int4.onnx": "written"}


def test_check_finds_a_cut_data_file(llama: Tiny, home: Path, capsys: Any) -> None:
    folder = home / "bundles" / "base"
    assert tel_export(llama, home, "--check", str(folder)) == 0
    assert f"{folder}: 12 files are whole" in capsys.readouterr().out
    data = folder / "base-int8.onnx.data"
    with data.open("r+b") as stream:
        stream.truncate(data.stat().st_size - 1)
    assert tel_export(llama, home, "--check", str(folder)) == 2
    assert re.search(r"base-int8\.onnx\.data: [\d,]+ bytes, manifest\.json says",
                     capsys.readouterr().err)  # fmt: skip


def test_a_dry_run_writes_nothing_and_knows_the_sizes(
    llama: Tiny, empty: Path, onnx_home: Path, capsys: Any
) -> None:
    assert tel_export(llama, empty, "--dry-run", "--quant", ",".join(QUANTS), "--json") == 0
    said = capsys.readouterr().out
    assert "dry run: nothing was written; 1,281,280 weights" in said
    assert not (empty / "bundles").exists()
    sizes = {row["quant"]: row["bytes"] for row in json.loads(said.splitlines()[-1])["dry_run"]}
    assert list(sizes) == list(QUANTS)
    folder = onnx_home / "bundles" / "base"
    for quant, size in sizes.items():
        real = (folder / f"base-{quant}.onnx.data").stat().st_size
        assert abs(real - size) < (folder / f"base-{quant}.onnx").stat().st_size
        assert abs(real - size) < 0.015 * real


def test_both_formats_get_what_is_theirs(
    llama: Tiny, empty: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--format", "both", "--quant", "int8,Q8_0,F16", "--imatrix", "pooled", "--no-fuse"]
    assert tel_export(llama, empty, *asked, "--dry-run", "--json") == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["quant"] for row in document["dry_run"]] == ["Q8_0", "F16", "int8"]
    made: list[Any] = []
    monkeypatch.setattr("tel_edge.export.exporting.export", made.append)
    with pytest.raises(AttributeError):
        tel_export(llama, empty, *asked, "--router", "--push", "me/x")
    dry, gguf, onnx = made[:2], made[0], made[1]
    assert all(request.dry_run for request in dry)
    assert (gguf.format, gguf.quant, gguf.imatrix, gguf.fuse) == (
        "gguf",
        "Q8_0,F16",
        "pooled",
        True,
    )
    assert (onnx.format, onnx.quant, onnx.imatrix, onnx.fuse) == ("onnx", "int8", "none", False)
    # Once, after the last.
    assert [(request.router, request.push) for request in dry] == [(False, None), (True, "me/x")]


def test_both_formats_are_checked_before_either_is_written(
    llama: Tiny, empty: Path, capsys: Any
) -> None:
    assert tel_export(llama, empty, "--format", "both", "--from-onnx", "nowhere") == 2
    assert "nowhere is no folder" in capsys.readouterr().err
    assert not (empty / "bundles").exists()


# Arguments, what is said.
REFUSED: tuple[tuple[list[str], str], ...] = (
    (
        ["--quant", "Q4_K_M"],
        "no ONNX type 'Q4_K_M'; there are: fp32 int8 int4 int8-128 int4-128 dynamic-int8",
    ),
    (["--quant", ","], "no ONNX type ''"),
    (["--merge"], "--merge is for --format gguf: an ONNX adapter goes over the backbone as it is"),
    (["--imatrix", "pooled"], "--imatrix is for --format gguf: the quantizer of ONNX has no"),
    (["--tensor-type", "x=Q8_0"], "--tensor-type is for --format gguf: the types of ONNX"),
    (["--adapter-quant", "F16"], "--adapter-quant F16: ONNX adapters are F32"),
    (["--adapter-quant", "Q8_0"], "--adapter-quant Q8_0: ONNX adapters are F32"),
    (["--from-onnx", "NOTHING"], "is no folder"),
    (["--from-onnx", "EMPTY"], "has 0 .onnx files and no model.onnx; pass a folder with the one"),
    (["--from-onnx", "TWO"], "has 2 .onnx files and no model.onnx"),
    (["--from-onnx", "RANDOM"], "model.onnx: no ONNX model ("),
    (["--adapter", "sixg_bench"], "sixg_bench"),
    (["--out", "FILE"], "is a file, wanted a folder"),
)


@pytest.mark.parametrize(("argv", "said"), REFUSED)
def test_what_is_refused(
    argv: list[str], said: str, llama: Tiny, empty: Path, tmp_path: Path, capsys: Any
) -> None:
    for name in ("EMPTY", "TWO", "RANDOM"):
        (tmp_path / name).mkdir()
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / "TWO" / name).touch()
    (tmp_path / "RANDOM" / "model.onnx").write_bytes(b"\xff" * 100)
    (tmp_path / "FILE").touch()
    argv = [str(tmp_path / part) if part.isupper() and part[0] != "-" and part != "F16" and
            "_" not in part else part for part in argv]  # fmt: skip
    assert tel_export(llama, empty, *argv) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert told.out == ""
    assert len(told.err.splitlines()) <= 2
    assert not (empty / "bundles").exists()


def test_f32_is_what_adapters_are(llama: Tiny, home: Path, capsys: Any) -> None:
    argv = ["--adapter", "all", "--adapter-quant", "F32", "--quant", "int4", "--json"]
    assert tel_export(llama, home, *argv) == 0
    assert set(states(capsys).values()) == {"reused"}


def test_a_backbone_without_a_tokenizer_of_one_file(
    llama: Tiny, empty: Path, tmp_path: Path, capsys: Any
) -> None:
    base = shutil.copytree(llama.base, tmp_path / "base")
    (base / "tokenizer.json").unlink()
    argv = ["--workspace", str(empty), "--backbone", str(base), "--format", "onnx", "--quiet"]
    assert cli.run(export.parser(), export.work, argv) == 2
    assert "tokenizer.json: missing; copy or download the folder again" in capsys.readouterr().err


def test_a_missing_package_is_one_line(
    llama: Tiny, empty: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert tel_export(llama, empty) == 2
    assert "onnxscript is not installed; run: pip install" in capsys.readouterr().err
