"""Which tensors of a PEFT folder count: those that PEFT itself wraps and reads."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import export_models as models
import pytest

from tel_edge.eval.folders import architectures
from tel_edge.export.commands import export
from tel_edge.export.sources import foreign, targets
from tel_edge.runtime import cli
from tel_edge.runtime.errors import InputError


@pytest.fixture(scope="module")
def made(tmp_path_factory: Any) -> Path:
    """Return a folder with a backbone `base` and its adapter `lora`, which any folder could be."""
    root: Path = tmp_path_factory.mktemp("targets")
    base = models.backbone(root / "base", "llama")
    models.adapter(root / "lora", base)
    return root


@pytest.fixture(scope="module")
def model(made: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(made / "base", dtype=torch.float32)


LINEAR = [
    f"model.layers.{at}.{'mlp' if name[0] in 'gud' else 'self_attn'}.{name}"
    for at in range(2)
    for name in models.PROJECTIONS
]
# As unsloth writes it: one expression for whatever a model calls its parts.
EXPRESSION = (
    r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|down_proj).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|k_proj|up_proj)))"
)
CONFIGS: tuple[dict[str, Any], ...] = (
    {"target_modules": None},
    {"target_modules": ["q_proj", "c_attn", "query_key_value"]},
    {"target_modules": ["proj"]},
    {"target_modules": ["self_attn.q_proj", "model.layers.1.mlp.up_proj"]},
    {"target_modules": "all-linear"},
    {"target_modules": "All-Linear", "exclude_modules": ["k_proj", "layers.0.mlp.up_proj"]},
    {"target_modules": "all-linear", "exclude_modules": r".*\.0\..*"},
    {"target_modules": "all-linear", "exclude_modules": "k_proj"},
    {"target_modules": r".*\.(q|v)_proj", "exclude_modules": ["v_proj"]},
    {"target_modules": EXPRESSION},
    {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
    {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    {"target_modules": ["q_proj"], "layers_to_transform": 0},
    {"target_modules": ["q_proj"], "layers_to_transform": []},
    {"target_modules": ["q_proj"], "layers_to_transform": [0, 7], "layers_pattern": "layers"},
    {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": ["h", "layers"]},
    {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": []},
    # What PEFT refuses.
    {"target_modules": []},
    {"target_modules": ["c_attn"]},
    {"target_modules": ["q_proj"], "exclude_modules": "all-linear|.*q_proj"},
    {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "h"},
    {"target_modules": ".*q_proj", "layers_to_transform": [0]},
)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_modules_are_those_that_peft_wraps(config: dict[str, Any], model: Any) -> None:
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    try:
        wrapped = get_peft_model(copy.deepcopy(model), LoraConfig(**config))
    except ValueError:
        theirs = set()
    else:
        names = (name for name, part in wrapped.named_modules() if isinstance(part, LoraLayer))
        theirs = {name.removeprefix("base_model.model.") for name in names}
    try:
        ours = set(targets.wrapped(config, LINEAR, architectures.QV))
    except InputError:
        ours = set()
    assert ours == theirs


def test_the_modules_of_null_are_pefts_of_the_model_type() -> None:
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as THEIRS

    for kind, row in architectures.ARCHITECTURES.items():
        assert list(row.targets) == THEIRS.get(kind, [])


def run(made: Path, folder: Path, out: Path, capsys: Any, *more: str) -> tuple[int, str]:
    """Export the adapter and return the exit code and what was said."""
    capsys.readouterr()
    argv = ["--backbone", str(made / "base"), "--adapter", str(folder), "--category", "oranbench",
            "--quant", "F16", "--out", str(out), *more]  # fmt: skip
    return cli.run(export.parser(), export.work, argv), capsys.readouterr().err


TRAINED: tuple[dict[str, Any], ...] = (
    {"target_modules": ["q_proj", "k_proj", "up_proj"], "exclude_modules": ["k_proj"]},
    {"target_modules": "all-linear", "exclude_modules": r".*\.0\.mlp\..*"},
    {"target_modules": ["q_proj", "c_attn", "query_key_value"]},
)


@pytest.mark.parametrize("config", TRAINED, ids=str)
def test_an_adapter_trained_so_is_exported(
    config: dict[str, Any], made: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = models.adapter(tmp_path / "lora", made / "base", **config)
    # PEFT writes all-linear as the list of what it found.
    models.edit(folder / "adapter_config.json", target_modules=config["target_modules"])
    code, said = run(made, folder, tmp_path / "out", capsys)
    assert code == 0, said
    assert "no tensors" not in said


def without(*parts: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {
        name: value for name, value in tensors.items() if not any(part in name for part in parts)
    }


def changed(made: Path, to: Path, change: Any = None, **config: Any) -> Path:
    folder = shutil.copytree(made / "lora", to)
    if change:
        models.retensor(folder / "adapter_model.safetensors", change)
    models.edit(folder / "adapter_config.json", **config)
    return folder


def test_target_modules_without_tensors_are_told(made: Path, tmp_path: Path, capsys: Any) -> None:
    folder = changed(made, tmp_path / "lora", without("layers.1.", "k_proj"))
    code, said = run(made, folder, tmp_path / "out", capsys)
    assert code == 0, said
    assert (
        "8 of 14 target modules have no tensors, the first model.layers.0.self_attn.k_proj; "
        "PEFT takes them for untrained, and so does the file" in said
    )


@pytest.mark.parametrize("init", [False, "orthogonal"])
def test_tensors_that_peft_would_draw_at_random_are_refused(
    init: Any, made: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = changed(made, tmp_path / "lora", without("k_proj"), init_lora_weights=init)
    code, said = run(made, folder, tmp_path / "out", capsys)
    assert code == 2
    assert "2 of 14 target modules have no tensors" in said
    assert "PEFT fills them at random" in said


def test_tensors_that_peft_ignores_are_refused(made: Path, tmp_path: Path, capsys: Any) -> None:
    folder = changed(made, tmp_path / "lora", exclude_modules=["k_proj"])
    code, said = run(made, folder, tmp_path / "out", capsys)
    assert code == 2
    assert "model.layers.0.self_attn.k_proj has tensors, which PEFT ignores" in said
    assert said.splitlines()[-1] == "name them there, or remove their tensors"


def test_an_adapter_that_changes_nothing_is_told(made: Path, tmp_path: Path, capsys: Any) -> None:
    def zero(tensors: dict[str, Any]) -> dict[str, Any]:
        return {name: t * 0 if "lora_B" in name else t for name, t in tensors.items()}

    folder = changed(made, tmp_path / "lora", zero)
    code, said = run(made, folder, tmp_path / "out", capsys, "--no-verify")
    assert code == 0
    assert "every lora_B is zero: this adapter changes nothing" in said


# What a tensor is called, and what PEFT makes of it.


def called(pattern: str, to: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {re.sub(pattern, to, name): value for name, value in tensors.items()}


NAMES = {
    "compiled inside": (
        called("^base_model.model.", "base_model.model._orig_mod."),
        "torch.compile",
    ),
    "compiled": (called("^", "_orig_mod."), "torch.compile"),
    "sharded": (called(r"\.layers\.", "._fsdp_wrapped_module.layers."), "FSDP"),
    "checkpointed": (
        called(r"(layers\.\d+)", r"\1._checkpoint_wrapped_module"),
        "activation checkpointing",
    ),
    "no prefix": (called(r"^base_model\.model\.", ""), "does not begin with 'base_model.model.'"),
    "parallel": (called("^", "module."), "does not begin with 'base_model.model.'"),
    "named": (called(r"\.weight$", ".mine.weight"), "its name holds the adapter's, 'mine'"),
    "torchtune's": (called("lora_([AB])", lambda m: f"lora_{m[1].lower()}"), "torchtune's own"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_that_peft_does_not_read_are_refused(
    name: str, made: Path, tmp_path: Path, capsys: Any, model: Any
) -> None:
    import torch
    from peft import PeftModel

    change, reason = NAMES[name]
    folder = changed(made, tmp_path / "lora", change)
    code, said = run(made, folder, tmp_path / "out", capsys)
    assert code == 2
    assert reason in said
    assert len(said.splitlines()) == 2
    # For this reason: PEFT computes the bare backbone with it.
    ids = torch.tensor([[5, 6, 7, 8]])
    bare = model(ids).logits
    with pytest.warns(UserWarning, match="missing adapter keys"):
        theirs = PeftModel.from_pretrained(copy.deepcopy(model), folder)
    assert torch.equal(theirs(ids).logits, bare)


def test_only_readable_names_pass(made: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(made / "lora" / "adapter_model.safetensors")
    assert {foreign.why(name) for name in tensors} == {None}
