"""Places with one writer at a time: who is refused, who waits, and locks of the dead."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from conftest import until

from tel_edge.runtime import cli
from tel_edge.runtime.errors import WorkError
from tel_edge.runtime.files import lock

# Has the place until it is ended.
HOLDER = """
import sys, time
from pathlib import Path
from threading import Timer
from tel_edge.runtime.files import lock
sys.argv[0] = "/somewhere/tel-train"
with lock.held(Path(sys.argv[1]), 0, print):
    print("held", flush=True)
    time.sleep(60)
"""


def quiet(_: str) -> None:
    pass


def holding(place: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(place)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout
    assert child.stdout.readline() == "held\n"
    return child


def test_a_second_command_is_refused_and_told_who_was_first(tmp_path: Path) -> None:
    place = tmp_path / "adapters" / "oranbench"
    child = holding(place)
    try:
        with pytest.raises(WorkError) as caught, lock.held(place, 0, quiet):
            pass
    finally:
        child.kill()
        child.communicate()
    said = str(caught.value)
    assert said.startswith(f"{place} is in use by tel-train {place} (process {child.pid} on ")
    assert said.endswith("; wait until it ends, or pass --wait")
    assert "\n" not in said


def test_a_holder_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    place = tmp_path / "x.jsonl"
    child = holding(place)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert f"process {child.pid}" in lock.holder(place), "its note is still there"
    with lock.held(place, 0, quiet):
        assert f"process {child.pid}" not in lock.holder(place)
    assert lock.holder(place) == "another command"
    assert [path.name for path in tmp_path.iterdir()] == [".x.jsonl.lock"]


def test_one_that_waits_says_so_once_and_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    done = threading.Event()

    def second() -> None:
        with lock.held(tmp_path, math.inf, said.append, inside=True):
            done.set()

    with lock.held(tmp_path, 0, quiet, inside=True):
        waiting = threading.Thread(target=second)
        waiting.start()
        until(lambda: said)
        time.sleep(3 * lock.PAUSE)
        assert not done.is_set()
    waiting.join(10)
    assert done.is_set()
    assert len(said) == 1
    assert said[0].endswith("; waiting until it ends")
    assert (tmp_path / ".lock").exists()


def test_waiting_ends_after_the_seconds_that_were_given(tmp_path: Path) -> None:
    with lock.held(tmp_path / "x", 0, quiet):
        began = time.monotonic()
        with pytest.raises(lock.Busy), lock.held(tmp_path / "x", 0.3, quiet):
            pass
        assert 0.3 <= time.monotonic() - began < 3


@pytest.mark.parametrize("note", ["", "{", "[]", '{"pid": 1}', b"\xff"])
def test_a_note_that_says_nothing_is_no_error(note: str | bytes, tmp_path: Path) -> None:
    (tmp_path / ".x.holder").write_bytes(note if isinstance(note, bytes) else note.encode())
    assert lock.holder(tmp_path / "x") == "another command"


def test_the_note_is_short_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/tel-eval", "a\nb", "x" * 500])
    with lock.held(tmp_path / "x", 0, quiet):
        said = json.loads((tmp_path / ".x.holder").read_text())
    assert said["command"].startswith("tel-eval a b xxx")
    assert len(said["command"]) < 130


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import filelock

    def missing(*_: Any, **__: Any) -> None:
        raise NotImplementedError("no flock here")

    monkeypatch.setattr(filelock.FileLock, "acquire", missing)
    with pytest.raises(WorkError) as caught, lock.held(tmp_path / "x", 0, quiet):
        pass
    assert str(caught.value) == (
        f"{tmp_path / 'x'} cannot be locked (no flock here); a file system with locks is needed"
    )


def test_an_error_inside_gives_the_place_back(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), lock.held(tmp_path / "x", 0, quiet):
        raise ValueError("inside")
    with lock.held(tmp_path / "x", 0, quiet):
        pass


@pytest.mark.parametrize(
    ("argv", "wanted"), [([], 0), (["--wait"], math.inf), (["--wait", "2.5"], 2.5)]
)
def test_how_long_a_command_waits(argv: list[str], wanted: float) -> None:
    args: argparse.Namespace = cli.parser("tel-x", "x", "wait").parse_args(argv)
    assert args.wait == wanted


@pytest.mark.parametrize("value", ["-1", "nan", "soon"])
def test_a_time_that_is_none_is_refused(value: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        cli.parser("tel-x", "x", "wait").parse_args([f"--wait={value}"])
    assert f"argument --wait: '{value}' is no number of seconds" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train", "merge", "sweep", "export", "eval"])
def test_every_command_that_shares_a_place_has_the_option(name: str) -> None:
    import importlib

    module = {
        "train": "train.commands.train",
        "merge": "train.commands.merge",
        "sweep": "train.commands.sweep",
        "export": "export.commands.export",
        "eval": "eval.commands.evaluate",
    }[name]
    parser = importlib.import_module(f"tel_edge.{module}").parser()
    # Exports and evaluations want what the other one makes.
    assert parser.parse_args([]).wait == (math.inf if name in ("export", "eval") else 0)
    assert "--wait [SECONDS]" in parser.format_help()


def test_who_has_only_just_taken_a_place_is_named_all_the_same(tmp_path: Path) -> None:
    """Between the lock and the note of who has it lies a moment."""
    place = tmp_path / "x"
    with lock.held(place, 0, print):
        _, note = lock._files(place, False)
        text = note.read_text()
        note.unlink()
        Timer(0.3, note.write_text, (text,)).start()
        with (
            pytest.raises(lock.Busy, match=rf"process {os.getpid()} on "),
            lock.held(place, 0, print),
        ):
            pass
