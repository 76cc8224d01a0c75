"""The folder that a GGUF file is trained and exported from: made once, kept in the user's cache."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tel_edge.eval.folders import checkpoint
from tel_edge.eval.folders.architectures import shape_of
from tel_edge.eval.folders.contents import CONFIG, GENERATION, SINGLE
from tel_edge.eval.from_gguf import config, source, tokenizer, weights
from tel_edge.runtime import progress
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.files import checked, lock
from tel_edge.runtime.files.atomic import replace_folder, temporary, write_text

# A change of what is written for the same file; adapters are bound to what was written.
LAYOUT = 1
# What was written, by name: the cache is the user's, and disks are not all sound.
DIGESTS = ".digests"


def kept(file: Path, say: Callable[[str], None], quiet: bool = False) -> Path:
    """Return the Hugging Face folder of a GGUF file, made now if it is not in the cache yet.

    It stands under the file's SHA-256, so it is another one for another file, wherever that lies.
    Raises `InputError` for a file that cannot be read as a backbone.
    """
    home = checked.location().parent / "backbones"
    place = home / f"{checked.sha256(file)[:32]}-{LAYOUT}"
    if whole(place):
        return place
    with lock.held(place, math.inf, say):
        if not whole(place):
            # Found wrong before there is a folder.
            opened = source.opened(file)
            say(f"{file}: read back as safetensors, once, into {place}")
            partial = temporary(place)
            try:
                convert(opened, partial, quiet)
                checkpoint.load(partial)
                made = {path.name: checked.sha256(path) for path in sorted(partial.iterdir())}
                write_text(partial / DIGESTS, json.dumps(made, indent=1) + "\n")
                replace_folder(partial, place)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return place


def whole(folder: Path) -> bool:
    """Return whether a folder holds what was written into it."""
    try:
        known: dict[str, str] = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        return CONFIG in known and all(
            checked.sha256(folder / name) == digest for name, digest in known.items()
        )
    except (OSError, ValueError, AttributeError, InputError):
        return False


def convert(opened: source.GgufSource, out: Path, quiet: bool = False) -> None:
    """Write `out`: configuration, tokenizer, and the weights one tensor after the other.

    Raises `InputError` for what `config`, `tokenizer` and `weights` refuse.
    """
    made: dict[str, Any] = {
        CONFIG: config.of(opened),
        GENERATION: config.generation(opened),
        **tokenizer.files(opened),
    }
    shape = shape_of(made[CONFIG], str(opened.path))
    values = sum(int(tensor.n_elements) for tensor in opened.tensors.values())
    out.mkdir(parents=True)
    if 4 * values > shutil.disk_usage(out).free:
        raise WorkError(f"{out}: up to {4 * values / 1e6:,.0f} MB are needed; make room there")
    for name, document in made.items():
        text = document
        if not isinstance(document, str):
            text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        write_text(out / name, text)
    with progress.bar(opened.path.name, "weight", values, quiet, unit_scale=True) as bar:
        weights.write(opened, shape, out / SINGLE, bar.update)
