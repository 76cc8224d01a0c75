"""A version from elsewhere into a store: by a folder that was carried here, or over HTTP."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from tel_edge.runtime.bundles import manifest as manifests
from tel_edge.runtime.bundles.manifest import NAME
from tel_edge.runtime.bundles.shipping import active, checking, signature, store
from tel_edge.runtime.bundles.shipping.sources import Source, small
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import lock


def pull(
    source: Source,
    wanted: str | None,
    home: Path,
    key: Path | None = None,
    older: bool = False,
    wait: float = math.inf,
    say: Callable[[str], None] = lambda _: None,
) -> store.Added:
    """Put a version into the store `home` and return it; files that are there are not fetched.

    `wanted` is its digest, None where nobody says. With `key` the signature is checked before
    anything large comes. Raises `InputError` for what is not what it should be, and for a version
    that is older than the active one, unless `older`.
    """
    store.check_home(home)
    text = small(source, NAME, manifests.MOST)
    if text is None:
        raise InputError(
            f"{source.name}: no {NAME}; name what tel-export --deploy made, or a version in it"
        )
    name = checking.of_text(text)
    if wanted not in (None, name):
        raise InputError(f"{source.name}/{NAME}: changed, its SHA-256 is not {str(wanted)[:12]}...")
    made = manifests.loads(text, f"{source.name}/{NAME}")
    signed = small(source, signature.NAME, signature.MOST)
    if key is not None:
        checking.signed(made, name, signed, key, source.name)
    with lock.held(home, wait, say, inside=True):
        active.newer(home, made, name, older)
        return store.add(home, text, signed, source)
