"""From a Hugging Face checkpoint and PEFT adapters to a bundle of quantized GGUF or ONNX files.

`export(ExportRequest(backbone=..., adapter=..., quant=...))` is what `tel-export` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tel_edge.export.exporting import Exported, export
    from tel_edge.export.request import ExportRequest

__all__ = ["ExportRequest", "Exported", "export"]


def __getattr__(name: str) -> Any:
    """Load a name of `__all__` when it is first asked for."""
    if name == "ExportRequest":
        from tel_edge.export import request

        return request.ExportRequest
    if name in __all__:
        from tel_edge.export import exporting

        return getattr(exporting, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names of `__all__` among the others."""
    return sorted({*globals(), *__all__})
