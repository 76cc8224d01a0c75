"""Measures `tel-serve` beside the engine alone: `python scripts/bench_serve.py --bundle DIR`.

C is the rate in questions/s of the engine alone on the same questions (what `tel-run` does with a
file), D the time of one decode. All figures are ratios to these, taken in the same run: closed
loops, one client, random arrivals, twice the capacity, a flood of one category beside another,
connections that trickle, a killed engine and a killed service, and bundles exchanged under load.
Nothing else may run meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench_tables import head, keep, line, machine
from serve_faults import (
    ASKED,
    Load,
    children,
    exchanged,
    killed,
    orphaned,
    percentile,
    resident,
    rows,
    trickled,
)

from tel_edge.runtime import cli
from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.device.child import in_child
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.measuring import probe
from tel_edge.runtime.questions.categories import category

# How often the engine alone answers all, unless that takes longer than so many seconds.
PASSES, LONG = 5, 30.0
COMMAND = (
    "import sys; sys.argv[0] = 'tel-serve'; "
    "from tel_edge.runtime.commands.serve import main; main()"
)


def alone(folder: str, names: Sequence[str], count: int) -> dict[str, float]:
    """Return the engine's own rate on mixed questions, and what one question alone takes."""
    from tel_edge.runtime.answerer import Answerer

    with Answerer.of_bundle(Path(folder)) as answerer:
        asked = [
            (question, name)
            for name in names
            for question in probe.questions(category(name), count // len(names))
        ]
        # Adapters are loaded before the clock runs, as the service's are.
        [*answerer.many([(probe.questions(category(name), 1)[0], name) for name in names])]
        times: list[float] = []
        while not times or (len(times) < PASSES and sum(times) < LONG):
            began = time.perf_counter()
            [*answerer.many(asked)]
            times.append(time.perf_counter() - began)
        rate = len(asked) / statistics.median(times)
        engine: Any = answerer.engine
        single = []
        for question, name in asked[:20]:
            began = time.perf_counter()
            [*answerer.many([(question, name)])]
            single.append(time.perf_counter() - began)
        tokens = statistics.mean(len(answerer.scorer.item(q).prompt) for q, _ in asked)
        packed = max(1.0, min(63.0, engine.most / tokens))
    return {"rate": rate, "decode": packed / rate, "single": statistics.median(single)}


def first_answer(folder: Path, name: str) -> float:
    """Return the seconds from the start of tel-run to its first answer."""
    [row] = rows(name, 1)
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND.replace("serve", "run"), "--bundle", str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(row) + "\n")
        process.stdin.close()
        process.stdout.readline()
        return time.perf_counter() - began


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[Any, subprocess.Popen[str], Path]]:
    """Give a client of a service that is ready, the process, and the socket of its owner."""
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
                process.stdout.close()


async def measured(args: argparse.Namespace, own: Mapping[str, float]) -> dict[str, Any]:
    """Return every figure of the service, raw."""
    made: dict[str, Any] = {}
    rate, decode, first = own["rate"], own["decode"], args.names[0]
    began = time.perf_counter()
    async with served(args.bundle) as (client, process, owner):
        ready = time.perf_counter() - began
        made["ready, less tel-run's first answer s"] = ready - first_answer(args.bundle, first)
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
        every = (process.pid, *children(process.pid))
        before = resident(*every)
        began = time.perf_counter()
        await one.arrivals(2 * rate, args.overload, timeout_ms=max(1000, int(8000 * decode)))
        spent = time.perf_counter() - began
        codes = [status for _, status, _ in one.seen]
        made["twice C, goodput"] = codes.count(200) / spent / rate
        refused = [s for s, status, _ in one.seen if status == 429]
        made["twice C, refusals p99 ms"] = percentile(refused, 0.99) * 1000 if refused else None
        made["twice C, other failures"] = sum(code not in (200, 429, 504) for code in codes)
        made["twice C, memory growth MB"] = (resident(*every) - before) / 1e6
        made["front, MB"] = resident(process.pid) / 1e6
        flood = asyncio.ensure_future(Load(client, [first]).closed(32, args.seconds))
        other = Load(client, args.names[-1:])
        await asyncio.sleep(0.5)
        for _ in range(20):
            await other.one(args.names[-1], key="b")
        await flood
        made["beside a flood, p99 in D"] = percentile([s for s, _, _ in other.seen], 0.99) / decode
        made["beside trickling connections, p99 times"] = await trickled(one, args.seconds)
        made |= await killed(client, process)
        if args.other:
            folders = [args.other, args.bundle]
            made |= await exchanged(mixed, owner, folders, args.seconds, first)
        made["service killed, engine gone s"] = await orphaned(process)
    return made


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
        "20 exchanges, exact answers": "",
        "20 exchanges, of them unlike their digest's": "0",
        "ready, less tel-run's first answer s": "<= 0.3",
        "front, MB": "<= 40",
        "beside trickling connections, p99 times": "<= 1.2",
        "service killed, engine gone s": "<= 2",
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
    keep(args.out, text, {"own": own, "found": found, "machine": machine()})
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
