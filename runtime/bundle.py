"""Opening a bundle: every file checked, every digest compared, then the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tel_edge.runtime import manifest as manifests
from tel_edge.runtime import prompt
from tel_edge.runtime.engine import Engine
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.gguf_header import check
from tel_edge.runtime.manifest import BundleFile, Manifest

# (backbone file, adapter files by category, threads, context) to an engine.
Opener = Callable[[Path, Mapping[str, Path], int | None, int], Engine]


def llama(path: Path, adapters: Mapping[str, Path], threads: int | None, context: int) -> Engine:
    """Open the llama.cpp engine."""
    from tel_edge.runtime.with_llama import LlamaEngine

    return LlamaEngine(path, adapters, threads, context)


def read(bundle: Path) -> Manifest:
    """Read the manifest and check that this version renders the prompt the bundle was made for."""
    made = manifests.read(bundle)
    if made.backbone.prompt != prompt.digest():
        raise InputError(
            f"{bundle}: made for another prompt than this version's; "
            "train and export again, or use the version that made it"
        )
    return made


def backbone_file(bundle: Path, made: Manifest, quant: str | None) -> BundleFile:
    """Return the backbone of that type, or the smallest if `quant` is None."""
    there = made.quants()
    wanted = quant or (there[-1] if there else "")
    file = made.find("backbone", wanted)
    if file is None:
        raise InputError(
            f"{bundle}: no {wanted or 'GGUF'} backbone (there: {' '.join(there) or 'none'}); "
            f"run: tel-export --quant {wanted or 'Q4_K_M'}"
        )
    return file


def adapter_file(bundle: Path, made: Manifest, category: str) -> BundleFile:
    """Return the category's adapter, checked to belong to the bundle's backbone."""
    file = made.find("adapter", None, category)
    if file is None:
        there = " ".join(made.adapters()) or "none"
        raise InputError(
            f"{bundle}: no adapter for {category} (there: {there}); "
            f"run: tel-train --category {category}; tel-export --adapter {category}"
        )
    if file.backbone != made.backbone.weights:
        raise InputError(
            f"{bundle / file.path}: made for another backbone than {made.backbone.name}; "
            f"run: tel-train --category {category}; tel-export --adapter {category}"
        )
    return file


def open_engine(
    bundle: Path,
    made: Manifest,
    backbone: BundleFile,
    adapters: Sequence[BundleFile],
    *,
    threads: int | None = None,
    context: int = 4096,
    opener: Opener = llama,
) -> Engine:
    """Verify the files against the manifest and their own headers, then open the engine.

    Adapters are named by category. Raises `InputError` for any file that is not what it should be.
    """
    paths = verify(bundle, made, (backbone, *adapters))
    return opener(paths.pop(""), paths, threads, context)


def verify(bundle: Path, made: Manifest, files: Iterable[BundleFile]) -> dict[str, Path]:
    """Check the files and return their paths, adapters by category and the backbone as ""."""
    paths = {}
    for file in files:
        path = manifests.verified(bundle, file)
        header = check(path)
        paths[file.category or ""] = path
        if file.kind == "adapter":
            _check_adapter(path, header.metadata, made)
    return paths


def _check_adapter(path: Path, metadata: Mapping[str, object], made: Manifest) -> None:
    if metadata.get("general.type") != "adapter":
        raise InputError(f"{path}: no LoRA adapter (general.type); export it again")
    bound = metadata.get("tel_edge.backbone.weights")
    if bound is not None and bound != made.backbone.weights:
        raise InputError(
            f"{path}: made for another backbone than {made.backbone.name}; export it again"
        )
