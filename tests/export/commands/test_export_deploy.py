"""`tel-export --deploy`: the bundle as a version for devices, with or without an export before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import for_shipping as made
import pytest
from conftest import ROOT

from tel_edge.export.commands import export
from tel_edge.runtime.bundles import manifest
from tel_edge.runtime.bundles.shipping import checking

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tel_export(run_command: Command, tmp_path: Path) -> Command:
    def made_of(*argv: str) -> tuple[int, str, str]:
        return run_command(
            export.parser(), export.work, "--workspace", str(tmp_path), *map(str, argv)
        )

    return made_of


def deployed(said: str) -> dict[str, object]:
    document: dict[str, dict[str, object]] = json.loads(said.splitlines()[-1])
    return document["deployed"]


def test_the_bundle_that_is_there_becomes_a_version(tel_export: Command, tmp_path: Path) -> None:
    """Nothing is exported: there are no adapters to export again."""
    work, out = made.bundle(tmp_path / "bundles" / "tel-nano"), tmp_path / "out"
    code, said, err = tel_export("--deploy", str(out), "--json")
    assert code == 0, err
    first = deployed(said)
    folder = Path(str(first["folder"]))
    assert said.startswith(f"deployed: {folder} (serial 1, 3 files, 2.00 MB, 2.00 MB of them new)")
    assert err == "no report decided what to deploy (tel-report --write), so all files are in it\n"
    assert checking.check(folder).files == manifest.read(work).files
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((ROOT / "docs/manifest.schema.json").read_text())
    jsonschema.validate(json.loads((folder / "manifest.json").read_text()), schema)
    again = deployed(tel_export("--deploy", str(out), "--json")[1])
    assert again == {**first, "new": False, "moved": 0}
    made.bundle(work, "y")
    later = deployed(tel_export("--deploy", str(out), "--json", "--serial", "7")[1])
    assert (later["serial"], later["new"]) == (7, True)
    assert 0 < int(str(later["moved"])) < 1.02 * made.ADAPTER


def test_what_cannot_be_deployed_is_told(tel_export: Command, tmp_path: Path) -> None:
    code, _, err = tel_export("--deploy", str(tmp_path / "out"))
    assert (code, "no such bundle; export one first, or name it with --out" in err) == (2, True)
    assert tel_export("--serial", "3")[2] == "tel-export: --serial is for --deploy\n"
    folder = made.bundle(tmp_path / "elsewhere")
    for inside in (folder, folder / "out"):
        code, _, err = tel_export("--deploy", str(inside), "--out", str(folder))
        assert (code, "in the bundle itself; name another folder" in err) == (2, True)
    (folder / "nano-oranbench-LoRA.gguf").write_bytes(b"GGUF")
    code, _, err = tel_export("--out", str(folder), "--deploy", str(tmp_path / "out"))
    assert (code, "nano-oranbench-LoRA.gguf: 4 bytes, manifest.json says" in err) == (2, True)
    assert [one for one in (tmp_path / "out").iterdir() if one.is_dir()] == []


def test_what_is_asked_for_is_exported_first(tel_export: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, said, err = tel_export(
        "--quant", "Q8_0", "--no-verify", "--quiet", "--json", "--deploy", str(out)
    )
    assert code == 0, err
    folder = Path(str(deployed(said)["folder"]))
    [file] = checking.check(folder).files
    assert (file.quant, file.kind) == ("Q8_0", "backbone")
