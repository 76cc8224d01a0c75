"""Losses, too little memory or disk, and questions that do not fit."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_engine as fake
import for_train as base
import for_train_options
import pytest
from for_train_options import Command

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.benchmarks.split import split
from tel_edge.runtime.questions.categories import category
from tel_edge.runtime.questions.question import Question
from tel_edge.train.commands import train
from tel_edge.train.data import Example, Rows, collate, examples

torch = pytest.importorskip("torch")

made = for_train_options.made
one_thread = for_train_options.one_thread
whole_numbers = base.whole_numbers
tel_train = base.tel_train


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
    from tel_edge.train.scoring import logprobs_of, score

    tokenizer = AutoTokenizer.from_pretrained(made / "base")
    model = AutoModelForCausalLM.from_pretrained(made / "base").eval()
    asked = base.questions(1, 20, 7, 60, 3)
    asked.append(Question("far", "oranbench", "xApp " * 3000, base.CHOICES, 0))
    alone = {q.id: found for q, found in logprobs_of(model, tokenizer, asked, 512, 1)}
    together = {q.id: found for q, found in logprobs_of(model, tokenizer, asked, 512, 8)}
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
