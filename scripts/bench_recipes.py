"""What recipes are worth over all orders of the options: `python scripts/bench_recipes.py`.

For each category of the workspaces' adapters the same test questions are put to the bare backbone
and to each recipe's adapter, in the benchmark's order and in every cyclic order of their options,
and to each with probabilities averaged over the orders, as `--orders` does. Computed with the model
in memory (bfloat16 products where the processor has them), since nothing depends on a file's type
here. Intervals are of questions, whose orders belong together; differences are to the bare backbone
on the same questions. A category that is finished is kept beside --out and not computed again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench_tables import head, line, machine

from tel_edge.eval.benchmarks.split import capped
from tel_edge.eval.statistics import Z95, clustered_share, share
from tel_edge.runtime import cli
from tel_edge.runtime.files.atomic import write_text
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.orders import rotations, unnumbered
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.votes import pick

BARE, BATCH = "bare", 32


def work(args: argparse.Namespace) -> Mapping[str, Any]:
    """Score what is not scored yet and print the table."""
    kept = args.out.with_suffix(".json")
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    found.setdefault("categories", {})
    for name in args.category.split(","):
        for recipe in (BARE, *dict(args.adapters)):
            own = found["categories"].setdefault(name, {})
            if recipe not in own and (made := _scored(args, name, recipe)):
                own[recipe] = made
                found["machine"] = machine()
                write_text(kept, json.dumps(found) + "\n")
                cli.say(args, f"{name} {recipe}: done")
    text = "\n".join(_table(found["categories"])) + f"\n\n{machine()}\n"
    print(text, end="")
    write_text(args.out, text)
    return found


def _scored(args: argparse.Namespace, name: str, recipe: str) -> dict[str, Any] | None:
    """Return for each question what was picked in each order, None without an adapter."""
    import torch
    from peft import PeftModel

    from tel_edge.eval.folders import loading
    from tel_edge.train import job
    from tel_edge.train.commands import train as command
    from tel_edge.train.scoring import logprobs_of
    from tel_edge.train.trainer import bf16_is_fast

    workspace = dict(args.adapters).get(recipe, next(iter(dict(args.adapters).values())))
    given = ["--workspace", workspace, "--backbone", args.backbone, "--dataset", args.dataset]
    [of] = job.jobs(command.parser().parse_args([*given, "--category", name, "--quiet"]))
    folder = Path(workspace) / "adapters" / of.backbone.name / name
    if recipe != BARE and not (folder / job.RECORD).is_file():
        return None
    model = loading.model(of.folder, torch.float32).eval()
    if recipe != BARE:
        # One product a projection instead of three.
        model = PeftModel.from_pretrained(model, folder).merge_and_unload().eval()
    test = capped(of.parts.test, args.most, of.seed)
    fixed = bool(CATEGORIES[name].labels)
    asked = [one for q in test for one in (q, *(() if fixed else _orders(q)))]
    longest = int(model.config.max_position_embeddings)
    torch.set_flush_denormal(True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16_is_fast()):
        scores = {
            question.id: values
            for question, values in logprobs_of(
                model, loading.tokenizer(of.folder), asked, longest, BATCH
            )
        }
    return {"questions": [_right(q, scores, 1 if fixed else len(q.choices)) for q in test]}


def _orders(question: Question) -> Iterator[Question]:
    """Yield the question in its other orders, and in its own where that differs for all orders."""
    left = unnumbered(question.choices)
    if left != question.choices:
        yield replace(question, id=f"{question.id}#0", choices=left)
    yield from rotations(question)


def _right(question: Question, scores: Mapping[str, tuple[float, ...]], orders: int) -> Any:
    """Return (right in each order, right with probabilities averaged over all, right as it is)."""
    right, count = [], len(question.choices)
    plain = scores.get(question.id)
    own = int(plain is not None and pick(plain) == question.answer)
    shares = [0.0] * count
    for by in range(orders):
        values = scores.get(f"{question.id}#{by}", None if by else plain)
        if values is None:
            return [[0] * orders, 0, own]
        right.append(int((pick(values) + by) % count == question.answer))
        for at, value in enumerate(values):
            shares[(at + by) % count] += math.exp(value)
    return [right, int(max(range(count), key=shares.__getitem__) == question.answer), own]


def _table(categories: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [
        *head(
            *("backbone", "type", "n", "the benchmark's order", "all orders", "points to bare"),
            *("probabilities averaged over all orders", "points to bare"),
        )
    ]
    for name, recipes in categories.items():
        for recipe, made in recipes.items():
            own, bare = made["questions"], recipes[BARE]["questions"]
            first = share(sum(one[-1] if len(one) > 2 else one[0][0] for one in own), len(own))
            every = clustered_share([(sum(one[0]), len(one[0])) for one in own])
            mean = share(sum(one[1] for one in own), len(own))
            pairs = list(zip(own, bare, strict=True))
            apart = [statistics.fmean(a[0]) - statistics.fmean(b[0]) for a, b in pairs]
            also = [a[1] - b[1] for a, b in pairs]
            cells = [_shown(first), _shown(every), _points(apart), _shown(mean), _points(also)]
            lines.append(line(name, recipe, str(len(own)), *cells))
    return lines


def _shown(of: Any) -> str:
    return f"{of.value * 100:.1f} [{of.low * 100:.1f}-{of.high * 100:.1f}]"


def _points(apart: Sequence[float]) -> str:
    if not any(apart):
        return "0"
    middle = statistics.mean(apart)
    off = Z95 * statistics.stdev(apart) / math.sqrt(len(apart))
    return f"{middle * 100:+.1f} [{(middle - off) * 100:+.1f}, {(middle + off) * 100:+.1f}]"


def _adapters(text: str) -> tuple[str, str]:
    name, _, folder = text.partition("=")
    if not folder:
        raise argparse.ArgumentTypeError(f"{text!r} is not RECIPE=WORKSPACE")
    return name, folder


def parser() -> cli.Parser:
    """Return the options."""
    made = cli.Parser(prog="bench_recipes.py", description=__doc__, allow_abbrev=False)
    made.add_argument("adapters", nargs="+", type=_adapters, metavar="RECIPE=WORKSPACE")
    made.add_argument("--backbone", default="smollm2-135m")
    made.add_argument("--dataset", default="ot-full")
    made.add_argument("--category", default=",".join(CATEGORIES), metavar="NAME,...")
    made.add_argument("--most", type=cli.positive, metavar="N", help="questions of a category")
    made.add_argument("--out", type=Path, required=True, metavar="FILE", help="Markdown file")
    made.add_argument("--json", action="store_true")
    made.add_argument("--quiet", action="store_true")
    return made


def main() -> None:
    """Run the benchmark."""
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
