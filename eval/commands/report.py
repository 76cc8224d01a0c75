"""`tel-report`: accuracy before and after quantization beside disk, memory and time."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from tel_edge.runtime import cli
from tel_edge.runtime.bundles import backbones
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import lock
from tel_edge.runtime.questions.categories import SPOKEN
from tel_edge.runtime.workspace import Workspace


def work(args: argparse.Namespace) -> dict[str, Any]:
    """Print the tables, write the report and return the document of `report.json`."""
    if args.study:
        return _studied(args)
    # numpy and all that the report is made of; --help needs none of it.
    from tel_edge.eval.findings import findings
    from tel_edge.eval.findings.benched import read
    from tel_edge.eval.findings.decision import Budget
    from tel_edge.eval.reports import deploying, harness, render, reporting
    from tel_edge.eval.scoring import records

    workspace = cli.workspace(args)
    name = backbone_name(workspace, args.backbone)
    out = args.out or workspace.reports
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: a file is in the way; choose another folder with --out")
    if args.ship and not args.write:
        raise InputError("--ship copies what --write decides for; pass both")
    if args.compare:
        return reporting.compared(args.compare, workspace, name, out)
    budget = Budget(
        args.margin / 100,
        None if args.max_mb is None else round(args.max_mb * 1e6),
        args.max_ms,
        None if args.max_memory is None else round(args.max_memory * 1e6),
    )
    benched = [one for path in args.bench for one in read(path)] if args.bench else None
    spoken = _spoken(workspace, name)
    if spoken and not records.summaries(workspace, name):
        raise InputError(f"no results of questions; answers to customers are in {spoken[0]}")
    report = findings.collect(workspace, name, args.published, budget, benched)
    texts = reporting.read_texts(args.dataset, report, lambda text: cli.say(args, text))
    usual = workspace.root == Path("tel-workspace")
    report = replace(
        report,
        parts=texts.parts,
        home=None if usual else workspace.root,
        bench=tuple(args.bench or ()),
    )
    print(render.text(report, args.full))
    # All files of a report are of one report.
    with lock.held(out, math.inf, lambda text: cli.say(args, text), inside=True):
        document, missing = reporting.write(
            report, out, texts, args.no_texts, not args.no_questions
        )
        if missing:
            print(f"tel-report: no report.html: {missing}", file=sys.stderr)
        try:
            harness.write(
                out / "lm-eval",
                workspace,
                name,
                [row.summary for section in report.sections for row in section.rows],
                args.samples,
                None if args.no_texts else texts.questions or None,
            )
        except InputError as error:
            print(f"tel-report: not in lm-evaluation-harness's form: {error}", file=sys.stderr)
    if args.write:
        folder = args.bundle or workspace.bundle(name)
        made = deploying.write(report, folder, lambda text: cli.say(args, text))
        print(f"written to {folder}: tel-run takes {made.variant} by default")
        if args.ship:
            size = deploying.ship(folder, args.ship)
            print(f"copied to {args.ship}, {size / 1e6:,.1f} MB: all that the device needs")
    for path in spoken:
        print(f"answers to customers: {path}")
    print(f"report in {out}; {report.decision.verdict} {report.decision.variant or ''}".rstrip())
    return document


# What has a meaning beside --study.
WITH_STUDY = frozenset("study dataset out full no_texts workspace json quiet".split())


def _studied(args: argparse.Namespace) -> dict[str, Any]:
    """Print what a judged study says and write its report."""
    from tel_edge.eval.care.study import found, told, written

    made = parser()
    for name, value in vars(args).items():
        if name not in WITH_STUDY and value != made.get_default(name):
            raise InputError(f"--{name.replace('_', '-')} means nothing with --study")
    given = None if args.dataset == made.get_default("dataset") else Path(args.dataset)
    if given and not given.is_dir():
        raise InputError(f"--dataset {given}: with --study the folder that tel-generate made")
    workspace = cli.workspace(args)
    folder = found.place(workspace, args.study)
    out = args.out or folder
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: a file is in the way; choose another folder with --out")
    report = found.collect(folder, workspace, given)
    print(told.text(report, args.full))
    with lock.held(out, math.inf, lambda text: cli.say(args, text), inside=True):
        document, missing = written.write(report, out, not args.no_texts)
    if missing:
        print(f"tel-report: no report.html: {missing}", file=sys.stderr)
    print(f"report in {out}; {report.verdict.kind}")
    return document


def _spoken(workspace: Workspace, backbone: str) -> list[Path]:
    """Return the reports of answers in sentences, which `tel-eval` writes."""
    folder = workspace.root / "results" / backbone
    return sorted(path for path in folder.glob("*.md") if path.name.partition(".")[0] in SPOKEN)


def backbone_name(workspace: Workspace, given: str) -> str:
    """Return the name that results are kept under; the backbone itself need not be here."""
    plain = Path(given).name == given and given not in (".", "..")
    if plain and (workspace.root / "results" / given).is_dir():
        return given
    return backbones.find(given).name


def parser() -> cli.Parser:
    """Return the parser of `tel-report`."""
    made = cli.parser(
        "tel-report",
        "Print accuracy, disk, memory and time of every scored variant; write report.md, "
        "report.json and report.html.",
        "backbone",
        "dataset",
    )
    made.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="instead compare two bundles, workspaces, folders of results or variants",
    )
    made.add_argument(
        "--study",
        metavar="NAME|DIR",
        help="instead report on a study of tel-judge: its name in the workspace, or its folder",
    )
    made.add_argument(
        "--published",
        action="store_true",
        help="put the reference paper's own numbers beside these, labelled so",
    )
    made.add_argument(
        "--no-texts",
        action="store_true",
        help="leave what the data set says of questions out of report.html and of the samples",
    )
    made.add_argument(
        "--no-questions",
        action="store_true",
        help="leave single questions, with their right answers, out of report.html altogether",
    )
    made.add_argument(
        "--samples",
        action="store_true",
        help="write every answer in lm-evaluation-harness's form too, beside its results",
    )
    made.add_argument(
        "--out", type=Path, metavar="DIR", help="where the report goes (WORKSPACE/reports)"
    )
    made.add_argument("--full", action="store_true", help="print all tables, not only the decision")
    made.add_argument(
        "--margin",
        type=_points,
        default=1.0,
        metavar="POINTS",
        help="of accuracy that may be lost against the reference (%(default)g)",
    )
    made.add_argument("--max-mb", type=cli.above_zero, metavar="MB", help="on disk, 10^6 bytes")
    made.add_argument(
        "--max-ms", type=cli.above_zero, metavar="MS", help="for a question, in every category"
    )
    made.add_argument(
        "--max-memory",
        type=cli.above_zero,
        metavar="MB",
        help="of the process itself, beside the file that it maps",
    )
    made.add_argument(
        "--bench",
        type=Path,
        action="append",
        metavar="FILE",
        help="what tel-bench --json printed on the target device: the limits are about that",
    )
    made.add_argument(
        "--write",
        action="store_true",
        help="put the decision into the bundle, so that tel-run takes that file by default",
    )
    made.add_argument(
        "--ship",
        type=Path,
        metavar="DIR",
        help="with --write: copy what the device needs into a bundle of its own",
    )
    made.add_argument(
        "--bundle", type=Path, metavar="DIR", help="for --write (that of the workspace)"
    )
    return made


def _points(text: str) -> float:
    """Return points of accuracy, above 0 and at most 100, as the `type` of an option."""
    value = cli.above_zero(text)
    if value > 100:
        raise argparse.ArgumentTypeError(f"{text}: more than 100 points")
    return value


def main() -> None:
    """Run the command."""
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
