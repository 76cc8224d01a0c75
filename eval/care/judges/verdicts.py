"""What judges said: a line a verdict, pairs and rubrics in files of their own.

A study's folder, `WORKSPACE/studies/NAME`, has `study.json`, what was judged (`Study`);
`pairs.jsonl` and `rubric.jsonl`, the verdicts; `labels.jsonl`, those of people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SCHEMA_VERSION = 1
# What a rubric asks for, each from 1 to 5.
CRITERIA = ("correctness", "resolution", "clarity", "empathy", "policy")
CHOICES = ("first", "second", "tie")
# What all judges together are called.
PANEL = "panel"


@dataclass(frozen=True)
class System:
    """What wrote answers: a run of a sweep, or a variant.

    `answers` is its care.jsonl, `run` the digest that its lines carry. `row` is the sweep's row
    (its schema is `SweepRow`), {} for what was no run of a sweep.
    """

    name: str
    answers: str
    run: str
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Judge:
    """Who judges: `kind` is endpoint, gguf, standin or people.

    `family` is the model family, to be compared with those of the answers' backbone and of who
    wrote the data set; `model` is the very model, `digest` of all that its verdicts depend on.
    """

    name: str
    kind: str
    family: str
    model: str
    digest: str


@dataclass(frozen=True)
class Study:
    """What was judged: `prompts` are ids of dialogues in `part` of `dataset` (its digest `split`).

    `written_by` are the sources (`template`, a model's name) of the data set's references.
    """

    name: str
    backbone: str
    dataset: str
    split: str
    part: str
    prompts: tuple[str, ...]
    written_by: tuple[str, ...]
    systems: tuple[System, ...]
    judges: tuple[Judge, ...]


@dataclass(frozen=True)
class PairVerdict:
    """One judgement of two answers: which of `first` and `second`, in the order shown, is better.

    `choice` is one of `CHOICES`, None where the judge said nothing that could be read: missing, no
    tie. `words` are the lengths of both answers in words. `repeat` counts askings of the very same
    from 0; those above it tell how repeatable a judge is and are counted nowhere else. `key` is the
    digest of everything that was sent.
    """

    judge: str
    prompt: str
    scenario: str
    first: str
    second: str
    choice: str | None
    words: tuple[int, int]
    repeat: int
    key: str


@dataclass(frozen=True)
class RubricVerdict:
    """Marks of 1 to 5 for one answer by `CRITERIA`; None where nothing could be read."""

    judge: str
    prompt: str
    scenario: str
    system: str
    scores: Mapping[str, int] | None
    repeat: int
    key: str
