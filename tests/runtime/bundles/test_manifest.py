"""`manifest.json`: its bytes, what is refused when it is read, and the check of its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tel_edge.runtime.bundles import manifest
from tel_edge.runtime.bundles.manifest import BackboneInfo, BundleFile, Manifest
from tel_edge.runtime.errors import InputError

INFO = BackboneInfo("nano", "llama", "a" * 64, "b" * 64, "c" * 64, "apache-2.0")
BIG = BundleFile("nano-F16.gguf", "backbone", "gguf", "F16", 900, "d" * 64, source="a" * 64)
SMALL = BundleFile("nano-Q4_K_M.gguf", "backbone", "gguf", "Q4_K_M", 300, "e" * 64)
LORA = BundleFile(
    "nano-oranbench-LoRA.gguf", "adapter", "gguf", "F16", 50, "f" * 64, "oranbench",
    "1" * 64, "a" * 64, "2" * 64, 16,
)  # fmt: skip
GOLDEN = """{
  "backbone": {
    "architecture": "llama",
    "licence": "apache-2.0",
    "name": "nano",
    "prompt": "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc",
    "tokenizer": "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
    "weights": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
  },
  "files": [
    {
      "backbone": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
      "bytes": 50,
      "category": "oranbench",
      "format": "gguf",
      "kind": "adapter",
      "options": null,
      "parity": null,
      "path": "nano-oranbench-LoRA.gguf",
      "quant": "F16",
      "rank": 16,
      "sha256": "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
      "source": "1111111111111111111111111111111111111111111111111111111111111111",
      "split": "2222222222222222222222222222222222222222222222222222222222222222"
    }
  ],
  "schema_version": 1
}
"""


def whole() -> Manifest:
    made = Manifest(INFO)
    for file in (LORA, SMALL, BIG):
        made = made.with_file(file)
    return made


def test_the_bytes_of_a_manifest_never_change() -> None:
    assert manifest.dumps(Manifest(INFO).with_file(LORA)) == GOLDEN


def test_it_reads_back_equal(tmp_path: Path) -> None:
    manifest.write(whole(), tmp_path)
    assert manifest.read(tmp_path) == whole()
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    counted = replace(whole(), serial=3)
    manifest.write(counted, tmp_path)
    assert manifest.read(tmp_path) == counted
    assert '"serial"' not in manifest.dumps(whole())


def test_backbones_come_first_and_large_before_small() -> None:
    assert whole().files == (BIG, SMALL, LORA)
    assert whole().quants() == ("F16", "Q4_K_M")
    assert whole().adapters() == ("oranbench",)


def test_a_file_of_the_same_key_takes_the_others_place() -> None:
    new = BundleFile("other.gguf", "backbone", "gguf", "F16", 901, "0" * 64)
    assert whole().with_file(new).files == (new, SMALL, LORA)


def test_files_are_found_by_kind_type_and_category() -> None:
    made = whole()
    assert made.find("backbone") == BIG
    assert made.find("backbone", "Q4_K_M") == SMALL
    assert made.find("adapter", None, "oranbench") == LORA
    assert made.find("adapter") is None
    assert made.find("adapter", None, "teleqna") is None
    assert made.find("backbone", format="onnx") is None


Change = Callable[[dict[str, Any]], Any]


def dropped(at: str, name: str) -> Change:
    return lambda d: (d["backbone"] if at == "backbone" else d["files"][0]).pop(name)


def put(**values: Any) -> Change:
    return lambda d: d["files"][0].update(values)


FIELDS = {f"backbone {n}": (dropped("backbone", n), f"field {n!r} is missing") for n in
          ("name", "architecture", "weights", "tokenizer", "prompt", "licence")}  # fmt: skip
FIELDS |= {f"file {n}": (dropped("file", n), f"files[0]: field {n!r} is missing") for n in
           ("path", "kind", "format", "quant", "bytes", "sha256")}  # fmt: skip
BROKEN: dict[str, tuple[Change, str]] = {
    **FIELDS,
    "no version": (lambda d: d.pop("schema_version"), "field 'schema_version' is missing"),
    "flag as version": (lambda d: d.update(schema_version=True), "not int"),
    "no number as serial": (lambda d: d.update(serial="1"), "field 'serial' is missing or not int"),
    "no serial": (lambda d: d.update(serial=0), "serial 0 is no possible value"),
    "beyond counting": (lambda d: d.update(serial=2**60), "is no possible value"),
    "a file in a file": (
        lambda d: d["files"][0].update(path=d["files"][1]["path"].upper() + "/x"),
        "is a file and a folder",
    ),
    "new version": (lambda d: d.update(schema_version=2), "schema_version 2, this version reads 1"),
    "no backbone": (lambda d: d.update(backbone=[]), "field 'backbone' is missing or not dict"),
    "no files": (lambda d: d.pop("files"), "field 'files' is missing"),
    "file type": (lambda d: d["files"].append("x"), "files[3]: field 'path' is missing"),
    "bytes type": (put(bytes="900"), "field 'bytes' is missing or not int"),
    "negative": (put(bytes=-1), "sha256 or bytes is no possible value"),
    "short digest": (put(sha256="d" * 63), "sha256 or bytes is no possible value"),
    "kind": (put(kind="malware"), "kind 'malware' is none of backbone adapter"),
    "category type": (put(category=3), "field 'category' is missing or not str"),
    "rank type": (put(rank="16"), "field 'rank' is missing or not int"),
    "path twice": (put(path=SMALL.path), f"files: path {SMALL.path!r} is there twice"),
    "path twice, written in two ways": (put(path=f"./{SMALL.path}"), "is there twice"),
    "path twice where case is one": (put(path=SMALL.path.upper()), "is there twice"),
    "long path": (put(path="x" * 5000), "is longer than 255 bytes in a part or 1,024 in all"),
    "long part": (put(path="a/" + "\u00e9" * 128), "is longer than 255 bytes in a part"),
    "path of many parts": (put(path="/".join(["x" * 200] * 6)), "or 1,024 in all"),
    "path of the manifest": (put(path="./manifest.json"), "is the manifest itself"),
    "path with a zero byte": (put(path="x\0.gguf"), "has characters that no name has"),
    "path with half a character": (put(path="x\ud83d"), "has characters that no name has"),
    "twice": (lambda d: d["files"].append(d["files"][0]), "backbone gguf F16"),
    **{
        f"path {path!r}": (put(path=path), f"path {path!r} leads out of the bundle")
        for path in ("../x.gguf", "/etc/passwd", "a/../../x", "..\\x", "", ".", "a/..")
    },
    **{
        f"name {name!r}": (lambda d, n=name: d["backbone"].update(name=n), "is no plain name")
        for name in ("../../x", "a/b", "..", ".", "", "a\\b", "a b", "x\n")
    },
    "quant": (put(quant="../F16"), "files[0]: quant '../F16' is no plain name"),
    "format": (put(format="../x"), "files[0]: format '../x' is no plain name"),
    "category": (put(category="../../.."), "files[0]: category '../../..' is no plain name"),
    "category of dots": (put(category=".."), "files[0]: category '..' is no plain name"),
    "architecture": (lambda d: d["backbone"].update(architecture="a/b"), "is no plain name"),
    "prompt": (lambda d: d["backbone"].update(prompt="c" * 63 + "x"), "is no SHA-256"),
    "digest": (put(sha256="g" * 64), "sha256 or bytes is no possible value"),
    "rank": (put(rank=0), "rank 0 is no possible value"),
    "parity type": (put(parity=[1]), "field 'parity' is missing or not dict"),
    "parity text": (put(parity={"kl": "0"}), "parity 'kl' is no finite number"),
    "parity flag": (put(parity={"kl": True}), "parity 'kl' is no finite number"),
    "parity nan": (put(parity={"kl": float("nan")}), "parity 'kl' is no finite number"),
    "parity huge": (put(parity={"kl": 10**400}), "parity 'kl' is no finite number"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_field_is_named(name: str, tmp_path: Path) -> None:
    change, reason = BROKEN[name]
    document = json.loads(manifest.dumps(whole()))
    change(document)
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(InputError) as caught:
        manifest.read(tmp_path)
    assert str(tmp_path / "manifest.json") in str(caught.value)
    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_figures_of_parity_may_be_missing(tmp_path: Path) -> None:
    document = json.loads(manifest.dumps(whole()))
    document["files"][0]["parity"] = {"kl": 1e-6, "prompts": 12, "lost": None}
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    assert manifest.read(tmp_path).files[0].parity == {"kl": 1e-6, "prompts": 12, "lost": None}


def test_a_path_into_a_folder_of_the_bundle_is_fine(tmp_path: Path) -> None:
    document = json.loads(manifest.dumps(whole()))
    document["files"][0]["path"] = "a/b..c/x.gguf"
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    assert manifest.read(tmp_path).files[0].path == "a/b..c/x.gguf"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "field 'schema_version' is missing"),
        (b"null", "field 'schema_version' is missing"),
        (b" " * 4_000_001, "larger than any manifest"),
    ],
)
def test_what_is_no_manifest_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=reason):
        manifest.read(tmp_path)


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="so this is no bundle; make one with tel-export"):
        manifest.read(tmp_path)


@pytest.fixture
def described(tmp_path: Path) -> BundleFile:
    path = tmp_path / "sub" / "x.gguf"
    path.parent.mkdir()
    path.write_bytes(bytes(range(256)) * 8)
    known = {"kind": "adapter", "format": "gguf", "quant": "F16", "category": "oranbench"}
    return manifest.describe(tmp_path, path, **known)


def test_an_unchanged_file_is_verified(described: BundleFile, tmp_path: Path) -> None:
    assert (described.path, described.bytes) == ("sub/x.gguf", 2048)
    assert manifest.verified(tmp_path, described) == tmp_path / "sub" / "x.gguf"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (Path.unlink, "missing, though manifest.json lists it"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "2,047 bytes, manifest.json says"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "2,049 bytes, manifest.json"),
        (flip, "corrupted, its SHA-256 is not that of manifest.json"),
    ],
)
def test_a_changed_file_is_refused(
    damage: Callable[[Path], Any], reason: str, described: BundleFile, tmp_path: Path
) -> None:
    damage(tmp_path / "sub" / "x.gguf")
    with pytest.raises(InputError, match=reason) as caught:
        manifest.verified(tmp_path, described)
    assert "tel-export --quant F16 --adapter oranbench" in str(caught.value)
