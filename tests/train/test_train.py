"""`tel-train` on a tiny random backbone: the loss, what is written, and runs that were killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import export_models as models
import fake_engine as fake
import for_train
import pytest
from conftest import shown
from for_train import CHOICES, Command, adapter, common, jobs, questions, record

from tel_edge.runtime import progress
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.categories import WORKING_GROUPS
from tel_edge.runtime.questions.prompt import labels, render
from tel_edge.runtime.questions.question import Question
from tel_edge.train.commands import train
from tel_edge.train.data import Example, Rows, collate, examples, varied

torch = pytest.importorskip("torch")

whole_numbers = for_train.whole_numbers
made = for_train.made
tel_train = for_train.tel_train


def test_an_example_is_the_prompt_and_the_label(made: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made / "base")
    asked = questions(3, 8)
    found, too_long = examples(asked, tokenizer, 512)
    assert too_long == 0
    for question, example in zip(asked, found, strict=True):
        assert example.ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(example.ids[1:]) == render(question)
        assert tokenizer.decode([example.target]) == labels(question)[question.answer or 0]


def test_a_question_that_does_not_fit_is_counted_not_cut(made: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made / "base")
    asked = questions(3, 200, 4)
    (first, _, last), none = examples(asked, tokenizer, 10_000)
    assert none == 0
    # The label has to fit as well.
    assert examples(asked, tokenizer, len(last.ids) + 1) == ([first, last], 1)
    assert examples(asked, tokenizer, len(last.ids)) == ([first], 2)
    assert examples([], tokenizer, 10) == ([], 0)


def test_special_tokens_inside_a_question_are_text(made: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made / "base")
    question = Question("q", "oranbench", f"a {models.EOS} b", CHOICES, 0)
    (example,), _ = examples([question], tokenizer, 512)
    assert tokenizer.eos_token_id not in example.ids


def test_a_label_of_several_tokens_is_refused() -> None:
    def letters(texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [list(text.encode()) for text in texts]}

    with pytest.raises(InputError, match="q/0: the label is not one token of its own"):
        examples(questions(2), letters, 512)


def test_other_orders_keep_the_answer_and_fixed_labels_their_order() -> None:
    question = Question("q", "oranbench", "which", CHOICES, 2)
    fixed = Question("t", "3gpp_tsg", "which", tuple(WORKING_GROUPS), 5)
    shown = varied([question, fixed], 6, 0.0, "42 0")
    free = [q for q in shown if q.id == "q"]
    assert len(free) == 6
    assert all(q.choices[q.answer or 0] == "blue" for q in free)
    assert all(sorted(q.choices) == sorted(CHOICES) for q in free)
    assert len({q.answer for q in free}) > 1
    assert [q for q in shown if q.id == "t"] == [fixed] * 3
    assert shown == varied([question, fixed], 6, 0.0, "42 0")
    assert shown != varied([question, fixed], 6, 0.0, "42 1")
    assert varied([question, fixed], 1, 1.0, "42 0") == [question, fixed]


def test_a_share_of_questions_tells_the_answer() -> None:
    question = Question("q", "oranbench", "Which?", ("a", "b", "c", "d"), 2)
    shown = varied([question], 400, 0.0, "42 0", told=0.25)
    telling = [each for each in shown if each.text != "Which?"]
    assert 70 < len(telling) < 130
    assert {each.text for each in telling} == {"Which?\nc"}
    assert all(each.choices[each.answer or 0] == "c" for each in shown)
    # The choices are those that they would be without.
    plain = varied([question], 400, 0.0, "42 0")
    assert [each.choices for each in shown] == [each.choices for each in plain]


def test_wrong_choices_are_exchanged_for_those_beside_the_answer() -> None:
    one = Question("q", "oranbench", "which", CHOICES, 2)
    two = Question("r", "oranbench", "what", ("blue", "black", "pink", "grey"), 1)
    far = Question("s", "oranbench", "who", ("up", "down", "left", "right"), 0)
    shown = varied([one, two, far], 40, 1.0, "42 0")
    assert all(q.choices[q.answer or 0] == "blue" for q in shown[::3])
    seen = {choice for q in shown[::3] for choice in q.choices}
    assert seen == {*CHOICES, "black", "pink", "grey"}
    assert all(len(set(q.choices)) == 4 for q in shown)
    assert {choice for q in shown[2::3] for choice in q.choices} == set(far.choices)


def test_batches_are_padded_on_the_left() -> None:
    rows = Rows(lambda _: [Example((5, 6, 7), 1), Example((8,), 2)])
    batch = collate([rows[0], rows[1]])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]
    assert batch["target"].tolist() == [1, 2]


def test_the_loss_is_that_of_transformers_at_the_answer(made: Path) -> None:
    """Padding and positions included: prompts of other lengths do not change each other."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tel_edge.train.trainer import AnswerTrainer

    tokenizer = AutoTokenizer.from_pretrained(made / "base")
    model = AutoModelForCausalLM.from_pretrained(made / "base").eval()
    found, _ = examples(questions(1, 20, 7), tokenizer, 512)
    batch = collate([Rows(lambda _: found)[at] for at in range(3)])
    with torch.no_grad():
        compute: Any = AnswerTrainer.compute_loss
        loss, shown = compute(AnswerTrainer, model, batch, return_outputs=True)
        wanted = []
        for example in found:
            ids = torch.tensor([[*example.ids, example.target]])
            known = torch.full_like(ids, -100)
            known[0, -1] = example.target
            wanted.append(model(ids, labels=known).loss)
    assert len({len(example.ids) for example in found}) == 3
    assert loss.item() == pytest.approx(torch.stack(wanted).mean().item(), abs=1e-5)
    assert shown["logits"].shape == (3,)
    assert "target" in batch, "the trainer needs it again for the metric"


def test_training_leaves_the_adapter_and_its_record(
    tel_train: Command, made: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    code, out, _ = tel_train("--epochs", "2", "--json")
    assert code == 0
    folder = adapter(tmp_path)
    names = {path.name for path in folder.iterdir()}
    assert names >= {"adapter_model.safetensors", "adapter_config.json", "training.json"}
    assert not any("checkpoint" in name or name.startswith(".") for name in names)
    assert shown(folder.parent) == ["oranbench"]
    said = record(tmp_path)
    assert [line["epoch"] for line in said["curve"]] == [1, 2]
    assert said["best"] == min(said["curve"], key=lambda line: line["validation_loss"])
    assert said["rows"] == {
        **{"train": 18, "train_uncapped": 18, "validation": 6, "validation_uncapped": 6},
        **{"test": 6, "rejected": 0, "shared": 0},
    }
    assert (said["config"]["rank"], said["config"]["epochs"]) == (2, 2)
    assert said["too_long"] == 0
    document = json.loads(out.splitlines()[-1])
    assert document["adapters"][0]["path"] == str(folder)
    base = AutoModelForCausalLM.from_pretrained(made / "base")
    loaded = PeftModel.from_pretrained(base, folder)
    assert any(bool(p.any()) for name, p in loaded.named_parameters() if "lora_B" in name)

    # The same command does nothing, and a folder without its weights does not count.
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert tel_train("--epochs", "2")[0] == 0
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "adapter_model.safetensors").unlink()
    assert tel_train("--epochs", "2")[0] == 0
    assert (folder / "adapter_model.safetensors").is_file()
    assert record(tmp_path)["curve"] == said["curve"]


def test_a_loss_that_is_no_number_fails_and_keeps_the_old_adapter(
    tel_train: Command, tmp_path: Path
) -> None:
    folder = adapter(tmp_path)
    folder.mkdir(parents=True)
    (folder / "training.json").write_text('{"digest": "old"}')
    code, out, err = tel_train("--epochs", "3", "--learning-rate", "1e30")
    assert (code, out) == (1, "")
    assert "loss is nan at step" in err
    assert "try a smaller --learning-rate" in err
    assert record(tmp_path) == {"digest": "old"}


def test_the_digest_of_a_job_covers_what_the_adapter_depends_on(made: Path, tmp_path: Path) -> None:
    fake.dataset(tmp_path / "less", "oranbench", fake.rows(29))
    # The same ids in the same parts, but another text.
    fake.dataset(
        tmp_path / "text",
        "oranbench",
        [{**row, "choices": ["rot", *row["choices"][1:]]} for row in fake.rows(30)],
    )
    other = shutil.copytree(made / "base", tmp_path / "base")
    models.retensor(
        other / "model.safetensors",
        lambda tensors: {name: tensor + 1 for name, tensor in tensors.items()},
    )
    changes = [
        [], ["--seed", "1"], ["--rank", "3"], ["--alpha", "3"], ["--epochs", "3"], ["--batch", "3"],
        ["--learning-rate", "1"], ["--max-train", "3"], ["--dataset", str(tmp_path / "less")],
        ["--dataset", str(tmp_path / "text")], ["--backbone", str(other)],
    ]  # fmt: skip
    digests = [jobs(made, tmp_path, *change)[0].digest for change in changes]
    assert len(set(digests)) == len(changes)
    assert jobs(made, tmp_path)[0].digest == digests[0]


def test_too_few_questions_are_told(made: Path, tmp_path: Path) -> None:
    fake.dataset(tmp_path, "oranbench", fake.rows(1))
    with pytest.raises(InputError, match=r"oranbench: too few questions to split \(1\)"):
        jobs(made, tmp_path, "--dataset", str(tmp_path))


def test_a_torn_checkpoint_is_passed_over(tmp_path: Path) -> None:
    from tel_edge.train.trainer import last_checkpoint

    assert last_checkpoint(tmp_path) is None
    for step, content in ((9, "{}"), (10, '{"epoch": 1}'), (11, '{"ep'), (12, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if content is not None:
            (folder / "trainer_state.json").write_text(content)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_a_partial_folder_of_another_job_is_not_gone_on_from(
    tel_train: Command, tmp_path: Path
) -> None:
    partial = adapter(tmp_path).with_name(".oranbench.partial")
    (partial / "checkpoint-9").mkdir(parents=True)
    (partial / "checkpoint-9" / "trainer_state.json").write_text("{}")
    (partial / "job.json").write_text("another digest")
    assert tel_train("--epochs", "1")[0] == 0
    assert [line["epoch"] for line in record(tmp_path)["curve"]] == [1]


def test_all_that_takes_long_says_how_far_it_is(
    run_command: Command, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    argv = [one for one in common(made, tmp_path) if one != "--quiet"]
    argv += ["--epochs", "1", "--score"]
    code, _, err = run_command(train.parser(), train.work, *argv)
    assert code == 0
    for said in ("oranbench: step 3 of 3 ", "losses: batch 1 of 1 ", "test part: question 6 of 6 "):
        assert said in err


def test_a_killed_run_goes_on_from_its_checkpoint(
    tel_train: Command, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tel_edge.train import callbacks, trainer

    argv = ["--epochs", "8"]
    script = "from tel_edge.train.commands.train import main; main()"
    child = subprocess.Popen(
        [sys.executable, "-c", script, *common(made, tmp_path), *argv],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    partial = adapter(tmp_path).with_name(".oranbench.partial")
    deadline = time.monotonic() + 120
    while trainer.last_checkpoint(partial) is None:
        assert child.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not adapter(tmp_path).exists()

    # As if the kill had come in the middle of the next checkpoint.
    torn = partial / "checkpoint-1000"
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"ep')
    steps = []
    monkeypatch.setattr(callbacks.Watch, "on_step_end", lambda *_, **__: steps.append(1))
    assert tel_train(*argv)[0] == 0
    resumed = record(tmp_path)
    assert len(steps) < resumed["curve"][-1]["step"]
    assert resumed["curve"][0]["epoch"] == 1
    assert not partial.exists()

    # Nothing but the time tells that it was killed.
    steps.clear()
    assert tel_train(*argv, "--no-resume")[0] == 0
    whole = record(tmp_path)
    assert len(steps) == whole["curve"][-1]["step"]
    for name in ("step", "validation_loss", "validation_pass1"):
        wanted = [line[name] for line in whole["curve"]]
        assert [line[name] for line in resumed["curve"]] == pytest.approx(wanted, abs=1e-4)
