"""A GGUF backbone's weights, as the engine computes with them, back in Hugging Face form.

`python -m tel_edge.export.gguf.dequantize FILE.gguf MODEL OUT` writes the folder OUT: MODEL's own
configuration, and in float32 what FILE's blocks stand for. An adapter trained on it absorbs the
error of the very file that ships.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tel_edge.eval.folders import checkpoint as checkpoints
from tel_edge.eval.folders import contents
from tel_edge.runtime import cli
from tel_edge.runtime.bundles.formats import FORMATS
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.extras import need
from tel_edge.runtime.files import digest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from tel_edge.eval.folders.architectures import Tensor


def dequantize(file: Path, folder: Path, out: Path) -> int:
    """Write `out` from the GGUF `file` and the model in `folder`; return how many tensors it has.

    Raises `InputError` where the file was not exported from that folder.
    """
    gguf, save = need("gguf", "export"), need("safetensors.numpy", "train").save_file
    if FORMATS["gguf"].weights(file) != digest.of_weights(folder):
        raise InputError(f"{file}: not exported from {folder}; export it again")
    opened = checkpoints.load(folder)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    made = {tensor.source: _values(gguf, tensor, stored, file) for tensor, _ in opened.tensors}
    out.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.json"):
        # The index would name shards that are not here.
        if path.name != contents.INDEX and path.is_file():
            shutil.copyfile(path, out / path.name)
    save(made, out / contents.SINGLE, metadata={"format": "pt"})
    return len(made)


def _values(
    gguf: Any, tensor: Tensor, stored: Mapping[str, Any], file: Path
) -> npt.NDArray[np.float32]:
    import numpy as np

    if tensor.name not in stored:
        raise InputError(f"{file}: tensor {tensor.name} is missing; export it again")
    found = stored[tensor.name]
    values = gguf.quants.dequantize(found.data, found.tensor_type).astype(np.float32)
    return np.ascontiguousarray(unpermuted(values.reshape(tensor.shape), tensor.heads))


def unpermuted(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Return `rows` [heads * head_dim, columns] in transformers' order again.

    The inverse of `gguf_layout.permuted`.
    """
    if not heads:
        return rows
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def work(args: argparse.Namespace) -> dict[str, Any]:
    """Write the folder."""
    count = dequantize(args.file, args.model, args.out)
    print(f"{args.out}: {count} tensors")
    return {"out": str(args.out), "tensors": count}


def parser() -> cli.Parser:
    """Return the command's options."""
    made = cli.parser("dequantize", "Write what a GGUF backbone computes with as safetensors.")
    made.add_argument("file", type=Path, help="the GGUF backbone")
    made.add_argument("model", type=Path, help="the Hugging Face folder it was exported from")
    made.add_argument("out", type=Path, help="the folder to write")
    return made


def main() -> None:
    """Run the command."""
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
