"""What bench_serve.py does to a service: load it, trickle, kill it, and exchange its bundles."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.device.child import in_child
from tel_edge.runtime.errors import WorkError
from tel_edge.runtime.measuring import probe
from tel_edge.runtime.questions.categories import category

SEED, ASKED = 42, 256
# Questions whose exact answers are compared, and connections that send a byte a second.
EXACT, TRICKLING = 8, 200


def rows(name: str, count: int) -> list[dict[str, Any]]:
    """Return questions of a category as clients send them."""
    of = category(name)
    return [
        {"question": one.text, "category": name}
        | ({} if of.labels else {"choices": list(one.choices)})
        for one in probe.questions(of, count)
    ]


class Wire:
    """As little of an HTTP client as there can be, since it shares the cores with the service.

    Source: RFC 9112; replies that say their length, over connections that stay open.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, path: str, body: bytes, key: str) -> int:
        """Return the status of the reply, all of which was read."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self.host}\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        while True:
            kept = bool(self._free)
            reader, writer = (
                self._free.pop() if kept else await asyncio.open_connection(self.host, self.port)
            )
            writer.write(head.encode() + body)
            try:
                said = (await reader.readuntil(b"\r\n\r\n")).lower()
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()
                # One that was kept for long may have been closed meanwhile.
                if kept:
                    continue
                raise
            await reader.readexactly(int(said.split(b"content-length:")[1].split(b"\r\n")[0]))
            if b"connection: close" in said:
                writer.close()
            else:
                self._free.append((reader, writer))
            return int(said.split(b" ", 2)[1])

    def close(self) -> None:
        """Close what is open."""
        for _, writer in self._free:
            writer.close()
        self._free.clear()


class Load:
    """Requests to a service; `seen` are (seconds, status, category) of each."""

    def __init__(self, client: Any, names: Sequence[str]) -> None:
        self.client, self.names = client, names
        self.wire = Wire(client.base_url.host, client.base_url.port)
        self.rows = {name: rows(name, ASKED) for name in names}
        self.chance = random.Random(SEED)
        self.seen: list[tuple[float, int, str]] = []

    async def one(self, name: str, key: str = "a", **of: Any) -> None:
        row = {**self.chance.choice(self.rows[name]), **of}
        began = time.perf_counter()
        status = await self.wire.post("/v1/answer", json.dumps(row).encode(), key)
        self.seen.append((time.perf_counter() - began, status, name))

    async def closed(self, clients: int, seconds: float) -> float:
        """Let so many clients ask one question after the other; return questions/s."""
        until = time.perf_counter() + seconds

        async def loop(at: int) -> None:
            while time.perf_counter() < until:
                await self.one(self.names[at % len(self.names)])

        self.seen.clear()
        began = time.perf_counter()
        await asyncio.gather(*(loop(at) for at in range(clients)))
        good = sum(status == 200 for _, status, _ in self.seen)
        return good / (time.perf_counter() - began)

    async def arrivals(self, rate: float, seconds: float, **of: Any) -> None:
        """Ask at random times, `rate` a second on average, whatever is still unanswered."""
        self.seen.clear()
        tasks, until = [], time.perf_counter() + seconds
        while time.perf_counter() < until:
            tasks.append(asyncio.ensure_future(self.one(self.chance.choice(self.names), **of)))
            await asyncio.sleep(self.chance.expovariate(rate))
        await asyncio.gather(*tasks)


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile of some values."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def resident(*pids: int) -> int:
    """Return the resident bytes of processes."""
    pages = (int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in pids)
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def trickled(load: Load, seconds: float) -> float:
    """Return one client's p99 beside connections that send a head a byte a second, to before."""
    await load.closed(1, seconds)
    alone = percentile([s for s, _, _ in load.seen], 0.99)
    host, port = load.client.base_url.host, load.client.base_url.port

    async def trickle() -> None:
        while True:
            _, writer = await asyncio.open_connection(host, port)
            try:
                for byte in b"POST /v1/answer HTTP/1.1\r\nHost: localhost\r\n":
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(1)
            except OSError:
                # It is closed by the service, and another one comes.
                pass
            finally:
                writer.close()

    trickling = [asyncio.ensure_future(trickle()) for _ in range(TRICKLING)]
    try:
        await asyncio.sleep(1)
        await load.closed(1, seconds)
    finally:
        for task in trickling:
            task.cancel()
        await asyncio.gather(*trickling, return_exceptions=True)
    return percentile([s for s, _, _ in load.seen], 0.99) / alone


async def orphaned(process: subprocess.Popen[str]) -> float:
    """Kill the service and return how long its engine's process stays."""
    [engine] = children(process.pid)
    process.kill()
    began = time.perf_counter()
    while _runs(engine):
        await asyncio.sleep(0.01)
    return time.perf_counter() - began


def _runs(pid: int) -> bool:
    """Return whether a process runs; one that nobody has waited for yet does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


async def killed(client: Any, process: subprocess.Popen[str]) -> dict[str, Any]:
    [engine] = children(process.pid)
    os.kill(engine, signal.SIGKILL)
    began = time.perf_counter()
    # The dead one may be gone before anybody has noticed, so a new one has to be there first.
    while (
        children(process.pid) in ([], [engine]) or (await client.get("/readyz")).status_code != 200
    ):
        await asyncio.sleep(0.02)
    return {"engine killed, ready again s": time.perf_counter() - began}


async def exchanged(
    load: Load, owner: Path, folders: Sequence[Path], seconds: float, name: str
) -> dict[str, Any]:
    """Exchange two bundles under load; every exact answer has to be that of the digest it names."""
    import httpx

    known = {}
    file = (await load.client.get("/v1/status")).json()["bundle"]["file"]
    for folder in folders:
        told = in_child(None, exactly, str(folder), name, file)
        known[told["digest"]] = told["answers"]
    work = asyncio.ensure_future(load.closed(16, seconds))
    exact: list[tuple[int, Any]] = []

    async def asking() -> None:
        while not work.done():
            for at, row in enumerate(rows(name, EXACT)):
                asked = {**row, "exact": True}
                exact.append((at, (await load.client.post("/v1/answer", json=asked)).json()))

    also = asyncio.ensure_future(asking())
    transport = httpx.AsyncHTTPTransport(uds=str(owner))
    async with httpx.AsyncClient(transport=transport, timeout=60) as private:
        for turn in range(20):
            folder = str(Path(folders[turn % 2]).absolute())
            reply = await private.post("http://x/reload", json={"bundle": folder})
            if reply.is_error:
                for task in (work, also):
                    task.cancel()
                raise WorkError(f"the bundle was not exchanged: {reply.text}")
            await asyncio.sleep(seconds / 25)
    await asyncio.gather(work, also)
    wrong = [
        said for at, said in exact
        if known.get(said.get("adapter_digest"), [None] * EXACT)[at] != said.get("probabilities")
    ]  # fmt: skip
    return {
        "20 exchanges, failed requests": sum(code != 200 for _, code, _ in load.seen),
        "20 exchanges, exact answers": len(exact),
        "20 exchanges, of them unlike their digest's": len(wrong),
    }


def exactly(folder: str, name: str, path: str) -> dict[str, Any]:
    """Return the digest of an adapter, and what it answers on that backbone's file, each alone."""
    from tel_edge.runtime.answerer import Answerer
    from tel_edge.runtime.engines.engine import EngineSettings

    [file] = [one for one in bundle.read(Path(folder)).files if one.path == path]
    how: dict[str, Any] = {
        "quant": file.quant,
        "format": file.format,
        "engine": EngineSettings(exact=True),
    }
    with Answerer.of_bundle(Path(folder), **how) as answerer:
        engine: Any = answerer.engine
        asked = [(question, name) for question in probe.questions(category(name), EXACT)]
        found: dict[int, Any] = dict(answerer.many(asked))
        # As a reply has them.
        shares = [[round(p, 6) for p in found[at].probabilities] for at in range(EXACT)]
        return {"digest": engine.adapter(name).digest, "answers": shares}
