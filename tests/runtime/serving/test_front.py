"""The HTTP side over a real engine's process with an engine that needs no model."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest

pytest.importorskip("starlette")
pytest.importorskip("msgspec")
pytest.importorskip("prometheus_client")
httpx = pytest.importorskip("httpx")

from tel_edge.runtime.device import child  # noqa: E402
from tel_edge.runtime.errors import InputError  # noqa: E402
from tel_edge.runtime.serving import http  # noqa: E402
from tel_edge.runtime.serving.front import Front  # noqa: E402
from tel_edge.runtime.serving.link import Link  # noqa: E402
from tel_edge.runtime.serving.metrics import Metrics  # noqa: E402

CHOICES = ["w", "x", "y", "z"]
# An engine that takes as long as a question says, and dies where one says so.
CODE = """
import json, os, re, socket, sys, time
from tel_edge.runtime.device.child import end_with_parent
end_with_parent()
import fake_engine as fake
from tel_edge.runtime.serving.process import serve

def rule(prompt, adapter, labels):
    if found := re.search(r"sleep (\\d+)", prompt):
        time.sleep(int(found[1]) / 1000)
    if "die" in prompt:
        os._exit(139)
    return fake.gold(prompt, adapter, labels)

pipe = socket.socket(fileno=int(sys.argv[1]))
sys.exit(serve(pipe, json.loads(sys.argv[2]), fake.FakeOpener(rule=rule, context=2000)))
"""


def start(fd: int, options: str) -> subprocess.Popen[Any]:
    makers = str(Path(fake.__file__).parent)
    path = os.pathsep.join([makers, *filter(None, sys.path)])
    return child.started(
        ["-c", CODE, str(fd), options], pass_fds=(fd,), env={**os.environ, "PYTHONPATH": path}
    )


class Service:
    """A front, its link and a client for it."""

    def __init__(self, folder: Path) -> None:
        self.said: list[str] = []
        options = {
            **{"bundle": str(folder), "quant": None, "format": None, "bare": False},
            **{"threshold": None, "engine": {}, "how": {"k": 4}, "seconds": 60.0},
        }
        metrics = Metrics()
        self.link = Link(options, self.said.append, start, refused=metrics.refused)
        self.front = Front(self.link, metrics)
        transport = httpx.ASGITransport(app=self.front.app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30)

    async def ready(self) -> None:
        while self.link.info is None:
            await asyncio.sleep(0.01)

    async def ask(self, text: str = "gold 2", **of: Any) -> Any:
        row = {"question": text, "choices": CHOICES, "category": "oranbench", **of}
        return await self.client.post("/v1/answer", json=row)


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Service]:
    service = Service(folder)
    task = asyncio.ensure_future(service.link.run())
    try:
        await asyncio.wait_for(service.ready(), 20)
        yield service
    finally:
        service.link.kill()
        await asyncio.wait_for(task, 20)
        await service.client.aclose()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    fake.bundle(tmp_path / "bundle", adapters=("oranbench", "teleqna"))
    return tmp_path / "bundle"


def served(bundle: Path, work: Callable[[Service], Coroutine[Any, Any, None]]) -> None:
    async def all_of_it() -> None:
        async with running(bundle) as service:
            await work(service)

    asyncio.run(all_of_it())


def test_answers_models_health_and_metrics(bundle: Path) -> None:
    async def work(service: Service) -> None:
        answer = (await service.ask(id="q1")).json()
        assert (answer["id"], answer["answer"], answer["adapter"]) == ("q1", "y", "oranbench")
        assert answer["bundle"] == service.link.info["bundle"]  # type: ignore[index]
        assert len(answer["adapter_digest"]) == 64
        models = (await service.client.get("/v1/models")).json()["data"]
        assert [one["id"] for one in models] == ["tel-nano", "oranbench", "teleqna"]
        for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready",
                     "/ric/v1/health/alive", "/ric/v1/health/ready",
                     "/v2/models/oranbench/ready"):  # fmt: skip
            assert (await service.client.get(path)).status_code == 200, path
        assert (await service.client.get("/v2/models/gpt")).status_code == 404
        assert (await service.ask(model="none", category=None)).status_code == 404
        text = (await service.client.get("/metrics")).text
        assert 'tel_rejected_total{reason="model_not_found"} 1.0' in text
        assert 'tel_questions_total{category="oranbench"} 1.0' in text
        # By route: what a client puts in its place makes no row.
        assert "gpt" not in text

    served(bundle, work)


def test_several_at_a_time_in_their_order_each_with_its_own_error(bundle: Path) -> None:
    async def work(service: Service) -> None:
        rows = [{"question": f"gold {at % 4}", "choices": CHOICES, "category": "teleqna", "id": at}
                for at in range(40)]  # fmt: skip
        rows[7]["category"] = "srsranbench"
        made = (await service.client.post("/v1/answer", json={"questions": rows})).json()["answers"]
        assert [one["id"] for one in made] == list(range(40))
        assert made[7]["error"]["code"] == "model_not_found"
        assert all(one.get("index", at % 4) == at % 4 for at, one in enumerate(made))
        lines = b"\n".join(json.dumps(row).encode() for row in rows) + b"\n{bad\n"
        head = {"content-type": "application/x-ndjson"}
        reply = await service.client.post("/v1/answer", content=lines, headers=head)
        found = [json.loads(line) for line in reply.text.splitlines()]
        assert [one.get("id") for one in found] == [*range(40), None]
        assert "not JSON" in found[40]["error"]["message"]

    served(bundle, work)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b'{"question": "q", "modell": "x"}', 400, "modell"),
        (b'{"question": 1}', 400, "Expected `str`, got `int`"),
        (b'{"question": "q", "choices": ["a"], "category": "oranbench"}', 400, "choices"),
        (b'{"question": "q", "choices": ["a", "b"], "model": "gpt"}', 404, "no model 'gpt'"),
        (b'{"question": "q", "choices": ["a", "b"], "k": 0, "model": "teleqna"}', 400, "k 0"),
        (b'{"question": "q", "timeout_ms": 0}', 400, "timeout_ms 0"),
        (b'{"question": "q", "model": "a", "category": "b"}', 400, "both model and category"),
        (b" " * (1 + (1 << 20)), 413, "more than 1,048,576 bytes"),
    ],
)  # fmt: skip
def test_bad_bodies(body: bytes, status: int, said: str, bundle: Path) -> None:
    async def work(service: Service) -> None:
        reply = await service.client.post("/v1/answer", content=body)
        assert reply.status_code == status, reply.text
        assert said in reply.json()["error"]["message"]

    served(bundle, work)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [("ab", 1), (["ab", "cd"], 2), ([256, 97, 98], 1), ([[256, 97], [256, 98]], 2)],
)
def test_a_prompt_in_every_form(prompt: Any, texts: int, bundle: Path) -> None:
    async def work(service: Service) -> None:
        reply = await service.client.post("/v1/completions", json={"prompt": prompt})
        assert [one["text"] for one in reply.json()["choices"]] == ["Hard to say."] * texts
        mixed = await service.client.post("/v1/completions", json={"prompt": ["ab", 97]})
        assert mixed.status_code == 400
        assert "not some of each" in mixed.json()["error"]["message"]

    served(bundle, work)


def test_a_crash_costs_what_was_in_flight_and_nothing_later(bundle: Path) -> None:
    async def work(service: Service) -> None:
        died, other = await asyncio.gather(service.ask("die"), service.ask("gold 1"))
        assert died.status_code == 503
        assert died.json()["error"]["code"] == "engine_restarted"
        assert died.headers["retry-after"] == "1"
        assert other.status_code in (200, 503)
        await asyncio.wait_for(service.ready(), 20)
        assert (await service.ask("gold 3")).json()["index"] == 3
        assert service.link.restarts == 1
        assert "starting it again" in service.said[-1]

    served(bundle, work)


def test_a_killed_process_comes_back(bundle: Path) -> None:
    async def work(service: Service) -> None:
        slow = asyncio.ensure_future(service.ask("sleep 5000 gold 1"))
        await asyncio.sleep(0.2)
        process = service.link._process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        assert (await slow).status_code == 503
        await asyncio.wait_for(service.ready(), 20)
        assert (await service.ask()).status_code == 200

    served(bundle, work)


def test_draining_answers_what_waits(bundle: Path) -> None:
    async def work(service: Service) -> None:
        waiting = [asyncio.ensure_future(service.ask(f"sleep 50 gold {at}")) for at in range(4)]
        await asyncio.sleep(0.1)
        service.front.draining = True
        service.link.drain()
        assert [(await one).json()["index"] for one in waiting] == [0, 1, 2, 3]
        assert (await service.client.get("/readyz")).status_code == 503

    served(bundle, work)


def test_a_bundle_that_cannot_be_opened_ends_the_service(bundle: Path) -> None:
    (bundle / "nano-F16.gguf").write_bytes(b"GGUF")
    (bundle / "nano-Q4_K_M.gguf").write_bytes(b"GGUF")
    service = Service(bundle)
    with pytest.raises(InputError, match="nano-"):
        asyncio.run(asyncio.wait_for(service.link.run(), 20))


def test_an_adapter_that_cannot_answer_ends_the_service_at_its_start(bundle: Path) -> None:
    (bundle / "nano-oranbench-LoRA.gguf").write_bytes(b"GGUF")
    service = Service(bundle)
    with pytest.raises(InputError, match=r"nano-oranbench-LoRA\.gguf: 4 bytes"):
        asyncio.run(asyncio.wait_for(service.link.run(), 20))


def test_an_adapter_that_is_damaged_later_ends_nothing(bundle: Path) -> None:
    file = bundle / "nano-teleqna-LoRA.gguf"

    async def work(service: Service) -> None:
        file.write_bytes(b"GGUF")
        assert (await service.ask("die")).status_code == 503
        await asyncio.wait_for(service.ready(), 20)
        assert (await service.ask()).status_code == 200
        refused = await service.ask(category="teleqna")
        assert refused.status_code == 500
        assert "the adapter cannot be loaded" in refused.json()["error"]["message"]

    served(bundle, work)


def test_a_slow_body_is_cut(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_SECONDS", 0.1)

    async def trickle() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" "
            await asyncio.sleep(0.05)

    async def work(service: Service) -> None:
        reply = await service.client.post("/v1/answer", content=trickle())
        assert reply.status_code in (400, 504)

    served(bundle, work)


def test_what_fails_leaves_no_work_behind(bundle: Path) -> None:
    async def work(service: Service) -> None:
        body = {"prompt": ["sleep 30000", "x" * 3000], "model": "oranbench", "max_tokens": 5}
        reply = await service.client.post("/v1/completions", json=body)
        assert reply.json()["error"]["code"] == "context_length_exceeded"
        tensors = [
            {"name": "question", "shape": [2], "datatype": "BYTES", "data": ["x", "y" * 3000]},
            {"name": "choices", "shape": [2, 4], "datatype": "BYTES", "data": CHOICES * 2},
        ]
        reply = await service.client.post("/v2/models/oranbench/infer", json={"inputs": tensors})
        assert reply.status_code == 400
        stats = await service.link.ask({"op": "stats"})
        assert stats["waiting"] == 0

    served(bundle, work)


def test_numbers_beyond_any_time_and_paths_that_are_not_there(bundle: Path) -> None:
    async def work(service: Service) -> None:
        raw = (
            b'{"question": "x", "choices": ["a", "b"], "category": "oranbench", "timeout_ms": 1%s}'
        )
        reply = await service.client.post("/v1/answer", content=raw % (b"0" * 400))
        assert reply.status_code in (200, 400)
        for method, path, status in (("GET", "/nowhere", 404), ("GET", "/v1/answer", 405)):
            reply = await service.client.request(method, path)
            assert (reply.status_code, reply.json()["error"]["status"]) == (status, status)
        given = {"messages": [{"role": "user", "content": "gold 1"}], "model": "oranbench"}
        nulls = dict.fromkeys(("temperature", "stream", "max_tokens", "seed", "stop"))
        before = (await service.client.get("/metrics")).text
        reply = await service.client.post("/v1/chat/completions", json={**given, **nulls})
        assert reply.status_code == 200, reply.text
        after = (await service.client.get("/metrics")).text
        found = [
            re.findall(r"^tel_prompt_tokens_total (\S+)", text, re.M) for text in (before, after)
        ]
        assert float(found[1][0]) - float(found[0][0]) == len("gold 1") + 1

    served(bundle, work)
