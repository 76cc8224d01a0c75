"""Inspect with its own OpenAI-compatible provider, and the OpenAI client.

`make test-harnesses` runs this in an environment of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("inspect_ai")

from for_harnesses import QUESTIONS, ROOT, Asked, served
from inspect_ai.log import list_eval_logs, read_eval_log

MODEL = "openai-api/tel/oranbench"
SCHEMA = {
    "name": "letter",
    "json_schema": {
        "type": "object",
        "properties": {"answer": {"type": "string", "enum": ["A", "B", "C", "D"]}},
        "required": ["answer"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def asked() -> Iterator[Asked]:
    with served() as made:
        yield made


def log(asked: Asked, folder: Path, *args: str) -> Any:
    """Return the log of a run in which no sample failed and all tokens are counted."""
    command = [
        Path(sys.executable).with_name("inspect"), "eval", "tel_asked.py", "--model", MODEL,
        "--temperature", "0", "-T", f"file={asked.questions}", "--log-dir", folder,
        "--display", "none", *args,
    ]  # fmt: skip
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT / "examples/inspect", capture_output=True, text=True,
        env=os.environ | {"TEL_BASE_URL": f"{asked.url}/v1", "TEL_API_KEY": "none"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    [info] = list_eval_logs(str(folder))
    made = read_eval_log(info.name)
    assert made.status == "success"
    assert made.samples
    assert [sample.error for sample in made.samples] == [None] * len(made.samples)
    used = made.stats.model_usage[MODEL]
    parts = [sample.output.usage for sample in made.samples]
    assert used.total_tokens == sum(one.total_tokens for one in parts if one) > 0
    assert used.output_tokens > 0
    return made


def test_picks_are_those_of_tel_eval(asked: Asked, tmp_path: Path) -> None:
    made = log(asked, tmp_path)
    found = {one.id: one.scores["choice"].answer for one in made.samples}
    known = asked.records["oranbench"]
    assert len(found) == len(known) >= QUESTIONS
    assert found == {id: "ABCD"[row["pick"]] for id, row in known.items()}
    right = sum(row["pick"] == row["gold"] for row in known.values()) / len(known)
    assert made.results.scores[0].metrics["accuracy"].value == pytest.approx(right)


def test_what_it_writes_itself(asked: Asked, tmp_path: Path) -> None:
    made = log(asked, tmp_path, "-T", "free=true", "--max-tokens", "8", "--limit", "10",
               "--stop-seqs", "!")  # fmt: skip
    assert len(made.samples) == 10
    assert all(one.output.completion for one in made.samples)


def test_a_schema(asked: Asked, tmp_path: Path) -> None:
    made = log(asked, tmp_path, "-T", "free=true", "--limit", "10",
               "--response-schema", json.dumps(SCHEMA))  # fmt: skip
    for one in made.samples:
        assert json.loads(one.output.completion)["answer"] in "ABCD"


def test_the_openai_client(asked: Asked) -> None:
    said = subprocess.run(
        [sys.executable, ROOT / "examples/openai_client.py"], capture_output=True, text=True,
        env=os.environ | {"TEL_URL": asked.url}, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert said[0] == "models: auto tel-nano oranbench"
    # The likeliest next token is one of the letters, so both ways say the same.
    assert said[1].split()[-1] == said[2].split()[1]
