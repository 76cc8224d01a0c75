"""Places where something else is than what a command writes, and disks that are full."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tel_edge.export.output import Output
from tel_edge.runtime import cli
from tel_edge.runtime.bundles.manifest import BackboneInfo
from tel_edge.runtime.commands import run
from tel_edge.runtime.device import child
from tel_edge.runtime.errors import REMEDIES, InputError, WorkError, named
from tel_edge.runtime.files import atomic, lock

INFO = BackboneInfo("nano", "llama", "a" * 64, "b" * 64, "c" * 64)
FULL = "/dev/full"
ROOM = "; make room and run the same command again\n"


def nothing(path: Path) -> None:
    path.symlink_to(path.with_name("not there"))


def circle(path: Path) -> None:
    path.symlink_to(path)


WAYS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "dangling": (nothing, "a symbolic link to nothing"),
    "circle": (circle, "a symbolic link to nothing"),
    "file": (Path.touch, "a file"),
    "pipe": (os.mkfifo, "neither file nor folder"),
}


@pytest.mark.parametrize("under", ["", "a", "a/b"])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_where_a_folder_is_needed_is_named(way: str, under: str, tmp_path: Path) -> None:
    put, what = WAYS[way]
    put(place := tmp_path / "out")
    with pytest.raises(InputError) as caught:
        atomic.write_text(place / under / "file", "x")
    said = f"{place}: {what}, where a folder is needed; move it away or name another"
    assert str(caught.value) == said
    with pytest.raises(InputError) as caught, lock.held(place / under, 0, print, inside=True):
        pass
    assert str(caught.value) == said
    assert os.path.lexists(place)


@pytest.mark.parametrize("way", WAYS)
def test_an_export_into_what_is_no_folder_is_refused(way: str, tmp_path: Path) -> None:
    put, what = WAYS[way]
    put(tmp_path / "out")
    with pytest.raises(InputError, match=f"--out: .*out is {what}, wanted a folder"):
        Output(tmp_path / "out", INFO, force=True)


def test_a_folder_where_a_file_goes_is_named_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").mkdir()
    with pytest.raises(InputError) as caught, atomic.replacing(tmp_path / "x.gguf"):
        pytest.fail("it may take hours to write")
    assert str(caught.value).startswith(f"{tmp_path / 'x.gguf'}: a folder, where a file is to be")
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


def test_a_file_where_a_folder_goes_is_kept(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "x").write_text("mine")
    with pytest.raises(InputError, match="x: a file, where a folder is needed"):
        atomic.replace_folder(tmp_path / "made", tmp_path / "x")
    assert (tmp_path / "x").read_text() == "mine"
    assert (tmp_path / "made").is_dir()


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_takes_the_place_of_a_link_and_not_of_what_it_leads_to(
    there: bool, tmp_path: Path
) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "x").symlink_to(tmp_path / "elsewhere")
    if there:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "file").touch()
    atomic.replace_folder(tmp_path / "made", tmp_path / "x")
    assert not (tmp_path / "x").is_symlink()
    left = {"x", "elsewhere"} if there else {"x"}
    assert {path.name for path in tmp_path.iterdir()} == left
    assert (tmp_path / "elsewhere" / "file").exists() == there


@pytest.mark.parametrize("put", [Path.mkdir, nothing])
def test_what_is_where_a_lock_is_needed_is_named(
    put: Callable[[Path], Any], tmp_path: Path
) -> None:
    put(tmp_path / ".lock")
    with pytest.raises(WorkError) as caught, lock.held(tmp_path, 0, print, inside=True):
        pass
    what = "a folder" if put is Path.mkdir else "a symbolic link to nothing"
    assert str(caught.value) == (
        f"{tmp_path / '.lock'}: {what}, where the file of a lock is needed; move it away"
    )


def fill(path: str) -> None:
    """Write to a disk that has no room."""
    with named(Path(path)), open(FULL, "w") as file:
        file.write("x")


@pytest.mark.skipif(not os.path.exists(FULL), reason="no device that is always full")
def test_a_full_disk_in_a_child_is_told_with_its_place_and_what_to_do(run_command: Any) -> None:
    def work(_: Any) -> None:
        child.in_child(None, fill, "/there/x.jsonl", shown=True)

    code, out, err = run_command(cli.parser("tel-eval", "x"), work)
    assert (code, out) == (1, "")
    assert err == "tel-eval: /there/x.jsonl: No space left on device" + ROOM


@pytest.mark.skipif(not os.path.exists(FULL), reason="no device that is always full")
def test_output_that_nobody_can_take_is_told_in_one_line() -> None:
    code = (
        "import sys; from tel_edge.runtime import cli\n"
        "sys.exit(cli.run(cli.parser('tel', 'x'), lambda _: {'x': 1}))"
    )
    with open(FULL, "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, "--json"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr.decode()) == (
        1,
        "tel: a file or standard output: No space left on device" + ROOM,
    )


@pytest.mark.parametrize("number", REMEDIES)
def test_a_write_that_names_no_file_gets_the_name_of_what_is_replaced(
    number: int, tmp_path: Path
) -> None:
    with pytest.raises(OSError, match="x") as caught, atomic.replacing(tmp_path / "x"):
        raise OSError(number, os.strerror(number))
    assert caught.value.filename == str(tmp_path / "x")
    with pytest.raises(OSError, match="other") as caught, named(tmp_path / "x"):
        raise OSError(number, os.strerror(number), "other")
    assert caught.value.filename == "other"
    with pytest.raises(OSError, match="again") as caught, named(tmp_path / "x"):
        raise OSError(errno.EIO, "again")
    assert caught.value.filename is None


def test_a_folder_that_is_there_only_in_the_workspace_is_named(tmp_path: Path) -> None:
    def found(*argv: str) -> Path:
        made = cli.parser("tel-run", "x", "backbone")
        cli.engine_options(made)
        args = made.parse_args(["--workspace", str(tmp_path), *argv])
        return cli.bundle_folder(args, "tel-nano")

    inside = tmp_path / "bundles" / "nano-of-nobody"
    with pytest.raises(InputError, match="--bundle nano-of-nobody: no such folder; make a bundle"):
        found("--bundle", "nano-of-nobody")
    inside.mkdir(parents=True)
    with pytest.raises(InputError) as caught:
        found("--bundle", "nano-of-nobody")
    assert str(caught.value) == f"--bundle nano-of-nobody: no such folder; pass --bundle {inside}"
    assert found("--bundle", str(inside)) == inside
    assert found() == tmp_path / "bundles" / "tel-nano"


def test_one_category_is_what_tel_run_asks_for() -> None:
    told = " ".join(run.parser().format_help().split())
    assert "--category NAME the category of all questions that name none themselves" in told
    assert "several with commas" not in told
