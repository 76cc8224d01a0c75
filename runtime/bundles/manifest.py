"""`manifest.json`: what is in a bundle, and the digests that bind it together."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from tel_edge.runtime.bundles.formats import FORMATS
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import checked, digest
from tel_edge.runtime.files.atomic import write_text

SCHEMA_VERSION = 1
NAME = "manifest.json"
# Bytes of a manifest, and how far versions are counted.
MOST, MOST_SERIAL = 4_000_000, 2**53
# Names that become parts of paths: of results and reports.
PLAIN = re.compile(r"(?!\.\.?$)[A-Za-z0-9._-]+")
DIGEST = re.compile("[0-9a-f]{64}")
# Bytes of a path's part, which file systems take, and of a whole path in a bundle.
LONGEST_PART, LONGEST = 255, 1024
# Finite, and not beyond what a figure can be printed as.
MOST_FIGURE = 1e300
KINDS = ("backbone", "adapter", "merged", "data", "tokenizer", "router")
# Kinds that hold no model by themselves: their parity is that of another file, or means nothing.
NOT_MEASURED = ("data", "tokenizer", "router")


@dataclass(frozen=True)
class BackboneInfo:
    """The backbone that every file of a bundle belongs to; the digests are SHA-256.

    `weights` covers safetensors and config, `tokenizer` the tokenizer files, `tokenization` what
    they make of a prompt (`tel_edge.runtime.files.digest.of_tokenization`; None in older bundles),
    `prompt` the way questions are rendered (`tel_edge.runtime.questions.prompt.digest`). `origin`
    is the weights digest that a GGUF file taken as the backbone states, None where it has none.
    `template` is the digest of its chat template (`tel_edge.runtime.engines.engine.Template`), None
    without one and in older bundles.
    """

    name: str
    architecture: str
    weights: str
    tokenizer: str
    prompt: str
    licence: str = "unknown"
    tokenization: str | None = None
    origin: str | None = None
    template: str | None = None

    @property
    def stated(self) -> str:
        """Return the weights digest that the files of models and adapters state."""
        return self.origin or self.weights


@dataclass(frozen=True)
class BundleFile:
    """One file. `path` is relative to the bundle, with forward slashes.

    For an adapter `category` is set, `backbone` is the weights digest of the backbone it was
    trained on, `split` the digest of the split it was trained with, `rank` its rank, and `source`
    the digest of the PEFT folder; for a backbone `source` is the weights digest. A file of kind
    "data" holds the weights of the ONNX backbone of the same type. `options` says what else the
    values depend on. `parity` holds what the gate found (`export.gate`) by name, None where it was
    turned off. `inputs` is the digest of what went into a model's file
    beside its weights, and `made_by` has the versions of what made and measured it, by package, and
    of the file's layout; older bundles have neither. `dataset` names what an adapter was trained
    on, None where nobody noted it. `template` is the digest of the chat template by which an
    adapter for dialogues was trained, None for all others.
    """

    path: str
    kind: str
    format: str
    quant: str
    bytes: int
    sha256: str
    category: str | None = None
    source: str | None = None
    backbone: str | None = None
    split: str | None = None
    rank: int | None = None
    options: str | None = None
    parity: Mapping[str, float] | None = field(default=None, hash=False)
    inputs: str | None = None
    made_by: Mapping[str, str] | None = field(default=None, hash=False)
    dataset: str | None = None
    template: str | None = None


# Fields that are left out where they are None: bundles are older than these.
YOUNGER = ("tokenization", "origin", "inputs", "made_by", "dataset", "template")


@dataclass(frozen=True)
class Deployed:
    """What was decided: a variant's name, and the SHA-256 of its backbone's file.

    `categories` are those that it is worth deploying for, and `adapters` has the SHA-256 of the
    file that was evaluated in each, by category (none in older bundles).
    """

    variant: str
    sha256: str
    categories: tuple[str, ...]
    adapters: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Manifest:
    """The bundle's contents; at most one file for each (kind, format, quant, category).

    `deploy` is what a report decided for this bundle, None where none did. `serial` counts what is
    made for devices (`shipping.store`), None in a bundle that was not.
    """

    backbone: BackboneInfo
    files: tuple[BundleFile, ...] = ()
    schema_version: int = SCHEMA_VERSION
    deploy: Deployed | None = None
    serial: int | None = None

    def with_file(self, file: BundleFile) -> Manifest:
        """Return the manifest with `file` added, or put in the place of the one of its key."""
        kept = [other for other in self.files if _key(other) != _key(file)]
        return replace(self, files=tuple(sorted([*kept, file], key=_order)))

    def find(
        self, kind: str, quant: str | None = None, category: str | None = None, format: str = "gguf"
    ) -> BundleFile | None:
        """Return the file of that kind, type (any if None), category and format, if there is."""
        for file in self.files:
            same = (file.kind, file.category, file.format) == (kind, category, format)
            if same and quant in (None, file.quant):
                return file
        return None

    def parts(self, file: BundleFile) -> tuple[BundleFile, ...]:
        """Return the files that an engine needs for this one: itself, its data, the tokenizer."""
        row = FORMATS.get(file.format)
        if row is None or file.kind != "backbone":
            return (file,)
        found = (
            self.find(kind, file.quant if kind == "data" else None, format=file.format)
            for kind in row.parts
        )
        return (file, *(part for part in found if part))

    def disk(self, file: BundleFile) -> int:
        """Return the bytes of a file and of what it needs."""
        return total_bytes(self.parts(file))

    def formats(self) -> tuple[str, ...]:
        """Return the formats that a backbone is there in."""
        return tuple(dict.fromkeys(f.format for f in self.files if f.kind == "backbone"))

    def quants(self, kind: str = "backbone", format: str = "gguf") -> tuple[str, ...]:
        """Return the types in which that kind of file is there, the largest first."""
        there = [f for f in self.files if f.kind == kind and f.format == format]
        return tuple(f.quant for f in sorted(there, key=lambda f: -self.disk(f)))

    def adapters(self, format: str = "gguf") -> tuple[str, ...]:
        """Return the categories that have an adapter."""
        made = [f.category for f in self.files if f.kind == "adapter" and f.format == format]
        return tuple(dict.fromkeys(name for name in made if name))


def _key(file: BundleFile) -> tuple[str, str, str, str]:
    return file.kind, file.format, file.quant, file.category or ""


def _order(file: BundleFile) -> tuple[int, str, int, str]:
    # Backbones first, and the largest of each first.
    return KINDS.index(file.kind), file.category or "", -file.bytes, file.path


def dumps(manifest: Manifest) -> str:
    """Return the manifest as JSON text, the same bytes for the same contents."""
    document = asdict(manifest)
    for name in ("deploy", "serial"):
        if document[name] is None:
            del document[name]
    for part in (document["backbone"], *document["files"]):
        for name in YOUNGER:
            if part.get(name, "") is None:
                del part[name]
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def write(manifest: Manifest, bundle: Path) -> None:
    """Write `manifest.json` into the bundle in one step."""
    write_text(bundle / NAME, dumps(manifest))


def read(bundle: Path) -> Manifest:
    """Read and check a bundle's manifest. Raises `InputError` naming the field that is wrong."""
    path = bundle / NAME
    if not bundle.is_dir():
        raise InputError(f"{bundle}: no such folder; make a bundle with tel-export")
    if not path.is_file():
        raise InputError(f"{bundle}: no {NAME}, so this is no bundle; make one with tel-export")
    if path.stat().st_size > MOST:
        raise InputError(f"{path}: larger than any manifest; export the bundle again")
    return loads(path.read_bytes(), path)


def of_folder(bundle: Path) -> str:
    """Return the digest by which a bundle is known: the SHA-256 of its manifest's bytes."""
    return digest.of_file(bundle / NAME)


def loads(text: bytes, path: Path | str) -> Manifest:
    """Read and check a manifest's bytes; `path` is where they are from, for messages."""
    try:
        document = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); export the bundle again") from None
    try:
        return _parse(document)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _parse(document: Any) -> Manifest:
    version = _field(document, "schema_version", int)
    if version != SCHEMA_VERSION:
        raise InputError(
            f"schema_version {version}, this version reads {SCHEMA_VERSION}; export again"
        )
    head = _field(document, "backbone", dict)
    known = [f.name for f in fields(BackboneInfo) if f.name not in YOUNGER or f.name in head]
    backbone = BackboneInfo(**{name: _field(head, name, str) for name in known})
    for name in ("name", "architecture"):
        if not PLAIN.fullmatch(value := getattr(backbone, name)):
            raise InputError(f"backbone {name} {value[:80]!r} is no plain name; export again")
    for name in ("weights", "tokenizer", "prompt"):
        if not DIGEST.fullmatch(value := getattr(backbone, name)):
            raise InputError(f"backbone {name} {value[:80]!r} is no SHA-256; export again")
    files = tuple(_file(entry, at) for at, entry in enumerate(_field(document, "files", list)))
    keys = [_key(file) for file in files]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise InputError(f"files: {' '.join(twice)} is there twice; export the bundle again")
    places = [_place(file.path) for file in files]
    if path := next((f.path for f in files if places.count(_place(f.path)) > 1), None):
        raise InputError(f"files: path {path!r} is there twice; export the bundle again")
    folders = {part.as_posix() for place in places for part in PurePosixPath(place).parents}
    if path := next((f.path for f in files if _place(f.path) in folders), None):
        raise InputError(f"files: path {path!r} is a file and a folder; export the bundle again")
    serial = None if document.get("serial") is None else _field(document, "serial", int)
    if serial is not None and not 0 < serial <= MOST_SERIAL:
        raise InputError(f"serial {str(serial)[:40]} is no possible value; export again")
    return Manifest(backbone, files, version, _deployed(document), serial)


def _deployed(document: Any) -> Deployed | None:
    if document.get("deploy") is None:
        return None
    entry = _field(document, "deploy", dict)
    try:
        made = Deployed(
            _field(entry, "variant", str),
            _field(entry, "sha256", str),
            tuple(_field(entry, "categories", list)),
            _field(entry, "adapters", dict) if "adapters" in entry else {},
        )
        if not PLAIN.fullmatch(made.variant.replace("+", "-")) or not DIGEST.fullmatch(made.sha256):
            raise InputError("variant or sha256 is no possible value")
        if not all(isinstance(name, str) and PLAIN.fullmatch(name) for name in made.categories):
            raise InputError("categories are no plain names")
        if not all(DIGEST.fullmatch(str(value)) for value in made.adapters.values()):
            raise InputError("adapters are no SHA-256")
    except InputError as error:
        raise InputError(f"deploy: {error}") from None
    return made


def _file(entry: Any, at: int) -> BundleFile:
    try:
        strings = {n: _field(entry, n, str) for n in ("path", "kind", "format", "quant", "sha256")}
        optional: dict[str, Any] = {
            name: None if entry.get(name) is None else _field(entry, name, kind)
            for name, kind in (
                ("category", str), ("source", str), ("backbone", str), ("split", str),
                ("rank", int), ("options", str), ("parity", dict), ("inputs", str),
                ("made_by", dict), ("dataset", str), ("template", str),
            )
        }  # fmt: skip
        file = BundleFile(**strings, bytes=_field(entry, "bytes", int), **optional)
        _check_path(file.path)
        for name in ("format", "quant", "category"):
            value = getattr(file, name)
            if value is not None and not PLAIN.fullmatch(value):
                raise InputError(f"{name} {value[:80]!r} is no plain name")
        if file.kind not in KINDS:
            raise InputError(f"kind {file.kind!r} is none of {' '.join(KINDS)}")
        if not DIGEST.fullmatch(file.sha256) or file.bytes < 0:
            raise InputError("sha256 or bytes is no possible value")
        if file.rank is not None and file.rank < 1:
            raise InputError(f"rank {file.rank} is no possible value")
        for name, figure in (file.parity or {}).items():
            if not _figure(figure):
                raise InputError(f"parity {name[:80]!r} is no finite number")
    except InputError as error:
        raise InputError(f"files[{at}]: {error}") from None
    return file


def _check_path(text: str) -> None:
    path = PurePosixPath(text)
    # Half a surrogate pair has no bytes.
    sizes = [len(part.encode("utf-8", "surrogatepass")) for part in path.parts]
    if sum(sizes) > LONGEST or max(sizes, default=0) > LONGEST_PART:
        raise InputError(
            f"path '{text[:40]}...' is longer than {LONGEST_PART} bytes in a part or {LONGEST:,} "
            "in all; export again"
        )
    if not text.isprintable():
        raise InputError(f"path {text!r} has characters that no name has; export again")
    if path.is_absolute() or ".." in path.parts or "\\" in text or not path.parts:
        raise InputError(f"path {text!r} leads out of the bundle")
    if _place(text) == NAME:
        raise InputError(f"path {text!r} is the manifest itself; export again")


def _place(path: str) -> str:
    """Return the same text for paths that are one file, on systems that ignore case too."""
    return PurePosixPath(path).as_posix().casefold()


def _figure(value: Any) -> bool:
    """Return whether a value is one of `parity`: a finite number, or null where none was taken."""
    return value is None or (type(value) in (int, float) and abs(value) < MOST_FIGURE)


def _field(document: Any, name: str, kind: type) -> Any:
    value = document.get(name) if isinstance(document, dict) else None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"field {name!r} is missing or not {kind.__name__}; export again")
    return value


def verified(bundle: Path, file: BundleFile, again: bool = False) -> Path:
    """Return the path of a bundle's file after checking its size and SHA-256.

    A file that was read before and has not changed since is not read again, unless `again`. Raises
    `InputError` for a file that is missing, truncated or changed.
    """
    path = bundle / file.path
    wanted = "--router" if file.kind == "router" else f"--quant {file.quant}"
    remedy = f"export it again: tel-export {wanted}" + (
        f" --adapter {file.category}" if file.category else ""
    )
    if DIGEST.fullmatch(bundle.name):
        remedy = f"get the same version again: tel-bundle pull SOURCE {bundle.parent}"
    if not path.is_file():
        raise InputError(f"{path}: missing, though {NAME} lists it; {remedy}")
    size = path.stat().st_size
    if size != file.bytes:
        raise InputError(f"{path}: {size:,} bytes, {NAME} says {file.bytes:,}; {remedy}")
    found = digest.of_file(path) if again else checked.sha256(path)
    if found != file.sha256:
        raise InputError(f"{path}: corrupted, its SHA-256 is not that of {NAME}; {remedy}")
    return path


def describe(bundle: Path, path: Path, **known: Any) -> BundleFile:
    """Return the record of a file just written into the bundle."""
    return BundleFile(
        path=path.relative_to(bundle).as_posix(),
        bytes=path.stat().st_size,
        sha256=digest.of_file(path),
        **known,
    )


def total_bytes(files: Iterable[BundleFile]) -> int:
    """Return the sum of the files' sizes."""
    return sum(file.bytes for file in files)
