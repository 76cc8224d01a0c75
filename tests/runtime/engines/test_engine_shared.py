"""Engines in several threads, engines that cannot be opened, and items that cannot be scored."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import export_models as models
import pytest
from gguf_files import File

from tel_edge.export.commands import export
from tel_edge.runtime import cli, processors
from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.engines import packed
from tel_edge.runtime.engines.engine import EngineSettings, Item, Sampling, Score, Unanswered
from tel_edge.runtime.engines.packed import PackedEngine
from tel_edge.runtime.engines.with_llama import LlamaEngine
from tel_edge.runtime.engines.with_onnx import TOKENIZER, OnnxEngine
from tel_edge.runtime.errors import InputError, WorkError

CATEGORIES = ("oranbench", "teleqna")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shared")
    base = models.backbone(root / "base", "llama")
    for seed, category in enumerate(CATEGORIES, start=1):
        at = root / "adapters" / "base" / category
        models.bind(models.adapter(at, base, seed=seed), base, category=category)
    argv = ["--workspace", str(root), "--backbone", str(base), "--adapter", "all", "--quiet"]
    argv += ["--quant", "F32", "--adapter-quant", "F32", "--no-verify"]
    assert cli.run(export.parser(), export.work, argv) == 0
    return root / "bundles" / "base"


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Path:
    return folder / bundle.backbone_file(folder, bundle.read(folder), None).path


@pytest.fixture
def llama(folder: Path, backbone: Path) -> Iterator[LlamaEngine]:
    made = bundle.read(folder)
    files = {c: folder / bundle.adapter_file(folder, made, c).path for c in CATEGORIES}
    settings = EngineSettings(threads=1, context=512, kv="F32", flash=False)
    engine = LlamaEngine(backbone, bundle.loose_adapters(backbone, files), settings)
    yield engine
    engine.close()


@pytest.fixture
def onnx(tiny: Any, tmp_path: Path) -> Iterator[OnnxEngine]:
    made = tiny("llama")
    for file in (made.base / TOKENIZER, *made.slots.parent.glob(f"{made.slots.name}*")):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    engine = OnnxEngine(tmp_path / made.slots.name, {}, EngineSettings(threads=1))
    yield engine
    engine.close()


def items(seed: int) -> list[Item]:
    rng = random.Random(seed)
    shared = [rng.randrange(20, 200) for _ in range(12)]
    labels = ((5,), (6, 7), (8,))
    return [
        Item([*shared, *(rng.randrange(20, 200) for _ in range(9))], labels, 12) for _ in range(4)
    ]


@pytest.mark.parametrize("name", ["llama", "onnx"])
def test_two_threads_get_the_answers_of_one(name: str, request: pytest.FixtureRequest) -> None:
    engine: PackedEngine = request.getfixturevalue(name)
    adapters = CATEGORIES if name == "llama" else (None, None)
    tasks = [(items(at), adapters[at]) for at in range(2)]
    wanted = [dict(engine.score(*task)) for task in tasks]
    errors: list[str] = []

    def ask(at: int) -> None:
        try:
            for _ in range(25):
                for index, score in engine.score(*tasks[at]):
                    pairs = zip(score.logprobs, wanted[at][index].logprobs, strict=True)
                    if (apart := max(abs(a - b) for a, b in pairs)) > 2e-5:
                        errors.append(f"thread {at}: {apart} nats")
        except Exception as error:
            errors.append(f"thread {at}: {type(error).__name__} {error}")

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []


def test_who_stops_reading_holds_nobody_up(llama: LlamaEngine) -> None:
    """The generators are alive, as those of a reader that waits for something."""
    stopped: list[Iterator[Any]] = [llama.score(items(at), None) for at in range(2)]
    stopped.append(llama.generate([([20, 21], Sampling(1, 1.0, 2, "x"))] * 2, None))
    for one in stopped:
        next(one)
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(len(list(llama.score(items(3), None)))))
    thread.start()
    thread.join(30)
    assert done == [4]


def test_a_closed_engine_says_so(llama: LlamaEngine) -> None:
    started = llama.score(items(0), "oranbench")
    next(started)
    llama.close()
    for use in (lambda: list(started) and list(llama.score(items(1), None)), llama.forget):
        with pytest.raises(WorkError, match="the engine is closed"):
            use()


def mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def failing(backbone: Path, folder: Path) -> dict[str, Callable[[], object]]:
    """Return ways of opening a model that fail after the file is mapped, or in between."""
    unknown, cut = folder / "unknown.gguf", folder / "cut.gguf"
    changed = File.of(backbone.read_bytes())
    changed.rename("output_norm.weight", "other.weight")
    unknown.write_bytes(changed.bytes())
    cut.write_bytes(backbone.read_bytes()[:-4096])
    large = EngineSettings(threads=1, context=512, batch=512, kv="Q8_0", flash=False)
    return {
        "context": lambda: LlamaEngine(backbone, {}, large),
        "cache": lambda: LlamaEngine(backbone, {}, EngineSettings(kv="Q9")),
        "tensor": lambda: LlamaEngine(unknown, {}, EngineSettings(threads=1)),
        "file": lambda: LlamaEngine(cut, {}, EngineSettings(threads=1)),
    }


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", ["context", "cache", "tensor", "file"])
def test_a_model_that_cannot_be_opened_leaves_nothing_mapped(
    name: str, backbone: Path, tmp_path: Path
) -> None:
    opens = failing(backbone, tmp_path)[name]
    before = 0
    for turn in range(53):
        with pytest.raises((InputError, WorkError)):
            opens()
        # The first ones load the library and grow the heap.
        before = before if turn > 2 else mappings()
    assert mappings() - before < 10


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_an_onnx_model_that_cannot_be_opened_leaves_nothing(tiny: Any, tmp_path: Path) -> None:
    made = tiny("llama")
    for file in made.slots.parent.glob(made.slots.name + "*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    kept: list[BaseException] = []
    before = 0
    for turn in range(23):
        with pytest.raises(InputError, match="no tokenizer") as caught:
            OnnxEngine(tmp_path / made.slots.name, {}, EngineSettings(threads=1))
        # Whoever keeps the error keeps the engine, but not the model.
        kept.append(caught.value)
        before = before if turn > 2 else mappings()
    assert mappings() - before < 10


def test_the_first_thing_that_the_library_says_is_told(backbone: Path, tmp_path: Path) -> None:
    changed = File.of(backbone.read_bytes()).rename("blk.1.ffn_norm.weight", "blk.1.x.weight")
    (tmp_path / "x.gguf").write_bytes(changed.bytes())
    with pytest.raises(InputError, match=r"tensor 'blk\.1\.ffn_norm\.weight' not found"):
        LlamaEngine(tmp_path / "x.gguf")
    # What failed before is no reason of what fails now.
    with pytest.raises(InputError, match=r"cannot load it \((?!.*blk\.1)"):
        LlamaEngine(tmp_path / "nothing.gguf")


def test_an_item_that_cannot_be_scored_is_no_other_s_trouble(llama: LlamaEngine) -> None:
    wide = Item([20, 21], tuple((at + 20, 5) for at in range(packed.FREE + 1)))
    asked = [items(0)[0], wide, items(0)[1]]
    for exact in (False, True):
        object.__setattr__(llama.settings, "exact", exact)
        got: dict[int, Score] = {}
        with pytest.raises(Unanswered, match="branches, at most") as caught:
            got.update(llama.score(asked, None))
        assert sorted(got) == [0, 2]
        assert list(caught.value.reasons) == [1]
    with pytest.raises(InputError, match="no adapter 'poetry'") as refused:
        list(llama.score(asked, "poetry"))
    assert not isinstance(refused.value, Unanswered)


def test_a_question_beyond_the_window_fails_alone(tiny: Any, tmp_path: Path) -> None:
    from tel_edge.export.onnx import container, slots

    made = tiny("sliding")
    model = container.load(made.slots)
    slots.describe(model, {"tel_edge.window": "6", "tel_edge.context": "512"})
    container.write(model, tmp_path / "x.onnx", made.slots.parent, lambda _: None)
    (tmp_path / TOKENIZER).write_bytes((made.base / "tokenizer.json").read_bytes())
    engine = OnnxEngine(tmp_path / "x.onnx", {}, EngineSettings(threads=1))
    wide = Item(list(range(60, 80)), ((50, 51, 52), (53, 54, 55)))
    good = Item([20, 30, 40], ((50,), (51,)))
    got: dict[int, Score] = {}
    with pytest.raises(Unanswered, match="24 tokens side by side, the model's window has 6"):
        got.update(engine.score([wide, good, wide, good], None))
    assert sorted(got) == [1, 3]
    assert dict(engine.score([good], None))[0].logprobs == pytest.approx(got[1].logprobs, abs=1e-4)
    prompts = [(wide.prompt, Sampling(2, 1.0, 5, "x")), (good.prompt, Sampling(0, 1.0, 2, "x"))]
    texts: dict[int, Any] = {}
    with pytest.raises(Unanswered, match="the model's window has 6"):
        texts.update(engine.generate(prompts, None))
    assert list(texts) == [1]
    engine.close()


def test_cores_are_counted_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    assert processors.cores() == 7
