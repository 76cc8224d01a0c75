"""`tel-eval` on bundles of several formats, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import fake_engine as fake
import for_evaluate
import pytest
from for_evaluate import Command, out, parts

from tel_edge.eval.scoring.records import Variant, read_summary
from tel_edge.runtime.bundles import manifest
from tel_edge.runtime.bundles.formats import Format

installed = for_evaluate.installed
home = for_evaluate.home
tel_eval = for_evaluate.tel_eval


def with_onnx(home: Path, **changes: Any) -> Path:
    """Add ONNX types to the workspace's bundle, and return the bundle."""
    bundle = home / "bundles" / "tel-nano"
    fake.onnx(bundle, **{"split": parts(home).digest, **changes})
    return bundle


def scored_names(said: str) -> list[str]:
    # All but the last line, which counts them.
    return [line.split()[1] for line in said.splitlines()[:-1]]


# Arguments, the variants that are scored.
CHOSEN: tuple[tuple[str, str], ...] = (
    ("", "base-F16 lora-F16 lora-Q4_K_M lora-fp32 lora-int4"),
    ("--format gguf", "base-F16 lora-F16 lora-Q4_K_M"),
    ("--format onnx", "base-fp32 lora-fp32 lora-int4"),
    ("--quant int4,Q4_K_M", "base-Q4_K_M lora-Q4_K_M lora-int4"),
    ("--quant int4", "base-int4 lora-int4"),
    ("--quant int4, --format onnx", "base-int4 lora-int4"),
)


@pytest.mark.parametrize(("argv", "names"), CHOSEN)
def test_formats_are_scored_side_by_side(
    argv: str, names: str, tel_eval: Command, home: Path
) -> None:
    bundle, opener = with_onnx(home), fake.FakeOpener()
    code, said, err = tel_eval(*argv.split(), opener=opener)
    assert (code, err) == (0, "")
    assert scored_names(said) == names.split()
    kinds = {True: "onnx", False: "gguf"}
    wanted = [
        (bundle / f"nano-{quant}.{kinds[quant.islower()]}", ["oranbench"] * (kind == "lora"))
        for kind, quant in (name.split("-") for name in names.split())
    ]
    assert opener.opened == wanted


def test_the_disk_of_onnx_is_that_of_all_its_files(tel_eval: Command, home: Path) -> None:
    bundle = with_onnx(home)
    assert tel_eval()[0] == 0
    files = ("nano-int4.onnx", "nano-int4.onnx.data", "tokenizer.json")
    sizes = [(bundle / name).stat().st_size for name in files]
    made = read_summary(out(home, "lora-int4", ".json")).variant
    adapter = (bundle / "nano-oranbench.onnx_adapter").stat().st_size
    assert made == Variant(
        "lora-int4", "int4", "onnx", True, sum(sizes), adapter, sizes[2], adapter_quant="F32"
    )
    gguf = read_summary(out(home, "lora-Q4_K_M", ".json")).variant
    assert gguf.backbone_bytes == (bundle / "nano-Q4_K_M.gguf").stat().st_size
    assert (gguf.format, gguf.tokenizer_bytes) == ("gguf", 0)


def test_results_of_gguf_stay_what_they_were(
    tel_eval: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key more in what is hashed would throw all results away."""
    monkeypatch.setattr(Format, "version", lambda row: f"{row.package[1]} 1")
    with_onnx(home)
    assert tel_eval()[0] == 0
    made = read_summary(out(home, "lora-F16", ".json")).made_with
    assert set(made) == {
        *("backbone", "adapter", "weights", "prompt", "engine", "engine_settings", "split"),
        "settings",
    }
    assert made["engine"] == "llama-cpp-python 1"
    assert made["engine_settings"] == {
        "context": 4096, "batch": 512, "flash": None, "kv": "F16", "extra_buffers": False,
        "gpu_layers": None, "exact": False,
    }  # fmt: skip
    other = read_summary(out(home, "lora-int4", ".json")).made_with
    assert set(other) == {*made, "backbone_data", "backbone_tokenizer"}
    assert other["engine"] == "onnxruntime 1"
    assert other["engine_settings"] == {"context": 4096, "batch": 192, "exact": False}
    # What one engine does not know makes no other run there.
    gguf, onnx = "base-F16 lora-F16 lora-Q4_K_M", "lora-fp32 lora-int4"
    for argv, same in (("--provider cuda", gguf), ("--gpu-layers 1", onnx)):
        said = tel_eval(*argv.split())[1].splitlines()
        assert [line.split()[1] for line in said if "(scored before)" in line] == same.split()
        assert tel_eval()[0] == 0


def test_a_provider_reaches_the_engine_and_the_summary(tel_eval: Command, home: Path) -> None:
    with_onnx(home)
    opener = fake.FakeOpener()
    assert tel_eval("--format", "onnx", "--provider", "cuda", opener=opener)[0] == 0
    assert {engine.settings.providers for engine in opener.engines} == {("cuda",)}
    made = read_summary(out(home, "lora-int4", ".json")).made_with["engine_settings"]
    assert made["providers"] == ["cuda"]


@pytest.mark.parametrize("name", ["nano-int4.onnx.data", "tokenizer.json"])
def test_a_file_beside_an_onnx_backbone_is_part_of_the_run(
    name: str, tel_eval: Command, home: Path
) -> None:
    bundle = with_onnx(home)
    assert tel_eval()[0] == 0
    path = bundle / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    shutil.rmtree(home / "results" / "tel-nano" / "base-F16")
    code, said, err = tel_eval("--context", "512")
    assert (code, said) == (2, "")
    assert f"{name}: corrupted" in err
    assert not out(home, "base-F16", ".json").exists()
    made = manifest.read(bundle)
    old = next(file for file in made.files if file.path == name)
    known = {"kind": old.kind, "format": "onnx", "quant": old.quant}
    manifest.write(made.with_file(manifest.describe(bundle, path, **known)), bundle)
    code, said, _ = tel_eval()
    assert code == 0
    lines = said.splitlines()[:-1]
    fresh = [line.split()[1] for line in lines if "(scored before)" not in line]
    onnx = ["lora-int4"] if name.endswith("data") else ["lora-fp32", "lora-int4"]
    assert fresh == ["base-F16", *onnx]


# What is installed, the arguments, the exit code, the variants, what is said.
MISSING: tuple[tuple[str, str, int, str, str], ...] = (
    (
        *("gguf", "", 0, "base-F16 lora-F16 lora-Q4_K_M"),
        "ONNX cannot be scored, onnxruntime is not installed; run: pip install 'tel-edge[onnx]'",
    ),
    (
        *("onnx", "", 0, "base-fp32 lora-fp32 lora-int4"),
        "GGUF cannot be scored, llama-cpp-python is not installed; "
        "run: pip install 'tel-edge[llama]'",
    ),
    ("gguf", "--quant Q4_K_M", 0, "base-Q4_K_M lora-Q4_K_M", ""),
    ("gguf", "--format onnx", 2, "", "run: pip install 'tel-edge[onnx]'"),
    ("onnx", "--quant F16", 2, "", "run: pip install 'tel-edge[llama]'"),
    ("", "", 2, "", "run: pip install 'tel-edge[onnx]'"),
)


@pytest.mark.parametrize(("there", "argv", "code", "names", "line"), MISSING)
def test_an_engine_that_is_not_installed_is_told(
    there: str,
    argv: str,
    code: int,
    names: str,
    line: str,
    tel_eval: Command,
    home: Path,
    installed: set[str],
) -> None:
    with_onnx(home)
    installed.intersection_update(there.split())
    found, said, err = tel_eval(*argv.split(), quiet=False)
    told = [text for text in err.splitlines() if "pip install" in text]
    assert (found, scored_names(said)) == (code, names.split())
    assert len(told) == (bool(line) if there else 2)
    assert line in err
    assert code == 0 or len(err.splitlines()) <= 2


def test_the_split_of_every_adapter_is_checked(tel_eval: Command, home: Path) -> None:
    with_onnx(home, split="0" * 64)
    code, said, err = tel_eval()
    assert (code, said) == (2, "")
    assert "nano-oranbench.onnx_adapter: trained on another split" in err
    # Where it is not scored its split is nobody's concern.
    assert tel_eval("--format", "gguf")[0] == 0
    with_onnx(home, split=None)
    code, _, err = tel_eval(quiet=False)
    assert code == 0
    assert "warning: nano-oranbench.onnx_adapter names no split" in err


def test_an_adapter_of_one_format_alone_is_scored_there(tel_eval: Command, home: Path) -> None:
    fake.dataset(home / "data", "teleqna", fake.rows(30))
    with_onnx(home, adapters=("teleqna",), split=None)
    code, said, err = tel_eval(quiet=False)
    assert code == 0
    assert [line.split()[:2] for line in said.splitlines()[:-1]] == [
        *(["oranbench", name] for name in ("base-F16", "lora-F16", "lora-Q4_K_M")),
        *(["teleqna", name] for name in ("base-F16", "lora-fp32", "lora-int4")),
    ]
    assert "oranbench: no ONNX adapter, not scored" in err
    assert "teleqna: no GGUF adapter, not scored" in err
    code, _, err = tel_eval("--format", "onnx", "--category", "oranbench")
    assert code == 2
    assert "no adapter for oranbench (there: teleqna)" in err
    assert "tel-export --format onnx --adapter oranbench" in err


# Arguments, what is said.
COMMANDS: tuple[tuple[list[str], str], ...] = (
    (["--category", "poetry"], "unknown category 'poetry'"),
    (["--dataset", "nowhere"], "no data set 'nowhere'"),
    (["--backbone", "nothing"], "no backbone 'nothing'"),
    (["--bundle", "nowhere"], "--bundle nowhere: no such folder"),
    (["--part", "all"], "invalid choice: 'all'"),
    (["--part", "test,all"], "invalid choice: 'all'"),
    (["-k", "0"], "argument -k: '0' is no whole number above 0"),
    (["--threads", "-1"], "argument --threads: '-1' is no whole number above 0"),
    (["--context", "0"], "argument --context: '0' is no whole number above 0"),
    (["--temperature", "0"], "--temperature 0.0: a number above 0 is needed"),
    (["--temperature", "nan"], "--temperature nan: a number above 0 is needed"),
    (["--protocol", "poem"], "argument --protocol: invalid choice: 'poem'"),
    (["--quant", "F16,int3"], "no int3 backbone (there: F16 Q4_K_M); run: tel-export --quant int3"),
    (["--quant", "F16", "--format", "onnx"], "no F16 backbone (there: F16 Q4_K_M)"),
    (["--format", "onnx"], "no ONNX backbone (there: F16 Q4_K_M); run: tel-export --format onnx"),
    (["--quant", ","], "argument --quant: ',' names nothing"),
    (["--format", "tflite"], "argument --format: invalid choice: 'tflite'"),
    (["--max-tokens", "0"], "argument --max-tokens: '0' is no whole number above 0"),
)


@pytest.mark.parametrize(("argv", "said"), COMMANDS)
def test_wrong_usage(argv: list[str], said: str, tel_eval: Command, home: Path) -> None:
    opener = fake.FakeOpener()
    code, shown, err = tel_eval(*argv, opener=opener)
    assert (code, shown, opener.opened) == (2, "", [])
    assert said in err
    assert len(err.splitlines()) <= 2
    assert not (home / "results").exists()


def test_a_bundle_without_backbone_is_refused(tel_eval: Command, home: Path) -> None:
    manifest_file = home / "bundles" / "tel-nano" / "manifest.json"
    manifest_file.unlink()
    fake.bundle(home / "bundles" / "tel-nano", quants=())
    code, said, err = tel_eval()
    assert (code, said) == (2, "")
    assert "no GGUF backbone (there: none); run: tel-export --quant Q4_K_M" in err
