"""Made-up results of whole variants: records and the summaries that fit them, in a workspace."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from tel_edge.eval.scoring import baselines, records
from tel_edge.eval.scoring.baselines import Baseline, Baselines
from tel_edge.eval.scoring.records import Record, Summary, Variant
from tel_edge.eval.statistics import share
from tel_edge.runtime.workspace import Workspace

SIZES = {"F16": 8_000_000, "Q8_0": 4_000_000, "Q4_K_M": 2_500_000}
ONNX = {"fp32": 16_000_000, "int8": 5_000_000, "int4": 3_000_000}
ADAPTER, TOKENIZER = 1_500_000, 600_000
# Natural logarithms of a right answer's labels from its own on, of a wrong one's, and of the bare
# backbone's: unlike each other, as the labels of different models are.
RIGHT = (-0.3285, -2.3716, -2.3716, -2.3716)
WRONG = (-0.6539, -1.2730, -1.9661, -2.8134)
BARE = (-0.9163, -1.3863, -1.6094, -2.0402)


@dataclass(frozen=True)
class Result:
    """A summary and the records that it is a function of."""

    summary: Summary
    records: tuple[Record, ...]


def variant(name: str) -> Variant:
    """Return the variant called KIND-TYPE[+ADAPTER TYPE][-generate]."""
    kind, quant = name.removesuffix("-generate").split("-", 1)
    quant, _, other = quant.partition("+")
    onnx, lora = quant in ONNX, kind == "lora"
    return Variant(
        name,
        quant,
        "onnx" if onnx else "gguf",
        kind in ("lora", "merged"),
        (SIZES | ONNX).get(quant, 1_000_000),
        (ADAPTER // 2 if other else ADAPTER) if lora else 0,
        TOKENIZER if onnx else 0,
        merged=kind == "merged",
        adapter_quant=(other or ("F32" if onnx else "F16")) if lora else None,
    )


def record(
    at: int,
    right: bool,
    category: str = "oranbench",
    look: tuple[float, ...] | None = None,
    **changes: Any,
) -> Record:
    """Return the answer to question `at` of four options, whose right one is `at` mod 4."""
    gold = at % 4
    pick = gold if right else (gold + 1 + at // 4 % 3) % 4
    own = look or (RIGHT if right else WRONG)
    logprobs = tuple(own[(label - pick) % 4] for label in range(4))
    made = Record("r", f"{category}/{at}", gold, logprobs, pick, (pick,) * 4, 100, 10.0)
    return replace(made, **changes)


def result(
    name: str = "lora-F16",
    category: str = "oranbench",
    right: int = 240,
    of: int = 300,
    wrong: Collection[int] | None = None,
    too_long: int = 0,
    milliseconds: float = 10.0,
    **changes: Any,
) -> Result:
    """Return one variant's answers; the first `right` are right, or all but those in `wrong`.

    The last `too_long` questions have no record. `changes` are of the summary.
    """
    missed = range(right, of) if wrong is None else wrong
    own = variant(name)
    texts = name.endswith("-generate")
    look = None if own.adapter else BARE
    made = tuple(
        record(
            at, at not in missed, category, look, milliseconds=milliseconds,
            **({"logprobs": (), "text": "?"} if texts else {}),
        )
        for at in range(of - too_long)
    )  # fmt: skip
    engine = "onnxruntime 1.31" if own.format == "onnx" else "llama-cpp-python 0.3.36"
    fields: dict[str, Any] = {
        "backbone": "tel-nano",
        "variant": own,
        "category": category,
        "dataset": "ot-mini",
        "part": "test",
        "split": f"split of {category}",
        "run": "r",
        "made_with": {
            "engine": engine,
            "backbone": str(own.backbone_bytes).ljust(64, "0"),
            "adapter": f"{own.format}{category}{own.adapter_quant}".ljust(64, "0")[:64]
            if own.adapter and not own.merged
            else None,
            "split": f"split of {category}",
            "settings": {"k": 4, "temperature": 0.7, "seed": 42},
        },
        "rejected": 0,
        "k": 4,
        "memory_anonymous": 41_000_000,
        "memory_file": own.backbone_bytes,
        "memory_peak": 90_000_000,
        **measures(made, too_long),
    }
    return Result(Summary(**{**fields, **changes}), made)


def measures(made: Sequence[Record], too_long: int) -> dict[str, Any]:
    """Return what `records.measures` does, soon: the answers look alike, as few kinds of them."""
    found = records.measures([replace(each, logprobs=()) for each in made], too_long)
    if made and made[0].logprobs:
        kinds = Counter((each.logprobs, each.gold) for each in made)
        shares = [
            (count, records.measures([Record("r", "", gold, logprobs, 0, (0,), 1, 1.0)], 0))
            for (logprobs, gold), count in kinds.items()
        ]
        exact = sum(count * own["majority_exact"] for count, own in shares)
        found["majority_exact"] = exact / found["questions"]
        found["label_mass"] = sum(count * own["label_mass"] for count, own in shares) / len(made)
    return found


def put(home: Path, *made: Result) -> Workspace:
    """Write results into a workspace, where `tel-eval` writes them."""
    workspace = Workspace(home)
    for each in made:
        own = each.summary
        path = workspace.results(
            own.backbone, own.variant.name, own.category, own.part, own.rotated
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        records.write_summary(path, own)
        if each.records:
            lines = (json.dumps(vars(record)) for record in each.records)
            path.write_text("\n".join(lines) + "\n")
    return workspace


def floor(
    home: Path, right: int, of: int = 300, category: str = "oranbench", **changes: Any
) -> None:
    """Write trivial baselines, the best with so many right answers."""
    made = Baselines(
        category,
        "ot-mini",
        "test",
        f"split of {category}",
        0.25,
        (Baseline("one letter", share(0, of)), Baseline("options only", share(right, of))),
    )
    baselines.write(Workspace(home), replace(made, **changes))


# Two categories of 1,000 questions, right answers by variant: Q8_0 loses a single answer, Q4_K_M
# far more in the first category than chance allows.
RIGHTS: Mapping[str, tuple[int, int]] = {
    "base-F16": (260, 200),
    "lora-F16": (800, 660),
    "lora-Q8_0": (799, 660),
    "lora-Q4_K_M": (600, 655),
}


@cache
def _results() -> tuple[Result, ...]:
    return tuple(
        result(name, category, right, 1000)
        for name, rights in RIGHTS.items()
        for category, right in zip(("oranbench", "teletables"), rights, strict=True)
    )


def two_categories(home: Path) -> Path:
    """Write the results of `RIGHTS` and trivial baselines."""
    put(home, *_results())
    floor(home, 430, 1000)
    floor(home, 300, 1000, "teletables")
    return home
