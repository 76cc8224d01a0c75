"""llama.cpp on a tiny random model: packing, kept prefixes, adapters, texts, and damaged files."""

from __future__ import annotations

import itertools
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import export_models as models
import pytest

from tel_edge.export.commands import export
from tel_edge.runtime import cli
from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.engines import llama_cache, packing
from tel_edge.runtime.engines.engine import (
    EngineSettings,
    Generation,
    Item,
    LoraFile,
    Sampling,
    Score,
)
from tel_edge.runtime.engines.prefixes import Key
from tel_edge.runtime.engines.with_llama import LlamaEngine
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.questions.prompt import LETTERS
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.scoring import Scorer, label_ids

CONTEXT = 1024
PROMPTS = tuple(
    f"Answer with one letter.\nWhich interface joins {ends}?\nA) a\nB) b\nAnswer:"
    for ends in ("the SMO and the non-RT RIC", "the SMO and the O-Cloud", "CU and DU")
)
CATEGORIES = ("oranbench", "teleqna", "teletables")
ADAPTERS = (None, *CATEGORIES)
# What is computed in one go with other tokens is summed in another order; adapters and prompts
# differ by much more than this.
MOST = 2e-5
# And so do the ways of flash attention, which rounds to F16 in between.
ROUNDED = 2e-2
New = Callable[..., LlamaEngine]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in F32 of a random backbone and three random adapters."""
    root = tmp_path_factory.mktemp("engine")
    base = models.backbone(root / "base", "llama", max_position_embeddings=CONTEXT)
    for seed, category in enumerate(CATEGORIES, start=1):
        at = root / "adapters" / "base" / category
        models.bind(models.adapter(at, base, seed=seed), base, category=category)
    argv = ["--workspace", str(root), "--backbone", str(base), "--adapter", "all", "--quiet"]
    argv += ["--quant", "F32", "--adapter-quant", "F32"]
    assert cli.run(export.parser(), export.work, argv) == 0
    return root / "bundles" / "base"


@pytest.fixture(scope="module")
def new(folder: Path) -> Iterator[New]:
    """Open engines, all with all adapters, and close them at the end.

    Nothing is rounded to F16 on the way, which would hide small mistakes.
    """
    made = bundle.read(folder)
    backbone = folder / bundle.backbone_file(folder, made, None).path
    files = {c: folder / bundle.adapter_file(folder, made, c).path for c in CATEGORIES}
    adapters = bundle.loose_adapters(backbone, files)
    opened: list[LlamaEngine] = []

    def open_one(more: dict[str, LoraFile] | None = None, **settings: Any) -> LlamaEngine:
        wanted = EngineSettings(**{"threads": 1, "kv": "F32", "flash": False, **settings})
        opened.append(LlamaEngine(backbone, adapters | (more or {}), wanted))
        return opened[-1]

    yield open_one
    for engine in opened:
        engine.close()


@pytest.fixture(scope="module")
def engine(new: New) -> LlamaEngine:
    return new()


@pytest.fixture(scope="module")
def careful(new: New) -> LlamaEngine:
    return new(exact=True)


def letters(engine: LlamaEngine) -> tuple[tuple[int, ...], ...]:
    return label_ids(engine.tokenize, "Answer:", [f" {letter}" for letter in LETTERS])


def item(engine: LlamaEngine, prompt: str) -> Item:
    return Item(engine.tokenize(prompt), letters(engine))


def one(engine: LlamaEngine, asked: Item, adapter: str | None) -> Score:
    [(_, score)] = engine.score([asked], adapter)
    return score


def cold(engine: LlamaEngine, asked: Item, adapter: str | None) -> Score:
    """Score with nothing kept of anything before."""
    engine.forget()
    return one(engine, asked, adapter)


def distance(got: Sequence[float], wanted: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(got, wanted, strict=True))


def questions(count: int, seed: int = 1) -> list[Question]:
    """Return questions of several lengths, numbers of choices and forms."""
    rng = random.Random(seed)
    words = "xApp RIC O-Cloud E2 the interface joins slices gNB 5G core of a".split()
    made = []
    for at in range(count):
        text = " ".join(rng.choices(words, k=rng.randint(2, 40))) + "?"
        choices = tuple(f"{word} {n}" for n, word in enumerate(rng.choices(words, k=2 + at % 5)))
        if at % 7 == 6:
            made.append(Question(str(at), "", text, (*choices, "RIC", "RIC 5G"), spelled=True))
        else:
            made.append(Question(str(at), ("", "oranbench")[at % 2], text, choices))
    return made


# Packing


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_packed_is_alone(engine: LlamaEngine, adapter: str | None) -> None:
    items = list(map(Scorer(engine).item, questions(40)))
    packed = dict(engine.score(items, adapter))
    assert sorted(packed) == list(range(40))
    assert max(score.packed for score in packed.values()) > 4
    for at, asked in enumerate(items):
        alone = cold(engine, asked, adapter)
        assert (alone.packed, alone.tokens) == (1, len(asked.prompt))
        assert packed[at].tokens == len(asked.prompt)
        assert distance(packed[at].logprobs, alone.logprobs) < MOST


def test_prompts_of_every_kind_may_stand_together(engine: LlamaEngine) -> None:
    """Each kind begins in its own way, and they share less than the beginning of any."""
    tsg = tuple("RAN1 RAN2 SA1 SA2".split())
    asked = [
        Question("1", "3gpp_tsg", "paging", tsg),
        Question("2", "oranbench", "paging?", tsg),
        Question("3", "3gpp_tsg", "paging", tsg, spelled=True),
        Question("4", "", "paging", tsg, spelled=True),
    ]
    items = list(map(Scorer(engine).item, asked))
    assert len({known.known for known in items}) > 2
    for held in itertools.permutations(range(4), 2):
        packed = dict(engine.score([items[at] for at in held], None))
        for number, at in enumerate(held):
            alone = cold(engine, items[at], None)
            assert distance(packed[number].logprobs, alone.logprobs) < MOST


def test_the_same_prompt_many_times(engine: LlamaEngine) -> None:
    """What they share is computed once, and each has its own last token."""
    asked = item(engine, PROMPTS[0])
    wanted = cold(engine, asked, None)
    engine.forget()
    made = dict(engine.score([asked] * 5, None))
    assert sum(score.decoded for score in made.values()) == len(asked.prompt) + 4
    for score in made.values():
        assert distance(score.logprobs, wanted.logprobs) < MOST


def test_more_prompts_than_sequences_and_more_tokens_than_a_batch(new: New) -> None:
    engine = new(batch=64)
    ids = engine.tokenize("The near-RT RIC hosts xApps. " * 20)
    items = [Item(ids[at % 7 : 20 + at % 50], letters(engine)) for at in range(150)]
    packed = dict(engine.score(items, "teleqna"))
    assert 1 < max(score.packed for score in packed.values()) <= packing.BRANCHES
    for at in range(0, 150, 11):
        wanted = cold(engine, items[at], "teleqna")
        assert distance(packed[at].logprobs, wanted.logprobs) < MOST


@pytest.mark.parametrize("batch", [17, 512, 4096])
def test_prompts_longer_than_a_batch(batch: int, new: New) -> None:
    engine = new(batch=batch)
    ids = engine.tokenize("The near-RT RIC hosts xApps. " * 200)[:CONTEXT]
    assert len(ids) == CONTEXT
    whole = cold(engine, Item(ids, letters(engine)), None)
    assert whole.decoded == CONTEXT
    wanted = cold(new(exact=True), Item(ids, letters(engine)), None)
    assert distance(whole.logprobs, wanted.logprobs) < MOST


def test_prompts_that_share_almost_the_whole_context(engine: LlamaEngine) -> None:
    """There is room for what they share and a few of their own tokens."""
    ids = engine.tokenize("The near-RT RIC hosts xApps. " * 200)[: CONTEXT - 100]
    items = [Item([*ids, *[5 + at] * 50], letters(engine)) for at in range(12)]
    made = dict(engine.score(items, None))
    assert len(made) == 12
    assert max(score.packed for score in made.values()) == 2
    wanted = cold(engine, items[7], None)
    assert distance(made[7].logprobs, wanted.logprobs) < MOST


def chance(engine: LlamaEngine, before: Sequence[int], token: int, adapter: str | None) -> float:
    """Return the probability of one token, the prompt being all before it."""
    return math.exp(cold(engine, Item(before, ((token,),)), adapter).logprobs[0])


LABELS = (
    (" yes", " no", " not sure"),
    (" a", " ab", " abc abc", " abd", " b"),
    (" interface E2", " interface O1", " interface", " the interface of all"),
)


@pytest.mark.parametrize("words", LABELS)
def test_labels_of_several_tokens_are_those_of_their_tokens_one_by_one(
    words: tuple[str, ...], engine: LlamaEngine
) -> None:
    prompt = engine.tokenize(PROMPTS[0])
    labels = label_ids(engine.tokenize, PROMPTS[0], words)
    assert max(map(len, labels)) > 1
    for adapter in ADAPTERS[:2]:
        got = cold(engine, Item(prompt, labels), adapter)
        nodes = {label[:at] for label in labels for at in range(1, len(label))}
        assert got.decoded == len(prompt) + len(nodes)
        for label, logprob in zip(labels, got.logprobs, strict=True):
            value = 1.0
            for at, token in enumerate(label):
                value *= chance(engine, [*prompt, *label[:at]], token, adapter)
            onward = {o[len(label)] for o in labels if o[: len(label)] == label != o}
            before = [*prompt, *label]
            value *= 1 - sum(chance(engine, before, token, adapter) for token in onward)
            assert abs(logprob - math.log(value)) < MOST


def test_a_label_that_others_begin_with(engine: LlamaEngine) -> None:
    """Of all tokens that go on, one is missing: what is left for the label is that one."""
    size = engine._vocabulary.size
    prompt, first = engine.tokenize(PROMPTS[0]), 40
    all_but_last = tuple((first, token) for token in range(size - 1))
    made = cold(engine, Item(prompt, ((first,), *all_but_last)), None)
    left = chance(engine, prompt, first, None) * chance(engine, [*prompt, first], size - 1, None)
    assert made.logprobs[0] == pytest.approx(math.log(left), abs=0.05)
    assert math.fsum(map(math.exp, made.logprobs)) == pytest.approx(
        chance(engine, prompt, first, None), rel=1e-3
    )


def test_log_probabilities_are_over_the_whole_vocabulary(engine: LlamaEngine) -> None:
    every = tuple((at,) for at in range(engine._vocabulary.size))
    made = one(engine, Item(engine.tokenize(PROMPTS[0]), every), None)
    assert math.isclose(math.fsum(map(math.exp, made.logprobs)), 1, abs_tol=1e-6)


def test_labels_with_more_branches_than_sequences_are_refused(engine: LlamaEngine) -> None:
    labels = tuple((at + 5, 5) for at in range(packing.BRANCHES + 1))
    prompt = engine.tokenize(PROMPTS[0])
    assert len(one(engine, Item(prompt, labels[:-1]), None).logprobs) == packing.BRANCHES
    with pytest.raises(InputError, match=f"{packing.BRANCHES + 1} branches, at most"):
        one(engine, Item(prompt, labels), None)


def test_nothing_to_score(engine: LlamaEngine) -> None:
    assert list(engine.score([], None)) == []
    assert list(engine.generate([], None)) == []


def test_a_prompt_longer_than_the_context_is_refused(engine: LlamaEngine) -> None:
    """The context is what was asked for, and at most what the backbone was trained with."""
    assert engine.context == CONTEXT
    question = Question("1", "oranbench", "xApps? " * 2000, ("a", "b"))
    with pytest.raises(InputError, match=r"the prompt has [\d,]+ tokens, the context holds 1024"):
        Scorer(engine)(question, None)


@pytest.mark.parametrize("context", [64, 100, 300])
def test_a_context_smaller_than_a_batch(context: int, new: New, engine: LlamaEngine) -> None:
    small = new(context=context)
    items = [item(small, prompt) for prompt in PROMPTS] * 8
    assert max(len(asked.prompt) for asked in items) <= context == small.context
    for at, score in small.score(items, "oranbench"):
        wanted = cold(engine, items[at], "oranbench")
        assert distance(score.logprobs, wanted.logprobs) < MOST


# The order, company and what was kept before


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


# Adapters


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


# Texts


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


# Settings and files


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
