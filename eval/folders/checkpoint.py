"""A Hugging Face model folder: its configuration, and where each tensor of it lies."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tel_edge.eval.folders import architectures
from tel_edge.eval.folders import tensors as stored
from tel_edge.eval.folders.architectures import Shape, Tensor
from tel_edge.eval.folders.tensors import Stored
from tel_edge.runtime.errors import InputError

INSTEAD = "--quant BF16 or F32 (the quantized types are made from F16)"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


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
    """Open a model folder without reading its values; with `slides` any layer may slide.

    Raises `InputError` for an unsupported architecture, a missing shard or tensor, a shape that
    is not the configuration's, and a tensor that has no place.
    """
    config = json_object(folder / "config.json")
    shape = architectures.shape_of(config, str(folder / "config.json"), slides)
    found = _tensors(folder)
    wanted = list(architectures.tensors(shape))
    head = wanted[-1].source
    if shape.tied or (shape.tied is None and head not in found):
        # transformers ignores a stored head as well when the configuration ties it.
        wanted.pop()
        found.pop(head, None)
    pairs = []
    for tensor in wanted:
        if tensor.source not in found:
            raise InputError(
                f"{folder}: tensor {tensor.source} is missing, though config.json asks for it; "
                "copy or download the folder again"
            )
        source = found.pop(tensor.source)
        if source.shape != tensor.shape:
            raise InputError(
                f"{source.file}: tensor {tensor.source} is {list(source.shape)}, "
                f"config.json makes it {list(tensor.shape)}"
            )
        pairs.append((tensor, source))
    # Old checkpoints carry rotary tables, which are computed from the configuration.
    left = [name for name in found if not name.endswith("rotary_emb.inv_freq")]
    if left:
        raise InputError(
            f"{found[left[0]].file}: tensor {left[0]} has no place in "
            f"{shape.architecture.model_type}; the model would be another without it"
        )
    return Checkpoint(folder, config, shape, tuple(pairs))


def check_values(checkpoint: Checkpoint, half: bool, step: Callable[[int], None]) -> None:
    """Read every value; raise `InputError` for one not finite or, with `half`, beyond F16.

    `step` is called with the number of values read since the last call.
    """
    for tensor, source in checkpoint.tensors:
        stored.check(source, half and len(tensor.shape) > 1, INSTEAD)
        step(source.size)


def _tensors(folder: Path) -> dict[str, Stored]:
    if not (folder / INDEX).is_file():
        if not (folder / SINGLE).is_file():
            raise InputError(
                f"{folder}: neither {SINGLE} nor {INDEX}; "
                "pickled weights are never loaded, convert them first"
            )
        return stored.listed(folder / SINGLE)
    index = folder / INDEX
    places = json_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise InputError(f"{index}: no weight_map; copy or download it again")
    found: dict[str, Stored] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or not (folder / name).is_file():
            raise InputError(
                f"{folder}: {name} is missing, though {INDEX} lists it; "
                "copy or download the folder again"
            )
        found |= stored.listed(folder / name)
    lost = [name for name in places if name not in found]
    if lost:
        raise InputError(f"{folder / places[lost[0]]}: tensor {lost[0]} is missing, see {INDEX}")
    return found


def json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or raise `InputError` naming the file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: missing; copy or download the folder again") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: wanted a JSON object")
    return document
