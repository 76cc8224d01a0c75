"""Safetensors files, read tensor by tensor through a memory map, with every value checked.

Source of the format: safetensors' README (8 bytes of header length, a JSON header, the data).
Read here with numpy, which has no bfloat16: it is widened to float32 by a shift.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tel_edge.eval.folders.files import check_fetched
from tel_edge.eval.folders.numbers import shown
from tel_edge.runtime.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}
MOST_HEADER = 100_000_000
MOST_SIZE = 1 << 48
HALF_MOST = 65504.0
# Elements widened at a time: 16 MiB of float32.
CHUNK = 1 << 22


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: its file, type (F32, F16, BF16 or one not read), shape, first byte."""

    file: Path
    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)


def listed(file: Path) -> dict[str, Stored]:
    """Return the tensors of a safetensors file by name.

    Raises `InputError` for a file that is truncated, a git-lfs pointer, or whose header does not
    fit its data.
    """
    check_fetched(file)
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > MOST_HEADER or 8 + length > size:
                raise InputError("truncated, or not a safetensors file")
            header = json.loads(stream.read(length), object_pairs_hook=_once)
        header.pop("__metadata__", None)
        found = {name: _stored(file, name, entry, 8 + length) for name, entry in header.items()}
        end = 8 + length + _covered(entry["data_offsets"] for entry in header.values())
        if end > size:
            raise InputError(f"truncated: {size:,} bytes, its header wants {end:,}")
        if end < size:
            raise InputError(f"{size - end:,} bytes behind its last tensor")
    except InputError as error:
        raise InputError(f"{file}: {error}; copy or download it again") from None
    except (ValueError, RecursionError, struct.error, TypeError, KeyError, AttributeError):
        raise InputError(
            f"{file}: damaged, its safetensors header cannot be read; copy or download it again"
        ) from None
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; refuse a name that is there twice, of which readers take either."""
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise InputError(f"{shown(twice)} is twice in its header")
    return made


def _sizes(given: Any) -> bool:
    return isinstance(given, list) and all(type(one) is int and one >= 0 for one in given)


def _covered(places: Iterable[list[int]]) -> int:
    """Return how many bytes the tensors take; as the library, refuse gaps and overlaps."""
    end = 0
    for first, last in sorted(places):
        if first != end:
            raise InputError(f"its tensors leave a gap or overlap at byte {min(first, end):,}")
        end = last
    return end


def _stored(file: Path, name: str, entry: dict[str, Any], start: int) -> Stored:
    kind, shape, places = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or not _sizes(shape) or not _sizes(places) or len(places) != 2:
        raise InputError(f"tensor {shown(name)}: type, shape or place is not what it should be")
    first, last = places
    made = Stored(file, name, kind, tuple(shape), start + first)
    width = WIDTHS.get(made.kind)
    if math.prod(size or 1 for size in shape) >= MOST_SIZE:
        raise InputError(f"tensor {shown(name)}: shape {shown(shape)} is beyond any memory")
    if width and last - first != made.size * width:
        raise InputError(f"tensor {name}: {last - first:,} bytes for shape {list(made.shape)}")
    return made


def floats(tensor: Stored) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the values in order, flat, at most `CHUNK` at a time."""
    import numpy as np

    check_readable(tensor)
    kind = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[tensor.kind]
    if not tensor.size:
        return
    data = np.memmap(tensor.file, kind, "r", tensor.offset, (tensor.size,))
    for at in range(0, tensor.size, CHUNK):
        part = data[at : at + CHUNK]
        if tensor.kind == "BF16":
            yield (part.astype(np.uint32) << 16).view(np.float32)
        else:
            yield part.astype(np.float32)


def check_readable(tensor: Stored) -> None:
    """Raise `InputError` for a type whose values are not read."""
    if tensor.kind not in WIDTHS:
        raise InputError(
            f"{tensor.file}: tensor {tensor.name} is {tensor.kind}; F32, F16 and BF16 are read"
        )


def equal(one: Stored, other: Stored) -> bool:
    """Return whether two tensors have one shape and the same values."""
    import numpy as np

    if one.shape != other.shape or {one.kind, other.kind} - WIDTHS.keys():
        return False
    return all(np.array_equal(a, b) for a, b in zip(floats(one), floats(other), strict=True))


def check(tensor: Stored, half: bool, instead: str) -> None:
    """Raise `InputError` for a value that is not finite or, with `half`, beyond F16.

    `instead` is the option that exports such a value.
    """
    top = _largest(tensor)
    if not math.isfinite(top):
        raise InputError(
            f"{tensor.file}: tensor {tensor.name} has NaN or infinite values; "
            "its training went wrong, or the file is damaged"
        )
    if half and top > HALF_MOST:
        raise InputError(
            f"{tensor.file}: tensor {tensor.name} has values beyond {HALF_MOST:.0f}, the "
            f"largest of F16; export with {instead}"
        )


def _largest(tensor: Stored) -> float:
    """Return the largest magnitude, infinite or NaN where such a value is there.

    Without its sign a float orders as its bits do, with infinity and NaN on top, so one pass over
    whole numbers finds it without widening a value.
    """
    import numpy as np

    check_readable(tensor)
    if not tensor.size:
        return 0.0
    kind, sign = ("<u4", 0x7FFFFFFF) if tensor.kind == "F32" else ("<u2", 0x7FFF)
    data = np.memmap(tensor.file, kind, "r", tensor.offset, (tensor.size,))
    top = max((data[at : at + CHUNK] & sign).max() for at in range(0, tensor.size, CHUNK))
    if tensor.kind == "BF16":
        return float((np.array([top], np.uint32) << 16).view(np.float32)[0])
    return float(np.array([top], kind).view("<f4" if tensor.kind == "F32" else "<f2")[0])


def whole(tensor: Stored, kind: str) -> npt.NDArray[Any]:
    """Return the tensor in its shape as F32, F16 or BF16 (as uint16); memory is that array's."""
    import numpy as np

    made = np.empty(tensor.size, {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[kind])
    at = 0
    for part in floats(tensor):
        made[at : at + part.size] = rounded(part) if kind == "BF16" else part
        at += part.size
    return made.reshape(tensor.shape)


def rounded(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return finite float32 values as bfloat16 bits, to the nearest, ties to even."""
    import numpy as np

    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
