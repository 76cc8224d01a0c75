"""A check of an ONNX adapter file, and of whether it fits its backbone, before it is loaded.

Source: onnxruntime's adapter_schema.fbs and flatbuffers' internals document. onnxruntime verifies
the offsets itself, but neither that a tensor's data is as long as its dims say, nor that a
parameter has dims and data at all, and it knows nothing of the backbone an adapter was made for.
"""

from __future__ import annotations

import mmap
import re
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files.onnx_header import OnnxHeader

IDENTIFIER = b"TORT"
FORMAT_VERSION = 1
FLOAT = 1
FLOAT_BYTES = 4

# Offsets have 32 bits, and flatbuffers keeps files below 2 GB.
MOST_BYTES = (1 << 31) - 1
MOST_TENSORS = 100_000
MOST_DIMENSIONS = 8
MOST_NAME = 1_024

# The backbone's metadata that holds the SHA-256 of its weights, in hex.
WEIGHTS = "tel_edge.backbone.weights"

AGAIN = "export it again: tel-export --format onnx"


@dataclass(frozen=True)
class AdapterHeader:
    """`tensors` maps a name to its dims; all are float32. `model_version` is the `stamp`."""

    adapter_version: int
    model_version: int
    tensors: Mapping[str, tuple[int, ...]]


class _Buffer:
    """Reads little-endian values of a flatbuffer, aligned and never past the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data

    def number(self, at: int, code: str = "I") -> int:
        size = struct.calcsize("<" + code)
        if at < 0 or at + size > len(self.data) or at % size:
            raise InputError(f"truncated or damaged: byte {at:,} is asked for")
        return int(struct.unpack_from("<" + code, self.data, at)[0])

    def follow(self, at: int) -> int:
        """Return where the offset at a byte leads."""
        return at + self.number(at)

    def vector(self, at: int, width: int, most: int) -> tuple[int, int]:
        """Return where the elements of a vector begin and how many there are."""
        count, start = self.number(at), at + 4
        if count > most or start + count * width > len(self.data) or start % min(width, 8):
            raise InputError(f"truncated or damaged: {count:,} elements at byte {at:,}")
        return start, count

    def table(self, at: int) -> _Table:
        vtable = at - self.number(at, "i")
        size, whole = self.number(vtable, "H"), self.number(vtable + 2, "H")
        if size < 4 or size % 2 or vtable + size > len(self.data) or at + whole > len(self.data):
            raise InputError(f"truncated or damaged: a table at byte {at:,}")
        return _Table(self, at, vtable, size, whole)


@dataclass(frozen=True)
class _Table:
    """A table at byte `at` of `whole` bytes, with a vtable of `size` bytes."""

    buffer: _Buffer
    at: int
    vtable: int
    size: int
    whole: int

    def place(self, index: int) -> int | None:
        """Return where the field of 4 bytes with that index is, or None where it is left out."""
        entry = 4 + 2 * index
        offset = self.buffer.number(self.vtable + entry, "H") if entry + 2 <= self.size else 0
        if not offset:
            return None
        if not 4 <= offset <= self.whole - 4:
            raise InputError(f"truncated or damaged: a field of the table at byte {self.at:,}")
        return self.at + offset

    def integer(self, index: int) -> int:
        """Return an int32; a writer leaves out zeros."""
        place = self.place(index)
        return 0 if place is None else self.buffer.number(place, "i")

    def vector(self, index: int, width: int, most: int) -> tuple[int, int]:
        place = self.place(index)
        if place is None:
            raise InputError(f"damaged: the table at byte {self.at:,} has no field {index}")
        return self.buffer.vector(self.buffer.follow(place), width, most)


def read(path: Path) -> AdapterHeader:
    """Read the header and check that every tensor is float32 and lies inside the file.

    Raises `InputError` with the file and the reason.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise InputError("is no file")
        if not 12 <= found.st_size <= MOST_BYTES:
            raise InputError(f"no ONNX adapter, {found.st_size:,} bytes")
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return _adapter(_Buffer(data))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}; {AGAIN}") from None


def _adapter(buffer: _Buffer) -> AdapterHeader:
    if buffer.data[4:8] != IDENTIFIER:
        raise InputError("no ONNX adapter (wrong identifier)")
    table = buffer.table(buffer.follow(0))
    if (version := table.integer(0)) != FORMAT_VERSION:
        raise InputError(f"adapter format {version}, {FORMAT_VERSION} is read")
    start, count = table.vector(3, 4, MOST_TENSORS)
    tensors: dict[str, tuple[int, ...]] = {}
    for at in range(start, start + 4 * count, 4):
        name, dims = _parameter(buffer, buffer.table(buffer.follow(at)))
        if name in tensors:
            raise InputError(f"tensor {name!r} twice")
        tensors[name] = dims
    return AdapterHeader(table.integer(1), table.integer(2), tensors)


def _parameter(buffer: _Buffer, table: _Table) -> tuple[str, tuple[int, ...]]:
    start, count = table.vector(0, 1, MOST_NAME)
    # onnxruntime's check asks for the zero byte that ends a string.
    if buffer.data[start + count : start + count + 1] != b"\0" or not count:
        raise InputError(f"damaged: a name at byte {start:,}")
    try:
        name = buffer.data[start : start + count].decode()
    except UnicodeDecodeError:
        raise InputError(f"damaged: no UTF-8 at byte {start:,}") from None
    start, count = table.vector(1, 8, MOST_DIMENSIONS)
    dims = struct.unpack_from(f"<{count}q", buffer.data, start)
    if any(dim < 1 for dim in dims):
        raise InputError(f"tensor {name!r}: dims {list(dims)} cannot be")
    if (kind := table.integer(2)) != FLOAT:
        raise InputError(f"tensor {name!r}: type number {kind}, {FLOAT} (float32) is read")
    _, size = table.vector(3, 1, MOST_BYTES)
    if size != prod(dims) * FLOAT_BYTES:
        raise InputError(
            f"tensor {name!r}: {size:,} bytes, its dims make {prod(dims) * FLOAT_BYTES:,}"
        )
    return name, dims


def stamp(weights: str) -> int:
    """Return the first 31 bits of a SHA-256 (64 hex digits) as a non-negative int32.

    It ties an adapter to its backbone: tel-export writes it as the adapter's model version.
    Raises `InputError` for what is no such digest.
    """
    if not re.fullmatch("[0-9a-f]{64}", weights):
        raise InputError(f"{weights[:80]!r} is no SHA-256 of 64 lower-case hex digits")
    return int(weights[:8], 16) >> 1


def check_fit(path: Path, adapter: AdapterHeader, backbone: OnnxHeader, name: str) -> None:
    """Check that an adapter was made for the backbone of that name and fits its inputs.

    A module has two slots: `<module>.lora_A`, dims [in, r], and `<module>.lora_B`, dims [r, out].
    Raises `InputError` with the adapter's file and the reason.
    """
    try:
        weights = backbone.metadata.get(WEIGHTS)
        if weights is not None and adapter.model_version != stamp(weights):
            raise InputError(f"made for another backbone than {name}")
        if not adapter.tensors:
            raise InputError("has no tensors")
        for tensor in adapter.tensors:
            _fit(tensor, adapter.tensors, backbone, name)
        for tensor, dims in adapter.tensors.items():
            other = tensor.removesuffix("A") + "B"
            if tensor.endswith(".lora_A") and dims[1] != adapter.tensors[other][0]:
                rank = adapter.tensors[other][0]
                raise InputError(f"{tensor!r} has rank {dims[1]}, {other!r} has {rank}")
    except InputError as error:
        raise InputError(f"{path}: {error}; {AGAIN}") from None


def _fit(
    tensor: str, tensors: Mapping[str, tuple[int, ...]], backbone: OnnxHeader, name: str
) -> None:
    module, dot, part = tensor.rpartition(".")
    if tensor not in backbone.inputs or not dot or part not in ("lora_A", "lora_B"):
        raise InputError(f"{name} has no slot for {tensor!r}")
    dims, slot = tensors[tensor], backbone.inputs[tensor]
    # A slot of another rank than 2 is none of tel-export's, so nothing fits it.
    if not len(dims) == len(slot) == 2 or any(
        isinstance(want, int) and want != have for have, want in zip(dims, slot, strict=True)
    ):
        raise InputError(f"{tensor!r} has dims {list(dims)}, {name} takes {list(slot)}")
    other = f"{module}.{'lora_B' if part == 'lora_A' else 'lora_A'}"
    if other not in tensors:
        raise InputError(f"{tensor!r} is without {other!r}")
