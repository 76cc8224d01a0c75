"""A device without a network: from the wheelhouse alone it answers out of a signed bundle."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from for_shipping import keys

# A namespace with no interface but its own loopback, which is down.
ALONE = ["unshare", "--net", "--map-root-user"]


def alone() -> list[str]:
    """What runs a command without a network, or a skip where nobody may do that."""
    if not shutil.which(ALONE[0]) or subprocess.run([*ALONE, "true"], check=False).returncode:
        pytest.skip("no network namespace can be made here")
    reach = "import socket; socket.create_connection(('127.0.0.1', 9), 1)"
    done = subprocess.run(
        [*ALONE, sys.executable, "-c", reach], check=False, capture_output=True, text=True
    )
    assert "unreachable" in done.stderr
    return ALONE


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="llama.cpp is compiled, with c++")
def test_a_device_without_a_network_answers_out_of_a_signed_bundle(tmp_path: Path) -> None:
    without = alone()
    house, out = tmp_path / "house", tmp_path / "out"
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    subprocess.run(
        [sys.executable, ROOT / "scripts/wheelhouse.py", f"linux_{platform.machine()}",
         "--python", own, "--extras", "llama,sign", "--out", house],
        check=True,
    )  # fmt: skip
    assert list(house.glob("llama_cpp_python-*.tar.gz")), "compiled on the device"
    private, public = keys(tmp_path)
    env = {**os.environ, "TEL_PROFILE": os.devnull}
    export = [sys.executable, "-m", "tel_edge.export.commands.export", "--quiet"]
    work = tmp_path / "work"
    subprocess.run([*export, "--out", work, "--quant", "Q8_0"], check=True, env=env)
    subprocess.run([*export, "--out", work, "--deploy", out], check=True, env=env)
    version = out / (out / "latest").read_text().strip()
    sign = [sys.executable, "-m", "tel_edge.runtime.commands.bundle", "sign", version]
    subprocess.run([*sign, "--key", private], check=True)

    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    bin, home = tmp_path / "venv/bin", tmp_path / "tel"
    device = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CMAKE_ARGS": "-DLLAVA_BUILD=OFF",
              "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count()),
              "TEL_BUNDLE_KEY": str(public)}  # fmt: skip

    def there(*argv: str | Path) -> str:
        return subprocess.run(
            [*without, bin / argv[0], *argv[1:]], check=True, env=device, text=True,
            stdout=subprocess.PIPE,
        ).stdout  # fmt: skip

    there("pip", "install", "--quiet", "--no-index", "--find-links", house, "tel-edge[llama,sign]")
    names = {row["name"] for row in json.loads(there("pip", "list", "--format", "json"))}
    assert "cryptography" in names
    assert not names & {"torch", "transformers", "onnx", "onnxruntime", "pytest"}
    digest = there("tel-bundle", "pull", out, home).strip()
    there("tel-bundle", "activate", home, digest)
    said = there("tel-bundle", "verify", home / "current")
    assert said.strip().endswith(f"signed by the key of {public}")
    asked = ["--category", "oranbench", "--no-adapter", "--choice", "the SMO", "--choice", "a CU"]
    answer = json.loads(there("tel-run", "--bundle", home / "current", *asked, "Who asks?"))
    assert answer["answer"] in ("the SMO", "a CU")
