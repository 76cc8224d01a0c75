"""`tel-train --category care` on a tiny backbone: the loss, what is kept, runs that were killed."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import for_dialogues as made_of
import pytest
from conftest import shown

from tel_edge.runtime import progress
from tel_edge.runtime.questions.conversation import Message
from tel_edge.train.commands import train

torch = pytest.importorskip("torch")

from tel_edge.eval.folders.chat import Chat, Spoken  # noqa: E402
from tel_edge.train.data import Rows  # noqa: E402
from tel_edge.train.dialogues import fitting, stopping  # noqa: E402
from tel_edge.train.dialogues.fitting import DialogueTrainer, collate  # noqa: E402
from tel_edge.train.parts import parted  # noqa: E402

Command = Any


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dialogues")
    made_of.backbone(root / "base")
    made_of.dataset(root / "data")
    return root


def common(made: Path, home: Path) -> list[str]:
    argv = ["--workspace", str(home), "--backbone", str(made / "base"), "--quiet"]
    argv += ["--dataset", str(made / "data"), "--category", "care"]
    return [*argv, "--rank", "2", "--batch", "6", "--learning-rate", "0.01"]


@pytest.fixture
def tel_train(made: Path, tmp_path: Path, run_command: Command) -> Command:
    def run(*argv: str) -> tuple[int, str, str]:
        found: tuple[int, str, str] = run_command(
            train.parser(), train.work, *common(made, tmp_path), *argv
        )
        return found

    return run


def record(home: Path, name: str = "care") -> dict[str, Any]:
    place = home / "adapters" / "base" / name / "training.json"
    read: dict[str, Any] = json.loads(place.read_text())
    return read


def texts(folder: Path) -> list[Spoken]:
    """Texts of other lengths, some with two answers."""
    chance, chat = random.Random(3), Chat(folder)
    rows = [made_of.dialogue(chance, 1 + at % 2) for at in range(7)]
    return [chat.shown([Message(**row) for row in one])[0] for one in rows]


def model(made: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(made / "base", dtype=torch.float32)


def test_the_loss_is_that_of_transformers_at_the_answers(made: Path) -> None:
    bare, found = model(made).eval(), texts(made / "base")
    batch = collate([text.row() for text in found])
    widths: list[Any] = []
    bare.lm_head.register_forward_hook(lambda _, __, out: widths.append(out.shape))
    with torch.no_grad():
        values, rows = fitting.surprises(bare, batch)
        wanted = []
        for text in found:
            ids, known = torch.tensor([text.ids]), torch.full((1, len(text.ids)), -100)
            for first, last in text.spans:
                known[0, first:last] = ids[0, first:last]
            count = sum(last - first for first, last in text.spans)
            wanted.append(float(bare(ids, labels=known).loss) * count)
    # Of all positions of the batch the head saw those alone.
    assert widths[0] == (int(batch["spoken"].sum()), bare.config.vocab_size)
    sums = torch.zeros(len(found)).index_add_(0, rows, values)
    assert sums.tolist() == pytest.approx(wanted, rel=1e-4)
    assert len(bare.lm_head._forward_pre_hooks) == 0


def test_gradients_in_parts_are_those_of_the_batch(made: Path) -> None:
    bare = model(made)

    class Loss:
        """`compute_loss` without all that a `Trainer` wants to be made."""

    def gradients(given: list[dict[str, Any]]) -> tuple[float, Any]:
        bare.zero_grad()
        total = 0.0
        for part in given:
            loss = DialogueTrainer.compute_loss(Loss(), bare, part)  # type: ignore[arg-type]
            loss.backward()
            total += float(loss.detach())
        return total, bare.model.layers[0].self_attn.q_proj.weight.grad.clone()

    batch = collate([text.row() for text in texts(made / "base")])
    parts = list(parted(batch, 60, True))
    assert len(parts) > 2
    wanted, at_once = gradients([batch])
    found, added = gradients(parts)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert torch.allclose(added, at_once, rtol=1e-3, atol=1e-7)


def test_a_batch_without_answers_is_refused(made: Path) -> None:
    from tel_edge.runtime.errors import InputError

    batch = collate([Spoken((5, 6, 7), ()).row()])
    with pytest.raises(InputError, match="nothing would be learned"):
        fitting.surprises(model(made), batch)


def test_best_and_last_epoch_are_both_kept(tel_train: Command, tmp_path: Path) -> None:
    """At so high a rate the loss goes up again, so that the two are not the same."""
    code, out, err = tel_train("--epochs", "4", "--learning-rate", "3", "--json")
    assert code == 0, err
    best, last = record(tmp_path), record(tmp_path, "care-last")
    assert [line["epoch"] for line in best["curve"]] == [1, 2, 3, 4]
    lowest = min(best["curve"], key=lambda line: line["validation_loss"])
    assert best["best"] == lowest
    assert (best["kept"], last["kept"]) == ("best", "last")
    assert last["best"] == best["curve"][-1] != lowest
    assert set(best["losses"]) == {"validation", "test", "unseen"}
    for one in (best, last):
        found = one["losses"]["validation"]
        assert found["loss"] == one["best"]["validation_loss"]
        assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
        assert found["tokens"] > 4
        assert "validation_pass1" not in one["best"]
    assert best["losses"]["test"] != last["losses"]["test"]
    assert "prompt" not in best
    assert len(best["template"]) == 64
    assert "test loss" in out
    assert "unseen loss" in out
    assert "Pass@1" not in out
    folder = tmp_path / "adapters" / "base"
    assert shown(folder) == ["care", "care-last"]
    weights = [(folder / name / "adapter_model.safetensors") for name in shown(folder)]
    assert weights[0].read_bytes() != weights[1].read_bytes()
    assert (folder / "care-last" / "adapter_config.json").is_file()
    # The losses are those of the weights that are there.
    for name, one in (("care", best), ("care-last", last)):
        assert again(tmp_path, folder / name) == pytest.approx(one["losses"]["test"]["loss"], 0.05)
    # The same command does nothing.
    before = weights[1].stat().st_mtime_ns
    assert tel_train("--epochs", "4", "--learning-rate", "3")[0] == 0
    assert weights[1].stat().st_mtime_ns == before


def again(home: Path, adapter: Path) -> float:
    """The loss of an adapter on the test part, from its files."""
    from peft import PeftModel

    known = json.loads((adapter / "adapter_config.json").read_text())
    base = Path(known["base_model_name_or_path"])
    from transformers import AutoModelForCausalLM

    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    lines = (base.parent / "data" / "test.jsonl").read_text().splitlines()
    chat = Chat(base)
    rows = [
        text.row()
        for line in lines
        for text in chat.shown([Message(**row) for row in json.loads(line)["messages"]])
    ]
    with torch.no_grad():
        return float(fitting.surprises(peft, collate(rows))[0].mean())


def test_parts_that_are_not_there_have_no_loss(
    tel_train: Command, made: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(made / "data", tmp_path / "less")
    (data / "test.jsonl").unlink()
    (data / "unseen.jsonl").unlink()
    assert tel_train("--dataset", str(data), "--epochs", "1", "--max-train", "3")[0] == 0
    assert set(record(tmp_path)["losses"]) == {"validation"}
    rows = record(tmp_path)["rows"]
    assert (rows["train"], rows["train_uncapped"], rows["validation"]) == (3, 12, 3)
    assert rows["test"] == rows["unseen"] == 0
    code, _, err = tel_train("--dataset", str(data), "--stop-rate", "2")
    assert code == 2
    assert "no test.jsonl" in err


def test_a_dialogue_that_is_too_long_is_counted(
    tel_train: Command, made: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(made / "data", tmp_path / "long")
    long = [{"role": "user", "content": "xApp " * 600}, {"role": "assistant", "content": "b"}]
    with (data / "train.jsonl").open("a") as out:
        out.write(json.dumps({"messages": long}) + "\n")
    code, _, err = tel_train("--dataset", str(data), "--epochs", "1")
    assert code == 0
    assert record(tmp_path)["too_long"] == 1
    made_of.write(data, train=[long])
    code, _, err = tel_train("--dataset", str(data), "--epochs", "1")
    assert code == 2
    assert "no dialogue fits the backbone's 512 tokens" in err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--joint",), "--joint is not for --category care"),
        (("--score",), "--score is not for --category care"),
        (("--orders", "2"), "--orders is not for"),
        (("--exchanged", "0.5"), "--exchanged is not for"),
        (("--told", "0.5"), "--told is not for"),
        (("--loss", "all"), "--loss is not for"),
        (("--select-by", "pass1"), "--select-by pass1"),
        (("--recipe", "nano"), "--recipe nano is for questions"),
        (("--dataset", "ot-mini"), "run tel-generate"),
        (("--category", "care,oranbench"), "care is trained alone"),
        (("--category", "oranbench", "--dataset", "ot-mini", "--stop-rate", "3"), "--stop-rate is"),
    ],
)
def test_options_of_questions_are_refused_by_name(
    tel_train: Command, tmp_path: Path, argv: tuple[str, ...], said: str
) -> None:
    code, _, err = tel_train(*argv)
    assert code == 2
    assert said in err
    assert not (tmp_path / "adapters").exists()


def test_a_message_that_cannot_be_shown_is_told_by_its_line(
    tel_train: Command, made: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(made / "data", tmp_path / "bad")
    row = [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "b"}]
    made_of.write(data, unseen=[made_of.dialogue(random.Random(1)), row])
    code, _, err = tel_train("--dataset", str(data))
    assert code == 2
    assert "unseen.jsonl: line 2: messages[0].content has what is a special token" in err


def test_a_backbone_without_a_template_is_refused(
    tel_train: Command, made: Path, tmp_path: Path
) -> None:
    bare = shutil.copytree(made / "base", tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    code, _, err = tel_train("--backbone", str(bare))
    assert code == 2
    assert "no chat template" in err


def test_another_template_or_text_is_another_job(made: Path, tmp_path: Path) -> None:
    from tel_edge.train.dialogues.job import jobs

    other = shutil.copytree(made / "base", tmp_path / "base")
    (other / "chat_template.jinja").write_text(f"{made_of.CHATML} ")
    data = made_of.dataset(tmp_path / "data", seed=1)
    changes = [
        [], ["--seed", "1"], ["--rank", "3"], ["--max-train", "3"], ["--backbone", str(other)],
        ["--dataset", str(data)],
    ]  # fmt: skip
    digests = [
        jobs(train.parser().parse_args([*common(made, tmp_path), *change]))[0].digest
        for change in changes
    ]
    assert len(set(digests)) == len(changes)


def test_a_killed_run_goes_on_from_its_checkpoint(
    tel_train: Command, made: Path, tmp_path: Path
) -> None:
    from tel_edge.train import trainer

    argv = ["--epochs", "8", "--learning-rate", "0.5"]
    script = "from tel_edge.train.commands.train import main; main()"
    child = subprocess.Popen(
        [sys.executable, "-c", script, *common(made, tmp_path), *argv],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    partial = tmp_path / "adapters" / "base" / ".care.partial"
    deadline = time.monotonic() + 120
    while trainer.last_checkpoint(partial) is None:
        assert child.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert tel_train(*argv)[0] == 0
    resumed = [record(tmp_path, name) for name in ("care", "care-last")]
    assert not partial.exists()
    assert tel_train(*argv, "--no-resume")[0] == 0
    whole = [record(tmp_path, name) for name in ("care", "care-last")]
    for one, other in zip(resumed, whole, strict=True):
        for name in ("step", "validation_loss"):
            wanted = [line[name] for line in other["curve"]]
            assert [line[name] for line in one["curve"]] == pytest.approx(wanted, abs=1e-4)
        assert one["losses"]["unseen"]["loss"] == pytest.approx(
            other["losses"]["unseen"]["loss"], abs=1e-4
        )


def test_stop_rates_are_counted_and_can_come_later(
    tel_train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tel_train("--epochs", "1")[0] == 0
    assert "stop_rate" not in record(tmp_path)
    seconds = record(tmp_path)["seconds"]
    code, out, err = tel_train("--epochs", "1", "--stop-rate", "2")
    assert code == 0, err
    found = record(tmp_path)
    assert found["seconds"] == seconds
    assert found["stop_rate"]["asked"] == 2
    assert found["stop_rate"]["stopped"]["of"] == 2
    assert "of 2" in out
    monkeypatch.setattr(fitting, "stop_rate", None)
    assert tel_train("--epochs", "1", "--stop-rate", "2")[0] == 0


def test_an_answer_is_written_greedily_beside_others_of_other_lengths(made: Path) -> None:
    """As one alone, token by token without a cache."""
    bare = model(made).eval()
    prompts = [text.ids[: text.spans[0][0]] for text in texts(made / "base")]

    def alone(ids: tuple[int, ...], limit: int) -> list[int]:
        own = list(ids)
        for _ in range(limit):
            own.append(int(bare(torch.tensor([own])).logits[0, -1].argmax()))
        return own[len(ids) :]

    with torch.no_grad():
        written = [alone(ids, 5) for ids in prompts]
    for end in {token for one in written for token in one}:
        found = stopping.stop_rate(bare, prompts, {end}, 512, 5)
        assert found["stopped"]["value"] * len(prompts) == sum(end in one for one in written)
    # One that has no room is left out.
    lengths = sorted(map(len, prompts))
    found = stopping.stop_rate(bare, prompts, {0}, lengths[0] + 5, 5)
    assert found["stopped"]["of"] == lengths.count(lengths[0])
    assert stopping.stop_rate(bare, prompts, {0}, 6, 5) == {"limit": 5, "stopped": None}


def test_dialogues_are_rows_of_the_trainer(made: Path) -> None:
    rows = Rows(lambda _: texts(made / "base"))
    assert set(rows[0]) == {"input_ids", "spoken"}
    assert len(rows) == 7


def test_losses_and_answers_say_how_far_they_are(
    run_command: Command, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    argv = [one for one in common(made, tmp_path) if one != "--quiet"]
    argv += ["--epochs", "1", "--stop-rate", "2"]
    code, _, err = run_command(train.parser(), train.work, *argv)
    assert code == 0
    assert "test part: answer 2 of 2 " in err
    assert err.count("care, losses: batch 1 of 1 ") == 1 + 2, "validation, then train and test"
