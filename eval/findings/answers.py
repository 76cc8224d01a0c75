"""The records of one variant as columns, for a report over hundreds of thousands of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tel_edge.eval.scoring.records import Record, Summary, read_records, whole
from tel_edge.eval.statistics import Share, share
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.votes import majority

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int16]
Truths = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Answers:
    """All records of a summary's run, in the order of the file.

    `gold`, `pick` and `vote` (the majority of the draws) are [n] indices of choices, `logprobs` is
    [n, most choices] with -inf where a question has fewer, or [n, 0] for generated texts. `asked`
    are the digests of `records.asked_digest`, "" in older records. Questions that did not fit the
    context have no row; `summary.questions` counts them.
    """

    summary: Summary
    ids: tuple[str, ...]
    asked: tuple[str, ...]
    gold: Indices
    pick: Indices
    vote: Indices
    logprobs: Floats
    milliseconds: Floats

    @property
    def right(self) -> Truths:
        """Return for each row whether the pick is the right answer."""
        right: Truths = self.pick == self.gold
        return right

    @property
    def voted(self) -> Truths:
        """Return for each row whether the majority of the draws is the right answer."""
        right: Truths = self.vote == self.gold
        return right

    @property
    def scored(self) -> bool:
        """Return whether there are log-probabilities."""
        return bool(self.logprobs.shape[1] > 0)

    def share(self, rows: Truths | None = None, voted: bool = False) -> Share:
        """Return the share of right answers, among `rows` only if they are given."""
        right = self.voted if voted else self.right
        if rows is None:
            return share(int(right.sum()), self.summary.questions)
        return share(int(right[rows].sum()), int(rows.sum()))


def of_records(summary: Summary, records: Iterable[Record]) -> Answers:
    """Return the columns of records, which are all of the summary's run."""
    ids, asked, gold, pick, vote, times = [], [], [], [], [], []
    rows: list[tuple[float, ...]] = []
    # Few draws are different.
    winner = cache(majority)
    for record in records:
        # The same few thousand ids come once for each variant.
        ids.append(sys.intern(record.id))
        asked.append(sys.intern(record.asked))
        gold.append(record.gold)
        pick.append(record.pick)
        vote.append(winner(record.draws) if record.draws else record.pick)
        times.append(record.milliseconds)
        rows.append(record.logprobs)
    width = max(map(len, rows), default=0)
    logprobs = np.full((len(rows), width), -np.inf, np.float32)
    for at, row in enumerate(rows):
        logprobs[at, : len(row)] = row
    return Answers(
        summary,
        tuple(ids),
        tuple(asked),
        np.array(gold, np.int16),
        np.array(pick, np.int16),
        np.array(vote, np.int16),
        logprobs,
        np.array(times, np.float32),
    )


def read(path: Path, summary: Summary) -> Answers:
    """Read the records of a summary's run from its JSONL file; none where there is no file.

    Raises `InputError` for a broken line, for values that no answer has, and where the records are
    not those of the summary, each question once.
    """
    try:
        made = of_records(summary, read_records(path, summary.run))
    except InputError:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(
            f"{path}: records of something else ({error}); delete the file and run tel-eval"
        ) from None
    if path.exists() and not whole(summary, made.ids):
        once = len(made.ids) == len(set(made.ids))
        why = "not the file that the summary is of" if once else "two commands wrote it at once"
        raise InputError(
            f"{path}: {len(made.ids)} records of {len(set(made.ids))} questions, but "
            f"{summary.questions} in its summary: {why}; run tel-eval again"
        )
    if made.scored and not (sound := np.isfinite(made.logprobs.max(axis=1))).all():
        raise InputError(
            f"{path}: {made.ids[int(sound.argmin())]} has no probabilities, or some that are no "
            "numbers; delete the file and run tel-eval"
        )
    return made


def aligned(one: Answers, other: Answers) -> tuple[Sequence[int], Sequence[int]]:
    """Return the rows of both that are about the same questions, in the order of `one`."""
    if one.ids == other.ids:
        return range(len(one.ids)), range(len(one.ids))
    there = {id: at for at, id in enumerate(other.ids)}
    pairs = [(at, there[id]) for at, id in enumerate(one.ids) if id in there]
    return [at for at, _ in pairs], [at for _, at in pairs]
