"""The sweep on dialogues: its sixteen runs, their rows, and what the report says of them."""

from __future__ import annotations

import json
from pathlib import Path

import for_dialogues as made_of
import for_sweep
import pytest
from for_sweep import Command, behave, calls, planned

from tel_edge.runtime.errors import InputError
from tel_edge.train.sweeps import sweep_row, sweep_spoken
from tel_edge.train.sweeps.sweep_reuse import Here
from tel_edge.train.sweeps.sweep_row import SweepRow

tel_sweep = for_sweep.tel_sweep


def row(run: str, validation: float, test: float, unseen: float) -> SweepRow:
    parts = {"validation": validation, "test": test, "unseen": unseen}
    losses = {name: {"loss": loss, "perplexity": loss + 1} for name, loss in parts.items()}
    return SweepRow(run, "d", {}, category="care", validation_loss=validation, losses=losses)


def test_the_preset_has_sixteen_runs(tmp_path: Path) -> None:
    runs = planned("--preset", "care", "--dataset", str(tmp_path))
    assert len({run.name for run in runs}) == 16
    assert runs[0].name == "targets-qv_rank-16_learning-rate-0.0001"
    assert {run.options["category"] for run in runs} == {"care"}
    assert {(run.options["rank"], run.options["alpha"]) for run in runs} == {
        ("16", "32"), ("32", "64")
    }  # fmt: skip
    assert {run.options["learning-rate"] for run in runs} == {"0.0001", "0.0002"}
    with pytest.raises(InputError, match="run tel-generate"):
        planned("--preset", "care")
    with pytest.raises(InputError, match="--loss is not for --category care"):
        planned("--preset", "care", "--dataset", str(tmp_path), "--set", "loss=all")
    with pytest.raises(InputError, match="stop-rate is for --category care"):
        planned("--preset", "rank", "--set", "stop-rate=4")


def test_rows_have_losses_and_no_accuracy(tel_sweep: Command, tmp_path: Path) -> None:
    behave(tmp_path / "data", joules={"16": 7200.0})
    sweep = ("--preset", "care", "--category", "care", "--grid", "targets=qv,all", "--jobs", "4")
    asked = (*sweep, "--set", "stop-rate=2", "--watts", "36", "--json")
    code, out, err = tel_sweep(*asked)
    assert code == 0, err
    assert "best targets-" in out
    assert "rank-32_learning-rate-0.0002 loss 1.480" in out
    home = tmp_path / "home" / "sweeps" / "care"
    document = json.loads((home / "report.json").read_text())
    assert len(document["rows"]) == 8
    first = document["rows"][0]
    assert first["losses"]["test"]["loss"] == pytest.approx(1.58)
    assert first["stops"]["of"] == 2
    assert first["validation_pass1"] is None
    assert not (home / "pareto.svg").exists()
    report = (home / "report.md").read_text()
    (header,) = [line for line in report.splitlines() if "unseen loss" in line and "|" in line]
    for name in ("perplexity", "stop rate", "adapter MB", "seconds", " Wh ", "stated Wh"):
        assert name in header
    lines = [line for line in report.splitlines() if "rank-16" in line and line.startswith("|")]
    # 7,200 J are 2 Wh; 36 W over 10 s are 0.1.
    assert len(lines) == 4
    assert all("2.000" in line and "0.100" in line for line in lines)
    assert all(" - " in line for line in report.splitlines() if "| targets-qv_rank-32" in line)
    assert "place 1 of 8 by the test part's and at place 7 of 8 by the unseen part's" in report
    assert "Pass@1" not in report
    # The rows are read again.
    before = calls(tmp_path / "data")
    assert tel_sweep(*asked)[0] == 0
    assert calls(tmp_path / "data") == before


def test_a_row_comes_back_as_it_was(tmp_path: Path) -> None:
    made = row("one", 1.0, 2.0, 3.0)
    sweep_row.write_row(tmp_path / "row.json", made)
    assert sweep_row.document(made) == json.loads((tmp_path / "row.json").read_text())
    again = sweep_row.read_row(tmp_path / "row.json")
    assert again
    assert again.losses == made.losses
    assert again.stops is None
    # Rows of questions have neither field.
    assert not {"losses", "stops"} & set(sweep_row.document(for_sweep.row("a", 1.0, 50)))


def test_where_the_best_by_loss_is_by_others() -> None:
    rows = [row("a", 1.0, 3.0, 2.0), row("b", 2.0, 1.0, 3.0), row("c", 3.0, 2.0, 4.0)]
    said = sweep_spoken.meaning(rows)
    assert "a, is at place 3 of 3 by the test part's and at place 1 of 3 by the unseen" in said
    assert sweep_spoken.meaning(rows[:1]) == "One run: nothing to rank."


def test_a_row_holds_while_data_and_template_do(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tel_edge.eval.folders import chat
    from tel_edge.runtime.workspace import Workspace
    from tel_edge.train.dialogues.reading import read

    base, data = made_of.backbone(tmp_path / "base"), made_of.dataset(tmp_path / "data")
    options = {"backbone": str(base), "dataset": str(data), "category": "care", "seed": "1"}
    known = {"split": read(data).digest, "template": chat.digest(base)}
    assert Here(Workspace(tmp_path)).changed(options, known) is None
    made_of.write(data, unseen=[])
    assert Here(Workspace(tmp_path)).changed(options, known) == "the data set"
    (base / "chat_template.jinja").write_text("another")
    assert Here(Workspace(tmp_path)).changed(options, known) == "the chat template"
