"""What bench_contention.py measures of an engine: questions of ot-mini, answered again and again.

`python scripts/engine_contender.py BUNDLE FORMAT SECONDS`: of the smallest type, with the default
settings. TEL_ONNX (spin, still) says how the threads of ONNX Runtime wait, TEL_THREADS how many
there are.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from tel_edge.eval.benchmarks import benchmark
from tel_edge.runtime.answerer import Answerer
from tel_edge.runtime.engines.engine import EngineSettings
from tel_edge.runtime.questions.categories import category
from tel_edge.runtime.questions.question import Question

QUESTIONS, WARM = 128, 16


def main(folder: str, format: str, seconds: str) -> None:
    """Answer for that long; print how many questions and the seconds they took."""
    if waiting := os.environ.get("TEL_ONNX"):
        from tel_edge.runtime.engines import with_onnx

        with_onnx.SPINNING = waiting == "spin"
    threads = EngineSettings(threads=int(os.environ.get("TEL_THREADS", "0")) or None)
    asked = [(one, "oranbench") for one in _questions()]
    with Answerer.of_bundle(
        Path(folder), format=format, only="oranbench", engine=threads
    ) as answerer:
        list(answerer.many(asked[:WARM]))
        began, done = time.perf_counter(), 0
        while (spent := time.perf_counter() - began) < float(seconds):
            done += len(list(answerer.many(asked)))
    print(json.dumps({"steps": done, "seconds": spent}))


def _questions() -> list[Question]:
    return list(benchmark.read("ot-mini", category("oranbench")).questions[:QUESTIONS])


if __name__ == "__main__":
    main(*sys.argv[1:])
