"""Makes the importance-matrix table of docs/export.md: `python scripts/bench_imatrix.py WORKSPACE`.

For each quantized type the backbone is exported without a matrix, with one pooled over all trained
categories, and with each category's own; the category's test questions are scored with its adapter
and compared with the F16 backbone. WORKSPACE holds trained adapters (`tel-demo --category all`).
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_tables import keep

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.benchmarks.split import split
from tel_edge.export.commands import export
from tel_edge.runtime import cli
from tel_edge.runtime.bundles import bundle as bundles
from tel_edge.runtime.bundles import manifest
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.scoring import Scorer
from tel_edge.runtime.questions.votes import pick, probabilities

QUANTS = ("Q4_K_M", "Q3_K_M", "Q2_K")
MATRICES = ("none", "pooled", "category")
Answers = list[tuple[float, ...]]


@dataclass(frozen=True)
class Figures:
    """Mean divergence from F16 in nats and the share of right picks, over `n` questions."""

    quant: str
    matrix: str
    category: str
    n: int
    kl: float
    right: float


def exported(args: argparse.Namespace, quant: str, matrix: str, adapters: str, out: Path) -> Path:
    """Run tel-export into `out` and return it."""
    argv = ["--workspace", str(args.workspace), "--backbone", args.backbone, "--quant", quant]
    argv += ["--dataset", args.dataset, "--imatrix", matrix, "--adapter", adapters]
    code = cli.run(
        export.parser(), export.work, [*argv, "--out", str(out), "--no-verify", "--quiet"]
    )
    if code:
        raise SystemExit(code)
    return out


def answers(
    bundle: Path, quant: str, questions: Mapping[str, Sequence[Question]]
) -> dict[str, Answers]:
    """Return the label log-probabilities of each category's questions, its adapter active."""
    made = manifest.read(bundle)
    adapters = [bundles.adapter_file(bundle, made, name) for name in questions]
    backbone = bundles.backbone_file(bundle, made, quant)
    scorer = Scorer(bundles.open_engine(bundle, made, backbone, adapters))
    found: dict[str, Answers] = {}
    for name, asked in questions.items():
        scores = dict(scorer.many([(question, name) for question in asked]))
        found[name] = [scores[at].logprobs for at in range(len(asked))]
    return found


def compared(
    quant: str, matrix: str, category: str, asked: Sequence[Question], got: Answers, half: Answers
) -> Figures:
    """Return the figures of one category."""
    apart = 0.0
    for wanted, found in zip(half, got, strict=True):
        p, q = probabilities(wanted), probabilities(found)
        apart += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
    right = sum(pick(values) == q.answer for values, q in zip(got, asked, strict=True))
    return Figures(quant, matrix, category, len(asked), apart / len(asked), right / len(asked))


def measure(args: argparse.Namespace, names: Sequence[str], work: Path) -> list[Figures]:
    """Return the figures of every type, matrix and category."""
    questions = {
        name: split(benchmark.read(args.dataset, CATEGORIES[name]).questions).test for name in names
    }
    every = ",".join(names)
    half = answers(exported(args, "F16", "none", every, work / "half"), "F16", questions)
    made = [
        compared("F16", "none", name, asked, half[name], half[name])
        for name, asked in questions.items()
    ]
    for quant in QUANTS:
        for matrix in MATRICES:
            groups = names if matrix == "category" else [every]
            for group in groups:
                part = {name: questions[name] for name in group.split(",")}
                out = exported(args, quant, matrix, group, work / f"{quant}-{matrix}-{group[:20]}")
                got = answers(out, quant, part)
                made += [
                    compared(quant, matrix, name, asked, got[name], half[name])
                    for name, asked in part.items()
                ]
    return made


def table(made: Sequence[Figures], names: Sequence[str]) -> str:
    """Return the figures as a Markdown table: KL in thousandths of a nat, Pass@1 in percent."""
    lines = ["| type | matrix | " + " | ".join(names) + " | mean KL | mean Pass@1 |"]
    lines.append("|---|---|" + "---:|" * (len(names) + 2))
    for quant, matrix in dict.fromkeys((f.quant, f.matrix) for f in made):
        row = {f.category: f for f in made if (f.quant, f.matrix) == (quant, matrix)}
        cells = [f"{row[n].kl * 1e3:.1f} / {row[n].right:.1%}" for n in names]
        kl = sum(f.kl for f in row.values()) / len(row)
        right = sum(f.right for f in row.values()) / len(row)
        lines.append(
            f"| {quant} | {matrix} | " + " | ".join(cells) + f" | {kl * 1e3:.1f} | {right:.1%} |"
        )
    return "\n".join(lines) + "\n"


def run(args: argparse.Namespace) -> None:
    """Measure, print the table and write it with the raw numbers."""
    folder = args.workspace / "adapters" / args.backbone
    names = [name for name in CATEGORIES if (folder / name / "training.json").is_file()]
    if not names:
        raise SystemExit(f"{folder}: no trained adapters; run tel-demo --category all")
    with tempfile.TemporaryDirectory() as work:
        made = measure(args, names, Path(work))
    text = table(made, names)
    print(text)
    keep(args.out, text, [vars(f) for f in made])


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    made = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    made.add_argument("workspace", type=Path)
    made.add_argument("--backbone", default="tel-nano")
    made.add_argument("--dataset", default="ot-mini")
    made.add_argument("--out", type=Path, metavar="FILE.md")
    return made


def main() -> None:
    run(parser().parse_args())


if __name__ == "__main__":
    main()
