"""What the benchmarks have in common: options, Markdown, a median with its spread, the machine."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tel_edge.runtime import cli, processors
from tel_edge.runtime.errors import WorkError
from tel_edge.runtime.files.atomic import write_text

ROOT = Path(__file__).resolve().parents[1]
# Headings of columns that hold words.
WORDS = ("backbone", "type", "form", "contender", "measure")


def common_options(made: cli.Parser, shared: str) -> None:
    """Add the options of every benchmark; `shared` says what is in the folder of --shared."""
    made.add_argument(
        "--shared",
        type=Path,
        metavar="DIR",
        default=Path(os.environ.get("TEL_SHARED", ROOT.parent / "shared")),
        help=f"folder with {shared} (env TEL_SHARED; %(default)s)",
    )
    made.add_argument(
        "--out", type=Path, metavar="FILE", help="Markdown file; numbers go beside it as .json"
    )
    made.add_argument("--json", action="store_true", help="end stdout with one line of JSON")
    made.add_argument("--quiet", action="store_true", help="no log lines")


def turn_options(made: cli.Parser, questions: str) -> None:
    """Add the options of those that take turns and keep figures; `questions` are how many."""
    made.add_argument(
        "--questions", type=cli.positive, metavar="N", help=f"in a round ({questions})"
    )
    made.add_argument("--rounds", type=cli.positive, metavar="N", help="(3; 1 with --small)")
    made.add_argument("--small", action="store_true", help="a tiny model, to try the script itself")
    made.add_argument("--fresh", action="store_true", help="forget what was measured before")


def seeds_option(made: cli.Parser, shown: str) -> None:
    """Add --seeds of those that train; `shown` says what a seed is for."""
    made.add_argument("--seeds", type=_seeds, metavar="A,B", default=[42], help=f"{shown} (42)")


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers") from None


def check_ended(name: str, done: subprocess.CompletedProcess[str]) -> None:
    """Raise `WorkError` with the last line that a program said if it failed."""
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it says nothing"]
        raise WorkError(f"{name}: exit code {done.returncode}: {said[-1]}")


def head(*names: str) -> Iterator[str]:
    """Yield the two first lines of a table."""
    yield line(*names)
    # Words to the left, numbers to the right.
    yield line(*("---" if name in WORDS else "---:" for name in names))


def line(*cells: str) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float], form: str) -> str:
    """Return the median, with the smallest and largest where there are several."""
    middle = format(statistics.median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} ({format(min(values), form)}-{format(max(values), form)})"


def keep(out: Path | None, text: str, document: Any) -> None:
    """Write the Markdown to `out`, if that is a file's name, and the numbers beside it as .json."""
    if out:
        write_text(out, text)
        write_text(out.with_suffix(".json"), json.dumps(document, indent=1) + "\n")


def machine() -> str:
    """Return one line that says on what this was measured."""
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    cpu = found[1].strip() if found else platform.machine()
    parts = ("tel-edge", "llama-cpp-python", "gguf", "torch", "transformers")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in parts]
    cores = processors.cores()
    return f"{cpu}, {cores} cores, Python {platform.python_version()}, {', '.join(versions)}"
