"""Whether the numbers in a GGUF header fit the engine and the tensors of the file.

llama.cpp ends the whole process where a number is more than it has room for, or where two do not
go together. What is missing, or of a type that it does not read, it refuses by itself.
Source: `load_hparams` in src/llama-model.cpp, src/llama-vocab.cpp, src/llama-adapter.cpp and
ggml/src/ggml-cpu/ops.cpp of llama.cpp, as in llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from tel_edge.runtime.errors import InputError

# LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS.
MOST_LAYERS, MOST_EXPERTS = 512, 1024
MOST = 2**31 - 1
# The CPU's buffers begin at multiples of this many bytes, mapped files included.
ALIGNMENT = 32
# Numbers of value types, and of the one tensor type that norms are computed in.
UINT32, FLOAT32, STRING, ARRAY = 4, 6, 8, 9
F32 = 0
SCALINGS = ("none", "linear", "yarn", "longrope")
MOST_POOLING = 4
# The architectures that tel-export writes: their tensors are compared with the numbers.
COMPARED = ("llama", "qwen2", "qwen3", "exaone4")
BLOCK = re.compile(r"blk\.(\d{1,9})\.(\w+)\.weight")
LORA = re.compile(r"(.+)\.lora_[ab]")
TOKENS = "tokenizer.ggml.tokens"


@dataclass(frozen=True)
class Header:
    """`metadata` holds scalars and strings; of an array only its length is kept.

    `kinds` are the numbers of the value types by key. `shapes` are those of the tensors by name,
    the length of a row first, and `types` the numbers of their types. `bytes` is how many bytes
    have a token of their own as SentencePiece writes it, <0x41>.
    """

    metadata: dict[str, Any]
    kinds: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    types: dict[str, int]
    bytes: int = 0

    @property
    def tensors(self) -> tuple[str, ...]:
        """Return the names of the tensors in file order."""
        return tuple(self.shapes)


def check(header: Header) -> None:
    """Check the header of a model or an adapter.

    Raises `InputError` with the key or tensor. What names no architecture is no model, and passes:
    the engine refuses it.
    """
    if header.metadata.get("general.type") == "adapter":
        _adapter(header)
    elif isinstance(header.metadata.get("general.architecture"), str):
        _model(header, Numbers(header))


class Numbers:
    """The metadata of a header's architecture, by names without it."""

    def __init__(self, header: Header) -> None:
        self.architecture = header.metadata["general.architecture"]
        self._header = header

    def value(self, name: str) -> Any:
        """Return a value, None where there is none; of an array its length."""
        return self._header.metadata.get(f"{self.architecture}.{name}")

    def listed(self, name: str) -> bool:
        """Return whether there is a value for each layer."""
        return self._header.kinds.get(f"{self.architecture}.{name}") == ARRAY

    def whole(self, name: str, least: int, most: int = MOST) -> int | None:
        """Return a number from `least` to `most`, None where there is none, or one a layer."""
        value, kind = self.value(name), self._header.kinds.get(f"{self.architecture}.{name}")
        if value is None or kind == ARRAY:
            return None
        if kind != UINT32:
            raise self.wrong(name, f"of value type {kind}; type {UINT32} (uint32) is read")
        if not least <= value <= most:
            wanted = f"{least:,} to {most:,}" if most > least else f"{least:,}"
            raise self.wrong(name, f"wanted {wanted}")
        return int(value)

    def wrong(self, name: str, reason: str) -> InputError:
        """Return the error for a key."""
        return InputError(f"{self.architecture}.{name} is {self.value(name)!r}; {reason}")


def _model(header: Header, numbers: Numbers) -> None:
    layers = numbers.whole("block_count", 1, MOST_LAYERS)
    for name in ("context_length", "embedding_length", "vocab_size"):
        numbers.whole(name, 1)
    numbers.whole("nextn_predict_layers", 0, (layers or 1) - 1)
    numbers.whole("pooling_type", 0, MOST_POOLING)
    for name in ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"):
        value = numbers.value(name)
        if isinstance(value, float) and not 0 <= value < math.inf:
            raise numbers.wrong(name, "wanted a number from 0 on")
    scaling = numbers.value("rope.scaling.type")
    if isinstance(scaling, str) and scaling not in SCALINGS:
        raise numbers.wrong("rope.scaling.type", f"wanted one of {' '.join(SCALINGS)}")
    alignment = header.metadata.get("general.alignment", ALIGNMENT)
    if alignment % ALIGNMENT:
        raise InputError(f"general.alignment {alignment} is no multiple of {ALIGNMENT}")
    _experts(numbers)
    _vocabulary(header)
    # Of a model in several files each holds a part of the tensors.
    if numbers.architecture in COMPARED and header.metadata.get("split.count", 1) in (0, 1):
        _tensors(header, numbers, layers)


def _experts(numbers: Numbers) -> None:
    count = numbers.whole("expert_count", 0, MOST_EXPERTS) or 0
    if count <= 1 and numbers.architecture.startswith("hunyuan"):
        # Written for its models without experts too, and not looked at.
        return
    used = numbers.whole("expert_used_count", min(1, count), count)
    if count and used is None and not numbers.listed("expert_used_count"):
        raise numbers.wrong("expert_count", "expert_used_count is missing")
    groups = numbers.whole("expert_group_count", 0, max(0, count - 1)) or 0
    if groups > 1:
        if count % groups:
            raise numbers.wrong("expert_group_count", f"it does not divide {count} experts")
        if not numbers.whole("expert_group_used_count", 1, groups - 1):
            raise numbers.wrong("expert_group_count", "expert_group_used_count is missing")


def _vocabulary(header: Header) -> None:
    known, count = header.metadata, header.metadata.get(TOKENS)
    if known.get("tokenizer.ggml.model") in ("none", "no_vocab"):
        raise InputError("tokenizer.ggml.model: no vocabulary, so no text can be read")
    if known.get("tokenizer.ggml.model") == "llama" and header.bytes < 256:
        raise InputError(f"{TOKENS}: {256 - header.bytes} of the 256 bytes have no token")
    for name in ("bos", "eos"):
        key = f"tokenizer.ggml.{name}_token_id"
        # The engine would take another token for it.
        if isinstance(count, int) and header.kinds.get(key) == UINT32 and known[key] >= count:
            raise InputError(f"{key} is {known[key]:,}, there are {count:,} tokens")


def _tensors(header: Header, numbers: Numbers, layers: int | None) -> None:
    """Compare the shapes of the tensors that are there; what is missing the engine refuses."""
    width = numbers.whole("embedding_length", 1)
    heads = numbers.whole("attention.head_count", 1)
    inner = numbers.whole("feed_forward_length", 1)
    if layers is None or width is None or heads is None:
        return
    shared = numbers.whole("attention.head_count_kv", 1, heads) or heads
    if heads % shared:
        raise numbers.wrong("attention.head_count_kv", f"it does not divide {heads} heads")
    head = numbers.whole("attention.key_length", 2) or width // heads
    if head < 2 or head % 2:
        raise numbers.wrong("attention.head_count", f"a head of {head} values cannot be turned")
    for name in ("attention.value_length", "attention.value_length_swa",
                 "attention.key_length_swa", "rope.dimension_count",
                 "rope.dimension_count_swa"):  # fmt: skip
        numbers.whole(name, head, head)
    if numbers.value("attention.value_length") is None and head != width // heads:
        raise numbers.wrong("attention.key_length", "attention.value_length is missing")
    tokens = header.metadata.get(TOKENS)
    query, key = heads * head, shared * head
    wanted = {
        "attn_q": (width, query), "attn_k": (width, key), "attn_v": (width, key),
        "attn_output": (query, width), "ffn_gate": (width, inner), "ffn_up": (width, inner),
        "ffn_down": (inner, width), "attn_q_norm": (head,), "attn_k_norm": (head,),
    }  # fmt: skip
    blocks = set()
    for name, shape in header.shapes.items():
        expected: tuple[int | None, ...] | None = None
        if found := BLOCK.fullmatch(name):
            blocks.add(int(found[1]))
            expected = wanted.get(found[2])
        elif name in ("token_embd.weight", "output.weight"):
            expected = (width, tokens)
        if expected and None not in expected and shape != expected:
            raise InputError(f"tensor {name}: shape {list(shape)}, the header's is {[*expected]}")
        if len(shape) == 1 and header.types[name] != F32:
            raise InputError(f"tensor {name}: type number {header.types[name]} instead of {F32}")
    if blocks != set(range(layers)):
        raise numbers.wrong("block_count", f"the file has tensors of {len(blocks)} blocks")


def _adapter(header: Header) -> None:
    # The engine reads these without asking of what type they are.
    for name, kind in (
        ("general.architecture", STRING),
        ("adapter.type", STRING),
        ("adapter.lora.alpha", FLOAT32),
    ):
        if header.kinds.get(name, kind) != kind:
            raise InputError(f"{name} is of value type {header.kinds[name]}, {kind} is read")
    if not math.isfinite(header.metadata.get("adapter.lora.alpha", 0.0)):
        raise InputError("adapter.lora.alpha is no finite number")
    for name, shape in header.shapes.items():
        found = LORA.fullmatch(name)
        if not found:
            continue
        if len(shape) < 2 or any(length != 1 for length in shape[2:]):
            raise InputError(f"tensor {name}: shape {list(shape)}, a matrix is wanted")
        other = header.shapes.get(f"{found[1]}.lora_b")
        # Those of the embedding both begin with the rank; of others the engine compares the ranks.
        if found[1] == "token_embd.weight" and other and shape[0] != other[0]:
            raise InputError(f"tensor {name}: rank {shape[0]}, {found[1]}.lora_b has {other[0]}")
