"""`tel-run` on files, pipes and readers that go away."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_engine as fake
import for_run
import pytest
from conftest import INTERRUPTIBLE, MAKERS
from for_run import ASK, MIXED, Command, jsonl, records

from tel_edge.runtime.commands import run
from tel_edge.runtime.engines.engine import Score
from tel_edge.runtime.questions import requests

home = for_run.home
tel_run = for_run.tel_run


@pytest.fixture
def piped() -> Iterator[Callable[[Any], Any]]:
    """Return what makes a stdin of a pipe that a thread writes the given parts into."""
    writers: list[threading.Thread] = []
    files: list[Any] = []

    def made(parts: Any) -> Any:
        out, into = os.pipe()

        def write() -> None:
            with open(into, "wb") as file:
                for part in parts:
                    file.write(part)
                    file.flush()

        writers.append(threading.Thread(target=write))
        writers[-1].start()
        files.append(open(out, encoding="utf-8"))  # noqa: SIM115
        return files[-1]

    yield made
    for file in files:
        file.close()
    for writer in writers:
        writer.join()


def test_a_line_of_any_length_is_one_error_and_soon(
    tel_run: Command, piped: Any, tmp_path: Path
) -> None:
    long = json.dumps({**ASK, "question": "long " * 6_400_000}).encode()
    lines = b"\n".join([jsonl(ASK).strip(), long, jsonl(ASK)])
    (tmp_path / "lines").write_bytes(lines)
    began = time.process_time()
    with (tmp_path / "lines").open(encoding="utf-8") as file:
        code, out, _ = tel_run("--category", "oranbench", lines=file)
    first, refused, last = records(out)
    assert refused == {"line": 2, "error": "more than 1,048,576 characters"}
    assert (code, first["answer"], last["answer"]) == (1, "c", "c")
    assert tel_run("--category", "oranbench", lines=piped([lines]))[1] == out
    assert time.process_time() - began < 4


def test_a_file_a_pipe_and_a_stream_without_either_are_read_alike(
    tel_run: Command, piped: Any, tmp_path: Path
) -> None:
    lines = jsonl(*MIXED, b"torn {", b'{"question": "caf\xe9"}', b"", ASK)[:-1]
    (tmp_path / "lines").write_bytes(lines)
    wanted = tel_run(lines=lines)
    assert wanted[0] == 1
    assert len(records(wanted[1])) == 23
    with (tmp_path / "lines").open(encoding="ascii") as file:
        assert tel_run(lines=file) == wanted
    torn = random.Random(3)
    cuts = sorted(torn.sample(range(1, len(lines)), 30))
    parts = [lines[a:b] for a, b in zip([0, *cuts], [*cuts, len(lines)], strict=True)]
    assert tel_run(lines=piped(parts)) == wanted


def test_ten_thousand_questions_take_the_memory_of_a_few_windows(
    tel_run: Command, piped: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Light(fake.FakeEngine):
        """Keeps nothing of what it is asked."""

        def score(self, items: Any, adapter: str | None) -> Iterator[tuple[int, Score]]:
            packed.append(len(items))
            for at in range(len(items)):
                yield at, Score((-1.0, -2.0), 1, 1, 1.0)

    class Watched(requests.Request):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            living.add(self)
            most.append(max(len(living), most.pop()))

    packed: list[int] = []
    living: weakref.WeakSet[Any] = weakref.WeakSet()
    most = [0]
    monkeypatch.setattr(requests, "Request", Watched)
    count, size = 10_000, 64
    row = {"question": "?", "choices": ["a", "b"]}
    argv = ["--window", str(size), "--category", "oranbench", "--quiet"]
    lines = piped(jsonl(row) for _ in range(count))
    code, out, _ = tel_run(*argv, lines=lines, opener=fake.FakeOpener(engine=Light))
    assert code == 0
    assert [record["id"] for record in records(out)] == [str(at + 1) for at in range(count)]
    assert sum(packed) == count
    assert max(packed) <= size
    # The window at work, the one read ahead, and what is in hands between.
    assert most[0] <= 3 * size + 3


def test_an_answer_goes_out_before_the_next_question_comes(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks one at a time is not kept waiting for a full window."""
    told: list[str] = []
    answered = threading.Semaphore(0)

    def questions() -> Iterator[bytes]:
        for _ in range(3):
            yield jsonl(ASK)
            assert answered.acquire(timeout=20)

    class Out(io.StringIO):
        def write(self, text: str) -> int:
            if text.strip():
                told.append(text)
                answered.release()
            return len(text)

    out, into = os.pipe()

    def write() -> None:
        with open(into, "wb", buffering=0) as file:
            for line in questions():
                file.write(line)

    writer = threading.Thread(target=write)
    writer.start()
    with open(out, encoding="utf-8") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setattr("sys.stdout", Out())
        args = run.parser().parse_args(["--workspace", str(home), "--category", "oranbench"])
        made = run.work(args, fake.FakeOpener())
    writer.join()
    assert (made["answered"], len(told)) == (3, 3)


CHILD = """
import sys, time
from functools import partial
sys.path.insert(0, sys.argv.pop(1))
import fake_engine as fake
from tel_edge.runtime import cli
from tel_edge.runtime.commands import run

def rule(prompt, adapter, labels):
    if "hang" in prompt:
        print("hanging", file=sys.stderr, flush=True)
        time.sleep(60)
    return fake.gold(prompt, adapter, labels)

sys.exit(cli.run(run.parser(), partial(run.work, opener=fake.FakeOpener(rule=rule))))
"""


def child(home: Path) -> subprocess.Popen[bytes]:
    """Start a process as `tel-run` is one, but for the engine, with pipes all around."""
    argv = ["--workspace", str(home), "--category", "oranbench", "--quiet"]
    return subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE + CHILD, str(MAKERS), *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_reader_that_goes_away_ends_it_without_a_word(home: Path) -> None:
    with child(home) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(jsonl(ASK))
        process.stdin.flush()
        assert b'"answer": "c"' in process.stdout.readline()
        process.stdout.close()
        # Its own stdin stays open: it must not wait for more questions.
        process.stdin.write(jsonl(ASK, ASK))
        process.stdin.flush()
        assert process.wait(20) == 0
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [(signal.SIGINT, 130, b"interrupted"), (signal.SIGTERM, 143, b"terminated")],
)
def test_an_interruption_leaves_what_was_answered(
    home: Path, shell: str, how: signal.Signals, code: int, said: bytes
) -> None:
    """The engine asks the longest first, so the answers that are there come before the gap."""
    with child(home) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        rows = [{**ASK, "question": "gold 2" + " or so" * at} for at in (9, 0, 5, 7)]
        rows[1]["question"] = "hang"
        process.stdin.write(jsonl(*rows))
        process.stdin.flush()
        assert process.stderr.readline() == b"hanging\n"
        process.send_signal(how)
        assert process.wait(20) == code
        told = records(process.stdout.read().decode())
        assert [(record["id"], record["answer"]) for record in told] == [
            ("1", "c"), ("3", "c"), ("4", "c")
        ]  # fmt: skip
        assert process.stderr.read() == b"tel-run: %s; what was finished is kept\n" % said
