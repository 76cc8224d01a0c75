"""What the tests of onnx graph share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from onnx_models import KINDS, Tiny

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
np = pytest.importorskip("numpy")

MOST = 1e-4


@pytest.fixture(scope="module", params=KINDS)
def made(request: Any, tiny: Callable[[str], Tiny]) -> Tiny:
    return tiny(request.param)
