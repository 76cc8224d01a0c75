"""A decoder that is there already, the gate, and answers of ONNX bundles."""

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
from onnx_models import QUANTS, SOURCE, Tiny

from tel_edge.export.commands import export
from tel_edge.export.gate.gate import Gate
from tel_edge.export.onnx import make, trace
from tel_edge.runtime import cli
from tel_edge.runtime.bundles import bundle, manifest
from tel_edge.runtime.commands import run
from tel_edge.runtime.errors import InputError, WorkError

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
import for_onnx_command
from for_onnx_command import ADAPTER_FILES, names, states, tel_export

llama = for_onnx_command.llama
no_tracing = for_onnx_command.no_tracing
home = for_onnx_command.home
empty = for_onnx_command.empty


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
    for more, hint in (([], "tel-export --format onnx --quant int4"),
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
