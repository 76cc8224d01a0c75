"""Optional dependencies: imported where they are used, named where they are missing."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

from tel_edge.runtime.errors import InputError


def need(module: str, extra: str) -> Any:
    """Import `module`, or raise `InputError` with the command that installs the extra it is in.

    A module that is there but fails inside keeps its own error.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise
        raise _missing(module, extra) from None


def check(module: str, extra: str) -> None:
    """Raise what `need` would for a missing module, without the seconds that an import takes."""
    if not there(module):
        raise _missing(module, extra)


def there(module: str) -> bool:
    """Return whether a module is installed, without importing it."""
    loaded = sys.modules.get(module) if module in sys.modules else importlib.util.find_spec(module)
    return loaded is not None


def _missing(module: str, extra: str) -> InputError:
    return InputError(f"{module} is not installed; run: pip install 'tel-edge[{extra}]'")
