"""`tel-serve` from its arguments to its end, with an engine's process that opens no model."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
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


def launched(bundle: Path, *argv: str, code: str = CODE) -> subprocess.Popen[str]:
    """Start the command."""
    folders = [str(Path(fake.__file__).parent), str(Path(__file__).parents[1] / "serving")]
    path = os.pathsep.join([*folders, *filter(None, sys.path)])
    return subprocess.Popen(
        [sys.executable, "-c", code, "--bundle", str(bundle), "--port", "0", *argv],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


def started(bundle: Path, *argv: str) -> tuple[subprocess.Popen[str], str]:
    """Start the command and return it with the address that it prints."""
    process = launched(bundle, *argv)
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


# An engine's process that opens its bundle for ever.
LOADING = CODE.replace(
    "import test_front\n",
    "import test_front\ntest_front.CODE = 'import time; print(1, flush=True); time.sleep(60)'\n",
)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_a_signal_while_it_loads_ends_it_at_once(bundle: Path) -> None:
    process = launched(bundle, code=LOADING)
    assert process.stdout is not None
    # The engine's process says that it is there.
    assert process.stdout.readline() == "1\n"
    [engine] = children(process.pid)
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 0
    assert not Path(f"/proc/{engine}").exists()


def test_a_second_signal_does_not_wait(bundle: Path) -> None:
    process, address = started(bundle)
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as client:
        row = {"question": "sleep 20000", "choices": ["w", "x"], "category": "oranbench"}
        body = json.dumps(row).encode()
        client.sendall(b"POST /v1/answer HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
                       + str(len(body)).encode() + b"\r\n\r\n" + body)  # fmt: skip
        time.sleep(0.3)
        process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        began = time.monotonic()
        process.terminate()
        process.wait(10)
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("path", ["/v1/answer", "/v1/chat/completions"])
def test_who_leaves_frees_its_place(path: str, bundle: Path) -> None:
    """A question that runs is computed to its end; nothing of those behind it is."""
    process, address = started(bundle)
    port = int(address.rpartition(":")[2])
    slow = {"question": "sleep 600 gold 1", "choices": ["w", "x"], "category": "oranbench"}
    said = [{"role": "user", "content": "sleep 30000"}]
    left = {"messages": said, "model": "oranbench", "guided_choice": ["a", "b"]}
    row = {**slow, "question": "sleep 30000"} if path == "/v1/answer" else left
    with httpx.Client(base_url=address, timeout=10) as client:
        running = threading.Thread(target=lambda: client.post("/v1/answer", json=slow))
        running.start()
        time.sleep(0.2)
        with socket.create_connection(("127.0.0.1", port)) as other:
            body = json.dumps(row).encode()
            other.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\n"
                          f"Content-Length: {len(body)}\r\n\r\n".encode() + body)  # fmt: skip
            time.sleep(0.1)
        running.join()
        assert asked(address, "gold 2")["index"] == 2
    process.terminate()
    assert process.wait(10) == 0


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


def test_a_port_in_use_is_one_line(bundle: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        argv = ["--port", str(taken.getsockname()[1]), "--admin", str(tmp_path / "admin")]
        process = launched(bundle, *argv[:1], argv[1], *argv[2:])
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "in use" in err
    assert not (tmp_path / "admin").exists()


def test_a_client_that_does_not_read_is_not_waited_for(bundle: Path) -> None:
    process, address = started(bundle)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(address.rpartition(":")[2])))
        body = json.dumps({"tokens": [65] * 60_000}).encode()
        for _ in range(12):
            client.sendall(b"POST /detokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
                           + str(len(body)).encode() + b"\r\n\r\n" + body)  # fmt: skip
            time.sleep(0.05)
        process.terminate()
        time.sleep(0.3)
        process.terminate()
        # Where the first one was enough, the second may meet a process that is about to end.
        assert process.wait(5) in (0, -signal.SIGTERM)


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
        # The same one again is nothing to go back to.
        assert owner.post("http://x/reload", json={"bundle": str(later)}).status_code == 200
        for wrong in ("nowhere", "x" * 5000, "\0", ""):
            assert owner.post("http://x/reload", json={"bundle": wrong}).status_code == 400
        assert owner.post("http://x/rollback").json()["bundle"] == before
        # What a link led to is what answers, and what is started again.
        (tmp_path / "current").symlink_to("later")
        made = owner.post("http://x/reload", json={"bundle": str(tmp_path / "current")})
        digest = hashlib.sha256((later / "manifest.json").read_bytes()).hexdigest()
        assert made.json() == {"bundle": digest, "folder": str(later)}
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


def test_replies_wait_for_no_acknowledgement() -> None:
    """Else each reply in two pieces takes the 40 ms of a client that delays its own."""
    with (
        serve._listening("127.0.0.1", 0) as public,
        socket.create_connection(public.getsockname()),
        public.accept()[0] as link,
    ):
        assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
