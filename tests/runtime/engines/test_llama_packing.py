"""Packed prompts and labels of llama.cpp are those of one alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import for_engine
import pytest
from for_engine import (
    ADAPTERS,
    CONTEXT,
    LABELS,
    MOST,
    PROMPTS,
    New,
    cold,
    distance,
    item,
    letters,
    one,
    questions,
)

from tel_edge.runtime.engines import packing
from tel_edge.runtime.engines.engine import (
    Item,
)
from tel_edge.runtime.engines.with_llama import LlamaEngine
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.scoring import Scorer, label_ids

folder = for_engine.folder
new = for_engine.new
engine = for_engine.engine


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
