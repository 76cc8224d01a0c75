"""All commands from the outside: quick help, wrong usage, missing extras."""

from __future__ import annotations

import errno
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from for_commands import SCRIPTS, entry

from tel_edge.runtime import cli
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.extras import need

HEAVY = {"torch", "transformers", "peft", "datasets", "matplotlib", "numpy", "llama_cpp", "sklearn"}
# Prints what was imported, whatever way the program ends.
LISTING = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "

# What any command of this size imports of Python itself.
OWN_MODULES = (
    "import argparse, dataclasses, hashlib, json, logging, pathlib, subprocess, tempfile, typing"
)


def started(code: str, *argv: str) -> tuple[int, str, str, float]:
    """Run Python code in a new process; return (exit code, stdout, stderr, seconds of CPU)."""
    child = subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout
    assert child.stderr
    out, err = child.stdout.read(), child.stderr.read()
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    child.stdout.close()
    child.stderr.close()
    return child.returncode, out, err, used.ru_utime + used.ru_stime


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_quick(name: str) -> None:
    """Beside what Python's own modules take in the same moment: 0.05 s where nothing else runs."""
    runs, bare = [], []
    for _ in range(3):
        runs.append(started(entry(name), "--help"))
        bare.append(started(OWN_MODULES))
    for code, out, err, _ in runs:
        assert (code, err) == (0, "")
        assert out.startswith(f"usage: {name} ")
    assert min(seconds for *_, seconds in runs) < 6 * min(seconds for *_, seconds in bare)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_imports_nothing_heavy(name: str) -> None:
    code, _, err, _ = started(LISTING + entry(name), "--help")
    assert code == 0
    assert not HEAVY & set(err.split())


def test_the_runtime_imports_nothing_heavy() -> None:
    code, _, err, _ = started(LISTING + "import tel_edge.runtime.answerer")
    loaded = set(err.split())
    assert code == 0
    assert "tel_edge.runtime.bundles.bundle" in loaded
    assert not HEAVY & loaded
    assert not {"tel_edge.eval", "tel_edge.train", "tel_edge.export"} & loaded


@pytest.mark.parametrize("name", SCRIPTS)
def test_common_options_are_everywhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(SCRIPTS[name].split(":")[0])
    monkeypatch.delenv("TEL_WORKSPACE", raising=False)
    args = module.parser().parse_args([])
    assert args.workspace == Path("tel-workspace")
    assert (args.json, args.quiet) == (False, False)
    # What is generated, judged or shipped is of no one backbone.
    no_backbone = ("tel-generate", "tel-judge", "tel-bundle")
    assert name in no_backbone or args.backbone == "tel-nano"
    monkeypatch.setenv("TEL_WORKSPACE", "elsewhere")
    assert module.parser().parse_args([]).workspace == Path("elsewhere")


# Arguments, and what is said; DIR is an empty folder, FILE a file.
WRONG: tuple[tuple[str, str], ...] = (
    ("tel-train --category poetry", "unknown category 'poetry'; there are: teleqna sixg_bench"),
    (
        "tel-train --backbone nothing",
        "no backbone 'nothing': it is neither a folder, a GGUF file nor one of",
    ),
    ("tel-train --backbone DIR --category oranbench", "no config.json; a Hugging Face model"),
    ("tel-train --dataset nothing", "no data set 'nothing': neither ot-mini, ot-full nor"),
    ("tel-train --dataset DIR", "no test-*.parquet and no test*.jsonl"),
    ("tel-train --recipe nothing", "unknown recipe 'nothing'; there are: paper robust nano"),
    ("tel-train --rank 0", "argument --rank: '0' is no whole number above 0"),
    ("tel-train --max-train -1", "argument --max-train: '-1' is no whole number above 0"),
    ("tel-train --learning-rate nan", "--learning-rate nan: a number above 0 is needed"),
    (
        "tel-export --adapter oranbench",
        "no adapter for oranbench; run tel-train with the same --backbone",
    ),
    ("tel-export --adapter all", "no finished adapter; run tel-train"),
    ("tel-export --backbone nothing", "no backbone 'nothing'"),
    ("tel-run --category oranbench", "no such folder; make a bundle with tel-export"),
    ("tel-run --category poetry", "unknown category 'poetry'"),
    ("tel-run --backbone nothing", "no backbone 'nothing'"),
    ("tel-eval", "no such folder; make a bundle with tel-export"),
    ("tel-eval --backbone nothing", "no backbone 'nothing'"),
    ("tel-report", "no results; make some with: tel-eval --backbone tel-nano"),
    ("tel-report --backbone nothing", "no backbone 'nothing'"),
    ("tel-report --category oranbench", "unrecognized arguments: --category oranbench"),
    ("tel-demo --category poetry", "unknown category 'poetry'"),
    ("tel-demo --epochs 0", "argument --epochs: '0' is no whole number above 0"),
    *((f"{name} --workspace FILE", "file is a file, a folder is needed") for name in SCRIPTS),
    *((f"{name} --nonsense", "unrecognized arguments: --nonsense") for name in SCRIPTS),
    *((f"{name} --seed x", "--seed") for name in ("tel-train", "tel-eval", "tel-demo")),
)


@pytest.mark.parametrize(("line", "said"), WRONG)
def test_wrong_usage(line: str, said: str, tmp_path: Path, run_command: Any) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    places = {"DIR": str(tmp_path / "empty"), "FILE": str(tmp_path / "file")}
    name, *argv = [places.get(part, part) for part in line.split()]
    module = importlib.import_module(SCRIPTS[name].split(":")[0])
    home = [] if "--workspace" in argv else ["--workspace", str(tmp_path / "home")]
    code, out, err = run_command(module.parser(), module.work, *home, *argv)
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith(f"{name}: ")
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 2
    assert not (tmp_path / "home").exists()
    assert list((tmp_path / "empty").iterdir()) == []


# The command that needs the module, and the extra that brings it.
EXTRAS = (
    ("tel-train", "torch", "train"),
    ("tel-train", "peft", "train"),
    ("tel-export", "gguf", "export"),
    ("tel-demo", "llama_cpp", "llama"),
    ("tel-demo", "sklearn", "report"),
    ("tel-eval --baselines", "sklearn", "report"),
)


@pytest.mark.parametrize(("line", "module", "extra"), EXTRAS)
def test_a_missing_extra_is_one_line_with_the_command(
    line: str, module: str, extra: str, tmp_path: Path
) -> None:
    """None in `sys.modules` is what an absent module looks like to `import`."""
    name, *argv = line.split()
    code, out, err, _ = started(
        # The modules that take long and come before are not what is tested.
        f"import sys, types; sys.modules.update(torch=types.ModuleType('torch'), "
        f"peft=types.ModuleType('peft')); sys.modules[{module!r}] = None; {entry(name)}",
        *("--workspace", str(tmp_path / "home"), *argv),
    )
    assert (code, out) == (2, "")
    assert err == f"{name}: {module} is not installed; run: pip install 'tel-edge[{extra}]'\n"
    assert not (tmp_path / "home").exists()


def test_an_error_inside_a_module_is_not_taken_for_its_absence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_there.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        need("half_there", "train")
    with pytest.raises(InputError, match=r"not_there\.inside is not installed"):
        need("not_there.inside", "train")


ROOM = "; make room and run the same command again"
ENDS = (
    (InputError("wrong, do this"), 2, "wrong, do this"),
    (WorkError("broke, do that"), 1, "broke, do that"),
    (KeyboardInterrupt(), 130, "interrupted; what was finished is kept"),
    (OSError(28, "No space", "/x"), 1, "/x: No space" + ROOM),
    (OSError(28, "No space"), 1, "a file or standard output: No space" + ROOM),
    (OSError(errno.EDQUOT, "Full", "/x"), 1, "/x: Full; make room in your quota and run the same "
     "command again"),
    (OSError(30, "Read-only", "/x"), 1, "/x: Read-only; nothing can be written there; name another "
     "place"),
    (PermissionError(13, "Denied", "/y"), 1, "/y: Denied; allow this user to read and write there, "
     "or name another place"),
)  # fmt: skip


@pytest.mark.parametrize(("error", "code", "said"), ENDS)
def test_exit_codes(error: BaseException, code: int, said: str, run_command: Any) -> None:
    def work(_: Any) -> None:
        raise error

    assert run_command(cli.parser("tel", "x"), work, "--json") == (code, "", f"tel: {said}\n")


def test_an_unforeseen_error_is_not_hidden(run_command: Any) -> None:
    def work(_: Any) -> None:
        raise FileNotFoundError(2, "No such file", "/z")

    with pytest.raises(FileNotFoundError):
        run_command(cli.parser("tel", "x"), work)


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = (
        "import sys; from tel_edge.runtime import cli\n"
        "def work(args):\n"
        "    for _ in range(100_000): print('x' * 100)\n"
        "sys.exit(cli.run(cli.parser('tel', 'x'), work))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout
        assert child.stderr
        child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 0


def test_a_large_backbone_is_trained_briefly_in_the_demo() -> None:
    from tel_edge import demo

    def train(*argv: str) -> list[str]:
        return demo.commands(demo.parser().parse_args(argv))[0]

    assert "--max-train" not in train()
    large = train("--backbone", "smollm2-135m")
    assert large[-4:] == ["--max-train", "150", "--epochs", "3"]
    assert train("--backbone", "x.gguf", "--epochs", "9")[-2:] == ["--epochs", "9"]


def test_the_study_of_the_demo_is_the_path_as_one_would_type_it(tmp_path: Path) -> None:
    from tel_edge import demo

    made = demo.parser().parse_args(["--study", "--workspace", str(tmp_path)])
    lines = demo.study_commands(made)
    first = [next(lines)[0], next(lines)[0]]
    # The runs are there once they were swept.
    for name in ("a", "b"):
        (tmp_path / "sweeps" / "care" / "runs" / name).mkdir(parents=True)
    rest = [line[0] for line in lines]
    assert [*first, *rest] == [
        *("tel-generate", "tel-sweep"),
        *("tel-export", "tel-eval") * 2,
        *("tel-judge", "tel-report"),
    ]
    # The embedded backbone can be talked to in there, and is the same otherwise.
    told = json.loads((tmp_path / "tel-nano-chat" / "tokenizer_config.json").read_text())
    assert "assistant" in told["chat_template"]
    with pytest.raises(InputError, match="--quant: means nothing with --study"):
        next(demo.study_commands(demo.parser().parse_args(["--study", "--quant", "F16"])))
