"""An OCI image layout of bundles, for registries: each file a layer, under ModelPack's types.

Sources: OCI image-spec v1.1 (`image-layout.md`, `manifest.md`) and CNCF ModelPack's model-spec v1
(`specs-go/v1`, `schema/config-schema.json`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tel_edge.runtime.bundles import manifest as manifests
from tel_edge.runtime.bundles.manifest import DIGEST, NAME, Manifest
from tel_edge.runtime.bundles.shipping import checking, signature, store
from tel_edge.runtime.bundles.shipping.sources import LATEST, Folder, small
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files.atomic import make_folder, replacing, write_text

INDEX = "application/vnd.oci.image.index.v1+json"
IMAGE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
SETTING = "application/vnd.cncf.model.weight.config.v1.raw"
TITLE, FILE_PATH = "org.opencontainers.image.title", "org.cncf.model.filepath"
TAG = "org.opencontainers.image.ref.name"
# Of a layout and its index; an index has some 300 bytes a version.
MOST = 4_000_000


@dataclass(frozen=True)
class Layout:
    """A bundle in a layout, as a `Source`: the digests of its files by their path."""

    root: Path
    blobs: Mapping[str, str]

    @property
    def name(self) -> str:
        """Return the layout's folder."""
        return str(self.root)

    def read(self, path: str, at: int = 0) -> tuple[int, Iterator[bytes]] | None:
        """Read the layer of a file."""
        if path not in self.blobs:
            return None
        return Folder(self.root).read(f"blobs/sha256/{self.blobs[path]}", at)


def write(folder: Path, root: Path, key: Path | None = None) -> dict[str, Any]:
    """Add a bundle to a layout, as `latest` and under its digest; return its descriptor.

    Files become hard links where the file system has them. Raises `InputError` for a bundle that is
    not whole, or with `key` not signed by it.
    """
    folder = folder.resolve()
    made = checking.check(folder, key)
    name = manifests.of_folder(folder)
    if root.exists() and not (root / "oci-layout").is_file() and any(root.iterdir()):
        raise InputError(f"{root}: is there and is no OCI image layout; name another folder")
    blobs = root / "blobs" / "sha256"
    make_folder(blobs)
    text = (folder / NAME).read_bytes()
    layers = [_layer(NAME, SETTING, name, len(text))]
    _put(blobs / name, text)
    for file in made.files:
        model = file.kind in ("backbone", "adapter", "merged", "data")
        layers.append(_layer(file.path, WEIGHT if model else SETTING, file.sha256, file.bytes))
        place = blobs / file.sha256
        if not (place.is_file() and place.stat().st_size == file.bytes):
            with replacing(place) as partial:
                store.linked(folder / file.path, partial)
    if (folder / signature.NAME).is_file():
        signed = (folder / signature.NAME).read_bytes()
        layers.append(_layer(signature.NAME, SETTING, checking.of_text(signed), len(signed)))
        _put(blobs / checking.of_text(signed), signed)
    config = _json(_config(made, [layer["digest"] for layer in layers]))
    image = _json(
        {
            "schemaVersion": 2,
            "mediaType": IMAGE,
            "artifactType": ARTIFACT,
            "config": _descriptor(CONFIG, checking.of_text(config), len(config)),
            "layers": layers,
        }
    )
    for content in (config, image):
        _put(blobs / checking.of_text(content), content)
    descriptor = _descriptor(IMAGE, checking.of_text(image), len(image))
    descriptor["artifactType"] = ARTIFACT
    rows = [row for row in _rows(root) if row.get("annotations", {}).get(TAG) not in (LATEST, name)]
    rows += [{**descriptor, "annotations": {TAG: tag}} for tag in (name, LATEST)]
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": rows}
    write_text(root / "oci-layout", '{"imageLayoutVersion": "1.0.0"}')
    write_text(root / "index.json", json.dumps(index, indent=2))
    return descriptor


def opened(root: Path) -> tuple[Layout, str]:
    """Return the bundle that a layout has as `latest`, or last, and its digest.

    Raises `InputError` for what is no layout, or holds none of our bundles there.
    """
    rows = _rows(root) if (root / "oci-layout").is_file() else []
    if not rows:
        raise InputError(f"{root}: no OCI image layout with a bundle (tel-bundle oci export)")
    row = next((r for r in rows if r.get("annotations", {}).get(TAG) == LATEST), rows[-1])
    try:
        own = _digest(row)
        text = small(Folder(root), f"blobs/sha256/{own}", MOST)
        if text is None or checking.of_text(text) != own:
            raise ValueError("its manifest is missing or damaged")
        blobs = {
            layer["annotations"].get(FILE_PATH) or layer["annotations"][TITLE]: _digest(layer)
            for layer in json.loads(text)["layers"]
        }
        return Layout(root, blobs), blobs[NAME]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{root}: no bundle of tel-edge in it ({error!r:.80})") from None


def _rows(root: Path) -> list[Any]:
    text = small(Folder(root), "index.json", MOST)
    if text is None:
        return []
    try:
        rows = json.loads(text)["manifests"]
        return [row for row in rows if isinstance(row, dict)]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{root}: no index of an OCI image layout ({error!r:.80})") from None


def _digest(row: Any) -> str:
    name = str(row["digest"]).removeprefix("sha256:")
    if not DIGEST.fullmatch(name):
        raise ValueError(f"digest {name[:80]!r} is no SHA-256")
    return name


def _config(made: Manifest, digests: list[str]) -> dict[str, Any]:
    backbones = [file for file in made.files if file.kind in ("backbone", "merged")]
    described = {"name": made.backbone.name, "licenses": [made.backbone.licence]}
    if made.serial is not None:
        described["version"] = str(made.serial)
    return {
        "descriptor": described,
        "config": {
            "architecture": "transformer",
            "format": ",".join(dict.fromkeys(file.format for file in backbones)),
            "quantization": ",".join(dict.fromkeys(file.quant for file in backbones)),
        },
        # A file that is not compressed is its own content.
        "modelfs": {"type": "layers", "diffIds": digests},
    }


def _layer(path: str, kind: str, sha256: str, size: int) -> dict[str, Any]:
    return {**_descriptor(kind, sha256, size), "annotations": {TITLE: path, FILE_PATH: path}}


def _descriptor(kind: str, sha256: str, size: int) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{sha256}", "size": size}


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True).encode()


def _put(place: Path, content: bytes) -> None:
    if not place.is_file():
        with replacing(place) as partial:
            partial.write_bytes(content)
