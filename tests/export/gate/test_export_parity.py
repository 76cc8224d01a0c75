"""What is exported computes what transformers and PEFT compute."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import export_models as models
import pytest
from for_export_parity import MOST, engine, farthest

from tel_edge.export.commands import export
from tel_edge.runtime import cli
from tel_edge.runtime.bundles.manifest import read
from tel_edge.runtime.files.gguf_header import check

# The adapters of the comparison, under the category that each is exported for.
ADAPTERS: dict[str, dict[str, Any]] = {
    "oranbench": {},
    "teleqna": {"use_rslora": True, "r": 4, "target_modules": ["q_proj", "k_proj", "down_proj"]},
    "sixg_bench": {
        "alpha_pattern": {"q_proj": 40, "layers.1.mlp.up_proj": 3},
        "rank_pattern": {"k_proj": 2, "^model.layers.0.mlp.gate_proj": 12},
    },
    "srsranbench": {
        "use_rslora": True,
        "alpha_pattern": {"v_proj": 5},
        "rank_pattern": {"o_proj": 3},
        "layers_to_transform": [1],
    },
}


@dataclass
class Exported:
    kind: str
    base: Path
    adapters: dict[str, Path]
    bundle: Path


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3", "exaone4"])
def exported(request: Any, tmp_path_factory: Any) -> Exported:
    root = tmp_path_factory.mktemp(request.param)
    base = models.backbone(root / "base", request.param)
    adapters = {
        name: models.bind(models.adapter(root / name, base, **options), base, category=name)
        for name, options in ADAPTERS.items()
    }
    bundle = root / "bundle"
    argv = ["--backbone", str(base), "--quant", "F16,Q8_0", "--out", str(bundle), "--quiet"]
    argv += ["--adapter", ",".join(map(str, adapters.values()))]
    assert cli.run(export.parser(), export.work, argv) == 0
    return Exported(request.param, base, adapters, bundle)


def test_f16_is_transformers_and_peft(exported: Exported) -> None:
    made = engine(exported.bundle, "F16")
    plain = farthest(made, exported.base, None, None)
    assert plain < MOST
    for name, folder in exported.adapters.items():
        assert farthest(made, exported.base, folder, name) < MOST, name
        # The adapters do change the answer, or the line above would compare nothing.
        assert farthest(made, exported.base, folder, None) > 20 * MOST, name
    made.close()


def test_q8_0_is_near(exported: Exported) -> None:
    made = engine(exported.bundle, "Q8_0")
    assert 1e-6 < farthest(made, exported.base, None, None) < 0.1
    assert farthest(made, exported.base, exported.adapters["oranbench"], "oranbench") < 0.1
    made.close()


def test_what_binds_a_file_is_in_it(exported: Exported) -> None:
    made = read(exported.bundle)
    for file in made.files:
        keys = check(exported.bundle / file.path).metadata
        assert keys["tel_edge.backbone.weights"] == made.backbone.weights
        assert keys["tel_edge.prompt"] == made.backbone.prompt
        assert keys["general.architecture"] == exported.kind
        if file.kind == "adapter":
            assert (keys["general.type"], keys["adapter.type"]) == ("adapter", "lora")
            assert keys["tel_edge.category"] == file.category
            assert (file.split, file.backbone) == ("5" * 64, made.backbone.weights)


VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # A head of its own, bfloat16 shards, Llama 3.1's frequencies.
    "llama 3.1": (
        "llama",
        {"tie_word_embeddings": False, "shards": True, "rope_parameters": models.LLAMA_3},
        {},
    ),
    # The spelling of transformers 4.
    "transformers 4": (
        "llama",
        {"rope_parameters": models.LLAMA_3},
        {
            "rope_parameters": None,
            "rope_theta": 5000.0,
            "rope_scaling": {k: v for k, v in models.LLAMA_3.items() if k != "rope_theta"},
        },
    ),
    "exaone4 scaled": (
        "exaone4",
        {"rope_parameters": models.LLAMA_3, "tie_word_embeddings": False},
        {},
    ),
    "qwen3 untied": ("qwen3", {"tie_word_embeddings": False, "shards": True}, {}),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("quant", ["F16", "BF16"])
def test_forms_of_a_checkpoint(name: str, quant: str, tmp_path: Path) -> None:
    import torch

    kind, options, changed = VARIANTS[name]
    base = models.backbone(tmp_path / "base", kind, dtype=torch.bfloat16, **options)
    if options.get("shards"):
        assert (base / "model.safetensors.index.json").is_file()
    models.edit(base / "config.json", **changed)
    argv = ["--backbone", str(base), "--quant", quant, "--out", str(tmp_path / "b"), "--quiet"]
    assert cli.run(export.parser(), export.work, argv) == 0
    made = engine(tmp_path / "b", quant)
    # The engine rounds activations to the weights' type: 8 bits of mantissa in BF16.
    assert farthest(made, base, None, None) < (MOST if quant == "F16" else 20 * MOST)
    made.close()
