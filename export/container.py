"""Writing a GGUF file one tensor at a time, so that memory is one tensor's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tel_edge.runtime.extras import need

if TYPE_CHECKING:
    import numpy.typing as npt

QUANTIZATION_VERSION = 2
Step = Callable[[int], None]


@dataclass(frozen=True)
class Planned:
    """A tensor to be written: shape [rows, columns] or [length], type F32, F16 or BF16.

    `make` gives its values in that shape and type (BF16 as uint16) when their turn comes.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    make: Callable[[], npt.NDArray[Any]]


def write(
    out: Path, architecture: str, keys: Mapping[str, Any], tensors: Sequence[Planned], step: Step
) -> None:
    """Write `out`. Whole numbers become uint32, in a list int32; other numbers float32.

    `step` is called with the number of values of each tensor after it is written.
    """
    import math

    import numpy as np

    gguf = need("gguf", "export")
    writer = gguf.GGUFWriter(out, architecture)
    for name, value in keys.items():
        _add(writer, name, value)
    for tensor in tensors:
        kind = getattr(gguf.GGMLQuantizationType, tensor.kind)
        width = np.dtype({"F32": "f4", "F16": "f2", "BF16": "u2"}[tensor.kind])
        size = math.prod(tensor.shape)
        writer.add_tensor_info(tensor.name, tensor.shape, width, size * width.itemsize, kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(np.ascontiguousarray(tensor.make()))
            step(math.prod(tensor.shape))
    finally:
        writer.close()


def _add(writer: Any, name: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, list(value))
