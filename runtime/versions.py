"""Which distribution an import package comes from, and its version, without importing it.

One package can come from several: `onnxruntime` is in onnxruntime, -gpu, -openvino, -directml and
others. Source: PyPA's "Recording installed projects" (RECORD lists a distribution's files).
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path


def distributions(package: str, usual: str) -> tuple[str, ...]:
    """Return the names of the distributions that the import package is from, sorted.

    Several where one was installed over another. `usual` is how the usual one is spelled. Empty
    where the package is not installed, or nothing says who put it there.
    """
    from importlib import metadata

    origin = _origin(package)
    if origin is None:
        return ()
    beside = [
        found.name
        for found in metadata.distributions(path=[str(origin.parents[1])])
        if f"\n{package}/" in f"\n{found.read_text('RECORD') or ''}"
    ]
    # The record of an editable installation lies elsewhere; asking all takes a third of a second.
    names = beside or metadata.packages_distributions().get(package, [])
    return tuple(sorted({usual if _same(name, usual) else name for name in names}))


def version(package: str, usual: str) -> str | None:
    """Return name and version of what an import package is from, None where that is not known.

    Where no distribution claims the package it is the version that the package itself states.
    """
    from importlib import metadata

    names = distributions(package, usual)
    try:
        found = [f"{name} {metadata.version(name)}" for name in names]
    except metadata.PackageNotFoundError:
        return None
    return " and ".join(found) or _stated(package)


def _origin(package: str) -> Path | None:
    """Return the package's `__init__.py`."""
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:
        # What a module without a spec raises.
        return None
    return Path(spec.origin) if spec and spec.origin else None


def _stated(package: str) -> str | None:
    origin = _origin(package)
    if origin is None or not origin.is_file():
        return None
    text = origin.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^__version__\s*=\s*['\"]([^'\"\n]+)['\"]", text, re.MULTILINE)
    return f"{package} {found[1]}" if found else None


def _same(one: str, other: str) -> bool:
    """Return whether two spellings are one name (PyPA's "Names and normalization")."""
    return re.sub(r"[-_.]+", "-", one).lower() == re.sub(r"[-_.]+", "-", other).lower()
