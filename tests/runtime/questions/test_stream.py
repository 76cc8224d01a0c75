"""Windows of a stream that may be slow, endless or torn, and its answers in order."""

from __future__ import annotations

import io
import os
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tel_edge.runtime.questions import stream


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    """Wait until it holds, and return whether it did in time."""
    until = time.monotonic() + seconds
    while not holds() and time.monotonic() < until:
        time.sleep(0.005)
    return holds()


@given(st.integers(0, 30), st.integers(1, 9))
def test_windows_are_full_but_the_last(count: int, size: int) -> None:
    made = list(stream.windows(range(count), size))
    assert [line for window in made for line in window] == list(range(count))
    assert all(len(window) == size for window in made[:-1])
    assert not made or 1 <= len(made[-1]) <= size


def test_a_window_is_read_when_it_is_asked_for() -> None:
    read: list[int] = []
    made = stream.windows((read.append(at) or at for at in range(100)), 3)
    assert read == []
    assert (next(made), next(made)) == ([0, 1, 2], [3, 4, 5])
    assert len(read) == 6


@pytest.mark.parametrize("count", [0, 1, 5, 6, 17])
def test_live_windows_lose_nothing(count: int) -> None:
    made = list(stream.live_windows(iter(range(count)), 3, patience=5))
    assert [line for window in made for line in window] == list(range(count))
    # What is there at once is packed.
    assert [len(window) for window in made[:-1]] == [3] * (len(made) - 1)


def test_nobody_waits_for_a_full_window() -> None:
    go = threading.Semaphore(0)

    def slow() -> Iterator[int]:
        for at in range(4):
            assert go.acquire(timeout=10)
            yield at

    made = stream.live_windows(slow(), 100, patience=0.01)
    for at in range(3):
        go.release()
        assert next(made) == [at]
    go.release()
    assert list(made) == [[3]]


def test_lines_that_are_on_their_way_come_along() -> None:
    seen = threading.Event()

    def bursts() -> Iterator[int]:
        yield from range(3)
        assert seen.wait(10)
        yield from range(3, 6)

    made = stream.live_windows(bursts(), 100, patience=0.5)
    assert next(made) == [0, 1, 2]
    seen.set()
    assert list(made) == [[3, 4, 5]]


def test_a_slow_drip_does_not_hold_the_first_line_back() -> None:
    """The patience is that of the window and not of each line."""

    def drip() -> Iterator[int]:
        for at in range(200):
            time.sleep(0.01)
            yield at

    first = next(stream.live_windows(drip(), 1000, patience=0.05))
    assert 1 <= len(first) <= 100


@pytest.mark.parametrize("error", [OSError("gone"), KeyboardInterrupt(), ValueError("x")])
def test_what_reading_raises_comes_after_the_lines_before_it(error: BaseException) -> None:
    def failing() -> Iterator[int]:
        yield from range(5)
        raise error

    made = stream.live_windows(failing(), 3, patience=5)
    assert (next(made), next(made)) == ([0, 1, 2], [3, 4])
    with pytest.raises(type(error)) as caught:
        next(made)
    assert caught.value is error


def test_no_more_is_read_ahead_than_a_window() -> None:
    size, read = 10, 0

    def endless() -> Iterator[int]:
        nonlocal read
        while True:
            read += 1
            yield read

    made = stream.live_windows(endless(), size, patience=5)
    for turn in range(1, 4):
        assert len(next(made)) == size
        # One window in the queue, and a line in the hand of the thread that waits to put it there.
        most = (turn + 1) * size + 1
        assert within(5, lambda most=most: read == most)  # type: ignore[misc]
        time.sleep(0.02)
        assert read == most


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            assert end == ends[1], "only the writing end is closed by a test"


def test_raw_lines_of_a_pipe(pipe: tuple[int, int]) -> None:
    """Lines in parts, an empty one, bytes that are no UTF-8, and no newline at the end."""
    out, into = pipe
    lines = stream.raw_lines(out)
    os.write(into, "whole\n\ntorn in ü".encode()[:-1])
    assert (next(lines), next(lines)) == ("whole", "")
    # The character is whole before the line is read.
    os.write(into, "ü".encode()[1:] + b" two\r\nb\xffd\nwithout end")
    assert next(lines) == "torn in ü two\r"
    assert next(lines).encode("utf-8", "surrogateescape") == b"b\xffd"
    os.close(into)
    assert list(lines) == ["without end"]


@pytest.mark.parametrize("character", ["x", "\U0001f600"])
def test_a_line_of_any_length_is_cut_and_the_next_one_whole(character: str, tmp_path: Path) -> None:
    """In time that grows with it alone, and in the memory of what is kept."""
    most = stream.MOST_LINE
    size = len(character.encode())
    text = f"a\n{character * (32_000_000 // size)}\nb\n{character * most}\nc"
    (tmp_path / "lines").write_text(text, encoding="utf-8")
    fd = os.open(tmp_path / "lines", os.O_RDONLY)
    began = time.process_time()
    tracemalloc.start()
    lines = list(stream.raw_lines(fd))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    os.close(fd)
    assert time.process_time() - began < 4
    assert peak < 32_000_000
    assert [lines[0], lines[2], lines[4]] == ["a", "b", "c"]
    assert len(lines[1]) > most
    assert lines[3] == character * most


def test_raw_lines_longer_than_what_a_pipe_holds(pipe: tuple[int, int]) -> None:
    out, into = pipe
    text = b"x" * 300_000 + b"\n" + b"y" * 200_000 + b"\n"

    def write() -> None:
        with open(into, "wb", closefd=False) as file:
            file.write(text)
        os.close(into)

    writer = threading.Thread(target=write)
    writer.start()
    assert [len(line) for line in stream.raw_lines(out)] == [300_000, 200_000]
    writer.join()


def test_an_empty_pipe_has_no_lines(pipe: tuple[int, int]) -> None:
    os.close(pipe[1])
    assert list(stream.raw_lines(pipe[0])) == []


def test_what_is_live(pipe: tuple[int, int], tmp_path: Path) -> None:
    assert stream.is_live(pipe[0])
    with (tmp_path / "file").open("w+") as file:
        assert stream.descriptor(file) == file.fileno()
        assert not stream.is_live(file.fileno())
    assert stream.descriptor(file) is None
    assert stream.descriptor(io.StringIO()) is None


@pytest.mark.parametrize(
    ("text", "count"), [(b"", 0), (b"a", 1), (b"a\n", 1), (b"a\nb", 2), (b"\n\n", 2)]
)
def test_lines_are_counted_and_left_where_they_are(text: bytes, count: int, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"before\n" + text)
    with path.open("rb") as file:
        os.lseek(file.fileno(), 7, os.SEEK_SET)
        assert stream.count_lines(file.fileno()) == count
        assert os.read(file.fileno(), 100) == text
    path.write_bytes(b"line\n" * 300_000 + b"more")
    with path.open("rb") as file:
        assert stream.count_lines(file.fileno()) == 300_001


@given(st.permutations(range(12)))
def test_results_come_in_order(order: list[int]) -> None:
    assert list(stream.in_order((at, f"r{at}") for at in order)) == [f"r{at}" for at in range(12)]


def test_a_result_goes_out_as_soon_as_all_before_it_are_out() -> None:
    done: list[int] = []

    def work() -> Iterator[tuple[int, int]]:
        for at in (1, 0, 3, 2):
            done.append(at)
            yield at, at

    made = stream.in_order(work())
    assert (next(made), done) == (0, [1, 0])
    assert (next(made), done) == (1, [1, 0])
    assert (next(made), done) == (2, [1, 0, 3, 2])
    assert list(made) == [3]


def test_a_result_that_is_nothing_is_one_too() -> None:
    results: list[tuple[int, Any]] = [(1, "b"), (0, None)]
    assert list(stream.in_order(results)) == [None, "b"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("broken")])
def test_what_was_answered_goes_out_before_the_interruption(error: BaseException) -> None:
    def work() -> Iterator[tuple[int, str]]:
        yield 4, "e"
        yield 0, "a"
        yield 2, "c"
        raise error

    made = stream.in_order(work())
    assert [next(made) for _ in range(3)] == ["a", "c", "e"]
    with pytest.raises(type(error)) as caught:
        next(made)
    assert caught.value is error
