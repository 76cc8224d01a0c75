"""A folder that installs tel-edge without a network: `scripts/wheelhouse.py PLATFORM`.

PLATFORM is one of pip's, such as manylinux_2_28_aarch64 or linux_x86_64. What the index has as
wheels for it is fetched so. llama-cpp-python is there as source alone: it comes with all that
compiling it needs or, with --compile, as a wheel that is compiled here for machines like this one.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Of requirements the ones that no index has as wheels.
SOURCES = ("llama-cpp-python",)
# What scikit-build-core asks for beside what the source says, where the system has none.
TOOLS = ("cmake>=3.21", "ninja>=1.5")
# The oldest glibc that wheels are made for; a platform may be any later one.
OLDEST, USUAL = 17, 28
FLAGS = {
    "any processor": "-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF",
    "Jetson Orin": "-DGGML_CUDA=ON -DGGML_NATIVE=OFF -DCMAKE_CUDA_ARCHITECTURES=87",
    "Jetson Thor": "-DGGML_CUDA=ON -DGGML_NATIVE=OFF -DCMAKE_CUDA_ARCHITECTURES=110",
}
README = """tel-edge {version} for {platform}, Python {python}: {extras}

Install without a network, from this folder:

    python{python} -m venv ENV
    ENV/bin/pip install --no-index --find-links . "tel-edge[{extras}]"
"""
COMPILING = """
llama-cpp-python is here as source: a C++ compiler is needed (Debian, Ubuntu: apt install g++ make),
and 4 to 8 minutes on two fast cores, an hour on a small board. cmake and ninja are in this folder.
For others than the processor of the machine that compiles, set before pip:

{flags}
CUDA's compiler is part of JetPack (nvcc; PATH=/usr/local/cuda/bin:$PATH). What was compiled once
can be had as a wheel for all devices of a kind:

    ENV/bin/pip wheel --no-index --find-links . -w . llama-cpp-python
"""


def name_of(requirement: str) -> str:
    """Return the package of a requirement."""
    return re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0].lower()


def requirements(extras: Iterable[str]) -> list[str]:
    """Return what pyproject.toml lists for the runtime with these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = project["optional-dependencies"]
    for extra in extras:
        if extra not in known:
            raise SystemExit(f"wheelhouse: no extra {extra!r}; there are: {' '.join(known)}")
    return [*project["dependencies"], *(one for extra in extras for one in known[extra])]


def tags(name: str) -> list[str]:
    """Return the platform and the older ones whose wheels run there too."""
    if found := re.fullmatch(r"(?:manylinux_2_(\d+)|linux)_(\w+)", name):
        newest, arch = int(found[1] or USUAL), found[2]
        made = [f"manylinux_2_{minor}_{arch}" for minor in range(newest, OLDEST - 1, -1)]
        return [*made, f"manylinux2014_{arch}", f"linux_{arch}"]
    return [name]


def only(names: Sequence[str], python: str) -> list[str]:
    """Return pip's options for wheels of other machines than this one."""
    abi = f"cp{python.replace('.', '')}"
    options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for one in (abi, "abi3", "none"):
        options += ["--abi", one]
    for one in names:
        options += ["--platform", one]
    return options


def said_by(source: Path) -> tuple[list[str], list[str]]:
    """Return what a source distribution needs to run and to be built."""
    with tarfile.open(source) as archive:
        top = archive.getnames()[0].split("/")[0]

        def text(name: str) -> str:
            file = archive.extractfile(f"{top}/{name}")
            assert file
            return file.read().decode("utf-8")

        head = HeaderParser().parsestr(text("PKG-INFO"))
        needs = [one for one in head.get_all("Requires-Dist", []) if "extra ==" not in one]
        build = tomllib.loads(text("pyproject.toml"))["build-system"]["requires"]
    return needs, build


def pip(*argv: str | Path, **more: str) -> None:
    """Run pip; its own words are the error."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *map(str, argv)], env={**os.environ, **more}, check=False)
    if done.returncode:
        raise SystemExit(f"wheelhouse: pip {argv[0]} failed")


def project_wheel(out: Path) -> Path:
    """Build the project's wheel, of no other files than those that are there now."""
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    for old in out.glob("tel_edge-*.whl"):
        old.unlink()
    pip("wheel", "--no-deps", "--wheel-dir", out, ROOT)
    return next(out.glob("tel_edge-*.whl"))


def made(name: str, python: str, extras: Sequence[str], out: Path, compiled: bool) -> None:
    """Fill the folder and see that it is whole."""
    out.mkdir(parents=True, exist_ok=True)
    wheel = project_wheel(out)
    wanted = requirements(extras)
    sources = [one for one in wanted if name_of(one) in SOURCES]
    plain = [one for one in wanted if one not in sources]
    foreign = only(tags(name), python)
    for source in sources:
        _, _, version = source.partition("==")
        if compiled:
            flags = os.environ.get("CMAKE_ARGS", FLAGS["any processor"])
            pip("wheel", "--no-deps", "--wheel-dir", out, source, CMAKE_ARGS=flags)
            plain.append(source)
            continue
        pip("download", "--no-deps", "--no-binary=:all:", "--dest", out, source)
        file = next(out.glob(f"{name_of(source).replace('-', '_')}-{version}*.tar.gz"))
        needs, build = said_by(file)
        plain += [*needs, *build, *TOOLS]
    pip("download", *foreign, "--find-links", out, "--dest", out, *plain)
    with tempfile.TemporaryDirectory() as folder:
        # From the folder alone, all over again.
        pip("download", *foreign, "--no-index", "--find-links", out, "--dest", folder, *plain)
        pip(
            "download", "--no-deps", "--no-index", "--find-links", out, "--dest", folder, "tel-edge"
        )
    text = README.format(
        version=wheel.name.split("-")[1], platform=name, python=python, extras=",".join(extras)
    )
    if sources and not compiled:
        lines = (f'    {device:<15} export CMAKE_ARGS="{of}"\n' for device, of in FLAGS.items())
        text += COMPILING.format(flags="".join(lines))
    (out / "README.txt").write_text(text, encoding="utf-8")
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    print(f"{out}: {len(list(out.iterdir()))} files, {size:.0f} MB; how to install: README.txt")


def main() -> None:
    """Read the arguments and fill the folder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("platform", help="such as linux_x86_64 or manylinux_2_28_aarch64")
    parser.add_argument("--python", default="3.12", help="of the device (%(default)s)")
    parser.add_argument("--extras", default="llama,onnx,serve,sign", help="(%(default)s)")
    parser.add_argument("--out", type=Path, help="(wheelhouse/PLATFORM)")
    parser.add_argument(
        "--compile", action="store_true", help="llama.cpp here, for machines like this one"
    )
    args = parser.parse_args()
    here = f"{platform.system()}_{platform.machine()}".lower()
    if args.compile and not any(tag == here for tag in tags(args.platform)):
        raise SystemExit(f"wheelhouse: --compile makes wheels for {here} alone")
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if args.compile and args.python != own:
        raise SystemExit(
            f"wheelhouse: --compile makes wheels for Python {own} alone: --python {own}"
        )
    out = args.out or ROOT / "wheelhouse" / args.platform
    made(args.platform, args.python, args.extras.split(","), out.absolute(), args.compile)


if __name__ == "__main__":
    main()
