"""Time to first token of a turn that goes on, beside the same turn from nothing.

    python scripts/bench_chat.py --bundle DIR [--tokens 1000] [--rounds 5] [--exact]

A conversation of about so many tokens is answered (8 tokens), then a new message comes: warm where
its beginning is kept, cold where nothing is. Rounds alternate, and the median of the ratios counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

from tel_edge.runtime import cli
from tel_edge.runtime.answerer import Answerer
from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.engines.engine import EngineSettings
from tel_edge.runtime.questions.conversation import Message
from tel_edge.runtime.questions.talking import Reply, Talking, reply

SAID = "The router was restarted, its light still blinks red, and the phone shows no signal. "
HOW = Talking(most=8)


def measured(engine: Any, adapter: str | None, tokens: int, rounds: int) -> dict[str, Any]:
    """Return milliseconds to the first token by kind and round, and the ratios' median."""
    warm, cold, ratios, decoded = [], [], [], [0, 0]
    size = len(engine.tokenize(SAID))
    for turn in range(rounds):
        said = [Message("user", f"Call {turn}. " + SAID * max(1, tokens // size))]
        engine.forget()
        first = reply(engine, adapter, said, HOW)
        said = [*first.heard, Message("assistant", first.text), Message("user", "What is next?")]
        made: dict[str, Reply] = {"warm": reply(engine, adapter, said, HOW)}
        engine.forget()
        made["cold"] = reply(engine, adapter, said, HOW)
        if engine.settings.exact and made["warm"].text != made["cold"].text:
            raise SystemExit(f"warm {made['warm'].text!r}, cold {made['cold'].text!r}")
        warm.append(made["warm"].first_ms)
        cold.append(made["cold"].first_ms)
        ratios.append(warm[-1] / cold[-1])
        decoded = [made["warm"].decoded, made["cold"].decoded]
    return {
        "warm_ms": round(statistics.median(warm), 1),
        "cold_ms": round(statistics.median(cold), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(min(ratios), 3), round(max(ratios), 3)],
        "decoded": decoded,
    }


def work(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every format of the bundle, or the one that is named."""
    made = bundle.read(args.bundle)
    found = {}
    for format in [args.format] if args.format else made.formats():
        settings = EngineSettings(threads=args.threads, context=args.context, exact=args.exact)
        with Answerer.of_bundle(
            args.bundle, quant=args.quant, format=format, bare=True, engine=settings
        ) as answerer:
            figures = measured(answerer.engine, None, args.tokens, args.rounds)
        found[answerer.name] = figures
        print(f"{answerer.name}: {json.dumps(figures)}", flush=True)
    return {"exit_code": int(any(one["ratio"] > args.most for one in found.values()))}


def parser() -> cli.Parser:
    """Return the script's options."""
    made = cli.parser("bench_chat", "Warm beside cold turns of a conversation.")
    made.add_argument(
        "--tokens", type=cli.positive, default=1000, metavar="N", help="(%(default)s)"
    )
    made.add_argument("--rounds", type=cli.positive, default=5, metavar="N", help="(%(default)s)")
    made.add_argument("--quant", metavar="TYPE", help="(the smallest)")
    made.add_argument(
        "--most", type=cli.share, default=0.3, metavar="R", help="allowed ratio (%(default)s)"
    )
    cli.engine_options(made)
    return made


def main() -> None:
    """Run the script."""
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
