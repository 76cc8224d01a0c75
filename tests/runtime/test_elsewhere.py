"""Systems that lack what Linux has: what is guarded, looked at in processes without it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from tel_edge.runtime.device import child, memory
from tel_edge.runtime.files import atomic

# Modules of Python that Windows has not.
POSIX = ("fcntl", "resource", "pwd", "grp", "termios", "readline", "posix", "tty", "pty")
# What every command of the device, and of evaluation, imports without the extras.
MODULES = (
    *("run", "bench", "doctor", "serve", "chat"),
    *("evaluate", "report", "generate"),
)


def module(name: str) -> str:
    floor = "runtime" if (ROOT / f"runtime/commands/{name}.py").exists() else "eval"
    return f"tel_edge.{floor}.commands.{name}"


@pytest.mark.parametrize("name", MODULES)
def test_commands_start_without_posix(name: str) -> None:
    """`--help` imports nothing that Windows lacks; None is what an absent module looks like."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({[m for m in POSIX if m != 'posix']!r})); "
        f"from {module(name)} import *; import {module(name)} as m; "
        "print(getattr(m, 'parser', None) and m.parser().prog)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def imports(file: Path) -> set[str]:
    """The modules that a file imports without a guard: at its top, or in a function as it is."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Try | ast.With)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("floor", ["runtime", "eval"])
def test_what_windows_lacks_is_imported_under_a_guard(floor: str) -> None:
    for file in sorted((ROOT / floor).rglob("*.py")):
        assert not imports(file) & {*POSIX}, file


def test_memory_without_proc_and_without_resource(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "Path", lambda _: tmp_path / "nothing")
    # macOS has the module, and says bytes: what Linux says is not multiplied there.
    monkeypatch.setattr(sys, "platform", "darwin")
    mac = memory.now()
    assert mac.anonymous is None
    assert 0 < mac.peak < 10_000_000
    # Windows has not.
    monkeypatch.setitem(sys.modules, "resource", None)
    assert memory.now() == memory.Memory(None, None, 0)


def test_files_are_written_where_a_folder_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[Path, int]] = []
    real = os.open

    def windows(path: Path, flags: int) -> int:
        opened.append((Path(path), flags))
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied")
        return real(path, flags)

    # `Path` looks at the name too, as it is made.
    path = tmp_path / "file"
    monkeypatch.setattr(atomic.os, "open", windows)
    monkeypatch.setattr(atomic, "os", _Named(atomic.os, "nt"))
    atomic.write_text(path, "text")
    assert path.read_text() == "text"
    assert [flags & os.O_RDWR for _, flags in opened] == [os.O_RDWR]


class _Named:
    """The module `os` under another name."""

    def __init__(self, module: object, name: str) -> None:
        self._module, self.name = module, name

    def __getattr__(self, name: str) -> object:
        return getattr(self._module, name)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (0xC000001D, "exit code 3221225501, illegal instruction (SIGILL)"),
        (0xC0000005, "exit code 3221225477, access violation"),
        (1, "exit code 1"),
        (None, "exit code None"),
        (-11, "SIGSEGV"),
    ],
)
def test_how_a_process_ended_has_a_name_everywhere(code: int | None, said: str) -> None:
    assert child.ending(code) == said
