"""From an opened checkpoint to a GGUF file of floats, which the quantizer can read too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tel_edge.export import architectures, container, tokenizer
from tel_edge.export.architectures import Tensor, permuted
from tel_edge.export.checkpoint import Checkpoint
from tel_edge.export.container import Planned, Step
from tel_edge.export.quantize import Quant
from tel_edge.export.tensors import Stored, whole
from tel_edge.export.tokenizer import Vocabulary
from tel_edge.runtime.manifest import BackboneInfo

if TYPE_CHECKING:
    import numpy.typing as npt


def write_backbone(
    checkpoint: Checkpoint,
    vocabulary: Vocabulary,
    out: Path,
    *,
    info: BackboneInfo,
    quant: Quant,
    step: Step,
) -> None:
    """Write the checkpoint to `out` as F32, F16 or BF16, norms always F32.

    The values must have been checked; see `checkpoint.check_values`. `step` is called with the
    number of values written.
    """
    shape = checkpoint.shape
    keys: dict[str, Any] = {
        "general.type": "model",
        "general.name": info.name,
        "general.license": info.licence,
        "general.file_type": quant.ftype,
        "general.quantization_version": container.QUANTIZATION_VERSION,
        "tel_edge.backbone.weights": info.weights,
        "tel_edge.prompt": info.prompt,
        **architectures.metadata(shape),
        **tokenizer.metadata(vocabulary),
    }
    planned = [_planned(tensor, source, quant.name) for tensor, source in checkpoint.tensors]
    factors = architectures.rope_factors(shape)
    if factors is not None:
        planned.append(Planned("rope_freqs.weight", factors.shape, "F32", lambda: factors))
    container.write(out, shape.architecture.gguf, keys, planned, step)


def _planned(tensor: Tensor, source: Stored, kind: str) -> Planned:
    stored = "F32" if len(tensor.shape) == 1 else kind

    def make() -> npt.NDArray[Any]:
        return permuted(whole(source, stored), tensor.heads)

    return Planned(tensor.name, tensor.shape, stored, make)
