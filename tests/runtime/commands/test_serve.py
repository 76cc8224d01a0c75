"""`tel-serve` from its arguments to its end, with an engine's process that opens no model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest

for name in ("starlette", "uvicorn", "msgspec", "prometheus_client"):
    pytest.importorskip(name)
httpx = pytest.importorskip("httpx")

from tel_edge.runtime.commands import serve  # noqa: E402

CODE = """
import test_front
from tel_edge.runtime.serving import link
link.Link.__init__.__defaults__ = (test_front.start,)
from tel_edge.runtime.commands.serve import main
main()
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    fake.bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def started(bundle: Path, *argv: str) -> tuple[subprocess.Popen[str], str]:
    """Start the command and return it with the address that it prints."""
    folders = [str(Path(fake.__file__).parent), str(Path(__file__).parents[1] / "serving")]
    path = os.pathsep.join([*folders, *filter(None, sys.path)])
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, "--bundle", str(bundle), "--port", "0", *argv],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("tel-serve: nano-Q4_K_M.gguf at http"), process.communicate()
    return process, line.split()[-1]


def asked(address: str, text: str) -> Any:
    row = {"question": text, "choices": ["w", "x", "y", "z"], "category": "oranbench"}
    request = urllib.request.Request(f"{address}/v1/answer", json.dumps(row).encode())
    with urllib.request.urlopen(request, timeout=20) as reply:
        return json.load(reply)


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_answers_and_ends_in_order(number: signal.Signals, bundle: Path) -> None:
    process, address = started(bundle)
    assert asked(address, "gold 3")["index"] == 3
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "")
    assert err.splitlines()[-1] == "stopped: all that waited was answered"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_the_engines_process_ends_with_a_front_that_was_killed(bundle: Path) -> None:
    process, address = started(bundle)
    [engine] = children(process.pid)
    asked(address, "gold 1")
    process.kill()
    process.communicate(timeout=10)
    until = time.monotonic() + 2
    while Path(f"/proc/{engine}").exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not Path(f"/proc/{engine}").exists()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl for a certificate")
def test_with_keys_over_tls(bundle: Path, tmp_path: Path) -> None:
    cert, own, keys = (tmp_path / name for name in ("cert.pem", "key.pem", "keys"))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", own, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    keys.write_text("rapp:0123456789abcdef\n")
    keys.chmod(0o600)
    tls = ["--tls-cert", str(cert), "--tls-key", str(own)]
    process, address = started(bundle, "--keys", str(keys), *tls)
    assert address.startswith("https://127.0.0.1:")
    with httpx.Client(verify=ssl.create_default_context(cafile=str(cert))) as client:
        assert client.get(f"{address}/livez").status_code == 200
        assert client.get(f"{address}/v1/models").status_code == 401
        named = {"authorization": "Bearer 0123456789abcdef"}
        assert client.get(f"{address}/v1/models", headers=named).status_code == 200
    process.terminate()
    assert process.wait(20) == 0


def test_what_only_its_own_user_may_ask(bundle: Path, tmp_path: Path) -> None:
    later = tmp_path / "later"
    fake.bundle(later, adapters=("oranbench", "teleqna"))
    path = tmp_path / "admin"
    process, address = started(bundle, "--admin", str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as owner:
        before = owner.get("http://x/status").json()["engine"]["bundle"]
        made = owner.post("http://x/reload", json={"bundle": str(later)})
        assert made.status_code == 200, made.text
        assert made.json()["bundle"] == asked(address, "gold 1")["bundle"] != before
        assert owner.post("http://x/reload", json={"bundle": "nowhere"}).status_code == 400
        assert owner.post("http://x/rollback").json()["bundle"] == before
        assert owner.post("http://x/rollback").status_code == 409
        assert owner.post("http://x/drain").status_code == 200
    # Not over HTTP.
    assert process.wait(20) == 0
    assert not path.exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0: for other machines --keys"),
        (["--tls-cert", "x"], "--tls-cert and --tls-key go together"),
        (["--tls-cert", "x", "--tls-key", "y"], "--tls-cert x, --tls-key y"),
        (["--keys", "nowhere"], "--keys nowhere"),
        (["--bundle", "nowhere"], "nowhere"),
        (["--port", "70000"], "argument --port"),
    ],
)
def test_what_is_refused(
    argv: list[str], said: str, bundle: Path, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, err = run_command(serve.parser(), serve.work, "--bundle", str(bundle), *argv)
    assert (code, out) == (2, "")
    assert said in err


def test_the_front_loads_neither_numpy_nor_an_engine() -> None:
    code = (
        "import sys, tel_edge.runtime.commands.serve, tel_edge.runtime.serving.front, "
        "tel_edge.runtime.serving.link; "
        "print([m for m in ('numpy', 'llama_cpp', 'onnxruntime') if m in sys.modules])"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout == "[]\n"
