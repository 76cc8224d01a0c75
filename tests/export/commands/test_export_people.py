"""Folders as other trainers leave them: what they are is said, and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import export_models as models
import pytest

from tel_edge.export.commands import export
from tel_edge.runtime import cli


@pytest.fixture(scope="module")
def made(tmp_path_factory: Any) -> Path:
    """Return a folder with a backbone `base` and its adapter `lora`."""
    root: Path = tmp_path_factory.mktemp("people")
    base = models.backbone(root / "base", "llama")
    models.adapter(root / "lora", base)
    return root


def run(made: Path, folder: Path, out: Path, capsys: Any, *more: str) -> tuple[int, str]:
    capsys.readouterr()
    argv = ["--backbone", str(made / "base"), "--adapter", str(folder), "--category", "oranbench",
            "--quant", "F16", "--out", str(out), *more]  # fmt: skip
    return cli.run(export.parser(), export.work, argv), capsys.readouterr().err


def refused(made: Path, folder: Path, out: Path, capsys: Any) -> str:
    code, said = run(made, folder, out, capsys)
    assert code == 2
    assert len(said.splitlines()) <= 2
    assert not out.exists()
    return said


def test_a_checkpoint_of_the_trainer_is_a_peft_folder(
    made: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = shutil.copytree(made / "lora", tmp_path / "checkpoint-20")
    for name in ("optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin"):
        (folder / name).write_bytes(b"pickled, and never opened")
    (folder / "trainer_state.json").write_text("{}")
    assert run(made, folder, tmp_path / "out", capsys, "--no-verify")[0] == 0


@pytest.mark.parametrize("stem", ["checkpoint-", "epoch_"])
def test_a_folder_of_checkpoints_names_them(
    stem: str, made: Path, tmp_path: Path, capsys: Any
) -> None:
    for at in (20, 100, 3):
        shutil.copytree(made / "lora", tmp_path / "run" / f"{stem}{at}")
    said = refused(made, tmp_path / "run", tmp_path / "out", capsys)
    assert f"3 folders that have one: {stem}3 {stem}20 {stem}100" in said
    assert f"--adapter {tmp_path / 'run' / f'{stem}100'}" in said


def test_a_finished_run_with_checkpoints_inside_is_its_own_adapter(
    made: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = shutil.copytree(made / "lora", tmp_path / "run")
    shutil.copytree(made / "lora", folder / "checkpoint-20")
    assert run(made, folder, tmp_path / "out", capsys, "--no-verify")[0] == 0


def test_a_merged_model_is_no_adapter(made: Path, tmp_path: Path, capsys: Any) -> None:
    said = refused(made, made / "base", tmp_path / "out", capsys)
    assert "a whole model and no adapter\npass it with --backbone" in said


def test_a_file_is_no_folder(made: Path, tmp_path: Path, capsys: Any) -> None:
    file = made / "lora" / "adapter_model.safetensors"
    assert "is a file; pass the PEFT folder" in refused(made, file, tmp_path / "out", capsys)


def test_adapters_of_mlx_are_called_so(made: Path, tmp_path: Path, capsys: Any) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "adapters"
    folder.mkdir()
    parameters = {"rank": 8, "scale": 20.0, "dropout": 0.0}
    config = {"fine_tune_type": "lora", "num_layers": 16, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = load_file(made / "lora" / "adapter_model.safetensors")
    names = {name: name[len("base_model.model.") : -len(".weight")].lower() for name in tensors}
    save_file(
        {names[name]: value.T.contiguous() for name, value in tensors.items()},
        folder / "adapters.safetensors",
    )
    said = refused(made, folder, tmp_path / "out", capsys)
    assert "an adapter of mlx-lm, which PEFT does not read" in said
    assert "lora_alpha = scale x rank" in said


INITIALISATIONS = ("gaussian", "orthogonal", "eva")


@pytest.mark.parametrize("init", INITIALISATIONS)
def test_initialisations_that_leave_the_backbone_alone(
    init: str, made: Path, tmp_path: Path, capsys: Any
) -> None:
    # EVA needs data at its start; a finished adapter is plain LoRA.
    first = True if init == "eva" else init
    folder = models.adapter(tmp_path / "lora", made / "base", init_lora_weights=first)
    models.edit(folder / "adapter_config.json", init_lora_weights=init)
    # One goes through the gate: all of them give PEFT the same two matrices to read.
    gate = () if init == "orthogonal" else ("--no-verify",)
    assert run(made, folder, tmp_path / "out", capsys, *gate)[0] == 0


@pytest.mark.parametrize(
    "init", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "mica"]
)
def test_initialisations_that_change_the_backbone(
    init: str, made: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = shutil.copytree(made / "lora", tmp_path / "lora")
    models.edit(folder / "adapter_config.json", init_lora_weights=init)
    said = refused(made, folder, tmp_path / "out", capsys)
    assert f"init_lora_weights='{init}' changes the backbone itself" in said
    assert "path_initial_model_for_weight_conversion" in said


TYPES = (
    "AdaLora", "LoHa", "LoKr", "IA3", "Vera", "VBLoRA", "BOFT", "OFT", "HRA", "Miss", "LNTuning",
    "FourierFT", "PromptTuning", "PrefixTuning", "PromptEncoder", "TrainableTokens", "Shira",
)  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
def test_other_types_of_peft_are_refused_by_name(
    kind: str, made: Path, tmp_path: Path, capsys: Any
) -> None:
    import peft

    config = getattr(peft, f"{kind}Config")
    needed = {"total_step": 10} if kind == "AdaLora" else {}
    folder = shutil.copytree(made / "lora", tmp_path / "lora")
    saved = config(task_type="CAUSAL_LM", **needed)
    saved.save_pretrained(folder)
    said = refused(made, folder, tmp_path / "out", capsys)
    assert f"peft_type '{saved.peft_type.value}' cannot be exported; LORA can" in said


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [3]),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("layer_replication", [[0, 1], [0, 2]]),
        ("use_qalora", True),
        ("lora_bias", True),
    ],
)
def test_what_a_lora_file_cannot_hold_is_refused_by_name(
    field: str, value: Any, made: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = shutil.copytree(made / "lora", tmp_path / "lora")
    models.edit(folder / "adapter_config.json", **{field: value})
    assert f"{field} cannot be exported" in refused(made, folder, tmp_path / "out", capsys)
