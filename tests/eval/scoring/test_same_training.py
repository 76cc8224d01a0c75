"""Adapters of two trainings are not compared as if only the type of the file differed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest
from made_reports import Result, put, result

from tel_edge.eval.commands import evaluate
from tel_edge.eval.findings import findings, paper
from tel_edge.eval.reports import compare
from tel_edge.runtime import cli
from tel_edge.runtime.bundles import manifest
from tel_edge.runtime.files import digest
from tel_edge.runtime.workspace import Workspace

ONE, OTHER = "1" * 64, "2" * 64


def of(source: str | None, made: Result) -> Result:
    """Return a result whose adapter was made of that PEFT folder."""
    variant = replace(made.summary.variant, source=source)
    return replace(made, summary=replace(made.summary, variant=variant))


def two(home: Path, first: str | None, second: str | None) -> findings.Report:
    """Return the report on two types, 30 points apart, of these trainings."""
    put(home, result("base-F16", right=80), of(first, result("lora-F16", right=240)))
    put(home, of(second, result("lora-int4", right=150)))
    return findings.collect(Workspace(home), "tel-nano")


def test_types_of_two_trainings_are_not_before_and_after(tmp_path: Path) -> None:
    made = two(tmp_path, ONE, OTHER)
    (section,) = made.sections
    rows = {row.summary.variant.name: row for row in section.rows}
    assert rows["lora-int4"].change is None
    # The bare backbone belongs to both.
    assert rows["base-F16"].change is not None
    assert "lora-int4" not in {rung.variant for rung in made.ladder}
    assert [note for note in section.notes if "of another training than that of lora-F16" in note]
    (found,) = [each for each in made.checks if each.kind == "trainings"]
    assert found.certain
    assert f"lora-F16 of {ONE[:12]} and lora-int4 of {OTHER[:12]}" in found.text


def test_merged_models_are_of_a_training_too(tmp_path: Path) -> None:
    put(tmp_path, of(ONE, result("lora-F16", right=240)), of(OTHER, result("merged-Q8_0")))
    made = findings.collect(Workspace(tmp_path), "tel-nano")
    assert [each.kind for each in made.checks] == ["trainings"]
    assert [rung.variant for rung in made.ladder] == ["lora-F16"]


@pytest.mark.parametrize("sources", [(ONE, ONE), (ONE, None), (None, None)])
def test_types_of_one_training_or_of_old_results_are_compared(
    sources: tuple[str | None, str | None], tmp_path: Path
) -> None:
    made = two(tmp_path, *sources)
    assert {"lora-F16", "lora-int4"} <= {rung.variant for rung in made.ladder}
    assert "trainings" not in {each.kind for each in made.checks}


@pytest.mark.parametrize(("second", "said"), [(ONE, 0), (None, 1)])
def test_the_report_says_what_an_old_result_does_not(
    second: str | None, said: int, tmp_path: Path
) -> None:
    (section,) = two(tmp_path, ONE, second).sections
    notes = [note for note in section.notes if "not noted which training" in note]
    assert notes == ["not noted which training the adapter is of: lora-int4"] * said


def test_seen_and_unseen_are_of_one_training(tmp_path: Path) -> None:
    put(tmp_path, of(ONE, result("lora-F16")), of(OTHER, result("lora-F16", part="train")))
    made = paper.collect(Workspace(tmp_path), None, False)
    (line,) = made.lines
    assert line.seen is None
    assert "has an adapter of another training than lora-F16 and is left out" in made.notes[0]


def test_compare_says_that_the_training_differs_too(tmp_path: Path) -> None:
    two(tmp_path, ONE, OTHER)
    home = Workspace(tmp_path)
    sides = [compare.runs(name, home, "tel-nano") for name in ("lora-F16", "lora-int4")]
    made = compare.compare(("lora-F16", "lora-int4"), *sides)
    assert [line for line in made.left_out if "adapters of two trainings" in line]
    assert made.pairs


def test_tel_eval_writes_down_the_training_without_scoring_again(tmp_path: Path) -> None:
    folder = tmp_path / "bundles" / "tel-nano"
    made = fake.bundle(folder, quants=("F16",))
    adapter = made.find("adapter", "F16", "oranbench")
    assert adapter
    data = fake.dataset(tmp_path / "data", "oranbench", fake.rows(30))
    argv = ["--workspace", str(tmp_path), "--dataset", str(data), "--quiet", "--json"]

    def score() -> tuple[fake.FakeOpener, Any]:
        opener = fake.FakeOpener()
        run = cli.run(
            evaluate.parser(), lambda args: evaluate.work(args, opener, isolated=False), argv
        )
        assert run == 0
        file = tmp_path / "results" / "tel-nano" / "lora-F16" / "oranbench.json"
        return opener, json.loads(file.read_text())["variant"]["source"]

    # As an older version left it: neither the bundle nor the result says the training.
    assert score()[1] is None
    manifest.write(made.with_file(replace(adapter, source=ONE)), folder)
    opener, source = score()
    assert source == ONE
    assert opener.opened == []


@pytest.mark.parametrize(
    ("then", "code", "said"),
    [
        ({"tokenizer": "c" * 64}, 0, ""),
        ({"tokenizer": "d" * 64}, 0, "trained with other tokenizer files than the bundle's"),
        ({"tokenizer": "d" * 64, "tokenization": "e" * 64}, 0, ""),
        ({"tokenizer": "d" * 64, "tokenization": "f" * 64}, 2, "prompts become other tokens"),
    ],
)
def test_tel_eval_knows_the_tokenizer_of_the_training(
    then: dict[str, str], code: int, said: str, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "bundles" / "tel-nano"
    made = fake.bundle(folder, quants=("F16",), tokenization="e" * 64)
    peft = tmp_path / "adapters" / "tel-nano" / "oranbench"
    peft.mkdir(parents=True)
    (peft / "adapter_config.json").write_text("{}")
    (peft / "training.json").write_text(json.dumps({"backbone": then}))
    adapter = made.find("adapter", "F16", "oranbench")
    assert adapter
    manifest.write(made.with_file(replace(adapter, source=digest.of_adapter(peft))), folder)
    data = fake.dataset(tmp_path / "data", "oranbench", fake.rows(30))
    argv = ["--workspace", str(tmp_path), "--dataset", str(data)]
    opener = fake.FakeOpener()
    got = cli.run(evaluate.parser(), lambda args: evaluate.work(args, opener, isolated=False), argv)
    err = capsys.readouterr().err
    assert got == code
    assert said in err
    assert said or "tokenizer" not in err
