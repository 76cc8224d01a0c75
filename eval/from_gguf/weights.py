"""A GGUF file's tensors as model.safetensors, one after the other, in bounded memory.

What is quantized, and F16, becomes F16; BF16 and F32 stay what they are. Source of the format: see
`folders.tensors`.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tel_edge.eval.folders import architectures
from tel_edge.eval.folders.architectures import Shape, Tensor
from tel_edge.eval.folders.gguf_layout import unpermuted
from tel_edge.eval.folders.tensors import HALF_MOST, WIDTHS, rounded
from tel_edge.eval.from_gguf import source as sources
from tel_edge.eval.from_gguf.config import FACTORS
from tel_edge.eval.from_gguf.source import CHUNK, GgufSource

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class _TooLarge(Exception):
    """A quantized value is beyond F16."""


@dataclass(frozen=True)
class _Planned:
    tensor: Tensor
    stored: Any
    kind: str


def write(source: GgufSource, shape: Shape, out: Path, step: Callable[[int], None]) -> None:
    """Write the tensors to `out`; `step` is called with the number of values of each.

    Raises `InputError` for a tensor that is missing, has no place, another shape than the numbers
    of the file, or a value that is not finite.
    """
    placed = _placed(source, shape)
    try:
        _write(source, _planned(placed, "F16"), out, step)
    except _TooLarge:
        _write(source, _planned(placed, "F32"), out, lambda _: None)


def _placed(source: GgufSource, shape: Shape) -> list[tuple[Tensor, Any]]:
    left = dict(source.tensors)
    if source.row.rope_factors:
        # It is in the configuration.
        left.pop(FACTORS, None)
    wanted = list(architectures.tensors(shape))
    if shape.tied:
        wanted.pop()
    made = []
    for tensor in wanted:
        if tensor.name not in left:
            raise source.wrong(f"tensor {tensor.name} is missing; get the whole file again")
        stored = left.pop(tensor.name)
        found = tuple(int(length) for length in reversed(stored.shape))
        if found != tensor.shape:
            raise source.wrong(
                f"tensor {tensor.name} is {list(found)}, its numbers make it {list(tensor.shape)}"
            )
        made.append((tensor, stored))
    if left:
        raise source.wrong(
            f"tensor {min(left)} has no place in {source.row.gguf}; the model would be another "
            "without it"
        )
    return made


def _planned(placed: list[tuple[Tensor, Any]], quantized: str) -> list[_Planned]:
    """Return the type of each tensor; vectors take that of the matrices where it holds them."""
    matrices = [sources.plain(stored) or quantized for tensor, stored in placed if _matrix(tensor)]
    usual = max(set(matrices), key=matrices.count)
    made = []
    for tensor, stored in placed:
        kind = sources.plain(stored) or quantized
        if not _matrix(tensor):
            kind = usual if _exact(sources.values(stored), usual) else "F32"
        made.append(_Planned(tensor, stored, kind))
    return made


def _matrix(tensor: Tensor) -> bool:
    return len(tensor.shape) > 1


def _exact(values: npt.NDArray[np.float32], kind: str) -> bool:
    import numpy as np

    if kind == "F16":
        with np.errstate(over="ignore"):
            return bool((values.astype(np.float16) == values).all())
    return kind == "F32" or not (values.view(np.uint32) & 0xFFFF).any()


def _write(
    source: GgufSource, planned: list[_Planned], out: Path, step: Callable[[int], None]
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for one in planned:
        size = math.prod(one.tensor.shape) * WIDTHS[one.kind]
        header[one.tensor.source] = _entry(one, end, end + size)
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    # Padded with spaces, so that the values are aligned as the library aligns them.
    text += b" " * (-len(text) % 8)
    with out.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for one in planned:
            for part in _parts(source, one):
                stream.write(part.tobytes())
            step(math.prod(one.tensor.shape))


def _entry(one: _Planned, first: int, last: int) -> Mapping[str, Any]:
    return {"dtype": one.kind, "shape": list(one.tensor.shape), "data_offsets": [first, last]}


def _parts(source: GgufSource, one: _Planned) -> Iterator[npt.NDArray[Any]]:
    """Yield the values in order; those whose rows change places at once, others in parts."""
    import numpy as np

    tensor, stored, kind = one.tensor, one.stored, one.kind
    rows = stored.data.shape[0]
    most = rows if tensor.heads or len(tensor.shape) == 1 else max(1, CHUNK // tensor.shape[1])
    for at in range(0, rows, most):
        made = sources.dequantized(stored.data[at : at + most], stored.tensor_type)
        top = np.abs(made).max()
        if not np.isfinite(top):
            raise source.wrong(
                f"tensor {tensor.name} has NaN or infinite values; the file is damaged"
            )
        if kind == "F16" and top > HALF_MOST:
            raise _TooLarge
        made = unpermuted(made, tensor.heads)
        if kind == "BF16":
            yield rounded(made)
        else:
            yield made.astype("<f2" if kind == "F16" else "<f4")
