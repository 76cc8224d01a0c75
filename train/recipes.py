"""Training recipes, one row each.

Source of `paper`: "Towards Edge-deployable Telecom Intelligence with Efficient Small Language
Models" (rank 16, alpha 32, seven projections, cosine schedule with linear warm-up from 5e-4, early
stopping on the validation loss, seed 42). The paper names no batch size and no number of epochs.
"""

from __future__ import annotations

from dataclasses import dataclass

from tel_edge.runtime.errors import InputError

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Recipe:
    """How an adapter is trained. `warmup` is a share of all steps; `patience` counts epochs.

    Each question is shown `orders` times an epoch, if more than once with its choices in another
    order each time, and in a share `exchanged` of them with other wrong choices
    (`tel_edge.train.data.varied`), so that what is learned is the answer and not its letter.

    `epochs` is the most there can be: training ends when the validation loss has not improved for
    `patience` evaluations, of which there is one an epoch.
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


RECIPES: dict[str, Recipe] = {
    row.name: row
    for row in (
        Recipe("paper"),
        # A backbone of a few million parameters needs more passes to take in a fact, and would
        # rather remember the letter of each question.
        Recipe("nano", learning_rate=1e-3, epochs=4, patience=4, orders=8, exchanged=0.5),
    )
}


def recipe(name: str) -> Recipe:
    """Return the row called `name`, or raise `InputError` with the names there are."""
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; there are: {' '.join(RECIPES)}")
    return RECIPES[name]
