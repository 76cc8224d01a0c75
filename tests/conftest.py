"""Fixtures and helpers that several test modules use."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tel_edge.runtime import cli
from tel_edge.runtime.device import power

ROOT = Path(__file__).resolve().parents[1]
# The modules that several tests share, also for processes that tests start.
MAKERS = ROOT / "tests" / "makers"
# Begins the code of a process that is to be interrupted: a shell without job control has those that
# it starts in the background ignore it, and they hand that on.
INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


def until(true: Callable[[], Any], seconds: float = 30) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether the process still runs; one that nobody has waited for yet does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def shown(folder: Path) -> list[str]:
    """The names of what is in a folder, in order, but for the hidden files of locks."""
    return sorted(
        path.name for path in folder.iterdir() if path.suffix != ".lock" and path.name != ".lock"
    )


@pytest.fixture(autouse=True, scope="module")
def frozen() -> Iterator[None]:
    """Take what a module leaves behind out of the garbage collector's sight.

    It looks at everything again and again, torch's modules among it: an import late in a whole run
    took 24 s instead of 3.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what `tel-bench --tune` found for this machine, and how its power is set."""
    monkeypatch.setenv("TEL_PROFILE", str(tmp_path / "no" / "profile.json"))
    asked = power.now
    monkeypatch.setattr(power, "now", lambda of=None: asked(of) if of else power.Power())


@pytest.fixture(params=["terminal", "background"])
def shell(request: pytest.FixtureRequest) -> Iterator[str]:
    """Let processes that are started inherit from this one what such a shell gives them."""
    before = signal.getsignal(signal.SIGINT)
    if request.param == "background":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield request.param
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real benchmark and tokenizers, or a skip where there is none."""
    folder = Path(os.environ.get("TEL_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("no real data: set TEL_SHARED to the folder that holds ot-full and tokenizers")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The tiny ONNX decoders of `onnx_models` by kind; one is traced only once."""
    from onnx_models import Tiny

    return cache(lambda kind: Tiny(tmp_path_factory.mktemp(kind), kind))


@pytest.fixture(scope="session")
def onnx_home(tiny: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the bundle of the tiny llama in every ONNX type and three adapters."""
    from onnx_models import exported

    return exported(tiny("llama"), tmp_path_factory.mktemp("home"))


@pytest.fixture
def run_command(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process and return (exit code, stdout, stderr)."""

    def run(parser: cli.Parser, work: cli.Work, *argv: str) -> tuple[int, str, str]:
        try:
            code = cli.run(parser, work, list(argv))
        except SystemExit as left:
            code = int(left.code or 0)
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run
