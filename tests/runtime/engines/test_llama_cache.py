"""What llama.cpp keeps, adapters and other company change no answer."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import for_engine
import pytest
from for_engine import ADAPTERS, MOST, PROMPTS, New, cold, distance, item, one, questions

from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.engines import llama_cache, packing
from tel_edge.runtime.engines.engine import (
    Item,
    LoraFile,
)
from tel_edge.runtime.engines.prefixes import Key
from tel_edge.runtime.engines.with_llama import LlamaEngine
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.scoring import Scorer

folder = for_engine.folder
new = for_engine.new
engine = for_engine.engine
careful = for_engine.careful


@pytest.mark.parametrize("settings", [{}, {"kv": "F16", "flash": None}])
def test_exact_answers_are_the_same_bits_in_any_order_and_company(
    settings: dict[str, Any], new: New
) -> None:
    careful = new(exact=True, **settings)
    items = list(map(Scorer(careful).item, questions(12)))
    wanted = {(at, a): cold(careful, items[at], a).logprobs for at in range(12) for a in ADAPTERS}
    rng = random.Random(4)
    other = new(exact=True, **settings)
    for turn in range(4):
        order = rng.sample(range(12), 5)
        adapter = ADAPTERS[turn]
        for engine in (careful, other):
            for place, score in engine.score([items[at] for at in order], adapter):
                assert score.logprobs == wanted[order[place], adapter]
                assert (score.packed, score.decoded) == (
                    1, score.tokens + len(packing.trie(items[order[place]].labels).nodes)
                )  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"kv": "F16", "flash": None}])
def test_a_kept_beginning_gives_the_same_bits_as_a_computed_one(
    settings: dict[str, Any], new: New
) -> None:
    engine = new(**settings)
    items = list(map(Scorer(engine).item, questions(12)))
    assert min(known.known for known in items) >= 1
    for adapter in ADAPTERS:
        engine.forget()
        first = dict(engine.score(items, adapter))
        second = dict(engine.score(items, adapter))
        for at, score in first.items():
            assert score.logprobs == second[at].logprobs
        spent = [sum(score.decoded for score in made.values()) for made in (first, second)]
        assert spent[0] - spent[1] == min(known.known for known in items)


def test_a_swap_with_a_warm_cache_gives_the_cold_answers(engine: LlamaEngine) -> None:
    items = [replace(item(engine, prompt), known=6) for prompt in PROMPTS]
    assert len({tuple(asked.prompt[:6]) for asked in items}) == 1
    wanted = {a: [cold(engine, asked, a).logprobs for asked in items] for a in ADAPTERS}
    for a, b in itertools.combinations(ADAPTERS, 2):
        assert distance(wanted[a][0], wanted[b][0]) > 50 * MOST
    engine.forget()
    seen = set()
    # Every adapter after every other one, each with what the others left.
    for adapter in (*ADAPTERS, *reversed(ADAPTERS), *ADAPTERS[::2], *ADAPTERS[1::2], *ADAPTERS):
        for at, asked in enumerate(items):
            made = one(engine, asked, adapter)
            assert made.decoded == len(asked.prompt) - (6 if adapter in seen else 0)
            assert made.logprobs == wanted[adapter][at]
            seen.add(adapter)


def test_without_the_adapter_in_its_key_a_cache_would_be_wrong(
    new: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the test before this one is about something."""
    engine = new()
    asked = replace(item(engine, PROMPTS[0]), known=20)
    wanted = cold(engine, asked, "teleqna").logprobs
    monkeypatch.setattr(LlamaEngine, "_key", lambda _, name, units: Key("", 1, tuple(units)))
    engine.forget()
    one(engine, asked, "oranbench")
    assert distance(one(engine, asked, "teleqna").logprobs, wanted) > 5 * MOST


def test_a_shared_beginning_is_not_computed_again(engine: LlamaEngine) -> None:
    scorer = Scorer(engine)
    asked = [Question(str(at), "oranbench", f"Which {at}?", ("a", "b")) for at in range(4)]
    for adapter in ADAPTERS:
        engine.forget()
        items = list(map(scorer.item, asked))
        known = items[0].known
        assert known > 3
        assert one(engine, items[0], adapter).decoded == len(items[0].prompt)
        for other in items[1:]:
            assert one(engine, other, adapter).decoded == len(other.prompt) - known


def test_a_shorter_prompt_after_a_longer_one(engine: LlamaEngine) -> None:
    """What the longer one left behind the shorter one's end must not be seen."""
    asked = item(engine, PROMPTS[0])
    short = Item(asked.prompt[:-7], asked.labels)
    wanted = cold(engine, short, None)
    for known in (0, 10, len(short.prompt) - 1, len(short.prompt)):
        one(engine, replace(asked, known=known), None)
        assert distance(one(engine, replace(short, known=known), None).logprobs,
                        wanted.logprobs) < MOST  # fmt: skip


def test_kept_beginnings_make_room_for_each_other(
    new: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new()
    items = [replace(item(engine, PROMPTS[0]), known=at) for at in range(10, 20)]
    wanted = [cold(engine, asked, "oranbench").logprobs for asked in items]
    engine.forget()
    one(engine, items[-1], "oranbench")
    (copy,) = engine.cache._copies.values()
    monkeypatch.setattr(llama_cache, "MOST_BYTES", 3 * len(copy))
    for turn in (0, 1):
        for at, asked in enumerate(items):
            made = one(engine, asked, "oranbench")
            assert made.logprobs == wanted[at]
            # What was dropped is computed again.
            assert made.decoded == len(asked.prompt) or turn == 0
            assert sum(map(len, engine.cache._copies.values())) <= 3 * len(copy)
    assert one(engine, items[-1], "oranbench").decoded == len(items[-1].prompt) - 19


def test_answers_may_be_read_in_turns(engine: LlamaEngine) -> None:
    """Between two decodes of one call another one may ask for its own adapter."""
    items = list(map(Scorer(engine).item, questions(40)))
    names = ("oranbench", "teleqna", None)
    wanted = {name: dict(engine.score(items, name)) for name in names}
    decodes = {name: {} for name in names}  # type: dict[str | None, dict[int, Score]]
    runs = {name: engine.score(items, name) for name in names}
    for _ in items:
        for name in names:
            at, score = next(runs[name])
            decodes[name][at] = score
    for name in names:
        assert decodes[name].keys() == wanted[name].keys()
        for at, score in decodes[name].items():
            assert score.logprobs == wanted[name][at].logprobs


def test_who_stops_reading_leaves_a_usable_engine(engine: LlamaEngine) -> None:
    items = list(map(Scorer(engine).item, questions(60)))
    wanted = cold(engine, items[3], "oranbench").logprobs
    run = engine.score(items, "teleqna")
    next(run)
    run.close()  # type: ignore[attr-defined]
    assert cold(engine, items[3], "oranbench").logprobs == wanted
    assert distance(dict(engine.score(items, "oranbench"))[3].logprobs, wanted) < MOST


@pytest.mark.parametrize("broken", ["too long", "no token"])
def test_a_failed_decode_leaves_a_usable_engine(broken: str, engine: LlamaEngine) -> None:
    asked = replace(item(engine, PROMPTS[0]), known=20)
    wanted = cold(engine, asked, "oranbench").logprobs
    bad = list(asked.prompt) * 40 if broken == "too long" else [*asked.prompt, 10**6]
    for known in (0, 20):
        with pytest.raises(WorkError, match="llama_decode failed"):
            list(engine.score([asked, Item(bad, asked.labels, known)], "oranbench"))
        assert one(engine, asked, "oranbench").logprobs == wanted


def test_few_adapters_in_memory_give_the_same_answers(new: New, engine: LlamaEngine) -> None:
    items = list(map(Scorer(engine).item, questions(6)))
    wanted = {a: dict(engine.score(items, a)) for a in ADAPTERS}
    for most in (1, 2):
        small = new(max_adapters=most)
        rng = random.Random(most)
        for _ in range(14):
            adapter = rng.choice(ADAPTERS)
            for at, score in small.score(items, adapter):
                assert score.logprobs == wanted[adapter][at].logprobs
            assert len(small._loaded) <= most
            assert adapter is None or list(small._loaded)[-1] == adapter


def test_an_adapter_is_loaded_when_it_is_first_asked_for(new: New, folder: Path) -> None:
    asked: list[str] = []

    def file() -> Path:
        asked.append("x")
        return folder / bundle.adapter_file(folder, bundle.read(folder), "oranbench").path

    engine = new({"late": LoraFile(file, "1" * 64)})
    scored = item(engine, PROMPTS[0])
    one(engine, scored, "oranbench")
    assert (asked, list(engine._loaded)) == ([], ["oranbench"])
    for _ in range(2):
        assert one(engine, scored, "late").logprobs == cold(engine, scored, "oranbench").logprobs
    assert asked == ["x"]


def test_an_adapter_that_is_refused_leaves_the_others(new: New, tmp_path: Path) -> None:
    from fake_engine import gguf

    def damaged() -> Path:
        raise InputError("damaged.gguf: corrupted")

    (tmp_path / "x.gguf").write_bytes(gguf(general__architecture="poetry"))
    broken = {
        "damaged": LoraFile(damaged, "1" * 64),
        "foreign": LoraFile(lambda: tmp_path / "x.gguf", "2" * 64),
    }
    engine = new(broken, max_adapters=1)
    asked = item(engine, PROMPTS[0])
    wanted = one(engine, asked, "oranbench").logprobs
    for name, said in (
        ("damaged", r"damaged\.gguf: corrupted"),
        ("foreign", r"x\.gguf: no adapter for this backbone"),
        ("poetry", "no adapter 'poetry'; there are: oranbench teleqna"),
    ):
        for _ in range(2):
            with pytest.raises(InputError, match=said):
                one(engine, asked, name)
        assert one(engine, asked, "oranbench").logprobs == wanted
        assert one(engine, asked, None).logprobs != wanted


def test_the_scale_is_part_of_an_adapter(new: New, folder: Path) -> None:
    path = folder / bundle.adapter_file(folder, bundle.read(folder), "oranbench").path
    scaled = {f"x{scale}": LoraFile(lambda: path, "same", scale) for scale in (0.0, 0.5, 1.0, 2.0)}
    engine = new(scaled)
    asked = replace(item(engine, PROMPTS[0]), known=20)
    wanted = {name: cold(engine, asked, name).logprobs for name in scaled}
    bare = cold(engine, asked, None).logprobs
    assert distance(wanted["x0.0"], bare) < MOST
    assert wanted["x1.0"] == cold(engine, asked, "oranbench").logprobs
    far = [distance(wanted[name], bare) for name in scaled]
    assert far == sorted(far)
    assert far[1] > 20 * MOST
    # One file in two strengths is two adapters to all that is kept.
    engine.forget()
    for name in ("x1.0", "x2.0", "x0.0", "x1.0", "x0.5", "x2.0", "x0.0"):
        assert one(engine, asked, name).logprobs == wanted[name]
