"""Importance matrices: which input columns of a weight matter to the domain's prompts.

Source of the file format: llama.cpp's tools/imatrix/imatrix.cpp, which writes the same as GGUF.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tel_edge.eval.folders import loading
from tel_edge.export import original
from tel_edge.export.gguf import container
from tel_edge.export.gguf.container import Planned
from tel_edge.export.progress import Step
from tel_edge.runtime import extras
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.files import digest as digests
from tel_edge.runtime.files import gguf_header
from tel_edge.runtime.files.atomic import replacing

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

TYPE = "imatrix"
DATASETS, CHUNKS, CHUNK = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
SUMS, COUNTS = ".in_sum2", ".counts"


# Arrays have no single truth value, so two of these are compared by their digests.
@dataclass(frozen=True, eq=False)
class Importance:
    """Squared inputs of each weight by its GGUF name.

    `sums` are [columns], added up over tokens, `counts` the tokens. `datasets` names what was
    shown, in `chunks` prompts of about `chunk` tokens.
    """

    sums: Mapping[str, npt.NDArray[np.float32]]
    counts: Mapping[str, float]
    datasets: tuple[str, ...]
    chunks: int
    chunk: int

    @property
    def digest(self) -> str:
        """Return the SHA-256 over names, counts and sums."""
        return digests.of_value(
            [
                (
                    name,
                    # As the file keeps it, so that reading gives the same digest.
                    struct.pack("<f", self.counts[name]).hex(),
                    hashlib.sha256(self.sums[name].astype("<f4").tobytes()).hexdigest(),
                )
                for name in sorted(self.sums)
            ]
        )

    def mean(self, name: str) -> npt.NDArray[np.float32]:
        """Return the mean squared input of a weight, [columns], which the quantizer weighs by."""
        import numpy as np

        return (self.sums[name] / self.counts[name]).astype(np.float32)


def collect(
    folder: Path,
    adapter: Path | None,
    prompts: Sequence[str],
    names: Mapping[str, str],
    dataset: str,
    step: Step,
) -> Importance:
    """Show `prompts` to the model in `folder`, with the PEFT adapter if given, in float32.

    `names` gives the GGUF name of each linear module, such as `model.layers.0.self_attn.q_proj`.
    A prompt longer than the model's context is left out, since the device never sees it. `step` is
    called with 1 for each prompt. Raises `InputError` if no prompt fits or a module is missing.
    """
    original.check()
    import torch

    tokenizer: Any = loading.tokenizer(folder)
    model = original.load(folder, adapter)
    device = next(model.parameters()).device
    longest = int(model.config.max_position_embeddings)
    totals: dict[str, Any] = {}
    counts: dict[str, float] = {}
    for module, linear in _linear(model, names, folder).items():
        name = names[module]
        totals[name] = torch.zeros(linear.in_features, dtype=torch.float64, device=device)
        counts[name] = 0.0
        linear.register_forward_pre_hook(_adding(totals, counts, name))
    chunks = tokens = 0
    for prompt in prompts:
        # What looks like a special token inside a question is text, on the device too.
        ids = tokenizer(prompt, split_special_tokens=True)["input_ids"]
        if 0 < len(ids) <= longest:
            # One at a time: there is no padding to be taken out of the sums.
            with torch.inference_mode():
                shown = torch.tensor([ids], device=device)
                model(input_ids=shown, use_cache=False, logits_to_keep=1)
            chunks, tokens = chunks + 1, tokens + len(ids)
        step(1)
    if not chunks:
        raise InputError(f"{dataset}: no prompt fits the backbone's {longest} tokens of context")
    sums = {name: total.float().cpu().numpy() for name, total in totals.items()}
    _check_finite(sums, folder)
    return Importance(sums, counts, (dataset,), chunks, -(-tokens // chunks))


def _linear(model: Any, names: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Return the frozen linear layer of each module; PEFT keeps it inside its own."""
    modules = {
        name.removeprefix("base_model.model."): found for name, found in model.named_modules()
    }
    made = {}
    for name in names:
        found = modules.get(f"{name}.base_layer", modules.get(name))
        if found is None:
            raise InputError(f"{folder}: the model has no module {name}; is it the right backbone?")
        made[name] = found
    return made


def _adding(
    totals: dict[str, Any], counts: dict[str, float], name: str
) -> Callable[[Any, tuple[Any, ...]], None]:
    def add(_: Any, inputs: tuple[Any, ...]) -> None:
        rows = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
        totals[name] += rows.square().sum(0)
        counts[name] += len(rows)

    return add


def _check_finite(sums: Mapping[str, npt.NDArray[np.float32]], folder: Path) -> None:
    import numpy as np

    for name, values in sums.items():
        if not np.isfinite(values).all():
            raise WorkError(
                f"{folder}: inputs of {name} are not finite; check the adapter, "
                "or export without --imatrix"
            )


def pooled(parts: Sequence[Importance]) -> Importance:
    """Return the sums and counts of all parts together, so each token has the same weight.

    Raises `InputError` for parts of different models.
    """
    import numpy as np

    sums: dict[str, npt.NDArray[np.float64]] = {}
    counts: dict[str, float] = {}
    for part in parts:
        for name, values in part.sums.items():
            added = sums.get(name, np.zeros(values.shape))
            if added.shape != values.shape:
                raise InputError(
                    f"importance matrices of {name} have {added.size} and {values.size} columns; "
                    "they are of different backbones"
                )
            sums[name] = added + values
            counts[name] = counts.get(name, 0.0) + part.counts[name]
    chunks = sum(part.chunks for part in parts)
    tokens = sum(part.chunks * part.chunk for part in parts)
    return Importance(
        {name: values.astype(np.float32) for name, values in sums.items()},
        counts,
        tuple(dict.fromkeys(name for part in parts for name in part.datasets)),
        chunks,
        -(-tokens // max(chunks, 1)),
    )


def write(made: Importance, out: Path) -> None:
    """Write llama.cpp's importance matrix file, in one step."""
    import numpy as np

    keys: dict[str, Any] = {
        "general.type": TYPE,
        DATASETS: made.datasets,
        CHUNKS: made.chunks,
        CHUNK: made.chunk,
    }
    planned = []
    for name in sorted(made.sums):
        planned.append(_planned(name + SUMS, made.sums[name]))
        planned.append(_planned(name + COUNTS, np.array([made.counts[name]])))
    with replacing(out) as partial:
        # Without an architecture, as llama.cpp's own.
        container.write(partial, "", keys, planned, lambda _: None)


def _planned(name: str, values: npt.NDArray[Any]) -> Planned:
    row = values.reshape(1, -1).astype("<f4")
    return Planned(name, row.shape, "F32", lambda: row)


def read(path: Path) -> Importance:
    """Read an importance matrix file, ours or llama.cpp's.

    Raises `InputError` for a file that is none, an unpaired tensor, and values that cannot be.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; an importance matrix is needed")
    header = gguf_header.check(path)
    kind = header.metadata.get("general.type")
    if kind != TYPE:
        raise InputError(f"{path}: general.type is {kind!r}; {TYPE!r} is an importance matrix")
    gguf = extras.need("gguf", "export")
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(f"{path}: damaged ({error}); make it again") from None
    sums: dict[str, npt.NDArray[np.float32]] = {}
    counts: dict[str, float] = {}
    for tensor in reader.tensors:
        # Newer files hold other statistics too, which the quantizer does not take.
        if tensor.name.endswith(SUMS):
            sums[tensor.name.removesuffix(SUMS)] = _row(path, tensor)
        elif tensor.name.endswith(COUNTS):
            counts[tensor.name.removesuffix(COUNTS)] = _count(path, tensor)
    unpaired = sums.keys() ^ counts.keys()
    if unpaired:
        raise InputError(f"{path}: {min(unpaired)} has only one of {SUMS} and {COUNTS}")
    if not sums:
        raise InputError(f"{path}: no {SUMS} tensor in it; make it again")
    field = reader.get_field(DATASETS)
    datasets = field.contents() if field else []
    return Importance(
        sums,
        counts,
        tuple(map(str, datasets)) if isinstance(datasets, list) else (),
        _whole(header.metadata.get(CHUNKS)),
        _whole(header.metadata.get(CHUNK)),
    )


def _row(path: Path, tensor: Any) -> npt.NDArray[np.float32]:
    import numpy as np

    if tensor.tensor_type.name != "F32" or tensor.data.shape[-1] != tensor.data.size:
        raise InputError(
            f"{path}: tensor {tensor.name} is {tensor.tensor_type.name} of "
            f"{list(tensor.data.shape)}, wanted one row of F32 (experts are not exported)"
        )
    values = np.array(tensor.data, np.float32).reshape(-1)
    if not np.isfinite(values).all() or values.min() < 0:
        raise InputError(
            f"{path}: tensor {tensor.name} has negative values or some not finite; make it again"
        )
    return values


def _count(path: Path, tensor: Any) -> float:
    values = _row(path, tensor)
    if values.size != 1 or values[0] == 0:
        raise InputError(
            f"{path}: tensor {tensor.name} is {values[:4].tolist()}, wanted one number above 0"
        )
    return float(values[0])


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def check_fit(made: Importance, widths: Mapping[str, int], path: Path) -> None:
    """Raise `InputError` if the matrix in `path` is not for tensors of these `widths`.

    `widths` are the columns of each weight by its GGUF name.
    """
    covered = made.sums.keys() & widths.keys()
    for name in sorted(covered):
        if made.sums[name].size != widths[name]:
            raise InputError(
                f"{path}: {name} has {made.sums[name].size} columns, the backbone's has "
                f"{widths[name]}; it was made for another backbone"
            )
    if not covered:
        raise InputError(
            f"{path}: none of the backbone's weights is in it, but {min(made.sums, default='none')}"
        )
