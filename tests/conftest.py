"""Fixtures and helpers that several test modules use."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tel_edge.runtime import cli

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def no_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what `tel-bench --tune` found for this machine."""
    monkeypatch.setenv("TEL_PROFILE", str(tmp_path / "no" / "profile.json"))


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
