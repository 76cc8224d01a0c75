"""The wheel: all that the source has and nothing that is not a part of it; and alone it answers."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

FLOORS = ("runtime", "eval", "train", "export")
spec = importlib.util.spec_from_file_location("wheelhouse", ROOT / "scripts" / "wheelhouse.py")
assert spec
assert spec.loader
wheelhouse: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(wheelhouse)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built of a copy."""
    home = tmp_path_factory.mktemp("wheel")
    names = ("pyproject.toml", "README.md", "LICENSE", "src", *FLOORS)
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, home / "source" / name, symlinks=True, ignore=_ignored)
        else:
            (home / "source").mkdir(exist_ok=True)
            shutil.copy(ROOT / name, home / "source" / name)
    argv = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*argv, "--wheel-dir", home, home / "source"], check=True)
    [made] = home.glob("tel_edge-*.whl")
    return made


def _ignored(_: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "__pycache__" or name.endswith(".egg-info")]


def sources() -> set[str]:
    """The files of the package as the repository has them."""
    made = subprocess.run(
        ["git", "ls-files", "-z", "--", *FLOORS, "src/tel_edge"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    links = {f"src/tel_edge/{name}" for name in FLOORS}
    kept = (name for name in made if name and name not in links)
    return {f"tel_edge/{name.removeprefix('src/tel_edge/')}" for name in kept}


@pytest.mark.slow
def test_all_that_is_a_part_is_in_it_though_folders_are_links(wheel: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no repository to compare with")
    with zipfile.ZipFile(wheel) as archive:
        there = {name for name in archive.namelist() if not name.split("/")[0].endswith("-info")}
    assert there == sources()
    for name in (
        "tel_edge/py.typed", "tel_edge/tel_nano/model.safetensors",
        "tel_edge/runtime/serving/pages/page_files/page.html",
        "tel_edge/eval/benchmarks/other_fields.txt", "tel_edge/eval/care/phrases.json",
    ):  # fmt: skip
        assert name in there
    assert any(name.endswith(".tsv") for name in there)


@pytest.mark.slow
def test_commands_are_those_of_pyproject(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [file] = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        text = archive.read(file).decode()
    assert "tel-doctor = tel_edge.runtime.commands.doctor:main" in text
    assert "tel-serve = tel_edge.runtime.commands.serve:main" in text


@pytest.mark.slow
def test_a_device_with_the_wheel_and_llama_alone_answers(wheel: Path, tmp_path: Path) -> None:
    """Installed from what this environment has compiled already, beside the index."""
    pytest.importorskip("llama_cpp")
    env = {**os.environ, "TEL_PROFILE": str(tmp_path / "profile.json"),
           "TEL_CACHE": str(tmp_path / "cache"), "PYTHONPATH": ""}  # fmt: skip
    home = tmp_path / "home"
    export = [sys.executable, "-m", "tel_edge.export.commands.export", "--quiet"]
    made = {**os.environ, "TEL_PROFILE": os.devnull}
    subprocess.run([*export, "--out", str(home), "--quant", "Q8_0"], check=True, env=made)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    bin = tmp_path / "venv/bin"
    pip = [bin / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    cached = Path(env.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tel-edge/wheels"
    wheels = sorted(cached.glob("*/llama_cpp_python-*.whl"))
    more = [option for one in wheels for option in ("--find-links", one.parent)]
    subprocess.run([*pip, *more, f"{wheel}[llama]"], check=True)
    names = {
        row["name"]
        for row in json.loads(
            subprocess.run(
                [bin / "python", "-m", "pip", "list", "--format", "json"],
                check=True, capture_output=True,
            ).stdout
        )
    }  # fmt: skip
    assert not names & {"torch", "onnx", "transformers", "onnxruntime"}
    asked = ["--no-adapter", "--category", "oranbench", "--choice", "the SMO", "--choice", "a CU"]
    done = subprocess.run(
        [bin / "tel-run", "--bundle", home, *asked, "Who asks?"],
        check=True, capture_output=True, text=True, env=env,
    )  # fmt: skip
    assert json.loads(done.stdout)["answer"] in ("the SMO", "a CU")
    done = subprocess.run(
        [bin / "tel-doctor", "--bundle", home, "--json"],
        check=False, capture_output=True, text=True, env=env,
    )  # fmt: skip
    document = json.loads(done.stdout.splitlines()[-1])
    of = {check["name"]: check for check in document["checks"]}
    assert of["llama.cpp"]["verdict"] == "OK", of
    assert of["bundle"]["verdict"] == "OK", of


# What follows needs neither network nor compiler.


def test_a_platform_takes_the_wheels_of_older_ones() -> None:
    found = wheelhouse.tags("manylinux_2_20_aarch64")
    assert found[:2] == ["manylinux_2_20_aarch64", "manylinux_2_19_aarch64"]
    assert found[-3:] == ["manylinux_2_17_aarch64", "manylinux2014_aarch64", "linux_aarch64"]
    assert wheelhouse.tags("linux_x86_64")[0] == "manylinux_2_28_x86_64"
    assert wheelhouse.tags("win_amd64") == ["win_amd64"]


def test_what_the_device_needs_is_what_pyproject_lists() -> None:
    found = {wheelhouse.name_of(one) for one in wheelhouse.requirements(["llama", "serve"])}
    assert {"numpy", "tqdm", "filelock", "llama-cpp-python", "starlette", "uvicorn"} <= found
    assert "torch" not in found
    with pytest.raises(SystemExit, match="no extra 'nothing'"):
        wheelhouse.requirements(["nothing"])


def test_a_source_says_what_it_needs(tmp_path: Path) -> None:
    import io
    import tarfile

    head = "Name: x\nRequires-Dist: numpy>=1.20\nRequires-Dist: fastapi>=0.1; extra == 'server'\n"
    build = '[build-system]\nrequires = ["scikit-build-core[pyproject]>=0.9.2"]\n'
    with tarfile.open(tmp_path / "x-1.tar.gz", "w:gz") as archive:
        for name, text in (("PKG-INFO", head), ("pyproject.toml", build)):
            info = tarfile.TarInfo(f"x-1/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    assert wheelhouse.said_by(tmp_path / "x-1.tar.gz") == (
        ["numpy>=1.20"], ["scikit-build-core[pyproject]>=0.9.2"]
    )  # fmt: skip


def test_images_are_made_of_the_wheel_by_a_user_of_their_own() -> None:
    for name in ("Containerfile", "Containerfile.l4t"):
        text = (ROOT / "deploy" / name).read_text()
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        stages = [line for line in lines if line.startswith("FROM")]
        assert len(stages) == 2
        assert stages[0].endswith("AS build")
        last = "\n".join(lines[lines.index(stages[1]) :])
        assert "\nUSER 10001" in last
        assert 'ENTRYPOINT ["tel-serve"]' in last
        assert "g++" not in last, "compilers stay in the first stage"
        assert "libgomp1" in last
        # No key, and nothing that belongs to one registry.
        assert not any("/" in line.split()[1] for line in stages)
    assert (ROOT / ".dockerignore").read_text().splitlines()[-2:] == ["*", "!dist/"]


@pytest.mark.parametrize("compiled", [False, True])
def test_the_folder_has_source_and_its_tools_or_a_compiled_wheel(
    compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []

    def pip(*argv: str | Path, **more: str) -> None:
        asked.append((*map(str, argv), *(f"{name}={value}" for name, value in more.items())))

    monkeypatch.setattr(wheelhouse, "pip", pip)
    monkeypatch.setattr(wheelhouse, "project_wheel", lambda out: out / "tel_edge-0.1.0-py3-x.whl")
    monkeypatch.setattr(wheelhouse, "said_by", lambda _: (["numpy>=1.20"], ["scikit-build-core"]))
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    (tmp_path / "llama_cpp_python-0.3.36.tar.gz").touch()
    wheelhouse.made("manylinux_2_28_aarch64", "3.12", ["llama"], tmp_path, compiled)
    first, wheels, again, project = asked
    readme = (tmp_path / "README.txt").read_text()
    if compiled:
        assert first[0] == "wheel"
        assert first[-1] == "CMAKE_ARGS=-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF"
        assert "CMAKE_CUDA_ARCHITECTURES" not in readme
    else:
        assert first[:3] == ("download", "--no-deps", "--no-binary=:all:")
        assert {"cmake>=3.21", "ninja>=1.5", "scikit-build-core"} <= {*wheels}
        for architecture in ("=87", "=110"):
            assert f"CMAKE_CUDA_ARCHITECTURES{architecture}" in readme
    assert wheels[wheels.index("--platform") + 1] == "manylinux_2_28_aarch64"
    assert "cp312" in wheels
    # And all of it once more, from the folder alone.
    assert "--no-index" in again
    assert "--no-index" in project
    assert '--no-index --find-links . "tel-edge[llama]"' in readme
