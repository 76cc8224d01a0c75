"""The one prompt of training, evaluation, the runtime and every engine."""

from __future__ import annotations

import hashlib

from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.question import Question

# Letters as labels: each is one token after a space in every tokenizer of the backbone table.
LETTERS = "ABCDEFGHIJKLMNOP"

HEADER = "Answer with one letter.\n"


def beginning(question: Question) -> str:
    """Return what the prompts of all questions of this kind begin with."""
    stem = CATEGORIES[question.category].stem if question.category else ""
    return ("" if question.spelled else HEADER) + (f"{stem}\n" if stem else "")


def render(question: Question) -> str:
    """Return the prompt, which ends where the label, a space and a letter, is to follow.

    What is the same for all questions comes first, so an engine can keep its state; everything
    after it belongs to the question.
    """
    lines = [question.text]
    if not question.spelled:
        pairs = zip(LETTERS, question.choices, strict=False)
        lines += [f"{letter}) {text}" for letter, text in pairs]
    return beginning(question) + "\n".join(lines) + "\nAnswer:"


def labels(question: Question) -> tuple[str, ...]:
    """Return what may follow the prompt, in the order of the choices, with a space before it."""
    if question.spelled:
        return tuple(f" {text}" for text in question.choices)
    return tuple(f" {letter}" for letter in LETTERS[: len(question.choices)])


def digest() -> str:
    """Return the SHA-256 of what `render` and `labels` make of one question of each form.

    Any change of the prompt changes it, so an adapter trained with another one is noticed.
    """
    sha = hashlib.sha256()
    for row in CATEGORIES.values():
        choices = row.labels or ("first", "second")
        question = Question("probe", row.name, "text", tuple(choices), 0)
        sha.update(repr((row.name, render(question), labels(question))).encode())
    return sha.hexdigest()
