"""From a checked PEFT adapter to onnxruntime's `.onnx_adapter` file.

The graph computes `x @ A @ B`: A is lora_A transposed, B lora_B transposed and multiplied by PEFT's
whole scale, whatever it is made of (alpha, rsLoRA, patterns).
"""

from __future__ import annotations

from pathlib import Path

from tel_edge.eval.folders.tensors import whole
from tel_edge.export.sources.adapter import PeftAdapter
from tel_edge.runtime.extras import need
from tel_edge.runtime.files.onnx_adapter import stamp

# Of this project's layout; onnxruntime keeps the number and does not look at it.
VERSION = 1


def write_adapter(adapter: PeftAdapter, out: Path, weights: str) -> None:
    """Write the adapter to `out` in float32, stamped with the backbone's digest `weights`."""
    import numpy as np

    runtime = need("onnxruntime", "export")
    tensors = {}
    for pair in adapter.pairs:
        module = pair.tensor.source.removesuffix(".weight")
        scale = np.float32(pair.fold * adapter.alpha / pair.a.shape[0])
        tensors[f"{module}.lora_A"] = np.ascontiguousarray(whole(pair.a, "F32").T)
        tensors[f"{module}.lora_B"] = np.ascontiguousarray(whole(pair.b, "F32").T) * scale
    made = runtime.AdapterFormat()
    made.set_adapter_version(VERSION)
    made.set_model_version(stamp(weights))
    made.set_parameters(
        {name: runtime.OrtValue.ortvalue_from_numpy(value) for name, value in tensors.items()}
    )
    made.export_adapter(str(out))
