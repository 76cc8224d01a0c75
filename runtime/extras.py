"""Optional dependencies: imported where they are used, named where they are missing."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tel_edge.runtime.errors import InputError

POLICY = "OMP_WAIT_POLICY"
# With which a user says how threads wait.
USERS = {POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}


def need(module: str, extra: str) -> Any:
    """Import `module`, or raise `InputError` with the command that installs the extra it is in.

    A module that is there but fails inside keeps its own error.
    """
    try:
        with _waiting(module):
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise
        raise _missing(module, extra) from None


@contextmanager
def _waiting(module: str) -> Iterator[None]:
    """Let threads of llama.cpp sleep while they wait, unless the user says how they wait.

    By default they spin, on a core that another process wants; that costs two thirds of the rate
    there and gains nothing elsewhere (docs/performance.md). GNU's OpenMP reads the variable as it
    is loaded.
    """
    ours = module.startswith("llama_cpp") and not USERS & os.environ.keys()
    if ours:
        os.environ[POLICY] = "PASSIVE"
    try:
        yield
    finally:
        if ours:
            del os.environ[POLICY]


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
