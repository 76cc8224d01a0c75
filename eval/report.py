"""`tel-report`: accuracy before and after quantization beside disk, memory and time."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tel_edge.eval import findings, page, plots, render
from tel_edge.eval.findings import Report
from tel_edge.runtime import backbones, cli
from tel_edge.runtime.atomic import write_text
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.workspace import Workspace


def work(args: argparse.Namespace) -> dict[str, Any]:
    """Print the table, write the report and return the document of `report.json`."""
    workspace = cli.workspace(args)
    report = findings.collect(workspace, backbone_name(workspace, args.backbone))
    out = args.out or workspace.reports
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: a file is in the way; choose another folder with --out")
    print(render.text(report))
    document, missing = write(report, out)
    if missing:
        print(f"tel-report: no report.html: {missing}", file=sys.stderr)
    smallest, *thoughts = render.verdict(report)
    print("\n".join([*thoughts, f"report in {out}; {smallest}"]))
    return document


def backbone_name(workspace: Workspace, given: str) -> str:
    """Return the name that results are kept under; the backbone itself need not be here."""
    plain = Path(given).name == given and given not in (".", "..")
    if plain and (workspace.root / "results" / given).is_dir():
        return given
    return backbones.find(given).name


def write(report: Report, out: Path) -> tuple[dict[str, Any], str]:
    """Write report.md, report.json and report.html, each in one step.

    Returns the document of `report.json`, and why there is no `report.html` or an empty text:
    without matplotlib the others are made all the same.
    """
    document, missing = findings.document(report), ""
    try:
        write_text(out / "report.html", page.page(report, plots.plots(report)))
    except InputError as error:
        missing = str(error)
        # An older page would contradict the new table.
        (out / "report.html").unlink(missing_ok=True)
    write_text(out / "report.md", render.markdown(report, figures=not missing))
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False)
    write_text(out / "report.json", text + "\n")
    return document, missing


def parser() -> cli.Parser:
    """Return the parser of `tel-report`."""
    made = cli.parser(
        "tel-report",
        "Print accuracy, disk, memory and time of every scored variant; write report.md, "
        "report.json and report.html.",
        "backbone",
    )
    made.add_argument(
        "--out", type=Path, metavar="DIR", help="where the report goes (WORKSPACE/reports)"
    )
    return made


def main() -> None:
    """Run the command."""
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
