"""The device side: questions, prompts, bundles and engines. Imports none of its sister packages.

`Answerer` answers questions with a bundle, as `Answering` says, on an engine with `EngineSettings`;
what cannot be done raises `InputError` or `WorkError`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tel_edge.runtime.answerer import Answer, Answerer, Answering
    from tel_edge.runtime.engines.engine import EngineSettings
    from tel_edge.runtime.errors import InputError, WorkError

__all__ = ["Answer", "Answerer", "Answering", "EngineSettings", "InputError", "WorkError"]
_HOMES = {"EngineSettings": "engines.engine", "InputError": "errors", "WorkError": "errors"}


def __getattr__(name: str) -> Any:
    """Load a name of `__all__` when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'answerer')}"), name)


def __dir__() -> list[str]:
    """Return the names of `__all__` among the others."""
    return sorted({*globals(), *__all__})
