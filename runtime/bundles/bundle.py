"""Opening a bundle: every file checked, every digest compared, then the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from tel_edge.runtime.bundles import formats
from tel_edge.runtime.bundles import manifest as manifests
from tel_edge.runtime.bundles.formats import FORMATS
from tel_edge.runtime.bundles.manifest import NOT_MEASURED, BundleFile, Manifest
from tel_edge.runtime.engines.engine import Engine, EngineSettings, LoraFile
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import digest
from tel_edge.runtime.questions import prompt, router

# (backbone file, adapters by name, settings) to an engine.
Opener = Callable[[Path, Mapping[str, LoraFile], EngineSettings], Engine]


def native(path: Path, adapters: Mapping[str, LoraFile], settings: EngineSettings) -> Engine:
    """Open the engine of the file's format."""
    return formats.of_file(path).open(path, adapters, settings)


def read(bundle: Path) -> Manifest:
    """Read the manifest and check that this version renders the prompt the bundle was made for."""
    made = manifests.read(bundle)
    if made.backbone.prompt != prompt.digest():
        raise InputError(
            f"{bundle}: made for another prompt than this version's; "
            "train and export again, or use the version that made it"
        )
    for file in made.files:
        if file.kind in ("backbone", "adapter", "merged") and file.format not in FORMATS:
            raise InputError(
                f"{bundle}: {file.path} is of format {file.format!r}, this version reads "
                f"{' '.join(FORMATS)}; use the version that made it"
            )
    return made


def backbone_file(
    bundle: Path, made: Manifest, quant: str | None, format: str | None = None
) -> BundleFile:
    """Return the backbone of that type and format.

    Where `quant` is None it is the smallest, where `format` is None one whose engine is installed.
    """
    if format not in (None, *FORMATS):
        raise InputError(f"no format {format!r}; there are: {' '.join(FORMATS)}")
    there = made.formats()
    for name in [format] if format else sorted(there, key=lambda one: not FORMATS[one].installed()):
        quants = made.quants(format=name)
        if quants and (file := made.find("backbone", quant or quants[-1], format=name)):
            return file
    types = {name: " ".join(made.quants(format=name)) for name in there}
    if len(types) > 1:
        types = {name: f"{quants} as {name}" for name, quants in types.items()}
    listed = ", ".join(types.values()) or "none"
    row = FORMATS[format or formats.FIRST]
    options = f"{formats.option(row.name)} --quant {quant or row.quant}"
    raise InputError(
        f"{bundle}: no {quant or row.name.upper()} backbone (there: {listed}); "
        f"run: tel-export{options}"
    )


def deployed_file(
    made: Manifest, format: str | None = None
) -> tuple[BundleFile | None, str | None]:
    """Return the backbone that a report decided for, and what there is to say of it.

    The file is None where none was decided for, or the one that was is not to be had here, or of
    another `format`.
    """
    if made.deploy is None:
        return None, None
    file = next((f for f in made.files if f.sha256 == made.deploy.sha256), None)
    gone = f"warning: the report decided for {made.deploy.variant}"
    again = "evaluate again, then tel-report --write"
    if file is None or file.kind != "backbone" or file.quant not in made.deploy.variant:
        return None, f"{gone}, whose file is not in this bundle any more; {again}"
    if format not in (None, file.format):
        return None, f"{gone}, which is {file.format.upper()}: --format {format} takes another file"
    there = {one.sha256 for one in made.files}
    if other := [name for name, digest in made.deploy.adapters.items() if digest not in there]:
        return None, (
            f"{gone} with another {', '.join(other)} adapter than this bundle has now; {again}"
        )
    if not FORMATS[file.format].installed():
        return None, (
            f"warning: the report decided for {made.deploy.variant}, but "
            f"{FORMATS[file.format].package[1]} is not installed here; run: "
            f"pip install 'tel-edge[{FORMATS[file.format].extra}]'"
        )
    return file, None


def adapter_files(
    bundle: Path, made: Manifest, category: str, format: str = "gguf"
) -> tuple[BundleFile, ...]:
    """Return the category's adapters, the one that every command uses first.

    It is one that was measured against PEFT, if there is one, of the format's usual type, or else
    the largest.
    """
    key = ("adapter", category, format)
    files = [file for file in made.files if (file.kind, file.category, file.format) == key]
    if not files:
        there = " ".join(made.adapters(format)) or "none"
        raise InputError(
            f"{bundle}: no adapter for {category} (there: {there}); {_remedy(category, format)}"
        )
    usual = FORMATS[format].usual
    order = sorted(files, key=lambda f: (f.parity is None, f.quant != usual, -f.bytes))
    return tuple(order)


def adapter_file(bundle: Path, made: Manifest, category: str, format: str = "gguf") -> BundleFile:
    """Return the first of `adapter_files`, checked to belong to the bundle's backbone."""
    return fitting(bundle, made, adapter_files(bundle, made, category, format)[0])


def fitting(bundle: Path, made: Manifest, file: BundleFile) -> BundleFile:
    """Return an adapter after checking that it belongs to the bundle's backbone."""
    if file.backbone != made.backbone.weights:
        raise InputError(
            f"{bundle / file.path}: made for another backbone than {made.backbone.name}; "
            f"{_remedy(file.category or '', file.format)}"
        )
    if file.template not in (None, made.backbone.template):
        raise InputError(
            f"{bundle / file.path}: trained by another chat template than {made.backbone.name} has "
            f"now; {_remedy(file.category or '', file.format)}"
        )
    return file


def _remedy(category: str, format: str) -> str:
    option = formats.option(format)
    return f"run: tel-train --category {category}; tel-export{option} --adapter {category}"


def unmeasured(files: Iterable[BundleFile]) -> str | None:
    """Return a warning that names those of `files` that nobody measured, None if all were."""
    left = (f for f in dict.fromkeys(files) if f.parity is None and f.kind not in NOT_MEASURED)
    names = [file.path for file in left]
    if not names:
        return None
    return (
        f"warning: never compared with PEFT, so its answers may be others: {', '.join(names)}; "
        "tel-export without --no-verify compares"
    )


def open_engine(
    bundle: Path,
    made: Manifest,
    backbone: BundleFile,
    adapters: Sequence[BundleFile],
    *,
    settings: EngineSettings | None = None,
    opener: Opener = native,
    lazily: bool = False,
) -> Engine:
    """Verify the files against the manifest and their own headers, then open the engine.

    Adapters are named by category; `lazily` checks each when it is first asked for. Raises
    `InputError` for any file that is not what it should be.
    """
    found = {file.category or "": _adapter(bundle, made, file) for file in adapters}
    path = verified(bundle, made, backbone)
    for adapter in found.values() if not lazily else ():
        adapter.check()
    return opener(path, found, settings or EngineSettings())


def _adapter(bundle: Path, made: Manifest, file: BundleFile) -> LoraFile:
    # Each time it is loaded, which may be long after it was checked first.
    return LoraFile(lambda: verified(bundle, made, file), file.sha256)


def verify(bundle: Path, made: Manifest, files: Iterable[BundleFile], again: bool = False) -> None:
    """Check all of `files`; `again` reads even those that were read before and have not changed."""
    for file in files:
        verified(bundle, made, file, again)


def verified(bundle: Path, made: Manifest, file: BundleFile, again: bool = False) -> Path:
    """Check a file, and what it needs, against the manifest and its own header; return its path.

    Raises `InputError` where one of them is missing, damaged or of another backbone.
    """
    for part in made.parts(file):
        manifests.verified(bundle, part, again)
    return fitted(bundle, made, file)


def fitted(bundle: Path, made: Manifest, file: BundleFile) -> Path:
    """Check a file that is whole against what its own header says; return its path."""
    path = bundle / file.path
    if file.kind == "router":
        router.load(path)
    elif file.kind in ("backbone", "merged"):
        _check_backbone(bundle, made, file)
    elif file.kind == "adapter":
        row = FORMATS[file.format]
        row.adapter(path, made.backbone.stated, made.backbone.name, file.category)
    return path


def _check_backbone(bundle: Path, made: Manifest, file: BundleFile) -> None:
    path, row = bundle / file.path, FORMATS[file.format]
    weights = row.weights(path)
    if weights not in (None, made.backbone.stated):
        raise InputError(f"{path}: not {made.backbone.name}, as the manifest says; export it again")
    if len(made.parts(file)) <= len(row.parts):
        raise InputError(
            f"{path}: the manifest lists no {' file or no '.join(row.parts)} for it; "
            f"export it again: tel-export{formats.option(row.name)} --quant {file.quant}"
        )
    # What was verified has to be what the engine opens: it takes the names from the file itself.
    listed = {part.path for part in made.parts(file)}
    for name in row.beside(path):
        opened = PurePosixPath(file.path).with_name(name).as_posix()
        if opened not in listed:
            raise InputError(
                f"{path}: opens {opened}, which the manifest does not list for it; "
                f"export it again: tel-export{formats.option(row.name)} --quant {file.quant}"
            )


def companions(
    bundle: Path, made: Manifest, backbone: BundleFile, categories: Iterable[str]
) -> tuple[BundleFile, ...]:
    """Return what questions need beside a backbone's file: these categories' adapters, the router.

    Raises `InputError` for an adapter that is not there or of another backbone.
    """
    adapters = (adapter_file(bundle, made, name, backbone.format) for name in categories)
    return (*adapters, *(file for file in made.files if file.kind == "router"))


def loose_adapters(backbone: Path, files: Mapping[str, Path]) -> dict[str, LoraFile]:
    """Return adapters that no manifest binds to `backbone`, by the category that they answer.

    All are checked as far as they can be: files that `tel-export` made still say which backbone,
    prompt and category they belong to, and are refused for another one.
    """
    row = formats.of_file(backbone)
    weights = row.weights(backbone)
    found = {}
    for name, path in files.items():
        row.adapter(path, weights, backbone.name, name)
        found[name] = LoraFile(lambda path=path: path, digest.of_file(path))  # type: ignore[misc]
    return found
