"""Times tel-report --study at a study's full size: `python scripts/bench_study.py --out FILE`.

16 systems, 32 pairs, 144 prompts, both orders, two judges: 18,432 verdicts, and marks. They are
made up (`made_study`), since the time does not depend on what judges said.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import made_study
import numpy as np
from bench_tables import head, keep, line, machine
from reference_converter import measured

from tel_edge.runtime import cli
from tel_edge.runtime.errors import WorkError

TARGET_SECONDS = 120
NAME = "bench"


def work(args: argparse.Namespace) -> Mapping[str, Any]:
    """Make a study, report on it in a process of its own, and print what that took."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        truth = made_study.drawn(np.random.default_rng(1), args.systems)
        study = home / "studies" / NAME
        made_study.write(study, truth, prompts=args.prompts)
        command = [sys.executable, "-m", "tel_edge.eval.commands.report", "--quiet"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        usage, _ = measured([*command, "--study", NAME, "--workspace", str(home)])
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        wanted = [study / f"report.{end}" for end in ("html", "json", "md")]
        if missing := [file.name for file in wanted if not file.is_file()]:
            raise WorkError(f"tel-report did not write {' '.join(missing)}")
        found = {
            "verdicts": len(made_study.pairs(args.systems)) * args.prompts * 4,
            "systems": args.systems,
            "prompts": args.prompts,
            "seconds": usage.seconds,
            "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            "memory": usage.anonymous + usage.file,
            "bytes": {file.name: file.stat().st_size for file in wanted},
        }
    cells = {
        "verdicts": f"{found['verdicts']:,}",
        "systems": str(args.systems),
        "prompts": str(args.prompts),
        "seconds": f"{found['seconds']:.1f}",
        "CPU seconds": f"{found['cpu_seconds']:.1f}",
        "peak MB": f"{found['memory'] / 1e6:,.0f}",
        **{f"{name} MB": f"{size / 1e6:.2f}" for name, size in found["bytes"].items()},
        "target": f"{TARGET_SECONDS} s",
    }
    text = "\n".join([*head(*cells), line(*cells.values())]) + "\n"
    print(text)
    found["machine"] = machine()
    keep(args.out, text, found)
    return found


def parser() -> cli.Parser:
    """Return the options."""
    found = cli.Parser(
        prog="bench_study.py", description="Time a study's report at full size.", allow_abbrev=False
    )
    found.add_argument(
        "--systems", type=cli.positive, default=16, metavar="N", help="(%(default)s)"
    )
    found.add_argument(
        "--prompts", type=cli.positive, default=144, metavar="N", help="(%(default)s)"
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
