"""What a backbone's folder means is what transformers takes it for: heads, defaults, padding."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import export_models as models
import fake_engine as fake
import pytest
from for_export_parity import MOST, engine, farthest

from tel_edge.eval.folders import architectures, checkpoint
from tel_edge.export.commands import export
from tel_edge.runtime import cli
from tel_edge.runtime.errors import InputError
from tel_edge.train import job
from tel_edge.train.commands import train

torch = pytest.importorskip("torch")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone whose head is tied."""
    return models.backbone(tmp_path_factory.mktemp("meaning") / "base", "llama")


def changed(base: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    shutil.copytree(base, folder)

    def made(tensors: dict[str, Any]) -> dict[str, Any]:
        change(tensors)
        return tensors

    models.retensor(folder / "model.safetensors", made)
    return folder


def names(folder: Path) -> dict[str, str]:
    """Return GGUF name and source of the embedding and the head, where there is one."""
    made = checkpoint.load(folder).tensors
    known = ("token_embd.weight", "output.weight")
    return {tensor.name: source.name for tensor, source in made if tensor.name in known}


def test_a_head_that_differs_is_kept_though_the_configuration_ties_it(
    base: Path, tmp_path: Path
) -> None:
    def other(tensors: dict[str, Any]) -> None:
        tensors[HEAD] = tensors[EMBEDDING].flip(0) + 0.1

    folder = changed(base, tmp_path / "folder", other)
    argv = ["--backbone", str(folder), "--quant", "F16", "--out", str(tmp_path / "b"), "--quiet"]
    assert cli.run(export.parser(), export.work, [*argv, "--no-verify"]) == 0
    made = engine(tmp_path / "b", "F16")
    assert farthest(made, folder, None, None) < MOST
    assert farthest(made, base, None, None) > 20 * MOST
    made.close()


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_a_head_that_is_equal_is_the_embedding(base: Path, kind: str, tmp_path: Path) -> None:
    def same(tensors: dict[str, Any]) -> None:
        tensors[HEAD] = tensors[EMBEDDING].clone().to(getattr(torch, kind))

    folder = changed(base, tmp_path / "folder", same)
    assert names(folder) == {"token_embd.weight": EMBEDDING}


def test_a_tied_model_may_be_stored_under_its_head(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    def moved(tensors: dict[str, Any]) -> None:
        tensors[HEAD] = tensors.pop(EMBEDDING)

    folder = changed(base, tmp_path / "folder", moved)
    assert names(folder) == {"token_embd.weight": HEAD}
    embeddings = [
        AutoModelForCausalLM.from_pretrained(of).get_input_embeddings().weight
        for of in (base, folder)
    ]
    assert torch.equal(*embeddings)


FIELDS = ("num_key_value_heads", "tie_word_embeddings", "head_dim", "rope_parameters")


@pytest.mark.parametrize("kind", architectures.ARCHITECTURES)
@pytest.mark.parametrize("field", FIELDS)
def test_a_field_that_is_missing_has_the_default_of_transformers(
    kind: str, field: str, tmp_path: Path
) -> None:
    from transformers import AutoConfig

    config = json.loads((models.backbone(tmp_path, kind) / "config.json").read_text())
    config.pop(field, None)
    config["num_attention_heads"] = 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = architectures.shape_of(config, "x")
    known = AutoConfig.from_pretrained(tmp_path)
    assert shape.kv_heads == known.num_key_value_heads
    assert shape.tied == known.tie_word_embeddings
    assert shape.rope_base == known.rope_parameters["rope_theta"]
    width = getattr(known, "head_dim", None) or known.hidden_size // known.num_attention_heads
    assert shape.head_dim == width


@pytest.mark.parametrize("value", [None, "yes", 1])
def test_tied_is_true_or_false(value: Any, base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "folder"))
    models.edit(folder / "config.json", tie_word_embeddings=value)
    with pytest.raises(InputError, match="wanted true or false"):
        checkpoint.load(folder)


def test_training_says_that_only_onnx_can_hold_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = ["sliding_attention", "full_attention"]
    folder = models.backbone(tmp_path / "base", "exaone4", layer_types=kinds, sliding_window=64)
    fake.dataset(tmp_path / "data", "oranbench", fake.rows(30))
    argv = ["--backbone", str(folder), "--dataset", str(tmp_path / "data")]
    capsys.readouterr()
    job.jobs(train.parser().parse_args([*argv, "--category", "oranbench"]))
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"warning: {folder}: layers slide, so it can be exported as ONNX only"


def padded_late(folder: Path) -> None:
    """Name a token for padding that the tokenizer adds behind its last one."""
    config = json.loads((folder / "config.json").read_text())
    document = json.loads((folder / "tokenizer.json").read_text())
    taken = {**document["added_tokens"][0], "content": "<pad>", "id": config["vocab_size"]}
    document["added_tokens"].append(taken)
    document["model"]["vocab"].update(
        {f"filler {at}": at for at in range(len(document["model"]["vocab"]), taken["id"])}
    )
    (folder / "tokenizer.json").write_text(json.dumps(document))
    models.edit(folder / "tokenizer_config.json", pad_token="<pad>")


def unpadded(folder: Path) -> None:
    models.edit(folder / "tokenizer_config.json", pad_token=None, eos_token=None)
    models.edit(folder / "config.json", pad_token_id=None)


@pytest.mark.parametrize("change", [padded_late, unpadded])
def test_training_and_export_need_no_token_for_padding(
    change: Callable[[Path], None], tmp_path: Path, run_command: Callable[..., Any]
) -> None:
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    folder = models.backbone(tmp_path / "base", "llama", **small)
    change(folder)
    fake.dataset(tmp_path / "data", "oranbench", fake.rows(30))
    shared = ["--workspace", str(tmp_path / "home"), "--backbone", str(folder), "--quiet"]
    data = ["--dataset", str(tmp_path / "data"), "--category", "oranbench"]
    small_run = ["--rank", "2", "--batch", "6", "--epochs", "1", "--score"]
    code, out, error = run_command(train.parser(), train.work, *shared, *data, *small_run)
    assert code == 0, error
    assert "test Pass@1" in out
    argv = [*shared, "--adapter", "oranbench", "--quant", "F16", "--no-verify"]
    assert run_command(export.parser(), export.work, *argv)[0] == 0
