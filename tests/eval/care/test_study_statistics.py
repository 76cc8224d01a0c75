"""The statistics of a study beside other programs', published examples and counts by hand."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import made_study as made

from tel_edge.eval import agreement
from tel_edge.eval.care.judges.verdicts import PairVerdict
from tel_edge.eval.care.study import people, strength
from tel_edge.eval.care.study.tallies import Tally, joined, pooled, tallied
from tel_edge.eval.statistics import student, tail
from tel_edge.runtime.errors import InputError


def said(prompt: str, first: str, second: str, choice: str | None, words: tuple[int, int] = (9, 9),
         judge: str = "j", repeat: int = 0) -> PairVerdict:  # fmt: skip
    return PairVerdict(
        judge, prompt, prompt.partition(".")[0], first, second, choice, words, repeat, "k"
    )


def test_both_orders_are_one_pair() -> None:
    of = tallied(
        [
            said("s1.a", "x", "y", "first", (20, 10)), said("s1.a", "y", "x", "second", (10, 20)),
            said("s1.b", "y", "x", "first"), said("s1.b", "x", "y", "first"),
            said("s2.a", "x", "y", "tie"), said("s2.a", "y", "x", "first"),
            said("s2.b", "x", "y", "first"), said("s2.b", "y", "x", None),
            said("s2.a", "x", "y", "first", repeat=1),
        ],
        ("x", "y"),
    )  # fmt: skip
    # Won by x twice; a flip; a tie and a loss; and half a pair, which is left out.
    assert of.won.tolist() == [1.0, 0.5, 0.25]
    assert of.flipped.tolist() == [False, True, False]
    assert of.changed.tolist() == [False, True, True]
    assert of.first.tolist() == [0.5, 1.0, 0.75]
    assert of.longer.tolist() == [math.log(2), 0.0, 0.0]
    assert (of.asked, of.missing, of.half) == (8, 1, 1)
    assert of.shared(of.flipped).value == 1 / 3
    assert of.scenarios.tolist() == ["s1", "s1", "s2"]


def test_people_see_one_order_and_that_counts() -> None:
    of = tallied([said("s", "y", "x", "first", (30, 10))], ("x", "y"), both=False)
    assert (of.won.tolist(), of.half) == ([0.0], 0)
    assert of.longer.tolist() == [-math.log(3)]


def test_a_verdict_on_another_studys_systems_is_refused() -> None:
    with pytest.raises(InputError, match="no two systems of study"):
        tallied([said("s", "x", "z", "first")], ("x", "y"))


# Games of seven baseball teams, as A. Agresti has them in "Categorical data analysis", each pair
# met 13 times; rows are wins.
TEAMS = ("Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland", "Baltimore")
WINS = (
    (0, 7, 9, 7, 7, 9, 11),
    (6, 0, 7, 5, 11, 9, 9),
    (4, 6, 0, 7, 7, 8, 12),
    (6, 8, 6, 0, 6, 7, 10),
    (6, 2, 6, 7, 0, 7, 12),
    (4, 4, 5, 6, 6, 0, 6),
    (2, 4, 1, 3, 1, 7, 0),
)
# The scores over Baltimore's that he prints.
ABILITIES = (1.58, 1.44, 1.29, 1.25, 1.11, 0.68, 0.0)


def played() -> Tally:
    games = [
        said(f"g{at}-{other}-{game}", TEAMS[at], TEAMS[other], "first")
        for at, row in enumerate(WINS)
        for other, count in enumerate(row)
        for game in range(count)
    ]
    return tallied(games, TEAMS, both=False)


def test_scores_are_those_published() -> None:
    fit = strength.fitted(played())
    assert fit is not None
    assert fit.scores.sum() == pytest.approx(0, abs=1e-9)
    assert (fit.scores - fit.scores[-1]).tolist() == pytest.approx(ABILITIES, abs=0.006)


def simulated(seed: int = 1, **settings: float) -> Tally:
    rng = np.random.default_rng(seed)
    truth = made.drawn(rng, 6, **settings)
    return tallied(made.verdicts(truth, rng, 40, each=2), truth.systems)


@pytest.mark.parametrize("lengths", [False, True])
def test_scores_are_those_of_an_optimizer(lengths: bool) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    of = simulated(length=0.5)
    z = of.longer / np.sqrt((of.longer**2).mean())

    def unlikely(at: np.ndarray) -> float:
        odds = at[of.left] - at[of.right] + (at[6] * z if lengths else 0)
        return float((np.logaddexp(0, odds) - of.won * odds).sum() + at[:6].sum() ** 2)

    found = optimize.minimize(unlikely, np.zeros(7), tol=1e-12, options={"gtol": 1e-9})
    fit = strength.fitted(of, lengths)
    assert fit is not None
    assert fit.scores.tolist() == pytest.approx(found.x[:6].tolist(), abs=1e-6)
    if lengths:
        assert fit.length is not None
        assert fit.length.value == pytest.approx(found.x[6], abs=1e-6)


def test_scores_are_those_of_evalica() -> None:
    evalica = pytest.importorskip("evalica")
    of = simulated()
    worth = {0.0: evalica.Winner.Y, 0.5: evalica.Winner.Draw, 1.0: evalica.Winner.X}
    # Each pair as two verdicts, whose mean is what was won.
    halves = [(won >= 0.75) / 2 + (won >= 0.25) / 2 for won in of.won]
    rest = [round(2 * won - half, 2) for won, half in zip(of.won, halves, strict=True)]
    left, right = ([of.systems[at] for at in side] for side in (of.left, of.right))
    found = evalica.bradley_terry(
        left * 2,
        right * 2,
        [worth[won] for won in (*halves, *rest)],
        tolerance=1e-14,
        limit=100_000,
    )
    fit = strength.fitted(of)
    assert fit is not None
    scores = np.log(np.array([found.scores[name] for name in of.systems]))
    assert fit.scores.tolist() == pytest.approx((scores - scores.mean()).tolist(), abs=1e-6)


def test_the_covariance_is_statsmodels_by_scenario() -> None:
    models = pytest.importorskip("statsmodels.api")
    of = simulated(length=0.4)
    z = of.longer / np.sqrt((of.longer**2).mean())
    x = np.zeros((len(of.won), 7))
    rows = np.arange(len(x))
    x[rows, of.left], x[rows, of.right], x[:, 6] = 1, -1, z
    # Without the last system, against whose score the others' are.
    kept = [0, 1, 2, 3, 4, 6]
    fitted = models.GLM(of.won, x[:, kept], family=models.families.Binomial()).fit(
        cov_type="cluster", cov_kwds={"groups": of.groups, "use_correction": False}, tol=1e-12
    )
    fit = strength.fitted(of, lengths=True)
    assert fit is not None
    count = int(of.groups.max()) + 1
    for at in range(5):
        gap, error = strength.apart(fit, at, 5)
        assert gap == pytest.approx(fitted.params[at], abs=1e-6)
        assert error == pytest.approx(fitted.bse[at] * math.sqrt(count / (count - 1)), abs=1e-6)
    assert fit.length is not None
    assert fit.length.high is not None
    half = student(count - 1) * fitted.bse[5] * math.sqrt(count / (count - 1))
    assert fit.length.high - fit.length.value == pytest.approx(half, abs=1e-6)


def test_who_wins_everything_gets_a_bound_and_is_named() -> None:
    games = [said(f"p{at}", "x", other, "first") for at in range(9) for other in ("y", "z")]
    games += [said(f"p{at}", "y", "z", "first" if at % 2 else "second") for at in range(9)]
    fit = strength.fitted(tallied(games, ("x", "y", "z"), both=False))
    assert fit is not None
    assert fit.bounded == ("x",)
    assert np.isfinite(fit.scores).all()
    assert fit.scores.argmax() == 0
    assert strength.fitted(tallied(games[:9:2], ("x", "y", "z"), both=False)) is None


def test_ranks_are_as_sure_as_differences() -> None:
    truth = made.Truth((2.0, 0.0, 0.0, -2.0), (4.0,) * 4)
    of = tallied(made.verdicts(truth, np.random.default_rng(2), 60), truth.systems)
    fit = strength.fitted(of)
    assert fit is not None
    places = [(one.rank_low, one.rank_high) for one in strength.standings(fit, len(of.won))]
    assert places == [(1, 1), (2, 3), (2, 3), (4, 4)]
    shares = [one.wins.value for one in strength.standings(fit, len(of.won))]
    assert sum(shares) == pytest.approx(2.0)
    # Of answers that are all the same nothing is known.
    same = replace(of, won=np.full(len(of.won), 0.5))
    equal = strength.fitted(same)
    assert equal is not None
    assert {(one.rank_low, one.rank_high) for one in strength.standings(equal, 1)} == {(1, 4)}


def test_length_is_told_from_quality() -> None:
    rng = np.random.default_rng(3)
    truth = made.Truth((0.5, 0.0, -0.5, 0.0), (4.5, 4.0, 3.5, 4.0), length=0.0, noise=0.5)
    plain = strength.fitted(tallied(made.verdicts(truth, rng, 200), truth.systems), lengths=True)
    likes = replace(truth, length=1.5)
    long = strength.fitted(tallied(made.verdicts(likes, rng, 200), truth.systems), lengths=True)
    assert plain is not None
    assert long is not None
    assert plain.length is not None
    assert long.length is not None
    assert plain.length.low is not None
    assert plain.length.low <= 0 <= plain.length.high  # type: ignore[operator]
    assert long.length.low is not None
    assert long.length.low > 0.2
    # At equal length the first is better by a half still, and not by one and more.
    assert strength.apart(long, 0, 1)[0] == pytest.approx(strength.apart(plain, 0, 1)[0], abs=0.25)


def test_lengths_that_are_the_systems_own_cannot_be_told_from_quality() -> None:
    of = simulated()
    own = np.array([0.3, 0.1, 0.0, -0.1, 0.2, -0.4])
    longer = own[of.left] - own[of.right]
    fit = strength.fitted(replace(of, longer=longer), lengths=True)
    assert fit is not None
    assert fit.length is None
    assert fit.scores.tolist() == strength.fitted(of).scores.tolist()  # type: ignore[union-attr]
    assert strength.fitted(of, lengths=True).length is not None  # type: ignore[union-attr]


# The two examples of K. Krippendorff, "Computing Krippendorff's alpha-reliability" (2011).
TWO = ("aabbdcccedda", "babbbccceddd")
FOUR = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")


def ratings(of: Sequence[str]) -> np.ndarray:
    return np.array([[math.nan if c == "." else float(ord(c)) for c in row] for row in of]).T


def test_alpha_is_that_of_the_published_examples() -> None:
    assert agreement.alpha(ratings(TWO), ordinal=False) == pytest.approx(310 / 448, abs=1e-9)
    assert agreement.alpha(ratings(FOUR), ordinal=False) == pytest.approx(0.743, abs=5e-4)
    assert agreement.alpha(ratings(FOUR), ordinal=True) == pytest.approx(0.815, abs=5e-4)
    assert agreement.alpha(ratings(("aaaa", "aaaa")), ordinal=False) is None
    assert agreement.alpha(ratings(("ab", "..")), ordinal=False) is None


@pytest.mark.parametrize("distance", ["nominal", "ordinal"])
def test_alpha_is_evalicas(distance: str) -> None:
    evalica = pytest.importorskip("evalica")
    frame = pytest.importorskip("pandas").DataFrame(ratings(FOUR).T)
    found = evalica.alpha(frame, distance=distance).alpha
    assert agreement.alpha(ratings(FOUR), distance == "ordinal") == pytest.approx(found, abs=1e-6)


def test_kappa_is_sklearns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(4)
    one = rng.integers(-1, 2, 80)
    other = np.where(rng.random(80) < 0.6, one, rng.integers(-1, 2, 80))
    assert agreement.kappa(one, other) == pytest.approx(metrics.cohen_kappa_score(one, other))
    assert agreement.kappa(one[:0], one[:0]) is None
    assert agreement.kappa(np.ones(3), np.ones(3)) is None


def test_w_is_friedmans() -> None:
    stats = pytest.importorskip("scipy.stats")
    scores = np.array([[1.0, 2, 3, 4, 5], [2, 1, 3, 3, 5], [1, 3, 2, 5, 4]])
    chi = stats.friedmanchisquare(*scores.T).statistic
    assert agreement.kendall_w(scores.tolist()) == pytest.approx(chi / (3 * 4))
    assert agreement.kendall_w([[1, 2, 3], [1, 2, 3]]) == pytest.approx(1.0)
    assert agreement.kendall_w([[1, 2, 3], [3, 2, 1]]) == pytest.approx(0.0)
    assert agreement.kendall_w([[1, 1], [1, 1]]) is None


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    values = np.random.default_rng(5).normal(size=40)
    of = agreement.jackknifed(np.arange(40), lambda kept: float(values[kept].mean()))
    assert of is not None
    assert of.high is not None
    error = values.std(ddof=1) / math.sqrt(40)
    assert of.high - of.value == pytest.approx(student(39) * error)
    two = agreement.jackknifed(np.repeat([0, 1], 5), lambda kept: float(kept.sum()))
    assert two is not None
    assert two.low is None


def test_of_sixteen_systems_tau_has_to_be_037() -> None:
    assert agreement.least_tau(16) == pytest.approx(44 / 120)
    rng = np.random.default_rng(6)
    order = np.arange(16.0)
    # Pairs that differ, in an order that reaches it.
    found = [agreement.rank_correlations(order, rng.permutation(16).tolist())[0] for _ in range(8)]
    for one in found:
        assert one.value is not None
        assert one.p is not None
        if abs(one.value) >= 0.4:
            assert one.p < 0.05
        if abs(one.value) <= 0.33:
            assert one.p > 0.05


def test_the_tail_is_students() -> None:
    stats = pytest.importorskip("scipy.stats")
    for t in (-3.0, -0.5, 0.0, 1.0, 2.5, 4.0):
        assert tail(t, 29) == pytest.approx(stats.t.sf(t, 29), abs=2e-3)
        assert tail(t, 143) == pytest.approx(stats.t.sf(t, 143), abs=2e-4)


def test_prediction_powered_means_are_the_closed_form() -> None:
    rng = np.random.default_rng(7)
    n, m = 60, 400
    truth = rng.random(n + m)
    judged = np.clip(truth + rng.normal(0.1, 0.2, n + m), 0, 1)
    labels = (rng.random(n) < truth[:n]).astype(float)
    of = people.powered(labels, judged[:n], judged[n:], np.arange(n + m))
    # The estimate of PPI++, written out: weight, mean, and the variance of both parts.
    weight = np.cov(labels, judged[:n], ddof=0)[0, 1] / ((1 + n / m) * judged.var(ddof=1))
    weight = min(max(weight, 0.0), 1.0)
    value = weight * judged[n:].mean() + (labels - weight * judged[:n]).mean()
    variance = weight**2 * judged[n:].var() / m + (labels - weight * judged[:n]).var() / n
    assert of is not None
    assert of.high is not None
    assert of.value == pytest.approx(value, abs=1e-6)
    half = student(n - 1) * math.sqrt(variance * (n + m) / (n + m - 1))
    assert of.high - of.value == pytest.approx(half, abs=1e-6)
    # A judge that knows makes it surer than labels alone, one that guesses hardly less sure.
    alone = student(n - 1) * math.sqrt(labels.var() / n)
    assert half < alone
    guess = people.powered(labels, rng.random(n), rng.random(m), np.arange(n + m))
    assert guess is not None
    assert guess.high is not None
    assert guess.high - guess.value < 1.1 * alone
    assert people.powered(labels[:9], judged[:9], judged[n:], np.arange(m + 9)) is None


def labelled(rng: np.random.Generator, truth: np.ndarray, right: float) -> dict[people.Unit, int]:
    own = np.where(rng.random(len(truth)) < right, truth, rng.integers(-1, 2, len(truth)))
    return {(f"p{at}", 0, 1): int(value) for at, value in enumerate(own)}


def test_a_judge_as_good_as_people_may_stand_in_and_a_guesser_may_not() -> None:
    rng = np.random.default_rng(8)
    truth = rng.integers(-1, 2, 80)
    three = {name: labelled(rng, truth, 0.8) for name in "abc"}
    good = people.replaced("good", labelled(rng, truth, 0.9), three)
    assert (good.passes, good.winning, good.people) == (True, 1.0, 3)
    assert good.advantage is not None
    assert good.advantage > 0.7
    guess = people.replaced("guess", labelled(rng, truth, 0.0), three)
    assert (guess.passes, guess.winning) == (False, 0.0)


def test_the_test_of_people_is_refused_where_there_are_too_few() -> None:
    rng = np.random.default_rng(9)
    truth = rng.integers(-1, 2, 80)
    one = {"a": labelled(rng, truth, 0.8)}
    assert "2 are needed" in people.replaced("j", labelled(rng, truth, 0.9), one).why
    few = {name: labelled(rng, truth[:20], 0.8) for name in "ab"}
    refused = people.replaced("j", labelled(rng, truth, 0.9), few)
    assert (refused.winning, refused.passes) == (None, False)
    assert "0 of 2 people have 30 labels" in refused.why


def test_the_t_test_of_people_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    gaps = [1.0] * 12 + [0.0] * 30 + [-1.0] * 18
    found = stats.ttest_1samp(gaps, 0.15, alternative="less").pvalue
    assert people._below(gaps, 0.15) == pytest.approx(found, abs=1e-4)
    control = pytest.importorskip("statsmodels.stats.multitest")
    ps = [0.001, 0.012, 0.02, 0.04, 0.6]
    wanted = control.multipletests(ps, 0.05, "fdr_by")[0].sum()
    assert people._rejected(ps, 0.05) == wanted


def test_judges_are_joined_by_pair_and_pooled_by_verdict() -> None:
    even = [said("s2", *names, "tie") for names in (("x", "y"), ("y", "x"))]
    first = [said("s1", "x", "y", "first"), said("s1", "y", "x", "second")]
    one = tallied([*first, *even], ("x", "y"))
    other = tallied([said("s2", "x", "y", "first"), said("s2", "y", "x", "second")], ("x", "y"))
    both, groups = joined([one, other])
    assert both[1].tolist() == [0.5, 1.0]
    assert np.isnan(both[0]).tolist() == [False, True]
    assert groups.tolist() == [0, 1]
    panel = pooled([one, other])
    assert (panel.won.tolist(), panel.asked) == ([1.0, 0.5, 1.0], 6)
    assert panel.means() == {("s1", 0, 1): 1.0, ("s2", 0, 1): 0.75}


def test_lengths_that_foretell_every_verdict_have_no_coefficient() -> None:
    """Two systems, of which the longer answer always wins: the likelihood has no maximum."""
    longer = np.array([0.5, -0.4, 0.3, -0.2, 0.6, -0.5])
    size = len(longer)
    zeros, names = np.zeros(size, np.int64), np.array([f"s{at}" for at in range(size)])
    none = np.zeros(size, np.bool_)
    of = Tally(
        ("a", "b"), zeros, zeros + 1, (longer > 0).astype(float), longer, np.full(size, 0.5),
        none, none, names, names, size, 0, 0,
    )  # fmt: skip
    fit = strength.fitted(of, lengths=True)
    assert fit is not None
    assert fit.length is None
    assert np.abs(fit.scores).max() < 1
