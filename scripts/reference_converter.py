"""llama.cpp's own converter, to compare with: `python scripts/reference_converter.py MODEL OUT`.

It travels in the source package of llama-cpp-python, so this is the one that belongs to the engine.
A test and a benchmark use it; it is fetched the first time they run, and kept in the user's cache
folder. `TEL_REFERENCE_CONVERTER` names a folder that holds it already.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import re
import runpy
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from tel_edge.runtime import cli
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.files import atomic, digest

# The engine of pyproject.toml, and the digest of its source package.
VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
PACKAGE = f"llama_cpp_python-{VERSION}"
MAIN = "convert_hf_to_gguf.py"
PARTS = (MAIN, "conversion/", "gguf-py/")
TYPES = ("f32", "f16", "bf16")
# Seconds between two looks at a child's memory.
STEP = 0.05

# Stands in for the package's build backend, see `_download`.
BACKEND = f"""
from pathlib import Path


def prepare_metadata_for_build_wheel(folder, settings=None):
    made = Path(folder, "{PACKAGE}.dist-info")
    made.mkdir()
    text = "Metadata-Version: 2.1\\nName: llama_cpp_python\\nVersion: {VERSION}\\n"
    (made / "METADATA").write_text(text)
    return made.name
"""
CHILD = (
    "import sys; sys.path.insert(0, sys.argv[1]); import reference_converter; "
    "reference_converter.inside(*sys.argv[2:4], sys.argv[4:])"
)


@dataclass(frozen=True)
class Usage:
    """What a process took: wall seconds, and the largest memory that was seen, in bytes.

    `anonymous` is the process's own, `file` mapped files, which the system may drop.
    """

    seconds: float
    anonymous: int
    file: int


def fetch(cache: Path | None = None) -> Path:
    """Return the folder with the converter, which is downloaded if it is not in `cache` yet.

    Raises `WorkError` where it cannot be had.
    """
    given = os.environ.get("TEL_REFERENCE_CONVERTER")
    cache = cache or _cache()
    home = Path(given) if given else cache / f"reference-converter-{VERSION}"
    if (home / MAIN).is_file():
        return home
    if given:
        raise InputError(f"TEL_REFERENCE_CONVERTER: no {MAIN} in {home}")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".reference-converter-", dir=cache) as passing:
        archive = _download(Path(passing))
        made = Path(passing) / "unpacked"
        _unpack(archive, made)
        atomic.replace_folder(made, home)
    return home


def _cache() -> Path:
    # The folder of scripts/install.sh.
    if given := os.environ.get("TEL_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tel-edge"


def _download(into: Path) -> Path:
    """Get the source package with pip and all of its settings, without building anything.

    Even for a download pip asks a source package's build backend for its name and version, and
    would first install the backend with CMake for that. Here a stand-in answers.
    """
    backend = into / "backend"
    (backend / "scikit_build_core").mkdir(parents=True)
    (backend / "scikit_build_core" / "__init__.py").touch()
    (backend / "scikit_build_core" / "build.py").write_text(BACKEND)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--no-binary", "llama-cpp-python", "--dest", str(into)]
    try:
        measured([*command, f"llama-cpp-python=={VERSION}"], {"PYTHONPATH": str(backend)})
    except WorkError as error:
        raise WorkError(
            f"the reference converter cannot be had ({error})\n"
            f"set TEL_REFERENCE_CONVERTER to a folder with {' '.join(PARTS)}"
        ) from None
    archive = into / f"{PACKAGE}.tar.gz"
    if not archive.is_file() or digest.of_file(archive) != SHA256:
        raise WorkError(f"{archive.name}: pip gave another file than this version's")
    return archive


def _unpack(archive: Path, into: Path) -> None:
    top = f"{PACKAGE}/vendor/llama.cpp/"
    with tarfile.open(archive) as packed:
        for member in packed:
            name = member.name.removeprefix(top)
            if member.isfile() and name != member.name and name.startswith(PARTS):
                packed.extract(member.replace(name=name, deep=False), into, filter="data")
    if not (into / MAIN).is_file():
        raise WorkError(f"{archive.name}: no {MAIN} in it")


def convert(
    folder: Path, out: Path, outtype: str, pre: str = "", home: Path | None = None
) -> Usage:
    """Convert a Hugging Face folder to `out` in a child process and return what that took.

    `outtype` is f32, f16 or bf16. The converter knows a tokenizer only by a digest; `pre` is the
    pre-tokenizer's name for one that it does not know, "" leaves the answer to it. Raises
    `WorkError` if it fails.
    """
    command = [sys.executable, "-P", "-c", CHILD, str(Path(__file__).parent)]
    command += [str(home or fetch()), pre, str(folder)]
    command += ["--outfile", str(out), "--outtype", outtype.lower()]
    usage, _ = measured(command, {"HF_HUB_OFFLINE": "1"})
    if not out.is_file():
        raise WorkError(f"{out}: the reference converter did not write it")
    return usage


def inside(home: str, pre: str, arguments: list[str]) -> None:
    """Run the converter in this process; `convert` calls it in a child."""
    sys.path[:0] = [f"{home}/gguf-py", home]
    model = importlib.import_module("conversion.base").TextModel
    if importlib.util.find_spec("sentencepiece") is None:
        # It imports sentencepiece before it looks whether there is such a vocabulary.
        model._create_vocab_sentencepiece = _none_of_sentencepiece
    if pre:
        model.get_vocab_base_pre = lambda *_: pre
    sys.argv = [f"{home}/{MAIN}", *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _none_of_sentencepiece(*_: object) -> NoReturn:
    raise FileNotFoundError("tokenizer.model")


def measured(command: Sequence[str], changed: Mapping[str, str] | None = None) -> tuple[Usage, str]:
    """Run a command to its end; return what it took and what it wrote to stdout.

    `changed` is put into its environment. Memory is looked at every `STEP` seconds, so a shorter
    peak can be missed; Linux only. Raises `WorkError` with its last line on stderr if it fails.
    """
    env = {**os.environ, **(changed or {})}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.monotonic()
        with subprocess.Popen(command, stdout=out, stderr=err, env=env) as child:
            try:
                anonymous, file = _watched(child)
            except BaseException:
                child.kill()
                raise
        usage = Usage(time.monotonic() - began, anonymous, file)
        if child.returncode:
            err.seek(0)
            said = err.read().strip().splitlines() or ["it says nothing"]
            raise WorkError(f"{Path(command[0]).name}: exit code {child.returncode}: {said[-1]}")
        out.seek(0)
        return usage, out.read()


def _watched(child: subprocess.Popen[Any]) -> tuple[int, int]:
    """Wait for the child; return its largest anonymous and file-backed memory in bytes."""
    # Its counters: smaps_rollup gives the same, but walks all of its pages to do so.
    status = Path(f"/proc/{child.pid}/status")
    largest = {"Anon": 0, "File": 0}
    while child.poll() is None:
        for name, kilobytes in re.findall(
            r"^Rss(Anon|File):\s+(\d+) kB$", status.read_text(), re.M
        ):
            largest[name] = max(largest[name], int(kilobytes) * 1024)
        with suppress(subprocess.TimeoutExpired):
            child.wait(STEP)
    return largest["Anon"], largest["File"]


def work(args: argparse.Namespace) -> Mapping[str, Any]:
    """Convert a folder and print what it took; see `parser` for the arguments."""
    if not (args.folder / "config.json").is_file():
        raise InputError(f"{args.folder}: no config.json; a Hugging Face model folder is needed")
    usage = convert(args.folder, args.out, args.outtype, args.pre)
    print(
        f"{args.out}: {args.out.stat().st_size / 1e6:,.2f} MB in {usage.seconds:.1f} s, "
        f"{usage.anonymous / 1e6:,.0f} MB anonymous memory, {usage.file / 1e6:,.0f} MB mapped files"
    )
    return {"out": str(args.out), "bytes": args.out.stat().st_size, **asdict(usage)}


def parser() -> cli.Parser:
    """Return the options."""
    made = cli.Parser(
        prog="reference_converter.py",
        description="Convert a Hugging Face folder with llama.cpp's own converter.",
        allow_abbrev=False,
    )
    made.add_argument("folder", type=Path, metavar="MODEL")
    made.add_argument("out", type=Path, metavar="OUT", help="the GGUF file")
    made.add_argument("--outtype", choices=TYPES, default="f16", help="(%(default)s)")
    made.add_argument(
        "--pre",
        default="",
        metavar="NAME",
        help="pre-tokenizer of a vocabulary that the converter does not know by its digest",
    )
    made.add_argument("--json", action="store_true", help="end stdout with one line of JSON")
    return made


def main() -> None:
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
