"""What an engine opens of a bundle is what was verified: names in a file against the manifest's."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import fake_engine as fake
import pytest
from for_onnx_header import model, tensor

from tel_edge.runtime.bundles import bundle, manifest
from tel_edge.runtime.bundles.manifest import BundleFile
from tel_edge.runtime.errors import InputError


def listed(folder: Path, file: BundleFile, name: str, content: bytes | None = None) -> None:
    """Put a file of the bundle at `name`, and into the manifest as it then is."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        shutil.move(folder / file.path, path)
    else:
        path.write_bytes(content)
    known = {key: getattr(file, key) for key in ("kind", "format", "quant", "source")}
    made = manifest.read(folder).with_file(manifest.describe(folder, path, **known))
    manifest.write(made, folder)


def graph(data: str) -> bytes:
    """Return a model with one tensor of 16 bytes in a data file of that name."""
    return model((5, tensor(4, location=data, offset=0, length=16)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a bundle whose ONNX model opens the data file that is listed for it."""
    fake.bundle(tmp_path)
    made = fake.onnx(tmp_path, quants=("int4",))
    backbone = made.find("backbone", "int4", format="onnx")
    assert backbone
    listed(tmp_path, backbone, backbone.path, graph("nano-int4.onnx.data"))
    return tmp_path


def verified(folder: Path) -> Path:
    made = bundle.read(folder)
    return bundle.verified(folder, made, bundle.backbone_file(folder, made, "int4", "onnx"))


def find(folder: Path, kind: str, quant: str) -> BundleFile:
    found = manifest.read(folder).find(kind, quant, format="onnx")
    assert found
    return found


def test_what_is_listed_is_opened(folder: Path) -> None:
    assert verified(folder) == folder / "nano-int4.onnx"


def test_a_model_that_opens_another_data_file_is_refused(folder: Path) -> None:
    shutil.copyfile(folder / "nano-int4.onnx.data", folder / "other.data")
    listed(folder, find(folder, "backbone", "int4"), "nano-int4.onnx", graph("other.data"))
    with pytest.raises(InputError, match=r"nano-int4\.onnx: opens other\.data, which the manifest"):
        verified(folder)


@pytest.mark.parametrize(
    ("kind", "quant", "name"),
    [("data", "int4", "nano-int4.onnx.data"), ("tokenizer", "json", "tokenizer.json")],
)
def test_a_part_that_is_listed_elsewhere_is_refused(
    folder: Path, kind: str, quant: str, name: str
) -> None:
    content = (folder / name).read_bytes()
    listed(folder, find(folder, kind, quant), f"kept/{name}")
    # What the engine opens is a file that nobody has verified.
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=f"opens {name}, which the manifest does not list"):
        verified(folder)


def test_a_model_in_a_folder_of_its_own_opens_what_is_beside_it(folder: Path) -> None:
    for kind, quant in (("backbone", "int4"), ("data", "int4"), ("tokenizer", "json")):
        file = find(folder, kind, quant)
        listed(folder, file, f"onnx/{file.path}")
    assert verified(folder) == folder / "onnx" / "nano-int4.onnx"
    wrong = manifest.read(folder)
    (folder / "tokenizer.json").write_text("{}")
    moved = replace(find(folder, "tokenizer", "json"), path="tokenizer.json")
    manifest.write(wrong.with_file(moved), folder)
    with pytest.raises(InputError):
        verified(folder)
