"""A batch in parts of few tokens each, whose gradients add up to those of the batch.

What a step keeps for going backwards grows with the tokens that are computed together: 1.9 MB a
token for a model of 135M parameters, 5 GB for a batch of 16 long questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Tokens with padding that are computed together on a CPU, see docs/training.md.
MOST = 512


def parted(batch: dict[str, Any], most: int, by_tokens: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch in parts of at most `most` tokens, or a row alone.

    Rows of one length stand together, and what is padding in all of a part is left out. `weight`
    is a part's share in the mean over the batch: of its rows or, `by_tokens`, of its tokens; where
    a batch says which of them are `spoken`, of those.
    """
    lengths = batch["attention_mask"].sum(1)
    counted = lengths if by_tokens else lengths.new_ones(len(lengths))
    counted = batch["spoken"].sum(1) if "spoken" in batch else counted
    groups: list[list[int]] = []
    for at in lengths.argsort().tolist():
        if groups and (len(groups[-1]) + 1) * int(lengths[at]) <= most:
            groups[-1].append(at)
        else:
            groups.append([at])
    for group in groups:
        width = int(lengths[group].max())
        made = {
            name: values[group, -width:] if name in WIDE else values[group]
            for name, values in batch.items()
        }
        yield made | {"weight": int(counted[group].sum()) / int(counted.sum())}


def again(model: Any, wanted: bool) -> None:
    """Let a model's layers compute activations again instead of keeping them, or not.

    The model's `activation_checkpointing_enable` has to be called once before.
    """
    for module in model.modules():
        if hasattr(module, "_gradient_checkpointing_func"):
            module.gradient_checkpointing = wanted


# Of a batch what has a column for each token, padded on the left.
WIDE = ("input_ids", "attention_mask", "position_ids", "spoken")
