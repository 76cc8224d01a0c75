"""What training over the quantized backbone gives back: tables for docs/training.md.

For every file two adapters answer on the very same GGUF file: one trained on the backbone's own
weights, and one trained on what the file's blocks stand for. Both are measured against the first
one on F16. Files are of the types, with --imatrix each a second time, made with an importance
matrix. Every seed deals its own split and trains its own adapters, in a workspace of its own,
`WORKSPACE/seed-N`. Everything is made by the commands that a user has, and what is there is reused.
"""

from __future__ import annotations

import argparse
import math
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev

from bench_tables import check_ended, keep, seeds_option

from tel_edge.eval.scoring.records import read_records, read_summary
from tel_edge.runtime import cli
from tel_edge.runtime.bundles import backbones, bundle, manifest
from tel_edge.runtime.questions.categories import categories
from tel_edge.runtime.questions.votes import probabilities
from tel_edge.runtime.workspace import Workspace

TYPES = "Q4_K_M,Q3_K_M,Q2_K"
# Nothing but each adapter on each type, in the benchmark's order.
SCORED = ("--no-bare", "--no-rotations", "--no-baselines")


@dataclass(frozen=True)
class Figures:
    """Of one adapter on one file, over a category's test part.

    `loss` is the mean surprise of the right label among the labels, in nats.
    """

    pass1: float
    loss: float


@dataclass(frozen=True)
class Row:
    """One file on one category: F16-trained on F16, the same on the file, and trained over it."""

    seed: int
    category: str
    file: str
    best: Figures
    plain: Figures
    over: Figures


def command(name: str, *argv: str) -> None:
    """Run one of the project's commands; raise `WorkError` with its last line if it fails."""
    script = Path(sys.executable).with_name(name)
    done = subprocess.run([script, *argv, "--quiet"], capture_output=True, text=True, check=False)
    check_ended(name, done)


def figures(home: Workspace, backbone: str, variant: str, category: str) -> Figures:
    """Return what tel-eval has left of a variant."""
    out = home.results(backbone, variant, category)
    summary = read_summary(out.with_suffix(".json"))
    surprises = [
        -math.log(max(probabilities(record.logprobs)[record.gold], 1e-12))
        for record in read_records(out, summary.run)
    ]
    return Figures(summary.pass1.value, mean(surprises))


def measured(args: argparse.Namespace, seed: int) -> list[Row]:
    """Train, export and score what is missing of one seed, and return its rows."""
    home, types = Workspace(cli.workspace(args).root / f"seed-{seed}"), args.types.split(",")
    backbone = backbones.find(args.backbone).name
    names = [of.name for of in categories(args.category)]
    chosen = ",".join(names)
    common = ["--seed", str(seed), "--dataset", args.dataset]
    there = ["--workspace", str(home.root), "--backbone", args.backbone, *common]
    cli.say(args, f"seed {seed}: training on the backbone's own weights")
    command("tel-train", *there, "--category", chosen, *args.train)
    plain = home.bundle(backbone)
    bundles = {"": plain, "-imatrix": plain.with_name(f"{backbone}-imatrix")}
    command("tel-export", *there, "--adapter", chosen, "--quant", ",".join(["F16", *types]))
    command("tel-eval", *there, "--category", chosen, *SCORED)
    if args.imatrix:
        out = ["--imatrix", "pooled", "--out", str(bundles["-imatrix"])]
        command("tel-export", *there, "--adapter", chosen, "--quant", args.types, *out)
        with_matrix = ["--bundle", str(bundles["-imatrix"])]
        command("tel-eval", *there, "--category", chosen, *SCORED, *with_matrix)
    rows = []
    for kind, suffix in product(types, ("", "-imatrix") if args.imatrix else ("",)):
        cli.say(args, f"seed {seed}: training over {kind}{suffix}")
        made = manifest.read(bundles[suffix])
        path = bundles[suffix] / bundle.backbone_file(bundles[suffix], made, kind, "gguf").path
        # A workspace of its own, since a bundle has one adapter for a category.
        other = Workspace(home.root / "over" / f"{kind}{suffix}")
        on = ["--workspace", str(other.root), "--backbone", str(path), *common]
        command("tel-train", *on, "--category", chosen, *args.train)
        command("tel-export", *on, "--adapter", chosen)
        command("tel-eval", *on, "--category", chosen, *SCORED)
        for name in names:
            rows.append(
                Row(
                    seed,
                    name,
                    f"{kind}{suffix}",
                    figures(home, backbone, "lora-F16", name),
                    figures(home, backbone, f"lora-{kind}{suffix}", name),
                    figures(other, backbones.find(str(path)).name, f"lora-{kind}", name),
                )
            )
    return rows


def work(args: argparse.Namespace) -> dict[str, object]:
    """Measure every seed, then print the tables."""
    rows = [row for seed in args.seeds for row in measured(args, seed)]
    text = table(rows)
    print(text)
    document = [asdict(row) for row in rows]
    keep(args.out, text + "\n", document)
    return {"rows": document}


def table(rows: Sequence[Row]) -> str:
    """Return a line for each file and seed, means over the categories, and one over the seeds."""
    lines = [
        "| file | seed | F16 | plain adapter on it | trained over it | over less plain "
        "| loss, F16 | plain | over |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for kind in dict.fromkeys(row.file for row in rows):
        of = [row for row in rows if row.file == kind]
        seeds = list(dict.fromkeys(row.seed for row in of))
        for seed in seeds:
            lines.append(_line(kind, str(seed), [row for row in of if row.seed == seed]))
        if len(seeds) > 1:
            gains = [_gain([row for row in of if row.seed == seed]) for seed in seeds]
            spread = f" (sd over seeds {100 * stdev(gains):.1f})"
            lines.append(_line(kind, f"mean of {len(seeds)}", of, spread))
    return "\n".join(lines)


def _line(kind: str, name: str, rows: Sequence[Row], spread: str = "") -> str:
    groups = [[row.best for row in rows], [row.plain for row in rows], [row.over for row in rows]]
    shares = " | ".join(f"{100 * mean(one.pass1 for one in group):.1f}" for group in groups)
    losses = " | ".join(f"{mean(one.loss for one in group):.3f}" for group in groups)
    return f"| {kind} | {name} | {shares} | {100 * _gain(rows):+.1f}{spread} | {losses} |"


def _gain(rows: Iterable[Row]) -> float:
    """Return how much higher Pass@1 is over the quantized file than of the plain adapter on it."""
    return mean(row.over.pass1 - row.plain.pass1 for row in rows)


def parser() -> cli.Parser:
    """Return the script's options."""
    made = cli.parser(
        "bench_over_quant.py",
        "Compare adapters trained on the backbone with adapters trained over its quantized file.",
        "backbone",
        "dataset",
        "category",
    )
    seeds_option(made, "seeds to repeat it with")
    made.add_argument("--types", metavar="A,B", default=TYPES, help="(%(default)s)")
    made.add_argument(
        "--imatrix", action="store_true", help="each type with an importance matrix too"
    )
    made.add_argument(
        "--train", type=shlex.split, metavar="OPTIONS", default=[], help="for tel-train, in quotes"
    )
    made.add_argument("--out", type=Path, metavar="FILE", help="the table, and JSON beside it")
    return made


if __name__ == "__main__":
    sys.exit(cli.run(parser(), work))
