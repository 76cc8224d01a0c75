"""What is read from one row of logits."""

from __future__ import annotations

import math
import random
from typing import Any

from tel_edge.runtime.errors import WorkError


def log_sum(logits: Any) -> float:
    """Return the logarithm of the sum of the exponentials, in 64 bits."""
    import numpy as np

    top = float(logits.max())
    if not math.isfinite(top):
        raise WorkError("the model gives logits that are not finite; its weights are damaged")
    return top + math.log(float(np.exp(logits - np.float32(top)).sum(dtype=np.float64)))


def drawn(logits: Any, temperature: float, chance: random.Random) -> int:
    """Return the likeliest token at temperature 0, else one drawn from the distribution."""
    import numpy as np

    log_sum(logits)
    if temperature == 0:
        return int(logits.argmax())
    shares = np.exp((logits.astype(np.float64) - float(logits.max())) / temperature).cumsum()
    return int(np.searchsorted(shares, chance.random() * shares[-1], side="right"))
