"""A store: a folder with versions of a bundle by digest, which share the files that are the same.

`tel-export --deploy` makes one, a device has one. `DIGEST/` is a bundle, DIGEST the SHA-256 of its
`manifest.json`; nothing in it is ever changed. `latest` holds the digest of the highest serial.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.bundles import manifest as manifests
from tel_edge.runtime.bundles.manifest import DIGEST, NAME, BundleFile, Manifest
from tel_edge.runtime.bundles.shipping import checking, signature
from tel_edge.runtime.bundles.shipping.sources import CHUNK, LATEST, Folder, Source
from tel_edge.runtime.errors import InputError, WorkError, named
from tel_edge.runtime.files import digest
from tel_edge.runtime.files.atomic import make_folder, replace_folder, temporary, write_text


@dataclass(frozen=True)
class Added:
    """A version in a store: whether it is new there, and how many bytes came for it."""

    folder: Path
    manifest: Manifest
    new: bool
    moved: int


def check_home(home: Path) -> None:
    """Raise `InputError` for a folder of versions that is a bundle itself, before it is locked."""
    if (home / NAME).is_file():
        raise InputError(f"{home}: a bundle, no folder of versions; name the folder that it is in")


def looked(home: Path) -> tuple[dict[str, Manifest], dict[str, str]]:
    """Return the manifests of a store's versions by digest, the highest serial last.

    And what is wrong with those that are damaged, which are no versions.
    """
    found, damaged = {}, {}
    for folder in sorted(home.iterdir()) if home.is_dir() else ():
        if DIGEST.fullmatch(folder.name):
            try:
                found[folder.name] = manifests.read(folder)
            except (InputError, OSError) as error:
                damaged[folder.name] = str(error).partition("\n")[0]
    ordered = sorted(found.items(), key=lambda item: (item[1].serial or 0, item[0]))
    return dict(ordered), damaged


def versions(home: Path) -> dict[str, Manifest]:
    """Return the manifests of a store's versions by digest, the highest serial last."""
    return looked(home)[0]


def chosen(folder: Path, made: Manifest) -> tuple[BundleFile, ...]:
    """Return what a device needs of a bundle: what a report decided for, or all of it.

    What was decided for is the backbone with its parts, the adapters of the categories that are
    worth it, and the router. Raises `InputError` where that is not to be had.
    """
    if made.deploy is None:
        return made.files
    file, said = bundle.deployed_file(made)
    if file is None:
        raise InputError((said or "").removeprefix("warning: "))
    others = bundle.companions(folder, made, file, made.deploy.adapters)
    return (*made.parts(file), *others)


def deploy(folder: Path, home: Path, serial: int | None = None) -> Added:
    """Make a version of a store of what a device needs of a bundle.

    Its serial is one above the highest there, unless given. What is the highest version already is
    left as it is.
    """
    there = bundle.read(folder)
    made = replace(there, files=chosen(folder, there), serial=None)
    bundle.verify(folder, made, made.files)
    last = next(reversed(versions(home).values()), None)
    if last is not None and serial is None and replace(last, serial=None) == made:
        serial = last.serial
    made = replace(made, serial=serial or (last.serial or 0 if last else 0) + 1)
    return add(home, manifests.dumps(made).encode(), None, Folder(folder))


def add(home: Path, text: bytes, signed: bytes | None, source: Source) -> Added:
    """Put a version into a store: its manifest, its signature if any, and its files from a source.

    Only files that no version has come from the source. The version is not there before all of it
    is, checked; what a run that was killed got is gone on with.
    """
    name = checking.of_text(text)
    place, staging = home / name, home / f".{name}.partial"
    if place.is_dir() and _whole(place, signed):
        _name_latest(home)
        return Added(place, manifests.read(place), False, 0)
    make_folder(staging)
    unsealed(staging)
    for own, content in ((NAME, text), (signature.NAME, signed)):
        (staging / own).unlink(missing_ok=True)
        if content is not None:
            (staging / own).write_bytes(content)
    made = manifests.read(staging)
    known = {
        file.sha256: home / one / file.path
        for one, other in versions(home).items()
        for file in other.files
    }
    moved = fill(staging, made, source, known)
    sealed(staging)
    if place.is_dir():
        # A damaged version, or one whose signature came later.
        unsealed(place)
    replace_folder(staging, place)
    _name_latest(home)
    return Added(place, made, True, moved)


def _name_latest(home: Path) -> None:
    """Have `latest` name the highest version, whatever a run that was killed left there."""
    text, place = f"{next(reversed(versions(home)))}\n".encode(), home / LATEST
    if not place.is_file() or place.read_bytes() != text:
        write_text(place, text.decode())


def fill(folder: Path, made: Manifest, source: Source, known: Mapping[str, Path]) -> int:
    """Put the files of a manifest into a folder, and return the bytes that came from the source.

    `known` are places on this machine of files by their SHA-256: such a file becomes a hard link,
    or a copy where the file system has none. Raises `InputError` for one that is another file.
    """
    moved = 0
    for file in made.files:
        place, own = folder / file.path, known.get(file.sha256)
        make_folder(place.parent)
        if _is(place, file):
            continue
        if own is not None and _is(own, file):
            place.unlink(missing_ok=True)
            linked(own, place)
            continue
        moved += received(source, file, place)
    return moved


def received(source: Source, file: BundleFile, place: Path) -> int:
    """Write a file of a bundle from its source, hashed on the way; return the bytes that came.

    What is at `place` is taken for its beginning. Raises `WorkError` where the source ends too
    early, and leaves what came; `InputError` where it is another file.
    """
    at = place.stat().st_size if place.is_file() else 0
    if at >= file.bytes:
        place.unlink(missing_ok=True)
        at = 0
    found = source.read(file.path, at)
    if found is None:
        raise InputError(f"{source.name}/{file.path}: missing, though {NAME} lists it")
    at, chunks = found
    hashed, moved = hashlib.sha256(), 0
    with named(place), place.open("r+b" if at else "wb") as out:
        while out.tell() < at:
            hashed.update(out.read(min(CHUNK, at - out.tell())))
        out.truncate()
        for chunk in chunks:
            moved += len(chunk)
            if at + moved > file.bytes:
                break
            hashed.update(chunk)
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    if at + moved < file.bytes:
        raise WorkError(
            f"{source.name}/{file.path}: ends after {at + moved:,} of {file.bytes:,} bytes; run "
            "the same command again, which goes on where it was"
        )
    if at + moved > file.bytes or hashed.hexdigest() != file.sha256:
        place.unlink()
        if at:
            # What was there was the beginning of something else.
            return moved + received(source, file, place)
        raise InputError(
            f"{source.name}/{file.path}: damaged, or of another version: not what {NAME} lists"
        )
    return moved


def linked(own: Path, place: Path) -> None:
    """Make `place` the same file as `own`, or a copy of it where the file system has no links."""
    try:
        os.link(own, place)
    except OSError:
        shutil.copyfile(own, place)
        stamp = own.stat()
        # By which rsync knows that it is the same.
        os.utime(place, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def sealed(folder: Path) -> None:
    """Let nobody write to a folder and what is in it."""
    for path in (*folder.rglob("*"), folder):
        _allow(path, 0o555 if path.is_dir() else 0o444)


def unsealed(folder: Path) -> None:
    """Let this user take files out of a folder, and put others in."""
    _allow(folder, 0o755)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            unsealed(path)


def _allow(path: Path, mode: int) -> None:
    # FAT, which most sticks have, knows none of this.
    with suppress(PermissionError):
        path.chmod(mode)


def _is(place: Path, file: BundleFile) -> bool:
    """Return whether a file is what a manifest lists, having read all of it."""
    if not place.is_file() or place.is_symlink() or place.stat().st_size != file.bytes:
        return False
    return digest.of_file(place) == file.sha256


def _whole(place: Path, signed: bytes | None) -> bool:
    """Return whether a version is there with nothing wrong, and has the signature."""
    try:
        checking.check(place)
    except InputError:
        return False
    own = place / signature.NAME
    return signed is None or (own.is_file() and own.read_bytes() == signed)


def sign(folder: Path, key: Path) -> Path:
    """Sign a bundle with a private key's file, once it is checked; return the signature's place."""
    folder = folder.resolve()
    made = checking.check(folder)
    digests = checking.digests(made, manifests.of_folder(folder))
    text, mode = signature.make(made.backbone.name, digests, key), folder.stat().st_mode
    # Beside the folder, in which nothing but whole files ever is.
    partial = temporary(folder)
    try:
        partial.write_bytes(text)
        _allow(partial, 0o444)
        _allow(folder, 0o755)
        os.replace(partial, folder / signature.NAME)
    finally:
        _allow(folder, mode)
        partial.unlink(missing_ok=True)
    return folder / signature.NAME
