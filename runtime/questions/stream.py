"""A stream in windows, and out again in its own order."""

from __future__ import annotations

import itertools
import os
import queue
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

T = TypeVar("T")

# After the first line of a window, others that are on their way are waited for this long.
PATIENCE = 0.02
# Characters of a line; the longest context of any backbone takes less.
MOST_LINE = 1 << 20


def windows(lines: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield `lines` in lists of `size`, the last one shorter."""
    rest = iter(lines)
    while window := list(itertools.islice(rest, size)):
        yield window


def live_windows(lines: Iterable[T], size: int, patience: float = PATIENCE) -> Iterator[list[T]]:
    """Yield lists of at most `size` lines as they come, so that nobody waits for a full window.

    A thread reads ahead, at most one window. What reading raises is raised here, after the lines
    before it.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(size)

    def read() -> None:
        try:
            for line in lines:
                ready.put((line, None))
            ready.put((None, StopIteration()))
        except BaseException as error:
            ready.put((None, error))

    # A reader that is stuck in a read must not keep the process alive.
    threading.Thread(target=read, daemon=True).start()
    ended: BaseException | None = None
    while ended is None:
        line, ended = ready.get()
        window = [line] if ended is None else []
        until = time.monotonic() + patience
        while ended is None and len(window) < size:
            try:
                line, ended = ready.get(timeout=max(0, until - time.monotonic()))
            except queue.Empty:
                break
            if ended is None:
                window.append(line)
        if window:
            yield window  # type: ignore[misc]
    if not isinstance(ended, StopIteration):
        raise ended


def raw_lines(descriptor: int) -> Iterator[str]:
    """Yield the lines of a file, pipe or terminal; a byte that is no UTF-8 stays a surrogate.

    Of a line with more than `MOST_LINE` characters only the beginning comes, which still has more.
    Not through `sys.stdin`: a thread that waits inside its buffer holds a lock that the interpreter
    needs in order to exit.
    """
    # No character of UTF-8 has more than four bytes.
    line, most = bytearray(), 4 * (MOST_LINE + 1)
    while part := os.read(descriptor, 1 << 16):
        first, *others = part.split(b"\n")
        line += first[: most - len(line)]
        for other in others:
            yield line.decode("utf-8", "surrogateescape")
            line = bytearray(other)
    if line:
        yield line.decode("utf-8", "surrogateescape")


def descriptor(stream: TextIO) -> int | None:
    """Return the stream's file descriptor, or None where there is none behind it."""
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


def is_live(fd: int) -> bool:
    """Return whether lines come as they are made, rather than all being there in a file."""
    return not stat.S_ISREG(os.fstat(fd).st_mode)


def count_lines(fd: int) -> int:
    """Return how many lines an open file still has. Leaves it where it was."""
    with open(fd, "rb", closefd=False, buffering=0) as raw:
        start = os.lseek(raw.fileno(), 0, os.SEEK_CUR)
        count, last = 0, b"\n"
        while part := raw.read(1 << 20):
            count, last = count + part.count(b"\n"), part[-1:]
        os.lseek(raw.fileno(), start, os.SEEK_SET)
    return count + (last != b"\n")


def in_order(results: Iterable[tuple[int, T]]) -> Iterator[T]:
    """Yield the results by their index, 0 first, each as soon as all before it are out.

    If it is interrupted while it waits for results, it yields what it has, with gaps, and then
    raises: what was answered is not lost.
    """
    held: dict[int, T] = {}
    following = 0
    rest = iter(results)
    while True:
        try:
            index, result = next(rest)
        except StopIteration:
            break
        except BaseException:
            yield from (held[index] for index in sorted(held))
            raise
        held[index] = result
        while following in held:
            yield held.pop(following)
            following += 1
    yield from (held[index] for index in sorted(held))
