"""Whether a bundle's folder holds what its manifest lists, all of it and nothing else."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tel_edge.runtime.bundles import manifest as manifests
from tel_edge.runtime.bundles.manifest import DIGEST, NAME, Manifest
from tel_edge.runtime.bundles.shipping import signature
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import digest, lock
from tel_edge.runtime.files.atomic import what_is

# What to do with a bundle that is not as it was made.
AGAIN = "fetch the bundle again: tel-bundle pull, with --older where a newer one is active"
MOST = signature.MOST


def check(folder: Path, key: Path | None = None) -> Manifest:
    """Return the manifest of a bundle, every file of which was read and is right.

    A folder that is called by a digest has to have that one, and with `key`, a public key's file,
    its signature has to be by that key, over these files. Raises `InputError` naming the first file
    that is damaged, missing, too much, or no plain file.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    there = dict(_files(folder))
    made = manifests.read(folder)
    own = manifests.of_folder(folder)
    version = DIGEST.fullmatch(folder.name)
    if version and folder.name != own:
        raise InputError(f"{folder / NAME}: changed, the folder is called by its SHA-256; {AGAIN}")
    listed = {PurePosixPath(file.path).as_posix(): file for file in made.files}
    if signature.NAME in listed:
        raise InputError(f"{folder / NAME}: lists {signature.NAME}, the signature's place; {AGAIN}")
    # In a workspace commands lock a bundle; in a version nothing is ever written.
    usual = {NAME, signature.NAME, *(() if version else lock.NAMES)}
    if extra := there.keys() - listed.keys() - usual:
        raise InputError(
            f"{folder / min(extra)}: {NAME} does not list it; remove it, or make "
            "a bundle that travels: tel-export --deploy"
        )
    if key is not None:
        place = folder / signature.NAME
        text = place.read_bytes() if there.get(signature.NAME, MOST) < MOST else None
        signed(made, own, text, key, str(folder))
    for path, file in listed.items():
        if path not in there:
            raise InputError(f"{folder / path}: missing, though {NAME} lists it; {AGAIN}")
        if there[path] != file.bytes:
            raise InputError(
                f"{folder / path}: {there[path]:,} bytes, {NAME} says {file.bytes:,}; {AGAIN}"
            )
        if digest.of_file(folder / path) != file.sha256:
            raise InputError(
                f"{folder / path}: damaged, its SHA-256 is not that of {NAME}; {AGAIN}"
            )
    return made


def signed(made: Manifest, own: str, text: bytes | None, key: Path, where: str) -> None:
    """Raise `InputError` unless `text` is a signature by `key` of this bundle.

    `own` is the SHA-256 of the manifest, `where` where the bundle is.
    """
    if text is None:
        raise InputError(
            f"{where}: nobody signed it (no {signature.NAME}); whoever makes it "
            "does: tel-bundle sign BUNDLE --key FILE"
        )
    found = signature.read(text, key, f"{where}/{signature.NAME}")
    wanted = digests(made, own)
    for path in sorted(wanted.keys() | found.keys()):
        if wanted.get(path) != found.get(path):
            raise InputError(f"{where}/{path}: not what the key of {key} signed; {AGAIN}")


def digests(made: Manifest, own: str) -> dict[str, str]:
    """Return the SHA-256 of each file of a bundle by its path; `own` is that of the manifest."""
    files = {PurePosixPath(file.path).as_posix(): file.sha256 for file in made.files}
    return {NAME: own, **files}


def of_text(text: bytes) -> str:
    """Return the digest by which a version is called: the SHA-256 of its manifest's bytes."""
    return hashlib.sha256(text).hexdigest()


def _files(folder: Path, below: str = "") -> Iterator[tuple[str, int]]:
    """Yield path and bytes of every file; raise `InputError` for what is no plain file."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path), f"{below}{entry.name}/")
            elif entry.is_file(follow_symlinks=False):
                yield below + entry.name, entry.stat().st_size
            else:
                what = what_is(Path(entry.path))
                raise InputError(f"{entry.path}: {what}; a bundle has plain files alone")
