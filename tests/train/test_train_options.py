"""Options of `tel-train`: what they change, in the adapter and its digest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import for_train as base
import for_train_options
import pytest
from conftest import shown
from for_train_options import Command

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.benchmarks.split import split
from tel_edge.runtime.bundles import backbones
from tel_edge.runtime.files import digest
from tel_edge.runtime.questions.categories import category
from tel_edge.train import job as jobs_of

torch = pytest.importorskip("torch")

made = for_train_options.made
one_thread = for_train_options.one_thread
whole_numbers = base.whole_numbers
tel_train = base.tel_train
BOTH = ("--category", "oranbench,teleqna")


def weights(home: Path, name: str = "oranbench") -> bytes:
    return (home / "adapters" / "base" / name / "adapter_model.safetensors").read_bytes()


CHANGING: dict[str, tuple[list[str], str, Any]] = {
    "set": (["--targets", "qv"], "targets", ("q_proj", "v_proj")),
    "mlp": (["--targets", "mlp"], "targets", ("gate_proj", "up_proj", "down_proj")),
    "names": (["--targets", "o_proj,q_proj,o_proj"], "targets", ("o_proj", "q_proj")),
    "dropout": (["--dropout", "0.1"], "dropout", 0.1),
    "rslora": (["--rslora"], "rslora", True),
    "orders": (["--orders", "3"], "orders", 3),
    "loss": (["--loss", "all"], "loss", "all"),
    "select": (["--select-by", "pass1"], "select", "pass1"),
}


@pytest.mark.parametrize("name", CHANGING)
def test_an_option_of_the_recipe_changes_the_digest(made: Path, tmp_path: Path, name: str) -> None:
    argv, field, value = CHANGING[name]
    (plain,), (changed,) = base.jobs(made, tmp_path), base.jobs(made, tmp_path, *argv)
    assert asdict(changed.recipe)[field] == value
    assert asdict(changed.recipe) | {field: None} == asdict(plain.recipe) | {field: None}
    assert changed.digest != plain.digest


def test_how_questions_are_shown_can_differ_from_the_recipe(made: Path, tmp_path: Path) -> None:
    (plain,) = base.jobs(made, tmp_path, "--recipe", "robust")
    (job,) = base.jobs(
        made, tmp_path, "--recipe", "robust", "--exchanged", "0", "--told", "0.5", "--orders", "2"
    )
    assert (job.recipe.orders, job.recipe.exchanged, job.recipe.told) == (2, 0.0, 0.5)
    assert job.digest != plain.digest


def test_what_changes_no_adapter_changes_no_digest(made: Path, tmp_path: Path) -> None:
    (plain,) = base.jobs(made, tmp_path)
    same = ("--checkpointing", "--score", "--watts", "12.5", "--targets", "all")
    (job,) = base.jobs(made, tmp_path, *same, "--loss", "answer", "--select-by", "loss")
    assert (job.checkpointing, job.scored, job.watts) == (True, True, 12.5)
    assert job.digest == plain.digest


def test_a_job_of_before_keeps_its_digest(made: Path, tmp_path: Path) -> None:
    """So that the adapters that people have stay finished."""
    (job,) = base.jobs(made, tmp_path)
    read = benchmark.read(str(made / "data"), category("oranbench"))
    recipe = {
        "name": "paper", "rank": 2, "alpha": 32, "dropout": 0.0,
        "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "learning_rate": 0.01, "warmup": 0.05, "batch": 6, "epochs": 10, "patience": 3,
        "weight_decay": 0.0, "orders": 1, "exchanged": 0.0,
    }  # fmt: skip
    bound = {
        "backbone": {
            "name": "base",
            "weights": digest.of_weights(made / "base"),
            "tokenizer": digest.of_tokenizer(made / "base"),
        },
        "prompt": job.bound["prompt"],
        "data": read.digest,
    }
    parts = split(read.questions, 42)
    assert job.digest == digest.of_value([bound, parts.digest, recipe, 42, None])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--targets", "qkv"], "no projection 'qkv'"),
        (["--targets", "q_proj,"], "no projection ''"),
        (["--dropout", "1"], "--dropout 1.0"),
        (["--dropout", "nan"], "--dropout nan"),
        (["--orders", "2", "--exchanged", "1.5"], "--exchanged 1.5: a number from 0 to 1"),
        (["--orders", "2", "--told", "nan"], "--told nan"),
        (["--told", "0.5"], "--orders 2 or more"),
        (["--orders", "1001"], "--orders 1001: a number from 1 to 1,000"),
        (["--recipe", "care"], "--recipe care is for dialogues"),
        (["--learning-rate", "0"], "--learning-rate 0.0: a number above 0 is needed"),
        (["--watts", "0"], "--watts 0.0"),
        (["--watts", "inf"], "--watts inf"),
        (["--joint"], "--joint is for several categories"),
        (["--revision", "main"], "--revision is for backbones of the hub"),
        (["--over-quant", "Q8_0"], "tel-export"),
    ],
)
def test_an_option_that_means_nothing_is_refused(
    tel_train: Command, argv: list[str], said: str
) -> None:
    code, out, err = tel_train(*argv)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) <= 2


def test_a_revision_reaches_the_hub(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(backbone: backbones.Backbone, revision: str | None = None) -> Path:
        asked.append((backbone.hub, revision))
        return made / "base"

    monkeypatch.setattr(jobs_of.backbones, "fetch", fetch)
    base.jobs(made, tmp_path, "--backbone", "qwen3-0.6b", "--revision", "v1")
    assert asked == [("Qwen/Qwen3-0.6B", "v1")]


def test_all_options_reach_the_adapter_and_its_record(tel_train: Command, tmp_path: Path) -> None:
    argv = ["--targets", "qv", "--dropout", "0.1", "--rslora", "--loss", "all", "--epochs", "2"]
    argv += ["--select-by", "pass1", "--score", "--checkpointing", "--watts", "5"]
    code, out, _ = tel_train(*argv)
    assert code == 0
    config = json.loads((base.adapter(tmp_path) / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]
    assert (config["lora_dropout"], config["use_rslora"]) == (0.1, True)
    said = base.record(tmp_path)
    assert (said["config"]["loss"], said["config"]["select"]) == ("all", "pass1")
    best = max(line["validation_pass1"] for line in said["curve"])
    assert said["best"] == next(line for line in said["curve"] if line["validation_pass1"] == best)
    energy = said["energy"]
    assert energy["stated_watts"] == 5
    assert energy["stated_joules"] == pytest.approx(5 * said["seconds"], abs=1)
    assert energy["examples"] == 36
    (scored,) = said["test"]
    assert (scored["category"], scored["questions"], scored["too_long"]) == ("oranbench", 6, 0)
    assert scored["pass1"]["of"] == scored["majority"]["of"] == 6
    assert f"oranbench    test Pass@1 {scored['pass1']['value']:.3f}" in out
    # Without --score the same adapter is as good.
    before = (base.adapter(tmp_path) / "training.json").stat().st_mtime_ns
    assert tel_train(*[one for one in argv if one != "--score"])[0] == 0
    assert (base.adapter(tmp_path) / "training.json").stat().st_mtime_ns == before


def test_one_adapter_for_all_categories(tel_train: Command, tmp_path: Path) -> None:
    code, out, _ = tel_train(*BOTH, "--joint", "--score", "--epochs", "1")
    assert code == 0
    folder = tmp_path / "adapters" / "base"
    assert shown(folder) == ["joint"]
    said = json.loads((folder / "joint" / "training.json").read_text())
    assert said["category"] == "joint"
    assert list(said["splits"]) == ["oranbench", "teleqna"]
    assert said["split"] == digest.of_value(said["splits"])
    assert said["rows"]["train"] == 36
    assert [row["category"] for row in said["test"]] == ["oranbench", "teleqna"]
    assert out.splitlines()[0].startswith("joint ")


def test_a_cap_counts_for_each_category(made: Path, tmp_path: Path) -> None:
    (joint,) = base.jobs(made, tmp_path, *BOTH, "--joint")
    own = base.jobs(made, tmp_path, *BOTH)
    assert joint.splits == {name: value for job in own for name, value in job.splits.items()}
    assert joint.parts.train == own[0].parts.train + own[1].parts.train
    assert len({joint.digest, *(job.digest for job in own)}) == 3


def test_activations_computed_again_give_the_same_adapter(
    tel_train: Command, tmp_path: Path
) -> None:
    assert tel_train("--epochs", "1")[0] == 0
    plain = weights(tmp_path)
    assert tel_train("--epochs", "1", "--checkpointing", "--no-resume")[0] == 0
    assert weights(tmp_path) == plain


def test_a_seed_decides_every_byte(tel_train: Command, tmp_path: Path) -> None:
    made = []
    for seed in ("3", "3", "4"):
        assert tel_train("--epochs", "1", "--dropout", "0.2", "--no-resume", "--seed", seed)[0] == 0
        made.append(weights(tmp_path))
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_a_killed_run_ends_in_the_bytes_of_a_whole_one(
    tel_train: Command, made: Path, tmp_path: Path
) -> None:
    from tel_edge.train.trainer import last_checkpoint

    argv = ["--epochs", "6", "--dropout", "0.2"]
    script = "from tel_edge.train.commands.train import main; main()"
    child = subprocess.Popen(
        [sys.executable, "-c", script, *base.common(made, tmp_path), *argv],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    partial = base.adapter(tmp_path).with_name(".oranbench.partial")
    deadline = time.monotonic() + 120
    while last_checkpoint(partial) is None:
        assert child.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert tel_train(*argv)[0] == 0
    resumed, curve = weights(tmp_path), base.record(tmp_path)["curve"]
    assert tel_train(*argv, "--no-resume")[0] == 0
    assert base.record(tmp_path)["curve"] == curve
    assert weights(tmp_path) == resumed
