"""How another variant would have written the reference's own answers, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tel_edge.eval.care.answers.asked import Model, Speaker
from tel_edge.eval.care.answers.cases import Case
from tel_edge.eval.care.answers.records import Along, Record, line
from tel_edge.runtime import progress
from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.device import child
from tel_edge.runtime.engines.likelihood import read_along
from tel_edge.runtime.engines.logits import log_sum
from tel_edge.runtime.errors import WorkError, named
from tel_edge.runtime.files import digest


@dataclass(frozen=True)
class Task:
    """Two models, the answers of the first, and the dialogues that they are to."""

    reference: Model
    other: Model
    cases: tuple[Case, ...]
    answers: Mapping[str, Record]
    out: Path
    run: str
    title: str
    quiet: bool


def asked(case: Case, answer: Record) -> str:
    """Return the digest of a dialogue and of the reference's answers to it."""
    return digest.of_value([case.asked, answer.tokens, answer.ended])[:8]


def compared(reference: Any, other: Any, tokens: Sequence[int]) -> tuple[Any, Any, int]:
    """Return (divergences, gaps, how many likeliest tokens are the same) of two distributions.

    Both are log-probabilities `[positions, vocabulary]`; `tokens` are the reference's own.
    """
    import numpy as np

    kl = (np.exp(reference) * (reference - other)).sum(-1, dtype=np.float64)
    at = np.arange(len(tokens)), np.asarray(tokens)
    agreed = int((reference.argmax(-1) == other.argmax(-1)).sum())
    # Below 0 it is rounding.
    return np.maximum(kl, 0), (reference[at] - other[at]).astype(np.float64), agreed


def distributions(speaker: Speaker, ids: Sequence[int], start: int) -> Any:
    """Return the log-probabilities `[positions, vocabulary]` of what follows each from `start`."""
    import numpy as np

    # The logits hold no longer than one step.
    rows = read_along(
        speaker.engine, ids, speaker.adapter,
        lambda _, logits: logits.astype(np.float32) - np.float32(log_sum(logits)), start,
    )  # fmt: skip
    return np.stack(rows)


def records(one: Speaker, other: Speaker, task: Task) -> Iterator[Along]:
    """Yield the divergences of each dialogue that the reference has an answer to."""
    for case in task.cases:
        answer = task.answers[case.id]
        kl: list[float] = []
        gap: list[float] = []
        agreed = 0
        for turn, (tokens, ended) in enumerate(zip(answer.tokens, answer.ended, strict=True)):
            prompt = one.prompt(case, answer.texts[:turn])
            ids, start = [*prompt, *tokens], len(prompt) - 1
            # What follows the last token is part of the answer where it ends the answer.
            ids = ids if ended else ids[:-1]
            first = distributions(one, ids, start)
            second = distributions(other, ids, start)
            if first.shape != second.shape:
                raise WorkError(
                    f"{task.title}: vocabularies of {first.shape[1]} and {second.shape[1]} tokens "
                    "cannot be compared"
                )
            own = [*tokens, int(first[-1].argmax())] if ended else list(tokens)
            found = compared(first, second, own)
            kl += found[0].tolist()
            gap += found[1].tolist()
            agreed += found[2]
        yield Along(
            task.run, case.id, case.scenario, asked(case, answer), tuple(kl), tuple(gap), agreed
        )


def append(task: Task, opener: bundle.Opener = bundle.native) -> None:
    """Append the divergences of each dialogue of `task`, with both models in memory."""
    bar = progress.bar(task.title, "dialogue", len(task.cases), task.quiet)
    with (
        Speaker(task.reference, opener) as one,
        Speaker(task.other, opener) as other,
        named(task.out),
        task.out.open("a", encoding="utf-8") as file,
        bar,
    ):
        for record in records(one, other, task):
            file.write(line(record))
            file.flush()
            bar.update()


def in_child(task: Task, opener: bundle.Opener) -> None:
    """Run `append` in a new process. A crash of an engine there raises `WorkError` here."""
    try:
        child.in_child(None, append, task, opener, shown=True)
    except child.Crashed:
        raise WorkError(
            f"{task.title}: an engine died; run the same command to go on, or with --threads 1"
        ) from None
