"""A check of an ONNX model and its external data before native code opens them.

Source: onnx's onnx.proto (the field numbers) and protobuf's wire format. The file is walked with
the standard library alone, so a device needs no `onnx`. Lengths are compared with the message they
are in and external data with the file beside the model, so that a damaged or hostile model is
refused here; what is inside a node is read only where external data can hide in it.
"""

from __future__ import annotations

import mmap
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import protobuf
from tel_edge.runtime.files.protobuf import SPAN, VARINT

# A protobuf message has at most this many bytes.
MOST_BYTES = (1 << 31) - 1
MOST_DIMENSIONS = 32
MOST_DEPTH = 32

AGAIN = "export it again: tel-export --format onnx"
# The file beside a model that its engine reads the tokenizer from.
TOKENIZER = "tokenizer.json"

# Bits of an element by TensorProto.DataType; strings (8) have no fixed size and stay in the model.
BITS = {
    1: 32,  # float
    2: 8,  # uint8
    3: 8,  # int8
    4: 16,  # uint16
    5: 16,  # int16
    6: 32,  # int32
    7: 64,  # int64
    9: 8,  # bool
    10: 16,  # float16
    11: 64,  # double
    12: 32,  # uint32
    13: 64,  # uint64
    14: 64,  # complex64
    15: 128,  # complex128
    16: 16,  # bfloat16
    17: 8,  # float8e4m3fn
    18: 8,  # float8e4m3fnuz
    19: 8,  # float8e5m2
    20: 8,  # float8e5m2fnuz
    21: 4,  # uint4
    22: 4,  # int4
    23: 4,  # float4e2m1
    24: 8,  # float8e8m0
    25: 2,  # uint2
    26: 2,  # int2
}

# The keys of external data; further ones, such as onnxruntime's own prepacked weights, would name
# places in the data file that are not checked.
KEYS = {"location", "offset", "length", "checksum"}

# Where a tensor can be below a message: the message's kind -> field number -> kind of the field.
BELOW: Mapping[str, Mapping[int, str]] = {
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
}
# The ones of them that are not repeated: protobuf merges two into one, and each half passes alone.
ONCE = {("attribute", 5), ("attribute", 6), ("attribute", 22), ("sparse", 1), ("sparse", 2)} | {
    ("training", 1),
    ("training", 2),
}

# What is read of a TensorProto besides its dims: type, name, external data, data location.
TENSOR = {2: VARINT, 8: SPAN, 13: SPAN, 14: VARINT}

Dims = tuple[int | str | None, ...]


@dataclass(frozen=True)
class OnnxHeader:
    """What is known of a model without loading it.

    `inputs` maps a graph input to its dims: a number, the name of a symbol, or None for unknown;
    () is a scalar, and also what has no shape or is no tensor. `defaults` are the inputs that have
    an initializer and so may be left out. `opsets` maps a domain ("" is ONNX's own) to its version,
    and `data` holds the names of the external data files, sorted.
    """

    inputs: Mapping[str, Dims]
    outputs: tuple[str, ...]
    defaults: frozenset[str]
    metadata: Mapping[str, str]
    opsets: Mapping[str, int]
    data: tuple[str, ...]


@dataclass(frozen=True)
class _Model:
    """The mapped file and what has been found in it."""

    data: mmap.mmap
    inputs: dict[str, Dims] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    initializers: set[str] = field(default_factory=set)
    metadata: dict[str, str] = field(default_factory=dict)
    opsets: dict[str, int] = field(default_factory=dict)
    # Data file -> how many bytes of it are asked for.
    ends: dict[str, int] = field(default_factory=dict)


def check(path: Path) -> OnnxHeader:
    """Read the header and check that all external data lies inside the files beside the model.

    Raises `InputError` with the file and the reason.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise InputError("is no file")
        if not 4 <= found.st_size <= MOST_BYTES:
            raise InputError(f"no ONNX model, {found.st_size:,} bytes")
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            model = _Model(data)
            _walk(model)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}; {AGAIN}") from None
    for name, size in sorted(model.ends.items()):
        _beside(path, name, size)
    return OnnxHeader(
        model.inputs,
        tuple(model.outputs),
        frozenset(model.inputs.keys() & model.initializers),
        model.metadata,
        model.opsets,
        tuple(sorted(model.ends)),
    )


def _beside(path: Path, name: str, size: int) -> None:
    """Check that a data file lies in the model's folder and has that many bytes."""
    file = path.parent / name
    try:
        if not file.resolve(strict=True).is_relative_to(path.parent.resolve()):
            raise InputError(f"{file}: leads out of the model's folder; put the file itself there")
        found = file.stat()
    except (FileNotFoundError, UnicodeError):
        raise InputError(
            f"{file}: is missing, {path.name} needs it; copy or export it again"
        ) from None
    except RuntimeError:
        # What `resolve` raises for a loop of links before Python 3.13.
        raise InputError(f"{file}: links lead in a circle; put the file itself there") from None
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{file}: is no file, {path.name} needs it; copy or export it again")
    if size > found.st_size:
        raise InputError(
            f"{file}: {found.st_size:,} bytes, the model asks for {size:,}; copy or export it again"
        )


def _walk(model: _Model) -> None:
    data = model.data
    wanted = {1: VARINT, 7: SPAN, 8: SPAN, 14: SPAN, 20: SPAN, 25: SPAN}
    version, graphs = 0, 0
    for number, first, last in protobuf.some(data, 0, len(data), wanted):
        if number == 1:
            version = protobuf.signed(first)
        elif number == 7:
            graphs += 1
            if graphs > 1:
                raise InputError("a second graph")
            _graph(model, first, last)
        elif number == 8:
            _opset(model, first, last)
        elif number == 14:
            key, value = protobuf.pair(data, first, last)
            if key in model.metadata:
                raise InputError(f"metadata {key[:200]!r} twice")
            model.metadata[key] = value
        else:
            _hunt(model, "training" if number == 20 else "function", first, last)
    if version < 1 or not graphs:
        raise InputError(f"no ONNX model (no {'graph' if version >= 1 else 'ir_version'})")


def _opset(model: _Model, at: int, end: int) -> None:
    domain, version = "", 0
    for number, first, last in protobuf.some(model.data, at, end, {1: SPAN, 2: VARINT}):
        if number == 1:
            domain = protobuf.text(model.data, first, last)
        else:
            version = protobuf.signed(first)
    if domain in model.opsets:
        raise InputError(f"opset {domain[:200]!r} twice")
    model.opsets[domain] = version


def _graph(model: _Model, at: int, end: int) -> None:
    """Read the main graph."""
    data = model.data
    wanted = {1: SPAN, 5: SPAN, 11: SPAN, 12: SPAN, 15: SPAN}
    for number, first, last in protobuf.some(data, at, end, wanted):
        if number == 1:
            _hunt(model, "node", first, last)
        elif number == 5:
            model.initializers.add(_tensor(model, first, last))
        elif number == 15:
            for part, start, stop in protobuf.some(data, first, last, {1: SPAN, 2: SPAN}):
                name = _tensor(model, start, stop)
                # The name of a sparse initializer is the one of its values.
                if part == 1:
                    model.initializers.add(name)
        else:
            name, dims = _value(data, first, last)
            if number == 12:
                model.outputs.append(name)
            elif name in model.inputs:
                raise InputError(f"input {name[:200]!r} twice")
            else:
                model.inputs[name] = dims


def _value(data: mmap.mmap, at: int, end: int) -> tuple[str, Dims]:
    """Read a ValueInfoProto: the name and, if it is a tensor with a shape, the dims."""
    name = ""
    dims: list[int | str | None] = []
    for number, first, last in protobuf.some(data, at, end, {1: SPAN, 2: SPAN}):
        if number == 1:
            name = protobuf.text(data, first, last)
            continue
        for place in _inside(data, [(first, last)], (1, 2, 1)):
            dims.append(_dim(data, *place))
    return name, tuple(dims)


def _inside(
    data: mmap.mmap, spans: Iterable[tuple[int, int]], path: tuple[int, ...]
) -> list[tuple[int, int]]:
    """Return where the messages are that a path of field numbers leads to."""
    for step in path:
        spans = [
            (first, last)
            for at, end in spans
            for _, first, last in protobuf.some(data, at, end, {step: SPAN})
        ]
    return list(spans)


def _dim(data: mmap.mmap, at: int, end: int) -> int | str | None:
    """Read a TensorShapeProto.Dimension; of a number and a symbol the last one counts."""
    dim: int | str | None = None
    for number, first, last in protobuf.some(data, at, end, {1: VARINT, 2: SPAN}):
        # Some writers put -1 or an empty name for what is not known.
        if number == 2:
            dim = protobuf.text(data, first, last) or None
        elif first >> 63:
            dim = None
        else:
            dim = first
    return dim


def _hunt(model: _Model, kind: str, at: int, end: int, depth: int = 0) -> None:
    """Check the tensors below a message.

    External data has the key "location", and protobuf keeps strings as they are. So a message that
    does not have these bytes holds no external data, and most nodes are passed over by one search.
    """
    data = model.data
    if data.find(b"location", at, end) < 0:
        return
    if depth > MOST_DEPTH:
        raise InputError(f"messages nested deeper than {MOST_DEPTH} at byte {at:,}")
    below = BELOW[kind]
    seen: set[int] = set()
    for number, first, last in protobuf.some(data, at, end, dict.fromkeys(below, SPAN)):
        if (kind, number) in ONCE:
            if number in seen:
                raise InputError(f"damaged: field {number} twice at byte {first:,}")
            seen.add(number)
        if below[number] == "tensor":
            _tensor(model, first, last)
        else:
            _hunt(model, below[number], first, last, depth + 1)


def _numbers(data: mmap.mmap, wire: int, first: int, last: int) -> list[int]:
    """Read a repeated number, of which a writer makes one field each or one packed field."""
    if wire == VARINT:
        return [first]
    if wire != SPAN or last - first > 10 * MOST_DIMENSIONS:
        raise InputError(f"damaged: dims at byte {first:,}")
    numbers = []
    while first < last:
        number, first = protobuf.varint(data, first, last)
        numbers.append(number)
    return numbers


def _tensor(model: _Model, at: int, end: int) -> str:
    """Read a TensorProto, note which external data it asks for, and return its name."""
    data = model.data
    name, kind, external = "", 0, False
    dims: list[int] = []
    entries: dict[str, str] = {}
    for number, wire, first, last in protobuf.fields(data, at, end):
        if number == 1:
            dims += _numbers(data, wire, first, last)
            if len(dims) > MOST_DIMENSIONS:
                raise InputError(f"a tensor with more than {MOST_DIMENSIONS} dimensions")
        elif wire != TENSOR.get(number, wire):
            raise InputError(f"damaged: wire type {wire} of field {number} at byte {first:,}")
        # Types and locations are of 32 bits; protobuf drops the rest of what a varint may hold.
        elif number == 2:
            kind = first & 0xFFFF_FFFF
        elif number == 14:
            external = bool(first & 0xFFFF_FFFF)
        elif number == 8:
            name = protobuf.text(data, first, last)
        elif number == 13:
            key, text = protobuf.pair(data, first, last)
            if key not in KEYS or key in entries:
                raise InputError(f"external data key {key[:200]!r} twice or unknown")
            entries[key] = text
    if external or entries:
        _external(model, name, kind, dims, entries)
    return name


def _external(
    model: _Model, name: str, kind: int, dims: list[int], entries: Mapping[str, str]
) -> None:
    """Check what can be checked without the data file, and note how long that has to be."""
    tensor = f"tensor {name[:200]!r}"
    location = entries.get("location", "")
    # A colon is a drive on Windows, and onnxruntime's tag for an address in memory has slashes.
    if not location or location == "." or ".." in location or set(location) & set("/\\:\0"):
        raise InputError(f"{tensor}: external data at {location[:200]!r}, a file name is allowed")
    offset, length = (_count(tensor, key, entries.get(key)) for key in ("offset", "length"))
    if kind not in BITS:
        raise InputError(f"{tensor}: external data of type number {kind}")
    if any(dim >> 63 for dim in dims):
        raise InputError(f"{tensor}: negative dims {[protobuf.signed(dim) for dim in dims]}")
    size = (prod(dims) * BITS[kind] + 7) // 8
    if length is not None and length != size:
        raise InputError(f"{tensor}: {length:,} bytes of external data, its dims make {size:,}")
    model.ends[location] = max(model.ends.get(location, 0), (offset or 0) + size)


def _count(tensor: str, key: str, text: str | None) -> int | None:
    """Read a decimal number of at most 19 digits, or None for none."""
    if text is None:
        return None
    # `int` alone also takes signs, spaces, underscores and other scripts' digits.
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise InputError(f"{tensor}: external data with {key} {text[:200]!r}")
    return int(text)
