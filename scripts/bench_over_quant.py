"""What training over the quantized backbone gives back: tables for docs/training.md.

For every type two adapters answer on the very same GGUF file: one trained on the backbone's own
weights, and one trained on what the file's blocks stand for. Both are measured against the first
one on F16. Everything is made by the commands that a user has, and what is there is reused.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from tel_edge.eval.records import read_records, read_summary
from tel_edge.runtime import backbones, cli
from tel_edge.runtime.atomic import write_text
from tel_edge.runtime.categories import categories
from tel_edge.runtime.errors import WorkError
from tel_edge.runtime.votes import probabilities
from tel_edge.runtime.workspace import Workspace

TYPES = "Q4_K_M,Q3_K_M,Q2_K"


@dataclass(frozen=True)
class Figures:
    """Of one adapter on one file, over a category's test part.

    `loss` is the mean surprise of the right label among the labels, in nats.
    """

    pass1: float
    loss: float


@dataclass(frozen=True)
class Row:
    """One type on one category: F16-trained on F16, the same on the type, and trained over it."""

    category: str
    quant: str
    best: Figures
    plain: Figures
    over: Figures


def command(name: str, *argv: str) -> None:
    """Run one of the project's commands; raise `WorkError` with its last line if it fails."""
    script = Path(sys.executable).with_name(name)
    done = subprocess.run(
        [script, *argv, "--quiet"], stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it says nothing"]
        raise WorkError(f"{name}: exit code {done.returncode}: {said[-1]}")


def figures(home: Workspace, backbone: str, variant: str, category: str) -> Figures:
    """Return what tel-eval has left of a variant."""
    out = home.results(backbone, variant, category)
    summary = read_summary(out.with_suffix(".json"))
    surprises = [
        -math.log(max(probabilities(record.logprobs)[record.gold], 1e-12))
        for record in read_records(out, summary.run)
    ]
    return Figures(summary.pass1.value, mean(surprises))


def work(args: argparse.Namespace) -> dict[str, object]:
    """Train, export and score what is missing, then print the tables."""
    home, types = cli.workspace(args), args.types.split(",")
    backbone = backbones.find(args.backbone).name
    names = [of.name for of in categories(args.category)]
    common = ["--backbone", args.backbone, "--seed", str(args.seed), "--dataset", args.dataset]
    there = ["--workspace", str(home.root), *common]
    chosen = ",".join(names)
    command("tel-train", *there, "--category", chosen)
    command("tel-export", *there, "--adapter", chosen, "--quant", ",".join(["F16", *types]))
    command("tel-eval", *there, "--category", chosen)
    rows = []
    for kind in types:
        cli.say(args, f"training over {kind}")
        command("tel-train", *there, "--category", chosen, "--over-quant", kind)
        # A workspace of its own, since a bundle has one adapter for a category.
        other = Workspace(home.root / "over" / kind)
        for name in names:
            folder = home.adapter(backbone, f"{name}-over-{kind}")
            command(
                "tel-export", "--workspace", str(other.root), *common, "--adapter", str(folder),
                "--quant", kind,
            )  # fmt: skip
        command("tel-eval", "--workspace", str(other.root), *common, "--category", chosen)
        for name in names:
            rows.append(
                Row(
                    name,
                    kind,
                    figures(home, backbone, "lora-F16", name),
                    figures(home, backbone, f"lora-{kind}", name),
                    figures(other, backbone, f"lora-{kind}", name),
                )
            )
    text = table(rows)
    print(text)
    if args.out:
        write_text(args.out, text + "\n")
        write_text(args.out.with_suffix(".json"), json.dumps([asdict(row) for row in rows]))
    return {"rows": [asdict(row) for row in rows]}


def table(rows: Sequence[Row]) -> str:
    """Return the rows and a mean for each type as Markdown."""
    lines = [
        "| type | category | F16 | plain adapter on it | trained over it | loss, F16 | plain "
        "| over | comes back |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for kind in dict.fromkeys(row.quant for row in rows):
        group = [row for row in rows if row.quant == kind]
        lines += [_line(kind, row.category, row.best, row.plain, row.over) for row in group]
        lines.append(
            _line(
                kind,
                "mean",
                *(
                    Figures(mean(part.pass1 for part in parts), mean(part.loss for part in parts))
                    for parts in (
                        [row.best for row in group],
                        [row.plain for row in group],
                        [row.over for row in group],
                    )
                ),
            )
        )
    return "\n".join(lines)


def _line(kind: str, name: str, best: Figures, plain: Figures, over: Figures) -> str:
    lost = plain.loss - best.loss
    back = f"{(plain.loss - over.loss) / lost:.0%}" if lost > 0.01 else "-"
    shares = " | ".join(f"{100 * one.pass1:.1f}" for one in (best, plain, over))
    losses = " | ".join(f"{one.loss:.3f}" for one in (best, plain, over))
    return f"| {kind} | {name} | {shares} | {losses} | {back} |"


def parser() -> cli.Parser:
    """Return the script's options."""
    made = cli.parser(
        "bench_over_quant.py",
        "Compare adapters trained on the backbone with adapters trained over its quantized file.",
        "backbone",
        "dataset",
        "category",
        "seed",
    )
    made.add_argument("--types", metavar="A,B", default=TYPES, help="(%(default)s)")
    made.add_argument("--out", type=Path, metavar="FILE", help="the table, and JSON beside it")
    return made


if __name__ == "__main__":
    sys.exit(cli.run(parser(), work))
