"""What an export is asked for, with all defaults, as one value that nothing changes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from tel_edge.runtime.bundles.formats import FIRST, FORMATS
from tel_edge.runtime.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """The options of `tel-export`, which says what they mean, by their names.

    `quant` and `adapter_quant` None are those of the format's row. `wait` is how many seconds
    another export into the bundle may have it first; `quiet` leaves out log lines and bars.
    """

    workspace: Path = Path("tel-workspace")
    backbone: str = "tel-nano"
    adapter: str | None = None
    category: str | None = None
    format: str = FIRST
    quant: str | None = None
    adapter_quant: str | None = None
    tensor_type: tuple[str, ...] = ()
    imatrix: str = "none"
    merge: bool = False
    verify: bool = True
    router: bool = False
    dry_run: bool = False
    push: str | None = None
    from_onnx: Path | None = None
    out: Path | None = None
    force: bool = False
    dataset: str = "ot-mini"
    strict: bool = False
    seed: int = 42
    wait: float = math.inf
    quiet: bool = False

    @property
    def home(self) -> Workspace:
        """Return the workspace."""
        return Workspace(self.workspace)

    @property
    def types(self) -> str:
        """Return the types of the backbone, with commas."""
        return self.quant or FORMATS[self.format].quant

    @property
    def adapter_type(self) -> str:
        """Return the type of adapters."""
        return self.adapter_quant or FORMATS[self.format].usual

    def resolved(self) -> ExportRequest:
        """Return the request with what one option says of another."""
        return replace(self, format="onnx") if self.from_onnx else self
