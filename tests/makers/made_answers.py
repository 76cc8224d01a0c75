"""Made-up answers of a variant, as records and columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tel_edge.eval.findings import answers
from tel_edge.eval.findings.answers import Answers
from tel_edge.eval.scoring import records
from tel_edge.eval.scoring.records import Record, Summary, Variant
from tel_edge.runtime.questions.votes import draws, pick


def record(
    id: str, gold: int, probabilities: Sequence[float], run: str = "r", **changes: Any
) -> Record:
    """Return the record of a question that was answered with these label probabilities."""
    logprobs = tuple(math.log(max(value, 1e-9)) for value in probabilities)
    made = Record(
        run, id, gold, logprobs, pick(logprobs), draws(logprobs, 4, 0.7, 42, id), 100, 10.0
    )
    return replace(made, **changes)


def summary(
    made: Sequence[Record], name: str = "lora-F16", category: str = "oranbench", **changes: Any
) -> Summary:
    """Return the summary of records, of a variant called KIND-TYPE."""
    kind, quant = name.split("-", 1)
    size = {"F16": 8_000_000, "Q8_0": 4_000_000, "Q4_K_M": 2_500_000}.get(quant, 1_000_000)
    lora = kind == "lora"
    variant = Variant(
        name, quant, "gguf", lora or kind == "merged", size, 1_500_000 if lora else 0,
        merged=kind == "merged",
    )  # fmt: skip
    fields: dict[str, Any] = {
        "backbone": "tel-nano",
        "variant": variant,
        "category": category,
        "dataset": "ot-mini",
        "part": "test",
        "split": f"split of {category}",
        "run": made[0].run if made else "r",
        "made_with": {
            "engine": "llama-cpp-python 0.3.36",
            "backbone": str(size).ljust(64, "0"),
            "adapter": category.ljust(64, "0") if lora else None,
            "settings": {"k": 4, "temperature": 0.7, "seed": 42, "part": "test"},
        },
        "rejected": 0,
        "k": 4,
        "memory_anonymous": 41_000_000,
        "memory_file": size,
        "memory_peak": 90_000_000,
    }
    too_long = changes.pop("too_long", 0)
    return Summary(**{**fields, **records.measures(made, too_long), **changes})


def columns(
    made: Sequence[Record], name: str = "lora-F16", category: str = "oranbench", **changes: Any
) -> Answers:
    """Return records as columns, with the summary that fits them."""
    return answers.of_records(summary(made, name, category, **changes), made)
