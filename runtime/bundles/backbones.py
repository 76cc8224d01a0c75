"""The backbones by name, one row each, and where their files are."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.extras import need

# The hub's cache calls a model's folder by its commit.
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Backbone:
    """A frozen base model. `hub` is its repository on the Hugging Face hub, or empty.

    `reference` is the large model of its family that the reference paper compares it with. All are
    asked with the plain prompt of `questions.prompt` and no chat template: the label is the next
    token, and the text is the same for every tokenizer. `folder` is where its files are when they
    are on this machine already.
    """

    name: str
    hub: str
    licence: str
    reference: str = ""
    folder: Path | None = None


# Licences as the hub's model cards name them.
BACKBONES: dict[str, Backbone] = {
    row.name: row
    for row in (
        Backbone("tel-nano", "", "apache-2.0"),
        Backbone(
            "llama-3.2-1b", "meta-llama/Llama-3.2-1B-Instruct", "llama3.2",
            "meta-llama/Llama-3.1-8B-Instruct",
        ),
        Backbone("qwen3-0.6b", "Qwen/Qwen3-0.6B", "apache-2.0", "Qwen/Qwen3-8B"),
        Backbone(
            "exaone-4.0-1.2b", "LGAI-EXAONE/EXAONE-4.0-1.2B", "exaone",
            "LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct",
        ),
    )
}  # fmt: skip


def plain(name: str, otherwise: str) -> str:
    """Return `name` fit for a path: letters, digits, dots, dashes and underscores.

    Other characters become a dash. Where letters of other scripts are lost that way, a digest of
    the name is put behind, so that two of them stay two. `otherwise` stands for a name of which
    nothing is left.
    """
    # Depending on the file system an accent is part of its letter, or a character of its own.
    name = unicodedata.normalize("NFC", name)
    made = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    if name.isascii():
        return made if made.strip(".") else otherwise
    own = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{made.strip('-.') or otherwise}-{own}"


def find(name: str) -> Backbone:
    """Return the backbone that `--backbone NAME|DIR` means, without touching the network.

    A folder is called by its own name (`plain`). Raises `InputError` for a name that is neither.
    """
    if name in BACKBONES:
        row = BACKBONES[name]
        return row if row.hub else replace(row, folder=embedded())
    folder = Path(name)
    if folder.is_dir():
        return Backbone(plain(folder.resolve().name, "backbone"), "", "unknown", folder=folder)
    raise InputError(
        f"no backbone {name!r}: it is neither a folder nor one of {' '.join(BACKBONES)}"
    )


def embedded() -> Path:
    """Return the folder of tel-nano inside the installed package."""
    import tel_edge

    return Path(tel_edge.__file__).parent / "tel_nano"


def fetch(backbone: Backbone, revision: str | None = None) -> Path:
    """Return a local folder with the backbone's files, downloading from the hub if need be.

    `revision` is a branch, tag or commit of the hub's repository. Only safetensors, configuration
    and tokenizer files are taken; what is in them is not looked at. Raises `InputError` where the
    hub does not give them.
    """
    folder = backbone.folder
    if folder is not None and revision:
        raise InputError(f"--revision is for backbones of the hub; {folder} is here already")
    if folder is None:
        hub = need("huggingface_hub", "train")
        try:
            folder = Path(
                hub.snapshot_download(
                    backbone.hub,
                    revision=revision,
                    allow_patterns=["*.safetensors", "*.json", "*.jinja", "LICENSE*", "README.md"],
                    ignore_patterns=["original/*"],
                )
            )
        except Exception as error:
            # The hub's client raises a dozen kinds; its first line says what happened.
            reason = str(error).strip().split("\n")[0][:200]
            raise InputError(
                f"{backbone.hub} cannot be had from the hub: {reason}\n"
                "download it elsewhere and pass the folder: --backbone DIR"
            ) from error
    return folder


def commit(folder: Path) -> str | None:
    """Return the commit that a folder of the hub's cache holds, None for any other folder."""
    return folder.name if COMMIT.fullmatch(folder.name) else None
