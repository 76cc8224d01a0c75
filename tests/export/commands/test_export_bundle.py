"""What a bundle is besides its files: figures of the gate, card, check, push, merged models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import export_models as models
import pytest
from conftest import ROOT

from tel_edge.eval.folders import hub_card
from tel_edge.export import card, push
from tel_edge.export.commands import export
from tel_edge.export.gate import gate
from tel_edge.export.gguf import make as gguf
from tel_edge.runtime import cli
from tel_edge.runtime.bundles import manifest
from tel_edge.runtime.errors import InputError, WorkError


@pytest.fixture(scope="module")
def made(tmp_path_factory: Any) -> Path:
    """Return a folder with the backbone `base`, adapters `one` and `two`, and their `bundle`."""
    root: Path = tmp_path_factory.mktemp("bundle")
    base = models.backbone(root / "base", "llama")
    models.bind(models.adapter(root / "one", base), base)
    models.bind(
        models.adapter(root / "two", base, seed=2, r=4, use_rslora=True), base, category="teleqna"
    )
    assert run(root, "--quant", "F16,Q8_0,Q2_K", "--adapter", f"{root}/one,{root}/two") == 0
    return root


def run(root: Path, *argv: str, out: str = "bundle") -> int:
    common = ["--backbone", str(root / "base"), "--out", str(root / out), "--quiet"]
    return cli.run(export.parser(), export.work, [*common, *argv])


def file(bundle: Path, kind: str, quant: str, category: str | None = None) -> manifest.BundleFile:
    found = manifest.read(bundle).find(kind, quant, category)
    assert found is not None
    return found


def test_figures_are_in_the_manifest(made: Path) -> None:
    half = file(made / "bundle", "backbone", "F16").parity
    rough = file(made / "bundle", "backbone", "Q2_K").parity
    assert half
    assert rough
    assert half["largest"] < 5e-3
    assert half["picks"] == 1.0
    assert rough["quantization"] > 10 * half["quantization"] > 100 * half["conversion"] > 0
    # One conversion, whatever is made of it.
    assert rough["conversion"] == half["conversion"] < 1e-4
    # What a file is away from PEFT is hardly more than what its type costs.
    assert rough["error"] == pytest.approx(rough["quantization"], rel=0.01)
    for category in ("oranbench", "teleqna"):
        figures = file(made / "bundle", "adapter", "F16", category).parity
        assert figures
        assert figures["largest"] < 5e-3
        assert figures["adapter"] < 1e-3 < figures["change"]


def test_an_unquantized_backbone_is_written_once_and_serves_the_gate(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    real = gguf._plain

    def plain(args: Any, plan: Any, model: Any, row: Any, out: Path, **more: Any) -> None:
        written.append(row.name)
        real(args, plan, model, row, out, **more)

    monkeypatch.setattr(gguf, "_plain", plain)
    assert run(made, "--quant", "F32,Q8_0", out=str(tmp_path / "b")) == 0
    assert written == ["F32", "F16"]
    full = file(tmp_path / "b", "backbone", "F32").parity
    assert full
    assert "quantization" not in full
    written.clear()
    # Another type later is judged by the file that is there.
    assert run(made, "--quant", "F16", out=str(tmp_path / "b")) == 0
    assert written == ["F16"]
    # Nothing to do, nothing to judge.
    written.clear()
    monkeypatch.setattr(gate, "opened", lambda *_: pytest.fail("judged"))
    assert run(made, "--quant", "F16,F32,Q8_0", out=str(tmp_path / "b")) == 0
    assert not written


def test_what_an_earlier_version_measured_is_named(made: Path, tmp_path: Path, capsys: Any) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(made / "bundle", bundle)
    path = bundle / manifest.NAME
    document = json.loads(path.read_text())
    for entry in document["files"]:
        names = ("prompts", "largest", "kl", "picks", "error")
        entry["parity"] = {name: entry["parity"][name] for name in names}
    path.write_text(json.dumps(document))
    argv = ["--backbone", str(made / "base"), "--out", str(bundle), "--quant", "F16,Q8_0,Q2_K"]
    assert cli.run(export.parser(), export.work, argv) == 0
    said = capsys.readouterr()
    assert said.out.count("reused") == 3
    assert "warning: 3 files were measured by an earlier version" in said.err
    assert cli.run(export.parser(), export.work, ["--check", str(bundle)]) == 0
    assert "warning: 5 files were measured by an earlier version" in capsys.readouterr().err


def test_a_wrong_file_is_not_accepted(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The permutation of q and k left out: everything loads, nothing is right."""
    from tel_edge.export.gguf import backbone

    monkeypatch.setattr(backbone, "permuted", lambda rows, heads: rows)
    assert run(made, "--quant", "F16", out=str(tmp_path / "b")) == 1
    said = capsys.readouterr().err
    assert "does not answer as the model it was made from" in said
    assert said.index("likely:") < said.index("--no-verify")
    assert not list((tmp_path / "b").glob("*.gguf"))
    assert run(made, "--quant", "F16", "--no-verify", out=str(tmp_path / "b")) == 0
    assert file(tmp_path / "b", "backbone", "F16").parity is None


def test_what_was_not_measured_is_measured_later(made: Path, tmp_path: Path, capsys: Any) -> None:
    out = str(tmp_path / "b")
    assert run(made, "--quant", "F16", "--no-verify", out=out) == 0
    assert run(made, "--quant", "F16", "--json", out=out) == 0
    assert file(tmp_path / "b", "backbone", "F16").parity
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["files"][0]["state"] == "written"


def test_merged_is_backbone_and_adapter(made: Path, tmp_path: Path) -> None:
    argv = ["--merge", "--quant", "F16,Q8_0", "--adapter", f"{made}/one,{made}/two"]
    assert run(made, *argv, out=str(tmp_path / "b")) == 0
    assert {path.name for path in (tmp_path / "b").glob("*.gguf")} == {
        "base-oranbench-F16.gguf",
        "base-oranbench-Q8_0.gguf",
        "base-teleqna-F16.gguf",
        "base-teleqna-Q8_0.gguf",
    }
    for category in ("oranbench", "teleqna"):
        merged = file(tmp_path / "b", "merged", "F16", category)
        assert merged.parity
        # Rounding of the sum to F16 comes on top of the adapter's.
        assert merged.parity["largest"] < 1e-2
        assert set(merged.parity) > {"conversion", "adapter", "change", "quantization"}
    plain = (made / "bundle" / "base-F16.gguf").read_bytes()
    assert (tmp_path / "b" / "base-oranbench-F16.gguf").read_bytes() != plain


def test_a_merged_file_without_its_adapter_is_refused(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The F16 source of a quantized type is the bare backbone."""
    real = gguf.write_backbone

    def write(*given: Any, quant: Any, merged: Any, **more: Any) -> None:
        real(*given, quant=quant, merged=merged if quant.name == "F32" else None, **more)

    monkeypatch.setattr(gguf, "write_backbone", write)
    models.retensor(
        shutil.copytree(made / "one", tmp_path / "weak") / "adapter_model.safetensors",
        lambda tensors: {n: t * 0.03 if "lora_B" in n else t for n, t in tensors.items()},
    )
    for quant in ("F16", "Q8_0"):
        argv = ["--merge", "--quant", quant, "--adapter", str(tmp_path / "weak")]
        assert run(made, *argv, out=str(tmp_path / quant)) == 1
        assert "of the change that the oranbench adapter makes" in capsys.readouterr().err


@pytest.mark.parametrize(("scale", "warned"), [(1.0, False), (1e-6, True), (0.0, True)])
def test_an_adapter_that_changes_next_to_nothing_is_told(
    scale: float, warned: bool, made: Path, tmp_path: Path, capsys: Any
) -> None:
    models.retensor(
        shutil.copytree(made / "one", tmp_path / "weak") / "adapter_model.safetensors",
        lambda tensors: {n: t * scale if "lora_B" in n else t for n, t in tensors.items()},
    )
    argv = ["--backbone", str(made / "base"), "--adapter", str(tmp_path / "weak"), "--quant", "F16"]
    assert cli.run(export.parser(), export.work, [*argv, "--out", str(tmp_path / "b")]) == 0
    assert ("next to nothing" in capsys.readouterr().err) == warned


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--merge"], "--merge needs an adapter"),
        (["--imatrix", "missing.gguf"], "is no file and none of none pooled category"),
        (["--tensor-type", "attn_v"], "attn_v"),
        (["--tensor-type", "attn_w=Q8_0"], "attn_w"),
        (["--tensor-type", "attn_v=Q9_9"], "Q9_9"),
    ],
)
def test_refused_before_anything_is_written(
    made: Path, tmp_path: Path, capsys: Any, argv: list[str], said: str
) -> None:
    assert run(made, *argv, out=str(tmp_path / "b")) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_a_shared_backbone_takes_no_matrix_of_one(made: Path, tmp_path: Path, capsys: Any) -> None:
    argv = ["--imatrix", "category", "--adapter", f"{made}/one,{made}/two"]
    assert run(made, *argv, out=str(tmp_path / "b")) == 2
    assert "pooled" in capsys.readouterr().err


def test_dry_run_foretells_the_sizes(made: Path, tmp_path: Path, capsys: Any) -> None:
    argv = ["--quant", "F16,Q8_0,Q2_K", "--dry-run", "--json"]
    assert run(made, *argv, out=str(tmp_path / "b")) == 0
    foretold = json.loads(capsys.readouterr().out.splitlines()[-1])["dry_run"]
    for line in foretold:
        there = file(made / "bundle", "backbone", line["quant"]).bytes
        assert abs(line["bytes"] - there) < 512
    assert not list((tmp_path / "b").glob("*"))


def test_q8_0_adapters_answer_alike_and_are_smaller(made: Path, tmp_path: Path) -> None:
    argv = ["--quant", "F16", "--adapter", str(made / "one")]
    out = str(tmp_path / "b")
    for quant in ("F32", "F16", "Q8_0"):
        assert run(made, *argv, "--adapter-quant", quant, out=out) == 0
    files = {quant: file(tmp_path / "b", "adapter", quant, "oranbench")
             for quant in ("F32", "F16", "Q8_0")}  # fmt: skip
    assert files["F32"].bytes > files["F16"].bytes > files["Q8_0"].bytes
    assert files["Q8_0"].parity
    assert files["Q8_0"].parity["error"] < 0.1


def test_check(made: Path, tmp_path: Path, capsys: Any) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(made / "bundle", bundle)
    assert run(made, "--check", str(bundle)) == 0
    assert "5 files are whole" in capsys.readouterr().out
    victim = bundle / "base-Q8_0.gguf"
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    assert run(made, "--check", str(bundle)) == 2
    assert "base-Q8_0.gguf: corrupted" in capsys.readouterr().err


def test_the_card_has_front_matter_and_every_file(made: Path) -> None:
    yaml = pytest.importorskip("yaml")
    text = (made / "bundle" / hub_card.NAME).read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "gguf"
    assert "telecom" in front["tags"]
    # A folder of one's own has no base on the hub and no known licence.
    assert "base_model" not in front
    assert "license" not in front
    known = manifest.read(made / "bundle")
    assert all(f"| {one.path} |" in text for one in known.files)
    named = manifest.Manifest(
        manifest.BackboneInfo("qwen3-0.6b", "qwen3", "1" * 64, "2" * 64, "3" * 64, "apache-2.0"),
        known.files,
    )
    front = yaml.safe_load(card.render(named).split("---")[1])
    assert front["base_model"] == "Qwen/Qwen3-0.6B"
    assert front["base_model_relation"] == "adapter"
    assert front["license"] == "apache-2.0"


def test_the_manifest_fits_its_schema(made: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((ROOT / "docs/manifest.schema.json").read_text())
    document = json.loads((made / "bundle" / manifest.NAME).read_text())
    jsonschema.validate(document, schema)
    del document["files"][0]["sha256"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema)


class Hub:
    """What of huggingface_hub a push uses, offline."""

    def __init__(self, refuse: str = "") -> None:
        self.refuse, self.calls = refuse, list[tuple[str, Mapping[str, Any]]]()

    def create_repo(self, repository: str, **options: Any) -> None:
        if self.refuse:
            raise RuntimeError(self.refuse)
        self.calls.append((repository, options))

    def upload_folder(self, **options: Any) -> str:
        self.calls.append(("upload", options))
        return "https://hub.example/commit/1"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    fake = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    return fake


def test_push_uploads_the_listed_files(made: Path, tmp_path: Path, hub: Hub) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(made / "bundle", bundle)
    (bundle / "private.txt").write_text("not for the hub")
    known = manifest.read(bundle)
    assert push.push(bundle, known, "me/telecom").startswith("https://")
    (name, created), (_, sent) = hub.calls
    assert (name, created["exist_ok"]) == ("me/telecom", True)
    assert set(sent["allow_patterns"]) == {
        "manifest.json", "README.md", *(one.path for one in known.files)
    }  # fmt: skip


@pytest.mark.parametrize("name", ["telecom", "a/b/c", "me/../x", "me/te lecom"])
def test_push_refuses_what_is_no_repository(made: Path, hub: Hub, name: str) -> None:
    with pytest.raises(InputError, match="--push"):
        push.push(made / "bundle", manifest.read(made / "bundle"), name)
    assert not hub.calls


def test_push_says_what_the_hub_said(made: Path, hub: Hub) -> None:
    hub.refuse = "401 Client Error\nmore"
    with pytest.raises(WorkError, match="401 Client Error"):
        push.push(made / "bundle", manifest.read(made / "bundle"), "me/telecom")
