"""Scoring with the model that is in memory, as the device scores: labels only, then votes.

For runs that nothing is exported of. The engines' answers on the exported files are `tel-eval`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tel_edge.eval.statistics import Share, share
from tel_edge.runtime import progress
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.votes import draws, majority, pick
from tel_edge.train.data import Rows, aligned, collate

K, TEMPERATURE = 4, 0.7


@dataclass(frozen=True)
class Scored:
    """Pass@1 and Maj@4 of one category's questions; those that are too long count as wrong."""

    category: str
    questions: int
    too_long: int
    pass1: Share
    majority: Share


def score(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    longest: int,
    seed: int,
    batch: int,
    quiet: bool = True,
) -> list[Scored]:
    """Return the scores of each category among `questions`, in their order.

    Each has a bar unless `quiet`.
    """
    made = []
    for name in dict.fromkeys(question.category for question in questions):
        group = [question for question in questions if question.category == name]
        made.append(_category(model, tokenizer, name, group, longest, seed, batch, quiet))
    return made


def _category(
    model: Any,
    tokenizer: Any,
    name: str,
    group: Sequence[Question],
    longest: int,
    seed: int,
    batch: int,
    quiet: bool,
) -> Scored:
    right = voted = fit = 0
    for question, logprobs in logprobs_of(model, tokenizer, group, longest, batch, quiet):
        fit += 1
        right += pick(logprobs) == question.answer
        drawn = draws(logprobs, K, TEMPERATURE, seed, question.id)
        voted += majority(drawn) == question.answer
    of = len(group)
    return Scored(name, of, of - fit, share(right, of), share(voted, of))


def logprobs_of(
    model: Any,
    tokenizer: Any,
    group: Sequence[Question],
    longest: int,
    batch: int,
    quiet: bool = True,
) -> list[tuple[Question, tuple[float, ...]]]:
    """Return the labels' log-probabilities of each question that fits, shortest prompts first."""
    import torch

    coded = aligned(group, tokenizer, longest)
    kept = [(q, example) for q, example in zip(group, coded, strict=True) if example]
    # Those of about one length together, so that little is padded.
    kept.sort(key=lambda pair: len(pair[1].ids))
    made = []
    with progress.bar("test part", "question", len(kept), quiet) as bar:
        for start in range(0, len(kept), batch):
            part = kept[start : start + batch]
            examples = [example for _, example in part]
            rows = Rows(lambda _, made=examples: made)  # type: ignore[misc]
            inputs = collate([rows[at] for at in range(len(rows))])
            shown = ("input_ids", "attention_mask", "position_ids")
            with torch.no_grad():
                logits = model(
                    **{name: inputs[name].to(model.device) for name in shown},
                    use_cache=False,
                    logits_to_keep=1,
                ).logits[:, -1]
            values = torch.log_softmax(logits.double(), -1)
            for row, (question, example) in zip(values, part, strict=True):
                made.append((question, tuple(float(row[at]) for at in example.choices)))
            bar.update(len(part))
    return made


def document(scores: Sequence[Scored]) -> list[dict[str, Any]]:
    """Return the scores as JSON has them."""
    return [asdict(scored) for scored in scores]
