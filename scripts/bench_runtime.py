"""Makes the tables of docs/performance.md: `python scripts/bench_runtime.py`.

Llama-3.2-1B at its real size with random weights, exported in Q4_K_M with two adapters of rank 16,
answers real test questions: with tel-edge, and in other ways (`runtime_contenders.py`). Every
measurement is a process of its own, and all take turns in several rounds, since a machine's speed
drifts. What is finished is kept in the home folder as one JSON line each, so a killed run goes on.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import runtime_contenders
from bench_tables import check_ended, common_options, keep, machine, turn_options
from contender_tasks import WARM, Task
from real_size import ROWS, built, check_space, exported, peft
from runtime_tables import CUSTOMARY, EFFECTS, EXACT, OURS, OWN, START, SWAP, Log, limit, tables

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.benchmarks.split import capped, split
from tel_edge.runtime import cli
from tel_edge.runtime.bundles import manifest
from tel_edge.runtime.bundles.manifest import Manifest
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.files.atomic import write_text
from tel_edge.runtime.questions import prompt
from tel_edge.runtime.questions.categories import category
from tel_edge.runtime.questions.question import Question

ROOT = Path(__file__).resolve().parents[1]
CATEGORY, OTHER = "oranbench", "teleqna"
QUANT, ADAPTER_QUANT, RANK = "Q4_K_M", "F32", 16
SEED = 42
# Bytes on the disk: the model's folder, its F16 file on the way, the bundle.
NEEDED = {False: 6_500_000_000, True: 100_000_000}
# Rounds and questions without and with --small.
ROUNDS, QUESTIONS = {False: 3, True: 1}, {False: 48, True: 8}
# The other ways by name: contender, option.
RIVALS: dict[str, tuple[str, dict[str, bool]]] = {
    "high-level": ("high-level", {}),
    "high-level, flash attention": ("high-level", {"flash": True}),
    "low-level": ("low-level", {}),
    "low-level, extra buffers": ("low-level", {"buffers": True}),
}
RUN = "import sys; sys.argv[0] = 'tel-run'; from tel_edge.runtime.commands.run import main; main()"


@dataclass(frozen=True)
class Bundle:
    """A bundle and the questions that are put to it; `questions` is a JSONL file of `asked`."""

    name: str
    folder: Path
    questions: Path
    asked: tuple[Question, ...]

    @property
    def manifest(self) -> Manifest:
        """Return what it holds."""
        return manifest.read(self.folder)

    def file(self, quant: str) -> Path:
        """Return the backbone's file of that type."""
        if (file := self.manifest.find("backbone", quant)) is None:
            raise InputError(f"{self.folder}: no {quant} backbone")
        return self.folder / file.path

    def task(self, contender: str, quant: str, **options: bool) -> Task:
        """Return the task of a contender."""
        adapters = {}
        for name in (CATEGORY, OTHER):
            if file := self.manifest.find("adapter", None, name):
                adapters[name] = (str(self.folder / file.path), file.sha256)
        if CATEGORY not in adapters:
            raise InputError(f"{self.folder}: no adapter for {CATEGORY}")
        return Task(contender, str(self.file(quant)), adapters, str(self.questions), **options)


@dataclass(frozen=True)
class Step:
    """One measurement: a contender's in a process of its own, or a start of tel-run."""

    name: str
    run: Callable[[], dict[str, Any]]


def work(args: argparse.Namespace) -> Mapping[str, Any]:
    """Measure what is not measured yet and print the tables; see `parser` for the arguments."""
    home = (args.home / ("small" if args.small else "full")).absolute()
    home.mkdir(parents=True, exist_ok=True)
    bundles = [_real(args, home), *_nano(args, home)]
    count = len(bundles[0].asked) - WARM
    conditions = f"{count} questions ({dataset(args)[0]}), prompt {prompt.digest()[:8]}"
    log = Log(home / "measurements.jsonl", conditions, args.fresh)
    for turn in range(args.rounds or ROUNDS[args.small]):
        steps = list(plan(bundles, turn))
        # Backwards in every second round: what drifts in one direction then cancels out.
        for step in steps[:: -1 if turn % 2 else 1]:
            if not log.has(step.name, turn):
                began = time.perf_counter()
                log.add(step.name, turn, step.run())
                spent = time.perf_counter() - began
                cli.say(args, f"round {turn + 1}: {step.name}: {spent:.1f} s")
    text = tables(log)
    print(text)
    raw = [asdict(made) for made in log.mine]
    document = {"machine": machine(), "memory": limit(log), "measurements": raw}
    keep(args.out, text, document)
    return document


def dataset(args: argparse.Namespace) -> tuple[str, str]:
    """Return the name and the place of the data set: the real one, or ot-mini where it lacks."""
    folder = args.shared / "ot-full"
    return (folder.name, str(folder)) if folder.is_dir() else ("ot-mini", "ot-mini")


def questions(
    place: str, most: int | None, file: Path, name: str = CATEGORY
) -> tuple[Question, ...]:
    """Return test questions of a data set's category and write them to `file`.

    Processes that read no data set have them from there.
    """
    test = split(benchmark.read(place, category(name)).questions, SEED).part("test")
    asked = capped(test, most, SEED)
    write_text(file, "".join(json.dumps(asdict(question)) + "\n" for question in asked))
    return asked


def _real(args: argparse.Namespace, home: Path) -> Bundle:
    """Return the bundle at real size, which is made unless it is there."""
    row = ROWS["llama"].small() if args.small else ROWS["llama"]
    model = home / row.name
    # An adapter belongs to a prompt.
    place = home / f"{row.name}-{prompt.digest()[:8]}"
    folder = place / "bundle"
    if not (place / "complete").is_file():
        if not model.is_dir():
            check_space(home, NEEDED[args.small], "--home")
            cli.say(args, f"building {row.name}")
            built(row, args.shared, model)
        cli.say(args, f"exporting {row.name}")
        exported(model, folder, "--quant", QUANT)
        weights = manifest.read(folder).backbone.weights
        adapters = {name: place / "adapters" / name for name in (CATEGORY, OTHER)}
        for seed, (name, adapter) in enumerate(adapters.items()):
            peft(model, adapter, RANK, name, weights, seed)
        options = ("--adapter", ",".join(map(str, adapters.values())))
        exported(model, folder, "--quant", QUANT, *options, "--adapter-quant", ADAPTER_QUANT)
        write_text(place / "complete", "")
    name, place = dataset(args)
    if name == "ot-mini":
        print(f"no ot-full in {args.shared}: questions of ot-mini instead", file=sys.stderr)
    file = home / "questions.jsonl"
    most = (args.questions or QUESTIONS[args.small]) + WARM
    return Bundle(row.name, folder, file, questions(place, most, file))


def _nano(args: argparse.Namespace, home: Path) -> list[Bundle]:
    """Return the bundle of tel-nano, which was trained on ot-mini, where there is one."""
    folder = args.nano_bundle.absolute()
    if not (folder / manifest.NAME).is_file():
        print(f"no bundle in {folder}: tel-nano is left out", file=sys.stderr)
        return []
    file = home / "questions-nano.jsonl"
    asked = questions("ot-mini", QUESTIONS[True] if args.small else None, file)
    return [Bundle("tel-nano", folder, file, asked)]


def plan(bundles: Sequence[Bundle], turn: int) -> Iterator[Step]:
    """Yield what is measured in a round."""
    real = bundles[0]
    ours = real.task("tel-edge", QUANT)
    yield Step(OURS, lambda: child(ours))
    yield Step(EXACT, lambda: child(replace(ours, exact=True)))
    for form in (OWN, CUSTOMARY):
        for name, (contender, option) in RIVALS.items():
            task = real.task(contender, QUANT, customary=form == CUSTOMARY, **option)
            yield Step(name + form, partial(rival, task))
    yield Step(SWAP, lambda: child(replace(ours, contender="swap")))
    for bundle in bundles:
        yield Step(START + bundle.name, partial(started, bundle))
        # The same in every round: nothing in it is timed.
        for quant in bundle.manifest.quants() if turn == 0 else ():
            task = bundle.task("effects", quant)
            yield Step(f"{EFFECTS}{bundle.name} {quant}", partial(child, task))


class Crashed(WorkError):
    """A process that native code has ended; the message is the name of the signal."""


def rival(task: Task) -> dict[str, Any]:
    """Run the task of another contender, whose crash is a finding.

    Some builds of the engine do crash with extra buffers, which the high-level API cannot turn off.
    """
    try:
        return child(task)
    except Crashed as error:
        return {"crashed": str(error)}


def child(task: Task) -> dict[str, Any]:
    """Run a task in a process of its own and return what it measured, or raise `WorkError`."""
    command = [sys.executable, runtime_contenders.__file__, json.dumps(asdict(task))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        raise Crashed(signal.Signals(-done.returncode).name)
    check_ended(task.contender, done)
    made: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return made


def started(bundle: Bundle) -> dict[str, Any]:
    """Ask tel-run one question; return milliseconds to its answer and to its end, and its own."""
    quant = bundle.manifest.quants()[-1]
    question = bundle.asked[0]
    command = [sys.executable, "-P", "-c", RUN, "--bundle", str(bundle.folder), "--quant", quant]
    command += ["--category", CATEGORY, "--json", "--quiet"]
    asked = json.dumps({"question": question.text, "choices": question.choices}) + "\n"
    with tempfile.TemporaryFile("w+") as err:
        began = time.perf_counter()
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, text=True
        ) as run:
            assert run.stdin is not None
            assert run.stdout is not None
            # A command that has ended by now says why on stderr.
            with suppress(BrokenPipeError):
                run.stdin.write(asked)
                run.stdin.close()
            answer = run.stdout.readline()
            first = time.perf_counter() - began
            rest = run.stdout.read()
        end = time.perf_counter() - began
        err.seek(0)
        if run.returncode or "answer" not in json.loads(answer or "{}"):
            raise WorkError(f"tel-run: {(err.read() or answer).strip()}")
    timing = json.loads(rest.splitlines()[-1]).get("timing") or {}
    known = {name: value for name, value in timing.items() if value is not None}
    return {"quant": quant, "first": first * 1000, "end": end * 1000, "timing": known}


def parser() -> cli.Parser:
    """Return the options."""
    made = cli.Parser(
        prog="bench_runtime.py",
        description="Make the tables of docs/performance.md.",
        allow_abbrev=False,
    )
    made.add_argument(
        "--home",
        type=Path,
        metavar="DIR",
        default=Path(tempfile.gettempdir()) / "tel-edge-bench-runtime",
        help="where the model is built and measurements are kept; 6.5 GB (%(default)s)",
    )
    made.add_argument(
        "--nano-bundle",
        type=Path,
        metavar="DIR",
        default=ROOT / "results-workspace/ot-mini/bundles/tel-nano",
        help="bundle of tel-nano with adapters trained on ot-mini (%(default)s)",
    )
    turn_options(made, "48; 8 with --small")
    common_options(made, "tokenizers and ot-full")
    return made


def main() -> None:
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
