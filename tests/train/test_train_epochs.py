"""The examples of an epoch: as many in each, and of what transformers groups them by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import export_models as models
import fake_engine as fake
import for_train as base
import pytest

from tel_edge.train.commands import train
from tel_edge.train.data import Example, Rows

torch = pytest.importorskip("torch")
Command = Callable[..., tuple[int, str, str]]
whole_numbers = base.whole_numbers
LONG = "xApp " * 90


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone of 512 tokens of context, and questions some of whose other forms are longer."""
    made = tmp_path_factory.mktemp("epochs")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    models.backbone(made / "base", "llama", dtype=torch.float32, **small)
    rows = fake.rows(30)
    for at in range(0, 30, 5):
        answer = rows[at]["choices"][rows[at]["answer"]]
        others = [f"{LONG} {word}" for word in ("black", "pink", "grey", "brown")]
        # Beside the same answer stand choices three of which fit and four of which do not.
        choices = [answer, "black", *others[:2]] if at % 2 else [answer, *others[:3]]
        rows[at] = {**rows[at], "choices": choices, "answer": 0}
    fake.dataset(made / "data", "oranbench", rows)
    return made


def test_other_forms_that_are_too_long_leave_every_epoch_as_many_examples(
    root: Path, tmp_path: Path, run_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    turned = Rows.turn

    def turn(rows: Rows, epoch: int) -> None:
        turned(rows, epoch)
        counts.append(len(rows))

    monkeypatch.setattr(Rows, "turn", turn)
    argv = [*base.common(root, tmp_path), "--recipe", "nano", "--epochs", "4"]
    code, _, err = run_command(train.parser(), train.work, *argv)
    assert (code, err) == (0, "")
    assert len(counts) == 4
    assert set(counts) == {counts[0]}
    assert counts[0] % 8 == 0, "all forms of a question, or none"


def test_the_trainer_groups_by_the_length_of_the_prompts(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    rows = Rows(lambda _: [Example((5,) * length, 1, (1, 2)) for length in (3, 1, 7)])
    args = TrainingArguments(
        output_dir=str(tmp_path), train_sampling_strategy="group_by_length", report_to="none"
    )
    sampler: Any = Trainer(torch.nn.Linear(1, 1), args, train_dataset=rows)._get_train_sampler()  # type: ignore[arg-type]
    assert list(sampler.lengths) == [3, 1, 7]
    assert set(rows[0]) == {"input_ids", "target", "choices"}


def test_an_adapter_that_learned_nothing_is_told(
    root: Path, tmp_path: Path, run_command: Command
) -> None:
    """The one step of such a training is the warm-up's first, whose rate is nought."""
    argv = [*base.common(root, tmp_path), "--epochs", "1", "--max-train", "4"]
    code, _, err = run_command(train.parser(), train.work, *argv)
    assert code == 0
    assert "warning: oranbench: every lora_B is zero, so the adapter changes nothing" in err
    argv = [*base.common(root, tmp_path), "--epochs", "2"]
    argv.remove("--quiet")
    code, _, err = run_command(train.parser(), train.work, *argv)
    assert (code, "warning" in err) == (0, False)
    # Hours may be in what is there.
    assert "is of another training and will be replaced; pass another --workspace" in err
    assert "questions to train on, " in err


def test_other_orders_show_no_numbers_of_the_options() -> None:
    from tel_edge.runtime.questions.question import Question
    from tel_edge.train.data import varied

    choices = ("1. red", "2. green", "3. blue")
    asked = [Question(str(at), "srsranbench", "Which?", choices, at % 3) for at in range(6)]
    assert varied(asked, 1, 0.0, "s") == asked
    made = varied(asked, 4, 0.5, "s", 0.5)
    assert len(made) == 24
    for one in made:
        assert {*one.choices} == {"red", "green", "blue"}
        assert one.choices[one.answer or 0] == ("red", "green", "blue")[int(one.id) % 3]
        assert "1." not in one.text
