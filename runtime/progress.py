"""How far long work is: a bar on a terminal, and a line now and then in a log."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

# Seconds between two lines, and until the first: what ends sooner writes none.
EVERY = 30.0
LINE = "{desc}: {unit}{n_fmt} of {total_fmt} after {elapsed}{left}{postfix}"
# The share that has to be done before anybody is told how long the rest will take.
KNOWN = 0.1


class _Lines:
    """A file in which each drawing of a bar is a line of its own of stderr."""

    def write(self, text: str) -> None:
        # The rest is what moves a cursor about.
        if text := text.strip():
            print(text, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


def bar(title: str, unit: str, total: int | None, quiet: bool = False, **options: Any) -> Any:
    """Return a tqdm on stderr; `options` are tqdm's own.

    Nothing is shown if `quiet`, nor of work without an end (`total` is None) where no terminal is.
    """
    from tqdm import tqdm

    lock_of_its_own()
    shared = {"desc": title, "unit": unit, "total": total, "leave": False, **options}
    if _has_room():
        return tqdm(**shared, disable=quiet, file=sys.stderr)
    off = quiet or total is None or sys.stderr is None
    # Every update looks at the clock, so that no thread has to watch over it.
    slow = {"mininterval": EVERY, "maxinterval": EVERY, "delay": EVERY, "miniters": 0}

    class Log(tqdm):  # type: ignore[misc]
        @property
        def format_dict(self) -> dict[str, Any]:
            made: dict[str, Any] = super().format_dict
            own, rest = made["n"] - made["initial"], made["total"] - made["n"]
            known = own > 0 and made["n"] >= KNOWN * made["total"]
            left = tqdm.format_interval(made["elapsed"] * rest / own) if known else ""
            unit = made["unit"] and f"{made['unit']} "
            return made | {"left": left and f", {left} left", "unit": unit}

    return Log(**shared, **slow, disable=off, file=_Lines(), bar_format=LINE)


def _has_room() -> bool:
    """Return whether stderr is a terminal with a size: some have no columns or rows."""
    if sys.stderr is None or not sys.stderr.isatty():
        return False
    try:
        # tqdm draws nothing where there are no rows, either.
        return all(os.get_terminal_size(sys.stderr.fileno()))
    except (OSError, ValueError):
        return True


def lock_of_its_own() -> None:
    """Let all bars of this process, other libraries' too, share a lock of the process.

    tqdm's is for several processes that write bars: a semaphore of the system, which a process that
    is killed leaves and Python complains of on stderr.
    """
    from tqdm import tqdm

    if not hasattr(tqdm, "_lock"):
        tqdm.set_lock(threading.RLock())
