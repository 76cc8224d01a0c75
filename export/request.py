"""What an export is asked for, with all defaults, as one value that nothing changes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from tel_edge.runtime.bundles.formats import FIRST, FORMATS
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.workspace import Workspace

# Of the matrices of adapters in GGUF; those of ONNX are float32.
ADAPTER_TYPES = ("F16", "F32", "Q8_0")


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
    fuse: bool = True
    out: Path | None = None
    force: bool = False
    dataset: str = "ot-mini"
    strict: bool = False
    seed: int = 42
    wait: float = math.inf
    quiet: bool = False

    def __post_init__(self) -> None:
        """Take texts for paths and lists for texts with commas; raise `InputError` for the rest."""
        for name in ("workspace", "from_onnx", "out"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, Path(value))
        for name in ("adapter", "category", "quant"):
            value = getattr(self, name)
            if isinstance(value, (list, tuple)):
                object.__setattr__(self, name, ",".join(map(str, value)))
            elif isinstance(value, Path):
                object.__setattr__(self, name, str(value))
        object.__setattr__(self, "tensor_type", tuple(self.tensor_type))
        if self.format not in FORMATS:
            raise InputError(f"format {self.format!r}; there are: {' '.join(FORMATS)}")
        if self.adapter_quant not in (None, *ADAPTER_TYPES):
            raise InputError(f"adapter_quant {self.adapter_quant!r}; one of {ADAPTER_TYPES}")
        if not self.wait >= 0:
            raise InputError(f"wait {self.wait!r}: a number of seconds from 0 is needed")

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
