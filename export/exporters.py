"""How files of each format are made, one row each; `FORMATS` says what they are on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from tel_edge.export.gguf.quantize import QUANTS
from tel_edge.export.onnx.quantize import ONNX_QUANTS

if TYPE_CHECKING:
    from tel_edge.eval.folders.checkpoint import Checkpoint
    from tel_edge.export.output import Output
    from tel_edge.export.request import ExportRequest
    from tel_edge.runtime.bundles.manifest import BundleFile


class ExportPlan(Protocol):
    """All that is to be in a bundle, checked, before anything is written."""

    @property
    def output(self) -> Output:
        """Return the bundle."""
        ...

    @property
    def checkpoint(self) -> Checkpoint:
        """Return the backbone's folder."""
        ...


class Half(Protocol):
    """What a format's module has: reading and checking, making, and saying sizes beforehand."""

    def plan(self, request: ExportRequest) -> ExportPlan:
        """Read and check all that is asked for; raise `InputError` for what does not fit."""
        ...

    def make(self, request: ExportRequest, made: Any) -> Sequence[tuple[BundleFile, bool]]:
        """Make what is missing; return all files that were asked for, and which are new."""
        ...

    def forecast(self, request: ExportRequest, made: Any) -> Mapping[str, int]:
        """Return the bytes that the file of each type would have."""
        ...


@dataclass(frozen=True)
class Exporter:
    """One row: a name of `FORMATS`, the rows of its types by name, and the module that makes them.

    The module is loaded when something is made. `foreign` are fields of a request that are for
    other formats.
    """

    format: str
    types: Mapping[str, Any]
    module: str
    foreign: tuple[str, ...] = ()

    @property
    def half(self) -> Half:
        """Return the module's functions."""
        return cast(Half, import_module(self.module))


EXPORTERS: dict[str, Exporter] = {
    row.format: row
    for row in (
        Exporter("gguf", QUANTS, "tel_edge.export.gguf.make", ("from_onnx", "fuse")),
        Exporter(
            "onnx",
            ONNX_QUANTS,
            "tel_edge.export.onnx.make",
            ("merge", "imatrix", "tensor_type", "adapter_quant"),
        ),
    )
}
