"""With which versions a file was made, and whether they are those of today."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

import tel_edge
from tel_edge.runtime import versions

# Raised when the same inputs make another file: other keys, another order, another rounding. That
# of a file which one of these packages makes, else "1".
LAYOUTS = {"onnx": "3"}
# The distributions that packages usually are from, where the two names differ.
USUAL = {"llama_cpp": "llama-cpp-python"}
# A release of tel-edge that leaves the layout alone makes nothing stale.
NOT_COMPARED = ("tel-edge",)


def layout(packages: Iterable[str]) -> str:
    """Return the layout of a file that these packages make."""
    return next((LAYOUTS[name] for name in packages if name in LAYOUTS), "1")


@cache
def installed(package: str) -> str | None:
    """Return the distribution and version of a package that is installed, or None."""
    return versions.version(package, USUAL.get(package, package))


def made_by(*packages: str) -> dict[str, str]:
    """Return what the manifest says of a file that these packages make and measure."""
    found = {package: installed(package) for package in packages}
    own = {"layout": layout(packages), "tel-edge": tel_edge.__version__}
    return own | {package: version for package, version in found.items() if version}


def outdated(made: Mapping[str, str]) -> str | None:
    """Return which version has changed since a file was made, None if none has.

    A package that is not installed now has no other version.
    """
    for name, before in made.items():
        now = layout(made) if name == "layout" else installed(name)
        if name not in NOT_COMPARED and now not in (None, before):
            return f"layout {before}, now {now}" if name == "layout" else f"{before}, now {now}"
    return None
