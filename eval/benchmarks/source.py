"""The questions that `tel-eval` asks: of which data set, split and part, and in which orders."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.benchmarks.split import Split, split
from tel_edge.runtime import cli
from tel_edge.runtime.files import digest
from tel_edge.runtime.questions.categories import Category, categories
from tel_edge.runtime.questions.orders import rotations
from tel_edge.runtime.questions.question import Question


@dataclass(frozen=True)
class CategorySource:
    """One category's questions and where they come from."""

    category: Category
    dataset: str
    parts: Split
    rejected: int


def sources(args: argparse.Namespace) -> list[CategorySource]:
    """Read the benchmark and split it, one source a category."""
    made = []
    for of in categories(args.category):
        read = benchmark.read(args.dataset, of, args.strict, partial(cli.say, args))
        parts = split(read.questions, args.seed)
        made.append(CategorySource(of, read.dataset, parts, len(read.rejected)))
    return made


@dataclass(frozen=True)
class Asked:
    """Questions of one part, as they are or `rotated` into the other orders of their options.

    `left_out` counts those of the part that were not wanted.
    """

    part: str
    rotated: bool
    questions: tuple[Question, ...]
    left_out: int


def asked(args: argparse.Namespace, source: CategorySource) -> Iterator[Asked]:
    """Yield what the options ask for, each part as it is and then in other orders."""
    for part in args.part:
        every = source.parts.part(part)
        wanted = some(every, args.limit)
        left_out = len(every) - len(wanted)
        yield Asked(part, False, wanted, left_out)
        if _turned(args, source, part):
            yield Asked(part, True, tuple(chain.from_iterable(map(rotations, wanted))), left_out)


def some(questions: Sequence[Question], limit: int | None) -> tuple[Question, ...]:
    """Return at most `limit` of the questions, in their order.

    Which ones is a digest's choice, not the data set's: those of a smaller limit are among those of
    a larger one, and no subject that comes first is preferred.
    """
    if limit is None or limit >= len(questions):
        return tuple(questions)
    chosen = sorted(questions, key=lambda question: digest.of_value(question.id))[:limit]
    kept = {question.id for question in chosen}
    return tuple(question for question in questions if question.id in kept)


def _turned(args: argparse.Namespace, source: CategorySource, part: str) -> bool:
    """Return whether a part's questions are asked in other orders of their options too.

    Without a word about it only those that a decision is made on, by letters. Where each letter
    stands for a label of the whole category, there are no other orders.
    """
    if args.rotations and source.category.labels and part == args.part[0]:
        cli.say(args, f"{source.category.name}: its options are fixed labels, no other orders")
    usual = part == "test" and args.protocol == "letters"
    wanted = usual if args.rotations is None else args.rotations
    return wanted and not source.category.labels
