"""Digests are remembered until a file changes, and never longer."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from tel_edge.runtime.files import checked, digest


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were hashed, with a cache of their own and no waiting for them to settle."""
    monkeypatch.setenv("TEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checked, "SETTLED_NS", -1)
    made: list[Path] = []
    of_file = digest.of_file

    def watched(path: Path) -> str:
        made.append(path)
        return of_file(path)

    monkeypatch.setattr(digest, "of_file", watched)
    return made


def right(path: Path) -> bool:
    return checked.sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_is_read_once(tmp_path: Path, reads: list[Path]) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    assert right(file)
    assert right(file)
    assert reads == [file]


def test_a_change_of_equal_size_and_time_is_seen(tmp_path: Path, reads: list[Path]) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    before = file.stat()
    assert right(file)
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert right(file)
    assert reads == [file, file]


def test_a_file_in_the_place_of_another_is_read(tmp_path: Path, reads: list[Path]) -> None:
    file, other = tmp_path / "a", tmp_path / "b"
    file.write_bytes(b"one")
    assert right(file)
    other.write_bytes(b"two")
    os.replace(other, file)
    assert right(file)
    assert len(reads) == 2


def test_what_is_still_warm_is_not_remembered(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked, "SETTLED_NS", 3_600_000_000_000)
    file = tmp_path / "a"
    file.write_bytes(b"one")
    assert right(file)
    assert right(file)
    assert len(reads) == 2


@pytest.mark.parametrize("damage", ["", "[]", '{"PATH": 3}', '{"PATH": [1, 2]}', "\udcff"])
def test_a_damaged_memory_costs_a_read(damage: str, tmp_path: Path, reads: list[Path]) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    assert right(file)
    text = damage.replace("PATH", str(file))
    checked.location().write_bytes(text.encode("utf-8", "surrogateescape"))
    assert right(file)
    assert right(file)
    assert len(reads) == 2


def test_only_the_latest_are_remembered(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked, "MOST", 3)
    files = [tmp_path / str(at) for at in range(5)]
    for file in files:
        file.write_bytes(b"x")
        assert right(file)
    assert list(json.loads(checked.location().read_text())) == [str(file) for file in files[2:]]
    assert right(files[4])
    assert len(reads) == 5


def test_a_cache_that_cannot_be_written_is_no_failure(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("TEL_CACHE", str(tmp_path / "file" / "below"))
    assert right(tmp_path / "file")
