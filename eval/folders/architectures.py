"""The model architectures that can be exported, one row each, and their GGUF names and numbers.

Sources: the tensor and metadata names of llama.cpp's `docs/` and gguf-py constants; the
configuration fields of transformers 4 and 5. To add an architecture, add a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tel_edge.eval.folders import numbers
from tel_edge.eval.folders.numbers import real, shown, whole
from tel_edge.runtime.errors import InputError

# What rows are made of, for those that are alike.

# Hugging Face module in a block, GGUF name, and its [rows, columns] as fields of `Shape`.
LINEAR = (
    ("self_attn.q_proj", "attn_q", "query", "hidden"),
    ("self_attn.k_proj", "attn_k", "key", "hidden"),
    ("self_attn.v_proj", "attn_v", "key", "hidden"),
    ("self_attn.o_proj", "attn_output", "hidden", "query"),
    ("mlp.gate_proj", "ffn_gate", "intermediate", "hidden"),
    ("mlp.up_proj", "ffn_up", "intermediate", "hidden"),
    ("mlp.down_proj", "ffn_down", "hidden", "intermediate"),
)
QK_NORMS = (("self_attn.q_norm", "attn_q_norm"), ("self_attn.k_norm", "attn_k_norm"))

# What the engine computes of a block.
FIXED: tuple[tuple[str, Any], ...] = (
    ("attention_bias", False),
    ("mlp_bias", False),
    ("hidden_act", "silu"),
    ("use_sliding_window", False),
    ("partial_rotary_factor", 1.0),
)
NORMS_BEFORE = (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"))
NORMS_AFTER = (
    ("post_attention_layernorm", "post_attention_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
)
# What PEFT wraps where target_modules is null (its utils/constants.py).
QV = ("q_proj", "v_proj")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One row. `model_type` is that of config.json, `gguf` the name in GGUF.

    `permuted`: llama.cpp turns neighbouring values of a head where transformers turns halves, so
    the rows of q and k change places. `norms` are the two of a block, `qk_norms` those of queries
    and keys. `linear` are the projections, which adapters may change, and `biases` the GGUF names
    of those that have one. `fixed` are the fields of config.json that must have one value, since
    the engine computes nothing else. `head_dim` and `kv_heads` are what transformers takes where
    the configuration gives none; 0 is hidden size over heads, and as many key heads as heads.
    `rope_factors`: the engine reads `rope_freqs.weight`, so Llama-3 scaling can be kept. `keys` are
    the optional metadata that llama.cpp's converter writes for it. `sliding_layers`: how many
    layers a model must have for the engine to slide its window; 0 if it never does. `targets` are
    the projections that PEFT takes where an adapter names none; empty: it takes none.
    """

    model_type: str
    gguf: str
    permuted: bool = False
    norms: tuple[tuple[str, str], ...] = NORMS_BEFORE
    qk_norms: tuple[tuple[str, str], ...] = ()
    linear: tuple[tuple[str, str, str, str], ...] = LINEAR
    biases: tuple[str, ...] = ()
    fixed: tuple[tuple[str, Any], ...] = FIXED
    head_dim: int = 0
    kv_heads: int = 0
    rope_factors: bool = False
    keys: tuple[str, ...] = ()
    sliding_layers: int = 0
    targets: tuple[str, ...] = ()


# As many as the engine takes; source: llama.cpp, LLAMA_MAX_LAYERS in src/llama-hparams.h.
MOST_LAYERS = 512

ARCHITECTURES: dict[str, Architecture] = {
    row.model_type: row
    for row in (
        Architecture(
            model_type="llama",
            gguf="llama",
            permuted=True,
            rope_factors=True,
            keys=("vocab_size", "rope.dimension_count"),
            targets=QV,
        ),
        Architecture(
            model_type="qwen3",
            gguf="qwen3",
            qk_norms=QK_NORMS,
            head_dim=128,
            kv_heads=32,
            targets=QV,
        ),
        Architecture(
            model_type="qwen2",
            gguf="qwen2",
            biases=("attn_q", "attn_k", "attn_v"),
            kv_heads=32,
            targets=QV,
        ),
        Architecture(
            model_type="exaone4",
            gguf="exaone4",
            norms=NORMS_AFTER,
            qk_norms=QK_NORMS,
            kv_heads=32,
            rope_factors=True,
            keys=("vocab_size",),
            # Only its 64-layer model slides in llama.cpp (src/models/exaone4.cpp).
            sliding_layers=64,
        ),
    )
}


@dataclass(frozen=True)
class Llama3Rope:
    """The frequency scaling of Llama 3.1: lengths in tokens, factors without unit."""

    factor: float
    low: float
    high: float
    original: int


@dataclass(frozen=True)
class Shape:
    """A model's numbers: widths in elements, context in tokens, `rope_base` without unit.

    `tied` says that the embedding is the head too. `window` is
    the tokens that sliding layers see, 0 for none; `sliding` tells which layers those are.
    `stated` tells whether the configuration gives the head's width itself.
    """

    architecture: Architecture
    layers: int
    context: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    epsilon: float
    rope_base: float
    rope: Llama3Rope | None
    tied: bool
    window: int = 0
    sliding: tuple[bool, ...] = ()
    stated: bool = True

    @property
    def onnx_only(self) -> bool:
        """Return whether layers slide where llama.cpp would let them see everything."""
        return any(self.sliding) and self.layers != self.architecture.sliding_layers

    @property
    def query(self) -> int:
        """Return the width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Return the width of all key heads together."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Tensor:
    """One tensor: Hugging Face name, GGUF name, [rows, columns] or [length].

    `heads` is how many heads the rows are permuted in, 0 for none.
    """

    source: str
    name: str
    shape: tuple[int, ...]
    heads: int = 0


def shape_of(config: Mapping[str, Any], where: str, slides: bool = False) -> Shape:
    """Read a Hugging Face configuration; with `slides` layers of any model may slide.

    Raises `InputError`, beginning with `where`, for an architecture, field or rope scaling that
    is not supported.
    """
    kind = config.get("model_type")
    row = ARCHITECTURES.get(kind) if isinstance(kind, str) else None
    if row is None:
        raise InputError(
            f"{where}: model_type {shown(kind)} cannot be exported; these can: "
            + " ".join(ARCHITECTURES)
        )
    for field, wanted in row.fixed:
        if config.get(field, wanted) not in (wanted, None):
            raise InputError(
                f"{where}: {field} is {shown(config[field])}; only {wanted!r} can be exported"
            )
    layers = whole(config, "num_hidden_layers", where, MOST_LAYERS)
    sliding = _sliding(config, row, layers, where, slides)
    heads, hidden = (
        whole(config, "num_attention_heads", where),
        whole(config, "hidden_size", where),
    )
    kv_heads = row.kv_heads or heads
    if "num_key_value_heads" in config:
        given = config["num_key_value_heads"] is not None
        kv_heads = whole(config, "num_key_value_heads", where) if given else heads
    head_dim = row.head_dim or hidden // heads
    if config.get("head_dim") is not None:
        head_dim = whole(config, "head_dim", where)
    if heads % kv_heads or head_dim % 2:
        raise InputError(f"{where}: {heads} heads, {kv_heads} key heads of {head_dim} do not fit")
    base, rope = _rope(config, row, where)
    # Not stated is not tied, for all rows.
    tied = config.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise InputError(f"{where}: tie_word_embeddings is {shown(tied)}, wanted true or false")
    vocabulary = whole(config, "vocab_size", where)
    padding = config.get("pad_token_id")
    if padding is not None and (isinstance(padding, bool) or not isinstance(padding, int)):
        raise InputError(f"{where}: pad_token_id is {shown(padding)}, wanted a token id or null")
    # Below 0 it counts from the end, as in transformers.
    if padding is not None and not -vocabulary <= padding < vocabulary:
        raise InputError(
            f"{where}: pad_token_id {shown(padding)} is beyond vocab_size {vocabulary}, and "
            "transformers cannot load it; set it to null, padding is masked"
        )
    for field in ("bos_token_id", "eos_token_id"):
        numbers.ids(config, field, where, vocabulary)
    return Shape(
        architecture=row,
        layers=layers,
        context=whole(config, "max_position_embeddings", where),
        hidden=hidden,
        intermediate=whole(config, "intermediate_size", where),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=vocabulary,
        epsilon=real(config, "rms_norm_eps", where),
        rope_base=base,
        rope=rope,
        tied=tied,
        window=whole(config, "sliding_window", where) if any(sliding) else 0,
        sliding=sliding if any(sliding) else (),
        stated=config.get("head_dim") is not None,
    )


def _sliding(
    config: Mapping[str, Any], row: Architecture, layers: int, where: str, anywhere: bool
) -> tuple[bool, ...]:
    """Return which layers slide; refuse those that the engine would let see everything."""
    kinds = config.get("layer_types")
    if kinds is None:
        # transformers' own default where the field is missing: every pattern-th layer is full.
        every = config.get("sliding_window_pattern") or 0
        slides = bool(row.sliding_layers and config.get("sliding_window") and every)
        if slides and isinstance(every, str):
            kinds = [
                "sliding_attention" if every[at % len(every)] == "L" else "full_attention"
                for at in range(layers)
            ]
        elif slides:
            every = whole(config, "sliding_window_pattern", where)
            kinds = [
                "sliding_attention" if (at + 1) % every else "full_attention"
                for at in range(layers)
            ]
        else:
            kinds = ["full_attention"] * layers
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise InputError(f"{where}: layer_types does not name {layers} layers")
    odd = [kind for kind in kinds if not isinstance(kind, str)]
    if odd:
        raise InputError(f"{where}: layer_types has {shown(odd[0])}, wanted names of attention")
    other = set(kinds) - {"full_attention", "sliding_attention"}
    refused = "sliding_attention" in kinds and not anywhere and layers != row.sliding_layers
    if other or refused:
        raise InputError(
            f"{where}: layer_types has {shown(min(other or {'sliding_attention'}))}, which the "
            f"engine does not compute for {row.model_type} of {layers} layers; full_attention can "
            "be exported, and --format onnx takes sliding_attention too"
        )
    return tuple(kind == "sliding_attention" for kind in kinds)


def _rope(
    config: Mapping[str, Any], row: Architecture, where: str
) -> tuple[float, Llama3Rope | None]:
    # transformers 5 writes rope_parameters with rope_theta inside, transformers 4 rope_theta
    # and rope_scaling side by side, the oldest with `type` for `rope_type`.
    name = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    given = config.get(name) or {}
    if not isinstance(given, Mapping):
        raise InputError(f"{where}: {name} is {shown(given)}, wanted an object")
    apart = [key for key, value in given.items() if isinstance(value, Mapping)]
    if apart:
        raise InputError(
            f"{where}: {name} gives {shown(apart[0])} a rotation of its own; only one for all "
            "layers can be exported"
        )
    field = "rope_theta"
    base = real({field: given.get(field, config.get(field, 10000.0))}, field, where)
    kind = given.get("rope_type", given.get("type", "default"))
    if given.get("partial_rotary_factor") not in (None, 1, 1.0):
        kind = "partial rotary"
    if kind == "default":
        return base, None
    if kind != "llama3" or not row.rope_factors:
        raise InputError(
            f"{where}: rope scaling {shown(kind)} cannot be exported for {row.model_type}; "
            f"this can: default{' llama3' if row.rope_factors else ''}"
        )
    low, high = (real(given, name, where) for name in ("low_freq_factor", "high_freq_factor"))
    if low >= high:
        raise InputError(f"{where}: low_freq_factor {low} is not below high_freq_factor {high}")
    original = whole(given, "original_max_position_embeddings", where)
    return base, Llama3Rope(real(given, "factor", where), low, high, original)


def tensors(shape: Shape) -> tuple[Tensor, ...]:
    """Return every tensor of the checkpoint in file order; the head (`output.weight`) is last."""
    made = [
        Tensor("model.embed_tokens.weight", "token_embd.weight", (shape.vocabulary, shape.hidden))
    ]
    for block in range(shape.layers):
        source, name = f"model.layers.{block}.", f"blk.{block}."
        made += [
            Tensor(f"{source}{a}.weight", f"{name}{b}.weight", (shape.hidden,))
            for a, b in shape.architecture.norms
        ]
        made += [
            Tensor(f"{source}{a}.weight", f"{name}{b}.weight", (shape.head_dim,))
            for a, b in shape.architecture.qk_norms
        ]
        projected = linear(shape, block)
        made += projected
        made += [
            Tensor(of.source[:-6] + "bias", of.name[:-6] + "bias", of.shape[:1], of.heads)
            for of in projected
            if of.name.split(".")[2] in shape.architecture.biases
        ]
    made.append(Tensor("model.norm.weight", "output_norm.weight", (shape.hidden,)))
    made.append(Tensor("lm_head.weight", "output.weight", (shape.vocabulary, shape.hidden)))
    return tuple(made)


def linear(shape: Shape, block: int) -> list[Tensor]:
    """Return the projections of a block: the tensors that an adapter may change."""
    turned = (
        {"attn_q": shape.heads, "attn_k": shape.kv_heads} if shape.architecture.permuted else {}
    )
    return [
        Tensor(
            f"model.layers.{block}.{source}.weight",
            f"blk.{block}.{name}.weight",
            (getattr(shape, rows), getattr(shape, columns)),
            turned.get(name, 0),
        )
        for source, name, rows, columns in shape.architecture.linear
    ]


def projections(shape: Shape) -> list[Tensor]:
    """Return the projections of all blocks in order."""
    return [tensor for block in range(shape.layers) for tensor in linear(shape, block)]
