"""Conversations on llama.cpp: what is kept of one changes no answer and is not computed again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import for_conversing
import for_engine
import pytest
from for_conversing import Heard, ids_of
from for_engine import MOST, PROMPTS, New, item, one

from tel_edge.runtime.engines import llama_cache
from tel_edge.runtime.engines.packed import PackedEngine
from tel_edge.runtime.engines.prefixes import Key
from tel_edge.runtime.errors import InputError

folder = for_engine.folder
new = for_engine.new


@pytest.mark.parametrize("settings", [{}, {"kv": "F16", "flash": None}, {"batch": 48}])
def test_exact_turns_are_the_same_bits_warm_and_cold(new: New, settings: dict[str, Any]) -> None:
    for_conversing.check_exact(new, **settings)


def test_a_turn_computes_only_what_is_new(new: New) -> None:
    for_conversing.check_close(new, MOST)


@pytest.mark.parametrize("exact", [True, False])
def test_a_conversation_is_its_adapters(new: New, exact: bool) -> None:
    for_conversing.check_adapters(new, exact)


def test_conversations_and_questions_take_turns(new: New) -> None:
    def ask(engine: Any) -> Any:
        asked = replace(item(engine, PROMPTS[0]), known=6)
        return one(engine, asked, "teleqna").logprobs

    for_conversing.check_company(new, ask)


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("exact", [True, False])
def test_a_text_in_parts_is_the_whole_one(new: New, exact: bool, k: int) -> None:
    for_conversing.check_parts(new, exact, k)


def test_without_the_adapter_in_its_key_a_turn_would_be_wrong(
    new: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PackedEngine, "_key", lambda *_: Key("", 1, ()))
    with pytest.raises(AssertionError):
        for_conversing.check_adapters(new, False)


def test_of_many_conversations_the_oldest_makes_room(
    new: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard(new())
    talks = [ids_of(heard.engine, 80, seed=seed) for seed in range(4)]
    for ids in talks:
        heard.say(ids)
    size = max(map(len, heard.engine.cache._copies.values()))
    assert len(heard.engine.cache._copies) == 3
    monkeypatch.setattr(llama_cache, "MOST_BYTES", 2 * size + 1000)
    # The one in the cells is copied when another one comes, and those that wait longest go.
    assert heard.say([*talks[1], 5])[0].decoded < 20
    assert heard.say([*talks[3], 5])[0].decoded < 20
    assert heard.say([*talks[0], 5])[0].decoded > 50
    assert sum(map(len, heard.engine.cache._copies.values())) <= 2 * size + 1000


def test_a_prompt_beyond_the_context(new: New) -> None:
    heard = Heard(new(context=128))
    with pytest.raises(InputError, match="the context holds 128"):
        heard.say(list(range(10, 133)))
    assert heard.say(list(range(10, 132)))[0].tokens == 122


def test_a_failed_decode_leaves_a_usable_engine(new: New) -> None:
    heard = Heard(new())
    ids = ids_of(heard.engine, 40)
    wanted = heard.say(ids)[1]
    with pytest.raises(Exception, match="llama_decode failed"):
        heard.say([*ids, 10**6])
    made, bits, _ = heard.say(ids)
    assert (made.decoded, bits) == (len(ids), wanted)


@pytest.mark.parametrize("exact", [True, False])
def test_a_prompt_is_read_in_parts(new: New, exact: bool) -> None:
    for_conversing.check_reading(new, exact)
