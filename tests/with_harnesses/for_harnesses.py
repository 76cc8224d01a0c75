"""A service over tel-nano and a small adapter, and what tel-eval says of the same questions.

The main environment's commands make and serve it (`TEL_BIN`, the folder of its Python); what is
finished in the workspace (`TEL_WORKSPACE`) is reused.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("TEL_BIN", ROOT / ".venv/bin"))
WORKSPACE = Path(os.environ.get("TEL_WORKSPACE", ROOT / "build/harnesses")).absolute()
QUESTIONS = 30
# The models of the service, and the variants in which tel-eval scores them.
MODELS = {"oranbench": "lora-Q8_0", "tel-nano": "base-Q8_0"}


@dataclass(frozen=True)
class Asked:
    """Where the service is, the questions that tel-eval asked, and its records of each model."""

    url: str
    questions: Path
    records: Mapping[str, Mapping[str, Any]]


def run(*command: Any) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def made() -> None:
    """Train for a moment, export, score each question alone, and write what was asked."""
    common = ["--workspace", WORKSPACE, "--quiet"]
    run(BIN / "tel-train", *common, "--category", "oranbench", "--max-train", 60, "--epochs", 2)
    run(BIN / "tel-export", *common, "--adapter", "oranbench", "--quant", "Q8_0")
    run(BIN / "tel-eval", *common, "--category", "oranbench", "--limit", QUESTIONS, "--exact",
        "--no-rotations", "--no-baselines")  # fmt: skip
    run(BIN / "tel-report", *common, "--samples")


@contextmanager
def served() -> Iterator[Asked]:
    """Give a service that computes each question alone, as the records were."""
    made()
    [questions] = WORKSPACE.glob("reports/lm-eval/tel-nano__lora-Q8_0/samples_oranbench_*.jsonl")
    process = subprocess.Popen(
        [BIN / "tel-serve", "--bundle", WORKSPACE / "bundles/tel-nano", "--exact", "--port", "0"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout
        url = process.stdout.readline().split()[-1]
        yield Asked(url, questions, {name: records(of) for name, of in MODELS.items()})
    finally:
        process.terminate()
        process.wait(60)


def records(variant: str) -> Mapping[str, Any]:
    """Return tel-eval's records by the question's id."""
    path = WORKSPACE / "results/tel-nano" / variant / "oranbench.jsonl"
    rows = map(json.loads, path.read_text().splitlines())
    return {row["id"]: row for row in rows}
