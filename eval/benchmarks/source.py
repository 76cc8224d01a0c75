"""The questions that `tel-eval` asks: of which data set, split and part, and in which orders."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, product

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.benchmarks.rotations import rotations
from tel_edge.eval.benchmarks.split import Split, split
from tel_edge.runtime import cli
from tel_edge.runtime.questions.categories import Category, categories
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


def asked(
    args: argparse.Namespace, source: CategorySource
) -> Iterator[tuple[str, bool, tuple[Question, ...]]]:
    """Yield (part, whether in other orders of the options, questions) that the options ask for."""
    for part, rotated in product(args.part, _orders(args, source)):
        questions = source.parts.part(part)
        if rotated:
            questions = tuple(chain.from_iterable(map(rotations, questions)))
        yield part, rotated, questions


def _orders(args: argparse.Namespace, source: CategorySource) -> tuple[bool, ...]:
    """Return whether questions are asked as they are (False) and in other orders (True)."""
    if args.rotations and source.category.labels:
        # Each letter stands for a label of the whole category there.
        cli.say(args, f"{source.category.name}: its options are fixed labels, no other orders")
    return (False, True) if args.rotations and not source.category.labels else (False,)
