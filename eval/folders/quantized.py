"""Model folders whose weights were quantized already, which are refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tel_edge.eval.folders.tensors import Stored
from tel_edge.runtime.errors import InputError

# Fields of config.json that say how; compressed-tensors wrote the second until its 0.6.
FIELDS = ("quantization_config", "compression_config")
# Files beside it that say the same, and who writes them.
BESIDE = {"quantize_config.json": "GPTQ", "quant_config.json": "AWQ"}
# Names in `quant_method` as people know them; any other is told as it is.
CALLED = {
    "bitsandbytes": "bitsandbytes",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "compressed-tensors": "compressed-tensors",
    "fp8": "FP8",
    "fbgemm_fp8": "FP8",
    "modelopt": "ModelOpt",
}
# How safetensors calls the types that packed or scaled weights are kept in, and those that train.
PACKED = ("F8_", "F4", "F6_", "I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")
# The last part of their names: plain, GPTQ's and AWQ's, compressed-tensors', MXFP4's.
WEIGHTS = ("weight", "qweight", "weight_packed", "blocks")


def check(folder: Path, config: Mapping[str, Any], tensors: Iterable[Stored]) -> None:
    """Raise `InputError` for weights that are quantized, and for a configuration that says so.

    Such weights are not those that an adapter or an export should be made from, and transformers
    reads them, or quantizes plain ones anew, only with further packages.
    """
    packed = next((tensor for tensor in tensors if _packed(tensor)), None)
    field = next((name for name in FIELDS if config.get(name) is not None), None)
    beside = next((name for name in BESIDE if (folder / name).is_file()), None)
    if packed is not None:
        how = _method(config[field]) if field else BESIDE[beside] if beside else packed.kind
        raise InputError(
            f"{folder}: quantized already ({how}): tensor {packed.name} is {packed.kind}\n"
            "pass the original model, in F32, F16 or BF16, that it was made from"
        )
    if field:
        raise InputError(
            f"{folder / 'config.json'}: {field} ({_method(config[field])}) is left over, its "
            "weights are not quantized: transformers would do it when it loads them\n"
            "remove that field, or pass the original model"
        )


def _packed(tensor: Stored) -> bool:
    last = tensor.name.rpartition(".")[2]
    return tensor.kind.startswith(PACKED) and last.endswith(WEIGHTS)


def _method(given: Any) -> str:
    if not isinstance(given, Mapping):
        return "unknown"
    if given.get("load_in_4bit") or given.get("load_in_8bit"):
        return CALLED["bitsandbytes"]
    method = str(given.get("quant_method", "unknown"))
    return CALLED.get(method, method)
