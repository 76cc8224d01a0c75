"""What the tests of onnx header share."""

from __future__ import annotations

from typing import Any


def varint(value: int) -> bytes:
    value %= 1 << 64
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])


def message(*fields: tuple[int, int | str | bytes]) -> bytes:
    """Write protobuf fields: numbers as varints, all else with a length."""
    made = b""
    for number, value in fields:
        if isinstance(value, int):
            made += varint(number << 3) + varint(value)
        else:
            content = value.encode() if isinstance(value, str) else value
            made += varint(number << 3 | 2) + varint(len(content)) + content
    return made


def entry(key: str, value: str) -> bytes:
    return message((1, key), (2, value))


def tensor(*dims: int, kind: int = 1, name: str = "w", **external: Any) -> bytes:
    entries = [(13, entry(key, str(value))) for key, value in external.items()]
    place = [(14, 1)] if external else []
    return message(*((1, dim) for dim in dims), (2, kind), (8, name), *entries, *place)


def model(*graph: tuple[int, int | str | bytes]) -> bytes:
    return message((1, 10), (8, message((1, ""), (2, 21))), (7, message(*graph)))


def external(**entries: Any) -> bytes:
    return tensor(2, 2, **({"location": "x.onnx.data"} | entries))
