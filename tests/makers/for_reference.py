"""What the tests of reference share."""

from __future__ import annotations

import argparse
import json
import math
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest

from tel_edge.eval.commands import evaluate
from tel_edge.eval.references import client, endpoint, reference
from tel_edge.eval.scoring.records import Summary, read_summary
from tel_edge.runtime import cli

Command = Callable[..., tuple[int, str, str]]
Body = dict[str, Any]


class Server(ThreadingHTTPServer):
    """A server of `models` whose shape of replies is `shape`; what goes wrong is in `before`.

    It knows the right answers of `fake.rows`: 0.6 is given to the right letter after a space, 0.1
    to it without one, 0.05 to A and 0.01 to a word; other letters are not listed.
    """

    daemon_threads = True

    def __init__(self, shape: str = "texts", models: tuple[str, ...] = ("org/Big-8B",)) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.shape, self.models = shape, models
        self.asked: list[tuple[str, Body]] = []
        self.keys: set[str | None] = set()
        self.most = 100
        # Returns (status, text, headers) to send instead of a reply, or None.
        self.before: Callable[[int], tuple[int, str, dict[str, str]] | None] = lambda _: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.keys.add(self.headers.get("Authorization"))
        self._send(200, json.dumps({"data": [{"id": name} for name in self.server.models]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server, path = self.server, self.path.removeprefix("/v1")
        server.asked.append((path, body))
        server.keys.add(self.headers.get("Authorization"))
        if instead := server.before(len(server.asked)):
            return self._send(*instead)
        status, reply = answer(server, path, body)
        self._send(status, json.dumps(reply))

    def _send(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(text)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())


def answer(server: Server, path: str, body: Body) -> tuple[int, Body]:
    chat = path == endpoint.CHAT
    if server.shape == "chat" and not chat:
        return 404, {"error": {"message": "no such path"}}
    if "chat_template_kwargs" in body and server.shape != "chat":
        return 400, {"error": {"message": "unknown field chat_template_kwargs"}}
    if chat and server.shape == "no chat":
        return 404, {"error": {"message": "no such path"}}
    prompt = body["messages"][0]["content"] if chat else body["prompt"]
    listed = body.get("top_logprobs") if chat else body.get("logprobs")
    if listed and listed > server.most:
        return 400, {"error": {"message": f"at most {server.most} logprobs"}}
    if len(prompt) > 2000:
        return 400, {"error": {"message": "This model's maximum context length is 300 tokens."}}
    found = re.search(r"gold (\d+)", prompt)
    letter = "ABCD"[int(found[1]) if found else 0]
    shares = [(f" {letter}", 0.6), (letter, 0.1), (" A", 0.05), (" The", 0.01)]
    if letter == "A":
        shares.pop(2)
    if server.shape == "words":
        shares = [(" The", 0.6), (" I", 0.2)]
    rows = [{"token": text, "logprob": math.log(share)} for text, share in shares]
    logprobs: Any = {"top_logprobs": [{row["token"]: row["logprob"] for row in rows}]}
    if chat or server.shape == "content":
        logprobs = {"content": [{**rows[0], "top_logprobs": rows}]}
    text = f"ANSWER: {letter}" if body["temperature"] == 0 else f"ANSWER: {'AB'[body['seed'] % 2]}"
    choice: Body = {"message": {"content": text}} if chat else {"text": text}
    if listed and server.shape != "silent":
        choice["logprobs"] = logprobs
    return 200, {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


@contextmanager
def serving(*given: Any) -> Iterator[Server]:
    with Server(*given) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that wait a moment only, and no key of this machine's."""
    monkeypatch.setattr(client, "Client", partial(client.Client, timeout=5.0, pause=0.001))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("TEL_API_KEY", raising=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    fake.dataset(tmp_path / "data", "oranbench", fake.rows(60))
    return tmp_path


@pytest.fixture
def ask(home: Path, run_command: Command) -> Command:
    def work(args: argparse.Namespace) -> dict[str, Any]:
        return reference.work(args, evaluate.sources(args), isolated=False)

    def parser() -> cli.Parser:
        made = evaluate.parser()
        if "--reference" not in made.format_help():
            reference.add_options(made)
        return made

    def made(where: Any, *argv: str, quiet: bool = True) -> tuple[int, str, str]:
        common = ["--workspace", str(home / "w"), "--dataset", str(home / "data")]
        common += ["--category", "oranbench", "--reference", str(where)]
        return run_command(parser(), work, *common, *argv, *["--quiet"] * quiet)

    return made


def out(home: Path, name: str = "Big-8B", variant: str = "endpoint") -> Path:
    return home / "w" / "results" / name / f"reference-{variant}" / "oranbench.jsonl"


def summary(home: Path, *of: str) -> Summary:
    return read_summary(out(home, *of).with_suffix(".json"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random model as a folder and as a GGUF file."""
    import export_models as models

    from tel_edge.export.commands import export
    from tel_edge.runtime import cli as commands

    root = tmp_path_factory.mktemp("model")
    folder = models.backbone(root / "Large-2L", "llama", max_position_embeddings=512)
    argv = ["--backbone", str(folder), "--quant", "F32", "--out", str(root / "bundle")]
    argv += ["--workspace", str(root), "--quiet", "--no-verify"]
    assert commands.run(export.parser(), export.work, argv) == 0
    [file] = (root / "bundle").glob("*.gguf")
    return folder, file.rename(root / "Large-2L-F32.gguf")
