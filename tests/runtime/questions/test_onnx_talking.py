"""Turns of a conversation on onnxruntime."""

from __future__ import annotations

import for_onnx_engine
import for_talking
import pytest
from for_onnx_engine import New

folder = for_onnx_engine.folder
new = for_onnx_engine.new


def test_marks_of_a_template(new: New) -> None:
    for_talking.check_marks(new)


@pytest.mark.parametrize("exact", [True, False])
def test_a_conversation_goes_on(new: New, exact: bool) -> None:
    for_talking.check_turns(new, exact)


def test_the_oldest_exchanges_make_room(new: New) -> None:
    for_talking.check_full(new)
