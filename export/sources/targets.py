"""Which modules PEFT wraps for an adapter_config.json: it reads the tensors of these and no others.

Source: peft 0.21.2, `check_target_module_exists` and `_maybe_include_all_linear_layers` in
tuners/tuners_utils.py. A test compares both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tel_edge.runtime.errors import InputError

ALL_LINEAR = "all-linear"
# PEFT's words for the modules outside of the blocks, the only others that can be wrapped.
OUTER = ("model.embed_tokens", "lm_head")
# Initialisations that leave something else than B = 0 where the file has no tensors.
RANDOM = (False, "orthogonal")


def wrapped(
    config: Mapping[str, Any], linear: Sequence[str], default: Sequence[str] = ()
) -> list[str]:
    """Return those of the projections `linear` and of `OUTER` that PEFT wraps, in that order.

    Names are those of the modules in transformers, such as "model.layers.0.mlp.up_proj"; `default`
    is what PEFT takes where target_modules is null. Raises `InputError` for fields that PEFT does
    not take.
    """
    wanted = config.get("target_modules")
    if wanted is None:
        wanted = list(default) or None
    if isinstance(wanted, str) and wanted.lower() == ALL_LINEAR:
        wanted = list(linear)
    if not wanted or not _texts(wanted):
        raise InputError(f"target_modules is {wanted!r}; name the modules that were trained")
    excluded = config.get("exclude_modules") or ()
    if not _texts(excluded):
        raise InputError(f"exclude_modules is {excluded!r}, wanted names or an expression")
    layers = config.get("layers_to_transform")
    if isinstance(wanted, str) and layers is not None:
        raise InputError("layers_to_transform is of no use beside an expression in target_modules")
    try:
        return [
            module
            for module in (*linear, *OUTER)
            if not _matches(excluded, module)
            and _matches(wanted, module)
            and _in_layers(layers, config.get("layers_pattern"), module)
        ]
    except (re.error, TypeError) as error:
        raise InputError(f"what it says of its target modules cannot be read: {error}") from None


def _texts(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value)
    )


def _matches(wanted: str | Sequence[str], module: str) -> bool:
    if isinstance(wanted, str):
        return re.fullmatch(wanted, module) is not None
    return any(f".{module}".endswith(f".{name}") for name in wanted)


def _in_layers(layers: Any, patterns: Any, module: str) -> bool:
    if layers is None or layers == []:
        return True
    patterns = [patterns] if isinstance(patterns, str) else patterns
    found = None
    for pattern in patterns or (r"[^.]*",):
        start = r".*?\." if not patterns else r"(?:^|.*?\.)"
        found = found or re.match(rf"{start}{pattern}\.(?P<at>\d+)\.", module)
    return found is not None and int(found["at"]) in (
        layers if isinstance(layers, list) else [layers]
    )
