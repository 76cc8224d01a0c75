"""An adapter as a LoRA GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tel_edge.eval.folders.gguf_layout import permuted
from tel_edge.eval.folders.tensors import Stored, whole
from tel_edge.export.gguf import container
from tel_edge.export.gguf.container import Planned
from tel_edge.export.gguf.quantize import QUANTS
from tel_edge.export.sources.adapter import PeftAdapter
from tel_edge.runtime.bundles.formats import PROMPT, TEMPLATE
from tel_edge.runtime.bundles.manifest import BackboneInfo
from tel_edge.runtime.extras import need
from tel_edge.runtime.questions.categories import SPOKEN

if TYPE_CHECKING:
    import numpy.typing as npt


def write_adapter(
    adapter: PeftAdapter, out: Path, info: BackboneInfo, category: str, kind: str
) -> None:
    """Write the adapter to `out`, its matrices as `kind` (F32, F16 or Q8_0).

    Q8_0 has blocks of 32 along a row; a matrix whose rows are no multiple of that, as B's are at
    ranks below 32, is written as F16.
    """
    keys: dict[str, Any] = {
        "general.type": "adapter",
        "general.name": f"{info.name}-{category}",
        "general.file_type": QUANTS[kind].ftype,
        "general.base_model.count": 1,
        "general.base_model.0.name": adapter.base,
        "adapter.type": "lora",
        "adapter.lora.alpha": adapter.alpha,
        "tel_edge.category": category,
        # How it is asked: by a question's prompt, or by the backbone's chat template.
        **({TEMPLATE: info.template} if category in SPOKEN else {PROMPT: info.prompt}),
        "tel_edge.backbone.weights": info.stated,
    }
    planned = []
    for pair in adapter.pairs:
        planned.append(_matrix(f"{pair.tensor.name}.lora_a", pair.a, kind, 0, 1.0))
        planned.append(
            _matrix(f"{pair.tensor.name}.lora_b", pair.b, kind, pair.tensor.heads, pair.fold)
        )
    container.write(out, info.architecture, keys, planned, lambda _: None)


def _matrix(name: str, source: Stored, kind: str, heads: int, fold: float) -> Planned:
    kept = "F16" if kind == "Q8_0" and source.shape[-1] % 32 else kind

    def make() -> npt.NDArray[Any]:
        values = permuted(whole(source, "F32") * fold, heads)
        if kept == "Q8_0":
            gguf = need("gguf", "export")
            blocks: npt.NDArray[Any] = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            return blocks
        return values.astype("<f2" if kept == "F16" else "<f4")

    return Planned(name, source.shape, kept, make)
