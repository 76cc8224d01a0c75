"""Threads of llama.cpp sleep while they wait, unless the user has said how they wait."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tel_edge.runtime import extras


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module called as llama.cpp's is, which notes what it sees as it is loaded."""
    for name in extras.USERS:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "llama_cpp_made.py").write_text(
        "import os\nseen = os.environ.get('OMP_WAIT_POLICY')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("llama_cpp_made", None)
    return "llama_cpp_made"


def test_it_is_loaded_so_that_threads_sleep(library: str) -> None:
    assert extras.need(library, "llama").seen == "PASSIVE"
    assert "OMP_WAIT_POLICY" not in os.environ, "other libraries wait as they would"


@pytest.mark.parametrize(("name", "seen"), [("OMP_WAIT_POLICY", "x"), ("GOMP_SPINCOUNT", None)])
def test_what_the_user_says_counts(
    library: str, monkeypatch: pytest.MonkeyPatch, name: str, seen: str | None
) -> None:
    monkeypatch.setenv(name, "x")
    assert extras.need(library, "llama").seen == seen
    assert os.environ[name] == "x"


def test_other_libraries_are_loaded_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    (tmp_path / "other_made.py").write_text("import os\nseen = os.environ.get('OMP_WAIT_POLICY')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert extras.need("other_made", "train").seen is None


def test_the_threads_of_onnxruntime_sleep_too() -> None:
    library = pytest.importorskip("onnxruntime")
    from tel_edge.runtime.engines import with_onnx

    options = library.SessionOptions()
    options.add_session_config_entry(with_onnx.SPIN_KEY, str(int(with_onnx.SPINNING)))
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
