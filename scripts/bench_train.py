"""Compares training steps: `python scripts/bench_train.py --shared DIR --out FILE`.

tel-edge's step computes the logits of the answer alone and groups questions by length; beside it
stands transformers' plain `Trainer` as it is by default: logits and labels of the whole sequence,
-100 everywhere but at the answer, questions in random order. Examples, batch, LoRA (rank 16, seven
projections) and precision are the same. The backbones have their real size and random weights.
Every measurement is a process of its own, and all take turns in several rounds. What is finished is
kept in the work folder as one JSON line each, so a killed run goes on.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import train_contenders
from bench_tables import common_options, head, keep, line, machine, spread
from real_size import ROWS, Row, built, check_space
from reference_converter import measured
from runtime_tables import Log
from train_contenders import AGAIN, CONTENDERS, OURS, PLAIN, SEED, Task

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.benchmarks.split import capped, split
from tel_edge.runtime import cli
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.files.atomic import write_text
from tel_edge.runtime.questions import prompt
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.train.data import Example

# What is measured on which device, and by default with how many steps and questions a step.
BACKBONES = {"cpu": ("qwen3",), "cuda": ("qwen3", "llama", "exaone4")}
STEPS, BATCH = {"cpu": 16, "cuda": 40}, {"cpu": 4, "cuda": 16}
ROUNDS = 3
# Prompts beyond it are left out: a handful of long tables would decide the memory of all.
LONGEST = 1024
NEEDED = {False: 8_000_000_000, True: 100_000_000}
# The targets, for a GPU: tokens/s as times of the plain one, peak memory as a share of it.
FASTER, SMALLER = 1.3, 0.6
MEASURES = ("tokens/s, times plain", "peak memory, share of plain")


@dataclass(frozen=True)
class Case:
    """A backbone on a device, and the examples of one pass."""

    row: Row
    device: str
    batch: int
    examples: tuple[Example, ...]
    model: Path
    file: Path

    def step(self, contender: str) -> str:
        """Return the name of a contender's measurement."""
        return f"{self.device}: {self.row.name}: {contender}"

    def task(self, contender: str) -> Task:
        """Return what its process is to do."""
        return Task(contender, self.device, str(self.model), str(self.file), self.batch)


def work(args: argparse.Namespace) -> Mapping[str, Any]:
    """Measure what is not measured yet and print the tables; see `parser` for the arguments."""
    home = (args.work / ("small" if args.small else "full")).absolute()
    home.mkdir(parents=True, exist_ok=True)
    there = devices() if args.device == "all" else [args.device]
    name, questions = _questions(args)
    cases = [_case(args, home, device, kind, questions) for device, kind in _pairs(there)]
    counts = {case.device: f"{len(case.examples)} in steps of {case.batch}" for case in cases}
    conditions = ", ".join(
        [*(f"{device}: {text}" for device, text in counts.items()), name, prompt.digest()[:8]]
    )
    log = Log(home / "measurements.jsonl", conditions, args.fresh)
    for turn in range(args.rounds or (1 if args.small else ROUNDS)):
        steps = [(case, contender) for case in cases for contender in CONTENDERS]
        # Backwards in every second round: what drifts in one direction then cancels out.
        for case, contender in steps[:: -1 if turn % 2 else 1]:
            if not log.has(case.step(contender), turn):
                began = time.perf_counter()
                log.add(case.step(contender), turn, run(case.task(contender)))
                spent = time.perf_counter() - began
                cli.say(args, f"round {turn + 1}: {case.step(contender)}: {spent:.1f} s")
    text = tables(cases, log, args.peak_tflops)
    print(text, end="")
    document = {
        "machine": _machine(),
        "small": args.small,
        "conditions": conditions,
        "ratios": {case.step("")[:-2]: ratios(case, log) for case in cases},
        "measurements": [asdict(made) for made in log.mine],
    }
    keep(args.out, text, document)
    return document


def devices() -> list[str]:
    """Return the devices that this machine has."""
    import torch

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _machine() -> str:
    import torch

    card = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{machine()}, peft {importlib.metadata.version('peft')}{card}"


def _pairs(there: Sequence[str]) -> Iterator[tuple[str, str]]:
    for device in there:
        for kind in BACKBONES[device]:
            yield device, kind


def _questions(args: argparse.Namespace) -> tuple[str, list[tuple[str, str]]]:
    """Return the data set's name, and prompt and label of training questions in random order."""
    folder = args.shared / "ot-full"
    dataset = str(folder) if folder.is_dir() else "ot-mini"
    if dataset == "ot-mini":
        print(f"no ot-full in {args.shared}: questions of ot-mini instead", file=sys.stderr)
    asked = []
    for row in CATEGORIES.values():
        train = split(benchmark.read(dataset, row).questions, SEED).train
        # As many of each category, so that no length is the rule.
        for question in capped(train, 400, SEED):
            label = prompt.labels(question)[question.answer or 0]
            asked.append((prompt.render(question), label))
    return Path(dataset).name, list(capped(asked, len(asked), SEED))


def _case(
    args: argparse.Namespace,
    home: Path,
    device: str,
    kind: str,
    questions: Sequence[tuple[str, str]],
) -> Case:
    row = ROWS[kind].small() if args.small else ROWS[kind]
    if not (args.shared / "tokenizers").is_dir():
        row = replace(row, tokenizer="")
    model = home / row.name
    if not model.is_dir():
        check_space(home, NEEDED[args.small], "--work")
        cli.say(args, f"building {row.name}")
        built(row, args.shared, model)
    batch = args.batch or BATCH[device]
    steps = args.steps or (4 if args.small else STEPS[device])
    coded = _coded(ROWS[kind], args.shared, row.config["vocab_size"], questions)
    made = capped([one for one in coded if len(one.ids) < LONGEST], steps * batch, SEED)
    if len(made) < steps * batch:
        raise InputError(f"{len(made)} questions for {steps} steps of {batch}; pass fewer --steps")
    file = home / f"{row.name}-{steps}x{batch}.json"
    write_text(file, json.dumps([[one.ids, one.target] for one in made]))
    return Case(row, device, batch, made, model, file)


def _coded(
    row: Row, shared: Path, vocabulary: int, questions: Sequence[tuple[str, str]]
) -> list[Example]:
    """Return the examples in tokens of the row's tokenizer, or of Qwen's where it has none here.

    Without any tokenizer a byte is a token. Only how many they are matters, so ids are folded into
    the vocabulary.
    """
    path = shared / "tokenizers" / (row.tokenizer or ROWS["qwen3"].tokenizer) / "tokenizer.json"
    prompts, ends = [one for one, _ in questions], [label for _, label in questions]
    if path.is_file():
        from tokenizers import Tokenizer

        opened = Tokenizer.from_file(str(path))
        ids = [found.ids for found in opened.encode_batch(prompts)]
        last = [found.ids[-1] for found in opened.encode_batch(ends)]
    else:
        ids = [list(text.encode()) for text in prompts]
        last = [text.encode()[-1] for text in ends]
    return [
        Example(tuple(one % vocabulary for one in some), target % vocabulary)
        for some, target in zip(ids, last, strict=True)
    ]


def run(task: Task) -> dict[str, Any]:
    """Run a task in a process of its own; too little GPU memory for it is a finding."""
    command = [sys.executable, train_contenders.__file__, json.dumps(asdict(task))]
    # The machine's GPU would choose precision and attention for a run on the CPU too.
    changed = {"CUDA_VISIBLE_DEVICES": ""} if task.device == "cpu" else {}
    try:
        usage, text = measured(command, {"TOKENIZERS_PARALLELISM": "false", **changed})
    except WorkError as error:
        if "out of memory" in str(error).lower():
            return {"crashed": "out of memory"}
        raise
    made: dict[str, Any] = json.loads(text.splitlines()[-1])
    return {"anonymous": usage.anonymous, **made}


def flops(case: Case) -> float:
    """Return the floating-point operations that a pass over the examples needs, in any way.

    A matrix takes 2 a weight and token forwards, and 2 backwards for the activations; the frozen
    weights have no gradient, and LoRA's own part is left out. So 4 for each weight of the blocks
    and each token, 4 for each weight of the head and each answer. Causal attention takes
    2 T^2 heads head_dim forwards in each layer, and twice that backwards. Padding, logits of other
    positions and what is computed again are no useful work.
    """
    (wide, inner, layers, heads, shared, size, vocabulary, _) = case.row.numbers
    block = wide * size * (2 * heads + 2 * shared) + 3 * wide * inner
    lengths = [len(one.ids) for one in case.examples]
    matrices = 4 * (block * layers * sum(lengths) + vocabulary * wide * len(lengths))
    return matrices + 6 * layers * heads * size * sum(length**2 for length in lengths)


def _rates(case: Case, log: Log, contender: str) -> list[float]:
    return [made["tokens"] / made["seconds"] for made in log.of(case.step(contender)).values()]


def _peaks(case: Case, log: Log, contender: str) -> list[float]:
    """Return megabytes: of the GPU, or of the process where it computes on the CPU."""
    key = "cuda" if case.device == "cuda" else "anonymous"
    return [made[key] / 1e6 for made in log.of(case.step(contender)).values()]


def ratios(case: Case, log: Log) -> dict[str, dict[str, float]]:
    """Return what `MEASURES` came to by contender, medians against medians."""
    made: dict[str, dict[str, float]] = {}
    for name, read in zip(MEASURES, (_rates, _peaks), strict=True):
        if plain := read(case, log, PLAIN):
            made[name] = {
                contender: statistics.median(values) / statistics.median(plain)
                for contender in (OURS, AGAIN)
                if (values := read(case, log, contender))
            }
    return made


def tables(cases: Sequence[Case], log: Log, peak: float | None) -> str:
    """Return all tables as Markdown; `peak` are the GPU's teraflops a second."""
    parts = [
        "<!-- table: training-step -->\n" + "\n".join(_steps(cases, log, peak)),
        "<!-- table: training-ratios -->\n" + "\n".join(_ratios(cases, log)),
    ]
    if not any(case.device == "cuda" for case in cases):
        parts.append("No GPU was measured here: its rows are empty, its targets are open.")
    return "\n\n".join([*parts, f"{log.conditions}; {_machine()}", ""])


def _steps(cases: Sequence[Case], log: Log, peak: float | None) -> Iterator[str]:
    yield from head(
        "backbone", "type", "contender", "tokens/s", "s a step", "peak MB", "padding", "MFU"
    )
    for case in cases:
        for contender in CONTENDERS:
            made = list(log.of(case.step(contender)).values())
            cells = ["out of memory", "", "", "", ""]
            if made:
                each = [statistics.median(one["each"]) for one in made]
                rest = [1 - one["tokens"] / one["computed"] for one in made]
                useful = [flops(case) / one["seconds"] / 1e12 for one in made]
                mfu = f"{statistics.median(useful) / peak:.1%}" if peak else "-"
                cells = [
                    spread(_rates(case, log, contender), ",.0f"),
                    spread(each, ".3f"),
                    spread(_peaks(case, log, contender), ",.0f"),
                    f"{statistics.median(rest):.0%}",
                    mfu if case.device == "cuda" else "-",
                ]
            yield line(case.row.name, _precision(case.device, made), contender, *cells)
    for kind in () if any(case.device == "cuda" for case in cases) else BACKBONES["cuda"]:
        for contender in CONTENDERS:
            yield line(ROWS[kind].name, "GPU", contender, *[""] * 5)


def _precision(device: str, made: Sequence[Mapping[str, Any]]) -> str:
    name = "GPU" if device == "cuda" else "CPU"
    return f"{name}, {'bf16' if made[0]['bf16'] else 'fp32'}" if made else name


def _ratios(cases: Sequence[Case], log: Log) -> Iterator[str]:
    yield from head("backbone", "type", "measure", OURS, AGAIN, "target (GPU)")
    targets = (f">= {FASTER:g}", f"<= {SMALLER:g}")
    for case in cases:
        found, gpu = ratios(case, log), case.device == "cuda"
        for name, target in zip(MEASURES, targets, strict=True):
            values = [found.get(name, {}).get(contender) for contender in (OURS, AGAIN)]
            shown = ["" if value is None else f"{value:.2f}" for value in values]
            place = "GPU" if gpu else "CPU"
            yield line(case.row.name, place, name, *shown, target if gpu else "")
    for kind in () if any(case.device == "cuda" for case in cases) else BACKBONES["cuda"]:
        for name, target in zip(MEASURES, targets, strict=True):
            yield line(ROWS[kind].name, "GPU", name, "", "", target)


def parser() -> cli.Parser:
    """Return the options."""
    made = cli.Parser(
        prog="bench_train.py", description="Compare training steps.", allow_abbrev=False
    )
    made.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        default=Path(tempfile.gettempdir()) / "tel-edge-bench-train",
        help="where models are built and measurements are kept; 8 GB (%(default)s)",
    )
    made.add_argument("--device", choices=("all", "cpu", "cuda"), default="all", help="(all here)")
    made.add_argument("--steps", type=cli.positive, metavar="N", help=f"({_each(STEPS)})")
    made.add_argument("--batch", type=cli.positive, metavar="N", help=f"({_each(BATCH)})")
    made.add_argument(
        "--rounds", type=cli.positive, metavar="N", help=f"({ROUNDS}; 1 with --small)"
    )
    made.add_argument(
        "--peak-tflops",
        type=float,
        metavar="T",
        help="of the GPU in bf16 without sparsity, for the model FLOPs utilisation",
    )
    made.add_argument("--small", action="store_true", help="tiny models, to try the script itself")
    made.add_argument("--fresh", action="store_true", help="forget what was measured before")
    common_options(made, "tokenizers and ot-full")
    return made


def _each(values: Mapping[str, int]) -> str:
    return ", ".join(f"{device} {value}" for device, value in values.items())


def main() -> None:
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
