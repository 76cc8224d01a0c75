"""The numbers behind the architecture table, against transformers and by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tel_edge.eval.folders import architectures, gguf_layout, tensors
from tel_edge.export.gguf.quantize import QUANTS, rows
from tel_edge.runtime.errors import InputError

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "vocab_size": 300,
    "rms_norm_eps": 1e-5,
}
SCALED = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_rope_factors_are_those_of_transformers() -> None:
    import numpy as np
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    shape = architectures.shape_of({**CONFIG, "head_dim": 64, "rope_parameters": SCALED}, "x")
    factors = gguf_layout.rope_factors(shape)
    config = LlamaConfig(**{**CONFIG, "head_dim": 64, "rope_parameters": SCALED})
    wanted, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** -(np.arange(0, 64, 2) / 64)
    assert factors is not None
    assert factors.shape == (32,)
    assert np.allclose(plain / factors, wanted.numpy(), rtol=1e-5)
    assert (factors[0], factors[-1]) == (1.0, 32.0)


def test_head_dim_has_the_default_of_transformers() -> None:
    from transformers import LlamaConfig, Qwen3Config

    for kind, known in (("llama", LlamaConfig), ("qwen3", Qwen3Config)):
        made = architectures.shape_of({**CONFIG, "model_type": kind}, "x").head_dim
        assert made == known(**CONFIG | {"model_type": kind}).head_dim, kind


@pytest.mark.parametrize("pattern", [4, "LLLG", None])
def test_the_64_layers_of_exaone_slide_as_in_transformers(pattern: int | str | None) -> None:
    from transformers import Exaone4Config

    config = {**CONFIG, "model_type": "exaone4", "num_hidden_layers": 64, "sliding_window": 128}
    if isinstance(pattern, str) or pattern is None:
        kinds = ["full_attention" if at % 4 == 3 else "sliding_attention" for at in range(64)]
        config |= {"sliding_window_pattern": pattern} if pattern else {"layer_types": kinds}
    else:
        config |= {"sliding_window_pattern": pattern}
        kinds = Exaone4Config(**config).layer_types
    shape = architectures.shape_of(config, "x")
    assert shape.sliding == tuple(kind == "sliding_attention" for kind in kinds)
    keys = gguf_layout.metadata(shape)
    assert keys["exaone4.attention.sliding_window"] == 128
    assert keys["exaone4.attention.sliding_window_pattern"] == shape.sliding
    full = architectures.shape_of({**config, "sliding_window": None, "layer_types": None}, "x")
    assert not [name for name in gguf_layout.metadata(full) if "sliding" in name]


def test_rows_of_q_are_interleaved_by_head() -> None:
    import numpy as np

    rows_ = np.arange(16).reshape(8, 2)
    turned = gguf_layout.permuted(rows_, 2)
    assert turned[:, 0].tolist() == [0, 4, 2, 6, 8, 12, 10, 14]
    assert gguf_layout.permuted(rows_, 0) is rows_


@pytest.mark.parametrize("kind", architectures.ARCHITECTURES)
def test_the_names_are_the_engines(kind: str) -> None:
    import gguf

    shape = architectures.shape_of({**CONFIG, "model_type": kind}, "x")
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    known = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[arch]}
    for tensor in architectures.tensors(shape):
        block = tensor.source.removeprefix("model.layers.").split(".")[0]
        name = tensor.name.removesuffix(".weight").removesuffix(".bias")
        assert name.replace(f"blk.{block}.", "blk.{bid}.") in known


def test_types_have_the_engines_numbers() -> None:
    from llama_cpp import llama_cpp

    for row in QUANTS.values():
        name = f"LLAMA_FTYPE_{'ALL' if row.name == 'F32' else 'MOSTLY'}_{row.name}"
        assert getattr(llama_cpp, name) == row.ftype
    assert [row.name for row in rows("Q8_0, F16,Q8_0")] == ["Q8_0", "F16"]


def test_bfloat16_is_rounded_as_torch_rounds() -> None:
    import torch

    torch.manual_seed(0)
    values = torch.cat([torch.randn(10_000), torch.tensor([0.0, -0.0, 1.00390625, 1.01171875])])
    wanted = values.to(torch.bfloat16).view(torch.int16).numpy().view("u2")
    assert (tensors.rounded(values.numpy()) == wanted).all()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"num_key_value_heads": 3}, "4 heads, 3 key heads"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
        ({"rope_theta": "x"}, "rope_theta is 'x'"),
        ({"rope_parameters": [1]}, r"rope_parameters is \[1\]"),
        ({"rope_parameters": {**SCALED, "low_freq_factor": 4.0}}, "low_freq_factor 4.0 is not"),
        ({"model_type": "qwen3", "rope_parameters": SCALED}, "'llama3' cannot .* for qwen3"),
        ({"model_type": ["llama"]}, "cannot be exported; these can: llama qwen3 qwen2 exaone4"),
        ({"layer_types": ["full_attention"]}, "does not name 2 layers"),
        ({"layer_types": ["chunked_attention"] * 2}, "'chunked_attention'"),
        # The engine would let these layers see everything: it slides in the 64-layer form only.
        (
            {"model_type": "exaone4", "sliding_window": 64, "sliding_window_pattern": 2},
            "'sliding_attention', which the engine does not compute for exaone4 of 2 layers",
        ),
    ],
)
def test_refusals(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"where: .*{said}"):
        architectures.shape_of({**CONFIG, **changed}, "where")
