"""Writing a GGUF file one tensor at a time, so that memory is one tensor's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tel_edge.export.progress import Step
from tel_edge.runtime.extras import need

if TYPE_CHECKING:
    import numpy.typing as npt

QUANTIZATION_VERSION = 2
# Each tensor begins at a multiple of this many bytes.
ALIGNMENT = 32


@dataclass(frozen=True)
class Planned:
    """A tensor to be written: shape [rows, columns] or [length], type F32, F16, BF16 or Q8_0.

    `make` gives its values in that shape and type when their turn comes, BF16 as uint16 and Q8_0
    as the bytes of its rows.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    make: Callable[[], npt.NDArray[Any]]


def write(
    out: Path,
    architecture: str,
    keys: Mapping[str, Any],
    tensors: Sequence[Planned],
    step: Step,
    *,
    describe: Callable[[Any], None] | None = None,
    hollow: bool = False,
) -> None:
    """Write `out`. Whole numbers become uint32, in a list int32; other numbers float32.

    `describe` may add keys to gguf's writer first; `keys` that it has given are left as they are.
    `step` is called with the number of values of each tensor after it is written. A `hollow` file
    has the header of a whole one and a hole for its values: what the quantizer's dry run needs.
    """
    import math

    import numpy as np

    gguf = need("gguf", "export")
    writer = gguf.GGUFWriter(out, architecture)
    if describe:
        describe(writer)
    for name, value in keys.items():
        if name not in writer.kv_data[0]:
            _add(writer, name, value)
    end = 0
    for tensor in tensors:
        kind = getattr(gguf.GGMLQuantizationType, tensor.kind)
        block, width = gguf.GGML_QUANT_SIZES[kind]
        size = math.prod(tensor.shape) // block * width
        # With the type given, the writer takes the shape as it is for any dtype but uint8.
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype("f4"), size, kind)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if hollow:
            file = writer.fout[0]
            writer.write_padding(file, file.tell())
            file.truncate(file.tell() + end)
            return
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
