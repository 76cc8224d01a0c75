"""What is to be trained on dialogues: everything that the adapter depends on, read and checked."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tel_edge.eval.benchmarks.split import capped
from tel_edge.eval.folders.chat import Chat
from tel_edge.runtime import cli
from tel_edge.runtime.bundles import backbones
from tel_edge.runtime.bundles.backbones import Backbone
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import digest
from tel_edge.runtime.questions.categories import SPOKEN
from tel_edge.train.dialogues.reading import PARTS, Dialogue, Dialogues, read
from tel_edge.train.job import Over, chosen_recipe, grounds
from tel_edge.train.recipes import Recipe, identity

# Options that say how questions are shown or answered, and the values that mean nothing.
REFUSED: tuple[tuple[str, Any, str], ...] = (
    ("joint", False, "an adapter for dialogues is one of its own"),
    ("score", False, "there is no label to score; --stop-rate and the losses are recorded"),
    ("orders", None, "dialogues have no options to shuffle"),
    ("exchanged", None, "dialogues have no options to exchange"),
    ("told", None, "dialogues have no options to tell"),
    ("loss", None, "it is over the answers' tokens"),
)


@dataclass(frozen=True)
class DialogueJob:
    """One adapter to train on dialogues; see `tel_edge.train.job.Job`.

    `most` caps the dialogues of each part. Of `stops` dialogues of the test part the answer is
    written afterwards, which changes nothing in the adapter.
    """

    backbone: Backbone
    folder: Path
    name: str
    data: Dialogues
    recipe: Recipe
    seed: int
    most: int | None
    bound: Mapping[str, Any]
    over: Over | None = None
    checkpointing: bool = False
    watts: float | None = None
    stops: int | None = None

    def measured(self, record: Mapping[str, Any]) -> bool:
        """Return whether a finished adapter's record has what was asked for."""
        made = record.get("stop_rate")
        return self.stops is None or (made is not None and made["asked"] == self.stops)

    def part(self, name: str) -> tuple[Dialogue, ...]:
        """Return the dialogues of a part, at most `most`; none of a part that is not there."""
        return capped(self.data.parts.get(name, ()), self.most, self.seed)

    @property
    def digest(self) -> str:
        """Return a SHA-256 over data, backbone, template, recipe and seed."""
        parts = [self.bound, identity(self.recipe), self.seed, self.most]
        return digest.of_value([*parts, self.over.sha256] if self.over else parts)

    @property
    def stem(self) -> str:
        """Return the name of the adapter's folder."""
        return f"{self.name}-over-{self.over.quant}" if self.over else self.name

    @property
    def about(self) -> Mapping[str, Any]:
        """Return what the record says of the data."""
        rows = {name: len(self.part(name)) for name in PARTS}
        uncapped = {f"{name}_uncapped": len(of) for name, of in self.data.parts.items()}
        return {
            "dataset": self.data.name,
            "split": self.data.digest,
            "splits": {self.name: self.data.digest},
            "template": self.bound["template"],
            "rows": {**rows, **uncapped, "shared": self.data.shared},
        }


def spoken(category: str) -> bool:
    """Return whether `--category` is of dialogues; they are trained one category at a time."""
    names = category.split(",")
    if len(names) > 1 and (found := [name for name in names if name in SPOKEN]):
        raise InputError(
            f"--category {category}: {found[0]} is trained alone, it has another data set"
        )
    return names[0] in SPOKEN


def check(args: argparse.Namespace) -> None:
    """Refuse options of tel-train that mean nothing for dialogues."""
    for name, nothing, why in REFUSED:
        if getattr(args, name) != nothing:
            raise InputError(f"--{name} is not for --category {args.category}: {why}")
    if args.select_by not in (None, "loss"):
        raise InputError(f"--select-by {args.select_by}: dialogues have a loss only")
    if not Path(args.dataset).is_dir():
        raise InputError(
            f"--dataset {args.dataset}: for --category {args.category} a folder of dialogues is "
            "needed; run tel-generate, or name one with train.jsonl and validation.jsonl"
        )


def jobs(args: argparse.Namespace) -> list[DialogueJob]:
    """Return the one job of `--category`, after reading and checking all that it needs."""
    check(args)
    chosen = chosen_recipe(args, args.category)
    if chosen.orders > 1:
        raise InputError(f"--recipe {chosen.name} is for questions, it shows their options")
    backbone = backbones.find(args.backbone)
    data = read(Path(args.dataset))
    folder, known, over = grounds(args, backbone)
    chat = Chat(folder)
    # Whether it ends an answer where the engine stops is known before anything is computed.
    cli.say(args, f"{args.category}: answers end with {chat.end}")
    bound = {
        "backbone": known,
        "template": chat.template.digest,
        "end": chat.end,
        "data": data.digest,
    }
    if args.stop_rate and not data.parts.get("test"):
        raise InputError(f"--stop-rate: {args.dataset} has no test.jsonl to answer")
    return [
        DialogueJob(
            backbone, folder, args.category, data, chosen, args.seed, args.max_train, bound, over,
            args.checkpointing, args.watts, args.stop_rate,
        )
    ]  # fmt: skip
