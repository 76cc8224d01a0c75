"""lm-evaluation-harness, unchanged, finds with tel-serve what tel-eval finds.

`make test-harnesses` runs this in an environment of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

import requests
from for_harnesses import QUESTIONS, ROOT, Asked, served


@pytest.fixture(scope="module")
def asked() -> Iterator[Asked]:
    with served() as made:
        yield made


def scored(asked: Asked, model: str, folder: Path, *args: str) -> dict[str, list[list[str]]]:
    """Return each question's (log-probability, greedy) of every letter, as the harness logs it."""
    shutil.copy(asked.questions, folder / "asked.jsonl")
    start = requests.get(f"{asked.url}/tokenizer_info", timeout=10).json()["bos_token"]
    command = [
        Path(sys.executable).with_name("lm_eval"), "run", "--model", "local-completions",
        "--model_args", f"model={model}", f"base_url={asked.url}/v1/completions", *args,
        "--include_path", ROOT / "examples/lm-eval", "--tasks", "tel_asked",
        "--system_instruction", start, "--output_path", "out", "--log_samples",
    ]  # fmt: skip
    home = {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    # Not Hugging Face's tokenizer, which is not even installed.
    assert "Using remote tokenizer" in done.stderr
    [path] = folder.glob("out/*/samples_tel_asked_*.jsonl")
    rows: list[Any] = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["doc"]["doc"]["id"]: row["filtered_resps"] for row in rows}


def picks(found: dict[str, list[list[str]]]) -> dict[str, int]:
    values = {id: [float(value) for value, _ in letters] for id, letters in found.items()}
    return {id: max(range(len(of)), key=of.__getitem__) for id, of in values.items()}


@pytest.mark.parametrize("model", ["oranbench", "tel-nano"])
def test_picks_and_likelihoods_are_those_of_tel_eval(
    model: str, asked: Asked, tmp_path: Path
) -> None:
    found, known = scored(asked, model, tmp_path), asked.records[model]
    assert len(found) == len(known) >= QUESTIONS
    assert picks(found) == {id: row["pick"] for id, row in known.items()}
    for id, letters in found.items():
        # Records have six digits.
        assert [float(value) for value, _ in letters] == pytest.approx(
            known[id]["logprobs"], abs=1e-6
        )
    # The flag is for what the model would write itself, so for one letter at most.
    flagged = {id: [at for at, (_, flag) in enumerate(of) if flag == "True"]
               for id, of in found.items()}  # fmt: skip
    assert any(flagged.values())
    assert all(at in ([], [known[id]["pick"]]) for id, at in flagged.items())


@pytest.mark.parametrize("how", ["tokenized_requests=False", "num_concurrent=4 --batch_size 8"])
def test_as_texts_and_several_at_a_time(how: str, asked: Asked, tmp_path: Path) -> None:
    found = scored(asked, "oranbench", tmp_path, *how.split())
    assert picks(found) == {id: row["pick"] for id, row in asked.records["oranbench"].items()}


def test_the_adapter_changes_picks(asked: Asked) -> None:
    with_it, bare = ([row["pick"] for row in asked.records[m].values()] for m in asked.records)
    assert with_it != bare
