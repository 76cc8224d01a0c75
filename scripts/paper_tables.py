"""The reference paper's tables and figures from what `reproduce_paper.sh` has made.

Table 1: questions of each category by part. Table 2: Pass@1 on the seen and the unseen part.
Figures 1 and 2: Pass@1 and Maj@4 before and after. Figure 3: Maj@4 against the adapter's size by
rank. The paper's own values stand beside ours where it prints them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tel_edge.eval import benchmark
from tel_edge.eval.records import Summary, read_summary
from tel_edge.eval.split import split
from tel_edge.runtime import backbones, cli
from tel_edge.runtime.atomic import write_text
from tel_edge.runtime.categories import CATEGORIES
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.extras import need
from tel_edge.runtime.workspace import Workspace

BASE, ADAPTED = "base-F16", "lora-F16"
# Pass@1 seen / unseen in percent. Source: the reference paper's Table 2.
PUBLISHED: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "llama-3.2-1b": {
        "teleqna": (66.38, 57.15), "sixg_bench": (63.28, 61.74), "3gpp_tsg": (53.50, 45.25),
        "oranbench": (75.78, 61.67), "srsranbench": (92.12, 86.05), "teletables": (58.33, 27.00),
    },
    "qwen3-0.6b": {
        "teleqna": (72.02, 58.15), "sixg_bench": (30.14, 28.05), "3gpp_tsg": (36.33, 30.00),
        "oranbench": (50.67, 45.00), "srsranbench": (76.47, 78.41), "teletables": (21.00, 12.00),
    },
    "exaone-4.0-1.2b": {
        "teleqna": (69.40, 56.45), "sixg_bench": (83.48, 79.60), "3gpp_tsg": (26.00, 19.00),
        "oranbench": (65.33, 64.33), "srsranbench": (79.36, 78.74), "teletables": (25.67, 17.00),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One backbone on one category; None where it was not scored."""

    backbone: str
    category: str
    before: Summary | None
    unseen: Summary | None
    seen: Summary | None


def lines(home: Path, names: Sequence[str]) -> list[Line]:
    """Read what there is of every backbone and category."""
    made = []
    for name in names:
        for category in CATEGORIES:
            made.append(
                Line(
                    name,
                    category,
                    _summary(home, name, BASE, category),
                    _summary(home, name, ADAPTED, category),
                    _summary(home / "seen", name, ADAPTED, category),
                )
            )
    return made


def _summary(home: Path, backbone: str, variant: str, category: str) -> Summary | None:
    path = Workspace(home).results(backbone, variant, category).with_suffix(".json")
    return read_summary(path) if path.is_file() else None


def sizes(dataset: str, seed: int) -> str:
    """Return Table 1."""
    rows = ["| category | all | train | validation | test |", "|---|---:|---:|---:|---:|"]
    for name, of in CATEGORIES.items():
        parts = split(benchmark.read(dataset, of).questions, seed)
        counts = [len(parts.train), len(parts.validation), len(parts.test)]
        rows.append(f"| {name} | {sum(counts):,} | " + " | ".join(f"{n:,}" for n in counts) + " |")
    return "\n".join(rows)


def accuracies(made: Sequence[Line]) -> str:
    """Return Table 2 with the values of Figures 1 and 2."""
    rows = [
        "| backbone | category | seen Pass@1 | paper | unseen Pass@1 (95 %) | paper | before "
        "| Maj@4 | before |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for line in made:
        paper = PUBLISHED.get(line.backbone, {}).get(line.category, ("", ""))
        unseen = "-"
        if line.unseen:
            share = line.unseen.pass1
            unseen = f"{100 * share.value:.2f} [{100 * share.low:.1f}-{100 * share.high:.1f}]"
        cells = [
            *(line.backbone, line.category, _percent(line.seen), str(paper[0]), unseen),
            *(str(paper[1]), _percent(line.before), _percent(line.unseen, True)),
            _percent(line.before, True),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _percent(of: Summary | None, majority: bool = False) -> str:
    if of is None:
        return "-"
    return f"{100 * (of.majority if majority else of.pass1).value:.2f}"


def ranks(home: Path, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the finished rows of each backbone's rank sweep, by rank."""
    found = {}
    for name in names:
        folder = home / "sweeps" / f"rank-{name}" / "rows"
        rows = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
        found[name] = [row for row in rows if not row.get("error")]
    return found


def figures(made: Sequence[Line], swept: Mapping[str, Any], out: Path) -> list[Path]:
    """Draw Figures 1 to 3 as SVG and return their paths."""
    need("matplotlib", "report")
    from matplotlib.figure import Figure

    paths = []
    for number, majority in ((1, False), (2, True)):
        names = list(dict.fromkeys(line.backbone for line in made))
        figure = Figure(figsize=(9, 2.6 * len(names)), layout="constrained")
        for at, name in enumerate(names):
            axes = figure.add_subplot(len(names), 1, at + 1)
            group = [line for line in made if line.backbone == name]
            for shift, label, picked in (
                (-0.2, "before", [line.before for line in group]),
                (0.2, "after", [line.unseen for line in group]),
            ):
                axes.bar(
                    [x + shift for x in range(len(group))],
                    [float(_percent(one, majority)) if one else 0 for one in picked],
                    0.4,
                    label=label,
                )
            axes.set_xticks(range(len(group)), [line.category for line in group])
            axes.set_ylabel("Maj@4, %" if majority else "Pass@1, %")
            axes.set_title(f"{name}; its large reference: {backbones.find(name).reference or '-'}")
            axes.legend()
        paths.append(out / f"figure-{number}.svg")
        figure.savefig(paths[-1])
    if any(swept.values()):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        for name, rows in swept.items():
            points = sorted((r["adapter_bytes"] / 1e6, 100 * r["majority"]["value"]) for r in rows)
            axes.plot([x for x, _ in points], [y for _, y in points], "o-", label=name)
        axes.set_xlabel("adapter, MB")
        axes.set_ylabel("Maj@4 on 3gpp_tsg, %")
        axes.legend()
        paths.append(out / "figure-3.svg")
        figure.savefig(paths[-1])
    return paths


def work(args: argparse.Namespace) -> dict[str, Any]:
    """Write the tables and figures."""
    names = args.backbones.split(",")
    home = cli.workspace(args).root
    made = lines(home, names)
    if not any(line.unseen for line in made):
        raise InputError(f"{home}: no results of {args.backbones}; run scripts/reproduce_paper.sh")
    args.out.mkdir(parents=True, exist_ok=True)
    drawn = figures(made, ranks(home, names), args.out)
    text = "\n\n".join(
        (
            "# Table 1: questions", sizes(args.dataset, args.seed),
            "# Table 2, Figures 1 and 2: before and after, in percent", accuracies(made),
            "# Figures", *(f"![{path.stem}]({path.name})" for path in drawn),
        )
    )  # fmt: skip
    write_text(args.out / "paper.md", text + "\n")
    print(text)
    print(f"{args.out / 'paper.md'}: {len(made)} lines, {len(drawn)} figures")
    return {"out": str(args.out)}


def parser() -> cli.Parser:
    """Return the script's options."""
    made = cli.parser(
        "paper_tables.py", "Print the paper's tables from a workspace.", "dataset", "seed"
    )
    made.add_argument("--backbones", required=True, metavar="A,B")
    made.add_argument("--out", type=Path, required=True, metavar="DIR")
    return made


if __name__ == "__main__":
    sys.exit(cli.run(parser(), work))
