"""The formats of a bundle: which one answers, which file is checked how, and what is said."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_engine import WEIGHTS, gguf
from gguf_files import File

from tel_edge.runtime.bundles import bundle, formats, manifest
from tel_edge.runtime.bundles.formats import FORMATS, of_file
from tel_edge.runtime.bundles.manifest import BackboneInfo, BundleFile, Manifest
from tel_edge.runtime.engines.engine import EngineSettings, LoraFile
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions import prompt

INFO = BackboneInfo("tel-nano", "llama", WEIGHTS, "c" * 64, prompt.digest())
BOTH = "gguf F16 900, gguf Q4_K_M 300, onnx fp32 2000, onnx int4 400"


def made_of(text: str, adapters: str = "") -> Manifest:
    """Return a manifest of "format quant bytes" and "format category", which has no files."""
    made = Manifest(INFO)
    for part in filter(None, text.split(", ")):
        name, quant, size = part.split()
        # The graph of a large ONNX model is small; its data is beside it.
        graph = int(size) if name == "gguf" else 7
        made = made.with_file(BundleFile(f"x-{quant}.{name}", "backbone", name, quant, graph,
                                         "0" * 64))  # fmt: skip
        if name == "onnx":
            made = made.with_file(BundleFile(f"x-{quant}.data", "data", name, quant, int(size),
                                             "0" * 64))  # fmt: skip
    for part in filter(None, adapters.split(", ")):
        name, category = part.split()
        made = made.with_file(BundleFile(f"{category}.{name}", "adapter", name, "F16", 1, "0" * 64,
                                         category, backbone=WEIGHTS))  # fmt: skip
    return made


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the formats whose engine is there; all of them at first."""
    names = set(FORMATS)
    packages = {row.package[0]: row.name for row in FORMATS.values()}
    real = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        return (packages[name] in names or None) if name in packages else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    return names


def chosen(made: Manifest, quant: str | None = None, format: str | None = None) -> str:
    return bundle.backbone_file(Path("b"), made, quant, format).path


def test_the_smallest_of_an_installed_engine_answers(installed: set[str]) -> None:
    made = made_of(BOTH)
    assert chosen(made) == "x-Q4_K_M.gguf"
    installed.discard("gguf")
    assert chosen(made) == "x-int4.onnx"
    installed.discard("onnx")
    # None is installed: the engine then says what to install.
    assert chosen(made) == "x-Q4_K_M.gguf"
    installed.add("onnx")
    assert chosen(made_of("gguf F16 900")) == "x-F16.gguf"
    assert chosen(made_of("onnx fp32 2000, onnx int4 400")) == "x-int4.onnx"


def test_a_type_or_a_format_may_be_named(installed: set[str]) -> None:
    made = made_of(BOTH)
    assert chosen(made, "F16") == "x-F16.gguf"
    assert chosen(made, "fp32") == "x-fp32.onnx"
    assert chosen(made, None, "onnx") == "x-int4.onnx"
    assert chosen(made, None, "gguf") == "x-Q4_K_M.gguf"
    assert chosen(made, "fp32", "onnx") == "x-fp32.onnx"
    assert chosen(made, "int4", "onnx") == "x-int4.onnx"
    installed.discard("gguf")
    assert chosen(made, "F16") == "x-F16.gguf"


@pytest.mark.parametrize(
    ("files", "quant", "format", "said"),
    [
        ("gguf F16 9", None, "onnx",
         "no ONNX backbone (there: F16); run: tel-export --format onnx --quant int4"),
        ("gguf F16 9", "int4", "onnx",
         "no int4 backbone (there: F16); run: tel-export --format onnx --quant int4"),
        ("onnx int4 9", None, "gguf",
         "no GGUF backbone (there: int4); run: tel-export --quant Q4_K_M"),
        (BOTH, "Q8_0", None,
         "no Q8_0 backbone (there: F16 Q4_K_M as gguf, fp32 int4 as onnx); "
         "run: tel-export --quant Q8_0"),
        (BOTH, "F16", "onnx",
         "no F16 backbone (there: F16 Q4_K_M as gguf, fp32 int4 as onnx); "
         "run: tel-export --format onnx --quant F16"),
        ("", None, None, "no GGUF backbone (there: none); run: tel-export --quant Q4_K_M"),
    ],
)  # fmt: skip
def test_a_backbone_that_there_is_not(
    files: str, quant: str | None, format: str | None, said: str, installed: set[str]
) -> None:
    with pytest.raises(InputError) as caught:
        chosen(made_of(files), quant, format)
    assert str(caught.value) == f"b: {said}"


def test_an_adapter_is_of_the_backbones_format() -> None:
    made = made_of(BOTH, "gguf oranbench, onnx teleqna, onnx oranbench")

    def found(category: str, format: str) -> str:
        return bundle.adapter_file(Path("b"), made, category, format).path

    assert found("oranbench", "gguf") == "oranbench.gguf"
    assert found("oranbench", "onnx") == "oranbench.onnx"
    assert (made.adapters(), sorted(made.adapters("onnx"))) == (
        ("oranbench",), ["oranbench", "teleqna"]
    )  # fmt: skip
    with pytest.raises(InputError, match=r"no adapter for teleqna \(there: oranbench\).*"
                                         r"tel-export --adapter teleqna$"):  # fmt: skip
        found("teleqna", "gguf")
    with pytest.raises(InputError, match=r"tel-export --format onnx --adapter sixg_bench$"):
        found("sixg_bench", "onnx")
    foreign = replace(made, backbone=replace(INFO, weights="d" * 64))
    with pytest.raises(InputError, match=r"another backbone than tel-nano; .*--format onnx"):
        bundle.adapter_file(Path("b"), foreign, "teleqna", "onnx")


def test_sizes_are_those_of_all_that_an_engine_needs() -> None:
    made = made_of(BOTH)
    tokenizer = BundleFile("tokenizer.json", "tokenizer", "onnx", "json", 50, "0" * 64)
    made = made.with_file(tokenizer)
    onnx = made.find("backbone", "int4", format="onnx")
    assert onnx
    assert made.disk(onnx) == 7 + 400 + 50
    assert [part.kind for part in made.parts(onnx)] == ["backbone", "data", "tokenizer"]
    llama = made.find("backbone", "F16")
    assert llama
    assert made.parts(llama) == (llama,)
    assert made.quants(format="onnx") == ("fp32", "int4")


def test_the_format_of_a_loose_file() -> None:
    for name, wanted in (
        ("x.gguf", "gguf"), ("x.onnx", "onnx"), ("x", "gguf"), ("x.onnx.data", "gguf"),
        ("x.bin", "gguf"),
    ):  # fmt: skip
        assert of_file(Path(name)).name == wanted
    assert list(FORMATS) == ["gguf", "onnx"]


def test_each_format_opens_its_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tel_edge.runtime.engines import with_llama, with_onnx

    opened: list[tuple[str, Path]] = []

    def engine(name: str) -> Any:
        def made(path: Path, _: Mapping[str, LoraFile], __: EngineSettings) -> Any:
            opened.append((name, path))

        return made

    monkeypatch.setattr(with_llama, "LlamaEngine", engine("llama"))
    monkeypatch.setattr(with_onnx, "OnnxEngine", engine("onnx"))
    for path in (tmp_path / "x.gguf", tmp_path / "x.onnx"):
        bundle.native(path, {}, EngineSettings())
    assert opened == [("llama", tmp_path / "x.gguf"), ("onnx", tmp_path / "x.onnx")]


def test_an_engines_version_is_known_without_loading_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def version(name: str) -> str:
        if name != "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return "1.2"

    monkeypatch.setattr(metadata, "version", version)
    assert FORMATS["onnx"].version() == "onnxruntime 1.2"
    assert FORMATS["gguf"].version() == "unknown"


def test_an_engine_that_is_not_installed_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"pip install 'tel-edge\[onnx\]'"):
        bundle.native(tmp_path / "x.onnx", {}, EngineSettings())


def test_an_engine_that_is_too_old_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys
    from types import ModuleType

    old = ModuleType("onnxruntime")
    old.__version__ = "1.17"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", old)
    with pytest.raises(InputError, match=r"onnxruntime 1\.17 has no adapters; 1\.23\.2 or newer"):
        bundle.native(tmp_path / "x.onnx", {}, EngineSettings())


def test_a_format_of_a_later_version_is_refused(tmp_path: Path) -> None:
    manifest.write(made_of("gguf F16 9, mlx q4 9"), tmp_path)
    with pytest.raises(InputError, match=r"x-q4\.mlx is of format 'mlx', this version reads gguf"):
        bundle.read(tmp_path)


@pytest.mark.parametrize("suffix", [".gguf", ".onnx"])
def test_a_backbone_that_is_none(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match="x" + suffix):
        of_file(path).weights(path)


def test_a_gguf_adapter_is_bound_to_its_backbone(tmp_path: Path) -> None:
    def written(**keys: str) -> Path:
        (tmp_path / "x.gguf").write_bytes(gguf(**keys))
        return tmp_path / "x.gguf"

    check = FORMATS["gguf"].adapter
    check(written(general__type="adapter", tel_edge__backbone__weights=WEIGHTS), WEIGHTS, "n")
    check(written(general__type="adapter"), WEIGHTS, "n")
    with pytest.raises(InputError, match="made for another backbone than n"):
        check(written(general__type="adapter", tel_edge__backbone__weights="e" * 64), WEIGHTS, "n")
    with pytest.raises(InputError, match="no LoRA adapter"):
        check(written(general__type="model"), WEIGHTS, "n")


def test_a_gguf_file_is_bound_to_its_prompt_and_an_adapter_to_its_category(tmp_path: Path) -> None:
    def written(**keys: str) -> Path:
        (tmp_path / "x.gguf").write_bytes(gguf(**keys))
        return tmp_path / "x.gguf"

    row, mine = FORMATS["gguf"], {"general__type": "adapter", "tel_edge__category": "oranbench"}
    row.adapter(written(**mine, tel_edge__prompt=prompt.digest()), WEIGHTS, "n", "oranbench")
    row.adapter(written(general__type="adapter"), WEIGHTS, "n", "teleqna")
    with pytest.raises(InputError, match=r"x\.gguf: made for oranbench, not for teleqna"):
        row.adapter(written(**mine), WEIGHTS, "n", "teleqna")
    said = "made for another prompt than this version's"
    with pytest.raises(InputError, match=said):
        row.adapter(written(**mine, tel_edge__prompt="0" * 64), WEIGHTS, "n", "oranbench")
    with pytest.raises(InputError, match=said):
        row.weights(written(tel_edge__prompt="0" * 64))


def test_one_part_of_a_model_is_refused(tmp_path: Path) -> None:
    """The engine would open the others beside it, which nobody has checked."""
    content = File().put("split.count", 2, kind=2).bytes()
    (tmp_path / "x-00001-of-00002.gguf").write_bytes(content)
    with pytest.raises(InputError, match="one of several parts; join them"):
        FORMATS["gguf"].weights(tmp_path / "x-00001-of-00002.gguf")


def test_an_onnx_adapter_is_bound_to_its_backbone(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    np = pytest.importorskip("numpy")
    from tel_edge.runtime.files.onnx_adapter import stamp

    made = runtime.AdapterFormat()
    made.set_model_version(stamp(WEIGHTS))
    made.set_parameters(
        {"x.lora_A": runtime.OrtValue.ortvalue_from_numpy(np.ones((2, 2), np.float32))}
    )
    path = tmp_path / "x.onnx_adapter"
    made.export_adapter(str(path))
    check = FORMATS["onnx"].adapter
    check(path, WEIGHTS, "n")
    check(path, None, "n")
    with pytest.raises(InputError, match="made for another backbone than n; export it again"):
        check(path, "e" * 64, "n")


def test_importing_the_table_loads_no_engine() -> None:
    import subprocess
    import sys

    script = (
        "import sys, tel_edge.runtime.bundles.bundle, tel_edge.runtime.engines.with_onnx;"
        "heavy = {'numpy', 'onnxruntime', 'onnx', 'llama_cpp', 'tokenizers', 'torch'};"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert formats.WEIGHTS == "tel_edge.backbone.weights"
