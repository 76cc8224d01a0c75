"""Makes the tables of docs/export.md: `python scripts/bench_export.py --out FILE`.

The three backbones at real size with random weights, since size, speed and memory do not depend on
the values. Each is built, measured and deleted before the next. What is finished is kept in the
work folder as one JSON line each, so an interrupted run goes on; delete the folder to start anew.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import reference_converter
from reference_converter import Usage, measured

from tel_edge.export import architectures
from tel_edge.runtime import cli, gguf_header, manifest, prompt
from tel_edge.runtime.atomic import write_text
from tel_edge.runtime.categories import CATEGORIES
from tel_edge.runtime.errors import InputError, WorkError

ROOT = Path(__file__).resolve().parents[1]
EOS = "<|end_of_text|>"
QUANTS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q2_K")
RANKS = (4, 8, 16, 32)
ADAPTER_KINDS = ("F32", "F16", "Q8_0")
# The rank and type of adapters in the table of totals.
USUAL = (16, "F16")
WEIGHTS, OURS, THEIRS = "weights", "tel-export F16", "converter F16"
# Bytes on the disk for the largest backbone: its folder, the F16 file and the converter's.
NEEDED = {False: 8_000_000_000, True: 100_000_000}
# The headings of docs/export.md.
HALF_TITLE = "F16 beside llama.cpp's converter"
QUANT_TITLE = "Quantized types from the F16 file"
ADAPTER_TITLE = "Adapters by rank and type"
TOTAL_TITLE = "One backbone with six adapters, or six merged models"

CORPUS = [
    "The near-RT RIC hosts xApps that steer the E2 nodes' behaviour within 10 ms to 1 s.",
    "A gNB splits into CU and DU; the F1 interface joins them. It's defined in TS 38.470.",
    "Which interface joins the SMO and the non-RT RIC? They'd say A1, we'll see in 2026.",
]


# The columns of `Row.numbers`.
FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
    *("vocab_size", "max_position_embeddings"),
)


@dataclass(frozen=True)
class Row:
    """A backbone as its published configuration has it.

    `tokenizer` is a folder of shared/tokenizers, "" for one that is made up. `base` is the base of
    the rotation, `factor` that of Llama 3.1's scaling, 0 for none. `special` are the ids of the
    first and last token.
    """

    kind: str
    name: str
    tokenizer: str
    numbers: tuple[int, ...]
    base: float
    factor: float
    epsilon: float
    special: tuple[int | None, int]

    @property
    def config(self) -> dict[str, Any]:
        """Return transformers' fields."""
        made: dict[str, Any] = dict(zip(FIELDS, self.numbers, strict=True))
        made |= {"tie_word_embeddings": True, "rms_norm_eps": self.epsilon}
        made |= {"bos_token_id": self.special[0], "eos_token_id": self.special[1]}
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.base}
        if self.factor:
            rope |= {"rope_type": "llama3", "factor": self.factor}
            rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
            rope |= {"original_max_position_embeddings": 8192}
        made["rope_parameters"] = rope
        if self.kind == "exaone4":
            made |= {"sliding_window": None, "sliding_window_pattern": 0}
            # transformers cannot make this list up where no layer slides.
            made["layer_types"] = ["full_attention"] * made["num_hidden_layers"]
        return made


# Source: the config.json of the repositories in runtime/backbones.py.
ROWS = {
    row.kind: row
    for row in (
        Row(
            "llama", "Llama-3.2-1B", "llama-3",
            (2048, 8192, 16, 32, 8, 64, 128256, 131072), 5e5, 32.0, 1e-5, (128000, 128001),
        ),
        Row(
            "qwen3", "Qwen3-0.6B", "qwen2",
            (1024, 3072, 28, 16, 8, 128, 151936, 40960), 1e6, 0.0, 1e-6, (151643, 151643),
        ),
        Row(
            "exaone4", "EXAONE-4.0-1.2B", "",
            (2048, 4096, 30, 32, 8, 64, 102400, 65536), 1e6, 16.0, 1e-5, (None, 0),
        ),
    )
}  # fmt: skip
# The numbers of --small; rows stay multiples of 256, so K-quants apply.
SMALL = (256, 512, 2, 4, 2, 64, 512, 16384)


@dataclass(frozen=True)
class Measurement:
    """One finished step of a backbone; `turn` counts its repetitions from 0.

    `bytes` is the size of the file that was made; the rest is what making it took, None where
    several files were made together.
    """

    backbone: str
    step: str
    turn: int
    bytes: int
    seconds: float | None = None
    anonymous: int | None = None
    file: int | None = None


class Log:
    """The finished measurements, in the order in which they were made, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: list[Measurement] = []
        for line in path.read_text().splitlines() if path.is_file() else ():
            self.done.append(Measurement(**json.loads(line)))

    def find(self, kind: str, step: str) -> list[Measurement]:
        """Return the measurements of a step, one for each turn."""
        return [made for made in self.done if (made.backbone, made.step) == (kind, step)]

    def has(self, kind: str, step: str, turn: int = 0) -> bool:
        """Return whether that turn of the step is finished."""
        return any(made.turn == turn for made in self.find(kind, step))

    def add(self, made: Measurement) -> None:
        """Keep a measurement."""
        self.done.append(made)
        write_text(self.path, "".join(json.dumps(asdict(one)) + "\n" for one in self.done))


def work(args: argparse.Namespace) -> Mapping[str, Any]:
    """Measure what is not measured yet and print the tables; see `parser` for the arguments."""
    rows = _rows(args.backbones, args.small)
    home = (args.work / ("small" if args.small else "full")).absolute()
    home.mkdir(parents=True, exist_ok=True)
    log = Log(home / "measurements.jsonl")
    for row in rows:
        if any(not log.has(row.kind, step, turn) for step, turn in _steps(args.repeat)):
            _measure(args, Bench(row, home), log)
    text = tables(rows, log)
    print(text)
    kinds = {row.kind for row in rows}
    raw = [asdict(made) for made in log.done if made.backbone in kinds]
    document = {"machine": machine(), "small": args.small, "measurements": raw}
    if args.out:
        write_text(args.out, text)
        write_text(args.out.with_suffix(".json"), json.dumps(document, indent=1) + "\n")
    return document


def _rows(text: str, small: bool) -> list[Row]:
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [name for name in names if name not in ROWS]
    if unknown or not names:
        raise InputError(f"--backbones: no {(unknown or [''])[0]!r}; there are: {' '.join(ROWS)}")
    rows = [ROWS[name] for name in names]
    if not small:
        return rows
    return [
        replace(row, name=f"small-{row.kind}", tokenizer="", numbers=SMALL, special=(None, 0))
        for row in rows
    ]


def _steps(repeat: int) -> Iterator[tuple[str, int]]:
    """Yield all that is measured of a backbone, (step, turn)."""
    yield WEIGHTS, 0
    for turn in range(repeat):
        yield OURS, turn
        yield THEIRS, turn
    for quant in QUANTS:
        yield quant, 0
    for kind in ADAPTER_KINDS:
        for rank in RANKS:
            yield adapter_step(kind, rank), 0


def adapter_step(kind: str, rank: int) -> str:
    """Return the name of the step that makes adapters of that type and rank."""
    return f"adapter {kind} r{rank}"


@dataclass(frozen=True)
class Bench:
    """Where the files of a backbone are while it is measured."""

    row: Row
    home: Path

    @property
    def model(self) -> Path:
        """Return the Hugging Face folder."""
        return self.home / self.row.name

    @property
    def bundle(self) -> Path:
        """Return the bundle with the F16 file, from which the quantized types are made."""
        return self.home / f"{self.row.name}-bundle"

    @property
    def adapters(self) -> Path:
        """Return the folder of the PEFT folders."""
        return self.home / f"{self.row.name}-adapters"


def _measure(args: argparse.Namespace, bench: Bench, log: Log) -> None:
    kind = bench.row.kind
    converter = reference_converter.fetch()

    def once(step: str, turn: int, make: Callable[[], tuple[int, Usage | None]]) -> None:
        if log.has(kind, step, turn):
            return
        # What was written before must not be flushed while this is timed.
        os.sync()
        size, usage = make()
        log.add(Measurement(kind, step, turn, size, **(asdict(usage) if usage else {})))
        took = f", {usage.seconds:.1f} s, {usage.anonymous / 1e6:,.0f} MB" if usage else ""
        cli.say(args, f"{bench.row.name}: {step}: {size / 1e6:,.2f} MB{took}")

    if not bench.model.is_dir():
        _check_space(bench.home, NEEDED[args.small])
        cli.say(args, f"{bench.row.name}: building")
        # In a process of its own, whose memory goes away with it.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(build, bench.row, args.shared, bench.model).result()
    once(WEIGHTS, 0, lambda: ((bench.model / "model.safetensors").stat().st_size, None))
    for turn in range(args.repeat):
        once(OURS, turn, lambda: _half(bench))
        once(THEIRS, turn, lambda: _reference(bench, converter))
    for quant in QUANTS:
        once(quant, 0, lambda quant=quant: _quantized(bench, quant))
    for stored in ADAPTER_KINDS:
        steps = {rank: adapter_step(stored, rank) for rank in RANKS}
        if not all(log.has(kind, step) for step in steps.values()):
            sizes = _adapters(bench, stored)
            for rank, step in steps.items():
                once(step, 0, lambda rank=rank, sizes=sizes: (sizes[rank], None))
    if not args.keep:
        for folder in (bench.model, bench.bundle, bench.adapters):
            shutil.rmtree(folder, ignore_errors=True)


def _check_space(home: Path, needed: int) -> None:
    free = shutil.disk_usage(home).free
    if free < needed:
        raise WorkError(
            f"{home}: {free / 1e6:,.0f} MB free, {needed / 1e6:,.0f} MB needed; make room, or "
            "pass --work on another disk"
        )


def build(row: Row, shared: Path, folder: Path) -> None:
    """Write a model folder with random weights in bfloat16, complete or not at all."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _tokenizer(row, shared, partial)
    torch.manual_seed(42)
    config = AutoConfig.for_model(row.kind, **row.config)
    # Names and shapes only: transformers' own initialisation takes minutes.
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    state = {}
    for name, weight in model.named_parameters():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = torch.empty(weight.shape)
        values = values.fill_(1.0) if weight.dim() == 1 else values.normal_(std=0.02)
        state[name] = values.to(torch.bfloat16)
    config.architectures = [type(model).__name__]
    config.save_pretrained(partial)
    save_file(state, partial / "model.safetensors", metadata={"format": "pt"})
    os.replace(partial, folder)


def _tokenizer(row: Row, shared: Path, folder: Path) -> None:
    if row.tokenizer:
        source = shared / "tokenizers" / row.tokenizer
        if not source.is_dir():
            raise InputError(f"no {source}; pass the folder that holds tokenizers as --shared")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(source / name, folder / name)
        return
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    # GPT-2's rules. The ids that training leaves free are padding.
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        CORPUS * 5,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=[EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token=EOS).save_pretrained(folder)


def exported(model: Path, out: Path, *options: str) -> tuple[Usage, list[dict[str, Any]]]:
    """Run tel-export in a child; return what it took and the files that it lists."""
    command = [sys.executable, "-P", "-m", "tel_edge.export.export", "--backbone", str(model)]
    command += ["--out", str(out), "--no-verify", "--json", "--quiet", *options]
    usage, text = measured(command)
    return usage, json.loads(text.splitlines()[-1])["files"]


def _half(bench: Bench) -> tuple[int, Usage]:
    shutil.rmtree(bench.bundle, ignore_errors=True)
    usage, files = exported(bench.model, bench.bundle, "--quant", "F16")
    return files[0]["bytes"], usage


def _half_file(bench: Bench) -> Path:
    """Return the F16 file, which is made again where an earlier run has deleted it."""
    if not (bench.bundle / manifest.NAME).is_file():
        _half(bench)
    file = manifest.read(bench.bundle).find("backbone", "F16")
    if file is None:
        raise WorkError(f"{bench.bundle}: no F16 file; delete the folder")
    return bench.bundle / file.path


def _reference(bench: Bench, converter: Path) -> tuple[int, Usage]:
    pre = ""
    if not bench.row.tokenizer:
        pre = str(gguf_header.check(_half_file(bench)).metadata["tokenizer.ggml.pre"])
    out = bench.home / f"{bench.row.name}-converter.gguf"
    try:
        usage = reference_converter.convert(bench.model, out, "f16", pre, converter)
        return out.stat().st_size, usage
    finally:
        out.unlink(missing_ok=True)


def _quantized(bench: Bench, quant: str) -> tuple[int, Usage]:
    source = _half_file(bench)
    # A bundle of its own around the same F16 file, so that nothing of it has to be taken back.
    with tempfile.TemporaryDirectory(dir=bench.home) as passing:
        os.link(source, Path(passing) / source.name)
        shutil.copyfile(bench.bundle / manifest.NAME, Path(passing) / manifest.NAME)
        usage, files = exported(bench.model, Path(passing), "--quant", quant)
    return files[0]["bytes"], usage


def _adapters(bench: Bench, stored: str) -> dict[int, int]:
    """Export one adapter of each rank; return their sizes in bytes by rank."""
    _half_file(bench)
    weights = manifest.read(bench.bundle).backbone.weights
    categories = dict(zip(CATEGORIES, RANKS, strict=False))
    folders = []
    for category, rank in categories.items():
        folder = bench.adapters / f"r{rank}"
        if not (folder / "training.json").is_file():
            _peft(bench, folder, rank, category, weights)
        folders.append(str(folder))
    options = ["--quant", "F16", "--adapter", ",".join(folders), "--adapter-quant", stored]
    _, files = exported(bench.model, bench.bundle, *options)
    return {
        categories[file["category"]]: file["bytes"] for file in files if file["kind"] == "adapter"
    }


def _peft(bench: Bench, folder: Path, rank: int, category: str, weights: str) -> None:
    """Write a PEFT folder with random matrices on all seven projections."""
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((bench.model / "config.json").read_text())
    shape = architectures.shape_of(config, str(bench.model))
    rng, tensors = np.random.default_rng(rank), {}
    for block in range(shape.layers):
        for tensor in architectures.linear(shape, block):
            name = f"base_model.model.{tensor.source.removesuffix('.weight')}"
            rows, columns = tensor.shape
            for part, size in (("A", (rank, columns)), ("B", (rows, rank))):
                values = rng.standard_normal(size, dtype=np.float32)
                tensors[f"{name}.lora_{part}.weight"] = values * np.float32(0.02)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = [source.split(".")[1] for source, *_ in architectures.LINEAR]
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": bench.row.name,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": targets,
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    training = {
        "backbone": {"name": bench.row.name, "weights": weights},
        "prompt": prompt.digest(),
        "category": category,
        "split": "0" * 64,
        "config": {},
        "dataset": "none",
    }
    # Last: it says that the folder is complete.
    (folder / "training.json").write_text(json.dumps(training))


def tables(rows: Sequence[Row], log: Log) -> str:
    """Return all tables as Markdown."""
    return "\n".join(
        [
            *(f"### {HALF_TITLE}", "", *_half_table(rows, log), ""),
            *(f"### {QUANT_TITLE}", "", *_quant_table(rows, log), ""),
            *(f"### {ADAPTER_TITLE}", "", *_adapter_table(rows, log), ""),
            *(f"### {TOTAL_TITLE}", "", *_total_table(rows, log), ""),
            machine(),
            "",
        ]
    )


def _half_table(rows: Sequence[Row], log: Log) -> Iterator[str]:
    yield from _head(
        "backbone",
        *("weights M", "file MB", "converter's file MB", "tel-export s", "converter s"),
        *("tel-export anonymous MB", "converter anonymous MB"),
    )
    for row in rows:
        ours, theirs = log.find(row.kind, OURS), log.find(row.kind, THEIRS)
        yield _line(
            row.name,
            f"{_weights(row, log) / 1e6:,.1f}",
            f"{ours[-1].bytes / 1e6:,.2f}",
            f"{theirs[-1].bytes / 1e6:,.2f}",
            *(_spread([m.seconds or 0 for m in made], ".1f") for made in (ours, theirs)),
            *(_spread([(m.anonymous or 0) / 1e6 for m in made], ",.0f") for made in (ours, theirs)),
        )


def _quant_table(rows: Sequence[Row], log: Log) -> Iterator[str]:
    yield from _head(
        "backbone", "type", "s", "anonymous MB", "mapped MB", "file MB", "bits a weight"
    )
    for row in rows:
        for quant in QUANTS:
            made = log.find(row.kind, quant)[0]
            yield _line(
                row.name,
                quant,
                f"{made.seconds or 0:.1f}",
                f"{(made.anonymous or 0) / 1e6:,.0f}",
                f"{(made.file or 0) / 1e6:,.0f}",
                f"{made.bytes / 1e6:,.2f}",
                f"{made.bytes * 8 / _weights(row, log):.2f}",
            )


def _adapter_table(rows: Sequence[Row], log: Log) -> Iterator[str]:
    yield from _head("backbone", "rank", *(f"{kind} MB" for kind in ADAPTER_KINDS))
    for row in rows:
        for rank in RANKS:
            steps = [adapter_step(kind, rank) for kind in ADAPTER_KINDS]
            sizes = [log.find(row.kind, step)[0].bytes for step in steps]
            yield _line(row.name, str(rank), *(f"{size / 1e6:,.2f}" for size in sizes))


def _total_table(rows: Sequence[Row], log: Log) -> Iterator[str]:
    """Yield the totals; a merged model has the tensors of its backbone, and so its size."""
    rank, kind = USUAL
    yield from _head(
        "backbone",
        *("type", "backbone MB", f"six adapters (r {rank}, {kind}) MB", "together MB"),
        *("six merged models MB", "times smaller"),
    )
    for row in rows:
        adapters = 6 * log.find(row.kind, adapter_step(kind, rank))[0].bytes
        for step in (OURS, *QUANTS):
            size = log.find(row.kind, step)[0].bytes
            yield _line(
                row.name,
                "F16" if step == OURS else step,
                *(f"{n / 1e6:,.1f}" for n in (size, adapters, size + adapters, 6 * size)),
                f"{6 * size / (size + adapters):.2f}",
            )


def _weights(row: Row, log: Log) -> float:
    """Return the number of weights: bfloat16 has two bytes each, the header next to none."""
    return log.find(row.kind, WEIGHTS)[0].bytes / 2


def _spread(values: Sequence[float], form: str) -> str:
    """Return the median, with the smallest and largest where there are several."""
    middle = format(statistics.median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} ({format(min(values), form)}-{format(max(values), form)})"


def _head(*names: str) -> Iterator[str]:
    yield _line(*names)
    # Words to the left, numbers to the right.
    yield _line(*("---" if name in ("backbone", "type") else "---:" for name in names))


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def machine() -> str:
    """Return one line that says on what this was measured."""
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    cpu = found[1].strip() if found else platform.machine()
    parts = ("tel-edge", "llama-cpp-python", "gguf", "torch", "transformers")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in parts]
    cores = len(os.sched_getaffinity(0))
    return f"{cpu}, {cores} cores, Python {platform.python_version()}, {', '.join(versions)}"


def parser() -> cli.Parser:
    """Return the options."""
    made = cli.Parser(
        prog="bench_export.py", description="Make the tables of docs/export.md.", allow_abbrev=False
    )
    made.add_argument("--backbones", default=",".join(ROWS), metavar="A,B", help="(%(default)s)")
    made.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        default=Path(tempfile.gettempdir()) / "tel-edge-bench-export",
        help="where models are built and measurements are kept; 8 GB (%(default)s)",
    )
    made.add_argument(
        "--shared",
        type=Path,
        metavar="DIR",
        default=Path(os.environ.get("TEL_SHARED", ROOT.parent / "shared")),
        help="folder with tokenizers (env TEL_SHARED; %(default)s)",
    )
    made.add_argument(
        "--repeat",
        type=cli.positive,
        default=1,
        metavar="N",
        help="turns of tel-export and the converter (%(default)s)",
    )
    made.add_argument("--small", action="store_true", help="tiny models, to try the script itself")
    made.add_argument("--keep", action="store_true", help="do not delete what was built")
    made.add_argument(
        "--out", type=Path, metavar="FILE", help="Markdown file; numbers go beside it as .json"
    )
    made.add_argument("--json", action="store_true", help="end stdout with one line of JSON")
    made.add_argument("--quiet", action="store_true", help="no log lines")
    return made


def main() -> None:
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
