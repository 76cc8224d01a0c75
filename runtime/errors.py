"""The ways in which a command ends badly."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What to do where a place cannot be written or read, by the number of the system's error.
REMEDIES = {
    errno.ENOSPC: "make room and run the same command again",
    errno.EDQUOT: "make room in your quota and run the same command again",
    errno.EROFS: "nothing can be written there; name another place",
    errno.EFBIG: "this file system, or a limit, takes no such file; name another place",
    errno.ENAMETOOLONG: "name it more shortly",
    errno.EACCES: "allow this user to read and write there, or name another place",
}


class InputError(ValueError):
    """Wrong usage or bad input: what is wrong, where, what to do, in one or two lines. Exit 2."""


class WorkError(RuntimeError):
    """The input was fine but the work failed, in one or two lines. Exit 1."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came, which ends a command in the same order as an interrupt. Exit 143."""


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let an `OSError` of `REMEDIES` say that it is about `path`, if it names no file itself.

    Those of writing and of fsync name none.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in REMEDIES:
            error.filename = str(path)
        raise
