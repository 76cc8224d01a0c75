"""Places that several commands write: one at a time has one, and the others are told which."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tel_edge.runtime.errors import REMEDIES, WorkError
from tel_edge.runtime.files.atomic import make_folder, what_is

# Seconds between two tries, and for what has just taken a place to note who it is.
PAUSE, SOON = 0.1, 1.0
# The most characters of a command line that a message shows, and what nobody noted.
LONGEST, NOBODY = 120, "another command"
# The lock's file in a folder that is locked `inside`, and the one that says who has it.
NAMES = (".lock", ".holder")


class Busy(WorkError):
    """Another command has the place."""


@contextmanager
def held(
    place: Path, wait: float, say: Callable[[str], None], inside: bool = False
) -> Iterator[None]:
    """Have `place`, a file or folder, for writing; reading needs no lock.

    The lock is the operating system's, on a hidden file beside `place`, or in it if it is a folder
    that is never replaced as a whole (`inside`), so it ends with the process, however that ends.
    The file stays. While another process, here or on another machine that shares the volume, has
    the place, this waits up to `wait` seconds, having said so in one line, and then raises `Busy`
    naming that process. The same process cannot have a place twice.
    """
    from filelock import FileLock, Timeout

    lock_file, note = _files(place, inside)
    make_folder(lock_file.parent)
    lock, begun, said = FileLock(lock_file), time.monotonic(), False
    while True:
        try:
            with warnings.catch_warnings(record=True) as seen:
                lock.acquire(timeout=0)
            break
        except Timeout:
            who = holder(place, inside)
        except (NotImplementedError, OSError) as error:
            # What a write would fail with as well.
            if getattr(error, "errno", None) in REMEDIES:
                raise
            if os.path.lexists(lock_file) and (what := what_is(lock_file)) != "a file":
                raise WorkError(
                    f"{lock_file}: {what}, where the file of a lock is needed; move it away"
                ) from None
            raise WorkError(
                f"{place} cannot be locked ({error}); a file system with locks is needed"
            ) from error
        waited = time.monotonic() - begun
        if who == NOBODY and waited < SOON:
            time.sleep(PAUSE)
            continue
        if waited >= wait:
            unasked = "" if wait else ", or pass --wait"
            raise Busy(f"{place} is in use by {who}; wait until it ends{unasked}")
        if not said:
            said = True
            say(f"{place} is in use by {who}; waiting until it ends")
        time.sleep(PAUSE)
    try:
        if seen:
            # The library's way out where a file system has no locks, such as some clusters'.
            say(f"warning: {lock_file.parent}: its file system has no locks")
        # What cannot be noted makes a message poorer and nothing else.
        with suppress(OSError):
            note.write_text(json.dumps(_myself()), encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            note.unlink()
        lock.release()


def holder(place: Path, inside: bool = False) -> str:
    """Return in words which process noted last that it has `place`, on which machine, since when.

    The note of a process that was killed stays; it means something only while the lock is taken.
    """
    try:
        known = json.loads(_files(place, inside)[1].read_text(encoding="utf-8"))
        return (
            f"{known['command']} (process {known['pid']} on {known['host']}, "
            f"since {known['since']})"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return NOBODY


def _files(place: Path, inside: bool) -> tuple[Path, Path]:
    """Return the lock's file and the one that says who has it."""
    folder, name = (place, "") if inside else (place.parent, f".{place.name}")
    lock_file, note = (folder / f"{name}{end}" for end in NAMES)
    return lock_file, note


def _myself() -> dict[str, str | int]:
    command = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
    shown = command if len(command) <= LONGEST else f"{command[:LONGEST]}..."
    return {
        "command": shown.replace("\n", " "),
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
