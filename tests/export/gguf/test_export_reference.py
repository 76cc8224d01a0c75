"""What is exported is what llama.cpp's own converter makes of the same folder, byte for byte."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import export_models as models
import pytest
from conftest import ROOT

from tel_edge.export.commands import export
from tel_edge.runtime import cli
from tel_edge.runtime.bundles.manifest import read
from tel_edge.runtime.errors import InputError, WorkError

TYPES = ("F16", "BF16", "F32")
PRE = "tokenizer.ggml.pre"

# Keys (or patterns of them) in which the files may differ, and why. docs/export.md lists them too.
ONLY_OURS = {
    "tel_edge.*": "what binds the file to its backbone and prompt, and the normalizer",
    "tokenizer.ggml.add_bos_token": "always stated: the engine's default depends on the name of "
    "the pre-tokenizer; the converter is silent for a template that puts nothing around a text",
    "tokenizer.ggml.add_eos_token": "as add_bos_token",
}
ONLY_THEIRS = {
    "tokenizer.ggml.add_sep_token": "false, from a template for pairs of texts, which are not used",
    "general.sampling.penalty_repeat": "gguf 0.19 does not know the name repetition_penalty yet; "
    "nothing here is sampled with it",
}
DIFFERENT: dict[str, str] = {}
# Tensors that may differ by this much of their values, and why.
NEARLY = 1e-6
CLOSE = {"rope_freqs.weight": "torch rounds the power of some bases otherwise"}

CARD = """---
license: apache-2.0
language: en
tags: [telecom, test]
base_model: some/Base-1B
---
# A model
"""


@dataclass(frozen=True)
class Variant:
    """One model: `options` go to `export_models.backbone`, its weights are of type `dtype`.

    `tokenizer` is a folder of shared/tokenizers and the ids that config.json has with it; without
    one the vocabulary is made up, and the converter is told its pre-tokenizer's name.
    """

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "bfloat16"
    tokenizer: str = ""
    ids: Mapping[str, int] = field(default_factory=dict)
    name: str = "base"
    card: bool = False


# transformers cannot make this list up where no layer slides.
FULL = {"layer_types": ["full_attention"] * 2}
VARIANTS = {
    "llama": Variant("llama", dtype="float16"),
    "qwen2": Variant("qwen2"),
    "qwen3": Variant("qwen3"),
    "exaone4": Variant("exaone4", FULL),
    "llama tokenizer": Variant(
        "llama",
        {"vocab_size": 128256},
        tokenizer="llama-3",
        ids={"bos_token_id": 128000, "eos_token_id": 128001},
    ),
    "qwen3 tokenizer": Variant(
        "qwen3",
        {"vocab_size": 151936},
        tokenizer="qwen2",
        ids={"bos_token_id": 151643, "eos_token_id": 151643},
    ),
    "llama 3.1": Variant("llama", {"rope_parameters": models.LLAMA_3}),
    "exaone4 scaled": Variant(
        "exaone4", {**FULL, "rope_parameters": models.LLAMA_3}, dtype="float16"
    ),
    "qwen3 untied": Variant("qwen3", {"tie_word_embeddings": False, "shards": True}, "float32"),
    "llama with a card": Variant("llama", name="Some-Model-1M-Instruct-v2", card=True),
}


@dataclass(frozen=True)
class Built:
    """A model folder, its bundle with every type, and the name that the converter is given."""

    base: Path
    bundle: Path
    pre: str

    def ours(self, kind: str) -> Path:
        file = read(self.bundle).find("backbone", kind)
        assert file
        return self.bundle / file.path


@pytest.fixture(scope="module")
def converter() -> Any:
    """The module scripts/reference_converter.py with the converter fetched, or a skip."""
    sys.path.append(str(ROOT / "scripts"))
    try:
        module = importlib.import_module("reference_converter")
        module.fetch()
    except (InputError, WorkError) as error:
        pytest.skip(f"no reference converter: {error}")
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    return module


@pytest.fixture(scope="module", params=VARIANTS)
def built(request: Any, converter: Any, tmp_path_factory: Any) -> Built:
    import torch

    variant: Variant = VARIANTS[request.param]
    root = tmp_path_factory.mktemp("reference")
    dtype = getattr(torch, variant.dtype)
    base = models.backbone(root / variant.name, variant.kind, dtype=dtype, **variant.options)
    if variant.tokenizer:
        _real_tokenizer(base, variant)
    if variant.card:
        (base / "README.md").write_text(CARD)
        settings = {"temperature": 0.6, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1}
        models.edit(base / "generation_config.json", do_sample=True, **settings)
    argv = ["--backbone", str(base), "--quant", ",".join(TYPES), "--out", str(root / "bundle")]
    assert cli.run(export.parser(), export.work, [*argv, "--no-verify", "--quiet"]) == 0
    made = Built(base, root / "bundle", "")
    if variant.tokenizer:
        return made
    return Built(base, root / "bundle", contents(made.ours("F16")).keys[PRE][1])


def _real_tokenizer(base: Path, variant: Variant) -> None:
    folder = models.shared() / "tokenizers" / variant.tokenizer
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set TEL_SHARED to the folder that holds tokenizers")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder / name, base / name)
    models.edit(base / "config.json", **variant.ids)
    # Its ids are those of the vocabulary that was replaced.
    (base / "generation_config.json").unlink(missing_ok=True)


@dataclass(frozen=True)
class Contents:
    """A GGUF file: (types, value) by key, (type, dimensions, bytes) by tensor."""

    keys: Mapping[str, tuple[tuple[str, ...], Any]]
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]


def contents(path: Path) -> Contents:
    import gguf

    made = gguf.GGUFReader(path)
    keys = {
        name: (tuple(kind.name for kind in value.types), value.contents())
        for name, value in made.fields.items()
        if not name.startswith("GGUF.")
    }
    tensors = {
        tensor.name: (tensor.tensor_type.name, tuple(tensor.shape.tolist()), tensor.data.tobytes())
        for tensor in made.tensors
    }
    return Contents(keys, tensors)


def differing_keys(ours: Contents, theirs: Contents) -> list[str]:
    """Return a line with both values for every key that no table above allows to differ."""
    found = []
    for key in sorted(ours.keys.keys() | theirs.keys.keys()):
        one, other = ours.keys.get(key), theirs.keys.get(key)
        table = ONLY_OURS if other is None else ONLY_THEIRS if one is None else DIFFERENT
        if one != other and not any(fnmatchcase(key, pattern) for pattern in table):
            found.append(f"{key}: ours {_shown(one, other)}, theirs {_shown(other, one)}")
    return found


def _shown(entry: Any, other: Any) -> str:
    """Return a value in short, a list from the first element on that is not the other's."""
    if entry is None:
        return "absent"
    kinds, value = entry
    if not isinstance(value, list):
        return f"{' '.join(kinds)} {value!r:.200}"
    beside = other[1] if other and isinstance(other[1], list) else []
    same = [a == b for a, b in zip(value, beside, strict=False)]
    at = same.index(False) if False in same else min(len(same), len(value))
    return f"{' '.join(kinds)}, {len(value)} of them, from {at} on {value[at : at + 3]!r:.200}"


def differing_tensors(ours: Contents, theirs: Contents) -> list[str]:
    """Return a line for every tensor that is not the same to the byte."""
    found = []
    for name in sorted(ours.tensors.keys() | theirs.tensors.keys()):
        one, other = ours.tensors.get(name), theirs.tensors.get(name)
        if one is None or other is None:
            found.append(f"{name}: only {'ours' if other is None else 'theirs'}")
        elif one[:2] != other[:2]:
            found.append(f"{name}: ours {one[:2]}, theirs {other[:2]}")
        elif one[2] != other[2] and not (name in CLOSE and _nearly(one[2], other[2])):
            found.append(f"{name}: {_apart(one[2], other[2]):,} of {len(one[2]):,} bytes differ")
    return found


def _apart(one: bytes, other: bytes) -> int:
    import numpy as np

    return int(np.count_nonzero(np.frombuffer(one, "u1") != np.frombuffer(other, "u1")))


def _nearly(one: bytes, other: bytes) -> bool:
    import numpy as np

    return np.allclose(np.frombuffer(one, "<f4"), np.frombuffer(other, "<f4"), NEARLY, 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES)
def test_files_are_the_converters(built: Built, converter: Any, kind: str, tmp_path: Path) -> None:
    out = tmp_path / "theirs.gguf"
    converter.convert(built.base, out, kind, built.pre)
    ours, theirs = contents(built.ours(kind)), contents(out)
    found = differing_keys(ours, theirs) + differing_tensors(ours, theirs)
    assert not found, "\n".join(["they differ in", *found])


SAME = Contents({"a": (("UINT32",), 1)}, {"t": ("F32", (2,), b"12345678")})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: Contents({}, c.tensors), "a: ours UINT32 1, theirs absent"),
        (lambda c: Contents({"a": (("INT32",), 1)}, c.tensors), "theirs INT32 1"),
        (lambda c: Contents(c.keys, {}), "t: only ours"),
        (lambda c: Contents(c.keys, {"t": ("F16", (4,), b"12345678")}), "theirs ('F16', (4,))"),
        (lambda c: Contents(c.keys, {"t": ("F32", (2,), b"12345679")}), "1 of 8 bytes"),
    ],
)
def test_a_difference_is_seen(change: Callable[[Contents], Contents], expected: str) -> None:
    other = change(SAME)
    found = differing_keys(SAME, other) + differing_tensors(SAME, other)
    assert len(found) == 1
    assert expected in found[0]
    assert not differing_keys(SAME, SAME) + differing_tensors(SAME, SAME)


def test_the_documented_keys_are_these() -> None:
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    for name in {**ONLY_OURS, **ONLY_THEIRS, **DIFFERENT, **CLOSE}:
        assert f"`{name}`" in text, name
