"""Tiny models, made here, to try an engine with: of random weights, in the types that bundles have.

Sources: ggml's docs/gguf.md and ggml-common.h (the blocks of quantized types); onnx's onnx.proto
and protobuf's wire format.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from pathlib import Path

from tel_edge.runtime.engines.readable import text_letters
from tel_edge.runtime.files.gguf_header import ARRAY, BLOCKS, MAGIC, STRING, VERSION
from tel_edge.runtime.files.gguf_model import ALIGNMENT, FLOAT32, UINT32

# Rows are whole blocks of every type.
WIDTH, INNER, HEADS, SHARED, CONTEXT = 256, 512, 4, 1, 512
F32, Q8_0, Q4_K, Q6_K = 0, 8, 12, 14
# Value type of a list of token types: int32. A token is a text, or controls.
INT32, NORMAL, CONTROL = 5, 1, 3
# Of a square matrix for onnxruntime.
SIDE = 64


def gguf(path: Path) -> None:
    """Write a Llama of one layer whose tokens are bytes, a few hundred kilobytes."""
    chance = random.Random("tiny")
    tokens = [*text_letters(), "ab", "<s>"]
    key = WIDTH // HEADS * SHARED
    shapes: dict[str, tuple[int, Sequence[int]]] = {
        "token_embd.weight": (Q8_0, (WIDTH, len(tokens))),
        "output_norm.weight": (F32, (WIDTH,)),
        "blk.0.attn_norm.weight": (F32, (WIDTH,)),
        "blk.0.attn_q.weight": (Q4_K, (WIDTH, WIDTH)),
        "blk.0.attn_k.weight": (Q4_K, (WIDTH, key)),
        "blk.0.attn_v.weight": (Q6_K, (WIDTH, key)),
        "blk.0.attn_output.weight": (Q4_K, (WIDTH, WIDTH)),
        "blk.0.ffn_norm.weight": (F32, (WIDTH,)),
        "blk.0.ffn_gate.weight": (Q4_K, (WIDTH, INNER)),
        "blk.0.ffn_up.weight": (Q4_K, (WIDTH, INNER)),
        "blk.0.ffn_down.weight": (Q6_K, (INNER, WIDTH)),
    }
    numbers = {
        "context_length": CONTEXT, "embedding_length": WIDTH, "block_count": 1,
        "feed_forward_length": INNER, "attention.head_count": HEADS,
        "attention.head_count_kv": SHARED,
    }  # fmt: skip
    kinds = [CONTROL if token == "<s>" else NORMAL for token in tokens]
    keys = [
        _text_key("general.architecture", "llama"),
        *(_key(f"llama.{name}", UINT32, struct.pack("<I", n)) for name, n in numbers.items()),
        _key("llama.attention.layer_norm_rms_epsilon", FLOAT32, struct.pack("<f", 1e-5)),
        _text_key("tokenizer.ggml.model", "gpt2"),
        _text_key("tokenizer.ggml.pre", "llama-bpe"),
        _list("tokenizer.ggml.tokens", STRING, [_text(token) for token in tokens]),
        _list("tokenizer.ggml.token_type", INT32, [struct.pack("<i", kind) for kind in kinds]),
        _list("tokenizer.ggml.merges", STRING, [_text("a b")]),
        _key("tokenizer.ggml.bos_token_id", UINT32, struct.pack("<I", len(tokens) - 1)),
        _key("tokenizer.ggml.eos_token_id", UINT32, struct.pack("<I", len(tokens) - 1)),
    ]
    head = MAGIC + struct.pack("<IQQ", VERSION, len(shapes), len(keys)) + b"".join(keys)
    data = b""
    for name, (kind, shape) in shapes.items():
        head += _text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head += struct.pack("<IQ", kind, len(data))
        data += _padded(_values(kind, shape, chance))
    path.write_bytes(_padded(head) + data)


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _key(name: str, kind: int, value: bytes) -> bytes:
    return _text(name) + struct.pack("<I", kind) + value


def _text_key(name: str, value: str) -> bytes:
    return _key(name, STRING, _text(value))


def _list(name: str, kind: int, values: Sequence[bytes]) -> bytes:
    return _key(name, ARRAY, struct.pack("<IQ", kind, len(values)) + b"".join(values))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)


def _values(kind: int, shape: Sequence[int], chance: random.Random) -> bytes:
    """Return a tensor: norms of ones, the rest random with a deviation of about a sixteenth."""
    count = shape[0] * (shape[1] if len(shape) > 1 else 1)
    if kind == F32:
        return struct.pack("<f", 1.0) * count
    length, _ = BLOCKS[kind]
    return b"".join(_block(kind, chance) for _ in range(count // length))


def _block(kind: int, chance: random.Random) -> bytes:
    """Return a block: its scales, which have to be small, and random bytes for the rest."""
    rest = BLOCKS[kind][1] - {Q8_0: 2, Q4_K: 4, Q6_K: 2}[kind]
    values = chance.randbytes(rest)
    if kind == Q8_0:
        return struct.pack("<e", 8e-4) + values
    if kind == Q4_K:
        # The offset takes back what the mean of the values is.
        return struct.pack("<ee", 2.5e-4, 7.5 * 2.5e-4) + values
    return values + struct.pack("<e", 6.2e-5)


def onnx() -> tuple[bytes, list[list[float]], list[list[float]]]:
    """Return a model that multiplies [2, SIDE] by a matrix, an input for it and what is to come."""
    chance = random.Random("tiny")
    given = [[chance.uniform(-1, 1) for _ in range(SIDE)] for _ in range(2)]
    matrix = [[chance.uniform(-1, 1) for _ in range(SIDE)] for _ in range(SIDE)]
    made = [
        [sum(row[at] * matrix[at][to] for at in range(SIDE)) for to in range(SIDE)] for row in given
    ]
    raw = b"".join(struct.pack(f"<{SIDE}f", *row) for row in matrix)
    weights = _field(1, SIDE) + _field(1, SIDE) + _field(2, 1) + _field(8, "w") + _field(9, raw)
    node = _field(1, "x") + _field(1, "w") + _field(2, "y") + _field(4, "MatMul")
    graph = (
        _field(1, node) + _field(2, "tiny") + _field(5, weights)
        + _field(11, _named("x")) + _field(12, _named("y"))
    )  # fmt: skip
    return _field(1, 8) + _field(8, _field(2, 13)) + _field(7, graph), given, made


def _named(name: str) -> bytes:
    """Return a ValueInfoProto: a float tensor of [2, SIDE]."""
    shape = b"".join(_field(1, _field(1, size)) for size in (2, SIDE))
    return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, shape)))


def _field(number: int, value: int | str | bytes) -> bytes:
    """Return a field of a message: a whole number, or a text or message with its length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    made = b""
    while value > 0x7F:
        made += bytes([value & 0x7F | 0x80])
        value >>= 7
    return made + bytes([value])
