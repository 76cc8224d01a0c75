"""A question with its options in other orders: to tell knowledge from a love of letters.

And to answer without that love: what a model gives an option, averaged over the places it stood in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tel_edge.runtime.engines.engine import Score
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.scoring import Asked, Scores

# How a choice may begin that says its own place: "1. ", "2) ", "(c) ", "d: ".
PLACE = re.compile(r"\(?(?:([0-9]{1,2})|([A-Pa-p]))[.):]\)?\s+")


def unnumbered(choices: Sequence[str]) -> tuple[str, ...]:
    """Return the choices without the numbers or letters that they bring along, if all do.

    In another order such a number says where a choice stood, which is what the order hides. They
    are left out where they are those of n places, each once, and where something is left of all.
    """
    found = [PLACE.match(choice) for choice in choices]
    places = {int(one[1]) if one[1] else ord(one[2].upper()) - ord("A") + 1 for one in found if one}
    left = tuple(
        choice[one.end() :] if one else "" for choice, one in zip(choices, found, strict=True)
    )
    whole = places == {*range(1, len(choices) + 1)} and all(left) and len({*left}) == len(left)
    return left if whole else tuple(choices)


def rotations(question: Question) -> tuple[Question, ...]:
    """Return `question` with its n choices in the other n - 1 cyclic orders, "<id>#1" first.

    In "<id>#r" the choices begin with choice r of the question, so choice i there is choice
    (i + r) mod n of the question, and the right answer is moved along. Numbers that the choices
    bring along are left out (`unnumbered`). A choice that names others by their place or letter
    ("both A and B") is left as it is, and may lose its sense.
    """
    return tuple(_moved(question, by) for by in range(1, len(question.choices)))


def _moved(question: Question, by: int) -> Question:
    choices, count = unnumbered(question.choices), len(question.choices)
    return replace(
        question,
        id=f"{question.id}#{by}" if by else question.id,
        choices=choices[by:] + choices[:by],
        answer=None if question.answer is None else (question.answer - by) % count,
    )


def shifts(question: Question, orders: int) -> tuple[int, ...]:
    """Return by how many places the options are moved in each of at most `orders` orders.

    The first is 0, the others as far apart as they can be. Labels of the whole category, and
    answers that are not shown, have no order: 0 alone.
    """
    known = CATEGORIES.get(question.category)
    if question.spelled or (known and known.labels):
        return (0,)
    count = len(question.choices)
    most = min(orders, count)
    return tuple(at * count // most for at in range(most)) or (0,)


def averaged(
    scorer: Scores, asked: Sequence[Asked], orders: int
) -> Iterator[tuple[int, Score | InputError]]:
    """Yield what `Scores.many` yields, each option's probability the mean over its orders.

    Tokens and milliseconds of a question are those of all its orders together.
    """
    parts: list[Asked] = []
    places: list[tuple[int, int]] = []
    left: list[int] = []
    for index, (question, adapter) in enumerate(asked):
        own = shifts(question, orders)
        left.append(len(own))
        # A number among the choices of one order would weigh more than that order.
        parts += [(_moved(question, by) if len(own) > 1 else question, adapter) for by in own]
        places += [(index, by) for by in own]
    found: dict[int, list[tuple[int, Score]]] = {}
    for at, made in scorer.many(parts):
        index, by = places[at]
        if isinstance(made, InputError):
            # What is wrong with one order is wrong with the question, and told once.
            if left[index] > 0:
                yield index, made
            left[index] = 0
            continue
        found.setdefault(index, []).append((by, made))
        if len(found[index]) == left[index]:
            yield index, _mean(found.pop(index))


def _mean(made: Sequence[tuple[int, Score]]) -> Score:
    first = made[0][1]
    count = len(first.logprobs)
    shares = [0.0] * count
    for by, score in made:
        for at, value in enumerate(score.logprobs):
            shares[(at + by) % count] += math.exp(value) / len(made)
    return replace(
        first,
        logprobs=tuple(math.log(share) if share else -math.inf for share in shares),
        tokens=sum(score.tokens for _, score in made),
        decoded=sum(score.decoded for _, score in made),
        milliseconds=math.fsum(score.milliseconds for _, score in made),
    )
