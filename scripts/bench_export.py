"""Makes the tables of docs/export.md: `python scripts/bench_export.py --out FILE`.

The three backbones at real size with random weights, since size, speed and memory do not depend on
the values. Each is built, measured and deleted before the next. What is finished is kept in the
work folder as one JSON line each, so an interrupted run goes on; delete the folder to start anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import reference_converter
from bench_tables import common_options, head, keep, line, machine, spread
from real_size import ROWS, Row, built, check_space, exported, peft, written
from reference_converter import Usage

from tel_edge.runtime import cli
from tel_edge.runtime.bundles import manifest
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.files import gguf_header
from tel_edge.runtime.files.atomic import write_text
from tel_edge.runtime.questions.categories import CATEGORIES

ROOT = Path(__file__).resolve().parents[1]
QUANTS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q2_K")
RANKS = (4, 8, 16, 32)
ADAPTER_KINDS = ("F32", "F16", "Q8_0")
# The rank and type of adapters in the table of totals.
USUAL = (16, "F16")
WEIGHTS, OURS, THEIRS, WHOLE = "weights", "tel-export F16", "converter F16", "F32"
# Bytes on the disk for the largest backbone: its folder, the F32 and F16 files and the converter's.
NEEDED = {False: 13_000_000_000, True: 100_000_000}
# The headings of docs/export.md.
HALF_TITLE = "F16 beside llama.cpp's converter"
QUANT_TITLE = "Quantized types from the F16 file, and what the gate finds"
ADAPTER_TITLE = "Adapters by rank and type"
TOTAL_TITLE = "One backbone with six adapters, or six merged models"


@dataclass(frozen=True)
class Measurement:
    """One finished step of a backbone; `turn` counts its repetitions from 0.

    `bytes` is the size of the file that was made; the rest is what making it took, None where
    several files were made together, `written` the seconds without the gate, and `parity` what the
    gate found.
    """

    backbone: str
    step: str
    turn: int
    bytes: int
    seconds: float | None = None
    anonymous: int | None = None
    file: int | None = None
    written: float | None = None
    parity: Mapping[str, float] | None = None


class Log:
    """The finished measurements, in the order in which they were made, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: list[Measurement] = []
        for text in path.read_text().splitlines() if path.is_file() else ():
            self.done.append(Measurement(**json.loads(text)))

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
    keep(args.out, text, document)
    return document


def _rows(text: str, small: bool) -> list[Row]:
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [name for name in names if name not in ROWS]
    if unknown or not names:
        raise InputError(f"--backbones: no {(unknown or [''])[0]!r}; there are: {' '.join(ROWS)}")
    rows = [ROWS[name] for name in names]
    return [row.small() for row in rows] if small else rows


def _steps(repeat: int) -> Iterator[tuple[str, int]]:
    """Yield all that is measured of a backbone, (step, turn)."""
    yield WEIGHTS, 0
    for turn in range(repeat):
        yield OURS, turn
        yield THEIRS, turn
    yield WHOLE, 0
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

    def once(step: str, turn: int, make: Callable[[], tuple[Any, Usage | None]]) -> None:
        if log.has(kind, step, turn):
            return
        # What was written before must not be flushed while this is timed.
        os.sync()
        made, usage = make()
        took: dict[str, Any] = asdict(usage) if usage else {}
        size = made
        if not isinstance(made, int):
            size = made["bytes"]
            took |= {"parity": made["parity"]} | ({"written": written([made])} if usage else {})
        log.add(Measurement(kind, step, turn, size, **took))
        cost = f", {usage.seconds:.1f} s, {usage.anonymous / 1e6:,.0f} MB" if usage else ""
        cli.say(args, f"{bench.row.name}: {step}: {size / 1e6:,.2f} MB{cost}")

    if not bench.model.is_dir():
        check_space(bench.home, NEEDED[args.small], "--work")
        cli.say(args, f"{bench.row.name}: building")
        built(bench.row, args.shared, bench.model)
    once(WEIGHTS, 0, lambda: ((bench.model / "model.safetensors").stat().st_size, None))
    for turn in range(args.repeat):
        once(OURS, turn, lambda: _half(bench))
        once(THEIRS, turn, lambda: _reference(bench, converter))
    once(WHOLE, 0, lambda: _full(bench))
    for quant in QUANTS:
        once(quant, 0, lambda quant=quant: _quantized(bench, quant))
    for stored in ADAPTER_KINDS:
        steps = {rank: adapter_step(stored, rank) for rank in RANKS}
        if not all(log.has(kind, step) for step in steps.values()):
            made = _adapters(bench, stored)
            for rank, step in steps.items():
                once(step, 0, lambda rank=rank, made=made: (made[rank], None))
    if not args.keep:
        for folder in (bench.model, bench.bundle, bench.adapters):
            shutil.rmtree(folder, ignore_errors=True)


def _half(bench: Bench) -> tuple[int, Usage]:
    """Write the F16 file as the converter does, which judges nothing."""
    shutil.rmtree(bench.bundle, ignore_errors=True)
    usage, files = exported(bench.model, bench.bundle, "--quant", "F16", "--no-verify")
    return files[0]["bytes"], usage


def _full(bench: Bench) -> tuple[dict[str, Any], Usage]:
    """Judge the conversion; its F32 file stays, and what is made later is judged over it."""
    _half_file(bench)
    usage, files = exported(bench.model, bench.bundle, "--quant", "F32")
    return files[0], usage


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


def _quantized(bench: Bench, quant: str) -> tuple[dict[str, Any], Usage]:
    _full_file(bench)
    # A bundle of its own around the same F16 and F32 files, so that nothing has to be taken back.
    with tempfile.TemporaryDirectory(dir=bench.home) as passing:
        for file in manifest.read(bench.bundle).files:
            os.link(bench.bundle / file.path, Path(passing) / file.path)
        shutil.copyfile(bench.bundle / manifest.NAME, Path(passing) / manifest.NAME)
        usage, files = exported(bench.model, Path(passing), "--quant", quant)
    return files[0], usage


def _full_file(bench: Bench) -> None:
    """Make the F32 file again where an earlier run has deleted it."""
    _half_file(bench)
    if manifest.read(bench.bundle).find("backbone", "F32") is None:
        _full(bench)


def _adapters(bench: Bench, stored: str) -> dict[int, dict[str, Any]]:
    """Export one adapter of each rank; return what the manifest says of them by rank."""
    _full_file(bench)
    weights = manifest.read(bench.bundle).backbone.weights
    categories = dict(zip(CATEGORIES, RANKS, strict=False))
    folders = []
    for category, rank in categories.items():
        folder = bench.adapters / f"r{rank}"
        if not (folder / "training.json").is_file():
            peft(bench.model, folder, rank, category, weights)
        folders.append(str(folder))
    options = ["--quant", "F16", "--adapter", ",".join(folders), "--adapter-quant", stored]
    _, files = exported(bench.model, bench.bundle, *options)
    return {categories[file["category"]]: file for file in files if file["kind"] == "adapter"}


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
    yield from head(
        "backbone",
        *("weights M", "file MB", "converter's file MB", "tel-export s", "converter s"),
        *("tel-export anonymous MB", "converter anonymous MB"),
    )
    for row in rows:
        ours, theirs = log.find(row.kind, OURS), log.find(row.kind, THEIRS)
        yield line(
            row.name,
            f"{_weights(row, log) / 1e6:,.1f}",
            f"{ours[-1].bytes / 1e6:,.2f}",
            f"{theirs[-1].bytes / 1e6:,.2f}",
            *(spread([m.seconds or 0 for m in made], ".1f") for made in (ours, theirs)),
            *(spread([(m.anonymous or 0) / 1e6 for m in made], ",.0f") for made in (ours, theirs)),
        )


def _quant_table(rows: Sequence[Row], log: Log) -> Iterator[str]:
    yield from head(
        "backbone", "type", "written in s", "with the gate s", "anonymous MB", "mapped MB",
        "file MB", "bits a weight", "conversion", "quantization",
    )  # fmt: skip
    for row in rows:
        for quant in (WHOLE, *QUANTS):
            made = log.find(row.kind, quant)[0]
            found = made.parity or {}
            yield line(
                row.name,
                quant,
                f"{made.written or 0:.1f}",
                f"{made.seconds or 0:.1f}",
                f"{(made.anonymous or 0) / 1e6:,.0f}",
                f"{(made.file or 0) / 1e6:,.0f}",
                f"{made.bytes / 1e6:,.2f}",
                f"{made.bytes * 8 / _weights(row, log):.2f}",
                f"{found['conversion']:.1e}",
                f"{found['quantization']:.2g}" if "quantization" in found else "",
            )


def _adapter_table(rows: Sequence[Row], log: Log) -> Iterator[str]:
    columns = (f"{kind} {what}" for what in ("MB", "error") for kind in ADAPTER_KINDS)
    yield from head("backbone", "rank", *columns)
    for row in rows:
        for rank in RANKS:
            steps = [adapter_step(kind, rank) for kind in ADAPTER_KINDS]
            made = [log.find(row.kind, step)[0] for step in steps]
            errors = [(one.parity or {})["adapter"] for one in made]
            yield line(
                row.name,
                str(rank),
                *(f"{one.bytes / 1e6:,.2f}" for one in made),
                *(f"{error:.1e}" for error in errors),
            )


def _total_table(rows: Sequence[Row], log: Log) -> Iterator[str]:
    """Yield the totals; a merged model has the tensors of its backbone, and so its size."""
    rank, kind = USUAL
    yield from head(
        "backbone",
        *("type", "backbone MB", f"six adapters (r {rank}, {kind}) MB", "together MB"),
        *("six merged models MB", "times smaller"),
    )
    for row in rows:
        adapters = 6 * log.find(row.kind, adapter_step(kind, rank))[0].bytes
        for step in (OURS, *QUANTS):
            size = log.find(row.kind, step)[0].bytes
            yield line(
                row.name,
                "F16" if step == OURS else step,
                *(f"{n / 1e6:,.1f}" for n in (size, adapters, size + adapters, 6 * size)),
                f"{6 * size / (size + adapters):.2f}",
            )


def _weights(row: Row, log: Log) -> float:
    """Return the number of weights: bfloat16 has two bytes each, the header next to none."""
    return log.find(row.kind, WEIGHTS)[0].bytes / 2


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
        help="where models are built and measurements are kept; 13 GB (%(default)s)",
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
    common_options(made, "tokenizers")
    return made


def main() -> None:
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
