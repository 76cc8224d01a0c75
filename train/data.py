"""From questions to what the trainer eats: prompt ids and the id of the right label."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.orders import unnumbered
from tel_edge.runtime.questions.prompt import labels, render
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.scoring import label_ids


@dataclass(frozen=True)
class Example:
    """`ids` is the prompt, `target` the one token that has to follow it, out of `choices`."""

    ids: tuple[int, ...]
    target: int
    choices: tuple[int, ...] = ()

    def row(self) -> dict[str, Any]:
        """Return it as the collator takes it."""
        return {
            "input_ids": list(self.ids),
            "target": self.target,
            "choices": list(self.choices),
        }


class Row(Protocol):
    """What `Rows` hold."""

    def row(self) -> dict[str, Any]:
        """Return it as a collator takes it, its tokens as `input_ids`."""
        ...


def examples(
    questions: Sequence[Question], tokenizer: Any, longest: int
) -> tuple[list[Example], int]:
    """Return the examples and how many questions were longer than `longest` tokens.

    Nothing is cut: a question that does not fit is left out and counted. Raises `InputError`
    where the tokenizer does not give the label one token of its own.
    """
    made = [example for example in aligned(questions, tokenizer, longest) if example]
    return made, len(questions) - len(made)


def aligned(questions: Sequence[Question], tokenizer: Any, longest: int) -> list[Example | None]:
    """Return the example of each question, None for one that does not fit; see `examples`."""
    prompts = [render(question) for question in questions]
    ends = [labels(q)[q.answer or 0] for q in questions]
    if not prompts:
        return []
    # What looks like a special token inside a question is text, on the device too.
    ids = tokenizer(prompts, split_special_tokens=True)["input_ids"]
    answered = [p + end for p, end in zip(prompts, ends, strict=True)]
    whole = tokenizer(answered, split_special_tokens=True)["input_ids"]
    tokens = _tokens(questions, prompts[0], tokenizer)
    made: list[Example | None] = []
    for question, prompt, end, full in zip(questions, ids, ends, whole, strict=True):
        if full != [*prompt, tokens[end]]:
            raise _split(question)
        choices = tuple(tokens[label] for label in labels(question))
        fits = len(full) <= longest
        made.append(Example(tuple(prompt), full[-1], choices) if fits else None)
    return made


def _split(question: Question) -> InputError:
    return InputError(f"{question.id}: the label is not one token of its own for this tokenizer")


def _tokens(questions: Sequence[Question], prompt: str, tokenizer: Any) -> dict[str, int]:
    """Return the token of every label; whatever the question, a prompt ends in the same way."""

    def tokenize(text: str) -> list[int]:
        ids: list[int]
        [ids] = tokenizer([text], split_special_tokens=True)["input_ids"]
        return ids

    every = list(dict.fromkeys(label for question in questions for label in labels(question)))
    found = dict(zip(every, label_ids(tokenize, prompt, every), strict=True))
    if any(len(own) != 1 for own in found.values()):
        raise _split(questions[0])
    return {label: own[0] for label, own in found.items()}


def rivals(questions: Sequence[Question]) -> dict[str, list[str]]:
    """Return for each choice the others that stand beside it in any of the questions."""
    found: dict[str, set[str]] = {}
    for question in questions:
        for choice in question.choices:
            found.setdefault(choice, set()).update(question.choices)
    return {choice: sorted(beside - {choice}) for choice, beside in found.items()}


def varied(
    questions: Sequence[Question], orders: int, exchanged: float, seed: str, told: float = 0.0
) -> list[Question]:
    """Return each question `orders` times with its choices shuffled; as it is if `orders` is 1.

    In a share `exchanged` of them the wrong choices are drawn from all that stand beside the right
    one somewhere, so that neither a letter nor a set of choices tells the answer. In a share `told`
    the answer stands behind the question, so that what is to be learned there is which letter it
    has. Questions of a category with fixed labels, whose order is part of the prompt, are repeated
    as they are, half as often.
    """
    if orders == 1:
        return list(questions)
    # A number of its own would tell where an option stood before.
    questions = [replace(one, choices=unnumbered(one.choices)) for one in questions]
    rng, telling = random.Random(f"orders {seed}"), random.Random(f"told {seed}")
    beside = rivals(questions) if exchanged else {}
    made = []
    for turn in range(orders):
        for question in questions:
            choices, right, text = list(question.choices), question.answer, question.text
            if CATEGORIES[question.category].labels:
                if turn % 2:
                    continue
            elif right is not None:
                answer = choices[right]
                if rng.random() < exchanged:
                    choices = [answer, *rng.sample(beside[answer], len(choices) - 1)]
                rng.shuffle(choices)
                right = choices.index(answer)
                if telling.random() < told:
                    text = f"{text}\n{answer}"
            made.append(replace(question, text=text, choices=tuple(choices), answer=right))
    return made


def fitted(
    shown: Sequence[Question], questions: Sequence[Question], tokenizer: Any, longest: int
) -> list[Example]:
    """Return the examples of `shown`, which are `questions` in other forms (`varied`).

    Other choices may make a question longer than `longest` tokens; then it is shown as it is. One
    that is too long as it is, is left out in every form, so the number depends on nothing else.
    """
    whole = aligned(questions, tokenizer, longest)
    own = {(q.category, q.id): made for q, made in zip(questions, whole, strict=True)}
    made = []
    for question, example in zip(shown, aligned(shown, tokenizer, longest), strict=True):
        if plain := own[question.category, question.id]:
            made.append(example or plain)
    return made


class Rows:
    """A data set of examples as the trainer wants it.

    `draw(epoch)` gives the examples of an epoch, and has to give as many each time. transformers
    5.23 groups by the length of `input_ids` for a data set of this kind, and looks at those of
    epoch 0 alone.
    """

    def __init__(self, draw: Callable[[int], Sequence[Row]]) -> None:
        self.draw = draw
        self.made = draw(0)

    def turn(self, epoch: int) -> None:
        """Go on to the examples of `epoch`."""
        self.made = self.draw(epoch)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.made)

    def __getitem__(self, at: int) -> dict[str, Any]:
        """Return one example as the collator takes it."""
        return self.made[at].row()


def padded(rows: Sequence[Sequence[int]]) -> Any:
    """Return rows of different lengths as one tensor `[n, width]`, zeros on the left."""
    import torch

    width = max(map(len, rows))
    made = torch.zeros(len(rows), width, dtype=torch.long)
    for at, row in enumerate(rows):
        made[at, width - len(row) :] = torch.tensor(row)
    return made


def tokens(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the ids, attention mask and positions `[n, width]` of a left-padded batch."""
    # Any id does where the mask is 0, and not every tokenizer has one for padding.
    mask = padded([[1] * len(row["input_ids"]) for row in rows])
    return {
        "input_ids": padded([row["input_ids"] for row in rows]),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
    }


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a left-padded batch: ids, attention mask, positions `[n, width]`, target `[n]`.

    `choices` `[n, most]` are the tokens of the labels, -1 where a question has fewer. With padding
    on the left the last column is the end of every prompt, so the model needs to compute the logits
    of one position only.
    """
    import torch

    choices = [row["choices"] for row in rows]
    most = max(map(len, choices))
    return tokens(rows) | {
        "target": torch.tensor([row["target"] for row in rows]),
        "choices": torch.tensor(
            [row["choices"] + [-1] * (most - len(row["choices"])) for row in rows]
        ),
    }
