"""What transformers would read from a model folder, of whatever architecture, by headers alone.

Source of what it reads: transformers 5.23, `modeling_utils._get_resolved_checkpoint_files`,
`models/auto/auto_factory` (adapters) and `distributed/checkpoint`. Where it would read something
else than the files that a model folder is made of, the folder is refused and the file named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tel_edge.eval.folders import quantized
from tel_edge.eval.folders import tensors as stored
from tel_edge.eval.folders.files import check_fetched, check_regular, json_object
from tel_edge.eval.folders.tensors import Stored
from tel_edge.runtime.errors import InputError

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER, GENERATION = "adapter_config.json", "generation_config.json"
# What is read where it is there, beside the weights.
NAMED = {
    *(CONFIG, INDEX, GENERATION, "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
}
# Parts of a distributed checkpoint, which are read before everything else.
RANKED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True)
class Contents:
    """A model folder's configuration and its tensors by name."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]


def read(folder: Path) -> Contents:
    """Read configuration and safetensors headers of a model folder.

    Raises `InputError` for files that are missing, truncated, git-lfs pointers or quantized, and
    for those that make transformers load another model: an adapter, a second set of weights.
    """
    if not (folder / CONFIG).is_file():
        if (folder / ADAPTER).is_file():
            raise InputError(
                f"{folder}: no {CONFIG} but {ADAPTER}: an adapter, and a model is needed; pass the "
                "folder of its backbone"
            )
        raise InputError(f"{folder}: no {CONFIG}; a Hugging Face model folder is needed")
    for path in sorted(folder.iterdir()):
        if path.name in NAMED or path.suffix == ".safetensors":
            check_regular(path)
    config = json_object(folder / CONFIG)
    for path in sorted(folder.glob("tokenizer*")):
        if path.is_file():
            check_fetched(path)
    _check_leftovers(folder, config)
    tensors = _tensors(folder)
    quantized.check(folder, config, tensors.values())
    return Contents(config, tensors)


def _check_leftovers(folder: Path, config: Mapping[str, Any]) -> None:
    if (folder / ADAPTER).is_file():
        raise InputError(
            f"{folder / ADAPTER}: an adapter in the backbone's own folder, which transformers adds "
            "to it\nmove it, and the adapter's weights, to a folder of its own"
        )
    if config.get("transformers_weights") is not None:
        raise InputError(
            f"{folder / CONFIG}: transformers_weights names other weights "
            f"({config['transformers_weights']!r}); call them {SINGLE} and remove that field"
        )
    ranked = sorted(p.name for p in folder.glob("shard-*") if RANKED.fullmatch(p.name))
    if ranked:
        raise InputError(
            f"{folder / ranked[0]}: part of a distributed checkpoint, which transformers reads "
            "instead of the model; load and save it whole, or move the parts elsewhere"
        )


def _tensors(folder: Path) -> dict[str, Stored]:
    single, index = folder / SINGLE, folder / INDEX
    places = _places(index) if index.is_file() else {}
    others = sorted(set(places.values()) - {SINGLE})
    if single.is_file():
        if others:
            raise InputError(
                f"{folder}: {SINGLE} beside {INDEX}, which lists {others[0][:60]}: two models in "
                f"one folder, of which transformers reads {SINGLE}\n"
                "remove the one that is not meant"
            )
        return stored.listed(single)
    if not index.is_file():
        if list(folder.glob("*.safetensors")):
            raise InputError(f"{folder}: neither {SINGLE} nor {INDEX}; other names are not read")
        raise InputError(
            f"{folder}: no *.safetensors; pickled weights are never loaded, convert them first"
        )
    found: dict[str, Stored] = {}
    # Looked up among the files, since a name may be longer than any file's.
    there = {path.name for path in folder.iterdir()}
    for name in others:
        if name not in there or not (folder / name).is_file():
            raise InputError(
                f"{folder}: {name[:60]} is missing, though {INDEX} lists it; "
                "copy or download the folder again"
            )
        for tensor in stored.listed(folder / name).values():
            if tensor.name in found:
                raise InputError(
                    f"{folder}: tensor {tensor.name} is in {found[tensor.name].file.name} and in "
                    f"{name}; save the model again, or remove the shard of another one"
                )
            found[tensor.name] = tensor
    lost = [name for name in places if name not in found]
    if lost:
        raise InputError(f"{folder / places[lost[0]]}: tensor {lost[0]} is missing, see {INDEX}")
    return found


def _places(index: Path) -> dict[str, str]:
    places = json_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise InputError(f"{index}: no weight_map; copy or download it again")
    return places
