"""config.json and generation_config.json of a GGUF file's numbers.

The inverse of `folders.gguf_layout`. A number that changes what is computed and that config.json
has no word for is refused by its key: the model would be another one.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from tel_edge.eval.folders import gguf_layout
from tel_edge.eval.folders.architectures import Llama3Rope, Shape, shape_of
from tel_edge.eval.from_gguf import source as sources
from tel_edge.eval.from_gguf.source import GgufSource

if TYPE_CHECKING:
    import numpy as np

FACTORS = "rope_freqs.weight"
# Low and high factor and length of all published models with frequencies of Llama 3.1; how much
# they are slowed down is in the file.
PUBLISHED = (1.0, 4.0, 8192)
# Keys that change nothing, or that are compared with the others below.
NEUTRAL = {
    *("vocab_size", "tensor_data_layout", "attention.key_length", "attention.value_length"),
    *("rope.dimension_count", "attention.sliding_window", "attention.sliding_window_pattern"),
    # The engine uses it where a text is longer than the model was made for.
    "rope.scaling.original_context_length",
}
# Of the others these values say that nothing is done.
NOTHING: tuple[Any, ...] = (0, 1, 0.0, 1.0, False, "none", "")


def of(source: GgufSource) -> dict[str, Any]:
    """Return the configuration of the model in the file; `shape_of` reads it.

    Raises `InputError` for a number that is missing, or that transformers computes nothing for.
    """
    row, prefix = source.row, f"{source.row.gguf}."
    for key, value in source.metadata.items():
        name = key.removeprefix(prefix)
        if name != key and name not in gguf_layout.FIELDS.keys() | NEUTRAL and value not in NOTHING:
            raise source.wrong(f"{key} is {value!r}, which transformers has no field for")
    made: dict[str, Any] = {
        "architectures": [f"{row.model_type.capitalize()}ForCausalLM"],
        "model_type": row.model_type,
    }
    for name, field in gguf_layout.FIELDS.items():
        found = source.number(name)
        if found is None and name == "attention.head_count_kv":
            found = source.number("attention.head_count")
        elif found is None and name == "rope.freq_base":
            found = 10000.0
        if found is None or isinstance(found, list):
            reason = "is missing" if found is None else "is another one in each layer"
            raise source.wrong(f"{prefix}{name} {reason}, and no model can be made without it")
        made[field] = _shortest(found) if isinstance(found, float) else found
    width = made["hidden_size"] // made["num_attention_heads"]
    head = source.number("attention.key_length")
    if source.number("attention.value_length") not in (head, None):
        raise source.wrong(f"{prefix}attention.value_length is not {prefix}attention.key_length")
    if head is not None or row.head_dim not in (0, width):
        made["head_dim"] = head or width
    turned = source.number("rope.dimension_count")
    if turned not in (None, made.get("head_dim", width)):
        raise source.wrong(f"{prefix}rope.dimension_count is {turned}: heads turned in part")
    embedding = source.tensors.get("token_embd.weight")
    if embedding is None:
        raise source.wrong("tensor token_embd.weight is missing, and no model is without it")
    made["vocab_size"] = int(embedding.shape[1])
    made["tie_word_embeddings"] = "output.weight" not in source.tensors
    made |= _sliding(source, made["num_hidden_layers"]) | _tokens(source)
    rope = _rope(source, shape_of(made, str(source.path)))
    if rope is not None:
        names = {"low": "low_freq_factor", "high": "high_freq_factor"}
        names["original"] = "original_max_position_embeddings"
        given = {names.get(name, name): value for name, value in asdict(rope).items()}
        made["rope_scaling"] = {"rope_type": "llama3", **given}
    return made


def generation(source: GgufSource) -> dict[str, Any]:
    """Return generation_config.json: where an answer ends, and what batches are padded with."""
    made = _tokens(source)
    ends = [made.get("eos_token_id"), source.metadata.get("tokenizer.ggml.eot_token_id")]
    several = list(dict.fromkeys(at for at in ends if at is not None))
    if several:
        made["eos_token_id"] = several if len(several) > 1 else several[0]
    pad = source.metadata.get("tokenizer.ggml.padding_token_id")
    return made | ({} if pad is None else {"pad_token_id": int(pad)})


def _tokens(source: GgufSource) -> dict[str, Any]:
    found = {
        f"{name}_token_id": source.metadata.get(f"tokenizer.ggml.{name}_token_id")
        for name in ("bos", "eos")
    }
    return {name: int(at) for name, at in found.items() if at is not None}


def _sliding(source: GgufSource, layers: int) -> dict[str, Any]:
    window, slides = (
        source.number(f"attention.{name}") for name in ("sliding_window", "sliding_window_pattern")
    )
    if not source.row.sliding_layers:
        if window:
            raise source.wrong(
                f"{source.row.gguf}.attention.sliding_window is {window}, which the engine does "
                "not compute for this architecture"
            )
        return {}
    # Without a word transformers lets layers of these architectures slide.
    kinds = ["full_attention"] * layers
    if window and layers == source.row.sliding_layers:
        each = slides if isinstance(slides, list) else [bool((at + 1) % 4) for at in range(layers)]
        kinds = ["sliding_attention" if one else "full_attention" for one in each]
    return {"sliding_window": window or None, "layer_types": kinds}


def _rope(source: GgufSource, shape: Shape) -> Llama3Rope | None:
    """Return the scaling whose factors the file has, None where it has none or they are 1."""
    import numpy as np

    if FACTORS not in source.tensors or not source.row.rope_factors:
        return None
    stored = sources.values(source.tensors[FACTORS])
    if (stored == 1).all():
        return None
    made = Llama3Rope(_shortest(stored.max()), *PUBLISHED)
    wanted = gguf_layout.rope_factors(replace(shape, rope=made))
    if wanted is None or stored.shape != wanted.shape or not np.allclose(stored, wanted, 1e-6, 0):
        low, high, original = PUBLISHED
        raise source.wrong(
            f"tensor {FACTORS}: other rotations than Llama 3.1's (low {low:g}, high {high:g}, "
            f"{original} tokens), and config.json has no words for them"
        )
    return made


def _shortest(value: float | np.float32) -> float:
    """Return the shortest number that float32 rounds to the same value, 1e-05 and no tail."""
    import numpy as np

    made = float(str(np.float32(value)))
    return made if math.isfinite(made) else float(value)
