"""onnxruntime on tiny random models: packing, kept prefixes, adapters, texts, and wrong files."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import export_models as models
import pytest
from onnx_models import CATEGORIES, QUANTS, Tiny
from test_engine import LABELS, PROMPTS, cold, distance, item, letters, one, questions

from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.engines import onnx_cache, packing
from tel_edge.runtime.engines.engine import EngineSettings, Item, LoraFile, Sampling
from tel_edge.runtime.engines.prefixes import Key
from tel_edge.runtime.engines.with_onnx import OnnxEngine
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.scoring import Scorer, label_ids

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")

ADAPTERS = (None, *CATEGORIES)
CONTEXT = 512
# Sums in another order; adapters and prompts differ by much more than this.
MOST = 1e-4
New = Callable[..., OnnxEngine]


@pytest.fixture(scope="module")
def folder(onnx_home: Path) -> Path:
    return onnx_home / "bundles" / "base"


def file_of(folder: Path, category: str | None = None, quant: str = "fp32") -> Path:
    made = bundle.read(folder)
    if category:
        return folder / bundle.adapter_file(folder, made, category, "onnx").path
    return folder / bundle.backbone_file(folder, made, quant, "onnx").path


@pytest.fixture(scope="module")
def new(folder: Path) -> Iterator[New]:
    """Open engines, all with all adapters, and close them at the end."""
    opened: list[OnnxEngine] = []

    def open_one(more: dict[str, LoraFile] | None = None, *, quant: str = "fp32",
                 **settings: Any) -> OnnxEngine:  # fmt: skip
        backbone = file_of(folder, quant=quant)
        adapters = bundle.loose_adapters(backbone, {c: file_of(folder, c) for c in CATEGORIES})
        wanted = EngineSettings(**{"threads": 1, "batch": 512, **settings})
        opened.append(OnnxEngine(backbone, adapters | (more or {}), wanted))
        return opened[-1]

    yield open_one
    for engine in opened:
        engine.close()


@pytest.fixture(scope="module")
def engine(new: New) -> OnnxEngine:
    return new()


@pytest.fixture(scope="module")
def careful(new: New) -> OnnxEngine:
    return new(exact=True)


def asked_of(engine: Any, count: int) -> list[Item]:
    return list(map(Scorer(engine).item, questions(count)))


# Packing


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


# The order, company and what was kept before


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


# Adapters


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


# Texts


def texts(engine: Any, prompts: Sequence[str], adapter: str | None, k: int = 0,
          limit: int = 6) -> list[Any]:  # fmt: skip
    asked = [(engine.tokenize(p), Sampling(k, 1.0, limit, f"42 {p}")) for p in prompts]
    made = dict(engine.generate(asked, adapter))
    return [made[at] for at in range(len(prompts))]


@pytest.mark.parametrize("adapter", ADAPTERS[:2])
def test_a_greedy_text_is_that_of_transformers(
    engine: Any, adapter: str | None, tiny: Any, onnx_home: Path
) -> None:
    llama: Tiny = tiny("llama")
    peft = onnx_home / "adapters" / "base" / adapter if adapter else None
    made = texts(engine, PROMPTS, adapter)
    for prompt, text in zip(PROMPTS, made, strict=True):
        ids = engine.tokenize(prompt)
        start = len(ids)
        for _ in range(6):
            ids.append(int(llama.reference(ids, peft)[-1].argmax()))
        assert text.texts == (engine.text(ids[start:]),)
        assert (text.generated, text.packed) == (6, 3)


def test_sampled_texts_are_those_of_the_prompt_alone(engine: Any, careful: Any) -> None:
    together = texts(engine, PROMPTS, "teleqna", k=3)
    greedy = [made.texts[0] for made in texts(engine, PROMPTS, "teleqna")]
    assert [made.texts[0] for made in together] == greedy
    assert all(len(set(made.texts)) == 4 for made in together)
    alone = [texts(careful, [prompt], "teleqna", k=3)[0] for prompt in PROMPTS]
    same = [
        a == b
        for one, other in zip(together, alone, strict=True)
        for a, b in zip(one.texts, other.texts, strict=True)
    ]
    assert sum(same) >= 0.9 * len(same)
    assert {made.packed for made in alone} == {1}


def test_a_text_ends_where_the_model_ends_it(
    engine: Any, monkeypatch: pytest.MonkeyPatch, tiny: Any
) -> None:
    llama: Tiny = tiny("llama")
    # What config.json says, through the file's metadata.
    assert engine._ends == {llama.model.config.eos_token_id}
    whole = texts(engine, PROMPTS[:1], None)[0]
    ids = engine.tokenize(PROMPTS[0])
    found = []
    for _ in range(6):
        found.append(int(llama.reference([*ids, *found])[-1].argmax()))
    monkeypatch.setattr(engine, "_ends", {found[3]})
    (cut,) = texts(engine, PROMPTS[:1], None)
    assert cut.generated == found.index(found[3]) < whole.generated
    assert cut.texts == (engine.text(found[: cut.generated]),)


def test_texts_do_not_disturb_what_is_kept(engine: Any) -> None:
    asked = replace(item(engine, PROMPTS[0]), known=20)
    wanted = cold(engine, asked, "oranbench").logprobs
    for adapter in ("oranbench", "teleqna", None):
        texts(engine, PROMPTS, adapter, k=2)
        assert one(engine, asked, "oranbench").logprobs == wanted


# A window


@pytest.fixture(scope="module")
def sliding(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    from tel_edge.export.onnx import container, slots

    made: Tiny = tiny("sliding")
    at = tmp_path_factory.mktemp("window")
    model = container.load(made.slots)
    slots.describe(model, {"tel_edge.window": "6", "tel_edge.context": "512"})
    container.write(model, at / "x.onnx", made.slots.parent, lambda _: None)
    shutil.copyfile(made.base / "tokenizer.json", at / "tokenizer.json")

    def opened(**settings: Any) -> OnnxEngine:
        return OnnxEngine(at / "x.onnx", {}, EngineSettings(threads=1, **settings))

    return opened


def log_softmax(row: Any) -> Any:
    import numpy as np

    row = row.astype(float) - row.max()
    return row - np.log(np.exp(row).sum())


@pytest.mark.parametrize("exact", [False, True])
def test_prompts_longer_than_the_window(exact: bool, sliding: Any, tiny: Any) -> None:
    made: Tiny = tiny("sliding")
    engine = sliding(exact=exact)
    items = [replace(item(engine, prompt), known=at) for at, prompt in enumerate(PROMPTS, 9)]
    assert min(len(asked.prompt) for asked in items) > 20
    for _ in range(2):
        for at, score in engine.score(items, None):
            row = log_softmax(made.reference(items[at].prompt)[-1])
            wanted = [row[label] for (label,) in items[at].labels]
            assert distance(score.logprobs, wanted) < MOST
            assert score.packed == 1


def test_prompts_within_the_window_stand_together(sliding: Any, tiny: Any) -> None:
    engine = sliding()
    items = [Item([20 + at, 30, 40][: 1 + at % 3], ((50,), (51,))) for at in range(6)]
    made = dict(engine.score(items, None))
    assert max(score.packed for score in made.values()) > 1
    for at, score in made.items():
        row = log_softmax(tiny("sliding").reference(items[at].prompt)[-1])
        assert distance(score.logprobs, [row[50], row[51]]) < MOST


def test_branches_beyond_the_window_are_refused(sliding: Any, tiny: Any) -> None:
    """The graph counts cells, of which other branches take some: it would answer wrongly."""
    labels = ((50, 51, 52), (53, 54, 55))
    asked = Item(list(range(60, 80)), labels)
    for exact in (False, True):
        engine = sliding(exact=exact)
        with pytest.raises(InputError, match="24 tokens side by side, the model's window has 6; "):
            one(engine, asked, None)
        # One branch alone is fine.
        for label in labels:
            (got,) = one(engine, replace(asked, labels=(label,)), None).logprobs
            ids = [*asked.prompt, *label]
            rows = map(log_softmax, tiny("sliding").reference(ids)[len(asked.prompt) - 1 : -1])
            assert abs(got - sum(row[token] for row, token in zip(rows, label, strict=True))) < MOST


def test_texts_beyond_the_window(sliding: Any, tiny: Any) -> None:
    engine = sliding(exact=True)
    ids = list(range(60, 80))
    [(_, made)] = engine.generate([(ids, Sampling(0, 1.0, 5, "x"))], None)
    wanted = list(ids)
    for _ in range(5):
        wanted.append(int(tiny("sliding").reference(wanted)[-1].argmax()))
    assert made.texts == (engine.text(wanted[len(ids) :]),)
    for exact in (False, True):
        with pytest.raises(InputError, match="the model's window has 6"):
            list(sliding(exact=exact).generate([(ids, Sampling(2, 1.0, 5, "x"))], None))


# Settings and files


@pytest.mark.parametrize(
    "settings",
    [{"threads": 2}, {"threads": None}, {"batch": 40}, {"providers": ("cpu",)},
     {"providers": ("CPUExecutionProvider",)}],
)  # fmt: skip
def test_settings_change_the_way_and_not_the_answers(
    settings: dict[str, Any], new: New, engine: Any
) -> None:
    other: Any = new(**settings)
    items = asked_of(engine, 6)
    for at, score in other.score(items, "teleqna"):
        assert distance(score.logprobs, cold(engine, items[at], "teleqna").logprobs) < MOST


def test_a_provider_that_there_is_not(new: New) -> None:
    with pytest.raises(InputError, match=r"--provider npu: this onnxruntime has .*cpu"):
        new(providers=("cpu", "npu"))


def test_what_is_known_of_an_engine(engine: Any) -> None:
    import onnxruntime

    assert engine.version == f"onnxruntime {onnxruntime.__version__}"
    assert engine.timing.keys() == {"load", "context"}
    assert engine.vocabulary == 392
    assert list(engine.score([], None)) == list(engine.generate([], None)) == []
    labels = tuple((at + 5, 5) for at in range(packing.BRANCHES + 1))
    with pytest.raises(InputError, match=f"{packing.BRANCHES + 1} branches, at most"):
        one(engine, Item(engine.tokenize(PROMPTS[0]), labels), None)


def test_two_engines_do_not_disturb_each_other(engine: Any, new: New) -> None:
    asked = replace(item(engine, PROMPTS[0]), known=20)
    wanted = cold(engine, asked, "teleqna").logprobs
    other: Any = new()
    for adapter in ADAPTERS:
        one(other, item(other, PROMPTS[2]), adapter)
        assert one(engine, asked, "teleqna").logprobs == wanted
    assert cold(other, asked, "teleqna").logprobs == wanted
    other.close()
    assert one(engine, asked, "teleqna").logprobs == wanted


def test_closing_twice_is_harmless(folder: Path) -> None:
    made: Any = OnnxEngine(file_of(folder), {}, EngineSettings(threads=1))
    one(made, item(made, PROMPTS[0]), None)
    made.close()
    made.close()


def copied(folder: Path, out: Path) -> Path:
    for name in ("base-fp32.onnx", "base-fp32.onnx.data", "tokenizer.json"):
        shutil.copyfile(folder / name, out / name)
    return out / "base-fp32.onnx"


def test_a_graph_without_slots_says_what_to_do(tiny: Any) -> None:
    llama: Tiny = tiny("llama")
    with pytest.raises(InputError, match=r"no attention_bias, .*tel-export --format onnx, or --fr"):
        OnnxEngine(llama.plain)


@pytest.mark.parametrize("damage", ["missing", "no JSON"])
def test_a_tokenizer_that_cannot_be_read(damage: str, folder: Path, tmp_path: Path) -> None:
    path = copied(folder, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    if damage == "no JSON":
        (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer\.json: no tokenizer \(.+\); export it again"):
        OnnxEngine(path)


def test_a_graph_that_the_library_refuses(folder: Path, tmp_path: Path) -> None:
    from tel_edge.export.onnx import container

    path = copied(folder, tmp_path)
    model = container.load(path)
    model.graph.node[3].op_type = "Poetry"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"onnxruntime cannot load it \(.*is an invalid model.*\)"):
        OnnxEngine(path)


@pytest.mark.parametrize("part", ["base-fp32.onnx", "base-fp32.onnx.data", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_file_never_reaches_the_engine(
    damage: str, part: str, folder: Path, tmp_path: Path
) -> None:
    copied(folder, tmp_path)
    shutil.copyfile(folder / "manifest.json", tmp_path / "manifest.json")
    made = bundle.read(tmp_path)
    file = bundle.backbone_file(tmp_path, made, "fp32", "onnx")
    content = bytearray((tmp_path / part).read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "flip":
        (tmp_path / part).write_bytes(content)
    elif damage == "cut":
        (tmp_path / part).write_bytes(content[:-1])
    else:
        (tmp_path / part).unlink()
    with pytest.raises(InputError, match=f"{part}: .*export it again"):
        bundle.open_engine(tmp_path, made, file, [], opener=lambda *_: pytest.fail("opened"))


def test_every_type_answers(new: New, engine: Any) -> None:
    """Not alike, but near: each is opened by the same code."""
    asked = item(engine, PROMPTS[1])
    wanted = cold(engine, asked, "oranbench").logprobs
    for quant in QUANTS[1:]:
        other: Any = new(quant=quant)
        assert MOST < distance(one(other, asked, "oranbench").logprobs, wanted) < 1.5
        header = other._header
        assert header.metadata["tel_edge.quant"] == quant
        assert other._session.get_providers() == ["CPUExecutionProvider"]
