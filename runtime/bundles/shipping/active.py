"""Which version of a store runs: `current`, a symbolic link that is exchanged in one step.

`history.json` lists what was activated, for the way back. It grows before the link changes and gets
shorter after it, so a process that is killed anywhere leaves a whole version active, and a way back
from it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.bundles import manifest as manifests
from tel_edge.runtime.bundles.manifest import DIGEST, Manifest
from tel_edge.runtime.bundles.shipping import checking, store
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.files.atomic import abandoned, remove, what_is, write_link, write_text

CURRENT, HISTORY = "current", "history.json"
# Activations that are remembered.
MOST = 50


def current(home: Path) -> str | None:
    """Return the digest of the version that `current` leads to, None where nothing is active."""
    name = _led_to(home)
    return name if name and (home / name).is_dir() else None


def _led_to(home: Path) -> str | None:
    """Return the digest that `current` names, also of a version that is gone."""
    link = home / CURRENT
    name = Path(os.readlink(link)).name if link.is_symlink() else None
    return name if name and DIGEST.fullmatch(name) else None


def named(home: Path, given: str) -> str:
    """Return the digest of the one version whose digest begins with `given`."""
    there = [path.name for path in home.iterdir()] if home.is_dir() else []
    there = [name for name in there if DIGEST.fullmatch(name)]
    found = [name for name in there if given and name.startswith(given)]
    if len(found) != 1:
        which = "several versions" if found else "no version"
        listed = " ".join(name[:12] for name in sorted(there)) or "none; run: tel-bundle pull"
        raise InputError(f"{home}: {which} {given[:70]!r}; there are: {listed}")
    return found[0]


def newer(home: Path, made: Manifest, name: str, older: bool) -> None:
    """Raise `InputError` for a version that is older than the active one, unless that is meant."""
    now = current(home)
    if now is None or older or now == name:
        return
    try:
        active = manifests.read(home / now).serial or 0
    except InputError as error:
        raise InputError(
            f"{error}\nit is the active version: tel-bundle pull of the same one mends it, --older "
            "takes any other"
        ) from None
    serial = made.serial or 0
    if serial < active:
        raise InputError(
            f"{home}: {name[:12]} is older than what is active (serial {serial}, active is "
            f"{active}); tel-bundle rollback goes back, --older takes any"
        )


def activate(home: Path, given: str, key: Path | None = None, older: bool = False) -> str:
    """Let `current` lead to a version, once it is checked; return its digest.

    Every file is read, and has to be what this version of tel-edge opens; with `key` its signature
    is checked. Raises `InputError` for what is not right, and then what was active stays so.
    """
    name = named(home, given)
    made = _checked(home, name, key)
    newer(home, made, name, older)
    now, past = current(home), history(home)
    if now != name:
        # What was activated after the version that was gone back to is no way back any more.
        past = past[: _last(past, now) + 1] if now in past else [now] if now else []
        write_text(home / HISTORY, json.dumps([*past, name][-MOST:]) + "\n")
        _switch(home, name)
    return name


def rollback(home: Path, key: Path | None = None) -> str:
    """Let `current` lead to the version before, checked again; return its digest."""
    now, past = _led_to(home), history(home)
    if now is None or now not in past or _last(past, now) == 0:
        raise InputError(
            f"{home}: nothing was active before {(now or 'now')[:12]}; tel-bundle activate takes "
            "any version, tel-bundle list shows them"
        )
    before = past[_last(past, now) - 1]
    if not (home / before).is_dir():
        raise InputError(f"{home}: {before[:12]}, active before, is gone; tel-bundle pull gets it")
    _checked(home, before, key)
    _switch(home, before)
    # After the link: who is killed in between still has the way back from here.
    write_text(home / HISTORY, json.dumps(past[: _last(past, now)]) + "\n")
    return before


def history(home: Path) -> list[str]:
    """Return the digests that were activated, the last one last."""
    try:
        found = json.loads((home / HISTORY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    rows = found if isinstance(found, list) else []
    return [row for row in rows if isinstance(row, str) and DIGEST.fullmatch(row)]


def prune(home: Path, keep: int) -> Iterator[str]:
    """Remove versions but the active one, the one before it and the `keep` highest; yield them.

    What killed runs left goes too. Raises `InputError` where it cannot be known what has to stay.
    """
    now, past = current(home), history(home)
    if now is None and os.path.lexists(home / CURRENT):
        raise InputError(
            f"{home / CURRENT}: leads to no version that is here; run: tel-bundle rollback, or "
            "activate"
        )
    if not past and os.path.lexists(home / HISTORY):
        raise InputError(
            f"{home / HISTORY}: damaged, so what was active before is not known; remove it, and "
            "nothing is before the active version"
        )
    stay = {now, *list(store.versions(home))[-keep:]} if keep else {now}
    if now in past and _last(past, now):
        stay.add(past[_last(past, now) - 1])
    for path in sorted(home.iterdir()):
        if DIGEST.fullmatch(path.name) and path.name not in stay:
            # Never half a version under a version's name.
            gone = path.with_name(f".{path.name}.partial")
            if gone.is_dir():
                _remove(gone)
            os.replace(path, gone)
            _remove(gone)
            yield path.name
        elif abandoned(path):
            remove(path)
        elif path.name.endswith(".partial") and DIGEST.fullmatch(path.name[1:-8]):
            _remove(path)


def _remove(folder: Path) -> None:
    store.unsealed(folder)
    shutil.rmtree(folder)


def _checked(home: Path, name: str, key: Path | None) -> Manifest:
    place = home / name
    checking.check(place, key)
    # What this version of tel-edge cannot open is told before it is active.
    made = bundle.read(place)
    for file in made.files:
        bundle.fitted(place, made, file)
    return made


def _last(past: list[str], name: str | None) -> int:
    """Return where a digest stands last in a history that has it."""
    return max(at for at, one in enumerate(past) if one == name)


def _switch(home: Path, name: str) -> None:
    link = home / CURRENT
    if link.exists() and not link.is_symlink():
        raise InputError(f"{link}: {what_is(link)}, in the place of the link; move it away")
    for path in home.glob(".*"):
        if abandoned(path):
            remove(path)
    try:
        # Relative, so that the store can be moved.
        write_link(link, name)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        raise WorkError(
            f"{home}: its file system has no symbolic links, which an active version needs; pull "
            "into a folder of another one, such as ext4"
        ) from None
