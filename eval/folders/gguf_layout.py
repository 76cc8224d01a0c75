"""An architecture's rows, numbers and rope scaling as a GGUF file has them.

Sources: the metadata names of llama.cpp's gguf-py constants, and what its converter writes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tel_edge.eval.folders.architectures import Shape

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Types of tokens. Source: `llama_token_type` of llama.h.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
# Keys, without the architecture's name, by the field of config.json that says the same.
FIELDS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}


def permuted(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Return `rows` [heads * head_dim, columns] in llama.cpp's order, heads = 0 as they are.

    Inside a head, transformers keeps the two parts of each rotated pair half a head apart and
    llama.cpp side by side.
    """
    if not heads:
        return rows
    pairs = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def unpermuted(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Return `rows` [heads * head_dim, columns] in transformers' order again.

    The inverse of `permuted`.
    """
    if not heads:
        return rows
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def metadata(shape: Shape) -> dict[str, int | float | tuple[bool, ...]]:
    """Return the GGUF keys of the architecture: whole numbers are uint32, others float32."""
    keys: dict[str, int | float | tuple[bool, ...]] = {
        "block_count": shape.layers,
        "context_length": shape.context,
        "embedding_length": shape.hidden,
        "feed_forward_length": shape.intermediate,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.layer_norm_rms_epsilon": shape.epsilon,
        "rope.freq_base": shape.rope_base,
    }
    if shape.stated or shape.head_dim * shape.heads != shape.hidden:
        keys |= {
            "attention.key_length": shape.head_dim,
            "attention.value_length": shape.head_dim,
        }
    optional = {"vocab_size": shape.vocabulary, "rope.dimension_count": shape.head_dim}
    keys |= {name: optional[name] for name in shape.architecture.keys}
    if shape.window:
        keys["attention.sliding_window"] = shape.window
        keys["attention.sliding_window_pattern"] = shape.sliding
    return {f"{shape.architecture.gguf}.{name}": value for name, value in keys.items()}


def rope_factors(shape: Shape) -> npt.NDArray[np.float32] | None:
    """Return `rope_freqs.weight` [head_dim / 2]: what each frequency is divided by, or None.

    Source: Llama 3.1's reference (`apply_scaling`): wavelengths below original / high stay, those
    above original / low are divided by the factor, those between are blended. Each step is rounded
    to float32 as llama.cpp's converter does, so the published models get its very bytes.
    """
    import numpy as np

    rope, single = shape.rope, np.float32
    if rope is None:
        return None
    exponents = np.arange(0, shape.head_dim, 2, dtype=single) / single(shape.head_dim)
    powers = np.power(np.float64(shape.rope_base), exponents.astype(np.float64)).astype(single)
    lengths = single(2 * math.pi) / (single(1) / powers)
    blend = (single(rope.original) / lengths - single(rope.low)) / single(rope.high - rope.low)
    between = single(1) / ((single(1) - blend) / single(rope.factor) + blend)
    scaled = np.where(lengths > single(rope.original / rope.low), single(rope.factor), between)
    kept: npt.NDArray[np.float32] = np.where(
        lengths < single(rope.original / rope.high), single(1), scaled
    ).astype(single)
    return kept
