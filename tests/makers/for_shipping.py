"""What the tests of versions share: bundles whose adapters have some size, a server, keys."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fake_engine as fake

from tel_edge.runtime.bundles import manifest
from tel_edge.runtime.bundles.manifest import describe
from tel_edge.runtime.bundles.shipping import store

# Bytes of an adapter, beside which what is said of it is little.
ADAPTER = 1_000_000


def bundle(folder: Path, text: str = "x", size: int = ADAPTER) -> Path:
    """Write a bundle with two adapters; that of oranbench is made of `text`."""
    fake.bundle(folder, adapters=("oranbench", "teleqna"), quants=("Q4_K_M",))
    made = manifest.read(folder)
    for category, content in (("oranbench", text), ("teleqna", "t")):
        path = folder / f"nano-{category}-LoRA.gguf"
        keys = {"general__type": "adapter", "tel_edge__backbone__weights": fake.WEIGHTS}
        path.write_bytes(
            fake.gguf(**keys, tel_edge__category=category, general__name=content * size)
        )
        known = {"backbone": fake.WEIGHTS, "category": category, "parity": fake.PARITY}
        made = made.with_file(
            describe(folder, path, kind="adapter", format="gguf", quant="F16", rank=8, **known)
        )
    manifest.write(made, folder)
    return folder


def versions(home: Path, *texts: str, size: int = 1000) -> list[Path]:
    """Make a store with a version for each adapter of oranbench; return the versions' folders."""
    work = home.with_name(f"{home.name}-work")
    return [store.deploy(bundle(work, text, size), home).folder for text in texts]


def keys(folder: Path, name: str = "key") -> tuple[Path, Path]:
    """Write a private and a public key of P-256."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    made = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        made.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


class Handler(SimpleHTTPRequestHandler):
    """Python's own server of files, which also can begin within one, and counts what it sends."""

    def __init__(self, *of: Any, server_state: dict[str, Any], **more: Any) -> None:
        self.state = server_state
        super().__init__(*of, **more)

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.state["asked"].append(self.path)
        if to := self.state.get("redirect"):
            self.send_response(302)
            self.send_header("Location", to + self.path)
            self.end_headers()
            return
        place = Path(self.translate_path(self.path))
        if not place.is_file():
            self.send_error(404)
            return
        content = place.read_bytes()
        first = 0
        if (asked := self.headers.get("Range")) and self.state.get("ranges", True):
            first = int(asked.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        rest = content[first:]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        # Half of a large file, where the connection is to end early.
        cut = self.state.pop("cut", None) if len(rest) > 100_000 else None
        rest = rest[: len(rest) // 2] if cut else rest
        self.state["sent"] += len(rest)
        self.wfile.write(rest)
        if cut:
            self.close_connection = True


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Serve a folder on this machine; give its URL, and what was asked and sent."""
    state: dict[str, Any] = {"asked": [], "sent": 0}
    handler = partial(Handler, directory=str(folder), server_state=state)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", state
        finally:
            server.shutdown()
            thread.join()
