"""`tel-export` from the outside: options, messages, reuse, and runs that were killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import export_models as models
import pytest
from conftest import shown

from tel_edge.export.commands import export
from tel_edge.export.gguf import make as gguf
from tel_edge.runtime import cli
from tel_edge.runtime.bundles.manifest import read, verified
from tel_edge.runtime.errors import WorkError
from tel_edge.runtime.files import atomic


@pytest.fixture(scope="module")
def made(tmp_path_factory: Any) -> Path:
    """Return a folder with backbones `base` and `twin`, adapters `one`, `two`, `foreign`."""
    root: Path = tmp_path_factory.mktemp("command")
    base = models.backbone(root / "base", "llama")
    models.backbone(root / "twin", "llama", seed=5)
    models.bind(models.adapter(root / "one", base), base)
    models.bind(models.adapter(root / "two", base, seed=2, r=4), base, category="teleqna")
    models.adapter(root / "foreign", base, seed=3)
    return root


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    """Return a workspace with the two trained adapters and an unfinished one."""
    for name, category in (("one", "oranbench"), ("two", "teleqna")):
        shutil.copytree(made / name, tmp_path / "adapters" / "base" / category)
    (tmp_path / "adapters" / "base" / "teletables").mkdir()
    return tmp_path


def run(made: Path, home: Path, *argv: str) -> int:
    common = ["--workspace", str(home), "--backbone", str(made / "base"), "--quiet"]
    try:
        return cli.run(export.parser(), export.work, [*common, *argv])
    except SystemExit as error:
        return int(error.code or 0)


def states(capsys: Any) -> dict[str, str]:
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    return {file["path"]: file["state"] for file in document["files"]}


def names(bundle: Path) -> set[str]:
    return set(shown(bundle)) - {"README.md"}


def test_all(made: Path, home: Path, capsys: Any) -> None:
    assert run(made, home, "--adapter", "all", "--quant", "F16,Q8_0,Q4_K_M,IQ4_XS") == 0
    said = capsys.readouterr().out.splitlines()
    bundle = home / "bundles" / "base"
    assert names(bundle) == {
        "manifest.json",
        "base-F16.gguf",
        "base-Q8_0.gguf",
        "base-Q4_K_M.gguf",
        "base-IQ4_XS.gguf",
        "base-oranbench-r8-F16-LoRA.gguf",
        "base-teleqna-r4-F16-LoRA.gguf",
    }
    manifest = read(bundle)
    for file in manifest.files:
        verified(bundle, file)
    assert manifest.adapters() == ("oranbench", "teleqna")
    sizes = {file.quant: file.bytes for file in manifest.files if file.kind == "backbone"}
    assert sizes["F16"] > sizes["Q8_0"] > sizes["Q4_K_M"] > sizes["IQ4_XS"]
    assert said[0].split() == ["file", "quant", "MB", "parity", "state"]
    assert [line.split()[1] for line in said[1:5]] == ["F16", "Q8_0", "Q4_K_M", "IQ4_XS"]
    assert said[-1].startswith(f"bundle: {bundle} (6 files, ")


def test_the_default_leaves_no_f16(made: Path, home: Path, capsys: Any) -> None:
    assert run(made, home, "--json") == 0
    assert states(capsys) == {"base-Q4_K_M.gguf": "written"}
    assert names(home / "bundles" / "base") == {"base-Q4_K_M.gguf", "manifest.json"}


def test_finished_work_is_reused(made: Path, home: Path, capsys: Any) -> None:
    argv = ["--adapter", "oranbench", "--quant", "F16,Q8_0", "--json"]
    adapter = "base-oranbench-r8-F16-LoRA.gguf"
    assert run(made, home, *argv) == 0
    bundle = home / "bundles" / "base"
    assert set(states(capsys).values()) == {"written"}
    before = {path.name: path.stat().st_mtime_ns for path in bundle.iterdir()}
    assert run(made, home, *argv) == 0
    assert set(states(capsys).values()) == {"reused"}
    assert before == {path.name: path.stat().st_mtime_ns for path in bundle.iterdir()}

    # A damaged file is made again, and nothing else.
    with (bundle / "base-Q8_0.gguf").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"x")
    assert run(made, home, *argv) == 0
    assert states(capsys) == {
        "base-F16.gguf": "reused", "base-Q8_0.gguf": "written", adapter: "reused"
    }  # fmt: skip

    # So is an adapter that was trained again; the file of its old rank goes away.
    shutil.rmtree(home / "adapters" / "base" / "oranbench")
    shutil.copytree(made / "two", home / "adapters" / "base" / "oranbench")
    models.bind(home / "adapters" / "base" / "oranbench", made / "base")
    assert run(made, home, *argv) == 0
    assert states(capsys)["base-oranbench-r4-F16-LoRA.gguf"] == "written"
    assert adapter not in names(bundle)

    assert run(made, home, *argv, "--force") == 0
    assert set(states(capsys).values()) == {"written"}


def test_more_is_added_to_a_bundle(made: Path, home: Path, capsys: Any) -> None:
    assert run(made, home, "--quant", "Q8_0") == 0
    assert run(made, home, "--adapter", "teleqna", "--adapter-quant", "F32", "--quant", "F16") == 0
    found = {(f.kind, f.quant, f.category) for f in read(home / "bundles" / "base").files}
    wanted = {("backbone", "F16", None), ("backbone", "Q8_0", None), ("adapter", "F32", "teleqna")}
    assert found == wanted


def test_a_kept_f16_is_what_is_quantized(
    made: Path, home: Path, capsys: Any, monkeypatch: Any
) -> None:
    # The gate makes an unquantized file of its own.
    assert run(made, home, "--quant", "F16", "--no-verify") == 0
    monkeypatch.setattr(gguf, "write_backbone", None)
    assert run(made, home, "--quant", "Q8_0", "--no-verify") == 0
    assert read(home / "bundles" / "base").quants() == ("F16", "Q8_0")


def test_a_failure_leaves_what_was_finished(
    made: Path, home: Path, capsys: Any, monkeypatch: Any
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise WorkError("no more")

    argv = ["--adapter", "all", "--quant", "F16,Q8_0"]
    with monkeypatch.context() as patch:
        patch.setattr(gguf, "quantize", fail)
        assert run(made, home, *argv) == 1
    bundle = home / "bundles" / "base"
    assert names(bundle) == {"base-F16.gguf", "manifest.json"}
    capsys.readouterr()
    assert run(made, home, *argv, "--json") == 0
    made_now = [name for name, state in states(capsys).items() if state == "written"]
    assert len(made_now) == 3
    assert "base-F16.gguf" not in made_now


KILLED = """
import os, signal, sys
from tel_edge.export.commands import export
from tel_edge.export.gguf import make as gguf
from tel_edge.runtime import cli
real = gguf.quantize
def die(source, out, row, step, **more):
    outcome = real(source, out, row, step, **more)
    if row.name == sys.argv.pop(1):
        os.kill(os.getpid(), signal.SIGKILL)
    return outcome
gguf.quantize = die
cli.run(export.parser(), export.work, sys.argv[2:])
"""


def test_a_killed_run_goes_on(made: Path, home: Path, capsys: Any) -> None:
    argv = ["--workspace", str(home), "--backbone", str(made / "base"), "--quant", "Q8_0,Q4_0"]
    script = KILLED.replace("sys.argv.pop(1)", "sys.argv[1]")
    done = subprocess.run([sys.executable, "-c", script, "Q4_0", *argv], check=False)
    assert done.returncode == -signal.SIGKILL
    bundle = home / "bundles" / "base"
    left = [path for path in bundle.iterdir() if path.name.endswith(".partial")]
    assert len(left) == 3, "the F32 and F16 sources and the unfinished Q4_0"
    for file in read(bundle).files:
        verified(bundle, file)
    # Those of another run that is alive, or on another machine that shares the disk, are not.
    alive = atomic.temporary(bundle / "x")
    dead = atomic.PARTIAL.fullmatch(left[0].name)
    assert dead
    away = bundle / f".x.{dead[1]}@elsewhere.partial"
    alive.touch()
    away.touch()
    assert run(made, home, *argv[4:], "--json") == 0
    assert states(capsys) == {"base-Q8_0.gguf": "reused", "base-Q4_0.gguf": "written"}
    alive.unlink()
    away.unlink()
    assert names(bundle) == {"base-Q8_0.gguf", "base-Q4_0.gguf", "manifest.json"}


def test_an_engine_failure_is_told_in_its_words(made: Path, tmp_path: Path) -> None:
    from tel_edge.export.gguf.quantize import QUANTS, quantize

    source = tmp_path / "no.gguf"
    source.write_bytes(b"GGUF but not really")
    with pytest.raises(WorkError, match=r"cannot make Q8_0 of no\.gguf \(.*fail") as caught:
        quantize(source, tmp_path / "out.gguf", QUANTS["Q8_0"], lambda _: None)
    assert "gives no reason" not in str(caught.value)


def test_a_bundle_of_another_backbone(made: Path, home: Path, capsys: Any) -> None:
    out = home / "out"
    assert run(made, home, "--quant", "F16,Q8_0", "--out", str(out)) == 0
    twin = ["--backbone", str(made / "twin"), "--quant", "F16", "--out", str(out)]
    before = read(out)
    assert run(made, home, *twin) == 2
    said = capsys.readouterr().err
    assert "holds a bundle of base with another backbone than twin's" in said
    assert "--force" in said
    assert read(out) == before
    assert run(made, home, *twin, "--force") == 0
    assert names(out) == {"twin-F16.gguf", "manifest.json"}
    assert read(out).backbone.name == "twin"


@pytest.mark.parametrize("field", ["tokenizer", "prompt"])
def test_a_bundle_of_another_time(field: str, made: Path, home: Path, capsys: Any) -> None:
    assert run(made, home, "--quant", "F16") == 0
    path = home / "bundles" / "base" / "manifest.json"
    document = json.loads(path.read_text())
    # Other files of a tokenizer that reads alike would be no reason.
    document["backbone"] |= {field: "0" * 64, "tokenization": "0" * 64}
    path.write_text(json.dumps(document))
    assert run(made, home, "--quant", "F16") == 2
    assert f"with another {field}" in capsys.readouterr().err
    path.write_text("{")
    assert run(made, home, "--quant", "F16") == 2
    assert "or --force to start it anew" in capsys.readouterr().err
    assert run(made, home, "--quant", "F16", "--force") == 0
    assert len(read(path.parent).files) == 1


def test_a_foreign_adapter_is_warned_about(made: Path, home: Path, capsys: Any) -> None:
    argv = ["--workspace", str(home), "--backbone", str(made / "base"), "--quant", "F16"]
    argv += ["--adapter", str(made / "foreign"), "--category", "sixg_bench"]
    assert cli.run(export.parser(), export.work, argv) == 0
    said = capsys.readouterr().err
    assert f"only shapes bind it to base, it names {made / 'base'} as its base" in said
    file = read(home / "bundles" / "base").find("adapter", category="sixg_bench")
    assert file
    assert (file.split, file.rank) == (None, 8)


def test_one_folder_is_warned_about_once(made: Path, home: Path, capsys: Any) -> None:
    argv = ["--workspace", str(home), "--backbone", str(made / "base"), "--dry-run"]
    argv += ["--adapter", str(made / "foreign"), "--category", "all"]
    assert cli.run(export.parser(), export.work, argv) == 0
    assert capsys.readouterr().err.count("only shapes bind it to base") == 1


def test_files_that_were_not_measured_are_counted(made: Path, home: Path, capsys: Any) -> None:
    assert run(made, home, "--quant", "F16,F32", "--no-verify") == 0
    capsys.readouterr()
    argv = ["--check", str(home / "bundles" / "base")]
    assert cli.run(export.parser(), export.work, argv) == 0
    assert capsys.readouterr().err.splitlines() == [
        "warning: 2 of 2 files were never measured against PEFT, such as base-F32.gguf"
    ]


@pytest.mark.parametrize("merge", [False, True])
def test_narrow_rows_are_warned_about(merge: bool, tmp_path: Path, capsys: Any) -> None:
    base = models.backbone(tmp_path / "narrow", "llama", hidden_size=128, intermediate_size=256)
    argv = ["--workspace", str(tmp_path), "--backbone", str(base)]
    if merge:
        lora = models.bind(models.adapter(tmp_path / "lora", base), base)
        both = [shutil.copytree(lora, tmp_path / name) for name in ("one", "two")]
        models.bind(both[1], base, category="teleqna")
        argv += ["--merge", "--no-verify", "--adapter", ",".join(map(str, both))]
    assert cli.run(export.parser(), export.work, argv) == 0
    said = capsys.readouterr().err
    warned = [line for line in said.splitlines() if "warning" in line]
    assert len(warned) == 1
    assert re.fullmatch(
        r".*warning: Q4_K_M: \d+ of \d+ tensors have rows that are no multiple of their type's "
        r"blocks, such as blk\.0\.\S+, which gets Q\d_\d instead of Q\d_K: \+0\.\d\d MB, \+\d+%",
        warned[0],
    )


# Arguments, exit code, what is said.
COMMANDS: tuple[tuple[list[str], int, str], ...] = (
    (["--help"], 0, "tel-export"),
    (["--nonsense"], 2, "unrecognized arguments: --nonsense"),
    (["--quant", "Q4_K_X"], 2, "no type 'Q4_K_X'; there are: F32 F16 BF16 Q8_0"),
    (["--quant", ","], 2, "no type ''"),
    (["--format", "onnx", "--quant", "Q4_K_M"], 2, "no ONNX type 'Q4_K_M'; there are: fp32 int8"),
    (["--format", "exe"], 2, "invalid choice: 'exe'"),
    (["--backbone", "nothing"], 2, "no backbone 'nothing'"),
    (["--adapter", "nothing"], 2, "'nothing' is neither a folder nor 'all'"),
    (
        ["--adapter", "srsranbench"],
        2,
        "tel-train with the same --backbone and --category srsranbench",
    ),
    (["--adapter", "teletables"], 2, "no adapter for teletables"),
    (["--adapter", "TWIN"], 2, "this is a whole model and no adapter"),
    (["--adapter", "ONE,oranbench"], 2, "two adapters for oranbench"),
    (["--adapter", "ONE", "--category", "teleqna"], 2, "trained for oranbench, not for teleqna"),
    (["--adapter", "ONE,TWO", "--category", "teleqna"], 2, "one folder given as --adapter DIR"),
    (["--adapter", "FOREIGN", "--category", "x"], 2, "unknown category 'x'"),
    (["--adapter", "FOREIGN"], 2, "add --category NAME"),
    (["--backbone", "TWIN", "--adapter", "all"], 2, "no finished adapter; run tel-train"),
    (["--out", "FILE"], 2, "is a file, wanted a folder"),
)


@pytest.mark.parametrize(("argv", "code", "said"), COMMANDS)
def test_commands(
    argv: list[str], code: int, said: str, made: Path, home: Path, capsys: Any
) -> None:
    for name in ("one", "two", "foreign", "twin"):
        argv = [part.replace(name.upper(), str(made / name)) for part in argv]
    argv = [part.replace("FILE", str(made / "base" / "config.json")) for part in argv]
    assert run(made, home, *argv) == code
    told = capsys.readouterr()
    assert said in told.out + told.err
    assert not (home / "bundles").exists()
    if code:
        assert told.out == ""
        assert len(told.err.splitlines()) <= 2


def test_a_missing_extra_is_one_line(made: Path, home: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert run(made, home) == 2
    assert "gguf is not installed; run: pip install 'tel-edge[export]'" in capsys.readouterr().err


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys, tel_edge.export.commands.export as e; e.parser().format_help();"
        "heavy = {'numpy', 'torch', 'gguf', 'llama_cpp', 'tqdm', 'safetensors'};"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
