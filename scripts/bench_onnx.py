"""Compares the two engines: `python scripts/bench_onnx.py --shared DIR --out FILE`.

Qwen3-0.6B at its real size with random weights goes into one bundle, as GGUF and as ONNX in several
types with two adapters of rank 16 each; every type then answers the same questions, and the ONNX
ones also in other ways of sharing. Every measurement is a process of its own, and all take turns in
several rounds. What is finished is kept in the work folder as one JSON line each, so a killed run
goes on; delete the folder to start anew.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx_contenders
from bench_tables import common_options, head, keep, line, machine, spread
from onnx_contenders import ALONE, PLAIN, ROW, WAYS, Subject
from real_size import ROWS, Row, built, check_space, exported, peft, written
from runtime_tables import Log

from tel_edge.runtime import cli
from tel_edge.runtime.bundles import manifest
from tel_edge.runtime.device.child import in_child
from tel_edge.runtime.errors import WorkError
from tel_edge.runtime.questions import prompt

KIND, RANK = "qwen3", 16
ADAPTERS = ("oranbench", "teleqna")
# The same in both formats, so that the engines hold the same values.
ADAPTER_QUANT = "F32"
ROUNDS, QUESTIONS = 3, 24
# Bytes on the disk: the model's folder, the float32 decoder twice on the way, the bundle.
NEEDED = {False: 9_000_000_000, True: 100_000_000}
MIB = 2**20
# The targets: milliseconds, times, MiB.
SWITCH, REUSE, SIZE = 1.0, 3.0, 435


@dataclass(frozen=True)
class Variant:
    """A backbone in one format and type."""

    format: str
    quant: str

    @property
    def name(self) -> str:
        """Return what it is called in the tables."""
        return f"{self.format.upper()} {self.quant}"

    @property
    def options(self) -> tuple[str, ...]:
        """Return those of tel-export."""
        return "--format", self.format, "--quant", self.quant


# In the order in which they are exported: the later ONNX types are made of the first one.
EXPORTS = (
    *(Variant("onnx", quant) for quant in ("fp32", "int8", "int4", "dynamic-int8")),
    *(Variant("gguf", quant) for quant in ("Q8_0", "Q4_K_M")),
)
INT4, DYNAMIC = Variant("onnx", "int4"), Variant("onnx", "dynamic-int8")
# In the order of the tables.
VARIANTS = (
    *(Variant("gguf", quant) for quant in ("Q4_K_M", "Q8_0")),
    *(INT4, Variant("onnx", "int8"), DYNAMIC, Variant("onnx", "fp32")),
)
ONNX = [variant for variant in VARIANTS if variant.format == "onnx"]
SHARING = {
    variant: [f"{variant.name}: {way}" for way in (ROW, *WAYS)] for variant in (INT4, DYNAMIC)
}


def work(args: argparse.Namespace) -> Mapping[str, Any]:
    """Measure what is not measured yet and print the tables; see `parser` for the arguments."""
    row = ROWS[KIND].small() if args.small else ROWS[KIND]
    home = (args.work / ("small" if args.small else "full")).absolute()
    home.mkdir(parents=True, exist_ok=True)
    bench = Bench(row, home)
    bench.place.mkdir(exist_ok=True)
    exports = Log(bench.place / "exports.jsonl", f"prompt {prompt.digest()[:8]}", False)
    _export(args, bench, exports)
    conditions = f"{args.questions} questions, {exports.conditions}, {_versions()}"
    log = Log(home / "measurements.jsonl", conditions, args.fresh)
    for turn in range(args.rounds):
        steps = list(_steps(bench, args.questions))
        # Backwards in every second round: what drifts in one direction then cancels out.
        for name, measure in steps[:: -1 if turn % 2 else 1]:
            if not log.has(name, turn):
                began = time.perf_counter()
                log.add(name, turn, measure())
                spent = time.perf_counter() - began
                cli.say(args, f"round {turn + 1}: {name}: {spent:.1f} s")
    text = tables(bench, exports, log, args.small)
    print(text, end="")
    raw = [asdict(made) for made in (*exports.mine, *log.mine)]
    document = {
        "machine": f"{machine()}, {_versions()}",
        "small": args.small,
        "files": {name: dict(sizes) for name, sizes in _sizes(bench).items()},
        "targets": _targets(bench, log),
        "measurements": raw,
    }
    keep(args.out, text, document)
    return document


def _versions() -> str:
    return ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("onnxruntime", "onnx")
    )


@dataclass(frozen=True)
class Bench:
    """Where the model, its adapters and its bundle are; an adapter belongs to a prompt."""

    row: Row
    home: Path

    @property
    def model(self) -> Path:
        """Return the Hugging Face folder."""
        return self.home / self.row.name

    @property
    def place(self) -> Path:
        """Return the folder of what belongs to the prompt."""
        return self.home / f"{self.row.name}-{prompt.digest()[:8]}"

    @property
    def bundle(self) -> Path:
        """Return the bundle."""
        return self.place / "bundle"

    def subject(self, variant: Variant, questions: int) -> Subject:
        """Return what is measured of a variant."""
        made = manifest.read(self.bundle)
        file = made.find("backbone", variant.quant, format=variant.format)
        adapters = {}
        for name in ADAPTERS:
            if found := made.find("adapter", ADAPTER_QUANT, name, variant.format):
                adapters[name] = (str(self.bundle / found.path), found.sha256)
        if file is None or len(adapters) < len(ADAPTERS):
            raise WorkError(f"{self.place}: {variant.name} is not all there; delete the folder")
        return Subject(str(self.bundle / file.path), adapters, questions)


def _export(args: argparse.Namespace, bench: Bench, log: Log) -> None:
    """Make what is not in the bundle yet, each by a tel-export of its own, and note its cost."""

    def once(step: str, *options: str) -> None:
        if not log.has(step, 0):
            usage, files = exported(bench.model, bench.bundle, *options)
            log.add(step, 0, {**asdict(usage), "written": written(files)})
            cli.say(args, f"export {step}: {usage.seconds:.1f} s")

    if not bench.model.is_dir():
        check_space(bench.home, NEEDED[args.small], "--work")
        cli.say(args, f"building {bench.row.name}")
        built(bench.row, args.shared, bench.model)
    for variant in EXPORTS:
        # One that is there but was not noted is made again, since nobody knows what it took.
        once(variant.name, *variant.options, "--force")
    weights = manifest.read(bench.bundle).backbone.weights
    folders = [bench.place / "adapters" / name for name in ADAPTERS]
    for seed, (name, folder) in enumerate(zip(ADAPTERS, folders, strict=True)):
        if not (folder / "training.json").is_file():
            peft(bench.model, folder, RANK, name, weights, seed)
    adapters = ("--adapter", ",".join(map(str, folders)), "--adapter-quant", ADAPTER_QUANT)
    for variant in (INT4, EXPORTS[-1]):
        once(f"{variant.format.upper()} adapters", *variant.options, *adapters)


def _steps(bench: Bench, questions: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield what is measured in a round by name."""
    for variant in VARIANTS:
        subject = bench.subject(variant, questions)
        yield variant.name, partial(in_child, None, onnx_contenders.runtime, subject)
    for variant, steps in SHARING.items():
        subject = bench.subject(variant, questions)
        for step, way in zip(steps, (ROW, *WAYS), strict=True):
            yield step, partial(in_child, None, onnx_contenders.sharing, subject, way)


def tables(bench: Bench, exports: Log, log: Log, small: bool) -> str:
    """Return all tables as Markdown, and whether the targets are met."""
    made = {
        "onnx-exports": _exports(exports),
        "onnx-files": _files(bench),
        "onnx-runtime": _runtime(log),
        "onnx-sharing": _sharing(log),
    }
    parts = [f"<!-- table: {name} -->\n" + "\n".join(lines) for name, lines in made.items()]
    verdicts = [f"{name}: {verdict}" for name, verdict in _targets(bench, log).items()]
    end = f"targets{' (a tiny model: they say nothing)' if small else ''}: {'; '.join(verdicts)}"
    return "\n\n".join([*parts, f"{log.conditions}; {machine()}", f"{end}\n"])


def _exports(exports: Log) -> Iterator[str]:
    yield from head("type", "written in s", "with the gate s", "anonymous MB", "mapped files MB")
    for made in exports.mine:
        sizes = (f"{made.values[kind] / 1e6:,.0f}" for kind in ("anonymous", "file"))
        times = (f"{made.values[kind]:.1f}" for kind in ("written", "seconds"))
        yield line(made.step, *times, *sizes)


def _sizes(bench: Bench) -> dict[str, dict[str, int]]:
    """Return the bytes of each backbone without its tokenizer, and of an adapter."""
    made, found = manifest.read(bench.bundle), {}
    for variant in VARIANTS:
        file = made.find("backbone", variant.quant, format=variant.format)
        adapter = made.find("adapter", ADAPTER_QUANT, ADAPTERS[0], variant.format)
        assert file is not None
        assert adapter is not None
        parts = [part for part in made.parts(file) if part.kind != "tokenizer"]
        found[variant.name] = {"backbone": manifest.total_bytes(parts), "adapter": adapter.bytes}
    return found


def _files(bench: Bench) -> Iterator[str]:
    yield from head("type", "MiB on the disk", f"adapter (r {RANK}, {ADAPTER_QUANT}) MiB")
    for name, sizes in _sizes(bench).items():
        yield line(name, *(f"{sizes[kind] / MIB:,.1f}" for kind in ("backbone", "adapter")))


# A measurement and the number of questions, to a figure.
Figure = Callable[[Mapping[str, Any], int], float]


def _rate(kind: str) -> Figure:
    return lambda values, count: count / float(values["questions"][kind])


def _reuse(kind: str) -> Figure:
    return lambda values, _: float(values["questions"]["alone"] / values["questions"][kind])


def _value(name: str, factor: float = 1) -> Figure:
    return lambda values, _: float(values[name] * factor)


def _memory(kind: str) -> Figure:
    return lambda values, _: float(values["memory"][kind] or 0) / 1e6


FIGURES: dict[str, tuple[Figure, str]] = {
    "opening, s": (_value("open"), ".2f"),
    f"plain prompt of {PLAIN} tokens, ms": (_value("plain"), ",.0f"),
    "questions/s, prefix kept": (_rate("kept"), ",.2f"),
    "questions/s, prefix computed once among them": (_rate("first"), ",.2f"),
    "questions/s, each alone with all of its tokens": (_rate("alone"), ",.2f"),
    "prefix reuse, prefix kept": (_reuse("kept"), ".2f"),
    "prefix reuse, prefix computed once": (_reuse("first"), ".2f"),
    "setting the other adapter, microseconds": (_value("use", 1000), ",.1f"),
    "first run after that is longer by, ms": (_value("extra"), ".3f"),
    "such a run (one token), ms": (_value("run"), ",.1f"),
    "loading an adapter's file, ms": (_value("load"), ",.1f"),
    "peak memory, MB": (_memory("peak"), ",.0f"),
    "anonymous memory, MB": (_memory("anonymous"), ",.0f"),
}


def _runtime(log: Log) -> Iterator[str]:
    count = _count(log)
    yield from head("measure", *(variant.name for variant in VARIANTS))
    for name, (figure, form) in FIGURES.items():
        cells = [
            spread([figure(values, count) for values in log.of(variant.name).values()], form)
            for variant in VARIANTS
        ]
        yield line(name, *cells)


def _count(log: Log) -> int:
    """Return how many questions there were."""
    return len(next(iter(log.of(SHARING[INT4][0]).values()))["runs"][0]["logprobs"])


def _sharing(log: Log) -> Iterator[str]:
    count = _count(log)
    yield from head(
        *("type", "contender", "most in a batch", "questions/s", "times one by one"),
        *("tokens computed", "largest difference to one by one"),
    )
    for variant, steps in SHARING.items():
        alone = log.of(f"{variant.name}: {ALONE}")
        base = {turn: values["runs"][0] for turn, values in alone.items()}
        for step, way in zip(steps, (ROW, *WAYS), strict=True):
            made = _best(log.of(step))
            rates = [count / run["seconds"] for run in made.values()]
            times = [base[turn]["seconds"] / run["seconds"] for turn, run in made.items()]
            apart = max(
                _apart(run["logprobs"], base[turn]["logprobs"]) for turn, run in made.items()
            )
            run = next(iter(made.values()))
            yield line(
                *(variant.name, way, str(run["batch"] or "")),
                *(spread(rates, ",.2f"), spread(times, ".2f")),
                *(f"{run['tokens']:,}", f"{apart:.2g}"),
            )


def _best(rounds: Mapping[int, Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """Return the runs, by round, of the size of batch that is fastest in the median."""

    def seconds(at: int) -> float:
        return statistics.median(float(values["runs"][at]["seconds"]) for values in rounds.values())

    best = min(range(len(next(iter(rounds.values()))["runs"])), key=seconds)
    return {turn: values["runs"][best] for turn, values in rounds.items()}


def _apart(some: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> float:
    """Return the largest difference of log-probabilities."""
    return max(
        abs(x - y)
        for one, other in zip(some, others, strict=True)
        for x, y in zip(one, other, strict=True)
    )


def _targets(bench: Bench, log: Log) -> dict[str, str]:
    """Return what each target came to; the slowest ONNX type counts.

    A switch is the setting and what it adds to the next run, so that nothing can hide there.
    """
    rounds = {variant.name: log.of(variant.name).values() for variant in ONNX}
    switch = {
        name: statistics.median(v["use"] for v in made)
        + max(0.0, statistics.median(v["extra"] for v in made))
        for name, made in rounds.items()
    }
    reuse = {
        name: statistics.median(_reuse("kept")(values, 0) for values in made)
        for name, made in rounds.items()
    }
    slow, low = max(switch, key=switch.__getitem__), min(reuse, key=reuse.__getitem__)
    size = _sizes(bench)[INT4.name]["backbone"] / MIB
    return {
        f"switch < {SWITCH:g} ms": _verdict(
            switch[slow] < SWITCH, f"{switch[slow]:.3f} ms with the next run's share, {slow}"
        ),
        f"prefix reuse >= {REUSE:g}": _verdict(reuse[low] >= REUSE, f"{reuse[low]:.2f}, {low}"),
        f"int4 file <= {SIZE} MiB": _verdict(size <= SIZE, f"{size:.1f} MiB"),
    }


def _verdict(met: bool, figure: str) -> str:
    return f"{'met' if met else 'NOT MET'} ({figure})"


def parser() -> cli.Parser:
    """Return the options."""
    made = cli.Parser(
        prog="bench_onnx.py",
        description="Compare the two engines on one backbone, and ways of sharing a run.",
        allow_abbrev=False,
    )
    made.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        default=Path(tempfile.gettempdir()) / "tel-edge-bench-onnx",
        help="where the model is built and measurements are kept; 9 GB (%(default)s)",
    )
    made.add_argument(
        "--questions", type=cli.positive, default=QUESTIONS, metavar="N", help="(%(default)s)"
    )
    made.add_argument(
        "--rounds", type=cli.positive, default=ROUNDS, metavar="N", help="(%(default)s)"
    )
    made.add_argument("--small", action="store_true", help="a tiny model, to try the script itself")
    made.add_argument("--fresh", action="store_true", help="measure again what is in the bundle")
    common_options(made, "tokenizers")
    return made


def main() -> None:
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
