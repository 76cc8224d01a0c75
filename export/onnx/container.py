"""Reading and writing ONNX files one tensor at a time, so that memory is one tensor's.

All large tensors of a file lie in one data file beside it. Source of the format: onnx's
`onnx.proto` (TensorProto.external_data) and `docs/ExternalData.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tel_edge.export.progress import Step
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.extras import need

if TYPE_CHECKING:
    import numpy.typing as npt

# Tensors up to this many bytes stay in the graph's own file: shapes and axes, which tools read.
INLINE = 1024
# The engine maps large tensors from the file, which has to be at a multiple of a page.
PAGE, MAPPED = 4096, 1 << 20
ALIGNMENT = 64


def data_file(path: Path) -> Path:
    """Return the data file of a model file that this module writes."""
    return path.with_name(f"{path.name}.data")


def load(path: Path) -> Any:
    """Return the `ModelProto` of a file without its external data."""
    onnx = need("onnx", "export")
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:
        # protobuf's own errors, which differ from release to release.
        raise InputError(f"{path}: no ONNX model ({type(error).__name__})") from None


def data_names(model: Any) -> list[str]:
    """Return the names of the data files that a model's tensors lie in."""
    entries = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
    return sorted({entry.value for entry in entries if entry.key == "location"})


def values(tensor: Any, folder: Path) -> npt.NDArray[Any]:
    """Return an initializer's values; those of a data file in `folder` are mapped, not read.

    Raises `InputError` where the data file is missing or too short.
    """
    import numpy as np

    onnx = need("onnx", "export")
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        made: npt.NDArray[Any] = onnx.numpy_helper.to_array(tensor)
        return made
    entries = {entry.key: entry.value for entry in tensor.external_data}
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    path, offset = folder / entries["location"], int(entries.get("offset", 0))
    needed = offset + math.prod(tensor.dims) * kind.itemsize
    if not path.is_file() or path.stat().st_size < needed:
        raise InputError(f"{path}: missing or truncated, tensor {tensor.name} ends at {needed:,}")
    return np.memmap(path, kind, "r", offset, tuple(tensor.dims))


def write(
    model: Any,
    out: Path,
    folder: Path,
    step: Step,
    made: Mapping[str, Callable[[], npt.NDArray[Any]]] | None = None,
    same: Mapping[str, str] | None = None,
) -> None:
    """Write `model` to `out` and its large tensors to the data file beside it.

    Values come from `made` by the initializer's name, else from where the initializer says, in
    `folder`. An initializer that `same` names lies where the other one does, which comes before it.
    `step` is called with the number of bytes of each tensor. The protobuf of `model` is changed.
    """
    import numpy as np

    onnx = need("onnx", "export")
    places: dict[str, tuple[int, int]] = {}
    with data_file(out).open("wb") as data:
        for tensor in model.graph.initializer:
            twin = (same or {}).get(tensor.name)
            if twin:
                _place(tensor, out, places[twin])
                continue
            make = (made or {}).get(tensor.name)
            value = np.ascontiguousarray(make() if make else values(tensor, folder))
            if value.nbytes > INLINE:
                align = PAGE if value.nbytes >= MAPPED else ALIGNMENT
                data.write(bytes(-data.tell() % align))
                places[tensor.name] = (data.tell(), value.nbytes)
                value.tofile(data)
                _place(tensor, out, places[tensor.name])
            elif make or tensor.data_location == onnx.TensorProto.EXTERNAL:
                tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
            step(value.nbytes)
    out.write_bytes(model.SerializeToString())


def _place(tensor: Any, out: Path, place: tuple[int, int]) -> None:
    onnx = need("onnx", "export")
    kind, dims, name = tensor.data_type, list(tensor.dims), tensor.name
    tensor.Clear()
    tensor.name, tensor.data_type, tensor.data_location = name, kind, onnx.TensorProto.EXTERNAL
    tensor.dims.extend(dims)
    entries = {"location": data_file(out).name, "offset": place[0], "length": place[1]}
    for key, value in entries.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
