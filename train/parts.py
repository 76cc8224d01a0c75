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
    is a part's share in the mean over the batch: of its rows or, `by_tokens`, of its tokens.
    """
    lengths = batch["attention_mask"].sum(1)
    groups: list[list[int]] = []
    for at in lengths.argsort().tolist():
        if groups and (len(groups[-1]) + 1) * int(lengths[at]) <= most:
            groups[-1].append(at)
        else:
            groups.append([at])
    whole = int(lengths.sum()) if by_tokens else len(lengths)
    for group in groups:
        own, width = lengths[group], int(lengths[group].max())
        made = {
            name: values[group, -width:] if name in WIDE else values[group]
            for name, values in batch.items()
        }
        yield made | {"weight": (int(own.sum()) if by_tokens else len(group)) / whole}


# Of a batch what has a column for each token, padded on the left.
WIDE = ("input_ids", "attention_mask", "position_ids")
