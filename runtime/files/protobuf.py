"""Protobuf's wire format, read with the standard library alone and with every length checked.

Source: protobuf's encoding documentation. Errors are `InputError` with the byte they are at, to
which the caller adds the file.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping

from tel_edge.runtime.errors import InputError

VARINT, FIXED64, SPAN, FIXED32 = 0, 1, 2, 5


def varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """Read a number of at most 10 bytes and 64 bits; return it and where it ends."""
    value = shift = 0
    for position in range(at, min(end, at + 10)):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position + 1
        shift += 7
    if end - at >= 10:
        raise InputError(f"damaged: a number of more than 10 bytes at byte {at:,}")
    raise InputError(f"truncated or damaged: a number at byte {at:,} has no end")


def fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Read the fields of the message between two bytes.

    Yields (field number, wire type, first, last): `first` is a varint's value, or `first` and
    `last` are where the content begins and ends.
    """
    while at < end:
        tag, start = varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise InputError(f"damaged or no ONNX model: field {number} at byte {at:,}")
        if wire == VARINT:
            value, last = varint(data, start, end)
            yield number, wire, value, last
        else:
            if wire == SPAN:
                size, start = varint(data, start, end)
            elif wire in (FIXED64, FIXED32):
                size = 8 if wire == FIXED64 else 4
            else:
                # Groups, 3 and 4, are not used by ONNX; 6 and 7 do not exist.
                raise InputError(f"damaged or no ONNX model: wire type {wire} at byte {at:,}")
            last = start + size
            if last > end:
                raise InputError(f"truncated or damaged: byte {at:,} leads beyond byte {end:,}")
            yield number, wire, start, last
        at = last


def some(
    data: mmap.mmap, at: int, end: int, wanted: Mapping[int, int]
) -> Iterator[tuple[int, int, int]]:
    """Read the fields with these numbers, which must have these wire types."""
    for number, wire, first, last in fields(data, at, end):
        if number in wanted:
            if wire != wanted[number]:
                raise InputError(f"damaged: wire type {wire} of field {number} at byte {first:,}")
            yield number, first, last


def signed(value: int) -> int:
    """Return a 64-bit number as a signed one."""
    return value - (1 << 64) if value >> 63 else value


def text(data: mmap.mmap, at: int, end: int) -> str:
    """Read a string."""
    try:
        return data[at:end].decode()
    except UnicodeDecodeError:
        raise InputError(f"damaged: no UTF-8 at byte {at:,}") from None


def pair(data: mmap.mmap, at: int, end: int) -> tuple[str, str]:
    """Read a StringStringEntryProto."""
    parts = ["", ""]
    for number, first, last in some(data, at, end, {1: SPAN, 2: SPAN}):
        parts[number - 1] = text(data, first, last)
    return parts[0], parts[1]
