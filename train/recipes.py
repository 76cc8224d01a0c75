"""Training recipes, one row each.

Source of `paper`: "Towards Edge-deployable Telecom Intelligence with Efficient Small Language
Models" (rank 16, alpha 32, seven projections, cosine schedule with linear warm-up from 5e-4, early
stopping on the validation loss, seed 42). The paper names no batch size and no number of epochs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from tel_edge.runtime.errors import InputError

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Sets of projections by name, for `--targets`. Source of the idea: the second study
# (docs/care.md) compares configurations of 2, 4 or 7 of these.
TARGETS: dict[str, tuple[str, ...]] = {
    "all": PROJECTIONS,
    "attention": PROJECTIONS[:4],
    "mlp": PROJECTIONS[4:],
    "qv": ("q_proj", "v_proj"),
}
LOSSES = ("answer", "all")
SELECTIONS = ("loss", "pass1")


@dataclass(frozen=True)
class Recipe:
    """How an adapter is trained. `warmup` is a share of all steps; `patience` counts epochs.

    Each question is shown `orders` times an epoch, if more than once with its choices in another
    order each time, and in a share `exchanged` of them with other wrong choices
    (`tel_edge.train.data.varied`), so that what is learned is the answer and not its letter. In a
    share `told` of them the answer stands in the question: a small model has to learn first that a
    letter means the text behind it.

    `epochs` is the most there can be: training ends when `select`, the validation loss or the
    validation Pass@1, has not improved for `patience` evaluations, of which there is one an epoch;
    the best epoch is kept. `loss` is over the answer, or over all tokens of prompt and answer.
    """

    name: str
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = PROJECTIONS
    learning_rate: float = 5e-4
    warmup: float = 0.05
    batch: int = 16
    epochs: int = 10
    patience: int = 3
    weight_decay: float = 0.0
    orders: int = 1
    exchanged: float = 0.0
    told: float = 0.0
    rslora: bool = False
    loss: str = "answer"
    select: str = "loss"


# Younger than the first adapters: at their defaults they are left out of a job's digest, so that
# adapters of before stay finished.
LATER = ("rslora", "loss", "select", "told")


def identity(recipe: Recipe) -> Mapping[str, Any]:
    """Return the fields that decide what comes out of a training."""
    defaults = {field.name: field.default for field in fields(Recipe)}
    return {
        name: value
        for name, value in asdict(recipe).items()
        if name not in LATER or value != defaults[name]
    }


# What a number may be: from the first up to below the second, and how that reads.
BOUNDS = {
    "dropout": (0.0, 1.0, "a number from 0 to below 1"),
    "learning_rate": (sys.float_info.min, math.inf, "a number above 0"),
    "orders": (1, 1001, "a number from 1 to 1,000"),
    "exchanged": (0.0, math.nextafter(1, 2), "a number from 0 to 1"),
    "told": (0.0, math.nextafter(1, 2), "a number from 0 to 1"),
}

RECIPES: dict[str, Recipe] = {
    row.name: row
    for row in (
        Recipe("paper"),
        # Against benchmarks whose letters say something: where answers stand, which are chosen.
        Recipe("robust", epochs=3, orders=4, exchanged=0.25, told=0.25),
        # A backbone of a few million parameters needs more passes to take in a fact, and would
        # rather remember the letter of each question.
        Recipe("nano", learning_rate=1e-3, epochs=4, patience=4, orders=8, exchanged=0.5),
        # Dialogues: thousands of answers of many tokens, so that a few epochs are enough. It goes
        # on to the end, since the last epoch is kept beside the best.
        Recipe("care", learning_rate=2e-4, epochs=3, patience=3),
    )
}


def recipe(name: str) -> Recipe:
    """Return the row called `name`, or raise `InputError` with the names there are."""
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; there are: {' '.join(RECIPES)}")
    return RECIPES[name]


def wrong(chosen: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the first value that no recipe can have, None if nothing is."""
    for name, (least, below, meant) in BOUNDS.items():
        value = chosen.get(name)
        if value is not None and not least <= value < below:
            return f"{name.replace('_', '-')} {value}: {meant} is needed"
    return None


def targets(text: str) -> tuple[str, ...]:
    """Return the projections that `--targets all|attention|mlp|qv` or a comma list names."""
    if text in TARGETS:
        return TARGETS[text]
    named = tuple(dict.fromkeys(text.split(",")))
    unknown = [name for name in named if name not in PROJECTIONS]
    if unknown:
        raise InputError(
            f"--targets: no projection {unknown[0]!r}; there are: {' '.join(PROJECTIONS)}, and "
            f"the sets {' '.join(TARGETS)}"
        )
    return named
