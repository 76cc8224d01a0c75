"""The device side: questions, prompts, bundles and engines. Imports none of its sister packages.

`Answerer` answers questions with a bundle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tel_edge.runtime.answerer import Answerer

__all__ = ["Answerer"]


def __getattr__(name: str) -> Any:
    """Load a name of `__all__` when it is first asked for."""
    if name in __all__:
        from tel_edge.runtime import answerer

        return getattr(answerer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
