"""Whether label probabilities say how often an answer is right, and how far two sets are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tel_edge.eval.statistics import Share, share

# Stands for a probability of 0, so that one such label does not make a divergence infinite.
FLOOR = 1e-12


@dataclass(frozen=True)
class Bin:
    """The `count` questions whose confidence is in `low` to `high`; the last bin has its `high`.

    `confidence` is their mean confidence, `accuracy` the share of them that was right.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: Share


def probabilities(logprobs: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the log-probabilities [questions, labels] as probabilities that sum to 1 by row.

    A label that a question does not have is -inf and gets 0. Raises `ValueError` for a row without
    any label, or with a value that is no log-probability.
    """
    wide = np.asarray(logprobs, dtype=np.float64)
    top = wide.max(axis=1, keepdims=True)
    if not np.isfinite(top).all():
        row = int(np.flatnonzero(~np.isfinite(top))[0])
        raise ValueError(f"row {row} of the log-probabilities has no label, or NaN or inf")
    shares = np.exp(wide - top)
    made: NDArray[np.float64] = shares / shares.sum(axis=1, keepdims=True)
    return made


def divergence(reference: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Kullback-Leibler divergence of `other` from `reference` by question, in nats.

    Both are probabilities [questions, labels]; `other` is taken as at least `FLOOR`, and 0 log 0
    as 0. Raises `ValueError` if the shapes differ. Source: S. Kullback and R. A. Leibler, "On
    information and sufficiency", Annals of Mathematical Statistics 22 (1951).
    """
    if reference.shape != other.shape:
        raise ValueError(f"probabilities of shapes {reference.shape} and {other.shape}")
    ratio = np.where(reference > 0, reference, 1) / np.maximum(other, FLOOR)
    sums: NDArray[np.float64] = (reference * np.log(ratio)).sum(axis=1)
    # Rounding and the floor can put equal distributions a little below 0.
    return np.maximum(sums, 0.0)


def reliability(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int = 10
) -> tuple[Bin, ...]:
    """Return what a reliability diagram shows: `bins` of equal width on 0 to 1, without empty ones.

    `confidence` [questions] is the probability of the answer given, `right` [questions] whether it
    was right. Raises `ValueError` if they differ in length or a confidence is not in 0 to 1.
    Source: C. Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    if confidence.shape != right.shape:
        raise ValueError(f"{confidence.shape} confidences for {right.shape} answers")
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("a confidence is not in 0 to 1")
    edges = np.arange(bins + 1) / bins
    places = np.minimum(np.searchsorted(edges, confidence, side="right") - 1, bins - 1)
    made = []
    for place in np.unique(places).tolist():
        own = places == place
        count = int(own.sum())
        made.append(
            Bin(
                low=float(edges[place]),
                high=float(edges[place + 1]),
                count=count,
                confidence=float(confidence[own].mean(dtype=np.float64)),
                accuracy=share(int(right[own].sum()), count),
            )
        )
    return tuple(made)


def expected_calibration_error(bins: Sequence[Bin], of: int) -> float:
    """Return the mean over `of` questions of |accuracy - confidence| of their bins; 0 of none.

    Source: M. P. Naeini, G. F. Cooper and M. Hauskrecht, "Obtaining well calibrated probabilities
    using Bayesian binning", AAAI 2015.
    """
    return sum(own.count * abs(own.accuracy.value - own.confidence) for own in bins) / max(1, of)
