"""Writes that are whole or not there, and temporary files of dead processes here and elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tel_edge.runtime.files import atomic


def folder(path: Path, text: str) -> Path:
    path.mkdir(parents=True)
    (path / "file").write_text(text)
    return path


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    old, new = folder(tmp_path / "x", "old"), folder(tmp_path / "made", "new")
    atomic.replace_folder(new, old)
    assert (old / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_old_folder_is_put_back_where_the_new_one_cannot_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = folder(tmp_path / "x", "old"), folder(tmp_path / "made", "new")
    real: Callable[..., None] = os.replace

    def failing(source: Any, target: Any) -> None:
        if Path(source) == new:
            raise OSError("no more")
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="no more"):
        atomic.replace_folder(new, old)
    assert (old / "file").read_text() == "old"
    assert (new / "file").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "x"]


def dead() -> int:
    """A number that no process has."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_what_a_dead_process_left_is_known_by_machine_and_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "x.gguf"
    own = atomic.temporary(left)
    own.touch()
    assert own.name.startswith(".x.gguf.")
    assert not atomic.abandoned(own), "this process lives"
    gone = own.with_name(own.name.replace(str(os.getpid()), str(dead())))
    gone.touch()
    assert atomic.abandoned(gone)
    assert not atomic.abandoned(tmp_path / "x.gguf")
    # To another machine on the same volume both are somebody's.
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    assert not atomic.abandoned(gone)
    assert atomic.temporary(left).name.endswith("@elsewhere.partial")


def test_a_name_without_a_machine_is_left_alone_for_a_day(tmp_path: Path) -> None:
    """Older versions named none, so the writer may be on another machine."""
    old = tmp_path / f".x.gguf.{dead()}.partial"
    old.touch()
    assert not atomic.abandoned(old)
    then = time.time() - 2 * atomic.LONG_AGO
    os.utime(old, (then, then))
    assert atomic.abandoned(old)
    alive = tmp_path / f".x.gguf.{os.getpid()}.partial"
    alive.touch()
    os.utime(alive, (then, then))
    assert not atomic.abandoned(alive)


def test_two_machines_never_write_to_one_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with atomic.replacing(tmp_path / "x") as here:
        monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
        with atomic.replacing(tmp_path / "x") as there:
            assert here != there
            there.touch()
        here.touch()
