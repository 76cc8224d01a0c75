"""What is to be trained: everything that an adapter depends on, read and checked."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tel_edge.eval import benchmark
from tel_edge.eval.split import Split, split
from tel_edge.runtime import backbones, bundle, cli, digest, prompt
from tel_edge.runtime.backbones import Backbone
from tel_edge.runtime.categories import categories
from tel_edge.runtime.errors import InputError
from tel_edge.train import recipes
from tel_edge.train.recipes import Recipe, identity, recipe

# The name of an adapter for all categories together.
JOINT = "joint"
# What a finished adapter's folder has: its record, written last, and PEFT's weights.
RECORD, WEIGHTS = "training.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Over:
    """The GGUF file whose dequantized weights are trained on: its type, place and SHA-256."""

    quant: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class Job:
    """One adapter to train. Two jobs with one `digest` are the same training.

    On one machine with one set of packages they give the same adapter. Another machine may compute
    in another precision (bfloat16 where that is fast), so its adapter may differ; training.json has
    `precision`, `device` and `versions`.

    `name` is the category or `JOINT`; `splits` are the digests of the categories' splits, which
    `parts` has together. `scored`, `checkpointing` and `watts` change nothing in the adapter.
    """

    backbone: Backbone
    folder: Path
    name: str
    dataset: str
    parts: Split
    splits: Mapping[str, str]
    rejected: int
    recipe: Recipe
    seed: int
    most: int | None
    bound: Mapping[str, Any]
    over: Over | None = None
    scored: bool = False
    checkpointing: bool = False
    watts: float | None = None

    @property
    def digest(self) -> str:
        """Return a SHA-256 over data, backbone, prompt, recipe and seed."""
        parts = [self.bound, self.parts.digest, identity(self.recipe), self.seed, self.most]
        return digest.of_value([*parts, self.over.sha256] if self.over else parts)

    @property
    def stem(self) -> str:
        """Return the name of the adapter's folder."""
        return f"{self.name}-over-{self.over.quant}" if self.over else self.name


def jobs(args: argparse.Namespace) -> list[Job]:
    """Return one job a category, or one for all, after reading and checking all they need."""
    backbone = backbones.find(args.backbone)
    chosen = _recipe(args, backbone)
    if args.watts is not None and not 0 < args.watts < math.inf:
        raise InputError(f"--watts {args.watts}: a number above 0 is needed")
    read = [benchmark.read(args.dataset, of, args.strict) for of in categories(args.category)]
    folder = backbones.fetch(backbone, args.revision)
    known = {
        "name": backbone.name,
        "weights": digest.of_weights(folder),
        "tokenizer": digest.of_tokenizer(folder),
    }
    bound = {"backbone": known, "prompt": prompt.digest()}
    over = _over(args, known) if args.over_quant else None
    made = []
    for of, source in zip(categories(args.category), read, strict=True):
        parts = split(source.questions, args.seed)
        if not parts.train or not parts.validation:
            raise InputError(f"{of.name}: too few questions to split ({len(source.questions)})")
        made.append(
            Job(
                backbone,
                folder,
                of.name,
                source.dataset,
                parts,
                {of.name: parts.digest},
                len(source.rejected),
                chosen,
                args.seed,
                args.max_train,
                {**bound, "data": source.digest},
                over,
                args.score,
                args.checkpointing,
                args.watts,
            )
        )
    return [_joined(made)] if args.joint else made


def _recipe(args: argparse.Namespace, backbone: Backbone) -> Recipe:
    chosen = recipe(args.recipe or ("nano" if backbone.name == "tel-nano" else "paper"))
    names = ("rank", "alpha", "dropout", "epochs", "batch", "learning_rate", "loss")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.select_by:
        given["select"] = args.select_by
    if args.targets:
        given["targets"] = recipes.targets(args.targets)
    if args.rslora:
        given["rslora"] = True
    chosen = replace(chosen, **given)
    if not 0 < chosen.learning_rate < math.inf:
        raise InputError(f"--learning-rate {chosen.learning_rate}: a number above 0 is needed")
    if not 0 <= chosen.dropout < 1:
        raise InputError(f"--dropout {chosen.dropout}: a number from 0 to below 1 is needed")
    return chosen


def _over(args: argparse.Namespace, bound: Mapping[str, str]) -> Over:
    """Return the file of the workspace's bundle, checked to be of this very backbone."""
    home = cli.workspace(args).bundle(bound["name"])
    made = bundle.read(home)
    file = bundle.backbone_file(home, made, args.over_quant, "gguf")
    if made.backbone.weights != bound["weights"]:
        raise InputError(
            f"{home}: a bundle of another {bound['name']} than --backbone; "
            f"run: tel-export --quant {args.over_quant}"
        )
    return Over(file.quant, bundle.verified(home, made, file), file.sha256)


def _joined(jobs: Sequence[Job]) -> Job:
    """Return one job for all categories: their parts one after the other."""
    if len(jobs) < 2:
        raise InputError("--joint is for several categories; name them, or all, with --category")
    splits = {name: value for job in jobs for name, value in job.splits.items()}

    def together(part: str) -> tuple[Any, ...]:
        return tuple(question for job in jobs for question in job.parts.part(part))

    parts = Split(
        together("train"), together("validation"), together("test"),
        jobs[0].seed, digest.of_value(splits),
    )  # fmt: skip
    data = digest.of_value([job.bound["data"] for job in jobs])
    return replace(
        jobs[0],
        name=JOINT,
        parts=parts,
        splits=splits,
        rejected=sum(job.rejected for job in jobs),
        bound={**jobs[0].bound, "data": data},
    )
