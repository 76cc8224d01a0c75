"""The check of a GGUF header: good files pass, damaged ones are refused and nothing else."""

from __future__ import annotations

import random
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import gguf_header
from tel_edge.runtime.files.gguf_header import Header, check


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of the reference writer, with every kind of value and three types of tensors."""
    from gguf import GGMLQuantizationType, GGUFWriter

    path = tmp_path_factory.mktemp("gguf") / "good.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_string("text", "naïve")
    writer.add_uint32("count", 7)
    writer.add_float32("rate", 0.5)
    writer.add_bool("flag", True)
    writer.add_uint64("large", 1 << 40)
    writer.add_array("tokens", ["a", "bb", "", "dddd"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_tensor("plain", np.ones((3, 32), np.float32))
    writer.add_tensor("half", np.ones((2, 5), np.float16))
    blocks = np.zeros((4, 34 * 2), np.uint8)
    writer.add_tensor("quantized", blocks, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def checked(content: bytes, folder: Path) -> Header:
    path = folder / "x.gguf"
    path.write_bytes(content)
    return check(path)


def test_a_good_file_passes(good: bytes, tmp_path: Path) -> None:
    header = checked(good, tmp_path)
    assert header.tensors == ("plain", "half", "quantized")
    assert header.metadata == {
        "general.architecture": "llama",
        "text": "naïve",
        "count": 7,
        "rate": 0.5,
        "flag": True,
        "large": 1 << 40,
        "tokens": 4,
        "numbers": 3,
    }


def test_a_cut_file_is_refused_wherever_it_is_cut(good: bytes, tmp_path: Path) -> None:
    # The reference writer pads the last tensor, so some bytes of the end may be missing.
    for size in [*range(0, len(good) - 64, 7), len(good) - 64]:
        with pytest.raises(InputError, match=r"x\.gguf: .*; export it again"):
            checked(good[:size], tmp_path)


def test_changed_bytes_are_refused_or_harmless(good: bytes, tmp_path: Path) -> None:
    rng = random.Random(7)
    refused = 0
    began = time.process_time()
    # The data of the tensors is not read, so only what is before it is changed.
    head = len(good) - 4 * 34 * 2 - 64 - 3 * 32 * 4
    for _ in range(600):
        content = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(head)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        try:
            checked(bytes(content), tmp_path)
        except InputError:
            refused += 1
    assert refused > 200
    assert time.process_time() - began < 20


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def head(tensors: int, *keys: bytes, version: int = 3, count: int | None = None) -> bytes:
    number = len(keys) if count is None else count
    return b"GGUF" + struct.pack("<IQQ", version, tensors, number) + b"".join(keys)


def tensor(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return struct.pack("<Q", len(name)) + name + sizes + struct.pack("<IQ", kind, offset)


HUGE = 2**64 - 1
ALIGNED = key(b"general.alignment", 4, struct.pack("<I", 32))
HOSTILE: dict[str, tuple[bytes, str]] = {
    "short": (b"GGUF", "too short"),
    "magic": (b"GGML" + bytes(40), "wrong magic"),
    "version": (head(0, version=2) + bytes(40), "GGUF version 2, 3 is read"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(40), "GGUF version"),
    "tensors": (head(HUGE) + bytes(40), "tensors and 0 keys cannot be"),
    "keys": (head(0, count=HUGE) + bytes(40), "keys cannot be"),
    "key length": (head(0, struct.pack("<Q", HUGE)) + bytes(40), "a string of"),
    "string length": (head(0, key(b"k", 8, struct.pack("<Q", 1 << 40))), "a string of"),
    "array of numbers": (
        head(0, key(b"k", 9, struct.pack("<IQ", 10, HUGE))) + bytes(40), "truncated"
    ),
    "array of strings": (
        head(0, key(b"k", 9, struct.pack("<IQ", 8, 1 << 50))) + bytes(40), "an array of"
    ),
    "arrays in arrays": (
        head(0, key(b"k", 9, struct.pack("<IQIQIQ", 9, 1, 9, 1, 9, 1))) + bytes(40), "value type 9"
    ),
    "value type": (head(0, key(b"k", 99, bytes(8))), "value type 99"),
    "no dimensions": (head(1) + tensor(b"t", (), 0, 0) + bytes(40), "0 dimensions"),
    "dimensions": (head(1) + tensor(b"t", (1,) * 5, 0, 0) + bytes(40), "5 dimensions"),
    "tensor type": (head(1) + tensor(b"t", (4,), 77, 0) + bytes(40), "type number 77"),
    "shape": (head(1) + tensor(b"t", (33,), 8, 0) + bytes(80), "does not fit its type"),
    "nothing": (head(1) + tensor(b"t", (0,), 0, 0) + bytes(80), "does not fit its type"),
    "product": (head(1) + tensor(b"t", (1 << 62,) * 4, 0, 0) + bytes(80), "ends past the file's"),
    "offset": (head(1) + tensor(b"t", (4,), 0, HUGE - 31) + bytes(80), "ends past the file's"),
    "unaligned": (head(1) + tensor(b"t", (4,), 0, 8) + bytes(200), "offset 8 is not aligned"),
    "alignment": (head(0, ALIGNED[:-4] + struct.pack("<I", 24)), "general.alignment 24"),
    "no alignment": (head(0, ALIGNED[:-4] + struct.pack("<I", 0)), "general.alignment 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_is_refused_at_once(name: str, tmp_path: Path) -> None:
    content, reason = HOSTILE[name]
    began = time.process_time()
    with pytest.raises(InputError) as caught:
        checked(content, tmp_path)
    assert reason in str(caught.value)
    assert time.process_time() - began < 0.5


def test_a_named_alignment_is_used(tmp_path: Path) -> None:
    wide = ALIGNED[:-4] + struct.pack("<I", 64)
    made = head(1, wide) + tensor(b"t", (4,), 0, 64)
    made += bytes(-len(made) % 64 + 64 + 16)
    assert checked(made, tmp_path).tensors == ("t",)
    with pytest.raises(InputError, match="ends past"):
        checked(made[:-1], tmp_path)


def test_a_token_twice_is_refused(tmp_path: Path) -> None:
    """llama.cpp aborts the whole process for it."""
    import gguf

    for tokens in (["a", "b"], ["a", "a"]):
        writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
        writer.add_array("tokenizer.ggml.tokens", tokens)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        if tokens[0] == tokens[1]:
            with pytest.raises(InputError, match="has a token twice"):
                check(tmp_path / "t.gguf")
        else:
            assert check(tmp_path / "t.gguf").metadata["tokenizer.ggml.tokens"] == 2


def test_types_are_those_of_ggml() -> None:
    sizes = pytest.importorskip("gguf.constants").GGML_QUANT_SIZES
    known = {int(kind): size for kind, size in sizes.items()}
    every = gguf_header.BLOCKS | gguf_header.FOREIGN
    assert every == {kind: known[kind] for kind in every}
    assert not gguf_header.BLOCKS.keys() & gguf_header.FOREIGN.keys()
