"""Writes that are whole or not there: sibling temporary file, fsync, rename."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tel_edge.runtime.errors import InputError, named

# A temporary sibling: of which file, process and machine. Older versions named no machine.
PARTIAL = re.compile(r"\..+\.(\d+)(?:@([^@]+))?\.(?:partial|old)", re.DOTALL)
# Seconds after which nobody still writes to a file of a version that named no machine.
LONG_AGO = 86_400


def temporary(path: Path, kind: str = "partial") -> Path:
    """Return a hidden sibling of `path` that no other process, here or elsewhere, writes to."""
    return path.with_name(f".{path.name}.{os.getpid()}@{_host()}.{kind}")


def abandoned(path: Path) -> bool:
    """Return whether `path` is a temporary sibling that a dead process of this machine left.

    Those of other machines, on a volume that several share, are not. One that names no machine is
    abandoned when no process here has its number and nothing was written to it for a day.
    """
    match = PARTIAL.fullmatch(path.name)
    if match is None or _alive(int(match[1])):
        return False
    if match[2] is None:
        return time.time() - path.stat().st_mtime > LONG_AGO
    return match[2] == _host()


def remove(path: Path) -> None:
    """Remove a file or symbolic link, or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def what_is(path: Path) -> str:
    """Return in words what is at `path`."""
    if path.is_symlink():
        return "a symbolic link" if path.exists() else "a symbolic link to nothing"
    if path.is_dir():
        return "a folder"
    return "a file" if path.is_file() else "neither file nor folder"


def make_folder(path: Path) -> None:
    """Make a folder with its parents, if it is not there.

    Raises `InputError` naming what is in its way.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTDIR, errno.ELOOP):
            raise
        every = (*reversed(path.parents), path)
        wrong = next((one for one in every if os.path.lexists(one) and not one.is_dir()), path)
        raise InputError(
            f"{wrong}: {what_is(wrong)}, where a folder is needed; move it away or name another"
        ) from None


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname()) or "localhost"


def _alive(process: int) -> bool:
    if os.name == "nt":
        # Signal 0, which asks on POSIX, ends the process there.
        return process == os.getpid()
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary sibling of `path` to write to; on success it takes the place of `path`.

    On any error the sibling is removed and `path` is as it was. Raises `InputError` where a folder
    is in the place of `path`, or something else in that of its folder.
    """
    make_folder(path.parent)
    if path.is_dir():
        raise InputError(
            f"{path}: {what_is(path)}, where a file is to be written; move it away or name another "
            "place"
        )
    partial = temporary(path)
    try:
        with named(path):
            yield partial
            _sync(partial)
            os.replace(partial, path)
            _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by a file holding `text`, in one step."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_link(path: Path, target: str) -> None:
    """Let the symbolic link `path` lead to the folder `target`, in one step."""
    partial = temporary(path)
    partial.unlink(missing_ok=True)
    partial.symlink_to(target, target_is_directory=True)
    os.replace(partial, path)
    _sync(path.parent)


def followed(path: Path) -> Path:
    """Return what a symbolic link leads to now, `path` itself where it is none.

    A link such as `current` of a store may lead elsewhere before all files behind it are open.
    """
    # Unlike `is_symlink` this is no error for a name that no file can have.
    return path.resolve() if os.path.islink(path) else path


def replace_folder(made: Path, path: Path) -> None:
    """Put the finished folder `made` in the place of `path`, which goes away if it is there.

    A folder cannot be exchanged in one step: where the second one fails the old folder is put back,
    and a crash in between leaves no `path` but the old folder as a temporary sibling. A symbolic
    link goes away without what it leads to; a file raises `InputError`.
    """
    if path.is_file() and not path.is_symlink():
        raise InputError(f"{path}: a file, where a folder is needed; move it away")
    for file in made.rglob("*"):
        if file.is_file():
            _sync(file)
    make_folder(path.parent)
    if os.path.lexists(path):
        old = temporary(path, "old")
        os.replace(path, old)
        try:
            os.replace(made, path)
        except BaseException:
            os.replace(old, path)
            raise
        remove(old)
    else:
        os.replace(made, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    flags = os.O_RDONLY
    if os.name == "nt":
        # There a folder cannot be opened, and a file be flushed by none who may not write it.
        if path.is_dir():
            return
        flags = os.O_RDWR
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
