"""Optional dependencies: imported where they are used, named where they are missing."""

from __future__ import annotations

import importlib
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
        raise InputError(
            f"{module} is not installed; run: pip install 'tel-edge[{extra}]'"
        ) from None
