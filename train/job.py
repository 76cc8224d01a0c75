"""What is to be trained: everything that an adapter depends on, read and checked."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.benchmarks.split import Split, apart, capped, split
from tel_edge.eval.folders import checkpoint
from tel_edge.eval.from_gguf import fetching
from tel_edge.runtime import cli
from tel_edge.runtime.bundles import backbones, bundle
from tel_edge.runtime.bundles.backbones import Backbone
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import checked, digest
from tel_edge.runtime.questions import prompt
from tel_edge.runtime.questions.categories import SPOKEN, categories
from tel_edge.runtime.questions.orders import unnumbered
from tel_edge.runtime.questions.question import Question
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


class Job(Protocol):
    """One adapter to train, of questions or of dialogues; two with one `digest` are the same.

    `about` is what its record says of the data. Of `checkpointing` and `watts` nothing in the
    adapter depends.
    """

    def measured(self, record: Mapping[str, Any]) -> bool:
        """Return whether a finished adapter's record has all that was asked for."""
        ...

    @property
    def backbone(self) -> Backbone: ...  # noqa: D102
    @property
    def folder(self) -> Path: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def recipe(self) -> Recipe: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def bound(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def over(self) -> Over | None: ...  # noqa: D102
    @property
    def checkpointing(self) -> bool: ...  # noqa: D102
    @property
    def watts(self) -> float | None: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102
    @property
    def stem(self) -> str: ...  # noqa: D102
    @property
    def about(self) -> Mapping[str, Any]: ...  # noqa: D102


@dataclass(frozen=True)
class TrainingJob:
    """One adapter to train. Two jobs with one `digest` are the same training.

    On one machine with one set of packages they give the same adapter. Another machine may compute
    in another precision (bfloat16 where that is fast), so its adapter may differ; training.json has
    `precision`, `device` and `versions`.

    `name` is the category or `JOINT`; `splits` are the digests of the categories' splits, which
    `parts` has together, apart from the `shared` questions that were left out, since another
    category holds their text out (`split.apart`). `most` caps the training and the validation
    questions of each category. `scored`, `checkpointing` and `watts` change nothing in the adapter.
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
    shared: int = 0

    @property
    def shown(self) -> tuple[Question, ...]:
        """Return the questions to train on: of each category at most `most`, in their order."""
        return self._capped(self.parts.train)

    @property
    def validated(self) -> tuple[Question, ...]:
        """Return the questions that the best epoch is chosen by, as few as those to train on.

        A capped training would spend most of its time on a validation part that is not capped.
        """
        return self._capped(self.parts.validation)

    def _capped(self, questions: Sequence[Question]) -> tuple[Question, ...]:
        of: dict[str, list[Question]] = {}
        for question in questions:
            of.setdefault(question.category, []).append(question)
        return tuple(q for each in of.values() for q in capped(each, self.most, self.seed))

    def measured(self, record: Mapping[str, Any]) -> bool:
        """Return whether a finished adapter's record has the scores, if they were asked for."""
        return not self.scored or "test" in record

    @property
    def digest(self) -> str:
        """Return a SHA-256 over data, backbone, prompt, recipe and seed."""
        # The cap was one of all categories together once, which few questions never reached.
        several = len(self.splits) > 1 and self.most and len(self.parts.train) > self.most
        most = {"each": self.most} if several else self.most
        parts = [self.bound, self.parts.digest, identity(self.recipe), self.seed, most]
        if self.recipe.orders > 1 and any(unnumbered(q.choices) != q.choices for q in self.shown):
            # In other orders they were shown with their numbers once.
            parts.append("unnumbered")
        return digest.of_value([*parts, self.over.sha256] if self.over else parts)

    @property
    def stem(self) -> str:
        """Return the name of the adapter's folder."""
        return f"{self.name}-over-{self.over.quant}" if self.over else self.name

    @property
    def about(self) -> Mapping[str, Any]:
        """Return what the record says of the data."""
        return {
            "dataset": self.dataset,
            "split": self.parts.digest,
            "splits": dict(self.splits),
            "prompt": self.bound["prompt"],
            "rows": {
                "train": len(self.shown),
                "train_uncapped": len(self.parts.train),
                "validation": len(self.validated),
                "validation_uncapped": len(self.parts.validation),
                "test": len(self.parts.test),
                "rejected": self.rejected,
                "shared": self.shared,
            },
        }


def jobs(args: argparse.Namespace) -> list[TrainingJob]:
    """Return one job a category, or one for all, after reading and checking all they need."""
    backbone = backbones.find(args.backbone)
    chosen = chosen_recipe(args, "nano" if backbone.name == "tel-nano" else "paper")
    if chosen.name in SPOKEN:
        raise InputError(f"--recipe {chosen.name} is for dialogues; it goes with --category care")
    if args.stop_rate is not None:
        raise InputError("--stop-rate is for --category care: a question is answered by its label")
    say = partial(cli.say, args)
    read = [benchmark.read(args.dataset, of, args.strict, say) for of in categories(args.category)]
    folder, known, over = grounds(args, backbone)
    bound = {"backbone": known, "prompt": prompt.digest()}
    made = []
    for of, source in zip(categories(args.category), read, strict=True):
        parts = split(source.questions, args.seed)
        if not parts.train or not parts.validation:
            raise InputError(f"{of.name}: too few questions to split ({len(source.questions)})")
        made.append(
            TrainingJob(
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


def grounds(
    args: argparse.Namespace, backbone: Backbone
) -> tuple[Path, dict[str, str], Over | None]:
    """Return the backbone's folder, checked, the digests of what is in it, and `--over-quant`."""
    fetched = fetching.fetch(backbone, args.revision, partial(cli.say, args), args.quiet)
    folder = fetched.folder
    # Any layer may slide: what GGUF cannot hold, ONNX can.
    if checkpoint.load(folder, slides=True).shape.onnx_only:
        cli.say(args, f"warning: {folder}: layers slide, so it can be exported as ONNX only")
    known = {
        "name": backbone.name,
        "weights": digest.of_weights(folder),
        "tokenizer": digest.of_tokenizer(folder),
    }
    if fetched.file is not None:
        known["file"] = checked.sha256(fetched.file)
    return folder, known, _over(args, known) if args.over_quant else None


def chosen_recipe(args: argparse.Namespace, usual: str) -> Recipe:
    """Return the recipe that the options name, `usual` where they name none, with what they say."""
    if args.watts is not None and not 0 < args.watts < math.inf:
        raise InputError(f"--watts {args.watts}: a number above 0 is needed")
    chosen = recipe(args.recipe or usual)
    names = (
        *("rank", "alpha", "dropout", "epochs", "batch", "learning_rate", "loss"),
        *("orders", "exchanged", "told"),
    )
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.select_by:
        given["select"] = args.select_by
    if args.targets:
        given["targets"] = recipes.targets(args.targets)
    if args.rslora:
        given["rslora"] = True
    chosen = replace(chosen, **given)
    if said := recipes.wrong(given):
        raise InputError(f"--{said}")
    if chosen.orders == 1 and (chosen.exchanged or chosen.told):
        raise InputError("--exchanged and --told are for questions shown again: --orders 2 or more")
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


def _joined(jobs: Sequence[TrainingJob]) -> TrainingJob:
    """Return one job for all categories: their parts one after the other, apart from each other."""
    if len(jobs) < 2:
        raise InputError("--joint is for several categories; name them, or all, with --category")
    splits = {name: value for job in jobs for name, value in job.splits.items()}
    kept = apart({job.name: job.parts for job in jobs})
    for name, made in kept.items():
        if not made.train or not made.validation:
            raise InputError(
                f"{name}: too few questions to split whose text no other category holds out; "
                "leave it out of --joint"
            )

    def together(part: str) -> tuple[Question, ...]:
        return tuple(question for made in kept.values() for question in made.part(part))

    parts = Split(
        together("train"), together("validation"), together("test"), jobs[0].seed,
        digest.of_value({name: made.digest for name, made in kept.items()}),
    )  # fmt: skip
    data = digest.of_value([job.bound["data"] for job in jobs])
    return replace(
        jobs[0],
        name=JOINT,
        parts=parts,
        splits=splits,
        rejected=sum(job.rejected for job in jobs),
        bound={**jobs[0].bound, "data": data},
        shared=sum(job.parts.size for job in jobs) - parts.size,
    )
