"""Which distribution an engine is from: one package can come from several."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tel_edge.runtime.bundles.formats import FORMATS
from tel_edge.runtime.device import profile

INIT = '"""Something else first."""\n__version__ = "1.9.0"\n'


def package(site: Path, name: str, *distributions: str) -> None:
    """Put a package into a folder for packages, and what the distributions say of it."""
    (site / name).mkdir(parents=True)
    (site / name / "__init__.py").write_text(INIT)
    for text in distributions:
        called, version = text.split()
        info = site / f"{called.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {called}\nVersion: {version}")
        record = f"{name}/__init__.py,sha256=x,1\n{name}/core.so,sha256={called},1\n"
        (info / "RECORD").write_text(record)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for packages that comes before all others."""
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("other", ["onnxruntime-gpu", "onnxruntime-openvino", "ort-vendor"])
def test_another_distribution_of_an_engine_has_its_version(site: Path, other: str) -> None:
    package(site, "onnxruntime", f"{other} 1.23.2")
    assert FORMATS["onnx"].version() == f"{other} 1.23.2"
    assert profile.engine("onnx").startswith(f"{other} 1.23.2, build ")


def test_an_upgrade_of_another_distribution_is_another_engine(site: Path) -> None:
    package(site, "onnxruntime", "onnxruntime-gpu 1.23.2")
    before = profile.engine("onnx"), FORMATS["onnx"].version()
    (old,) = site.glob("*.dist-info")
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.24.0")
    old.rename(site / "onnxruntime_gpu-1.24.0.dist-info")
    assert profile.engine("onnx") != before[0]
    assert FORMATS["onnx"].version() == "onnxruntime-gpu 1.24.0"


def test_of_two_that_hold_one_package_both_are_named(site: Path) -> None:
    package(site, "onnxruntime", "onnxruntime-gpu 1.23.2", "onnxruntime 1.20.0")
    assert FORMATS["onnx"].version() == "onnxruntime 1.20.0 and onnxruntime-gpu 1.23.2"


def test_a_package_that_nobody_claims_says_its_version_itself(site: Path) -> None:
    package(site, "built_here")
    from tel_edge.runtime import versions

    assert versions.version("built_here", "built-here") == "built_here 1.9.0"
    assert "built_here" not in sys.modules
    (site / "built_here" / "__init__.py").write_text("")
    assert versions.version("built_here", "built-here") is None


def test_what_is_not_installed_has_no_version() -> None:
    from tel_edge.runtime import versions

    assert versions.version("no_such_package", "no-such-package") is None


def test_the_usual_distribution_is_spelled_as_it_always_was(site: Path) -> None:
    package(site, "llama_like", "llama_like 2.0")
    from tel_edge.runtime import versions

    assert versions.version("llama_like", "llama-like") == "llama-like 2.0"
