"""Judged studies with a known truth, for `bench_study.py` and the simulated tests.

Systems have scores; in each scenario each is better or worse by chance, and each judgement of a
pair differs by more chance, the same in both orders. A judge takes the first answer unread in some
cases, says tie in some, and may like length. All of it is a function of the seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tel_edge.eval.care.answers.cases import Case
from tel_edge.eval.care.judges import studies
from tel_edge.eval.care.judges.studies import Answer
from tel_edge.eval.care.judges.verdicts import (
    CRITERIA,
    Judge,
    PairVerdict,
    RubricVerdict,
    Study,
    System,
)
from tel_edge.eval.care.study.strength import solved
from tel_edge.eval.care.study.tallies import Tally
from tel_edge.runtime.questions.conversation import Message

Floats = NDArray[np.float64]
# Each system meets those so many places on, as tel-judge has it: 4 for each of 16.
NEIGHBOURS = (1, 2)
# Spread of the logarithm of an answer's words about its system's.
LENGTHS = 0.3
CAUSES = ("coverage", "outage", "settings", "hardware", "limit")
CONTEXTS = ("home", "travelling", "business")


@dataclass(frozen=True)
class Truth:
    """What verdicts are drawn from.

    `scores` in nats; `words` the mean logarithm of each system's words. `first` is how much more
    than half of all the first answer wins, `length` nats a unit of log length, `ties` the share of
    ties, `scenario` and `noise` standard deviations in nats.
    """

    scores: tuple[float, ...]
    words: tuple[float, ...]
    first: float = 0.0
    length: float = 0.0
    ties: float = 0.1
    scenario: float = 0.5
    noise: float = 1.0

    @property
    def systems(self) -> tuple[str, ...]:
        """Return the systems' names."""
        return tuple(f"system-{at:02d}" for at in range(len(self.scores)))


def drawn(rng: np.random.Generator, systems: int = 16, **settings: float) -> Truth:
    """Return systems that are close or far apart."""
    scores = rng.normal(0, rng.uniform(0.1, 1.0), systems)
    words = math.log(60) + rng.normal(0, 0.2, systems)
    return Truth(tuple((scores - scores.mean()).tolist()), tuple(words.tolist()), **settings)


def pairs(systems: int) -> list[tuple[int, int]]:
    """Return the pairs that are judged: a circle in which each meets neighbours."""
    made = {
        tuple(sorted((at, (at + step) % systems))) for step in NEIGHBOURS for at in range(systems)
    }
    return sorted((low, high) for low, high in made if low != high)


def expected(truth: Truth) -> Floats:
    """Return the scores that infinitely many prompts would give, by the pairs that are judged.

    What a judge adds of its own, ties and places among it, is in them: they are what an interval
    has to cover.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(61)
    spread = math.sqrt(2 * truth.scenario**2 + truth.noise**2 + 2 * (truth.length * LENGTHS) ** 2)
    rows, won = np.zeros((len(pairs(len(truth.scores))), len(truth.scores))), []
    for at, (one, other) in enumerate(pairs(len(truth.scores))):
        rows[at, one], rows[at, other] = 1, -1
        gap = truth.scores[one] - truth.scores[other]
        gap += truth.length * (truth.words[one] - truth.words[other])
        read = float((weights / (1 + np.exp(-(gap + spread * nodes)))).sum() / weights.sum())
        won.append((1 - truth.ties) * ((1 - 2 * truth.first) * read + truth.first) + truth.ties / 2)
    empty = np.zeros((0, len(truth.scores)))
    return solved(rows, np.array(won), empty, len(truth.scores))[0]


def verdicts(
    truth: Truth, rng: np.random.Generator, prompts: int = 144, judges: Sequence[str] = ("judge",),
    each: int = 1,
) -> list[PairVerdict]:  # fmt: skip
    """Return all judgements of `prompts` prompts, `each` of a scenario, in both orders."""
    size, of = len(truth.scores), pairs(len(truth.scores))
    scenarios = math.ceil(prompts / each)
    own = np.repeat(rng.normal(0, truth.scenario, (scenarios, size)), each, axis=0)[:prompts]
    logs = np.array(truth.words) + rng.normal(0, LENGTHS, (prompts, size))
    words = np.maximum(np.exp(logs).round().astype(int), 1)
    left, right = np.array(of).T
    strength = np.array(truth.scores) + own + truth.length * np.log(words)
    gaps = strength[:, left] - strength[:, right]
    made = []
    for judge in judges:
        felt = gaps + rng.normal(0, truth.noise, gaps.shape)
        for straight in (True, False):
            shown = felt if straight else -felt
            unread = rng.random(gaps.shape) < 2 * truth.first
            wins = (rng.random(gaps.shape) < 1 / (1 + np.exp(-shown))) | unread
            tied = rng.random(gaps.shape) < truth.ties
            made += _said(truth, judge, straight, wins, tied, words, each)
    return made


def _said(
    truth: Truth, judge: str, straight: bool, wins: NDArray[np.bool_], tied: NDArray[np.bool_],
    words: NDArray[np.int64], each: int,
) -> Iterator[PairVerdict]:  # fmt: skip
    names, of, counts = truth.systems, pairs(len(truth.scores)), words.tolist()
    for prompt, (won, even) in enumerate(zip(wins.tolist(), tied.tolist(), strict=True)):
        at_ = prompt // each
        scenario = f"term-{at_}.{CAUSES[at_ % 5]}.{CONTEXTS[at_ % 3]}"
        for at, (one, other) in enumerate(of):
            first, second = (one, other) if straight else (other, one)
            choice = "tie" if even[at] else "first" if won[at] else "second"
            yield PairVerdict(
                judge, f"{scenario}.{prompt % each:02d}", scenario, names[first], names[second],
                choice, (counts[prompt][first], counts[prompt][second]), 0,
                f"{judge}-{prompt}-{at}-{straight}",
            )  # fmt: skip


def percentiles(tally: Tally, draws: int = 1000) -> tuple[Floats, Floats]:
    """Return the 95 % percentile intervals of scores by a bootstrap that is fitted anew each time.

    What the report does not do: to be compared with what it does.
    """
    size, groups = len(tally.systems), tally.groups
    of, at = np.unique(np.stack([tally.left, tally.right]), axis=1, return_inverse=True)
    x = np.zeros((of.shape[1], size))
    x[np.arange(len(x)), of[0]], x[np.arange(len(x)), of[1]] = 1, -1
    count = int(groups.max()) + 1
    won, met = np.zeros((count, len(x))), np.zeros((count, len(x)))
    np.add.at(won, (groups, at.ravel()), tally.won)
    np.add.at(met, (groups, at.ravel()), 1.0)
    weights = np.random.default_rng(1).multinomial(count, np.full(count, 1 / count), draws)
    wins, seen = weights @ won, weights @ met
    found = np.zeros((draws, size))
    for _ in range(12):
        chance = 1 / (1 + np.exp(-found @ x.T))
        information = np.einsum("bp,pi,pj->bij", seen * chance * (1 - chance), x, x, optimize=True)
        step = np.linalg.solve(
            information + 1.0, ((wins - seen * chance) @ x - found.sum(1)[:, None])[:, :, None]
        )
        found = found + step[:, :, 0]
    low, high = np.percentile(found, (2.5, 97.5), axis=0)
    return low, high


def write(
    folder: Path, truth: Truth, seed: int = 1, prompts: int = 144,
    judges: Sequence[Judge] | None = None, losses: Sequence[float] | None = None,
    data: str = "care",
) -> Study:  # fmt: skip
    """Write a whole study: answers as long as verdicts say, marks, 5 % asked twice."""
    rng = np.random.default_rng(seed)
    own = judges or [
        Judge("left-7b", "endpoint", "left", "left-7b", "d1"),
        Judge("right-8b", "gguf", "right", "right-8b", "d2"),
    ]
    said = verdicts(truth, rng, prompts, [one.name for one in own])
    again = [
        replace(one, repeat=1, choice=one.choice if rng.random() < 0.9 else "tie")
        for one in said
        if rng.random() < 0.05
    ]
    ids = {one.prompt: one.scenario for one in said}
    lengths = {}
    for one in said:
        lengths[one.first, one.prompt], lengths[one.second, one.prompt] = one.words
    names = truth.systems
    study = Study(
        folder.name, "smollm2-135m", data, "split", "test", tuple(ids), ("template",),
        tuple(
            System(name, f"results/{name}/care.jsonl", "run", row(at, truth, rng, losses))
            for at, name in enumerate(names)
        ),
        tuple(own),
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    studies.write_study(folder, study)
    studies.write_lines(folder / studies.PROMPTS, [case(name, of) for name, of in ids.items()])
    studies.write_lines(
        folder / studies.ANSWERS,
        [
            Answer(name, prompt, (text(name, prompt, lengths[name, prompt]),), (True,))
            for name in names
            for prompt in ids
        ],
    )
    studies.write_lines(folder / studies.PAIRS, [*said, *again])
    studies.write_lines(folder / studies.RUBRIC, marks(truth, rng, ids, own))
    return study


def row(
    at: int, truth: Truth, rng: np.random.Generator, losses: Sequence[float] | None
) -> Mapping[str, Any]:
    """Return what a sweep would say of a system: its losses rank as scores do, unless given."""
    loss = losses[at] if losses else 0.6 - 0.05 * truth.scores[at] + rng.normal(0, 0.005)
    targets = ("qv", "attention", "mlp", "all")[at % 4]
    rank = (16, 32)[at // 4 % 2]
    return {
        "run": truth.systems[at],
        "options": {
            "targets": targets,
            "rank": str(rank),
            "learning-rate": ("1e-4", "2e-4")[at // 8],
        },
        "parameters": 500_000 * rank // 16 * (1 + at % 4),
        "adapter_bytes": 2_000_000 * rank // 16 * (1 + at % 4),
        "joules": 3600.0 * (30 + 5 * at),
        "stated_joules": None,
        "losses": {
            name: {"loss": float(loss + more), "perplexity": math.exp(loss + more)}
            for name, more in (("validation", 0.0), ("test", 0.02), ("unseen", 0.1))
        },
    }


def case(name: str, scenario: str) -> Case:
    """Return a dialogue of a scenario."""
    term = scenario.partition(".")[0]
    return Case(
        name,
        scenario,
        (
            Message("user", f"My {term} does not work, what can I do?"),
            Message("assistant", f"Check the {term} first, then switch it on again."),
        ),
        term,
        {"check": f"check the {term}", "fix": "switch it on again", "escalate": "call us"},
    )


def text(system: str, prompt: str, words: int) -> str:
    """Return a text of so many words that no other system has."""
    return " ".join([system, prompt, *["word"] * words][: max(words, 2)])


def marks(
    truth: Truth, rng: np.random.Generator, ids: Mapping[str, str], judges: Sequence[Judge]
) -> list[RubricVerdict]:
    """Return marks of 1 to 5 that follow the scores."""
    made = []
    for at, name in enumerate(truth.systems):
        level = 3 + truth.scores[at]
        for prompt, scenario in ids.items():
            felt = rng.normal(level, 0.5)
            for judge in judges:
                given = np.clip(np.round(felt + rng.normal(0, 0.5, len(CRITERIA))), 1, 5)
                scores = dict(zip(CRITERIA, given.astype(int).tolist(), strict=True))
                key = f"{judge.name}-{name}-{prompt}"
                made.append(RubricVerdict(judge.name, prompt, scenario, name, scores, 0, key))
    return made
