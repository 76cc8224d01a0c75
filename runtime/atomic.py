"""Writes that are whole or not there: sibling temporary file, fsync, rename."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary sibling of `path` to write to; on success it takes the place of `path`.

    On any error the sibling is removed and `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
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


def replace_folder(made: Path, path: Path) -> None:
    """Put the finished folder `made` in the place of `path`, which goes away if it is there.

    A folder cannot be exchanged in one step: a crash in between leaves no `path`, never half of
    one.
    """
    for file in made.rglob("*"):
        if file.is_file():
            _sync(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        os.replace(path, old)
        os.replace(made, path)
        shutil.rmtree(old)
    else:
        os.replace(made, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
