"""What `--imatrix` means: which prompts show the quantizer the weights that matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.benchmarks.split import capped, split
from tel_edge.eval.folders import architectures
from tel_edge.eval.folders.architectures import Shape
from tel_edge.export.gguf import importance
from tel_edge.export.gguf.importance import Importance
from tel_edge.export.sources.adapter import PeftAdapter
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import digest
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.prompt import labels, render

# Questions of each category whose activations are collected.
PROMPTS = 128


def names(shape: Shape) -> Mapping[str, str]:
    """Return the GGUF weight of each projection by its module in transformers."""
    return {
        tensor.source.removesuffix(".weight"): tensor.name
        for tensor in architectures.projections(shape)
    }


def widths(shape: Shape) -> Mapping[str, int]:
    """Return the input width of each projection by its GGUF name."""
    return {tensor.name: tensor.shape[1] for tensor in architectures.projections(shape)}


def prompts(
    dataset: str,
    category: str,
    seed: int,
    wanted: str | None,
    say: benchmark.Say = lambda _: None,
) -> list[str]:
    """Return prompts with their answers from the category's train part.

    `say` is told what `benchmark.read` tells; `wanted` is the digest of the split that the adapter
    was trained with. Raises `InputError` if this data gives another one: its train part may hold
    what the adapter is scored on.
    """
    parts = split(benchmark.read(dataset, CATEGORIES[category], say=say).questions, seed)
    if wanted is not None and parts.digest != wanted:
        raise InputError(
            f"--imatrix: {dataset} is not the data that the adapter for {category} was trained on; "
            "pass that with --dataset (and its --seed)"
        )
    chosen = capped(parts.train, PROMPTS, seed)
    return [render(q) + labels(q)[q.answer or 0] for q in chosen]


def shown(dataset: str, seed: int, splits: Mapping[str, str | None]) -> str:
    """Return the digest of all prompts that `calibrated` shows for these categories' adapters.

    `splits` are those of the adapters, empty for the bare backbone. Raises as `prompts` does.
    """
    wanted = splits or dict.fromkeys(CATEGORIES)
    return digest.of_value(
        {name: prompts(dataset, name, seed, split) for name, split in wanted.items()}
    )


def calibrated(
    folder: Path,
    shape: Shape,
    adapters: Mapping[str, PeftAdapter],
    dataset: str,
    seed: int,
    step: Callable[[int], None],
    say: benchmark.Say = lambda _: None,
) -> Importance:
    """Return the importance matrix pooled over `adapters`, each active on its own category.

    Without adapters the bare backbone sees the prompts of all categories.
    """
    parts = []
    for category in adapters or CATEGORIES:
        made = adapters.get(category)
        texts = prompts(dataset, category, seed, made.split if made else None, say)
        parts.append(
            importance.collect(
                folder, made.folder if made else None, texts, names(shape), dataset, step
            )
        )
    return importance.pooled(parts)


def total(categories: Sequence[str]) -> int:
    """Return about how many prompts `calibrated` will show, for its progress bar."""
    return PROMPTS * len(categories or CATEGORIES)
