"""A backbone's folder as all read it: configuration, place of each tensor, tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tel_edge.eval.folders import architectures, contents, numbers, tokens
from tel_edge.eval.folders import tensors as stored
from tel_edge.eval.folders.architectures import Shape, Tensor
from tel_edge.eval.folders.contents import CONFIG, GENERATION
from tel_edge.eval.folders.files import json_object
from tel_edge.eval.folders.tensors import Stored
from tel_edge.runtime.errors import InputError

INSTEAD = "--quant BF16 or F32 (the quantized types are made from F16)"
EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Checkpoint:
    """An opened model folder. `tensors` pairs each tensor of the GGUF file with its source.

    A tied head is not among them: the engine takes the embedding for it.
    """

    folder: Path
    config: Mapping[str, Any]
    shape: Shape
    tensors: tuple[tuple[Tensor, Stored], ...]

    @property
    def parameters(self) -> int:
        """Return the number of values to be written."""
        return sum(source.size for _, source in self.tensors)


def load(folder: Path, slides: bool = False) -> Checkpoint:
    """Open a backbone's folder; with `slides` any layer may slide.

    Headers are read and no values, but those of a head that is stored though config.json ties it.
    Raises `InputError` for what `contents.read` refuses, an unsupported architecture, a tensor
    that is missing, has no place, or is not of the configuration's shape or F32, F16 or BF16, and
    for a tokenizer that is missing or does not fit the embedding.
    """
    read = contents.read(folder)
    shape = architectures.shape_of(read.config, str(folder / CONFIG), slides)
    pairs = _placed(folder, shape, dict(read.tensors))
    tokens.check(folder, shape.vocabulary)
    if (folder / GENERATION).is_file():
        says = json_object(folder / GENERATION)
        for field in ("bos_token_id", "eos_token_id"):
            numbers.ids(says, field, str(folder / GENERATION), shape.vocabulary)
    return Checkpoint(folder, read.config, shape, pairs)


def _placed(
    folder: Path, shape: Shape, found: dict[str, Stored]
) -> tuple[tuple[Tensor, Stored], ...]:
    wanted = list(architectures.tensors(shape))
    head = wanted[-1].source
    if shape.tied:
        # As transformers does: the one that is there is both, and two that differ stay two.
        if head in found and EMBEDDING not in found:
            found[EMBEDDING] = found.pop(head)
        if head not in found or stored.equal(found[head], found[EMBEDDING]):
            wanted.pop()
            found.pop(head, None)
    pairs = []
    for tensor in wanted:
        if tensor.source not in found:
            loose = tensor.source == head
            raise InputError(
                f"{folder}: tensor {tensor.source} is missing, though config.json "
                f"{'does not tie it (tie_word_embeddings)' if loose else 'asks for it'}; "
                "copy or download the folder again"
            )
        source = found.pop(tensor.source)
        if source.shape != tensor.shape:
            raise InputError(
                f"{source.file}: tensor {tensor.source} is {list(source.shape)}, "
                f"config.json makes it {list(tensor.shape)}"
            )
        stored.check_readable(source)
        pairs.append((tensor, source))
    # Old checkpoints carry rotary tables, which are computed from the configuration.
    left = [name for name in found if not name.endswith("rotary_emb.inv_freq")]
    if left:
        raise InputError(
            f"{found[left[0]].file}: tensor {left[0]} has no place in "
            f"{shape.architecture.model_type}; the model would be another without it"
        )
    return tuple(pairs)


def check_values(checkpoint: Checkpoint, half: bool, step: Callable[[int], None]) -> None:
    """Read every value; raise `InputError` for one not finite or, with `half`, beyond F16.

    `step` is called with the number of values read since the last call.
    """
    for tensor, source in checkpoint.tensors:
        stored.check(source, half and len(tensor.shape) > 1, INSTEAD)
        step(source.size)
