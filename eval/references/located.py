"""What `--reference` means: a model behind an endpoint, in a GGUF file or in a folder, checked."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tel_edge.eval.references import with_transformers
from tel_edge.eval.scoring.records import REFERENCE_PREFIX, Variant
from tel_edge.runtime.bundles import backbones
from tel_edge.runtime.bundles.manifest import PLAIN, BackboneInfo, BundleFile, Manifest
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import checked, digest, gguf_header
from tel_edge.runtime.files.onnx_adapter import WEIGHTS
from tel_edge.runtime.questions import prompt

if TYPE_CHECKING:
    from tel_edge.eval.references.client import Client

# Source: llama.cpp's `llama_split_path`.
SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")
HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Reference:
    """A model to score. `title` is what `reference-` is followed by in the variant's name.

    `bytes` are those of its files, 0 where nobody knows. `digests` say what it is made of: what
    its answers depend on beside prompt, questions and settings. `path` is its file or folder,
    `model` its name at an endpoint.
    """

    name: str
    title: str
    quant: str
    format: str
    bytes: int
    digests: Mapping[str, Any]
    path: Path = Path()
    model: str = ""

    def variant(self, protocol: str) -> Variant:
        """Return what the results are called and how large the model is."""
        name = f"{REFERENCE_PREFIX}{self.title}" + ("" if protocol == "letters" else f"-{protocol}")
        return Variant(name, self.quant, self.format, False, self.bytes, 0)

    def manifest(self) -> Manifest:
        """Return the manifest that a bundle of this model alone would have.

        The one file of a folder is its configuration, which is no backbone for an engine of
        bundles; that of an endpoint is none at all.
        """
        weights = str(self.digests.get("weights", ""))
        info = BackboneInfo(self.name, "unknown", weights, "", prompt.digest())
        path = self.path / "config.json" if self.format == "hf" else self.path
        file = BundleFile(
            path=path.name or self.name,
            kind="backbone" if self.format == "gguf" else "reference",
            format=self.format,
            quant=self.quant,
            bytes=path.stat().st_size if path.is_file() else 0,
            sha256=str(self.digests.get("file", "")),
        )
        return Manifest(info, (file,))


def find(args: argparse.Namespace, server: Client | None) -> Reference:
    """Return what `--reference` means, every file of it checked. Raises `InputError`.

    `server` is the client of an endpoint, None for a file or folder.
    """
    where, name = args.reference, args.reference_name
    if name and not PLAIN.fullmatch(name):
        raise InputError(f"--reference-name {name}: letters, digits and . _ - only")
    if server is not None:
        return _served(args, server)
    if args.reference_model:
        raise InputError(f"--reference-model is for endpoints; {where} is a file or folder")
    path = Path(where)
    if path.suffix == ".gguf":
        return _gguf(path, name)
    called = path.resolve().name
    if not path.is_dir():
        if not HUB.fullmatch(where):
            raise InputError(
                f"--reference {where}: neither a URL, a .gguf file, a folder nor a hub id"
            )
        called = where.partition("/")[2]
        try:
            path = backbones.fetch(backbones.Backbone(called, where, "unknown"))
        except InputError as error:
            raise InputError(str(error).replace("--backbone DIR", "--reference DIR")) from None
    return _folder(path, name or plain(called), args.reference_dtype)


def _served(args: argparse.Namespace, server: Client) -> Reference:
    model = args.reference_model
    if not model:
        there = server.models()
        if len(there) != 1:
            listed = " ".join(there[:20]) or "none"
            raise InputError(
                f"{server.base}: {len(there)} models; pass --reference-model NAME (there: {listed})"
            )
        [model] = there
    name = args.reference_name or plain(model.rstrip("/").rpartition("/")[2])
    return Reference(name, "endpoint", "unknown", "endpoint", 0, {"model": model}, model=model)


def _gguf(path: Path, name: str | None) -> Reference:
    if not path.is_file():
        raise InputError(f"--reference {path}: no such file")
    parts = shards(path)
    metadata, *_ = [gguf_header.check(part).metadata for part in parts]
    if metadata.get("general.type") == "adapter":
        raise InputError(f"{path}: an adapter; a whole model is needed")
    quant = gguf_header.file_type(metadata)
    digests = [checked.sha256(part) for part in parts]
    # Files that tel-export made say what they are; of any other it is the digests of its parts.
    weights = metadata.get(WEIGHTS) or digest.of_value(digests)
    if name is None:
        stem = SHARD.sub("", path.stem)
        name = plain(re.sub(rf"[-._]{re.escape(quant)}$", "", stem, flags=re.IGNORECASE))
    size = sum(part.stat().st_size for part in parts)
    made_of = {"file": digests[0], "weights": weights}
    return Reference(name, quant, quant, "gguf", size, made_of, path)


def shards(path: Path) -> list[Path]:
    """Return the files of a model of which `path` is the first. Raises `InputError` for a gap."""
    if not (found := SHARD.search(path.stem)):
        return [path]
    number, count = map(int, found.groups())
    if number != 1:
        raise InputError(f"{path}: part {number} of {count}; pass the first one")
    stem = path.stem[: found.start()]
    parts = [path.with_name(f"{stem}-{at:05}-of-{count:05}.gguf") for at in range(1, count + 1)]
    for part in parts:
        if not part.is_file():
            raise InputError(f"{part}: missing; all {count} parts of the model are needed")
    return parts


def _folder(folder: Path, name: str, dtype: str) -> Reference:
    with_transformers.checked(folder)
    with_transformers.installed()
    weights = sorted(folder.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in weights)
    digests = {
        "file": checked.sha256(folder / "config.json"),
        # Those of `digest.of_weights` and `of_tokenizer`, from memory where the files are known.
        "weights": _digest([*weights, folder / "config.json"]),
        "tokenizer": _digest(
            sorted(path for path in folder.glob("tokenizer*.*") if path.is_file())
        ),
        "dtype": dtype,
        "engine": with_transformers.installed(),
    }
    return Reference(name, "hf", dtype, "hf", size, digests, folder)


def _digest(files: Sequence[Path]) -> str:
    return digest.of_value(sorted((file.name, checked.sha256(file)) for file in files))


def plain(name: str) -> str:
    """Return `name` with what no path should hold replaced; see `backbones.plain`."""
    return backbones.plain(name, "reference").strip("-.") or "reference"
