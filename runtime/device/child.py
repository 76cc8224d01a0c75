"""Processes of one's own for work that can crash, hang or fill memory; they end with their parent.

A child watches a pipe whose other end the parent alone has, so it ends within moments of its
parent however that ended, on every system: a process of `multiprocessing` has such a pipe from the
start, and a command that `started` starts has its standard input.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from tel_edge.runtime import progress
from tel_edge.runtime.errors import REMEDIES, InputError, Terminated, WorkError

T = TypeVar("T")
# Seconds for a child that was interrupted with its parent, and between a polite and a hard end.
SOON, GRACE = 1.0, 5.0
# How Windows ends a process that crashes (ntstatus.h): it has no signals.
CRASHES = {0xC0000005: ", access violation", 0xC000001D: ", illegal instruction (SIGILL)"}


def in_child(limit: float | None, work: Callable[..., T], *given: Any, shown: bool = False) -> T:
    """Return `work(*given)`, done in a new process.

    What it writes is thrown away unless `shown`. Raises the `InputError` that it raises, on one
    line unless `shown`, and `WorkError` if it raises anything else, dies (`Crashed`), or takes
    longer than `limit` seconds, None being any time; an `OSError` of `errors.REMEDIES` as it is.
    """
    import multiprocessing

    # A process pool could neither be timed out nor say which signal its process died of.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(there, shown, work, given), daemon=True)
    child.start()
    there.close()
    try:
        if not here.poll(limit):
            raise WorkError(f"took longer than {limit:.0f} s")
        result, error = here.recv()
        # It has said all, and ends in order if it can.
        child.join(SOON)
    except EOFError:
        child.join()
        raise Crashed(f"crashed ({ending(child.exitcode)})") from None
    finally:
        # Also when interrupted: nothing is left running.
        child.kill()
        child.join()
        here.close()
    if error:
        raise error
    made: T = result
    return made


class Crashed(WorkError):
    """The process of `in_child` died without a word."""


def _work(pipe: Any, shown: bool, work: Callable[..., Any], given: Sequence[Any]) -> None:
    import multiprocessing
    import signal

    parent = multiprocessing.parent_process()
    assert parent is not None
    _end_after(parent.join)
    # An interrupt reaches both processes, and the other one ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not shown:
        # A crash of native code may print pages, and what it was is in the exit status.
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
    else:
        progress.lock_of_its_own()

    def told(error: Exception) -> str:
        return str(error) if shown else " ".join(str(error).split())

    try:
        pipe.send((work(*given), None))
    except InputError as error:
        pipe.send((None, InputError(told(error))))
    except WorkError as error:
        pipe.send((None, WorkError(told(error))))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in REMEDIES:
            pipe.send((None, error))
            return
        pipe.send((None, WorkError(f"{type(error).__name__}: {error}")))


def command(module: str, name: str) -> tuple[str, ...]:
    """Return what Python is given to run the `main` of a module as the command `name`.

    It works without scripts on the PATH, and ends with the process that `started` it.
    """
    code = (
        "from tel_edge.runtime.device.child import end_with_parent; end_with_parent(); "
        f"import sys; sys.argv[0] = {name!r}; from {module} import main; main()"
    )
    return "-P", "-c", code


def started(argv: Sequence[str], **how: Any) -> subprocess.Popen[Any]:
    """Start Python with `argv`, `how` being options of `Popen`.

    Its standard input is the pipe that it watches (`end_with_parent`), which nothing is written to.
    """
    return subprocess.Popen([sys.executable, *argv], stdin=subprocess.PIPE, **how)


def finished(child: subprocess.Popen[Any]) -> int:
    """Wait for a process that `started` gave and return its exit code.

    Whatever is raised here meanwhile, such as an interruption, ends it first, in order.
    """
    try:
        return child.wait()
    except BaseException as error:
        # An interrupt at the terminal has reached it too.
        told = isinstance(error, KeyboardInterrupt) and not isinstance(error, Terminated)
        ends = ((None, SOON), (child.terminate, GRACE), (child.kill, None))
        for end, wait in ends if told else ends[1:]:
            if end:
                end()
            with suppress(subprocess.TimeoutExpired):
                child.wait(wait)
                break
        raise
    finally:
        if child.stdin:
            child.stdin.close()


def end_with_parent() -> None:
    """Let this process, which `started` started, end as soon as its parent has ended."""

    def closed() -> None:
        while os.read(0, 1):
            pass

    _end_after(closed)


def _end_after(gone: Callable[[], object]) -> None:
    """End this process, whatever it does, once `gone` returns."""
    import threading

    def watch() -> None:
        gone()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def ending(code: int | None) -> str:
    """Return in words how a process ended."""
    import signal

    if code is not None and code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}{CRASHES.get(code or 0, '')}"
