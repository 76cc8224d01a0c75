"""Conversations on onnxruntime: what is kept of one changes no answer."""

from __future__ import annotations

from typing import Any

import for_conversing
import for_onnx_engine
import pytest
from for_onnx_engine import MOST, New, asked_of

folder = for_onnx_engine.folder
new = for_onnx_engine.new


@pytest.mark.parametrize("quant", ["fp32", "int4"])
def test_exact_turns_are_the_same_bits_warm_and_cold(new: New, quant: str) -> None:
    for_conversing.check_exact(new, quant=quant)


def test_a_turn_computes_only_what_is_new(new: New) -> None:
    for_conversing.check_close(new, MOST)


@pytest.mark.parametrize("exact", [True, False])
def test_a_conversation_is_its_adapters(new: New, exact: bool) -> None:
    for_conversing.check_adapters(new, exact)


def test_conversations_and_questions_take_turns(new: New) -> None:
    def ask(engine: Any) -> Any:
        [(_, score)] = engine.score(asked_of(engine, 1), "teleqna")
        return score.logprobs

    for_conversing.check_company(new, ask)


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("exact", [True, False])
def test_a_text_in_parts_is_the_whole_one(new: New, exact: bool, k: int) -> None:
    for_conversing.check_parts(new, exact, k)


@pytest.mark.parametrize("exact", [True, False])
def test_a_prompt_is_read_in_parts(new: New, exact: bool) -> None:
    for_conversing.check_reading(new, exact)
