"""`tel-sweep`: a grid of trainings, resumable, with one row a run and a report over all."""

from __future__ import annotations

import argparse
import math
import re
import shlex
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import cache, partial
from pathlib import Path
from typing import Any

from tel_edge.eval.reports.tables import aligned
from tel_edge.runtime import cli, extras, progress
from tel_edge.runtime.bundles import backbones
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import digest, lock, ownership
from tel_edge.runtime.workspace import Workspace
from tel_edge.train.dialogues.job import spoken
from tel_edge.train.sweeps import runners, sweep_report, sweep_row
from tel_edge.train.sweeps.ray_runner import Cluster, on_ray
from tel_edge.train.sweeps.runners import SweepOutcome, SweepTask
from tel_edge.train.sweeps.sweep_plan import FLAGS, PRESETS, VALUES, Preset, SweepRun, plan
from tel_edge.train.sweeps.sweep_reuse import Here, judged
from tel_edge.train.sweeps.sweep_row import SweepRow

PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def work(args: argparse.Namespace, command: Sequence[str] = runners.TRAIN) -> dict[str, Any]:
    """Make the rows that are missing, and the report over all of them."""
    name = args.name or args.preset or "grid"
    if not PLAIN.fullmatch(name):
        raise InputError(f"--name {name!r}: letters, digits, dots and dashes only")
    if args.watts is not None and not 0 < args.watts < math.inf:
        raise InputError(f"--watts {args.watts}: a number above 0 is needed")
    from tel_edge.train.commands import train

    runs = plan(args, train.parser)
    home = Path(args.workspace) / "sweeps" / name
    say = partial(cli.say, args)
    known = _known(args, home, runs, say)
    if args.dry_run:
        for run in runs:
            state = "reused" if run.name in known else "to run"
            there = ("--workspace", str(home / "runs" / run.name))
            print(f"{run.name}  {state}  tel-train {shlex.join([*run.argv, *there])}")
        print(f"sweep: {len(runs)} runs, {len(known)} reused")
        return {"name": name, "runs": [{"run": r.name, "options": r.options} for r in runs]}
    if command is runners.TRAIN and args.ray is None and len(known) < len(runs):
        for module in ("torch", "transformers", "peft", "accelerate"):
            extras.check(module, "train")
    with lock.held(home, args.wait, say, inside=True):
        # Another sweep may have made some meanwhile; what there was to say was said.
        known = _known(args, home, runs, lambda _: None)
        todo = [run for run in runs if run.name not in known]
        _check_backbones(home, todo)
        rows = dict(known)
        for row in _made(args, home, todo, command):
            rows[row.run] = row
        return _report(args, name, home, [rows[run.name] for run in runs], len(known))


def _check_backbones(home: Path, runs: Sequence[SweepRun]) -> None:
    """Refuse runs in whose folders another backbone of the same name was trained over."""
    weights = cache(digest.of_weights)
    for run in runs:
        backbone, place = backbones.find(run.options["backbone"]), home / "runs" / run.name
        # Nothing can be there of a backbone that has yet to be fetched from the hub.
        if backbone.folder is not None and place.is_dir():
            made = weights(backbone.folder)
            ownership.check_adapters(Workspace(place), backbone.name, made)


def _known(
    args: argparse.Namespace, home: Path, runs: Sequence[SweepRun], say: Callable[[str], None]
) -> dict[str, SweepRow]:
    """Return the rows of finished runs that are there and still hold, and say why others do not."""
    here, found = Here(cli.workspace(args)), {}
    for run in runs:
        row = sweep_row.read_row(_place(home, run.name))
        if row is None or row.error is not None or row.digest != run.digest:
            continue
        holds, said = judged(here, run.name, run.options, row.record)
        if said:
            say(said)
        if holds:
            found[run.name] = row
    return found


def _place(home: Path, run: str) -> Path:
    return home / "rows" / f"{run}.json"


def _made(
    args: argparse.Namespace, home: Path, todo: Sequence[SweepRun], command: Sequence[str]
) -> Iterator[SweepRow]:
    """Execute the runs, write each one's row and give it, and say so on stdout."""
    watts = () if args.watts is None else (f"--watts={args.watts:g}",)
    bundles = (Path(args.workspace) / "bundles").resolve()
    tasks = [
        SweepTask(
            (*run.argv, *watts),
            (home / "runs" / run.name).resolve(),
            bundles if "over-quant" in run.options else None,
            # Dialogues have losses instead, which are measured anyway.
            not spoken(run.options["category"]),
        )
        for run in todo
    ]
    by = {run.name: run for run in todo}
    silent = args.quiet or not sys.stderr.isatty()
    with (
        progress.bar("tel-sweep", "run", len(tasks), silent) as bar,
        closing(_outcomes(args, tasks, command)) as outcomes,
    ):
        bar.refresh()
        for outcome in outcomes:
            run = by[outcome.name]
            row = sweep_row.row(run.options, run.digest, outcome)
            sweep_row.write_row(_place(home, run.name), row)
            bar.clear()
            print(_line(row), flush=True)
            bar.update(1)
            yield row


def _outcomes(
    args: argparse.Namespace, tasks: Sequence[SweepTask], command: Sequence[str]
) -> Generator[SweepOutcome]:
    if not tasks:
        return runners.local((), 1)
    if args.ray is None:
        return runners.local(tasks, args.jobs or 1, command)
    cluster = Cluster(args.ray, args.gpus, args.cpus, args.retries, args.jobs)
    return on_ray(tasks, cluster, command)


def _line(row: SweepRow) -> str:
    if row.error is not None:
        return f"{row.run}  failed: {row.error}"
    found = "  ".join(f"{name} loss {of['loss']:.3f}" for name, of in row.losses.items())
    if row.pass1 and row.majority:
        found = (
            f"Pass@1 {row.pass1.value:.3f}  Maj@4 {row.majority.value:.3f}  "
            f"loss {row.validation_loss:.3f}"
        )
    joules = "" if row.joules is None else f"  {row.joules:,.0f} J"
    again = f"  attempt {row.attempts}" if row.attempts > 1 else ""
    return (
        f"{row.run}  {found}  {row.adapter_bytes / 1e6:.2f} MB  {row.seconds:.0f} s{joules}{again}"
    )


def _report(
    args: argparse.Namespace, name: str, home: Path, rows: Sequence[SweepRow], reused: int
) -> dict[str, Any]:
    preset = PRESETS[args.preset] if args.preset else Preset("", {})
    published = {
        row.run: preset.reference[row.options["rank"]]
        for row in rows
        if row.category == preset.category and row.options.get("rank") in preset.reference
    }
    made, missing = sweep_report.write(home, name, rows, args.watts, published, preset.source)
    if missing:
        print(f"tel-sweep: no pareto.svg: {missing}", file=sys.stderr)
    done = sweep_report.ranked(rows)
    failed = len(rows) - len(done)
    # `ranked` looks at the validation part: the test part's figures are for the report alone.
    best: dict[str, SweepRow] = {}
    for row in done:
        best.setdefault(row.category, row)
    said = [
        f"best {row.run} "
        + (f"Pass@1 {row.pass1.value:.3f}" if row.pass1 else f"loss {row.validation_loss:.3f}")
        for row in best.values()
    ]
    if done:
        for shown in sweep_report.tables(done, args.watts, published):
            print("\n".join(["", *aligned(shown), ""]))
        print("\n".join(f"{title}: {words}" for title, words in made["meaning"].items()))
    parts = [f"{len(rows)} runs", f"{reused} reused"] + [f"{failed} failed"] * bool(failed)
    print("; ".join([f"sweep: {', '.join(parts)}", *said, f"report {home / 'report.md'}"]))
    return {**made, "reused": reused, "failed": failed, "report": str(home / "report.md")} | (
        {"exit_code": 1} if failed else {}
    )


def parser() -> cli.Parser:
    """Return the command's options."""
    made = cli.parser(
        "tel-sweep",
        "Train a grid of adapters, score each on the test part and report on all; the same "
        "command again goes on where it ended.",
        "backbone",
        "dataset",
        "seed",
        "wait",
    )
    made.add_argument(
        "--category",
        metavar="NAME|all",
        help="as for tel-train, a run for each (the preset's, or all)",
    )
    made.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="rank: 4, 8, 16, 32; modules: four sets of projections at these ranks; backbones: "
        "the three of the hub; care: dialogues, four sets at ranks 16 and 32 and two learning "
        "rates",
    )
    made.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="OPTION=A,B",
        help="vary an option of tel-train; repeatable, all combinations are run; of the options "
        f"{', '.join(VALUES)}, and with yes,no {', '.join(FLAGS)}; within one value of targets "
        "write + for a comma",
    )
    made.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="the same for all runs, such as max-train=1000; repeatable",
    )
    made.add_argument("--name", help="of the sweep's folder (the preset's, or grid)")
    made.add_argument("--part", choices=("test",), default="test", help="scored (%(default)s)")
    made.add_argument(
        "--jobs", type=cli.positive, metavar="N", help="runs at a time (1; on Ray what has room)"
    )
    made.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run on Ray: local starts it here, auto or HOST:PORT joins a cluster",
    )
    made.add_argument(
        "--gpus",
        type=_amount,
        metavar="F",
        help="GPUs a run takes on Ray, such as 0.5 (1 where there is one, else 0)",
    )
    made.add_argument(
        "--cpus", type=cli.positive, default=1, metavar="N", help="cores a run takes on Ray (1)"
    )
    made.add_argument(
        "--retries",
        type=int,
        choices=range(0, 101),
        default=3,
        metavar="N",
        help="how often a run is repeated whose Ray worker was lost (%(default)s)",
    )
    made.add_argument(
        "--watts", type=float, metavar="W", help="a stated power, for an energy column of its own"
    )
    made.add_argument("--dry-run", action="store_true", help="print the runs and do nothing")
    return made


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # Ray shares one GPU in fractions, and gives several whole ones only.
    if not 0 <= value < math.inf or (value > 1 and value != int(value)):
        raise argparse.ArgumentTypeError(f"{text!r}: a share of one GPU or a whole number")
    return value


def main() -> None:
    """Run the command."""
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
