"""llama.cpp on a tiny random model: the prefix cache, adapters, and damaged files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import export_models as models
import pytest

from tel_edge.export import export
from tel_edge.runtime import bundle, cli
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.prompt import LETTERS
from tel_edge.runtime.question import Question
from tel_edge.runtime.scoring import Scorer, label_ids
from tel_edge.runtime.with_llama import BATCH, LlamaEngine

CONTEXT = 1024
PROMPTS = tuple(
    f"Answer with one letter.\nWhich interface joins {ends}?\nA) a\nB) b\nAnswer:"
    for ends in ("the SMO and the non-RT RIC", "the SMO and the O-Cloud", "CU and DU")
)
ADAPTERS = (None, "oranbench", "teleqna")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in F32 of a random backbone and two random adapters."""
    root = tmp_path_factory.mktemp("engine")
    base = models.backbone(root / "base", "llama", max_position_embeddings=CONTEXT)
    for seed, category in ((1, "oranbench"), (2, "teleqna")):
        at = root / "adapters" / "base" / category
        models.bind(models.adapter(at, base, seed=seed), base, category=category)
    argv = ["--workspace", str(root), "--backbone", str(base), "--adapter", "all", "--quiet"]
    argv += ["--quant", "F32", "--adapter-quant", "F32"]
    assert cli.run(export.parser(), export.work, argv) == 0
    return root / "bundles" / "base"


@pytest.fixture(scope="module")
def new(folder: Path) -> Iterator[Callable[[], LlamaEngine]]:
    """Open engines, all with both adapters, and close them at the end."""
    made = bundle.read(folder)
    opened: list[LlamaEngine] = []

    def open_one() -> LlamaEngine:
        adapters = {c: folder / bundle.adapter_file(folder, made, c).path for c in ADAPTERS if c}
        backbone = folder / bundle.backbone_file(folder, made, None).path
        opened.append(LlamaEngine(backbone, adapters, threads=1))
        return opened[-1]

    yield open_one
    for engine in opened:
        engine.close()


@pytest.fixture(scope="module")
def engine(new: Callable[[], LlamaEngine]) -> LlamaEngine:
    return new()


def letters(engine: LlamaEngine) -> list[int]:
    return label_ids(engine, "Answer:", [f" {letter}" for letter in LETTERS])[1]


def cold(engine: LlamaEngine, prompt: str, adapter: str | None) -> Sequence[float]:
    """Score with an empty cache: a prompt that shares nothing, not even BOS, goes before."""
    engine.score([5], [1], adapter)
    made = engine.score(engine.tokenize(prompt), letters(engine), adapter)
    assert made.decoded == made.tokens
    return made.logprobs


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


# Prefix reuse sums in another order; adapters and prompts differ by much more than this.
MOST = 2e-3


def test_a_swap_with_a_warm_cache_gives_the_cold_answers(engine: LlamaEngine) -> None:
    wanted = {a: cold(engine, PROMPTS[0], a) for a in ADAPTERS}
    for one in ADAPTERS:
        for other in ADAPTERS:
            assert one == other or distance(wanted[one], wanted[other]) > 50 * MOST
    ids, ends = engine.tokenize(PROMPTS[0]), letters(engine)
    # Every adapter after every other one, each with the cache that the other left.
    for adapter in ("oranbench", "teleqna", None, "oranbench", None, "teleqna", "oranbench"):
        made = engine.score(ids, ends, adapter)
        assert made.decoded == len(ids)
        assert made.logprobs == wanted[adapter]


def test_the_same_prompt_twice_gives_the_same(engine: LlamaEngine) -> None:
    for adapter in ADAPTERS:
        first = cold(engine, PROMPTS[1], adapter)
        again = engine.score(engine.tokenize(PROMPTS[1]), letters(engine), adapter)
        assert again.decoded == 1
        assert distance(first, again.logprobs) < MOST


def test_a_shared_prefix_is_not_computed_again(engine: LlamaEngine) -> None:
    ends = letters(engine)
    for adapter in ADAPTERS:
        wanted = [cold(engine, prompt, adapter) for prompt in PROMPTS]
        engine.score([5], [1], adapter)
        for at in (0, 1, 2, 1, 0):
            ids = engine.tokenize(PROMPTS[at])
            made = engine.score(ids, ends, adapter)
            assert distance(made.logprobs, wanted[at]) < MOST
        assert made.decoded < made.tokens == len(ids)


def test_a_shorter_prompt_after_a_longer_one(engine: LlamaEngine) -> None:
    """What the longer one left behind the shorter one's end must not be seen."""
    ends, ids = letters(engine), engine.tokenize(PROMPTS[0])
    engine.score([5], [1], None)
    wanted = engine.score(ids[:-7], ends, None)
    engine.score(ids, ends, None)
    made = engine.score(ids[:-7], ends, None)
    assert made.decoded == 1
    assert distance(made.logprobs, wanted.logprobs) < MOST


def test_log_probabilities_are_over_the_whole_vocabulary(engine: LlamaEngine) -> None:
    import math

    every = list(range(engine._vocabulary))
    made = engine.score(engine.tokenize(PROMPTS[0]), every, None)
    assert math.isclose(math.fsum(map(math.exp, made.logprobs)), 1, abs_tol=1e-9)


def test_prompts_longer_than_a_batch(engine: LlamaEngine) -> None:
    ids = engine.tokenize("The near-RT RIC hosts xApps. " * 200)[:CONTEXT]
    assert len(ids) == CONTEXT > BATCH
    ends = letters(engine)
    engine.score([5], [1], None)
    whole = engine.score(ids, ends, None)
    engine.score([5], [1], None)
    engine.score(ids[:300], ends, None)
    parts = engine.score(ids, ends, None)
    assert (whole.decoded, parts.decoded) == (CONTEXT, CONTEXT - 300)
    assert distance(whole.logprobs, parts.logprobs) < MOST


def test_a_prompt_longer_than_the_context_is_refused(engine: LlamaEngine) -> None:
    """The context is what was asked for, and at most what the backbone was trained with."""
    assert engine.context == CONTEXT
    question = Question("1", "oranbench", "xApps? " * 2000, ("a", "b"))
    with pytest.raises(InputError, match=r"the prompt has [\d,]+ tokens, the context holds 1024"):
        Scorer(engine)(question, None)


def test_a_failed_decode_leaves_a_usable_engine(engine: LlamaEngine) -> None:
    ends, ids = letters(engine), engine.tokenize(PROMPTS[0])
    wanted = cold(engine, PROMPTS[0], None)
    with pytest.raises(WorkError, match="llama_decode failed"):
        engine.score(ids * 40, ends, None)
    assert engine.score(ids, ends, None).logprobs == wanted


def test_an_unknown_adapter_is_refused(engine: LlamaEngine) -> None:
    with pytest.raises(InputError, match="no adapter 'poetry' is loaded"):
        engine.score([1, 2], [3], "poetry")


def test_two_engines_do_not_disturb_each_other(
    engine: LlamaEngine, new: Callable[[], LlamaEngine]
) -> None:
    wanted = cold(engine, PROMPTS[0], "teleqna")
    other = new()
    other.score(other.tokenize(PROMPTS[2]), letters(other), "oranbench")
    assert engine.score(engine.tokenize(PROMPTS[0]), letters(engine), "teleqna").decoded == 1
    assert distance(cold(other, PROMPTS[0], "teleqna"), wanted) < MOST


def test_closing_twice_is_harmless(new: Callable[[], LlamaEngine]) -> None:
    made = new()
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


def test_what_llama_cpp_refuses_is_told_in_its_words(tmp_path: Path, folder: Path) -> None:
    from fake_engine import gguf

    (tmp_path / "x.gguf").write_bytes(gguf(general__architecture="poetry"))
    with pytest.raises(InputError, match=r"x\.gguf: llama\.cpp cannot load it \(.+\)"):
        LlamaEngine(tmp_path / "x.gguf")
    made = bundle.read(folder)
    backbone = folder / bundle.backbone_file(folder, made, None).path
    with pytest.raises(InputError, match=r"x\.gguf: no adapter for this backbone"):
        LlamaEngine(backbone, {"oranbench": tmp_path / "x.gguf"}, threads=1)
