"""Backbone folders that are damaged or foreign: refused in one line, or read for what they are."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import export_models as models
import pytest

from tel_edge.eval.folders import architectures, checkpoint, tensors
from tel_edge.export.commands import export
from tel_edge.export.gguf import tokenizer
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import digest

Damage = Callable[[Path], Any]
HUGE = 10**400
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "vocab_size": 512,
    "rms_norm_eps": 1e-6,
}


def scaled(**changed: Any) -> dict[str, Any]:
    return {"rope_parameters": {**models.LLAMA_3, **changed}}


NUMBERS: list[tuple[dict[str, Any], str]] = [
    ({"num_hidden_layers": 513}, "num_hidden_layers"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ({"num_hidden_layers": 10**30}, "num_hidden_layers"),
    ({"max_position_embeddings": 2**31}, "max_position_embeddings"),
    ({"max_position_embeddings": HUGE}, "max_position_embeddings"),
    ({"hidden_size": 2**32}, "hidden_size"),
    ({"intermediate_size": HUGE}, "intermediate_size"),
    ({"num_attention_heads": 10**30}, "num_attention_heads"),
    ({"head_dim": 2**40}, "head_dim"),
    ({"vocab_size": 10**30}, "vocab_size"),
    ({"rms_norm_eps": 1e-320}, "rms_norm_eps"),
    ({"rms_norm_eps": 1e300}, "rms_norm_eps"),
    ({"rms_norm_eps": HUGE}, "rms_norm_eps"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ({"rope_theta": 1e39}, "rope_theta"),
    ({"rope_theta": HUGE}, "rope_theta"),
    (scaled(factor=HUGE), "factor"),
    (scaled(low_freq_factor=1e-320), "low_freq_factor"),
    (scaled(original_max_position_embeddings=2**32), "original_max_position_embeddings"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "'full_attention'"),
    ({"rope_parameters": [1]}, "rope_parameters"),
    ({"layer_types": [["a"], ["a"]]}, "layer_types"),
    ({"layer_types": ["full_attention", {}]}, "layer_types"),
    ({"layer_types": [None, 1]}, "layer_types"),
    ({"eos_token_id": [[]]}, "eos_token_id"),
    ({"eos_token_id": 10**30}, "eos_token_id"),
    ({"eos_token_id": True}, "eos_token_id"),
    ({"bos_token_id": -1}, "bos_token_id"),
    ({"pad_token_id": [1]}, "pad_token_id"),
    ({"pad_token_id": HUGE}, "pad_token_id"),
]


@pytest.mark.parametrize(("changed", "field"), NUMBERS)
def test_a_configuration_that_no_engine_holds_names_file_and_field(
    changed: dict[str, Any], field: str
) -> None:
    with pytest.raises(InputError, match=field) as caught:
        architectures.shape_of(LLAMA | changed, "config.json")
    message = str(caught.value)
    assert message.startswith("config.json: ")
    assert len(message) < 250
    assert "\n" not in message


def test_a_pattern_that_is_no_number_is_refused() -> None:
    odd = {"model_type": "exaone4", "sliding_window": 8, "sliding_window_pattern": [4]}
    with pytest.raises(InputError, match="sliding_window_pattern"):
        architectures.shape_of(LLAMA | odd, "config.json")


def test_the_largest_numbers_are_read() -> None:
    most = {"num_hidden_layers": 512, "max_position_embeddings": 2**31 - 1, "rope_theta": 3e38}
    shape = architectures.shape_of(LLAMA | most | {"eos_token_id": [0, 511]}, "config.json")
    assert (shape.layers, shape.context, shape.rope_base) == (512, 2**31 - 1, 3e38)


def entry(kind: Any = "F32", shape: Any = (1,), places: Any = (0, 4)) -> bytes:
    return json.dumps({"a": {"dtype": kind, "shape": shape, "data_offsets": places}}).encode()


TWICE = entry()[:-1] + b"," + entry()[1:]
HEADERS = {
    "infinite": entry(shape=[float("inf")]),
    "true": entry(shape=[True]),
    "a float": entry(shape=[1.0]),
    "a string": entry(shape=["1"]),
    "a string of digits": entry(shape="1"),
    "negative": entry(shape=[-1, -1]),
    "beyond any memory": entry(shape=[0, 10**23], places=[0, 0]),
    "places of floats": entry(places=[0.0, 4.0]),
    "places of truth": entry(places=[False, 4]),
    "endless places": entry("X32", places=[0, float("inf")]),
    "three places": entry(places=[0, 4, 5]),
    "a list of types": entry(["F32"]),
    "no type": entry(None),
    "a name twice": TWICE,
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_a_header_of_other_types_is_refused_by_file(header: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    data = b"\0" * (0 if b"[0, 0]" in header else 4)
    file.write_bytes(struct.pack("<Q", len(header)) + header + data)
    with pytest.raises(InputError) as caught:
        tensors.listed(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_an_ordinary_header_is_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(entry())) + entry() + b"\0" * 4)
    assert tensors.listed(file)["a"].shape == (1,)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("hostile") / "base"
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    models.backbone(folder, "llama", **small)
    return folder


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "base"))


def pipe(path: Path) -> None:
    os.mkfifo(path)


def nowhere(path: Path) -> None:
    path.symlink_to("nothing")


ODD: dict[str, Damage] = {"pipe": pipe, "folder": Path.mkdir, "link": nowhere}
NAMES = ("z.safetensors", "config.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_file_is_refused_by_name(odd: str, name: str, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    ODD[odd](folder / name)
    with pytest.raises(InputError, match=name):
        checkpoint.load(folder)


@pytest.mark.parametrize("odd", ["pipe", "folder"])
def test_a_digest_waits_for_no_pipe(odd: str, folder: Path) -> None:
    ODD[odd](folder / "z.safetensors")
    with pytest.raises(InputError, match=r"z\.safetensors"):
        digest.of_weights(folder)


def test_a_link_to_a_file_is_that_file(folder: Path) -> None:
    before = digest.of_weights(folder)
    moved = folder.parent / "blob"
    (folder / "model.safetensors").rename(moved)
    (folder / "model.safetensors").symlink_to(moved)
    checkpoint.load(folder)
    assert digest.of_weights(folder) == before


@pytest.mark.parametrize("name", ["x" * 5000, "../x.safetensors", "x\0", ".", ""])
def test_an_index_of_odd_names_is_refused(name: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="is missing, though") as caught:
        checkpoint.load(folder)
    assert len(str(caught.value)) < 400 + len(str(folder))


def test_half_a_surrogate_pair_has_a_digest_and_others_keep_theirs(folder: Path) -> None:
    models.edit(folder / "tokenizer_config.json", note="\ud800")
    assert len(digest.of_tokenization(folder)) == 64
    text = '["é","東京"]'
    assert digest.of_value(["é", "東京"]) == hashlib.sha256(text.encode()).hexdigest()


def exported(folder: Path) -> None:
    argv = ["--backbone", str(folder), "--out", str(folder / "out"), "--dry-run", "--no-verify"]
    export.work(export.parser().parse_args([*argv, "--quiet"]))


@pytest.mark.parametrize(
    "card", [b"\xff\xfe caf\xe9", b"---\nlicense: [\n---\n"], ids=["latin-1", "no yaml"]
)
def test_a_model_card_that_cannot_be_read_stops_no_export(card: bytes, folder: Path) -> None:
    (folder / "README.md").write_bytes(card)
    exported(folder)


def test_a_template_that_is_not_utf_8_is_named(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes("{{ 'é' }}".encode("latin-1"))
    with pytest.raises(InputError, match=r"chat_template\.jinja: not UTF-8"):
        tokenizer.load(folder, checkpoint.load(folder).shape.vocabulary)


def test_a_template_with_half_a_surrogate_pair_is_named(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    models.edit(folder / "tokenizer_config.json", chat_template="a\ud800")
    with pytest.raises(InputError, match="chat template"):
        tokenizer.load(folder, checkpoint.load(folder).shape.vocabulary)


@pytest.mark.parametrize(
    "says",
    [{"eos_token_id": [[]]}, {"top_k": HUGE}, {"top_k": 1.5}, {"temperature": "hot"}],
    ids=str,
)
def test_generation_settings_that_fit_no_field_are_named(
    says: dict[str, Any], folder: Path
) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps(says))
    with pytest.raises(InputError, match=r"generation_config\.json"):
        exported(folder)
