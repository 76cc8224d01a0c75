"""What bench_graph.py measures of one graph, by the engine that Python finds: this one or an older.

`python scripts/graph_contender.py HOME NAME` with an older checkout's `src` in PYTHONPATH prints
the figures of that one's engine. So nothing is used here that is younger than it.
"""

from __future__ import annotations

import json
import random
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tel_edge.runtime.engines.engine import EngineSettings, Item, LoraFile

# Tokens of the prefix that questions share, of a question behind it, of a plain prompt; labels.
PREFIX, QUESTION, PROMPT, LABELS = 128, 48, 96, 4
QUESTIONS, RUNS, SEED = 16, 4, 42


def items(lengths: Sequence[int], vocabulary: int) -> list[Item]:
    """Return questions of those lengths behind one prefix, with the same labels of one token."""
    chance = random.Random(SEED)

    def text(length: int) -> tuple[int, ...]:
        return tuple(chance.randrange(vocabulary) for _ in range(length))

    labels = tuple((token,) for token in chance.sample(range(vocabulary), LABELS))
    prefix = text(PREFIX)
    return [Item(prefix + text(length), labels, PREFIX) for length in lengths]


def file(home: Path, name: str) -> Path:
    """Return the graph of a name, such as "fused dynamic-int8"."""
    form, quant = name.split()
    return home / f"{form}-{quant}.onnx"


def processor() -> float:
    """Return the seconds of processor time that this process has taken."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def answered(home: str, name: str) -> dict[str, float]:
    """Return milliseconds of a prompt, wall and processor, and of a packed row of questions."""
    from tel_edge.runtime.bundles.formats import FORMATS
    from tel_edge.runtime.engines.with_onnx import OnnxEngine

    folder = Path(home)
    began = time.perf_counter()
    given = {"x": LoraFile(lambda: folder / "x.onnx_adapter", "0" * 64)}
    engine = OnnxEngine(file(folder, name), given, EngineSettings(batch=FORMATS["onnx"].batch))
    opened = time.perf_counter() - began
    asked = items([QUESTION] * QUESTIONS, engine.vocabulary)
    [*engine.score(asked[:2], "x")]
    engine.plain_rate("x", PROMPT)
    began = processor()
    rates = [engine.plain_rate("x", PROMPT) for _ in range(RUNS)]
    alone = (processor() - began) / RUNS
    engine.forget()
    began, since = time.perf_counter(), processor()
    scores = dict(engine.score(asked, "x"))
    packed, together = time.perf_counter() - began, processor() - since
    tokens = sum(score.decoded for score in scores.values())
    engine.close()
    return {
        "open": opened,
        "prompt": PROMPT / statistics.median(rates) * 1000,
        "cpu": alone * 1000,
        "packed": packed * 1000,
        "packed_cpu": together * 1000,
        "tokens": tokens,
    }


def profiled(home: str, name: str) -> dict[str, float]:
    """Return milliseconds of a prompt by what is computed, as onnxruntime's profiler sees it.

    Its own cost is among them, so they add up to more than a prompt takes.
    """
    import onnxruntime

    from tel_edge.runtime.engines.with_onnx import OnnxEngine

    plain = onnxruntime.SessionOptions

    class Profiled(plain):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.enable_profiling = True
            self.profile_file_prefix = str(Path(home) / "profile")

    onnxruntime.SessionOptions = Profiled
    try:
        given = {"x": LoraFile(lambda: Path(home) / "x.onnx_adapter", "0" * 64)}
        engine = OnnxEngine(file(Path(home), name), given, EngineSettings())
    finally:
        onnxruntime.SessionOptions = plain
    for _ in range(RUNS):
        engine.plain_rate("x", PROMPT)
    place = Path(engine._session.end_profiling())
    engine.close()
    rows = json.loads(place.read_text())
    place.unlink()
    # The first run allocates; it is as long as the nodes before the second one's first.
    nodes = [row for row in rows if row.get("cat") == "Node" and row["name"].endswith("_time")]
    each = len(nodes) // RUNS
    found: dict[str, float] = {}
    for row in nodes[each:]:
        kind = of_kind(row["args"]["op_name"])
        found[kind] = found.get(kind, 0.0) + row["dur"] / 1000 / (RUNS - 1)
    return dict(sorted(found.items(), key=lambda one: -one[1]))


def of_kind(op: str) -> str:
    """Return what a node of that operator is for."""
    if op in ("MatMulIntegerToFloat", "MatMulInteger", "DynamicQuantizeMatMul"):
        return "integer products"
    if op == "DynamicQuantizeLinear":
        return "rounding activations"
    if op in ("MatMul", "Gemm", "FusedMatMul"):
        return "adapter's products"
    if op in ("GroupQueryAttention", "RotaryEmbedding"):
        return "attention"
    if "LayerNormalization" in op:
        return "norms"
    return op if op in ("Add", "Mul", "Split", "QuickGelu", "Sigmoid") else "all else"


def main() -> None:
    """Print the figures of a graph as a line of JSON."""
    print(json.dumps(answered(*sys.argv[1:])))


if __name__ == "__main__":
    main()
