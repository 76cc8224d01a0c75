"""The check of an ONNX adapter: its file, and whether it fits a backbone."""

from __future__ import annotations

import hashlib
import random
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import onnx_adapter
from tel_edge.runtime.files.onnx_adapter import AdapterHeader, check_fit, read, stamp
from tel_edge.runtime.files.onnx_header import OnnxHeader

# What onnxruntime 1.31.1 writes for "x", dims [2], ones, and the model version 2**31 - 1.
GOLDEN = bytes.fromhex(
    "18000000 544f5254 00000000 0c001000 04000000 08000c00"  # root, identifier, root's vtable
    "0c000000 01000000 ffffff7f 04000000 01000000 10000000"  # root, at 24; parameters, at 40
    "0c001400 04000800 0c001000"  # vtable of the parameter, at 48
    "0c000000 28000000 18000000 01000000 04000000"  # parameter, at 60
    "08000000 0000803f 0000803f"  # raw data, at 80
    "01000000 02000000 00000000"  # dims, at 92
    "01000000 78000000"  # name, at 104
)


def written(path: Path, tensors: dict[str, Any], version: int = 3, model: int = 77) -> Path:
    onnxruntime = pytest.importorskip("onnxruntime")
    values = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in tensors.items()
    }
    adapter = onnxruntime.AdapterFormat()
    adapter.set_adapter_version(version)
    adapter.set_model_version(model)
    adapter.set_parameters(values)
    adapter.export_adapter(str(path))
    return path


def checked(content: bytes, folder: Path) -> AdapterHeader:
    path = folder / "x.onnx_adapter"
    path.write_bytes(content)
    return read(path)


def changed(at: int, code: str, value: int, content: bytes = GOLDEN) -> bytes:
    made = bytearray(content)
    struct.pack_into("<" + code, made, at, value)
    return bytes(made)


def test_the_golden_file_is_read(tmp_path: Path) -> None:
    assert checked(GOLDEN, tmp_path) == AdapterHeader(0, 2**31 - 1, {"x": (2,)})


def test_the_golden_file_is_still_what_onnxruntime_writes(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    path = written(tmp_path / "x", {"x": np.ones(2, np.float32)}, 0, 2**31 - 1)
    assert path.read_bytes() == GOLDEN


def test_adapters_of_onnxruntime_are_read(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    shapes = {
        f"model.layers.{layer}.q.lora_{part}": shape
        for layer in range(40)
        for part, shape in (("A", (24 + layer, 8)), ("B", (8, 3)))
    }
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    header = read(written(tmp_path / "x", tensors))
    assert header == AdapterHeader(3, 77, shapes)
    # Zeros are left out of the file; a negative version is not one that `stamp` makes.
    assert read(written(tmp_path / "x", {}, 0, 0)) == AdapterHeader(0, 0, {})
    assert read(written(tmp_path / "x", {}, -1, -5)) == AdapterHeader(-1, -5, {})


def test_other_types_and_empty_tensors_are_refused(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    half = written(tmp_path / "x", {"h": np.ones((2, 2), np.float16)})
    with pytest.raises(InputError, match=r"tensor 'h': type number 10, 1 \(float32\) is read"):
        read(half)
    empty = written(tmp_path / "x", {"e": np.ones((0, 2), np.float32)})
    with pytest.raises(InputError, match=r"tensor 'e': dims \[0, 2\] cannot be"):
        read(empty)


# The list with the same parameter twice; 8 more bytes, so that all stays aligned.
TWICE = GOLDEN[:40] + struct.pack("<IIII", 2, 24, 20, 0) + GOLDEN[48:]

HUGE = 2**32 - 1
HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no ONNX adapter, 0 bytes"),
    "short": (b"\0\0\0\0TORT", "no ONNX adapter, 8 bytes"),
    "identifier": (GOLDEN.replace(b"TORT", b"ORTM"), "wrong identifier"),
    "root": (changed(0, "I", 4000), "byte 4,000 is asked for"),
    "huge root": (changed(0, "I", HUGE - 3), "is asked for"),
    "unaligned root": (changed(0, "I", 25), "byte 25 is asked for"),
    "vtable before": (changed(24, "i", 1000), "byte -976 is asked for"),
    "vtable behind": (changed(24, "i", -1000), "byte 1,024 is asked for"),
    "short vtable": (changed(12, "H", 2), "a table at byte 24"),
    "odd vtable": (changed(12, "H", 13), "a table at byte 24"),
    "long vtable": (changed(12, "H", 4000), "a table at byte 24"),
    "long table": (changed(14, "H", 4000), "a table at byte 24"),
    "field": (changed(16, "H", 16), "a field of the table at byte 24"),
    "field on the vtable's offset": (changed(16, "H", 2), "a field of the table at byte 24"),
    "unaligned field": (changed(16, "H", 5), "byte 29 is asked for"),
    "format": (changed(28, "I", 2), "adapter format 2, 1 is read"),
    "no format": (changed(16, "H", 0), "adapter format 0, 1 is read"),
    "no parameters": (changed(22, "H", 0), "no field 3"),
    "parameters": (changed(36, "I", 4000), "is asked for"),
    "count": (changed(40, "I", 100), "100 elements at byte 40"),
    "huge count": (changed(40, "I", HUGE), "elements at byte 40"),
    "parameter": (changed(44, "I", 4000), "is asked for"),
    "no name": (changed(52, "H", 0), "no field 0"),
    "no dims": (changed(54, "H", 0), "no field 1"),
    "no type": (changed(56, "H", 0), "tensor 'x': type number 0"),
    "no data": (changed(58, "H", 0), "no field 3"),
    "empty name": (changed(104, "I", 0), "a name at byte 108"),
    "name without an end": (changed(109, "B", 65), "a name at byte 108"),
    "long name": (changed(104, "I", 5), "5 elements at byte 104"),
    "name not UTF-8": (changed(108, "B", 0xFF), "no UTF-8 at byte 108"),
    "many dims": (changed(92, "I", 9), "9 elements at byte 92"),
    "dims beyond": (changed(92, "I", 3), "3 elements at byte 92"),
    "unaligned dims": (changed(68, "I", 20), "elements at byte 88"),
    "negative dim": (changed(96, "q", -2), "dims [-2] cannot be"),
    "other dim": (changed(96, "q", 3), "tensor 'x': 8 bytes, its dims make 12"),
    "huge dim": (changed(96, "q", 2**62), "8 bytes, its dims make"),
    "dim that overflows": (changed(96, "q", 2**62 + 2), "8 bytes, its dims make"),
    "other size": (changed(80, "I", 4), "4 bytes, its dims make 8"),
    "size beyond": (changed(80, "I", 100), "100 elements at byte 80"),
    "type": (changed(72, "I", 10), "type number 10, 1 (float32) is read"),
    "twice": (TWICE, "tensor 'x' twice"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_is_refused_at_once(name: str, tmp_path: Path) -> None:
    content, reason = HOSTILE[name]
    began = time.process_time()
    with pytest.raises(InputError, match=r"x\.onnx_adapter: .*; export it again: tel-export") as it:
        checked(content, tmp_path)
    assert reason in str(it.value)
    assert time.process_time() - began < 0.5


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.onnx_adapter: No such file"):
        read(tmp_path / "none.onnx_adapter")
    with pytest.raises(InputError, match="is no file"):
        read(tmp_path)


def test_a_file_of_more_than_two_gigabytes_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as stream:
        stream.truncate(1 << 31)
    with pytest.raises(InputError, match="no ONNX adapter, 2,147,483,648 bytes"):
        read(tmp_path / "x")


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    # The last two bytes only fill up.
    assert checked(GOLDEN[:-2], tmp_path)
    for size in range(len(GOLDEN) - 2):
        with pytest.raises(InputError, match="x"):
            checked(GOLDEN[:size], tmp_path)


def fuzzed(content: bytes, folder: Path, turns: int) -> int:
    """Change or cut the content at random places; return how many times it was refused."""
    rng, refused = random.Random(7), 0
    for turn in range(turns):
        made = bytearray(content)
        at = rng.randrange(len(content))
        if turn % 3:
            made[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, made[at] ^ 1 << rng.randrange(8)))
        else:
            del made[at : len(content) if turn % 2 else at + rng.randint(1, 8)]
        try:
            checked(bytes(made), folder)
        except InputError:
            refused += 1
    return refused


def test_changed_bytes_are_refused_or_harmless(tmp_path: Path) -> None:
    began = time.process_time()
    assert fuzzed(GOLDEN, tmp_path, 300) > 150
    assert time.process_time() - began < 3


def test_changed_bytes_of_onnxruntime_are_refused_or_harmless(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    pair = {"m.lora_A": np.ones((2, 3), np.float32), "m.lora_B": np.ones((3, 4), np.float32)}
    began = time.process_time()
    assert fuzzed(written(tmp_path / "x", pair).read_bytes(), tmp_path, 300) > 100
    assert time.process_time() - began < 3


def test_a_stamp_is_31_bits_of_the_digest() -> None:
    assert stamp("f" * 64) == 2**31 - 1
    assert stamp("0" * 7 + "3" + "f" * 56) == 1
    digest = hashlib.sha256(b"weights")
    assert stamp(digest.hexdigest()) == int.from_bytes(digest.digest()[:4], "big") >> 1
    for wrong in ("", "f" * 63, "F" * 64, "f" * 64 + "\n", "0x" + "f" * 62, "+" + "f" * 63):
        with pytest.raises(InputError, match=r"is no SHA-256"):
            stamp(wrong)


WEIGHTS = "12345678" + "9" * 56


def backbone(weights: str | None = WEIGHTS) -> OnnxHeader:
    inputs = {
        "ids": ("batch", "length"),
        "p.lora_A": (6, "r"),
        "p.lora_B": ("r", 4),
        "q.lora_A": (4, "q_rank"),
        "q.lora_B": (None, 6),
        "odd.lora_A": (4,),
        "odd.lora_B": ("r", 4),
        "lora_A": (4, "r"),
    }
    metadata = {} if weights is None else {onnx_adapter.WEIGHTS: weights}
    return OnnxHeader(inputs, ("out",), frozenset(), metadata, {"": 21}, ())


def adapter(model: int = stamp(WEIGHTS), **tensors: tuple[int, ...]) -> AdapterHeader:
    return AdapterHeader(
        1, model, {key.replace("_", ".", 1): dims for key, dims in tensors.items()}
    )


P = {"p_lora_A": (6, 8), "p_lora_B": (8, 4)}
Q = {"q_lora_A": (4, 2), "q_lora_B": (2, 6)}


def test_adapters_that_fit_pass() -> None:
    for fits in (P, Q, P | Q):
        check_fit(Path("x"), adapter(**fits), backbone(), "small.onnx")
    # A backbone that does not say which one it is takes what fits.
    check_fit(Path("x"), adapter(7, **P), backbone(None), "small.onnx")


WRONG: dict[str, tuple[AdapterHeader, OnnxHeader, str]] = {
    "other backbone": (adapter(7, **P), backbone(), "made for another backbone than small.onnx"),
    "no digest": (adapter(**P), backbone("no digest"), "'no digest' is no SHA-256"),
    "no tensors": (adapter(), backbone(), "has no tensors"),
    "no slot": (adapter(r_lora_A=(6, 8)), backbone(), "small.onnx has no slot for 'r.lora_A'"),
    "no LoRA": (adapter(ids=(6, 8)), backbone(), "small.onnx has no slot for 'ids'"),
    "no module": (
        AdapterHeader(1, stamp(WEIGHTS), {"lora_A": (4, 8)}), backbone(), "no slot for 'lora_A'"
    ),
    "only A": (adapter(p_lora_A=(6, 8)), backbone(), "'p.lora_A' is without 'p.lora_B'"),
    "only B": (adapter(**P, q_lora_B=(2, 6)), backbone(), "'q.lora_B' is without 'q.lora_A'"),
    "dims of A": (
        adapter(p_lora_A=(5, 8), p_lora_B=(8, 4)), backbone(),
        "'p.lora_A' has dims [5, 8], small.onnx takes [6, 'r']",
    ),
    "dims of B": (
        adapter(p_lora_A=(6, 8), p_lora_B=(4, 8)), backbone(),
        "'p.lora_B' has dims [4, 8], small.onnx takes ['r', 4]",
    ),
    "three dims": (adapter(p_lora_A=(6, 8, 1), p_lora_B=(8, 4)), backbone(), "dims [6, 8, 1]"),
    "scalar": (adapter(p_lora_A=(6, 8), p_lora_B=()), backbone(), "'p.lora_B' has dims []"),
    "slot": (adapter(odd_lora_A=(4,), odd_lora_B=(8, 4)), backbone(), "small.onnx takes [4]"),
    "ranks": (
        adapter(p_lora_A=(6, 8), p_lora_B=(7, 4)), backbone(),
        "'p.lora_A' has rank 8, 'p.lora_B' has 7",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_adapters_that_do_not_fit_are_refused(name: str) -> None:
    header, base, reason = WRONG[name]
    with pytest.raises(InputError, match=r"^x\.onnx_adapter: .*; export it again: ") as caught:
        check_fit(Path("x.onnx_adapter"), header, base, "small.onnx")
    assert reason in str(caught.value)
