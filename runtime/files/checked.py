"""SHA-256 digests of large files, remembered until the file changes.

Hashing a backbone takes as long as loading it. A file counts as unchanged while its size, inode,
modification time and change time are the same; the system sets the last one at every write, and no
program can set it back. What a disk loses by itself is not noticed this way: `tel-export --check`
reads everything again.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.files import digest, lock
from tel_edge.runtime.files.atomic import write_text

# Younger than this a file may change again within the same tick of the file system's clock.
SETTLED_NS = 2_000_000_000
# Files that are remembered, the latest ones.
MOST = 500
# Seconds to wait for another process that writes the cache, which takes it milliseconds.
PATIENCE = 5.0


def location() -> Path:
    """Return where digests are remembered: in TEL_CACHE, or the user's cache folder."""
    if given := os.environ.get("TEL_CACHE"):
        return Path(given) / "digests.json"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "tel-edge" / "digests.json"


def sha256(path: Path) -> str:
    """Return the file's SHA-256, from memory if the file is the one that was read before."""
    stamp, name = _stamp(path), str(path.resolve())
    known = _read()
    if (kept := known.get(name)) and kept[:-1] == stamp:
        return str(kept[-1])
    made = digest.of_file(path)
    if _stamp(path) == stamp and time.time_ns() - max(stamp[2:]) > SETTLED_NS:
        # A cache that cannot be written costs time and nothing else.
        place = location()
        with suppress(OSError, InputError, WorkError), lock.held(place, PATIENCE, lambda _: None):
            # Read again: another process may have added its own.
            known = {key: value for key, value in _read().items() if key != name}
            kept_names = list(known)[-MOST + 1 :]
            known = {key: known[key] for key in kept_names} | {name: [*stamp, made]}
            write_text(place, json.dumps(known, indent=0))
    return made


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _read() -> dict[str, list[Any]]:
    """Return what is remembered; nothing, if the file is not there or not what it should be."""
    try:
        found = json.loads(location().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, list) and len(value) == 5 and isinstance(value[-1], str)
    }
