"""Compares forms of the ONNX graph: `python scripts/bench_graph.py --kind qwen3 --shared DIR`.

A backbone at its real size with random weights is traced once. Of that the graph with slots is
quantized as it is and with onnxruntime's operators for norms and attention, in several types; each
answers, with a rank-16 adapter on all projections, a prompt of 96 tokens and a packed row of
questions behind one prefix. All take turns in one process each, every second round backwards, with
the peak of int8 products measured in the same run (`bench_peak.py`). Nothing else may run then.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bench_peak
from bench_tables import common_options, head, keep, line, machine, spread
from graph_contender import PROMPT, answered, file, profiled
from real_size import ROWS, built, check_space, peft

from tel_edge.runtime import cli
from tel_edge.runtime.device.child import in_child
from tel_edge.runtime.processors import cores

FORMS = ("slots", "fused")
# The graph with slots, computed by the engine of another checkout.
BEFORE = "before"
TYPES = "dynamic-int8,int8,int4,int8-128,int4-128"
RANK, ROUNDS, NEEDED = 16, 3, 12_000_000_000
SHOWN = {"open": ".2f", "prompt": ",.0f", "cpu": ",.0f", "packed": ",.0f", "packed_cpu": ",.0f"}


def work(args: argparse.Namespace) -> Mapping[str, Any]:
    """Make what is missing, measure, print the table."""
    row = ROWS[args.kind].small() if args.small else ROWS[args.kind]
    home = args.work / row.name
    home.mkdir(parents=True, exist_ok=True)
    forms = (BEFORE, *FORMS) if args.before else FORMS
    names = [f"{form} {quant}" for quant in args.types.split(",") for form in forms]
    _make(args, row, home, names)
    body = _operations(home / "model")
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    peaks = []
    for turn in range(args.rounds):
        peaks.append(bench_peak.peak(bench_peak.measured(cores())))
        for name in names[:: -1 if turn % 2 else 1]:
            measured[name].append(_measured(args, home, name))
            cli.say(args, f"round {turn + 1}: {name}: {measured[name][-1]['prompt']:,.1f} ms")
    text = _table(row.name, measured, body, statistics.median(peaks))
    for name in names if args.profile else ():
        if not name.startswith(BEFORE):
            text += f"\n{name}, ms by what is computed, with the profiler's own cost: " + ", ".join(
                f"{kind} {spent:.1f}"
                for kind, spent in in_child(None, profiled, str(home), name).items()
            )
    print(text)
    document = {"machine": machine(), "measured": measured, "peaks": peaks, "operations": body}
    keep(args.out, text, document)
    return document


def _measured(args: argparse.Namespace, home: Path, name: str) -> dict[str, float]:
    """Measure a graph in a process of its own; the oldest form by the engine of `--before`."""
    form, quant = name.split()
    if form != BEFORE:
        return in_child(None, answered, str(home), name)
    script = Path(__file__).with_name("graph_contender.py")
    env = {**os.environ, "PYTHONPATH": str(args.before / "src")}
    made: dict[str, float] = json.loads(
        subprocess.run(
            [sys.executable, script, home, f"slots {quant}"], env=env, check=True,
            capture_output=True, text=True,
        ).stdout.splitlines()[-1]
    )  # fmt: skip
    return made


def _make(args: argparse.Namespace, row: Any, home: Path, names: list[str]) -> None:
    """Build, trace, put in slots and operators, quantize: what is not there yet."""
    model = home / "model"
    check_space(home, NEEDED // (100 if args.small else 1), "--work")
    if not model.is_dir():
        cli.say(args, f"building {row.name}")
        built(row, args.shared, model)
    names = [name for name in names if name.split()[0] != BEFORE]
    missing = [name for name in names if not file(home, name).is_file()]
    if missing or not (home / "x.onnx_adapter").is_file():
        in_child(None, _quantized, str(home), missing)


def _quantized(home: str, names: list[str]) -> None:
    """Make the files; in a process of its own, whose memory goes with it."""
    from tel_edge.eval.folders import checkpoint
    from tel_edge.export.onnx import container, fused, quantize, slots, trace
    from tel_edge.export.onnx.adapter import write_adapter
    from tel_edge.export.sources import adapter
    from tel_edge.runtime.bundles.manifest import BackboneInfo
    from tel_edge.runtime.files import digest

    folder = Path(home)
    model = folder / "model"
    shape = checkpoint.load(model).shape
    weights = digest.of_weights(model)
    if not (folder / "plain.onnx").is_file():
        trace.trace(model, folder / "plain.onnx")
    for form in FORMS:
        made = container.load(folder / "plain.onnx")
        slots.prepare(made, shape, form)
        if form == "fused":
            fused.fuse(made, shape, form)
        ends = {"tel_edge.weights": weights, "tel_edge.context": str(shape.context)}
        slots.describe(made, ends)
        source = folder / f"{form}.onnx"
        container.write(made, source, folder, lambda _: None)
        for name in names:
            if name.split()[0] == form:
                row = quantize.ONNX_QUANTS[name.split()[1]]
                quantize.quantize(source, file(folder, name), row, lambda _: None)
        for part in (source, source.with_name(f"{source.name}.data")):
            part.unlink()
    peft(model, folder / "adapter", RANK, "oranbench", weights, 1)
    info = BackboneInfo("base", "x", weights, "", "")
    loaded = adapter.load(folder / "adapter", shape, info, False)
    write_adapter(loaded, folder / "x.onnx_adapter", weights)
    shutil.copyfile(model / "tokenizer.json", folder / "tokenizer.json")


def _operations(model: Path) -> int:
    """Return the operations of a token in the products of all layers."""
    from tel_edge.eval.folders import checkpoint
    from tel_edge.eval.folders.architectures import projections

    shape = checkpoint.load(model).shape
    return sum(2 * part.shape[0] * part.shape[1] for part in projections(shape))


def _table(
    title: str, measured: Mapping[str, list[dict[str, float]]], body: int, peak: float
) -> str:
    first = next(iter(measured)).split()[0]
    ratios = ("prompt", "cpu", "packed", "packed_cpu")
    lines = [
        *head(
            *("type", "opening s", f"{PROMPT} tokens ms", "processor ms", "packed ms"),
            *("packed, processor ms", f"times {first}", "processor", "packed", "packed, processor"),
            *("share of the peak", "packed, share"),
        )
    ]
    for name, own in measured.items():
        base = measured[f"{first} {name.split()[1]}"]
        middle = {key: statistics.median(one[key] for one in own) for key in own[0]}
        times = [
            statistics.median(a[key] / b[key] for a, b in zip(base, own, strict=True))
            for key in ratios
        ]
        rates = PROMPT / middle["prompt"], middle["tokens"] / middle["packed"]
        lines.append(
            line(
                name,
                *(spread([one[key] for one in own], form) for key, form in SHOWN.items()),
                *(f"{value:.2f}" for value in times),
                *(f"{body * rate * 1000 / peak:.2f}" for rate in rates),
            )
        )
    end = f"{title}, adapter of rank {RANK}; int8 peak {peak / 1e9:,.0f} GOP/s; {machine()}"
    return "\n".join([*lines, "", end, ""])


def parser() -> cli.Parser:
    """Return the options."""
    made = cli.Parser(prog="bench_graph.py", description=__doc__, allow_abbrev=False)
    common_options(made, "tokenizers")
    made.add_argument("--kind", choices=tuple(ROWS), default="qwen3", help="(%(default)s)")
    made.add_argument("--types", default=TYPES, metavar="A,B", help="(%(default)s)")
    made.add_argument("--rounds", type=cli.positive, default=ROUNDS, metavar="N")
    made.add_argument(
        "--before", type=Path, metavar="DIR", help="an older checkout, whose engine answers too"
    )
    made.add_argument("--profile", action="store_true", help="what a prompt's time goes into")
    made.add_argument("--small", action="store_true", help="a tiny model, to try the script")
    made.add_argument("--work", type=Path, default=Path("bench-graph"), metavar="DIR")
    return made


def main() -> None:
    """Run the benchmark."""
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
