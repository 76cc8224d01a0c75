"""Measures work beside other processes: `python scripts/bench_contention.py --out FILE`.

Threads that wait for each other may spin, which is the fastest on an idle machine and the slowest
on one where something else wants the cores: then a thread spins for one that is not running. Each
variant says by environment variables how a child waits and with how many threads; it is measured
alone and beside busy processes, all in turn in several rounds, every second round backwards.
Nothing else may run on the machine meanwhile; what did is looked at and written below the table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import engine_contender
import psutil
import train_contenders
from bench_tables import head, keep, line, machine, spread
from reference_converter import measured
from train_contenders import OURS, Task

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.benchmarks.split import capped, split
from tel_edge.eval.from_gguf import fetching
from tel_edge.runtime import cli
from tel_edge.runtime.bundles import backbones, manifest
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files.atomic import write_text
from tel_edge.runtime.processors import cores
from tel_edge.runtime.questions.categories import category
from tel_edge.train.data import examples

ROUNDS, STEPS, BATCH, SEED = 3, 20, 16, 42
# What a variant may set; the caller's own values would be measured instead.
CONTROLLED = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# A process that never waits, and ends with its parent; and the seconds for it to be at full speed.
BUSY = """import os
parent = os.getppid()
while os.getppid() == parent:
    sum(range(1_000_000))
"""
SETTLE = 0.5
# Seconds that the machine is looked at before each round, and the share of its cores that others
# may take without a warning.
LOOK, QUIET = 2.0, 0.05


@dataclass(frozen=True)
class Variant:
    """A way of waiting: its name and the environment variables that a child is given."""

    name: str
    env: Mapping[str, str]


@dataclass(frozen=True)
class Subject:
    """What is measured: a command whose last line is JSON with `steps` and their `seconds`."""

    name: str
    unit: str
    command: tuple[str, ...]
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Rate:
    """`value` units a second of a subject's variant in round `turn`, beside `busy` processes."""

    subject: str
    variant: str
    busy: int
    turn: int
    value: float


# All threads all the time, unless the number is left open.
ALL = {"OMP_NUM_THREADS": str(cores())}
TRAINING = (
    Variant("spinning (the library's)", ALL),
    Variant("10,000 spins", {**ALL, "GOMP_SPINCOUNT": "10000"}),
    Variant("gives way (tel-train's)", {"GOMP_SPINCOUNT": "10000"}),
    Variant("1,000 spins", {**ALL, "GOMP_SPINCOUNT": "1000"}),
    Variant("passive", {**ALL, "OMP_WAIT_POLICY": "PASSIVE"}),
    Variant("one thread", {"OMP_NUM_THREADS": "1"}),
)


GGUF = (
    Variant("spinning (the library's)", {}),
    Variant("10,000 spins", {"GOMP_SPINCOUNT": "10000"}),
    Variant("1,000 spins", {"GOMP_SPINCOUNT": "1000"}),
    Variant("passive", {"OMP_WAIT_POLICY": "PASSIVE"}),
    Variant("one thread", {"OMP_NUM_THREADS": "1", "TEL_THREADS": "1"}),
)
ONNX = (
    Variant("spinning (the library's)", {"TEL_ONNX": "spin"}),
    Variant("still", {"TEL_ONNX": "still"}),
)


def work(args: argparse.Namespace) -> Mapping[str, Any]:
    """Measure all variants and print the table; see `parser` for the arguments."""
    for name in CONTROLLED:
        os.environ.pop(name, None)
    cli.say(args, "nothing else may run on this machine while this measures")
    rates: list[Rate] = []
    others: list[float] = []
    with tempfile.TemporaryDirectory() as passing:
        subjects = [_training(args, Path(passing))] if args.steps else []
        subjects += _engines(args.bundle, args.seconds) if args.bundle else []
        cases = [(s, v, busy) for s in subjects for v in s.variants for busy in args.busy]
        for turn in range(args.rounds):
            others.append(taken())
            if others[-1] > QUIET:
                cli.say(args, f"warning: other processes take {others[-1]:.0%} of the cores")
            # Backwards in every second round: what drifts in one direction then cancels out.
            for subject, variant, busy in cases[:: -1 if turn % 2 else 1]:
                value = rate(subject, variant, busy)
                rates.append(Rate(subject.name, variant.name, busy, turn, value))
                cli.say(
                    args,
                    f"round {turn + 1}: {subject.name}, {variant.name}, beside {busy}: "
                    f"{value:.2f} {subject.unit}",
                )
    text = table(subjects, rates, others)
    print(text, end="")
    document = {
        "machine": machine(),
        "others": others,
        "rates": [asdict(one) for one in rates],
    }
    keep(args.out, text, document)
    return document


def _engines(bundle: Path, seconds: float) -> list[Subject]:
    """Return the engines of the formats that a bundle has, which answer for so long."""
    made = manifest.read(bundle)
    found = []
    for format in made.formats():
        quant = made.quants(format=format)[-1]
        name = f"{made.backbone.name} {quant} ({format})"
        command = (sys.executable, engine_contender.__file__, str(bundle), format, str(seconds))
        found.append(Subject(name, "questions/s", command, GGUF if format == "gguf" else ONNX))
    return found


def _training(args: argparse.Namespace, passing: Path) -> Subject:
    """Return the training of a backbone on ot-mini's questions, `--steps` of 16 questions."""
    folder = fetching.fetch(backbones.find(args.backbone)).folder
    task = json.dumps(_task(folder, passing, args.steps))
    return Subject(
        f"training {args.backbone}",
        "steps/s",
        (sys.executable, train_contenders.__file__, task),
        TRAINING,
    )


def _task(folder: Path, passing: Path, steps: int) -> dict[str, Any]:
    from tel_edge.eval.folders import loading

    train = split(benchmark.read("ot-mini", category("oranbench")).questions, SEED).train
    made, _ = examples(train, loading.tokenizer(folder), 2048)
    chosen = capped(made, steps * BATCH, SEED)
    if len(chosen) < steps * BATCH:
        raise InputError(f"--steps {steps}: {len(made)} questions are {len(made) // BATCH} steps")
    file = passing / "examples.json"
    write_text(file, json.dumps([[one.ids, one.target] for one in chosen]))
    return asdict(Task(OURS, "cpu", str(folder), str(file), BATCH))


def rate(subject: Subject, variant: Variant, busy: int) -> float:
    """Run the subject in a child beside so many busy processes; return its units a second."""
    with beside(busy):
        _, text = measured(
            subject.command, {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", **variant.env}
        )
    said = json.loads(text.splitlines()[-1])
    return float(said["steps"] / said["seconds"])


@contextlib.contextmanager
def beside(count: int) -> Iterator[None]:
    """Keep so many processes busy meanwhile."""
    with contextlib.ExitStack() as kept:
        for _ in range(count):
            child = kept.enter_context(subprocess.Popen([sys.executable, "-c", BUSY]))
            # Ended before it is waited for: what is entered last is left first.
            kept.callback(child.kill)
        if count:
            time.sleep(SETTLE)
        yield


def taken() -> float:
    """Return the share of the cores that is in use while this process waits."""
    return float(psutil.cpu_percent(LOOK)) / 100


def table(subjects: Sequence[Subject], rates: Sequence[Rate], others: Sequence[float]) -> str:
    """Return the rates as Markdown: medians with smallest and largest, and times the first one."""
    counts = sorted({one.busy for one in rates})
    names = [name for count in counts for name in (_beside(count), "times the first")]
    lines = [*head("measure", "type", *names)]
    for subject in subjects:
        of = {
            (variant.name, count): [
                one.value
                for one in rates
                if (one.subject, one.variant, one.busy) == (subject.name, variant.name, count)
            ]
            for variant in subject.variants
            for count in counts
        }
        for variant in subject.variants:
            cells = []
            for count in counts:
                first = statistics.median(of[subject.variants[0].name, count])
                values = of[variant.name, count]
                cells += [spread(values, ".2f"), f"{statistics.median(values) / first:.2f}"]
            lines.append(line(f"{subject.name}, {subject.unit}", variant.name, *cells))
    low, high = (f"{100 * value:.0f}" for value in (min(others), max(others)))
    looked = f"before each round other processes took {low} to {high} % of the cores"
    return "\n".join([*lines, "", f"{len(others)} rounds; {looked}; {machine()}", ""])


def _beside(count: int) -> str:
    return "alone" if not count else f"beside {count} busy"


def _counts(text: str) -> tuple[int, ...]:
    """Return the numbers of a list with commas, as the `type` of an option."""
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: numbers with commas are needed, such as 0,1")
    return tuple(dict.fromkeys(map(int, parts)))


def parser() -> cli.Parser:
    """Return the options."""
    made = cli.Parser(
        prog="bench_contention.py",
        description="Measure ways of waiting alone and beside busy processes; nothing else may "
        "run on the machine meanwhile.",
        allow_abbrev=False,
    )
    made.add_argument(
        "--busy", type=_counts, default=(0, 1), metavar="N,...", help="busy processes (0,1)"
    )
    made.add_argument(
        "--backbone", metavar="NAME", default="tel-nano", help="to train (%(default)s)"
    )
    made.add_argument(
        "--bundle", type=Path, metavar="DIR", help="measure the engines on its smallest types too"
    )
    made.add_argument(
        "--seconds", type=cli.above_zero, default=5.0, metavar="S", help="for each (%(default)g)"
    )
    made.add_argument(
        "--steps",
        type=cli.whole(0, 10_000),
        default=STEPS,
        metavar="N",
        help="of a training, 0 for none (%(default)s)",
    )
    made.add_argument(
        "--rounds", type=cli.positive, default=ROUNDS, metavar="N", help="(%(default)s)"
    )
    made.add_argument(
        "--out", type=Path, metavar="FILE", help="Markdown file; numbers go beside it as .json"
    )
    made.add_argument("--json", action="store_true", help="end stdout with one line of JSON")
    made.add_argument("--quiet", action="store_true", help="no log lines")
    return made


def main() -> None:
    """Run the script."""
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
