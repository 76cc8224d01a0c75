"""`tel-eval --reference` on folders and files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import fake_engine as fake
import for_reference
import pytest
from for_reference import Command, out, serving, summary

from tel_edge.eval.references import client, endpoint
from tel_edge.eval.scoring.records import read_records
from tel_edge.runtime.engines.engine import Sampling
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.scoring import Scorer

quick = for_reference.quick
home = for_reference.home
ask = for_reference.ask
model = for_reference.model


@pytest.mark.parametrize(
    ("where", "argv", "said"),
    [
        ("http://127.0.0.1:9/v1", (), "refused (6 attempts)"),
        ("http://me:word@host/v1", (), "no user or password in the URL"),
        ("http://host/v1?key=1", (), "the URL that ends in /v1"),
        ("http://host:port/v1", (), "Port could not be cast"),
        ("nothing.gguf", (), "no such file"),
        ("no-folder", (), "neither a URL, a .gguf file, a folder nor a hub id"),
        ("no-folder", ("--reference-name", "a/b"), "letters, digits and . _ - only"),
        ("no-folder", ("--reference-model", "x"), "--reference-model is for endpoints"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    ask: Command, where: str, argv: tuple[str, ...], said: str
) -> None:
    code, _, error = ask(where, *argv)
    assert code in (1, 2)
    assert said in error


def test_one_of_several_models_has_to_be_named(ask: Command, home: Path) -> None:
    with serving("texts", ("one", "two")) as server:
        code, _, error = ask(server.url)
        assert code == 2
        assert "2 models; pass --reference-model NAME (there: one two)" in error
        assert ask(server.url, "--reference-model", "two")[0] == 0
    assert out(home, "two").is_file()


QUESTIONS = [
    Question(f"q{at}", "oranbench", f"Which item? {'word ' * at}", ("red", "green", "blue"), 0)
    for at in (1, 40, 3)
] + [Question("spelled", "", "Say", ("A B", "A", "A B C", "not this"), 0, True)]


def test_a_folder_scores_and_writes_as_its_gguf_file_does(model: tuple[Path, Path]) -> None:
    from tel_edge.eval.references.with_transformers import TransformersEngine
    from tel_edge.runtime.engines.with_llama import LlamaEngine

    folder, file = model
    llama, torch = LlamaEngine(file), TransformersEngine(folder, dtype="float32")
    assert torch.context == llama.context == 512
    asked = [(question, None) for question in QUESTIONS]
    wanted, found = dict(Scorer(llama).many(asked)), dict(Scorer(torch).many(asked))
    assert len(found) == len(QUESTIONS)
    for at, score in found.items():
        assert score.tokens == wanted[at].tokens  # type: ignore[union-attr]
        assert score.logprobs == pytest.approx(wanted[at].logprobs, abs=1e-2)  # type: ignore[union-attr]
    assert max(map(len, Scorer(torch).item(QUESTIONS[-1]).labels)) > 1
    ids = torch.tokenize("Which interface")
    how = [(ids, Sampling(2, 0.7, 6, "7 id"))]
    [(_, ours)], [(_, theirs)] = torch.generate(how, None), llama.generate(how, None)
    assert ours.texts == theirs.texts
    assert ours.generated == theirs.generated
    llama.close()


def test_a_folder_and_a_gguf_file_are_evaluated_alike(
    ask: Command, home: Path, model: tuple[Path, Path]
) -> None:
    folder, file = model
    argv = ("--reference-dtype", "float32", "--reference-name", "folder")
    assert ask(folder, *argv)[0] == 0
    assert ask(file)[0] == 0
    one, other = summary(home, "folder", "hf"), summary(home, "Large-2L", "F32")
    assert (one.variant.quant, one.variant.format) == ("float32", "hf")
    assert (other.variant.quant, other.variant.format) == ("F32", "gguf")
    assert other.variant.backbone_bytes == file.stat().st_size
    assert one.variant.backbone_bytes == (folder / "model.safetensors").stat().st_size
    assert one.run != other.run
    pairs = zip(
        read_records(out(home, "folder", "hf")),
        read_records(out(home, "Large-2L", "F32")),
        strict=True,
    )
    for ours, theirs in pairs:
        assert ours.id == theirs.id
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-2)
    assert "scored before" in ask(folder, *argv)[1]
    assert "scored before" in ask(file)[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
         "pickled weights are never loaded"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
        (lambda folder: edit(folder / "config.json", auto_map={"AutoConfig": "x.Y"}), "auto_map"),
        (lambda folder: edit(folder / "tokenizer_config.json", auto_map={}), "auto_map"),
        (lambda folder: edit(folder / "config.json", model_type="new"), "cannot load it"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_safe_or_whole_is_refused(
    ask: Command, home: Path, model: tuple[Path, Path], change: Any, said: str
) -> None:
    import shutil

    folder = Path(shutil.copytree(model[0], home / "changed"))
    change(folder)
    code, _, error = ask(folder)
    assert code == 2
    assert said in error


def edit(path: Path, **more: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


def test_all_parts_of_a_split_file_are_needed(ask: Command, tmp_path: Path) -> None:
    first = tmp_path / "m-Q8_0-00001-of-00002.gguf"
    first.write_bytes(fake.gguf(general__name="part"))
    assert "m-Q8_0-00002-of-00002.gguf: missing" in ask(first)[2]
    second = tmp_path / "m-Q8_0-00002-of-00002.gguf"
    second.write_bytes(fake.gguf(general__name="part")[:-2])
    assert "pass the first one" in ask(second)[2]
    assert "truncated" in ask(first)[2]


def test_labels_are_matched_without_the_space_before_them() -> None:
    likely = [(" B", math.log(0.5)), ("B", math.log(0.25)), ("▁A", math.log(0.125)), ("BA", -9.0)]
    made = endpoint.label_logprobs(likely, (" A", " B", " C"))
    assert made == pytest.approx((math.log(0.125), math.log(0.75), -9.0), abs=2e-6)
    assert not endpoint.unlisted(made)
    with pytest.raises(InputError):
        client.Client("http://host/v1", "with\nnewline")
