"""The options of `tel-train`, and the ways in which a training ends, on a tiny random backbone."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import export_models as models
import fake_engine as fake
import pytest
import test_train as base
from conftest import shown

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.benchmarks.split import split
from tel_edge.runtime.bundles import backbones
from tel_edge.runtime.files import digest
from tel_edge.runtime.questions.categories import category
from tel_edge.runtime.questions.question import Question
from tel_edge.train import job as jobs_of
from tel_edge.train.commands import train
from tel_edge.train.data import Example, Rows, collate, examples

torch = pytest.importorskip("torch")
Command = Callable[..., tuple[int, str, str]]
whole_numbers = base.whole_numbers
tel_train = base.tel_train
BOTH = ("--category", "oranbench,teleqna")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the backbone `base` and the data set `data` of two categories."""
    root = tmp_path_factory.mktemp("options")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    models.backbone(root / "base", "llama", dtype=torch.float32, **small)
    for name in ("oranbench", "teleqna"):
        fake.dataset(root / "data", name, fake.rows(30))
    return root


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute with one thread: a child can do the same, and a busy machine slows two down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(home: Path, name: str = "oranbench") -> bytes:
    return (home / "adapters" / "base" / name / "adapter_model.safetensors").read_bytes()


CHANGING: dict[str, tuple[list[str], str, Any]] = {
    "set": (["--targets", "qv"], "targets", ("q_proj", "v_proj")),
    "mlp": (["--targets", "mlp"], "targets", ("gate_proj", "up_proj", "down_proj")),
    "names": (["--targets", "o_proj,q_proj,o_proj"], "targets", ("o_proj", "q_proj")),
    "dropout": (["--dropout", "0.1"], "dropout", 0.1),
    "rslora": (["--rslora"], "rslora", True),
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


def test_the_loss_over_all_tokens_is_that_of_transformers(made: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tel_edge.train.trainer import AnswerTrainer

    tokenizer = AutoTokenizer.from_pretrained(made / "base")
    model = AutoModelForCausalLM.from_pretrained(made / "base").eval()
    found, _ = examples(base.questions(1, 20, 7), tokenizer, 512)
    batch = collate([Rows(lambda _: found)[at] for at in range(3)])
    width = max(len(example.ids) for example in found) + 1
    ids = torch.zeros(3, width, dtype=torch.long)
    known, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for at, example in enumerate(found):
        full = torch.tensor([*example.ids, example.target])
        ids[at, : len(full)] = known[at, : len(full)] = full
        mask[at, : len(full)] = 1

    class Whole(AnswerTrainer):
        all_tokens = True

    with torch.no_grad():
        compute: Any = AnswerTrainer.compute_loss
        loss, shown = compute(Whole, model, batch, return_outputs=True)
        wanted = model(ids, attention_mask=mask, labels=known).loss
        answer, picks = compute(AnswerTrainer, model, batch, return_outputs=True)
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    assert loss.item() != pytest.approx(answer.item(), abs=1e-3)
    assert shown["logits"].tolist() == picks["logits"].tolist()


def test_only_labels_are_picked() -> None:
    from tel_edge.train.trainer import picked

    logits = torch.tensor([[9.0, 1.0, 2.0, 3.0], [9.0, 3.0, 2.0, 1.0], [9.0, 1.0, 1.0, 0.0]])
    choices = torch.tensor([[1, 2, 3], [3, 2, -1], [2, -1, -1]])
    assert picked(logits, choices).tolist() == [3, 2, 2]


def test_the_best_is_the_first_that_no_other_beats() -> None:
    from tel_edge.train.trainer import best

    points = [(0.9, 0.5), (0.4, 0.7), (0.4, 0.6), (0.6, 0.7)]
    curve = [
        {"epoch": at, "validation_loss": loss, "validation_pass1": pass1}
        for at, (loss, pass1) in enumerate(points)
    ]
    assert best(curve, "loss")["epoch"] == 1
    assert best(curve, "pass1")["epoch"] == 1
    assert best(curve[2:], "loss")["epoch"] == 2
    assert best(curve[2:], "pass1")["epoch"] == 3


OOM = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.OutOfMemoryError("of another wording"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    MemoryError(),
]


def broken(error: Exception) -> Callable[..., Any]:
    def train(*_: Any, **__: Any) -> None:
        raise error

    return train


@pytest.mark.parametrize("error", OOM, ids=["cuda", "wording", "cpu", "python"])
def test_too_little_memory_is_told_with_what_lowers_it(
    tel_train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from tel_edge.train.trainer import Trainer

    monkeypatch.setattr(Trainer, "train", broken(error))
    code, out, err = tel_train("--epochs", "1")
    assert (code, out) == (1, "")
    assert "out of memory" in err
    assert "--batch" in err
    assert "--checkpointing" in err
    assert len(err.splitlines()) <= 2
    assert not base.adapter(tmp_path).exists()


def test_other_errors_are_not_called_memory(
    tel_train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tel_edge.train.trainer import Trainer

    monkeypatch.setattr(Trainer, "train", broken(RuntimeError("shapes do not fit")))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        tel_train("--epochs", "1")


FULL = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL, ids=["system", "library"])
def test_a_full_disk_is_told_and_the_run_goes_on_afterwards(
    tel_train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from tel_edge.train.trainer import Trainer, last_checkpoint

    save, count = Trainer._save_checkpoint, []

    def fails(self: Any, *given: Any, **more: Any) -> Any:
        if count:
            raise error
        count.append(1)
        return save(self, *given, **more)

    monkeypatch.setattr(Trainer, "_save_checkpoint", fails)
    code, out, err = tel_train("--epochs", "3")
    assert (code, out) == (1, "")
    assert "the disk is full" in err
    assert len(err.splitlines()) <= 2
    partial = base.adapter(tmp_path).with_name(".oranbench.partial")
    assert last_checkpoint(partial) == str(partial / "checkpoint-3")
    monkeypatch.undo()
    assert tel_train("--epochs", "3")[0] == 0
    assert [line["epoch"] for line in base.record(tmp_path)["curve"]] == [1, 2, 3]
    assert not partial.exists()


def test_what_torch_says_of_a_full_disk_is_known(
    tel_train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimizer's state is written by torch, which does not name the reason."""
    from tel_edge.train.trainer import Trainer

    def fails(*_: Any, **__: Any) -> None:
        torch.save({"state": torch.zeros(10_000_000)}, "/dev/full")

    monkeypatch.setattr(Trainer, "_save_checkpoint", fails)
    code, _, err = tel_train("--epochs", "1")
    assert code == 1
    assert "the disk is full" in err


def test_questions_that_are_too_long_are_counted_and_said(
    tmp_path: Path, made: Path, run_command: Command
) -> None:
    rows = fake.rows(30)
    for at in range(0, 30, 3):
        rows[at] = {**rows[at], "question": f"{rows[at]['question']} " + "xApp " * 600}
    fake.dataset(tmp_path / "long", "oranbench", rows)
    argv = [one for one in base.common(made, tmp_path) if one != "--quiet"]
    argv += ["--dataset", str(tmp_path / "long"), "--epochs", "1", "--score"]
    code, _, err = run_command(train.parser(), train.work, *argv)
    assert code == 0
    said = base.record(tmp_path)
    test = split(benchmark.read(str(tmp_path / "long"), category("oranbench")).questions).test
    beyond = sum(len(question.text) > 2000 for question in test)
    assert said["too_long"] == 10 - beyond
    assert f"{10 - beyond} questions are longer than the backbone's context" in err
    assert said["test"][0]["too_long"] == beyond
    assert said["test"][0]["pass1"]["of"] == 6, "those that do not fit count as wrong"


def test_a_category_without_a_question_that_fits_is_refused(
    tmp_path: Path, tel_train: Command
) -> None:
    rows = [{**row, "question": row["question"] + " xApp" * 600} for row in fake.rows(10)]
    fake.dataset(tmp_path / "long", "oranbench", rows)
    code, _, err = tel_train("--dataset", str(tmp_path / "long"))
    assert code == 2
    assert "no question fits the backbone's 512 tokens" in err


def test_scores_are_those_of_the_labels_alone(made: Path) -> None:
    """One at a time and many together: padding changes nothing."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tel_edge.runtime.questions.votes import pick
    from tel_edge.train.scoring import _logprobs, score

    tokenizer = AutoTokenizer.from_pretrained(made / "base")
    model = AutoModelForCausalLM.from_pretrained(made / "base").eval()
    asked = base.questions(1, 20, 7, 60, 3)
    asked.append(Question("far", "oranbench", "xApp " * 3000, base.CHOICES, 0))
    alone = {q.id: found for q, found in _logprobs(model, tokenizer, asked, 512, 1)}
    together = {q.id: found for q, found in _logprobs(model, tokenizer, asked, 512, 8)}
    assert list(alone) == ["q/0", "q/4", "q/2", "q/1", "q/3"]
    for name, values in alone.items():
        assert together[name] == pytest.approx(values, abs=1e-4)
    (scored,) = score(model, tokenizer, asked, 512, 42, 4)
    assert (scored.questions, scored.too_long) == (6, 1)
    right = sum(pick(alone[q.id]) == q.answer for q in asked[:5])
    assert (scored.pass1.right, scored.pass1.of) == (right, 6)


def test_choices_are_padded_with_what_is_no_token() -> None:
    rows = Rows(lambda _: [Example((5, 6), 1, (1, 2)), Example((8,), 2, (2, 3, 4))])
    batch = collate([rows[0], rows[1]])
    assert batch["choices"].tolist() == [[1, 2, -1], [2, 3, 4]]
