"""`tel-train`: one LoRA adapter per category over one frozen backbone."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tel_edge.eval import benchmark
from tel_edge.eval.split import Split, capped, split
from tel_edge.runtime import backbones, cli, digest, extras, memory, prompt
from tel_edge.runtime.atomic import replace_folder, write_text
from tel_edge.runtime.backbones import Backbone
from tel_edge.runtime.categories import Category, categories
from tel_edge.runtime.errors import InputError
from tel_edge.train.recipes import Recipe, recipe

SCHEMA_VERSION = 1
RECORD = "training.json"


@dataclass(frozen=True)
class Job:
    """One adapter to train. Two jobs with one `digest` give the same adapter."""

    backbone: Backbone
    folder: Path
    category: Category
    dataset: str
    parts: Split
    rejected: int
    recipe: Recipe
    seed: int
    most: int | None
    bound: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Return a SHA-256 over everything that the adapter depends on."""
        return digest.of_value(
            [self.bound, self.parts.digest, asdict(self.recipe), self.seed, self.most]
        )


def finished(folder: Path, job: Job) -> dict[str, Any] | None:
    """Return the record of a finished adapter of this very job, or None."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = (folder / "adapter_model.safetensors").is_file()
    return record if whole and record.get("digest") == job.digest else None


def train(job: Job, out: Path, resume: bool, quiet: bool) -> dict[str, Any]:
    """Train `job` and put the PEFT folder with its `training.json` at `out`; return the record.

    Until it is finished everything is in a hidden sibling folder, whose checkpoints a later call
    with `resume` goes on from. Raises `WorkError` when the loss is no number any more.
    """
    from tel_edge.train.trainer import fit

    partial = out.with_name(f".{out.name}.partial")
    mark = partial / "job.json"
    same = mark.is_file() and mark.read_text(encoding="utf-8") == job.digest
    if partial.exists() and not (resume and same):
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    write_text(mark, job.digest)
    made = fit(job, partial, quiet)
    record = {
        "schema_version": SCHEMA_VERSION,
        "digest": job.digest,
        "category": job.category.name,
        "dataset": job.dataset,
        "split": job.parts.digest,
        "seed": job.seed,
        "backbone": dict(job.bound["backbone"]),
        "prompt": job.bound["prompt"],
        "config": asdict(job.recipe),
        "rows": {
            "train": len(capped(job.parts.train, job.most, job.seed)),
            "train_uncapped": len(job.parts.train),
            "validation": len(job.parts.validation),
            "test": len(job.parts.test),
            "rejected": job.rejected,
        },
        **made,
        "peak_memory": memory.now().peak,
        "versions": versions(),
    }
    adapter = partial / "adapter"
    write_text(adapter / RECORD, json.dumps(record, indent=1) + "\n")
    replace_folder(adapter, out)
    shutil.rmtree(partial)
    return record


def versions() -> dict[str, str]:
    """Return the versions of what an adapter depends on."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "peft", "tel-edge")}


def jobs(args: argparse.Namespace) -> list[Job]:
    """Return one job a category, after reading and checking all that they need."""
    chosen = recipe(args.recipe) if args.recipe else None
    backbone = backbones.find(args.backbone)
    chosen = chosen or recipe("nano" if backbone.name == "tel-nano" else "paper")
    given = {
        name: getattr(args, name)
        for name in ("rank", "alpha", "epochs", "batch", "learning_rate")
        if getattr(args, name) is not None
    }
    chosen = replace(chosen, **given)
    if not 0 < chosen.learning_rate < math.inf:
        raise InputError(f"--learning-rate {chosen.learning_rate}: a number above 0 is needed")
    read = [benchmark.read(args.dataset, of, args.strict) for of in categories(args.category)]
    folder = backbones.fetch(backbone)
    bound = {
        "backbone": {
            "name": backbone.name,
            "weights": digest.of_weights(folder),
            "tokenizer": digest.of_tokenizer(folder),
        },
        "prompt": prompt.digest(),
    }
    made = []
    for of, source in zip(categories(args.category), read, strict=True):
        parts = split(source.questions, args.seed)
        if not parts.train or not parts.validation:
            raise InputError(f"{of.name}: too few questions to split ({len(source.questions)})")
        bound_to = {**bound, "data": source.digest}
        made.append(
            Job(
                backbone,
                folder,
                of,
                source.dataset,
                parts,
                len(source.rejected),
                chosen,
                args.seed,
                args.max_train,
                bound_to,
            )
        )
    return made


def work(args: argparse.Namespace) -> dict[str, Any]:
    """Train what is not finished yet."""
    for module in ("torch", "transformers", "peft", "accelerate"):
        extras.check(module, "train")
    done = []
    todo = jobs(args)
    for job in todo:
        out = cli.workspace(args).adapter(job.backbone.name, job.category.name)
        record = finished(out, job) if args.resume else None
        if record:
            cli.say(args, f"{job.category.name}: finished before, reused")
        else:
            cli.say(args, f"{job.category.name}: {len(job.parts.train)} questions to train on")
            record = train(job, out, args.resume, args.quiet)
        if job.rejected:
            cli.say(args, f"{job.category.name}: {job.rejected} malformed rows were left out")
        best = record["best"]
        print(
            f"{job.category.name:<12} validation Pass@1 {best['validation_pass1']:.3f}  "
            f"loss {best['validation_loss']:.3f}  epoch {best['epoch']:.0f}  "
            f"{record['seconds']:.0f} s  {out}",
            flush=True,
        )
        done.append({"category": job.category.name, "path": str(out), **best})
    return {"backbone": todo[0].backbone.name, "adapters": done}


def parser() -> cli.Parser:
    """Return the command's options."""
    made = cli.parser(
        "tel-train",
        "Train one LoRA adapter per category over a frozen backbone.",
        "backbone",
        "dataset",
        "category",
        "seed",
    )
    made.add_argument(
        "--recipe", metavar="NAME", help="paper or nano (nano for tel-nano, paper for all others)"
    )
    made.add_argument("--rank", type=cli.positive, metavar="R", help="instead of the recipe's")
    made.add_argument("--alpha", type=cli.positive, metavar="A", help="instead of the recipe's")
    made.add_argument(
        "--epochs", type=cli.positive, metavar="N", help="at most; instead of the recipe's"
    )
    made.add_argument("--batch", type=cli.positive, metavar="N", help="instead of the recipe's")
    made.add_argument("--learning-rate", type=float, metavar="X", help="instead of the recipe's")
    made.add_argument(
        "--max-train",
        type=cli.positive,
        metavar="N",
        help="train on at most N questions of each category",
    )
    made.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="reuse finished adapters and go on from checkpoints; --no-resume trains anew",
    )
    return made


def main() -> None:
    """Run the command."""
    sys.exit(cli.run(parser(), work))
