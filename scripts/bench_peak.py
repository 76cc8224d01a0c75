"""Measures how fast this processor multiplies int8: `python scripts/bench_peak.py`.

The largest rate of any library and shape that stands in a model's layers is what an engine could
reach if it did nothing else: onnxruntime's MatMulInteger and oneDNN's through torch, with all
threads, in several rounds. A prefill cannot be above it, and `bench_graph.py` says how near it is.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from bench_tables import common_options, head, line, machine

from tel_edge.runtime import cli
from tel_edge.runtime.files.atomic import write_text
from tel_edge.runtime.processors import cores

# Rows, inner and outer size: a packed decode over a gate of Qwen3-0.6B and of Llama-3.2-1B.
SHAPES = ((512, 1024, 3072), (512, 2048, 8192))
ROUNDS, RUNS = 5, 12


def work(args: argparse.Namespace) -> Mapping[str, Any]:
    """Measure and print the table."""
    rates = measured(args.threads or cores())
    lines = [*head("contender", *(" x ".join(map(str, shape)) for shape in SHAPES))]
    lines += [line(name, *(f"{rate / 1e9:,.0f}" for rate in own)) for name, own in rates.items()]
    text = "\n".join([*lines, "", f"GOP/s, medians of {ROUNDS} rounds; {machine()}", ""])
    print(text, end="")
    if args.out:
        write_text(args.out, text)
    return {"rates": rates, "peak": peak(rates)}


def peak(rates: Mapping[str, list[float]]) -> float:
    """Return the largest rate of all, operations a second."""
    return max(rate for own in rates.values() for rate in own)


def measured(threads: int) -> dict[str, list[float]]:
    """Return operations a second of each library for each shape, medians of rounds."""
    found: dict[str, list[float]] = {}
    for name, opened in {"onnxruntime": _onnxruntime, "oneDNN (torch)": _torch}.items():
        for shape in SHAPES:
            run = opened(shape, threads)
            run()
            times = [_timed(run) for _ in range(ROUNDS)]
            rows, inner, outer = shape
            rate = 2 * rows * inner * outer / statistics.median(times)
            found.setdefault(name, []).append(rate)
    return found


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    for _ in range(RUNS):
        run()
    return (time.perf_counter() - began) / RUNS


def _onnxruntime(shape: tuple[int, int, int], threads: int) -> Callable[[], object]:
    import numpy as np
    import onnxruntime
    from onnx import helper, numpy_helper

    rows, inner, outer = shape
    rng = np.random.default_rng(1)
    weight = numpy_helper.from_array(rng.integers(-64, 64, (inner, outer), np.int8), "w")
    zero = numpy_helper.from_array(np.array(128, np.uint8), "z")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w", "z"], ["y"])],
        "peak",
        [helper.make_tensor_value_info("x", 2, [rows, inner])],
        [helper.make_tensor_value_info("y", 6, [rows, outer])],
        [weight, zero],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = rng.integers(0, 256, (rows, inner), np.uint8)
    return lambda: session.run(None, {"x": x})


def _torch(shape: tuple[int, int, int], threads: int) -> Callable[[], object]:
    import torch

    torch.set_num_threads(threads)
    rows, inner, outer = shape
    x = torch.randint(-64, 64, (rows, inner), dtype=torch.int8)
    w = torch.randint(-64, 64, (inner, outer), dtype=torch.int8)
    return lambda: torch._int_mm(x, w)


def parser() -> cli.Parser:
    """Return the options."""
    made = cli.Parser(prog="bench_peak.py", description=__doc__, allow_abbrev=False)
    common_options(made, "nothing that this needs")
    made.add_argument("--threads", type=cli.positive, metavar="N", help="(all cores)")
    return made


def main() -> None:
    """Run the benchmark."""
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
