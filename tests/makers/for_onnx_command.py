"""What the tests of onnx command share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import shown
from onnx_models import CATEGORIES, Tiny, copy_trace

from tel_edge.export.commands import export
from tel_edge.export.onnx import trace
from tel_edge.runtime import cli

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

ADAPTER_FILES = [f"base-{category}-r8.onnx_adapter" for category in CATEGORIES]


@pytest.fixture(scope="module")
def llama(tiny: Any) -> Tiny:
    made: Tiny = tiny("llama")
    return made


@pytest.fixture(autouse=True)
def no_tracing(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "trace", copy_trace(llama))


@pytest.fixture
def home(onnx_home: Path, tmp_path: Path) -> Path:
    """A copy of the workspace, with its bundle."""
    return shutil.copytree(onnx_home, tmp_path / "home")


@pytest.fixture
def empty(onnx_home: Path, tmp_path: Path) -> Path:
    """A workspace with the adapters and without a bundle."""
    shutil.copytree(onnx_home / "adapters", tmp_path / "empty" / "adapters")
    return tmp_path / "empty"


def tel_export(llama: Tiny, home: Path, *argv: str) -> int:
    common = ["--workspace", str(home), "--backbone", str(llama.base), "--quiet"]
    try:
        return cli.run(export.parser(), export.work, [*common, "--format", "onnx", *argv])
    except SystemExit as error:
        return int(error.code or 0)


def states(capsys: Any) -> dict[str, str]:
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    return {file["path"]: file["state"] for file in document["files"]}


def names(folder: Path) -> set[str]:
    return set(shown(folder))
