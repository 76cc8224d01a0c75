"""One check of a folder: what it refuses, whoever reads the folder, before it is loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import export_models as models
import fake_engine as fake
import pytest

from tel_edge.eval.references import with_transformers
from tel_edge.export.commands import export
from tel_edge.runtime import cli
from tel_edge.runtime.errors import InputError
from tel_edge.train import job
from tel_edge.train.commands import train

torch = pytest.importorskip("torch")
Damage = Callable[[Path], Any]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 4321\n"
Q0 = "model.layers.0.self_attn.q_proj.weight"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the backbone `base`, the same in `shards`, and the data set `data`."""
    root = tmp_path_factory.mktemp("folders")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    models.backbone(root / "base", "llama", **small)
    models.backbone(root / "shards", "llama", shards=True)
    fake.dataset(root / "data", "oranbench", fake.rows(30))
    return root


def training(made: Path, folder: Path) -> None:
    argv = ["--backbone", str(folder), "--dataset", str(made / "data"), "--category", "oranbench"]
    job.jobs(train.parser().parse_args(argv))


def exporting(made: Path, folder: Path) -> None:
    argv = ["--backbone", str(folder), "--out", str(folder / "out"), "--dry-run", "--no-verify"]
    export.work(export.parser().parse_args(argv))


def reference(made: Path, folder: Path) -> None:
    with_transformers.checked(folder)


READERS = {"train": training, "export": exporting, "reference": reference}


def config(**changed: Any) -> Damage:
    return lambda folder: models.edit(folder / "config.json", **changed)


def tensors(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def changed(found: dict[str, Any]) -> dict[str, Any]:
        change(found)
        return found

    return lambda folder: models.retensor(folder / SINGLE, changed)


def both(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages]


def write(name: str, content: str) -> Damage:
    return lambda folder: (folder / name).write_text(content)


def cut(folder: Path) -> None:
    path = folder / SINGLE
    path.write_bytes(path.read_bytes()[:-1000])


def longer(folder: Path) -> None:
    with (folder / SINGLE).open("ab") as stream:
        stream.write(b"more")


def packed(name: str, kind: torch.dtype) -> Damage:
    return tensors(lambda found: found.update({name: torch.zeros(8, 4).to(kind)}))


def twice(folder: Path) -> None:
    """Put a tensor of the last shard into the first as well."""
    from safetensors.torch import load_file

    first, *_, last = sorted(folder.glob("model-*.safetensors"))
    name, values = next(iter(load_file(last).items()))
    models.retensor(first, lambda found: {**found, name: values + 1})


def added(folder: Path) -> None:
    entry = {"content": "<think>", "special": False, "lstrip": False, "rstrip": False}
    models.edit(folder / "tokenizer_config.json", added_tokens_decoder={"900": entry})


def beyond(folder: Path) -> None:
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    document["model"]["vocab"]["extra"] = 99999
    path.write_text(json.dumps(document))


def stale(name: str) -> Damage:
    return write(INDEX, json.dumps({"weight_map": {Q0: name}}))


BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}
GPTQ = {"quant_method": "gptq", "bits": 4}
FP8 = {"quant_method": "fp8"}
PACKED = {"quant_method": "compressed-tensors"}
# The folder, what is done to it, what is said: by every reader, or by those of backbones alone.
EVERY: dict[str, tuple[str, Damage, tuple[str, ...]]] = {
    "pointer": ("base", write(SINGLE, POINTER), (SINGLE, "git-lfs pointer", "git lfs pull")),
    "config": ("base", write("config.json", POINTER), ("config.json", "git-lfs pointer")),
    "tokenizer": ("base", write("tokenizer.json", POINTER), ("tokenizer.json", "git-lfs pointer")),
    "truncated": ("base", cut, (SINGLE, "truncated")),
    "longer": ("base", longer, (SINGLE, "4 bytes behind its last tensor")),
    "bitsandbytes": (
        "base",
        both(config(quantization_config=BNB), packed(Q0, torch.uint8)),
        ("quantized already (bitsandbytes)", "pass the original"),
    ),
    "GPTQ": (
        "base",
        both(config(quantization_config=GPTQ), packed("model.x.qweight", torch.int32)),
        ("quantized already (GPTQ)", "pass the original"),
    ),
    "AWQ": (
        "base",
        both(write("quant_config.json", "{}"), packed("model.x.qweight", torch.int32)),
        ("quantized already (AWQ)", "pass the original"),
    ),
    "compressed-tensors": (
        "base",
        both(config(quantization_config=PACKED), packed("model.x.weight_packed", torch.int32)),
        ("quantized already (compressed-tensors)", "pass the original"),
    ),
    "FP8": (
        "base",
        both(config(quantization_config=FP8), packed(Q0, torch.float8_e4m3fn)),
        ("quantized already (FP8)", "pass the original"),
    ),
    "nameless": ("base", packed(Q0, torch.int8), ("quantized already (I8)",)),
    "left over": (
        "base",
        config(quantization_config=BNB),
        ("config.json", "quantization_config (bitsandbytes) is left over", "remove that field"),
    ),
    "empty": ("base", config(quantization_config={}), ("quantization_config", "left over")),
    "adapter": (
        "base",
        write("adapter_config.json", "{}"),
        ("adapter_config.json", "transformers adds to it", "move it"),
    ),
    "stale index": ("base", stale("model-00001-of-00002.safetensors"), (SINGLE, INDEX, "00001")),
    "adapter alone": (
        "base",
        lambda d: (d / "config.json").rename(d / "adapter_config.json"),
        ("no config.json but adapter_config.json", "its backbone"),
    ),
    "two models": (
        "shards",
        lambda d: shutil.copyfile(next(d.glob("model-00001*")), d / SINGLE),
        (SINGLE, INDEX, "model-00001-of-", "remove the one"),
    ),
    "two tensors": ("shards", twice, ("model-00001-of", "and in model-", "remove the shard")),
    "distributed": (
        "base",
        write("shard-00000-model-00001-of-00001.safetensors", ""),
        ("shard-00000", "distributed checkpoint"),
    ),
    "other weights": (
        "base",
        config(transformers_weights="other.safetensors"),
        ("transformers_weights", "other.safetensors"),
    ),
    "other names": (
        "base",
        lambda d: (d / SINGLE).rename(d / "consolidated.safetensors"),
        ("neither", SINGLE),
    ),
}
BACKBONE: dict[str, tuple[str, Damage, tuple[str, ...]]] = {
    "architecture": (
        "base",
        config(model_type="mistral"),
        ("'mistral'", "llama qwen3 qwen2 exaone4"),
    ),
    "tensor": ("base", tensors(lambda t: t.pop(Q0)), (Q0, "is missing")),
    "head": (
        "base",
        config(tie_word_embeddings=False),
        (HEAD, "is missing", "tie_word_embeddings"),
    ),
    "shape": ("base", config(intermediate_size=48), ("gate_proj.weight is [64, 32]", "[48, 32]")),
    "type": ("base", tensors(lambda t: t.update({Q0: t[Q0].double()})), (Q0, "F64")),
    "no tokenizer": (
        "base",
        lambda d: (d / "tokenizer.json").unlink(),
        ("tokenizer.json: missing",),
    ),
    "half a tokenizer": (
        "base",
        lambda d: (d / "tokenizer.json").write_bytes((d / "tokenizer.json").read_bytes()[:999]),
        ("tokenizer.json: not a tokenizer",),
    ),
    "vocabulary": (
        "base",
        beyond,
        ("tokenizer.json: token 'extra' has id 99999", "vocab_size"),
    ),
    "added": ("base", added, ("tokenizer_config.json", "'<think>' is not in tokenizer.json")),
    "padding": ("base", config(pad_token_id=9999), ("pad_token_id 9999", "set it to null")),
}
CASES = [(who, name) for name in EVERY for who in READERS] + [
    (who, name) for name in BACKBONE for who in ("train", "export")
]


@pytest.mark.parametrize(("who", "name"), CASES)
def test_every_reader_refuses_in_the_same_words(
    who: str, name: str, made: Path, tmp_path: Path
) -> None:
    kind, damage, fragments = (EVERY | BACKBONE)[name]
    folder = Path(shutil.copytree(made / kind, tmp_path / "copy"))
    damage(folder)
    with pytest.raises(InputError) as caught:
        READERS[who](made, folder)
    said = str(caught.value)
    assert len(said.splitlines()) <= 2
    for fragment in fragments:
        assert fragment in said


def test_whole_folders_pass(made: Path) -> None:
    for reader in READERS.values():
        for kind in ("base", "shards"):
            reader(made, made / kind)


def test_nothing_heavy_is_imported_for_it(made: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from tel_edge.eval.references import with_transformers\n"
        "from tel_edge.eval.folders import checkpoint\n"
        "folder = Path(sys.argv[1])\n"
        "checkpoint.load(folder), with_transformers.checked(folder)\n"
        "print(*{'torch', 'transformers', 'safetensors', 'peft'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, made / "base"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_a_reference_may_be_of_any_architecture(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made / "base", tmp_path / "copy"))
    both(config(model_type="mistral"), tensors(lambda t: t.update(x=torch.ones(3).bool())))(folder)
    assert with_transformers.checked(folder) == folder


def test_merging_checks_the_folder_too(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from types import SimpleNamespace

    from tel_edge.train.commands import merge

    folder = Path(shutil.copytree(made / "base", tmp_path / "copy"))
    write("adapter_config.json", "{}")(folder)
    record = {"backbone": {"weights": "0" * 64}}
    plan = SimpleNamespace(sources=(SimpleNamespace(record=record, folder=folder),))
    monkeypatch.setattr(merge, "plan", lambda *_: plan)
    argv = ["--backbone", str(folder), "--method", "linear", "--workspace", str(tmp_path)]
    assert cli.run(merge.parser(), merge.work, argv) == 2
    assert "an adapter in the backbone's own folder" in capsys.readouterr().err


def test_both_lines_of_a_refusal_stand_in_the_row_of_a_sweep(tmp_path: Path) -> None:
    from tel_edge.train.sweeps import runners

    (tmp_path / "stderr.txt").write_text("note\ntel-train: d: an adapter in it\nmove it\n")
    said = runners._reason(2, tmp_path / "stderr.txt")
    assert said == "tel-train: d: an adapter in it move it"
