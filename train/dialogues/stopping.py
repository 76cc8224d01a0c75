"""Whether a model ends its answers: it writes some greedily, and the end tokens are counted."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

from tel_edge.eval.statistics import share
from tel_edge.runtime import progress
from tel_edge.train.data import tokens

# Tokens within which an answer has to end, and answers that are written at a time.
LIMIT, BATCH = 256, 8


def stop_rate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    ends: Collection[int],
    longest: int,
    limit: int = LIMIT,
    quiet: bool = True,
) -> dict[str, Any]:
    """Return the share of answers that end with one of `ends` within `limit` tokens.

    `stopped` has the share with its Wilson interval. A prompt that leaves no room for so many in
    a context of `longest` is left out. There is a bar unless `quiet`.
    """
    fitting = sorted((one for one in prompts if len(one) + limit <= longest), key=len)
    stopped = 0
    with progress.bar("test part", "answer", len(fitting), quiet) as bar:
        for start in range(0, len(fitting), BATCH):
            part = fitting[start : start + BATCH]
            stopped += sum(_ended(model, part, ends, limit))
            bar.update(len(part))
    return {"limit": limit, "stopped": asdict(share(stopped, len(fitting))) if fitting else None}


def _ended(
    model: Any, prompts: Sequence[Sequence[int]], ends: Collection[int], limit: int
) -> list[bool]:
    import torch

    batch = tokens([{"input_ids": one} for one in prompts])
    given = {name: values.to(model.device) for name, values in batch.items()}
    stops, done, past = torch.tensor(sorted(ends)).to(model.device), None, None
    with torch.no_grad():
        for _ in range(limit):
            made = model(**given, past_key_values=past, use_cache=True, logits_to_keep=1)
            past, chosen = made.past_key_values, made.logits[:, -1].argmax(-1)
            now = torch.isin(chosen, stops)
            done = now if done is None else done | now
            if bool(done.all()):
                break
            mask = torch.nn.functional.pad(given["attention_mask"], (0, 1), value=1)
            given = {
                "input_ids": chosen[:, None],
                "attention_mask": mask,
                "position_ids": mask.sum(1, keepdim=True) - 1,
            }
    return [] if done is None else done.tolist()
