"""A GGUF file back in Hugging Face form: its values, its numbers and the ids of its texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import export_models as models
import gguf_files
import pytest
from for_pre_tokenizers import NASTY

from tel_edge.eval.folders import checkpoint, gguf_layout, loading
from tel_edge.eval.from_gguf import folder as folders
from tel_edge.eval.from_gguf import source
from tel_edge.export import ExportRequest
from tel_edge.export.exporting import export
from tel_edge.runtime.bundles import backbones
from tel_edge.runtime.bundles.formats import FORMATS
from tel_edge.runtime.engines.engine import EngineSettings, Item
from tel_edge.runtime.errors import InputError

torch = pytest.importorskip("torch")
Exported = Callable[[str], tuple[Path, Path]]
KINDS = ("llama", "qwen2", "qwen3", "exaone4")
PLAIN = ("F32", "F16", "BF16")
QUANTS = ("Q8_0", "Q4_0", "Q4_K_M", "IQ4_XS")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The folder of a tiny model of a kind, and its bundle in several types."""

    @cache
    def made(kind: str) -> tuple[Path, Path]:
        home = tmp_path_factory.mktemp(kind)
        small = {"num_hidden_layers": 1, "tie_word_embeddings": kind != "qwen3"}
        base = models.backbone(home / "base", kind, dtype=torch.bfloat16, **small)
        quant = ",".join((*PLAIN, *QUANTS))
        export(
            ExportRequest(workspace=home, backbone=str(base), quant=quant, verify=False, quiet=True)
        )
        return base, home / "bundles" / "base"

    return made


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEL_CACHE", str(tmp_path / "cache"))


def file(bundle: Path, quant: str) -> Path:
    (found,) = bundle.glob(f"*-{quant}.gguf")
    return found


def tensors(folder: Path) -> Mapping[str, Any]:
    from safetensors.torch import load_file

    read: Mapping[str, Any] = load_file(folder / "model.safetensors")
    return read


def back(path: Path) -> Path:
    return folders.kept(path, lambda _: None, quiet=True)


def changed(path: Path, out: Path, *keys: tuple[str, Any, int]) -> Path:
    """Write a copy of a file with other metadata."""
    taken = gguf_files.File.of(path.read_bytes())
    for name, value, kind in keys:
        taken.put(name, value, kind)
    out.write_bytes(taken.bytes())
    return out


@pytest.mark.parametrize("quant", PLAIN)
@pytest.mark.parametrize("kind", KINDS)
def test_unquantized_values_come_back_exactly(exported: Exported, kind: str, quant: str) -> None:
    base, bundle = exported(kind)
    wanted, found = tensors(base), tensors(back(file(bundle, quant)))
    kept = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[quant]
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        # Norms made in bfloat16 fit all three, so the folder is of one type.
        assert found[name].dtype == kept, name
        assert torch.equal(found[name], values.to(kept)), name


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_quantized_values_are_what_the_engine_reads(
    exported: Exported, kind: str, quant: str
) -> None:
    import gguf

    base, bundle = exported(kind)
    path = file(bundle, quant)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    found, original = tensors(back(path)), tensors(base)
    opened = checkpoint.load(base)
    for tensor, _ in opened.tensors:
        blocks = stored[tensor.name]
        values = gguf.quants.dequantize(blocks.data, blocks.tensor_type).astype("f4")
        got = gguf_layout.permuted(found[tensor.source].float().numpy(), tensor.heads)
        assert got == pytest.approx(values, rel=2**-10, abs=1e-7), tensor.name
        # The same model: as near to the one that was exported as such a type is.
        apart = (found[tensor.source].float() - original[tensor.source].float()).norm()
        assert float(apart / original[tensor.source].float().norm()) < 0.15, tensor.name


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_come_back(exported: Exported, kind: str) -> None:
    base, bundle = exported(kind)
    wanted = checkpoint.load(base).shape
    assert checkpoint.load(back(file(bundle, "F16"))).shape == wanted


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_published_rotations_come_back(tmp_path: Path, factor: float) -> None:
    scaled = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": factor, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    base = models.backbone(
        tmp_path / "base", "llama", num_hidden_layers=1, rope_parameters=scaled, head_dim=64
    )
    path = exported_alone(tmp_path, base)
    assert checkpoint.load(back(path)).shape == checkpoint.load(base).shape


def test_other_rotations_are_refused(tmp_path: Path) -> None:
    base = models.backbone(
        tmp_path / "base", "llama", num_hidden_layers=1, rope_parameters=models.LLAMA_3
    )
    with pytest.raises(InputError, match=r"rope_freqs\.weight: other rotations than Llama 3\.1"):
        back(exported_alone(tmp_path, base))


def exported_alone(home: Path, base: Path, quant: str = "F16") -> Path:
    made = export(
        ExportRequest(workspace=home, backbone=str(base), quant=quant, verify=False, quiet=True)
    )
    return made.bundle / made.files[0][0].path


@pytest.mark.parametrize("kind", KINDS)
def test_texts_have_the_ids_of_the_engine(exported: Exported, kind: str) -> None:
    base, bundle = exported(kind)
    path = file(bundle, "F16")
    engine = FORMATS["gguf"].engine(path, {}, EngineSettings(threads=1, context=64))
    folder = back(path)
    made, original = (loading.tokenizer(one) for one in (folder, base))
    for text in (*models.TRICKY, *NASTY, *models.CORPUS):
        ids = made(text, split_special_tokens=True)["input_ids"]
        assert (
            ids == engine.tokenize(text) == original(text, split_special_tokens=True)["input_ids"]
        ), text
    engine.close()
    assert (made.eos_token, made.pad_token) == (original.eos_token, original.pad_token)
    named = made("a<|end_of_text|>b")["input_ids"]
    assert named == original("a<|end_of_text|>b")["input_ids"], "special tokens are special"


def test_the_folder_computes_what_the_engine_computes(exported: Exported) -> None:
    from transformers import AutoModelForCausalLM

    base, bundle = exported("llama")
    path = file(bundle, "Q4_0")
    folder = back(path)
    prompt = tuple(loading.tokenizer(folder)("Answer: which xApp?")["input_ids"])
    labels = [40, 41, 42, 43]
    found = {}
    for place in (folder, base):
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
        with torch.no_grad():
            logits = model(torch.tensor([prompt])).logits[0, -1]
        found[place] = torch.log_softmax(logits, -1)[labels].tolist()
    engine = FORMATS["gguf"].engine(path, {}, EngineSettings(threads=1, context=128))
    ((_, score),) = engine.score([Item(prompt, tuple((label,) for label in labels))], None)
    engine.close()
    # Up to activations, which the engine quantizes as well.
    assert found[folder] == pytest.approx(list(score.logprobs), abs=0.05)
    assert found[base] != pytest.approx(list(score.logprobs), abs=0.05)


def test_the_chat_template_and_ends_come_back(exported: Exported, tmp_path: Path) -> None:
    _, bundle = exported("qwen3")
    path = changed(
        file(bundle, "F16"),
        tmp_path / "chat.gguf",
        ("tokenizer.chat_template", "{{ messages }}", 8),
        ("tokenizer.ggml.eot_token_id", 7, 4),
    )
    folder = back(path)
    assert (folder / "chat_template.jinja").read_text() == "{{ messages }}"
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [1, 7]


WRONG = [
    ((("general.architecture", "mamba", 8),), "architecture 'mamba' cannot be read"),
    ((("general.type", "adapter", 8),), "a whole model is needed"),
    ((("split.count", 3, 2),), "one of several parts"),
    ((("tokenizer.ggml.model", "bert", 8),), "tokenizer.ggml.model is 'bert'"),
    ((("tokenizer.ggml.pre", "falcon", 8),), "tokenizer.ggml.pre is 'falcon'"),
    ((("llama.rope.scaling.type", "yarn", 8),), "llama.rope.scaling.type is 'yarn'"),
    ((("llama.attention.sliding_window", 128, 4),), "sliding_window is 128"),
    ((("llama.logit_scale", 2.0, 6),), "llama.logit_scale is 2.0"),
    ((("llama.rope.dimension_count", 32, 4),), "rope.dimension_count"),
]


@pytest.mark.parametrize(("keys", "said"), WRONG)
def test_what_cannot_be_read_is_refused_by_name(
    exported: Exported, tmp_path: Path, keys: Any, said: str
) -> None:
    _, bundle = exported("llama")
    path = changed(file(bundle, "F16"), tmp_path / "wrong.gguf", *keys)
    with pytest.raises(InputError, match=r"wrong\.gguf") as error:
        back(path)
    assert said in str(error.value)
    assert not list((tmp_path / "cache").glob("backbones/*/config.json"))


def test_a_tensor_without_a_place_is_refused(exported: Exported, tmp_path: Path) -> None:
    _, bundle = exported("llama")
    taken = gguf_files.File.of(file(bundle, "F16").read_bytes())
    taken.rename("blk.0.attn_norm.weight", "blk.0.attn_sub_norm.weight")
    (tmp_path / "wrong.gguf").write_bytes(taken.bytes())
    with pytest.raises(InputError, match=r"attn_norm\.weight is missing"):
        back(tmp_path / "wrong.gguf")


def test_values_that_are_no_numbers_are_refused(exported: Exported, tmp_path: Path) -> None:
    _, bundle = exported("llama")
    taken = gguf_files.File.of(file(bundle, "F16").read_bytes())
    at = taken.tensors["blk.0.ffn_up.weight"].offset
    taken.data = taken.data[:at] + b"\x00\x7e" + taken.data[at + 2 :]
    (tmp_path / "wrong.gguf").write_bytes(taken.bytes())
    with pytest.raises(InputError, match=r"ffn_up\.weight has NaN"):
        back(tmp_path / "wrong.gguf")


def test_a_file_is_read_back_once(exported: Exported) -> None:
    _, bundle = exported("llama")
    said: list[str] = []
    first = folders.kept(file(bundle, "Q8_0"), said.append)
    assert folders.kept(file(bundle, "Q8_0"), said.append) == first
    assert len(said) == 1
    assert not [p for p in first.parent.iterdir() if "partial" in p.name]
    # What is damaged, or was made before it was noted what is whole, is made again.
    weights = first / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert folders.kept(file(bundle, "Q8_0"), said.append) == first
    assert weights.read_bytes() == before
    assert len(said) == 2


def test_memory_is_bounded(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices are read in parts, and give the same bytes."""
    _, bundle = exported("llama")
    path = file(bundle, "Q8_0")
    whole = (back(path) / "model.safetensors").read_bytes()
    most = []
    real = source.dequantized

    def counted(data: Any, kind: Any) -> Any:
        made = real(data, kind)
        most.append(made.size)
        return made

    from tel_edge.eval.from_gguf import weights

    monkeypatch.setattr(source, "dequantized", counted)
    monkeypatch.setattr(weights, "CHUNK", 1 << 12)
    monkeypatch.setenv("TEL_CACHE", str(path.parent / "other"))
    assert (back(path) / "model.safetensors").read_bytes() == whole
    # Those whose rows change places are read at once: q of 256 times 256.
    assert max(most) <= 256 * 256


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("Some Model.Q4_0.gguf", "Some-Model.Q4_0"),
        (f"sha256-{'a' * 64}", "Base.Q4_0"),
        ("model", "model"),
    ],
)
def test_what_a_file_is_called(exported: Exported, tmp_path: Path, name: str, called: str) -> None:
    _, bundle = exported("llama")
    (tmp_path / name).write_bytes(file(bundle, "Q4_0").read_bytes())
    found = backbones.find(str(tmp_path / name))
    assert (found.name, found.file) == (called, tmp_path / name)
    assert found.licence == "unknown"


def test_a_file_of_something_else_is_no_backbone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a model of the network, as one would say\n")
    with pytest.raises(InputError, match=r"notes\.txt: no GGUF file"):
        backbones.find(str(tmp_path / "notes.txt"))
