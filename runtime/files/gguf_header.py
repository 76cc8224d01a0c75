"""A check of a GGUF file's header before native code opens the file.

Source: ggml's docs/gguf.md (version 3). Counts, lengths and offsets are compared with the file's
size, so that a damaged or hostile file is refused here and not by a crash of the loader.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import gguf_model
from tel_edge.runtime.files.gguf_model import Header

MAGIC = b"GGUF"
VERSION = 3
MOST_TENSORS = 100_000
MOST_KEYS = 10_000
MOST_DEPTH = 2
TOKENS = gguf_model.TOKENS

# Value types by number: struct code of the fixed-size ones; 8 is a string, 9 an array.
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9

# (elements in a block, bytes of a block) by tensor type number, from ggml.h and ggml-common.h.
BLOCKS = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    20: (32, 18),
    23: (256, 136),
    30: (1, 2),
}
# The same of types that only others export: IQ1 to IQ3 and MXFP4, in files of reference models.
FOREIGN = {
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    21: (256, 110),
    22: (256, 82),
    29: (256, 56),
    39: (32, 17),
}

# The type of a GGUF file by the number in `general.file_type`; source: `llama_ftype` of llama.h.
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS",
    20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16",
    38: "MXFP4_MOE",
}  # fmt: skip


class _Reader:
    """Reads little-endian values and never past the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0
        self.bytes = 0

    def take(self, size: int) -> bytes:
        if size < 0 or self.at + size > len(self.data):
            raise InputError(f"truncated at byte {len(self.data):,}")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self, most: int = 1 << 24) -> str:
        size = self.number("Q")
        if size > most:
            raise InputError(f"a string of {size:,} bytes at byte {self.at:,}")
        return self.take(size).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY or depth >= MOST_DEPTH:
            raise InputError(f"value type {kind} at byte {self.at:,}")
        inner, count = self.number("I"), self.number("Q")
        if inner in SCALARS:
            self.take(count * struct.calcsize("<" + SCALARS[inner]))
        else:
            # Each element takes at least its length, so a count beyond the file cannot loop long.
            if count * 8 > len(self.data):
                raise InputError(f"an array of {count:,} elements at byte {self.at:,}")
            if inner == STRING:
                for _ in self.strings(count):
                    pass
            else:
                for _ in range(count):
                    self.value(inner, depth + 1)
        return count

    def strings(self, count: int) -> Iterator[bytes]:
        """Read that many strings; a vocabulary has hundreds of thousands, so in one loop."""
        data, at, end, length = self.data, self.at, len(self.data), struct.Struct("<Q").unpack_from
        for _ in range(count):
            start = at + 8
            at = start + length(data, at)[0] if start <= end else end + 1
            if at > end:
                raise InputError(f"truncated at byte {end:,}")
            yield data[start:at]
        self.at = at

    def tokens(self) -> int:
        """Read the array of tokens; equal ones abort the process that loads them."""
        inner, count = self.number("I"), int(self.number("Q"))
        if inner != STRING or count * 8 > len(self.data):
            raise InputError(f"{TOKENS} is no array of {count:,} strings")
        # An empty one gets a name.
        named = {text or b"[EMPTY_%d]" % at for at, text in enumerate(self.strings(count))}
        if len(named) < count:
            raise InputError(f"{TOKENS} has a token twice")
        self.bytes = sum(b"<0x%02X>" % byte in named for byte in range(256))
        return count


def check(path: Path) -> Header:
    """Read the header and check that every tensor lies inside the file and fits the numbers.

    Raises `InputError` with the file and the reason.
    """
    try:
        with path.open("rb") as stream:
            if path.stat().st_size < 24:
                raise InputError("too short for a GGUF file")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _check(_Reader(data), len(data))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}; export it again") from None


def whole(path: Path) -> Header:
    """Check the header of a file that is all of its model; see `check`.

    Raises `InputError` for one of several parts too: the engine would open the others, which nobody
    has looked at.
    """
    made = check(path)
    if made.metadata.get("split.count", 1) not in (0, 1):
        raise InputError(f"{path}: one of several parts; join them: llama-gguf-split --merge")
    return made


def file_type(metadata: Mapping[str, Any]) -> str:
    """Return the type that a file says it is of, by llama.cpp's name, "gguf" where it is none."""
    number = metadata.get("general.file_type")
    return FILE_TYPES.get(number, "gguf") if isinstance(number, int) else "gguf"


def _check(reader: _Reader, size: int) -> Header:
    if reader.take(4) != MAGIC:
        raise InputError("no GGUF file (wrong magic)")
    if (version := reader.number("I")) != VERSION:
        raise InputError(f"GGUF version {version}, {VERSION} is read")
    tensors, keys = reader.number("Q"), reader.number("Q")
    if tensors > MOST_TENSORS or keys > MOST_KEYS:
        raise InputError(f"{tensors:,} tensors and {keys:,} keys cannot be")
    metadata: dict[str, Any] = {}
    kinds: dict[str, int] = {}
    for _ in range(keys):
        name = reader.string(65_535)
        if name in kinds:
            raise InputError(f"key {name[:200]!r} twice")
        kinds[name] = reader.number("I")
        whole = name == TOKENS and kinds[name] == ARRAY
        metadata[name] = reader.tokens() if whole else reader.value(kinds[name])
    spans: dict[str, tuple[list[int], int, int]] = {}
    for _ in range(tensors):
        name = reader.string(65_535)
        dimensions = reader.number("I")
        if not 1 <= dimensions <= 4:
            raise InputError(f"tensor {name}: {dimensions} dimensions")
        if name in spans:
            raise InputError(f"tensor {name[:200]!r} twice")
        shape = [reader.number("Q") for _ in range(dimensions)]
        spans[name] = shape, reader.number("I"), reader.number("Q")
    alignment = metadata.get("general.alignment", gguf_model.ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise InputError(f"general.alignment {alignment!r}")
    start = -(-reader.at // alignment) * alignment
    for name, (shape, kind, offset) in spans.items():
        if start + offset + _bytes(name, shape, kind) > size:
            raise InputError(f"truncated: tensor {name} ends past the file's {size:,} bytes")
        if offset % alignment:
            raise InputError(f"tensor {name}: offset {offset} is not aligned")
    made = Header(
        metadata,
        kinds,
        {name: tuple(shape) for name, (shape, _, _) in spans.items()},
        {name: kind for name, (_, kind, _) in spans.items()},
        reader.bytes,
    )
    gguf_model.check(made)
    return made


def _bytes(name: str, shape: list[int], kind: int) -> int:
    known = BLOCKS | FOREIGN
    if kind not in known:
        raise InputError(f"tensor {name}: type number {kind} is none that this version reads")
    block, width = known[kind]
    elements = 1
    for length in shape:
        elements *= length
    if not elements or shape[0] % block:
        raise InputError(f"tensor {name}: shape {shape} does not fit its type")
    return elements // block * width
