"""Compares sizes of the parts of a training step: `python scripts/bench_parts.py --out FILE`.

A step on a CPU goes through its batch in parts of at most so many tokens (`tel_edge.train.parts`).
Smaller parts keep less for going backwards; whether they cost time is measured here, with the real
step on real questions, each size in a process of its own, in several rounds, every second round
backwards. Nothing else may run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench_tables import head, line, machine, spread

from tel_edge.runtime import cli
from tel_edge.runtime.files.atomic import write_text

# Tokens of a part, and as many as any batch has.
SIZES, WHOLE = "256,512,1024", 1 << 40
STEPS, ROUNDS = 6, 2


def child(args: argparse.Namespace) -> None:
    """Train some steps with one size; print seconds of them and peak bytes."""
    from tel_edge.runtime.device import memory
    from tel_edge.train import job, trainer, training

    training.spin_shortly()
    trainer.MOST = args.child
    of = replace(job.jobs(args)[0], most=args.steps * 16)
    parts = replace(of.parts, validation=of.parts.validation[:32])
    of = replace(of, parts=parts, recipe=replace(of.recipe, epochs=1))
    marks: list[float] = []
    step = trainer.AnswerTrainer.training_step

    def timed(*given: Any, **named: Any) -> Any:
        marks.append(time.perf_counter())
        made = step(*given, **named)
        marks.append(time.perf_counter())
        return made

    trainer.AnswerTrainer.training_step = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as passing:
        trainer.fit(of, Path(passing), True)
    own = [after - before for before, after in zip(marks[::2], marks[1::2], strict=True)]
    # The first step allocates.
    print(json.dumps({"seconds": sum(own[1:]), "peak": memory.now().peak}))


def work(args: argparse.Namespace) -> Mapping[str, Any]:
    """Measure every size in every round, and print the table."""
    if args.child:
        child(args)
        return {}
    sizes = [*map(int, args.sizes.split(",")), WHOLE]
    found: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    for turn in range(args.rounds):
        for size in sizes[:: -1 if turn % 2 else 1]:
            own = ["--child", str(size), "--steps", str(args.steps), "--quiet"]
            given = [f"--{name}={getattr(args, name)}" for name in ("backbone", "dataset")]
            given += [f"--category={args.category}", f"--workspace={args.workspace}"]
            command = [sys.executable, __file__, *given, *own]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[size].append(json.loads(done.stdout.splitlines()[-1]))
            cli.say(args, f"round {turn + 1}: {size}: {found[size][-1]}")
    whole = statistics.median(each["seconds"] for each in found[WHOLE])
    rows = [*head("tokens of a part", "s", "times the whole", "peak MB")]
    for size, own in found.items():
        seconds = [each["seconds"] for each in own]
        name = "the whole batch" if size == WHOLE else f"{size:,}"
        peak = max(each["peak"] for each in own) / 1e6
        ratio = statistics.median(seconds) / whole
        rows.append(line(name, spread(seconds, ".1f"), f"{ratio:.2f}", f"{peak:,.0f}"))
    text = "\n".join([*rows, "", machine()]) + "\n"
    print(text, end="")
    if args.out:
        write_text(args.out, text)
    return {"sizes": {str(size): own for size, own in found.items()}}


def parser() -> cli.Parser:
    """Return the options: those of a training, and how often."""
    from tel_edge.train.commands import train

    made = train.parser()
    made.prog = "bench_parts"
    made.set_defaults(category="oranbench")
    made.add_argument("--steps", type=cli.positive, default=STEPS, help="of a batch of 16")
    made.add_argument("--sizes", default=SIZES, metavar="N,...", help="(%(default)s)")
    made.add_argument("--rounds", type=cli.positive, default=ROUNDS)
    made.add_argument("--out", type=Path, metavar="FILE")
    made.add_argument("--child", type=int, help=argparse.SUPPRESS)
    return made


def main() -> None:
    """Run the command."""
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
