"""Texts and windows of the ONNX engine, its settings, and files that it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from export_models import BOS, EOS
from for_engine import PROMPTS, cold, distance, item, one
from onnx_models import QUANTS, Tiny

from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.engines import packing
from tel_edge.runtime.engines.engine import EngineSettings, Item, Sampling
from tel_edge.runtime.engines.likelihood import likelihoods
from tel_edge.runtime.engines.with_onnx import OnnxEngine
from tel_edge.runtime.errors import InputError

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")
import for_onnx_engine
from for_onnx_engine import ADAPTERS, MOST, New, asked_of, file_of

np = pytest.importorskip("numpy")

folder = for_onnx_engine.folder
new = for_onnx_engine.new
engine = for_onnx_engine.engine
careful = for_onnx_engine.careful


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


@pytest.mark.parametrize("adapter", ADAPTERS[:2])
def test_likelihoods_are_those_of_transformers(
    engine: Any, adapter: str | None, tiny: Any, onnx_home: Path
) -> None:
    llama: Tiny = tiny("llama")
    peft = onnx_home / "adapters" / "base" / adapter if adapter else None
    # Longer than what is read of one decode, and warm of something else.
    ids = (engine.tokenize(PROMPTS[0]) * 9)[:150]
    texts(engine, PROMPTS[1:], None)
    found = likelihoods(engine, ids, adapter)
    logits = llama.reference(ids, peft).astype("float64")
    shares = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert [step.token for step in found] == [*ids[1:], int(logits[-1].argmax())]
    for at, step in enumerate(found):
        assert step.logprob == pytest.approx(shares[at][step.token], abs=1e-3)
        assert step.highest == pytest.approx(shares[at].max(), abs=1e-3)
        assert (step.best == step.token) == (step.logprob == step.highest)


def test_likelihoods_of_what_is_no_prompt(engine: Any) -> None:
    for ids, said in (([], "no tokens"), ([1, 10**6], "token 1000000"), ([-1], "token -1"),
                      ([1] * (engine.context + 1), "the context holds")):  # fmt: skip
        with pytest.raises(InputError, match=said):
            likelihoods(engine, ids, None)


def test_special_tokens_are_what_they_say_in_what_a_template_made(engine: Any) -> None:
    text = f"{BOS}user: Which?{EOS}"
    made, plain = engine.marked(text), engine.tokenize(text)
    assert [engine.name(made[0]), engine.name(made[-1])] == [BOS, EOS]
    assert (engine.ends(made[-1]), engine.ends(plain[-1])) == (True, False)
    # Nothing is put before it, and what comes later is read as before.
    assert made[1:-1] == engine.tokenize("user: Which?")[1:]
    assert engine.tokenize(text) == plain


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
    with pytest.raises(InputError, match=r"cannot load it \(.*No Op registered for Poetry"):
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
