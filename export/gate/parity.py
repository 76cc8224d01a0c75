"""How far answers are apart: an engine's and PEFT's, or those of two files of one engine.

All are log-probabilities of the labels of a few prompts, questions of ot-mini's train part, which
nobody is scored on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.benchmarks.split import split
from tel_edge.export.gate import differing
from tel_edge.export.progress import Step, silent
from tel_edge.runtime.errors import WorkError
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.scoring import Scorer
from tel_edge.runtime.questions.votes import pick

if TYPE_CHECKING:
    from tel_edge.runtime.engines.engine import Engine

# Prompts that files are compared on, as many of each category.
PROMPTS = 12
SEED = 42
# Questions of ot-mini's validation part for the types whose accuracy is checked as well.
CHECKED = 96

# A row for each prompt: the log-probabilities of its labels, in nats.
Answers = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Asked:
    """A question as transformers reads it: the ids of the prompt and those of each label."""

    question: Question
    prompt: tuple[int, ...]
    labels: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Parity:
    """How far answers are from those they should be, over `prompts` prompts.

    `largest` is the largest difference of a label's log-probability in nats, `kl` the mean
    divergence of the label distributions, `picks` the share of equal picks, and `error` the root
    mean square difference of label log-probabilities, each prompt's mean taken out, over theirs:
    0 is equality, 1 a model that has nothing to do with the other, 2 its opposite.
    """

    prompts: int
    largest: float
    kl: float
    picks: float
    error: float


def questions(category: str | None = None) -> list[Question]:
    """Return the prompts that files are compared on, or those a category's accuracy needs."""
    if category:
        parts = split(benchmark.read("ot-mini", CATEGORIES[category]).questions, SEED)
        return list(parts.validation[:CHECKED])
    made: list[Question] = []
    for row in CATEGORIES.values():
        parts = split(benchmark.read("ot-mini", row).questions, SEED)
        made += parts.train[: -(-PROMPTS // len(CATEGORIES))]
    return made


def answers(
    engine: Engine, asked: Sequence[Asked], adapter: str | None, step: Step = silent
) -> Answers:
    """Return the engine's answers, finite numbers; `step` is called with 1 after each.

    Raises `WorkError` where the engine makes other tokens of a prompt, or numbers that are none.
    """
    scorer = Scorer(engine)
    items = [scorer.item(one.question) for one in asked]
    for one, item in zip(asked, items, strict=True):
        if (tuple(item.prompt), item.labels) != (one.prompt, one.labels):
            ids = ((*one.prompt, *sum(one.labels, ())), (*item.prompt, *sum(item.labels, ())))
            raise WorkError(
                f"the exported tokenizer reads {one.question.id} as other tokens than "
                f"transformers does; the file is not accepted\n{differing.told(*ids)}"
            )
    scores = {}
    for at, score in engine.score(items, adapter):
        scores[at] = score
        step(1)
    made = [scores[at].logprobs for at in range(len(items))]
    for one, row in zip(asked, made, strict=True):
        if not all(map(math.isfinite, row)):
            raise WorkError(
                f"the engine's answer to {one.question.id} is no finite number; the file is not "
                "accepted"
            )
    return made


def compared(got: Answers, wanted: Answers) -> Parity:
    """Return how far `got` is from `wanted`, neither of them empty."""
    rows = list(zip(got, wanted, strict=True))
    pairs = [pair for one, other in rows for pair in zip(one, other, strict=True)]
    n = len(rows)
    return Parity(
        n,
        round(max(abs(g - w) for g, w in pairs), 6),
        round(sum(_divergence(one, other) for one, other in rows) / n, 6),
        sum(pick(one) == pick(other) for one, other in rows) / n,
        round(error(got, wanted), 6),
    )


def error(got: Answers, wanted: Answers) -> float:
    """Return `Parity.error`; 0 where both say the same of all labels."""
    apart = distance(got, wanted)
    # Not the quotient of two noughts: an adapter that changes nothing, and nothing it changes.
    return apart / size if (size := spread(wanted)) else math.inf if apart else 0.0


def distance(got: Answers, wanted: Answers) -> float:
    """Return the root mean square difference in nats, each prompt's mean taken out."""
    return spread(changes(got, wanted))


def spread(values: Answers) -> float:
    """Return the root mean square of the values, each prompt's mean taken out."""
    squares = [x**2 for x in _centred(values)]
    return math.sqrt(math.fsum(squares) / len(squares))


def _centred(values: Answers) -> list[float]:
    """Return all values, each prompt's mean taken out."""
    return [x - math.fsum(row) / len(row) for row in values for x in row]


def changes(after: Answers, before: Answers) -> Answers:
    """Return what was added to each log-probability."""
    return [[a - b for a, b in zip(*rows, strict=True)] for rows in zip(after, before, strict=True)]


def projected(got: Answers, change: Answers) -> tuple[float, float]:
    """Return how much of `change` is in `got`, 1 for all of it, and the standard error of that.

    What else is in `got` is taken for noise without a direction.
    """
    size = spread(change)
    if not size:
        return 1.0, math.inf
    pairs = list(zip(_centred(got), _centred(change), strict=True))
    share = math.fsum(g * c for g, c in pairs) / math.fsum(c * c for _, c in pairs)
    left = math.sqrt(math.fsum((g - share * c) ** 2 for g, c in pairs) / len(pairs))
    return share, left / size / math.sqrt(len(pairs))


def _divergence(got: Sequence[float], wanted: Sequence[float]) -> float:
    """Return the Kullback-Leibler divergence of `wanted`'s labels from `got`'s, in nats."""
    ours, theirs = _log_total(wanted), _log_total(got)
    return math.fsum(
        math.exp(w - ours) * ((w - ours) - (g - theirs)) for g, w in zip(got, wanted, strict=True)
    )


def _log_total(logs: Sequence[float]) -> float:
    most = max(logs)
    return most + math.log(math.fsum(math.exp(x - most) for x in logs))


def sign_test(worse: int, better: int) -> float:
    """Return the chance of so many cases being worse, or more, if either is as likely."""
    n = worse + better
    return sum(math.comb(n, k) for k in range(worse, n + 1)) / float(2**n)
