"""Any GGUF file of a whole model, opened: metadata with its arrays, tensors, and the row it is of.

Source: ggml's docs/gguf.md, and `llama_ftype` of llama.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tel_edge.eval.folders.architectures import ARCHITECTURES, Architecture
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.extras import need
from tel_edge.runtime.files import gguf_header

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Values dequantized at a time: 64 MiB of float32.
CHUNK = 1 << 24


@dataclass(frozen=True)
class GgufSource:
    """A file whose header was checked. `tensors` are gguf-py's, by name."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Any]
    row: Architecture

    def number(self, name: str) -> Any:
        """Return a value of the architecture's by its name without that, None where it lacks."""
        return self.metadata.get(f"{self.row.gguf}.{name}")

    def wrong(self, reason: str) -> InputError:
        """Return the error that names the file."""
        return InputError(f"{self.path}: {reason}")


def opened(path: Path) -> GgufSource:
    """Return the file, opened. Values are read when they are asked for.

    Raises `InputError` for what is damaged, an adapter, a part of several files, and a model of an
    architecture that has no row.
    """
    stated = gguf_header.whole(path).metadata
    if stated.get("general.type", "model") != "model":
        raise InputError(
            f"{path}: general.type is {stated['general.type']!r}; a whole model is needed"
        )
    name = stated.get("general.architecture")
    row = next((row for row in ARCHITECTURES.values() if row.gguf == name), None)
    if row is None:
        raise InputError(
            f"{path}: architecture {name!r} cannot be read; these can: "
            + " ".join(row.gguf for row in ARCHITECTURES.values())
        )
    read = need("gguf", "train").GGUFReader(path)
    metadata = {name: field.contents() for name, field in read.fields.items()}
    return GgufSource(path, metadata, {tensor.name: tensor for tensor in read.tensors}, row)


def plain(tensor: Any) -> str | None:
    """Return the type of a tensor that is not quantized (F32, F16, BF16), None for another."""
    kind = tensor.tensor_type.name
    return kind if kind in ("F32", "F16", "BF16") else None


def values(tensor: Any) -> npt.NDArray[np.float32]:
    """Return what a tensor's blocks stand for, [rows, columns] or [length], in float32."""
    return dequantized(tensor.data, tensor.tensor_type)


def dequantized(data: npt.NDArray[Any], kind: Any) -> npt.NDArray[np.float32]:
    """Return what whole rows of blocks of gguf-py's type `kind` stand for."""
    import numpy as np

    made = need("gguf", "train").quants.dequantize(data, kind)
    found: npt.NDArray[np.float32] = made.astype(np.float32, copy=False)
    return found
