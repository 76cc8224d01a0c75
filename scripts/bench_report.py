"""Times tel-report at the benchmark's full size: `python scripts/bench_report.py --out FILE`.

The results are made up (`made_results`), since time and memory do not depend on what the answers
are. They are kept in --workspace, and used again if they are there.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import made_results
from bench_tables import head, keep, line, machine
from reference_converter import measured

from tel_edge.runtime import cli
from tel_edge.runtime.errors import WorkError
from tel_edge.runtime.files.atomic import write_text
from tel_edge.runtime.workspace import Workspace

TARGET_SECONDS, TARGET_MB = 60, 1000


def work(args: argparse.Namespace) -> Mapping[str, Any]:
    """Make what is not there yet, run tel-report once and print what it took."""
    wanted = {
        "generator": made_results.GENERATOR,
        "variants": args.variants,
        "rotations": args.rotations,
    }
    data = args.workspace / made_results.DATASET
    home = args.workspace / f"{args.variants}-variants-{args.rotations}-rotated"
    note = home / "made.json"
    known = json.loads(note.read_text()) if note.is_file() else {}
    if {name: known.get(name) for name in wanted} != wanted:
        say = partial(cli.say, args)
        count = made_results.write(data, Workspace(home), args.variants, args.rotations, say)
        known = wanted | {"records": count}
        # Last: what is there without it is not whole.
        write_text(note, json.dumps(known) + "\n")
    found = {**known, **report(data, home)}
    text = "\n".join(table(found)) + "\n"
    print(text)
    found["machine"] = machine()
    keep(args.out, text, found)
    return found


def report(data: Path, home: Path) -> dict[str, Any]:
    """Run tel-report in a child process and return what it took and what it wrote, in bytes.

    Raises `WorkError` if it fails or leaves one of its files out.
    """
    out = home / "reports"
    files = [out / f"report.{ending}" for ending in ("html", "json", "md")]
    for file in files:
        file.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "tel_edge.eval.commands.report",
        "--backbone",
        made_results.BACKBONE,
        "--quiet",
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    usage, _ = measured([*command, "--workspace", str(home), "--dataset", str(data)])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if missing := [file.name for file in files if not file.is_file()]:
        raise WorkError(f"{out}: tel-report did not write {' '.join(missing)}")
    return {
        "seconds": usage.seconds,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "memory_anonymous": usage.anonymous,
        "memory_file": usage.file,
        "bytes": {file.name: file.stat().st_size for file in files},
    }


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table; the peak is that of the process's own memory and of its files together."""
    peak = found["memory_anonymous"] + found["memory_file"]
    cells = {
        "records": f"{found['records']:,}",
        "variants": str(found["variants"]),
        "seconds": f"{found['seconds']:.1f}",
        "CPU seconds": f"{found['cpu_seconds']:.1f}",
        "peak MB": f"{peak / 1e6:,.0f}",
        **{f"{name} MB": f"{size / 1e6:.2f}" for name, size in found["bytes"].items()},
        "target": f"{TARGET_SECONDS} s, {TARGET_MB:,} MB",
    }
    yield from head(*cells)
    yield line(*cells.values())


def parser() -> cli.Parser:
    """Return the options."""
    found = cli.Parser(
        prog="bench_report.py", description="Time tel-report at full size.", allow_abbrev=False
    )
    most = range(1, len(made_results.VARIANTS) + 1)
    found.add_argument(
        "--variants", type=int, choices=most, default=most[-1], metavar="N",
        help=f"how many are scored, 1 to {most[-1]} (%(default)s)",
    )  # fmt: skip
    found.add_argument(
        "--rotations", type=int, choices=range(most[-1] + 1), default=2, metavar="N",
        help="how many of them are asked in every order of the options too (%(default)s)",
    )  # fmt: skip
    found.add_argument(
        "--workspace",
        type=Path,
        metavar="DIR",
        default=Path(tempfile.gettempdir()) / "tel-edge-bench-report",
        help="where the made-up results are kept; 100 MB (%(default)s)",
    )
    found.add_argument(
        "--out", type=Path, metavar="FILE", help="Markdown file; numbers go beside it as .json"
    )
    found.add_argument("--json", action="store_true", help="end stdout with one line of JSON")
    found.add_argument("--quiet", action="store_true", help="no log lines")
    return found


def main() -> None:
    """Run the benchmark."""
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
