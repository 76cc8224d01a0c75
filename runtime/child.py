"""Work in a process of its own, which can crash, hang or fill its memory alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tel_edge.runtime.errors import InputError, WorkError

T = TypeVar("T")


def in_child(limit: float | None, work: Callable[..., T], *given: Any) -> T:
    """Return `work(*given)`, done in a new process.

    Raises the `InputError` that it raises, on one line, and `WorkError` if it raises anything
    else, dies, or takes longer than `limit` seconds, None being any time.
    """
    import multiprocessing

    # A process pool could neither be timed out nor say which signal its process died of.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(there, work, given), daemon=True)
    child.start()
    there.close()
    try:
        if not here.poll(limit):
            raise WorkError(f"took longer than {limit:.0f} s")
        result, error = here.recv()
    except EOFError:
        child.join()
        raise WorkError(f"crashed ({_ending(child.exitcode)})") from None
    finally:
        # Also when interrupted: nothing is left running.
        child.kill()
        child.join()
        here.close()
    if error:
        raise error
    made: T = result
    return made


def _work(pipe: Any, work: Callable[..., Any], given: Sequence[Any]) -> None:
    import signal

    # An interrupt reaches both processes, and the other one ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A crash of native code may print pages, and what it was is in the exit status.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        pipe.send((work(*given), None))
    except InputError as error:
        pipe.send((None, InputError(_line(error))))
    except WorkError as error:
        pipe.send((None, WorkError(_line(error))))
    except Exception as error:
        pipe.send((None, WorkError(f"{type(error).__name__}: {error}")))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _ending(code: int | None) -> str:
    import signal

    if code is not None and code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"
