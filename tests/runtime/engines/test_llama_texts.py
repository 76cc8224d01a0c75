"""Texts that llama.cpp generates, its settings, and files that it refuses."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import for_engine
import pytest
from for_engine import ADAPTERS, MOST, PROMPTS, New, cold, distance, item, one, questions

from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.engines import packing
from tel_edge.runtime.engines.engine import (
    Generation,
    Item,
    Sampling,
)
from tel_edge.runtime.engines.with_llama import LlamaEngine
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.scoring import Scorer

folder = for_engine.folder
new = for_engine.new
engine = for_engine.engine
careful = for_engine.careful
# And so do the ways of flash attention, which rounds to F16 in between.
ROUNDED = 2e-2


def steps(engine: LlamaEngine, prompt: Sequence[int], adapter: str | None, count: int) -> list[int]:
    """Return the likeliest tokens one after the other, each from a score of all tokens."""
    every = tuple((at,) for at in range(engine._vocabulary.size))
    ids = list(prompt)
    for _ in range(count):
        logprobs = cold(engine, Item(ids, every), adapter).logprobs
        ids.append(max(range(len(every)), key=lambda at: logprobs[at]))
    return ids[len(prompt) :]


def texts(engine: LlamaEngine, prompts: Sequence[str], adapter: str | None, k: int = 0,
          limit: int = 6, temperature: float = 1.0) -> list[Generation]:  # fmt: skip
    asked = [
        (engine.tokenize(prompt), Sampling(k, temperature, limit, f"42 {prompt}"))
        for prompt in prompts
    ]
    made = dict(engine.generate(asked, adapter))
    assert sorted(made) == list(range(len(prompts)))
    return [made[at] for at in range(len(prompts))]


@pytest.mark.parametrize("adapter", ADAPTERS[:3])
def test_a_greedy_text_is_the_likeliest_token_by_token(
    engine: LlamaEngine, adapter: str | None
) -> None:
    for prompt, made in zip(PROMPTS, texts(engine, PROMPTS, adapter), strict=True):
        wanted = steps(engine, engine.tokenize(prompt), adapter, 6)
        assert made.texts == (engine._vocabulary.text(wanted),)
        assert (made.generated, made.packed) == (6, 3)
        assert made.tokens == len(engine.tokenize(prompt))


def test_the_first_text_is_greedy_whatever_is_sampled_beside_it(engine: LlamaEngine) -> None:
    greedy = [made.texts[0] for made in texts(engine, PROMPTS, "oranbench")]
    made = texts(engine, PROMPTS, "oranbench", k=5)
    assert [one.texts[0] for one in made] == greedy
    assert all(len(one.texts) == 6 and one.generated == 36 for one in made)
    # Hot enough that no two of them are alike.
    assert all(len(set(one.texts)) == 6 for one in made)
    cool = texts(engine, PROMPTS, "oranbench", k=3, temperature=1e-3)
    assert all(set(one.texts) == {text} for one, text in zip(cool, greedy, strict=True))


def test_sampled_texts_are_those_of_the_prompt_alone(
    engine: LlamaEngine, careful: LlamaEngine
) -> None:
    prompts = [*PROMPTS, *(f"{at} interfaces:" for at in range(9))]
    together = texts(engine, prompts, "teleqna", k=4)
    # The random numbers are the same; a sum in another order seldom crosses one.
    alone = [texts(engine, [prompt], "teleqna", k=4)[0] for prompt in prompts]
    same = [
        a == b
        for one, other in zip(together, alone, strict=True)
        for a, b in zip(one.texts, other.texts, strict=True)
    ]
    assert sum(same) >= 0.9 * len(same)
    assert max(made.packed for made in together) > 1
    # Nothing is summed in another order when nothing else is there.
    wanted = {prompt: texts(careful, [prompt], "teleqna", k=4)[0].texts for prompt in prompts}
    rng = random.Random(2)
    for _ in range(2):
        rng.shuffle(prompts)
        made = texts(careful, prompts, "teleqna", k=4)
        assert [one.texts for one in made] == [wanted[prompt] for prompt in prompts]
        assert {one.packed for one in made} == {1}


def test_another_seed_gives_other_texts(engine: LlamaEngine) -> None:
    ids = engine.tokenize(PROMPTS[0])
    found = {
        seed: dict(engine.generate([(ids, Sampling(3, 1.0, 6, seed))], None))[0].texts
        for seed in ("1 q", "2 q", "1 r", "1 q")
    }
    assert len({texts[0] for texts in found.values()}) == 1
    assert len({texts[1:] for texts in found.values()}) == 3


def test_a_text_ends_where_the_model_ends_it(
    engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other texts beside it go on."""
    wanted = [steps(engine, engine.tokenize(prompt), None, 6) for prompt in PROMPTS[:2]]
    last = wanted[0][2]
    monkeypatch.setattr(engine._vocabulary, "ends", lambda token: token == last)
    cut = [ids[: ids.index(last)] if last in ids else ids for ids in wanted]
    made = texts(engine, PROMPTS[:2], None)
    assert [one.texts[0] for one in made] == [engine._vocabulary.text(ids) for ids in cut]
    assert [one.generated for one in made] == list(map(len, cut))
    assert len(cut[0]) <= 2
    monkeypatch.setattr(engine._vocabulary, "ends", lambda token: True)
    (made_,) = texts(engine, PROMPTS[:1], None, k=2)
    assert (made_.texts, made_.generated) == (("", "", ""), 0)


def test_texts_of_the_length_that_is_allowed(engine: LlamaEngine) -> None:
    whole = texts(engine, PROMPTS[:1], None, limit=4)[0].texts[0]
    for limit in (1, 2, 3):
        (made,) = texts(engine, PROMPTS[:1], None, limit=limit)
        assert made.generated == limit
        assert whole.startswith(made.texts[0])


def test_more_texts_than_sequences_and_than_the_context_holds(new: New) -> None:
    small = new(context=300)
    prompts = [f"{at} interfaces:" for at in range(40)]
    made = texts(small, prompts, "oranbench", k=3, limit=10)
    # Four texts of ten tokens each: fewer than eight prompts fit.
    assert 1 < max(one.packed for one in made) < 8
    for at in (0, 17, 39):
        assert made[at].texts[0] == texts(small, [prompts[at]], "oranbench", limit=10)[0].texts[0]
    with pytest.raises(InputError, match=f"{packing.BRANCHES + 1} texts of one prompt, at most"):
        texts(small, prompts[:1], None, k=packing.BRANCHES, limit=1)


def test_texts_do_not_disturb_what_is_kept(engine: LlamaEngine) -> None:
    asked = replace(item(engine, PROMPTS[0]), known=20)
    wanted = cold(engine, asked, "oranbench").logprobs
    for adapter in ("oranbench", "teleqna", None):
        texts(engine, PROMPTS, adapter, k=2)
        assert one(engine, asked, "oranbench").logprobs == wanted


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({"kv": "F16"}, ROUNDED),
        ({"flash": True}, ROUNDED),
        ({"kv": "F16", "flash": None}, ROUNDED),
        ({"kv": "Q8_0", "flash": True}, 0.1),
        ({"threads": 2}, MOST),
        ({"threads": None}, MOST),
        ({"batch": 40}, MOST),
        ({"extra_buffers": True}, MOST),
        ({"gpu_layers": 0}, MOST),
    ],
)
def test_settings_change_the_way_and_not_the_answers(
    settings: dict[str, Any], most: float, new: New, engine: LlamaEngine
) -> None:
    other = new(**settings)
    items = list(map(Scorer(engine).item, questions(8)))
    for at, score in other.score(items, "teleqna"):
        wanted = cold(engine, items[at], "teleqna")
        assert distance(score.logprobs, wanted.logprobs) < most


def test_a_type_of_cache_that_there_is_not(new: New) -> None:
    with pytest.raises(InputError, match="no KV type 'Q9'; there are: F32 F16 Q8_0"):
        new(kv="Q9")


def test_times_are_shares_of_the_decode(engine: LlamaEngine) -> None:
    items = list(map(Scorer(engine).item, questions(20)))
    engine.forget()
    made = [score for _, score in engine.score(items, None)]
    rates = {round(score.milliseconds / score.decoded, 9) for score in made}
    assert len(rates) < len(made)
    assert all(score.milliseconds > 0 for score in made)
    assert engine.timing.keys() == {"load", "context"}


def test_two_engines_do_not_disturb_each_other(engine: LlamaEngine, new: New) -> None:
    asked = replace(item(engine, PROMPTS[0]), known=20)
    wanted = cold(engine, asked, "teleqna").logprobs
    other = new()
    for adapter in ADAPTERS:
        one(other, item(other, PROMPTS[2]), adapter)
        made = one(engine, asked, "teleqna")
        assert (made.logprobs, made.decoded) == (wanted, len(asked.prompt) - 20)
    assert cold(other, asked, "teleqna").logprobs == wanted
    other.close()
    assert one(engine, asked, "teleqna").logprobs == wanted


def test_closing_twice_is_harmless(new: New) -> None:
    made = new()
    one(made, item(made, PROMPTS[0]), "oranbench")
    made.close()
    made.close()


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_file_never_reaches_the_engine(damage: str, folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    made = bundle.read(copy)
    file = bundle.backbone_file(copy, made, None)
    with (copy / file.path).open("r+b") as stream:
        if damage == "flip":
            stream.seek(-100, os.SEEK_END)
            byte = stream.read(1)[0]
            stream.seek(-100, os.SEEK_END)
            stream.write(bytes([byte ^ 1]))
        else:
            stream.truncate(file.bytes // 2)
    with pytest.raises(InputError, match=r"base-F32\.gguf: .*export it again"):
        bundle.open_engine(copy, made, file, [])


def test_what_llama_cpp_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    from fake_engine import gguf

    (tmp_path / "x.gguf").write_bytes(gguf(general__architecture="poetry"))
    with pytest.raises(InputError, match=r"x\.gguf: llama\.cpp cannot load it \(.+\)"):
        LlamaEngine(tmp_path / "x.gguf")
