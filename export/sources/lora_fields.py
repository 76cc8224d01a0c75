"""What the fields of an adapter_config.json mean for a LoRA file of the engine.

Source: peft 0.21.2, `LoraConfig`: every field and its default. Fields that a later peft adds are
known by being in none of these tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tel_edge.runtime.errors import InputError

# Read by `adapter`, or of no meaning once an adapter is trained, whatever their value is.
KNOWN = frozenset(
    """
    task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode
    r lora_alpha use_rslora rank_pattern alpha_pattern bias init_lora_weights
    target_modules exclude_modules layers_to_transform layers_pattern
    lora_dropout qalora_group_size megatron_core runtime_config ensure_weight_tying
    loftq_config eva_config corda_config lora_ga_config velora_config
    """.split()
)

# Fields that compute what such a file cannot hold, and why. All are off by default.
REFUSED = {
    "use_dora": "DoRA rescales the backbone's own rows",
    "lora_bias": "the engine has no place for biases",
    "modules_to_save": "whole modules of the backbone were trained",
    "trainable_token_indices": "rows of the embedding were trained",
    "fan_in_fan_out": "the backbone's rows and columns are exchanged",
    "layer_replication": "the backbone's layers are repeated",
    "target_parameters": "bare parameters were trained",
    "alora_invocation_tokens": "it is active only after certain tokens",
    "use_qalora": "inputs are pooled in groups",
    "use_bdlora": "its matrices are block-diagonal",
    "arrow_config": "it routes between adapters",
    "kasa_config": "it changes the backbone's own weights",
    "monteclora_config": "its weights are sampled",
    "megatron_config": "its layers are Megatron's",
}


def check(path: Path, config: Mapping[str, Any]) -> None:
    """Raise `InputError` naming a field of the adapter that a LoRA file cannot hold.

    An unknown field is let be as long as it is off: null, false, zero or empty.
    """
    for field, value in config.items():
        if not value or field in KNOWN:
            continue
        if field in REFUSED:
            raise InputError(
                f"{path}: {field} cannot be exported: {REFUSED[field]}; train without it"
            )
        raise InputError(
            f"{path}: {field}={value!r} is no field of a LoRA adapter that is known here (peft "
            "0.21.2), so what it computes is not either\nremove it if it changes no answer, or "
            "train without it"
        )
