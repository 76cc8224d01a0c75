"""Packed prompts, kept beginnings and adapters of the ONNX engine."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import export_models as models
import pytest
from for_engine import LABELS, PROMPTS, cold, distance, item, letters, one
from onnx_models import Tiny

from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.engines import onnx_cache
from tel_edge.runtime.engines.engine import Item, LoraFile
from tel_edge.runtime.engines.prefixes import Key
from tel_edge.runtime.engines.with_onnx import OnnxEngine
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.scoring import Scorer, label_ids

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")
import for_onnx_engine
from for_onnx_engine import ADAPTERS, MOST, New, asked_of, file_of

folder = for_onnx_engine.folder
new = for_onnx_engine.new
engine = for_onnx_engine.engine
careful = for_onnx_engine.careful
CONTEXT = 512


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_packed_is_alone(engine: Any, adapter: str | None) -> None:
    items = asked_of(engine, 24)
    packed = dict(engine.score(items, adapter))
    assert sorted(packed) == list(range(24))
    assert max(score.packed for score in packed.values()) > 4
    for at, asked in enumerate(items):
        alone = cold(engine, asked, adapter)
        assert (alone.packed, alone.tokens) == (1, len(asked.prompt))
        assert distance(packed[at].logprobs, alone.logprobs) < MOST


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_packed_is_alone_with_weights_in_blocks(new: New, quant: str) -> None:
    """A token's activations are quantized by themselves."""
    engine: Any = new(quant=quant)
    items = asked_of(engine, 12)
    packed = dict(engine.score(items, "oranbench"))
    assert max(score.packed for score in packed.values()) > 4
    for at, asked in enumerate(items):
        alone = cold(engine, asked, "oranbench").logprobs
        # Rounding to int8 turns a last bit into a step.
        assert distance(packed[at].logprobs, alone) < 0.05


def test_it_is_transformers_and_peft(engine: Any, tiny: Any, onnx_home: Path) -> None:
    """Also that the tokenizer's special tokens inside a text are text."""
    import torch
    from transformers import AutoTokenizer

    llama: Tiny = tiny("llama")
    known = AutoTokenizer.from_pretrained(llama.base)
    for text in models.TRICKY:
        assert engine.tokenize(text) == known(text, split_special_tokens=True)["input_ids"]
    every = tuple((at,) for at in range(engine.vocabulary))
    for adapter in ADAPTERS[:2]:
        peft = onnx_home / "adapters" / "base" / adapter if adapter else None
        for prompt in PROMPTS[:2]:
            ids = engine.tokenize(prompt)
            logits = torch.tensor(llama.reference(ids, peft)[-1])
            wanted = torch.log_softmax(logits, -1).tolist()
            assert distance(one(engine, Item(ids, every), adapter).logprobs, wanted) < MOST


@pytest.mark.parametrize("words", LABELS)
def test_labels_of_several_tokens_are_those_of_their_tokens_one_by_one(
    words: tuple[str, ...], engine: Any
) -> None:
    def chance(before: Sequence[int], token: int) -> float:
        return math.exp(cold(engine, Item(before, ((token,),)), "teleqna").logprobs[0])

    prompt = engine.tokenize(PROMPTS[0])
    labels = label_ids(engine.tokenize, PROMPTS[0], words)
    assert max(map(len, labels)) > 1
    got = cold(engine, Item(prompt, labels), "teleqna")
    for label, logprob in zip(labels, got.logprobs, strict=True):
        value = 1.0
        for at, token in enumerate(label):
            value *= chance([*prompt, *label[:at]], token)
        onward = {o[len(label)] for o in labels if o[: len(label)] == label != o}
        value *= 1 - sum(chance([*prompt, *label], token) for token in onward)
        assert abs(logprob - math.log(value)) < MOST


@pytest.mark.parametrize("batch", [17, 100, 4096])
def test_prompts_longer_than_a_batch(batch: int, new: New, engine: Any) -> None:
    small: Any = new(batch=batch)
    ids = engine.tokenize("The near-RT RIC hosts xApps. " * 200)[:CONTEXT]
    asked = Item(ids, letters(engine))
    assert len(ids) == engine.context == CONTEXT
    wanted = cold(engine, asked, "oranbench")
    made = cold(small, asked, "oranbench")
    assert (made.decoded, wanted.decoded) == (CONTEXT, CONTEXT)
    assert distance(made.logprobs, wanted.logprobs) < MOST


def test_a_prompt_longer_than_the_context_is_refused(new: New, engine: Any) -> None:
    """The context is what was asked for, and at most what the backbone was trained with."""
    question = Question("1", "oranbench", "xApps? " * 500, ("a", "b"))
    for opened, holds in ((engine, CONTEXT), (new(context=100), 100)):
        assert opened.context == holds
        with pytest.raises(InputError, match=f"tokens, the context holds {holds}"):
            Scorer(opened)(question, None)


def test_exact_answers_are_the_same_bits_in_any_order_and_company(careful: Any, new: New) -> None:
    items = asked_of(careful, 8)
    wanted = {(at, a): cold(careful, items[at], a).logprobs for at in range(8) for a in ADAPTERS}
    rng = random.Random(4)
    for adapter in ADAPTERS:
        order = rng.sample(range(8), 5)
        for engine in (careful, new(exact=True)):
            for place, score in engine.score([items[at] for at in order], adapter):
                assert score.logprobs == wanted[order[place], adapter]
                assert score.packed == 1
                assert score.decoded >= score.tokens


def test_a_kept_beginning_gives_the_same_bits_as_a_computed_one(engine: Any) -> None:
    items = asked_of(engine, 12)
    known = min(asked.known for asked in items)
    assert known >= 1
    for adapter in ADAPTERS:
        engine.forget()
        first = dict(engine.score(items, adapter))
        second = dict(engine.score(items, adapter))
        for at, score in first.items():
            assert score.logprobs == second[at].logprobs
        spent = [sum(score.decoded for score in made.values()) for made in (first, second)]
        assert spent[0] - spent[1] == known


def test_a_swap_with_a_warm_cache_gives_the_cold_answers(engine: Any) -> None:
    """No prefix is used under another adapter, and no adapter answers for another."""
    items = [replace(item(engine, prompt), known=6) for prompt in PROMPTS]
    wanted = {a: [cold(engine, asked, a).logprobs for asked in items] for a in ADAPTERS}
    assert len({logprobs[0] for logprobs in wanted.values()}) == len(ADAPTERS)
    engine.forget()
    seen = set()
    for adapter in (*ADAPTERS, *reversed(ADAPTERS), *ADAPTERS[::2], *ADAPTERS[1::2], *ADAPTERS):
        for at, asked in enumerate(items):
            made = one(engine, asked, adapter)
            assert made.decoded == len(asked.prompt) - (6 if adapter in seen else 0)
            assert made.logprobs == wanted[adapter][at]
            seen.add(adapter)


def test_without_the_adapter_in_its_key_a_cache_would_be_wrong(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the test before this one is about something."""
    asked = replace(item(engine, PROMPTS[0]), known=20)
    wanted = cold(engine, asked, "teleqna").logprobs
    monkeypatch.setattr(OnnxEngine, "_key", lambda _, name, units: Key("", 1, tuple(units)))
    engine.forget()
    one(engine, asked, "oranbench")
    assert distance(one(engine, asked, "teleqna").logprobs, wanted) > 20 * MOST
    engine.forget()


@pytest.mark.parametrize("settings", [{"exact": True}, {"batch": 60}])
def test_adapters_that_take_turns_between_decodes(new: New, settings: dict[str, Any]) -> None:
    """Of two that are active at once the library would use the first, in silence."""
    engine: Any = new(**settings)
    items = asked_of(engine, 9)
    wanted = {name: dict(engine.score(items, name)) for name in ADAPTERS}
    assert len({made[0].logprobs for made in wanted.values()}) == len(ADAPTERS)
    runs = {name: engine.score(items, name) for name in ADAPTERS}
    for _ in items:
        for name in ADAPTERS:
            at, score = next(runs[name])
            assert score.logprobs == wanted[name][at].logprobs


def test_kept_beginnings_make_room_for_each_other(
    new: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = new()
    items = [replace(item(engine, PROMPTS[0]), known=at) for at in range(10, 20)]
    wanted = [cold(engine, asked, "oranbench").logprobs for asked in items]
    engine.forget()
    one(engine, items[0], "oranbench")
    size = engine.cache.kept_bytes()
    # Two layers, keys and values, two heads of 64, ten tokens, four bytes.
    assert size == 2 * 2 * 2 * 64 * 10 * 4 == engine.memory_split()["kv"]
    monkeypatch.setattr(onnx_cache, "MOST_BYTES", 5 * size)
    for turn in (0, 1):
        for at, asked in enumerate(items):
            made = one(engine, asked, "oranbench")
            assert made.logprobs == wanted[at]
            assert made.decoded == len(asked.prompt) - (10 if (turn, at) == (0, 0) else 0)
            assert 0 < engine.cache.kept_bytes() <= 5 * size
    assert one(engine, items[-1], "oranbench").decoded == len(items[-1].prompt) - 19


@pytest.mark.parametrize("broken", ["no token", "a stopped reader"])
def test_a_failed_decode_leaves_a_usable_engine(broken: str, engine: Any) -> None:
    asked = replace(item(engine, PROMPTS[0]), known=20)
    wanted = cold(engine, asked, "oranbench").logprobs
    for known in (0, 20):
        if broken == "no token":
            bad = Item([*asked.prompt, 10**6], asked.labels, known)
            with pytest.raises(WorkError, match="onnxruntime failed: "):
                list(engine.score([asked, bad], "oranbench"))
        else:
            run = engine.score([replace(asked, known=known)] * 80, "teleqna")
            next(run)
            run.close()
        assert one(engine, asked, "oranbench").logprobs == wanted


def test_few_adapters_in_memory_give_the_same_answers(new: New, engine: Any) -> None:
    items = asked_of(engine, 4)
    wanted = {a: dict(engine.score(items, a)) for a in ADAPTERS}
    assert engine.memory_split()["adapters"] > 100_000
    for most in (1, 2):
        small: Any = new(max_adapters=most)
        rng = random.Random(most)
        for _ in range(12):
            adapter = rng.choice(ADAPTERS)
            for at, score in small.score(items, adapter):
                assert score.logprobs == wanted[adapter][at].logprobs
            assert len(small._loaded) <= most
            assert adapter is None or list(small._loaded)[-1] == adapter


def changed(path: Path, out: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Write an adapter with `change` applied to its tensors."""
    import onnxruntime

    read = onnxruntime.AdapterFormat.read_adapter(str(path))
    tensors = {name: value.numpy() for name, value in read.get_parameters().items()}
    change(tensors)
    made = onnxruntime.AdapterFormat()
    made.set_adapter_version(read.get_adapter_version())
    made.set_model_version(read.get_model_version())
    made.set_parameters(
        {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in tensors.items()}
    )
    made.export_adapter(str(out))
    return out


def test_an_adapter_that_is_refused_leaves_the_others(
    new: New, folder: Path, tiny: Any, tmp_path: Path
) -> None:
    llama: Tiny = tiny("llama")
    module = "model.layers.1.mlp.down_proj"
    source = file_of(folder, "oranbench")
    peft = folder.parents[1] / "adapters" / "base" / "oranbench"

    def short(tensors: dict[str, Any]) -> None:
        tensors[f"{module}.lora_A"] = tensors[f"{module}.lora_A"][:-1].copy()

    def rank(tensors: dict[str, Any]) -> None:
        tensors[f"{module}.lora_A"] = tensors[f"{module}.lora_A"][:, :-1].copy()

    def foreign(tensors: dict[str, Any]) -> None:
        for part in "AB":
            tensors[f"model.layers.2.lora_{part}"] = tensors.pop(f"{module}.lora_{part}")

    def same(tensors: dict[str, Any]) -> None:
        pass

    (tmp_path / "gone").mkdir()
    files = {
        "short": (changed(source, tmp_path / "short", short), r"dims \[511, 8\], base-fp32\.onnx"),
        "rank": (changed(source, tmp_path / "rank", rank), "has rank 7, .* has 8"),
        "foreign": (changed(source, tmp_path / "foreign", foreign), "has no slot for 'model"),
        "other": (
            llama.written(peft, tmp_path / "other", "b" * 64), "made for another backbone than"
        ),
        "gone": (tmp_path / "gone", "is no file"),
    }  # fmt: skip
    files["same"] = (changed(source, tmp_path / "same", same), "")

    def at(path: Path) -> LoraFile:
        return LoraFile(lambda: path, path.name)

    engine: Any = new({name: at(path) for name, (path, _) in files.items()}, max_adapters=1)
    asked = item(engine, PROMPTS[0])
    wanted = one(engine, asked, "oranbench").logprobs
    assert one(engine, asked, "same").logprobs == wanted
    files["poetry"] = (tmp_path, "no adapter 'poetry'; there are: oranbench teleqna")
    for name, (_, said) in files.items():
        for _ in range(2 if said else 0):
            with pytest.raises(InputError, match=said):
                one(engine, asked, name)
            assert one(engine, asked, "oranbench").logprobs == wanted
            assert one(engine, asked, None).logprobs != wanted


def test_adapters_of_another_backbone_are_refused_before_anything_is_opened(
    folder: Path, tiny: Any, tmp_path: Path
) -> None:
    llama: Tiny = tiny("llama")
    peft = folder.parents[1] / "adapters" / "base" / "teleqna"
    other = llama.written(peft, tmp_path / "x.onnx_adapter", "c" * 64)
    with pytest.raises(InputError, match=r"x\.onnx_adapter: made for another backbone than base"):
        bundle.loose_adapters(file_of(folder), {"teleqna": other})


def test_a_scale_is_refused(new: New, folder: Path) -> None:
    """It is in the file, and the library has no place for another one."""
    path = file_of(folder, "oranbench")
    half, whole = LoraFile(lambda: path, "x", 0.5), LoraFile(lambda: path, "y", 1.0)
    engine: Any = new({"half": half, "whole": whole})
    asked = item(engine, PROMPTS[0])
    with pytest.raises(InputError, match=r"has its scale inside; 0\.5 cannot be put on it"):
        one(engine, asked, "half")
    assert one(engine, asked, "whole").logprobs == cold(engine, asked, "oranbench").logprobs
