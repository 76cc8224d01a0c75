"""Measures `tel-serve` beside the engine alone: `python scripts/bench_serve.py --bundle DIR`.

C is the rate in questions/s of the engine alone on the same questions (what `tel-run` does with a
file), D the time of one decode. All figures are ratios to these, taken in the same run: closed
loops, one client, random arrivals, twice the capacity, a flood of one category beside another, a
killed engine, and bundles exchanged under load. Nothing else may run meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench_tables import head, line, machine

from tel_edge.runtime import cli
from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.device.child import in_child
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files.atomic import write_text
from tel_edge.runtime.measuring import probe
from tel_edge.runtime.questions.categories import category

COMMAND = (
    "import sys; sys.argv[0] = 'tel-serve'; "
    "from tel_edge.runtime.commands.serve import main; main()"
)
SEED, ASKED = 42, 256


def alone(folder: str, names: Sequence[str], count: int) -> dict[str, float]:
    """Return the engine's own rate on mixed questions, and what one question alone takes."""
    from tel_edge.runtime.answerer import Answerer

    with Answerer.of_bundle(Path(folder)) as answerer:
        asked = [
            (question, name)
            for name in names
            for question in probe.questions(category(name), count // len(names))
        ]
        [*answerer.many(asked[:4])]
        began = time.perf_counter()
        [*answerer.many(asked)]
        rate = len(asked) / (time.perf_counter() - began)
        engine: Any = answerer.engine
        single = []
        for question, name in asked[:20]:
            began = time.perf_counter()
            [*answerer.many([(question, name)])]
            single.append(time.perf_counter() - began)
        tokens = statistics.mean(len(answerer.scorer.item(q).prompt) for q, _ in asked)
        packed = max(1.0, min(63.0, engine.most / tokens))
    return {"rate": rate, "decode": packed / rate, "single": statistics.median(single)}


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[Any, subprocess.Popen[str], Path]]:
    """Give a client, the process, and the socket of its owner."""
    import httpx

    with tempfile.TemporaryDirectory() as passing:
        owner = Path(passing) / "admin"
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "--bundle", str(folder), "--port", "0", "--quiet",
             "--admin", str(owner)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        address = (await asyncio.to_thread(process.stdout.readline)).split()[-1]
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client:
            try:
                yield client, process, owner
            finally:
                process.terminate()
                process.wait(90)


class Load:
    """Requests to a service; `seen` are (seconds, status, category) of each."""

    def __init__(self, client: Any, names: Sequence[str]) -> None:
        self.client, self.names = client, names
        self.rows = {
            name: [
                {"question": q.text, "choices": list(q.choices), "category": name}
                if not category(name).labels
                else {"question": q.text, "category": name}
                for q in probe.questions(category(name), ASKED)
            ]
            for name in names
        }
        self.chance = random.Random(SEED)
        self.seen: list[tuple[float, int, str]] = []

    async def one(self, name: str, key: str = "a", **of: Any) -> None:
        row = {**self.chance.choice(self.rows[name]), **of}
        began = time.perf_counter()
        reply = await self.client.post(
            "/v1/answer", json=row, headers={"authorization": f"Bearer {key}"}
        )
        self.seen.append((time.perf_counter() - began, reply.status_code, name))

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


def resident(pid: int) -> int:
    """Return the resident bytes of a process and its children."""
    every = [pid, *children(pid)]
    pages = (int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in every)
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def measured(args: argparse.Namespace, own: Mapping[str, float]) -> dict[str, Any]:
    """Return every figure of the service, raw."""
    made: dict[str, Any] = {}
    rate, decode, first = own["rate"], own["decode"], args.names[0]
    async with served(args.bundle) as (client, process, owner):
        one, mixed = Load(client, [first]), Load(client, args.names)
        await one.closed(4, 2)
        made["closed, one category"] = await one.closed(args.clients, args.seconds) / rate
        made["closed, all categories"] = await mixed.closed(3 * args.clients, args.seconds) / rate
        await one.closed(1, args.seconds)
        made["one client, p50 s"] = percentile([s for s, _, _ in one.seen], 0.5)
        await one.arrivals(0.7 * rate, args.seconds)
        times = [s for s, status, _ in one.seen if status == 200]
        made["arrivals at 0.7 C, p50 in D"] = percentile(times, 0.5) / decode
        made["arrivals at 0.7 C, p99 in D"] = percentile(times, 0.99) / decode
        before = resident(process.pid)
        began = time.perf_counter()
        await one.arrivals(2 * rate, args.overload, timeout_ms=max(1000, int(8000 * decode)))
        spent = time.perf_counter() - began
        codes = [status for _, status, _ in one.seen]
        made["twice C, goodput"] = codes.count(200) / spent / rate
        refused = [s for s, status, _ in one.seen if status == 429]
        made["twice C, refusals p99 ms"] = percentile(refused, 0.99) * 1000 if refused else None
        made["twice C, other failures"] = sum(code not in (200, 429, 504) for code in codes)
        made["twice C, memory growth MB"] = (resident(process.pid) - before) / 1e6
        flood = asyncio.ensure_future(Load(client, [first]).closed(32, args.seconds))
        other = Load(client, args.names[-1:])
        await asyncio.sleep(0.5)
        for _ in range(20):
            await other.one(args.names[-1], key="b")
        await flood
        made["beside a flood, p99 in D"] = percentile([s for s, _, _ in other.seen], 0.99) / decode
        made |= await _killed(client, process)
        if args.other:
            made |= await _exchanged(mixed, owner, [args.other, args.bundle], args.seconds)
    return made


async def _killed(client: Any, process: subprocess.Popen[str]) -> dict[str, Any]:
    [engine] = children(process.pid)
    os.kill(engine, signal.SIGKILL)
    began = time.perf_counter()
    while (await client.get("/readyz")).status_code != 200 or children(process.pid) == [engine]:
        await asyncio.sleep(0.02)
    return {"engine killed, ready again s": time.perf_counter() - began}


async def _exchanged(
    load: Load, owner: Path, folders: Sequence[Path], seconds: float
) -> dict[str, Any]:
    import httpx

    work = asyncio.ensure_future(load.closed(16, seconds))
    transport = httpx.AsyncHTTPTransport(uds=str(owner))
    async with httpx.AsyncClient(transport=transport, timeout=60) as private:
        for turn in range(20):
            folder = str(Path(folders[turn % 2]).absolute())
            reply = await private.post("http://x/reload", json={"bundle": folder})
            reply.raise_for_status()
            await asyncio.sleep(seconds / 25)
    await work
    return {"20 exchanges, failed requests": sum(code != 200 for _, code, _ in load.seen)}


def work(args: argparse.Namespace) -> Mapping[str, Any]:
    """Measure and print the table."""
    made = bundle.read(args.bundle)
    args.names = made.adapters(next(iter(made.formats())))
    if not args.names:
        raise InputError(f"{args.bundle}: no adapters, so nothing to choose between")
    own = in_child(None, alone, str(args.bundle), args.names, ASKED)
    found = asyncio.run(measured(args, own))
    targets = {
        "closed, one category": ">= 0.95 (1B), 0.80 (tel-nano)",
        "closed, all categories": ">= 0.90",
        "one client, p50 s": f"<= {1.05 * own['single'] + 0.005:.4f}",
        "arrivals at 0.7 C, p50 in D": "<= 2",
        "arrivals at 0.7 C, p99 in D": "<= 6",
        "twice C, goodput": ">= 0.95",
        "twice C, refusals p99 ms": "<= 50",
        "twice C, other failures": "0",
        "twice C, memory growth MB": "<= 20",
        "beside a flood, p99 in D": "<= 3",
        "engine killed, ready again s": "opening + 1",
        "20 exchanges, failed requests": "0",
    }
    lines = [*head("measure", "found", "wanted")]
    for name, value in found.items():
        shown = "-" if value is None else f"{value:.4g}"
        lines.append(line(name, shown, targets[name]))
    end = (
        f"{made.backbone.name}, {len(args.names)} adapters; C {own['rate']:.1f} questions/s, "
        f"D {own['decode'] * 1000:.0f} ms; {machine()}"
    )
    text = "\n".join([*lines, "", end, ""])
    print(text, end="")
    if args.out:
        write_text(args.out, text)
        document = {"own": own, "found": found, "machine": machine()}
        write_text(args.out.with_suffix(".json"), json.dumps(document, indent=1) + "\n")
    return {"own": own, **found}


def parser() -> cli.Parser:
    """Return the options."""
    made = cli.Parser(prog="bench_serve.py", description=__doc__, allow_abbrev=False)
    made.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    made.add_argument("--other", type=Path, metavar="DIR", help="a bundle to exchange it with")
    made.add_argument("--clients", type=cli.positive, default=16, metavar="N")
    made.add_argument("--seconds", type=cli.above_zero, default=20.0, metavar="S")
    made.add_argument("--overload", type=cli.above_zero, default=60.0, metavar="S")
    made.add_argument("--out", type=Path, metavar="FILE", help="Markdown file")
    made.add_argument("--json", action="store_true")
    made.add_argument("--quiet", action="store_true")
    return made


def main() -> None:
    """Run the benchmark."""
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
