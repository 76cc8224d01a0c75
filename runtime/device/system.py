"""Where facts of a machine are read: files below a root, and programs that answer in seconds."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

# Bytes of a file that says something of the machine; /proc/cpuinfo of 256 cores has a third of it.
MOST = 1 << 20


@dataclass(frozen=True)
class System:
    """One machine, or a folder that looks like one.

    `root` is where /proc, /sys and /etc are, `path` where programs are looked for (None: PATH).
    `name` and `machine` are `platform.system()` and `platform.machine()`.
    """

    root: Path = Path("/")
    path: str | None = None
    name: str = field(default_factory=platform.system)
    machine: str = field(default_factory=platform.machine)

    @property
    def arm(self) -> bool:
        """Return whether its processor is a 64-bit ARM one."""
        return self.machine in ("aarch64", "arm64")

    def text(self, place: str | Path) -> str | None:
        """Return what a file says, without white space and NULs around it; None if it cannot."""
        try:
            with (self.root / place).open("rb") as stream:
                return stream.read(MOST).decode("utf-8", "replace").strip("\0 \t\r\n")
        except OSError:
            return None

    def number(self, place: str | Path) -> int | None:
        """Return the whole number that a file says, None where it says none."""
        try:
            return int(self.text(place) or "")
        except ValueError:
            return None

    def found(self, pattern: str) -> list[Path]:
        """Return the files that match a pattern below the root, sorted."""
        try:
            return sorted(self.root.glob(pattern))
        except OSError:
            return []

    def said(self, *argv: str, seconds: float) -> str | None:
        """Return what a program writes; None where it is not there, fails or takes longer."""
        program = shutil.which(argv[0], path=self.path)
        if program is None:
            return None
        nothing = subprocess.DEVNULL
        try:
            process = subprocess.Popen(
                [program, *argv[1:]], stdin=nothing, stdout=subprocess.PIPE, stderr=nothing,
                env={**os.environ, "LC_ALL": "C"},
            )  # fmt: skip
        except OSError:
            return None
        try:
            out, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            # Not waited for: what hangs in its driver does not end by a signal.
            if process.stdout:
                process.stdout.close()
            return None
        return out.decode("utf-8", "replace") if process.returncode == 0 else None
