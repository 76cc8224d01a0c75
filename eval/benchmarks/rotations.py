"""A question with its options in every cyclic order, to tell knowledge from a love of letters."""

from __future__ import annotations

from dataclasses import replace

from tel_edge.runtime.questions.question import Question


def rotations(question: Question) -> tuple[Question, ...]:
    """Return `question` with its n choices in the other n - 1 cyclic orders, "<id>#1" first.

    In "<id>#r" the choices begin with choice r of the question, so choice i there is choice
    (i + r) mod n of the question, and the right answer is moved along. A choice that names others
    by their place or letter ("both A and B") is left as it is, and may lose its sense.
    """
    choices, count = question.choices, len(question.choices)
    return tuple(
        replace(
            question,
            id=f"{question.id}#{by}",
            choices=choices[by:] + choices[:by],
            answer=None if question.answer is None else (question.answer - by) % count,
        )
        for by in range(1, count)
    )
