"""From an opened checkpoint to a GGUF file of floats, which the quantizer can read too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tel_edge.eval.folders import gguf_layout
from tel_edge.eval.folders.architectures import Tensor
from tel_edge.eval.folders.checkpoint import INSTEAD, Checkpoint
from tel_edge.eval.folders.contents import GENERATION
from tel_edge.eval.folders.gguf_layout import permuted
from tel_edge.eval.folders.numbers import shown
from tel_edge.eval.folders.tensors import HALF_MOST, Stored, rounded, whole
from tel_edge.export.gguf import container, tokenizer
from tel_edge.export.gguf.container import Planned
from tel_edge.export.gguf.quantize import Quant
from tel_edge.export.gguf.tokenizer import Vocabulary
from tel_edge.export.progress import Step
from tel_edge.export.sources.adapter import LoraPair, PeftAdapter
from tel_edge.runtime.bundles.backbones import commit
from tel_edge.runtime.bundles.manifest import BackboneInfo
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.extras import need
from tel_edge.runtime.files import digest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


# Of the settings of generation_config.json that gguf takes over, those that are whole numbers.
WHOLE_SETTINGS = ("top_k", "penalty_last_n", "mirostat")


def write_backbone(
    checkpoint: Checkpoint,
    vocabulary: Vocabulary,
    out: Path,
    *,
    info: BackboneInfo,
    quant: Quant,
    step: Step,
    merged: PeftAdapter | None = None,
    hollow: bool = False,
) -> None:
    """Write the checkpoint to `out` as F32, F16 or BF16, norms always F32.

    The values must have been checked; see `checkpoint.check_values`. `step` is called with the
    number of values written. `merged` is an adapter whose product is added in float32; `hollow`
    leaves the values out (see `container.write`).
    """
    shape = checkpoint.shape
    keys = {"general.file_type": quant.ftype, **_keys(checkpoint, vocabulary, info)}
    pairs = {pair.tensor.name: pair for pair in merged.pairs} if merged else {}
    planned = [
        _planned(tensor, source, quant.name, merged, pairs.get(tensor.name))
        for tensor, source in checkpoint.tensors
    ]
    factors = gguf_layout.rope_factors(shape)
    if factors is not None:
        planned.append(Planned("rope_freqs.weight", factors.shape, "F32", lambda: factors))

    def describe(writer: Any) -> None:
        _identity(checkpoint, info).set_gguf_meta_model(writer)

    container.write(
        out, shape.architecture.gguf, keys, planned, step, describe=describe, hollow=hollow
    )


def inputs(checkpoint: Checkpoint, vocabulary: Vocabulary, info: BackboneInfo) -> str:
    """Return the digest of all that a file of any type holds beside its weights.

    That is more than the weights' configuration and the tokenizer: the chat template, what
    generation_config.json says, and name and origin from the model's card.
    """
    identity = vars(_identity(checkpoint, info))
    return digest.of_value([_keys(checkpoint, vocabulary, info), repr(sorted(identity.items()))])


def _keys(checkpoint: Checkpoint, vocabulary: Vocabulary, info: BackboneInfo) -> dict[str, Any]:
    return {
        "general.type": "model",
        "general.quantization_version": container.QUANTIZATION_VERSION,
        "tel_edge.backbone.weights": info.stated,
        "tel_edge.prompt": info.prompt,
        **gguf_layout.metadata(checkpoint.shape),
        **tokenizer.metadata(vocabulary),
    }


def _identity(checkpoint: Checkpoint, info: BackboneInfo) -> Any:
    """Return gguf's `Metadata`: name, size label, licence and origin, from the folder and card."""
    gguf = need("gguf", "export")
    factors = gguf_layout.rope_factors(checkpoint.shape)
    parameters = checkpoint.parameters + (0 if factors is None else len(factors))
    folder = checkpoint.folder
    made = _described(gguf, folder, parameters)
    if commit(folder):
        parts = gguf.Metadata.get_model_id_components(info.name, parameters)
        name, _, made.basename, made.finetune, made.version, made.size_label = parts
        made.name = gguf.Metadata.id_to_title(name)
    if made.name is None:
        made.name = info.name
    if made.size_label is None:
        made.size_label = gguf.size_label(parameters, 0, 0, 0)
    if made.license is None and info.licence != "unknown":
        made.license = info.licence
    return made


def _described(gguf: Any, folder: Path, parameters: int) -> Any:
    """Return what gguf reads of a folder, without a card and settings that it cannot read."""
    try:
        made = gguf.Metadata.load(None, folder, None, parameters)
    except Exception:
        # A card in Latin-1, front matter that is no YAML: the model is no other for it.
        made = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), {}, {}, folder, parameters)
    for name, value in vars(made).items():
        field = name.removeprefix("sampling_")
        if field in (name, "sequence") or value is None:
            continue
        kinds: Any = int if field in WHOLE_SETTINGS else (int, float)
        if not isinstance(value, kinds) or not -(2**31) <= value < 2**31:
            raise InputError(f"{folder / GENERATION}: {field} is {shown(value)}, wanted a number")
    return made


def _planned(
    tensor: Tensor, source: Stored, kind: str, merged: PeftAdapter | None, pair: LoraPair | None
) -> Planned:
    stored = "F32" if len(tensor.shape) == 1 else kind

    def make() -> npt.NDArray[Any]:
        if merged is None or pair is None:
            return permuted(whole(source, stored), tensor.heads)
        return permuted(_added(source, pair, merged, stored), tensor.heads)

    return Planned(tensor.name, tensor.shape, stored, make)


def _added(source: Stored, pair: LoraPair, merged: PeftAdapter, kind: str) -> npt.NDArray[Any]:
    import numpy as np

    scale = np.float32(pair.fold * merged.alpha / pair.a.shape[0])
    made: npt.NDArray[np.float32] = whole(source, "F32")
    made += scale * (whole(pair.b, "F32") @ whole(pair.a, "F32"))
    if kind == "F16" and np.abs(made).max() > HALF_MOST:
        raise InputError(
            f"{pair.b.file}: merged, {source.name} has values beyond {HALF_MOST:.0f}, the largest "
            f"of F16; export with {INSTEAD}"
        )
    return rounded(made) if kind == "BF16" else made.astype("<f2" if kind == "F16" else "<f4")
