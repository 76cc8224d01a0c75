"""Label probabilities, their divergence, and how confidence and right answers agree."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tel_edge.eval.findings.calibration import (
    FLOOR,
    divergence,
    expected_calibration_error,
    probabilities,
    reliability,
)
from tel_edge.eval.statistics import share

Floats = NDArray[np.float64]
LOGPROBS = st.one_of(st.floats(-40, 0), st.just(-math.inf))
ROW = st.lists(LOGPROBS, min_size=4, max_size=4).filter(lambda row: max(row) > -math.inf)
ROWS = st.lists(ROW, min_size=1, max_size=6).map(np.array)
PAIRS = st.lists(st.tuples(ROW, ROW), min_size=1, max_size=6).map(np.array)
ANSWERS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=40)


@given(ROWS, st.floats(-1e3, 1e3))
def test_probabilities_sum_to_one_whatever_the_mass_off_the_labels(
    logprobs: Floats, shift: float
) -> None:
    made = probabilities(logprobs)
    assert made.sum(axis=1) == pytest.approx(1)
    assert ((made == 0) == (logprobs == -np.inf)).all()
    assert probabilities(logprobs + shift) == pytest.approx(made, abs=1e-9)


def test_probabilities_are_the_softmax_also_of_32_bits_and_far_values() -> None:
    special = pytest.importorskip("scipy.special")
    logprobs = np.random.default_rng(0).normal(-900, 5, (50, 6)).astype(np.float32)
    logprobs[::2, 4:] = -np.inf
    made = probabilities(logprobs)
    assert made.dtype == np.float64
    theirs = special.softmax(logprobs.astype(np.float64), axis=1)
    np.testing.assert_allclose(made, theirs, rtol=1e-12)
    assert probabilities(np.log([[0.3, 0.1]])) == pytest.approx(np.array([[0.75, 0.25]]))


@pytest.mark.parametrize("row", [[-math.inf] * 2, [math.nan, -1.0], [math.inf, -1.0]])
def test_rows_without_probabilities_are_refused(row: list[float]) -> None:
    with pytest.raises(ValueError, match="row 1 "):
        probabilities(np.array([[-1.0, -2.0], row]))


@given(PAIRS)
def test_divergence_is_finite_and_never_negative(pairs: Floats) -> None:
    reference, other = probabilities(pairs[:, 0]), probabilities(pairs[:, 1])
    made = divergence(reference, other)
    assert made.shape == (len(pairs),)
    assert np.isfinite(made).all()
    assert (made >= 0).all()
    assert divergence(reference, reference) == pytest.approx(0, abs=1e-9)
    # Pinsker's inequality, up to what the floor takes away.
    distance = np.abs(reference - other).sum(axis=1)
    assert (made >= distance**2 / 2 - 1e-9).all()


def test_divergence_worked_by_hand() -> None:
    reference = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.8, 0.0]])
    other = np.array([[0.25, 0.75, 0.0], [0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.2, 0.8, 0.0]])
    expected = [
        0.5 * math.log(2) + 0.5 * math.log(2 / 3),
        math.log(2),
        0.5 * math.log(0.5) + 0.5 * math.log(0.5 / FLOOR),
        0.0,
    ]
    assert divergence(reference, other) == pytest.approx(np.array(expected))
    # Of [n, m] and [1, m] numpy would make something.
    with pytest.raises(ValueError, match="shapes"):
        divergence(reference, other[:1])


def test_divergence_does_not_go_below_zero_by_rounding() -> None:
    reference = probabilities(np.random.default_rng(1).normal(0, 2, (2000, 5)))
    other = reference * (1 + np.random.default_rng(2).normal(0, 1e-16, reference.shape))
    assert (divergence(reference, other) >= 0).all()


def test_divergence_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    logprobs = np.random.default_rng(3).normal(0, 2, (2, 50, 5))
    reference, other = (probabilities(part) for part in logprobs)
    np.testing.assert_allclose(
        divergence(reference, other), stats.entropy(reference, other, axis=1), rtol=1e-9
    )


def test_reliability_worked_by_hand() -> None:
    confidence = np.array([0.5, 0.74, 0.75, 1.0, 0.1])
    right = np.array([True, False, True, True, False])
    made = reliability(confidence, right, bins=4)
    assert [(own.low, own.high, own.count) for own in made] == [
        (0.0, 0.25, 1),
        (0.5, 0.75, 2),
        (0.75, 1.0, 2),
    ]
    assert [own.confidence for own in made] == pytest.approx([0.1, 0.62, 0.875])
    assert [own.accuracy for own in made] == [share(0, 1), share(1, 2), share(2, 2)]
    # (1 * 0.1 + 2 * 0.12 + 2 * 0.125) / 5
    assert expected_calibration_error(made, 5) == pytest.approx(0.118)
    assert expected_calibration_error((), 0) == 0.0


@given(ANSWERS, st.integers(1, 30))
def test_every_answer_is_in_the_bin_of_its_confidence(
    answers: list[tuple[float, bool]], bins: int
) -> None:
    confidence = np.array([sure for sure, _ in answers], dtype=np.float64)
    right = np.array([was for _, was in answers], dtype=np.bool_)
    made = reliability(confidence, right, bins)
    for own in made:
        last = own.high == 1
        inside = (own.low <= confidence) & ((confidence < own.high) | (last & (confidence == 1)))
        assert own.count == own.accuracy.of == inside.sum() > 0
        assert own.accuracy.right == right[inside].sum()
        assert own.confidence == pytest.approx(confidence[inside].mean())
    assert sum(own.count for own in made) == len(answers)
    gap = abs(right.sum() - confidence.sum()) / max(1, len(answers))
    # At least the gap over all answers, as with one bin, and at most 1.
    assert gap - 1e-9 <= expected_calibration_error(made, len(answers)) <= 1
    if bins == 1:
        assert expected_calibration_error(made, len(answers)) == pytest.approx(gap)


@pytest.mark.parametrize("confidence", [[-0.1, 0.5], [0.5, 1.1], [0.5, math.nan], [0.5]])
def test_what_is_no_confidence_is_refused(confidence: list[float]) -> None:
    right: Any = np.array([True, False])
    with pytest.raises(ValueError, match="confidence"):
        reliability(np.array(confidence), right)
