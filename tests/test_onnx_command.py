"""`tel-export --format onnx`, and the commands that answer with what it made."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import export_models as models
import pytest
from conftest import shown
from onnx_models import CATEGORIES, QUANTS, SOURCE, Graph, Tiny, copy_trace, ids

from tel_edge.export.commands import export
from tel_edge.export.gate.gate import Gate
from tel_edge.export.onnx import make, trace
from tel_edge.export.onnx.quantize import ONNX_QUANTS
from tel_edge.runtime import cli
from tel_edge.runtime.bundles import bundle, manifest
from tel_edge.runtime.commands import run
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.files import digest

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

BACKBONES = [f"base-{quant}.onnx" for quant in QUANTS]
ADAPTER_FILES = [f"base-{category}-r8.onnx_adapter" for category in CATEGORIES]


@pytest.fixture(scope="module")
def llama(tiny: Any) -> Tiny:
    made: Tiny = tiny("llama")
    return made


@pytest.fixture(autouse=True)
def no_tracing(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "trace", copy_trace(llama))


@pytest.fixture
def home(onnx_home: Path, tmp_path: Path) -> Path:
    """A copy of the workspace, with its bundle."""
    return shutil.copytree(onnx_home, tmp_path / "home")


@pytest.fixture
def empty(onnx_home: Path, tmp_path: Path) -> Path:
    """A workspace with the adapters and without a bundle."""
    shutil.copytree(onnx_home / "adapters", tmp_path / "empty" / "adapters")
    return tmp_path / "empty"


def tel_export(llama: Tiny, home: Path, *argv: str) -> int:
    common = ["--workspace", str(home), "--backbone", str(llama.base), "--quiet"]
    try:
        return cli.run(export.parser(), export.work, [*common, "--format", "onnx", *argv])
    except SystemExit as error:
        return int(error.code or 0)


def states(capsys: Any) -> dict[str, str]:
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    return {file["path"]: file["state"] for file in document["files"]}


def names(folder: Path) -> set[str]:
    return set(shown(folder))


# The bundle


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
    from tel_edge.runtime.headers import onnx_adapter, onnx_header
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


def test_the_file_is_the_graph_with_slots(onnx_home: Path, llama: Tiny) -> None:
    import numpy as np

    got = Graph(onnx_home / "bundles" / "base" / "base-fp32.onnx")(ids(20))[0]
    assert np.array_equal(got, Graph(llama.slots)(ids(20))[0])


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


# Arguments, what is said.
REFUSED: tuple[tuple[list[str], str], ...] = (
    (["--quant", "Q4_K_M"], "no ONNX type 'Q4_K_M'; there are: fp32 int8 int4 dynamic-int8"),
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


# A decoder that is there already


@pytest.fixture
def decoder(llama: Tiny, tmp_path: Path) -> Path:
    shutil.copytree(llama.plain.parent, tmp_path / "decoder")
    (tmp_path / "decoder" / SOURCE).rename(tmp_path / "decoder" / "decoder.onnx")
    return tmp_path / "decoder"


def test_a_decoder_that_is_onnx_already(
    llama: Tiny, empty: Path, decoder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch,
    onnx_home: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr(trace, "trace", lambda *_: pytest.fail("traced"))
    argv = ["--from-onnx", str(decoder), "--quant", "fp32", "--json"]
    # It says what it is without --format.
    common = ["--workspace", str(empty), "--backbone", str(llama.base), "--quiet"]
    assert cli.run(export.parser(), export.work, [*common, *argv]) == 0
    assert states(capsys) == {"base-fp32.onnx": "written"}
    folder = empty / "bundles" / "base"
    file = bundle.read(folder).find("backbone", "fp32", format="onnx")
    assert file
    assert re.fullmatch("from-onnx [0-9a-f]{16}", file.options or "")
    assert file.parity is not None
    assert file.parity["error"] < 1e-4
    for part in ("base-fp32.onnx", "base-fp32.onnx.data"):
        assert (folder / part).read_bytes() == (onnx_home / "bundles/base" / part).read_bytes()
    assert tel_export(llama, empty, *argv) == 0
    assert states(capsys) == {"base-fp32.onnx": "reused"}
    # Another decoder makes another backbone.
    with (decoder / f"{SOURCE}.data").open("r+b") as stream:
        stream.seek(10_000)
        stream.write(b"\0\0\0\0")
    assert tel_export(llama, empty, *argv) == 0
    assert states(capsys) == {"base-fp32.onnx": "written"}


def test_the_gate_refuses_the_decoder_of_another_model(
    llama: Tiny, empty: Path, decoder: Path, capsys: Any
) -> None:
    """Its shapes are the same, and nothing else than the answers tells."""
    import numpy as np

    data = decoder / f"{SOURCE}.data"
    values = np.fromfile(data, np.float32)
    values.reshape(-1)[:] = np.roll(values, 256)
    values.tofile(data)
    assert tel_export(llama, empty, "--from-onnx", str(decoder), "--quant", "fp32") == 1
    said = capsys.readouterr().err
    assert re.search(r"the conversion to fp32 does not .* is [\d.e+]+, at most 0\.0002", said)
    folder = empty / "bundles" / "base"
    assert {file.kind for file in bundle.read(folder).files} == {"tokenizer"}
    assert names(folder) == {"tokenizer.json", "manifest.json"}


def test_a_decoder_that_lacks_its_data(
    llama: Tiny, empty: Path, decoder: Path, capsys: Any
) -> None:
    (decoder / f"{SOURCE}.data").unlink()
    assert tel_export(llama, empty, "--from-onnx", str(decoder), "--quant", "fp32") == 2
    said = capsys.readouterr().err
    assert f"{SOURCE}.data is missing, where decoder.onnx has its weights" in said
    assert not (empty / "bundles").exists()


def test_which_file_of_a_folder_is_the_decoder(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    for name in ("z.onnx", "onnx/model.onnx", "decoder_with_past_model.onnx", "model.onnx"):
        (tmp_path / name).touch()
        assert make._given(tmp_path) == tmp_path / name


# The gate


def test_a_type_that_costs_accuracy_is_refused(
    llama: Tiny, home: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command asks for it, for the types that have a limit and with an adapter."""
    asked: list[tuple[str, str, str, float]] = []

    def refuse(_: Gate, file: Path, row: Any, adapter: Path, category: str, lost: float) -> Any:
        assert adapter.is_file()
        asked.append((file.name, row.name, category, lost))
        raise WorkError("too bad")

    monkeypatch.setattr(Gate, "accuracy", refuse)
    folder = home / "bundles" / "base"
    (folder / "base-dynamic-int8.onnx").unlink()
    argv = ["--quant", "int8,dynamic-int8", "--adapter", "teleqna"]
    assert tel_export(llama, home, *argv) == 1
    assert "too bad" in capsys.readouterr().err
    assert asked == [("base-dynamic-int8.onnx", "dynamic-int8", "teleqna", 0.05)]
    assert not (folder / "base-dynamic-int8.onnx").exists()
    assert tel_export(llama, home, *argv, "--no-verify") == 0


# Answers


@dataclass(frozen=True)
class Command:
    run: Callable[..., tuple[int, str, str]]

    def __call__(self, home: Path, llama: Tiny, *argv: str) -> tuple[int, list[Any], str]:
        code, out, err = self.run(
            run.parser(), run.work, "--workspace", str(home), "--backbone", str(llama.base),
            "--threads", "1", "--quiet", *argv,
        )  # fmt: skip
        return code, [json.loads(line) for line in out.splitlines()], err


@pytest.fixture
def tel_run(run_command: Callable[..., tuple[int, str, str]]) -> Command:
    return Command(run_command)


ASKED = ["Which joins CU and DU?", "--choice", "F1", "--choice", "E2", "--category", "oranbench"]


def test_the_bundle_answers(tel_run: Command, onnx_home: Path, llama: Tiny) -> None:
    found = {}
    for more in ([], ["--format", "onnx"], ["--quant", "int4"], ["--quant", "fp32"],
                 ["--quant", "fp32", "--exact"], ["--quant", "fp32", "--no-adapter"]):  # fmt: skip
        code, (line,), err = tel_run(onnx_home, llama, *ASKED, *more)
        assert (code, err) == (0, "")
        assert line["answer"] in ("F1", "E2")
        found[" ".join(more)] = line["probabilities"]
    # The smallest, whether it is asked for by its format, by its name or not at all.
    assert found[""] == found["--format onnx"] == found["--quant int4"]
    assert found["--quant fp32"] != found["--quant int4"]
    assert found["--quant fp32"] == pytest.approx(found["--quant fp32 --exact"], abs=1e-4)
    assert found["--quant fp32 --no-adapter"] != found["--quant fp32"]


def test_loose_files_answer_as_the_bundle_does(
    tel_run: Command, onnx_home: Path, llama: Tiny
) -> None:
    folder = onnx_home / "bundles" / "base"
    files = ["--backbone-file", str(folder / "base-fp32.onnx")]
    files += ["--adapter-file", str(folder / ADAPTER_FILES[0])]
    code, (line,), err = tel_run(onnx_home, llama, *ASKED, *files)
    assert code == 0
    assert "nothing binds base-fp32.onnx" in err
    assert line == tel_run(onnx_home, llama, *ASKED, "--quant", "fp32")[1][0]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--quant", "Q4_K_M"], "no Q4_K_M backbone (there: fp32 int8 dynamic-int8 int4)"),
        (["--format", "gguf"], "no GGUF backbone"),
        (["--provider", "npu"], "--provider npu: this onnxruntime has"),
    ],
)
def test_what_a_bundle_does_not_have(
    argv: list[str], said: str, tel_run: Command, onnx_home: Path, llama: Tiny
) -> None:
    code, lines, err = tel_run(onnx_home, llama, *ASKED, *argv)
    assert (code, lines) == (2, [])
    assert said in err


def test_both_formats_in_one_bundle(tel_run: Command, home: Path, llama: Tiny, capfd: Any) -> None:
    argv = ["--workspace", str(home), "--backbone", str(llama.base), "--quiet", "--no-verify"]
    argv += ["--quant", "Q8_0", "--adapter", "oranbench", "--adapter-quant", "F32"]
    assert cli.run(export.parser(), export.work, argv) == 0
    folder = home / "bundles" / "base"
    made = bundle.read(folder)
    assert set(made.formats()) == {"gguf", "onnx"}
    assert (made.quants(), made.adapters()) == (("Q8_0",), ("oranbench",))
    assert len(made.quants(format="onnx")) == len(QUANTS)
    for file in made.files:
        manifest.verified(folder, file)
    capfd.readouterr()
    gguf = tel_run(home, llama, *ASKED)
    onnx = tel_run(home, llama, *ASKED, "--format", "onnx", "--quant", "fp32")
    assert (gguf[0], onnx[0]) == (0, 0)
    one, other = gguf[1][0]["probabilities"], onnx[1][0]["probabilities"]
    assert one == pytest.approx(other, abs=0.05)
    assert tel_run(home, llama, *ASKED, "--format", "gguf") == gguf
    # A type names its format too.
    assert tel_run(home, llama, *ASKED, "--quant", "fp32") == onnx
    # ONNX that is asked for where there is none says how to make it.
    for file in made.files:
        if file.format == "onnx":
            (folder / file.path).unlink()
    only = manifest.Manifest(made.backbone, tuple(f for f in made.files if f.format == "gguf"))
    manifest.write(only, folder)
    assert tel_run(home, llama, *ASKED) == gguf
    for more, hint in (([], "tel-export --format onnx"),
                       (["--quant", "int4"], "tel-export --format onnx --quant int4")):  # fmt: skip
        code, _, err = tel_run(home, llama, *ASKED, "--format", "onnx", *more)
        assert code == 2
        assert err.rstrip().endswith(f"run: {hint}")


def test_an_adapter_that_is_only_there_in_the_other_format(
    tel_run: Command, home: Path, llama: Tiny
) -> None:
    folder = home / "bundles" / "base"
    made = bundle.read(folder)
    left = tuple(f for f in made.files if (f.kind, f.category) != ("adapter", "oranbench"))
    manifest.write(manifest.Manifest(made.backbone, left), folder)
    code, _, err = tel_run(home, llama, *ASKED)
    assert code == 2
    assert "no adapter for oranbench (there: teleqna teletables)" in err
    assert "tel-export --format onnx --adapter oranbench" in err


@pytest.mark.parametrize("field", ["data", "tokenizer"])
def test_a_manifest_without_a_part(field: str, home: Path) -> None:
    folder = home / "bundles" / "base"
    made = bundle.read(folder)
    left = manifest.Manifest(made.backbone, tuple(f for f in made.files if f.kind != field))
    file = bundle.backbone_file(folder, left, "int4", "onnx")
    with pytest.raises(InputError, match="lists no data file or no tokenizer for it"):
        bundle.verified(folder, left, file)


@pytest.mark.slow
def test_the_embedded_backbone_from_the_first_to_the_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Any, tel_run: Command
) -> None:
    """With the tracing, the gate, its own tokenizer, and an adapter without training.json."""
    monkeypatch.undo()
    monkeypatch.setenv("TEL_PROFILE", str(tmp_path / "none.json"))
    from tel_edge.runtime.bundles import backbones

    base = backbones.embedded()
    models.adapter(tmp_path / "lora", base, r=4, use_rslora=True)
    argv = ["--workspace", str(tmp_path), "--format", "onnx", "--quant", "int4", "--json"]
    argv += ["--backbone", "tel-nano", "--adapter", str(tmp_path / "lora")]
    assert cli.run(export.parser(), export.work, [*argv, "--category", "oranbench"]) == 0
    told = capfd.readouterr()
    assert "only shapes bind it to tel-nano" in told.err
    files = json.loads(told.out.splitlines()[-1])["files"]
    assert [file["path"] for file in files] == [
        "tel-nano-int4.onnx", "tel-nano-oranbench-r4.onnx_adapter"
    ]  # fmt: skip
    assert files[0]["parity"]["quantization"] < 0.6
    assert files[1]["parity"]["adapter"] < 1e-3
    code, out, _ = tel_run.run(
        run.parser(), run.work, "--workspace", str(tmp_path), "--quiet", *ASKED
    )
    assert code == 0
    assert json.loads(out)["answer"] in ("F1", "E2")


def test_options_of_the_formats_are_one_parser() -> None:
    made = export.parser().parse_args(["--from-onnx", "x"])
    assert isinstance(made, argparse.Namespace)
    assert (made.format, made.quant, made.adapter_quant) == ("gguf", None, None)
