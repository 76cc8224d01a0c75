"""Bundles as OCI image layouts, as registries take them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import for_shipping as made
import pytest

from tel_edge.runtime.bundles import manifest
from tel_edge.runtime.bundles.shipping import checking, oci
from tel_edge.runtime.bundles.shipping.pulling import pull
from tel_edge.runtime.errors import InputError


def blob(root: Path, descriptor: dict[str, Any]) -> bytes:
    """Return what a descriptor names, checked as the image-spec asks."""
    content = (root / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()
    assert len(content) == descriptor["size"]
    assert descriptor["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
    return content


def test_a_layout_is_what_its_specification_says(tmp_path: Path) -> None:
    [one] = made.versions(tmp_path / "out", "x")
    root = tmp_path / "layout"
    described = oci.write(one, root)
    assert json.loads((root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((root / "index.json").read_text())
    assert (index["schemaVersion"], len(index["manifests"])) == (2, 2)
    tags = [row["annotations"]["org.opencontainers.image.ref.name"] for row in index["manifests"]]
    assert tags == [one.name, "latest"]
    assert {row["digest"] for row in index["manifests"]} == {described["digest"]}
    image = json.loads(blob(root, index["manifests"][0]))
    assert image["mediaType"] == index["manifests"][0]["mediaType"]
    assert image["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    config = json.loads(blob(root, image["config"]))
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in image["layers"]]
    assert config["descriptor"] == {"name": "tel-nano", "licenses": ["unknown"], "version": "1"}
    for layer in image["layers"]:
        path = layer["annotations"]["org.cncf.model.filepath"]
        assert layer["annotations"]["org.opencontainers.image.title"] == path
        assert blob(root, layer) == (one / path).read_bytes()
        assert layer["mediaType"].endswith(".raw")
    assert len(image["layers"]) == len(manifest.read(one).files) + 1


def test_there_and_back(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    from tel_edge.runtime.bundles.shipping import store

    private, public = made.keys(tmp_path)
    root, home = tmp_path / "layout", tmp_path / "home"
    moved = []
    for text in "xy":
        [one] = made.versions(tmp_path / "out", text, size=made.ADAPTER)
        store.sign(one, private)
        oci.write(one, root, public)
        # Again is the same.
        before = (root / "index.json").read_text()
        oci.write(one, root)
        assert (root / "index.json").read_text() == before
        added = pull(*oci.opened(root), home, public)
        assert added.folder.name == one.name
        assert checking.check(added.folder, public).serial == len(moved) + 1
        moved.append(added.moved)
    assert moved[1] < 1.02 * made.ADAPTER < moved[0]
    assert len(json.loads((root / "index.json").read_text())["manifests"]) == 3


def test_what_is_no_layout(tmp_path: Path) -> None:
    [one] = made.versions(tmp_path / "out", "x")
    with pytest.raises(InputError, match="no OCI image layout with a bundle"):
        oci.opened(tmp_path / "out")
    with pytest.raises(InputError, match="is there and is no OCI image layout"):
        oci.write(one, tmp_path / "out")
    root = tmp_path / "layout"
    described = oci.write(one, root)
    (root / "index.json").write_text("[]")
    with pytest.raises(InputError, match="no index of an OCI image layout"):
        oci.opened(root)
    for digest in ("sha256:../../x", "sha512:" + "a" * 64, "sha256:" + "a" * 64, 7):
        index = {"manifests": [{**described, "digest": digest}]}
        (root / "index.json").write_text(json.dumps(index))
        with pytest.raises(InputError, match="no bundle of tel-edge in it"):
            oci.opened(root)
    (root / "index.json").write_text(json.dumps({"manifests": [described]}))
    source, name = oci.opened(root)
    assert name == one.name
    blobs = root / "blobs" / "sha256"
    adapter = manifest.read(one).files[-1]
    (blobs / adapter.sha256).unlink()
    with pytest.raises(InputError, match=r"missing, though manifest.json lists it"):
        pull(source, name, tmp_path / "home")
    (blobs / adapter.sha256).write_bytes(b"x" * adapter.bytes)
    with pytest.raises(InputError, match="damaged, or of another version"):
        pull(source, name, tmp_path / "home")
