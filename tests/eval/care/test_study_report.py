"""`tel-report --study`: what it writes, what it says first, what it refuses, and its own checks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import for_judging
import for_studies
import numpy as np
import pytest
from conftest import shown
from for_judging import Command
from for_studies import SCORES, STANDINS, collected, home, kinds, rewritten, truth

from tel_edge.eval import documents
from tel_edge.eval.care.answers.against import Against
from tel_edge.eval.care.judges import studies
from tel_edge.eval.care.judges.verdicts import Judge, PairVerdict
from tel_edge.eval.care.study import found, told, written
from tel_edge.eval.care.study.losses import AGREE, DISAGREE, UNTOLD
from tel_edge.eval.commands import report
from tel_edge.eval.statistics import Mean, Share
from tel_edge.runtime import cli
from tel_edge.runtime.workspace import Workspace

Run = Callable[..., tuple[int, str, str]]
tel_judge = for_judging.tel_judge


usual = for_studies.usual


def test_the_command_writes_all_of_it(usual: Workspace, run_command: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    argv = ["--study", "care", "--workspace", str(usual.root), "--out", str(tmp_path / "out")]
    code, out, err = run_command(report.parser(), report.work, *argv, "--json")
    assert (code, err) == (0, "")
    assert out.startswith("the validation loss and the judges agree")
    assert "Judge-aligned: judged by 2 models: left-7b (family left)" in " ".join(out.split())
    plots = ["loss-against-quality", "ranks", "quality-against-cost", "causes-and-contexts"]
    wanted = {f"study-{name}.svg" for name in (*plots, "length-against-wins")}
    assert {*shown(tmp_path / "out")} == {"report.html", "report.json", "report.md", *wanted}
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    assert document == json.loads(out.splitlines()[-1])
    assert [row["system"] for row in document["rows"]] == [f"system-{at:02d}" for at in range(7)]
    ranks = [one["rank"] for one in document["standings"]["panel"]]
    assert ranks == [1, 2, 3, 4, 5, 6, 7]
    assert "NaN" not in (tmp_path / "out" / "report.json").read_text()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org/", "")
    assert "https://" not in page
    assert page.count("<svg ") == 5
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| 1 | system-00 |" in text
    assert "| published, others' data | 0.5024 | 6 to 7 | 0.6807 | 1 |" in text
    assert "published in arXiv" in text
    for file in (page, text):
        assert file.count("No person has labelled answers") >= 2


def test_without_texts_no_word_of_a_dialogue_is_in_the_page(
    usual: Workspace, run_command: Run, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    argv = ["--study", str(usual.root / "studies" / "care"), "--out", str(tmp_path)]
    words = "does not work, what can I do?"
    assert run_command(report.parser(), report.work, *argv)[0] == 0
    assert words in (tmp_path / "report.html").read_text()
    assert run_command(report.parser(), report.work, *argv, "--no-texts")[0] == 0
    assert words not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--compare", "a", "b"], "--compare means nothing with --study"),
        (["--margin", "2"], "--margin means nothing with --study"),
        (["--backbone", "x"], "--backbone means nothing with --study"),
        (["--write"], "--write means nothing with --study"),
        (["--dataset", "nowhere"], "--dataset nowhere: with --study the folder"),
    ],
)
def test_options_of_other_reports_are_refused(
    option: list[str], said: str, usual: Workspace, run_command: Run
) -> None:
    argv = ["--study", "care", "--workspace", str(usual.root)]
    code, _, err = run_command(report.parser(), report.work, *argv, *option)
    assert code == 2
    assert said in err


def test_where_there_is_no_study_those_that_are_there_are_named(
    usual: Workspace, run_command: Run, tmp_path: Path
) -> None:
    argv = ["--study", "cara", "--workspace"]
    code, _, err = run_command(report.parser(), report.work, *argv, str(usual.root))
    assert (code, "this workspace has care" in err) == (2, True)
    _, _, err = run_command(report.parser(), report.work, *argv, str(tmp_path))
    assert "tel-judge makes a study" in err


def test_before_anybody_has_judged_there_is_no_report(tmp_path: Path) -> None:
    workspace = home(tmp_path, prompts=3)
    (tmp_path / "studies" / "care" / "pairs.jsonl").unlink()
    code = cli.run(report.parser(), report.work, ["--study", "care", "--workspace", str(tmp_path)])
    assert code == 2
    assert not (workspace.root / "studies" / "care" / "report.json").exists()


def test_the_verdict_follows_the_losses(tmp_path: Path) -> None:
    cases = {
        "with": ([0.5 + at / 100 for at in range(7)], AGREE, "agree"),
        "against": ([0.5 - at / 100 for at in range(7)], DISAGREE, "a lower loss are ranked lower"),
        # By chance, but the one with the lowest is ranked last.
        "mixed": ([0.53, 0.51, 0.55, 0.52, 0.56, 0.54, 0.50], DISAGREE, "is ranked 7"),
    }
    for name, (losses, kind, said) in cases.items():
        of = collected(home(tmp_path / name, losses=losses)).verdict
        assert (name, of.kind) == (name, kind)
        assert said in of.headline
        assert any("tau-b" in one and "0.71" in one for one in of.sentences), of.sentences


def test_of_equal_systems_nothing_can_be_told_and_it_says_why(tmp_path: Path) -> None:
    of = collected(
        home(tmp_path, truth((0.0,) * 6), 40, losses=[0.5, 0.53, 0.51, 0.54, 0.52, 0.55])
    )
    assert of.verdict.kind == UNTOLD
    assert "would be needed if the difference is real" in of.verdict.headline
    few = collected(home(tmp_path / "few", truth((0.5, 0.0, -0.5)), 40))
    assert (few.verdict.kind, few.ranks) == (UNTOLD, ())
    assert "3 systems have a validation loss, 4 are needed" in few.verdict.headline


def test_stand_ins_are_never_called_judges_of_people(tmp_path: Path) -> None:
    of = collected(home(tmp_path, judges=STANDINS))
    assert of.label.startswith("Judged by stand-ins: rules, lexical. They count words")
    assert "aligned" not in of.label
    assert of.verdict.headline == "the validation loss and the stand-ins agree"
    mixed = [*STANDINS, Judge("left-7b", "endpoint", "left", "left-7b", "d")]
    both = collected(home(tmp_path / "mixed", judges=mixed))
    assert both.panel == ("left-7b",)
    assert {one.judge for one in both.audits} == {"rules", "lexical", "left-7b"}


def people(workspace: Workspace, count: int, noise: float = 0.1) -> None:
    """Let some people label 60 pairs as the first judge did, with some noise."""
    folder = workspace.root / "studies" / "care"
    rng = np.random.default_rng(1)
    pairs = [one for one in studies.read_pairs(folder) if one.judge == "left-7b" and not one.repeat]
    drawn = [pairs[at] for at in rng.permutation(len(pairs))[:120]]
    labels: list[PairVerdict] = []
    for person in range(count):
        for one in drawn:
            choice = rng.choice(["first", "second"]) if rng.random() < noise else one.choice
            labels.append(replace(one, judge=f"person-{person}", choice=str(choice)))
    studies.write_lines(folder / studies.LABELS, labels)


def test_people_are_named_where_there_are_labels(tmp_path: Path) -> None:
    clear = truth([4 * score for score in SCORES], noise=0.2, scenario=0.2, ties=0.0)
    workspace = home(tmp_path, clear, prompts=80)
    people(workspace, 3)
    of = collected(workspace)
    assert of.label.startswith("Human-aligned: judged by 2 models")
    assert "who may stand in for a person by 3" in of.label
    assert of.people is not None
    assert of.people.names == ("person-0", "person-1", "person-2")
    assert {one.judge for one in of.people.replaced} == {"left-7b", "right-8b", "panel"}
    assert all(not one.why for one in of.people.replaced)
    assert of.people.wins["system-00"].value > of.people.wins["system-06"].value
    assert all(one.low is not None for *_, one in of.people.kappas)
    people(workspace, 1)
    alone = collected(workspace)
    assert alone.people is not None
    assert all("2 are needed" in one.why for one in alone.people.replaced)
    assert alone.label.startswith("Judge-aligned")
    assert "labels of a person do not show that they may stand in for one" in alone.label


def test_people_alone_may_judge(tmp_path: Path, run_command: Run) -> None:
    workspace = home(tmp_path, prompts=80)
    people(workspace, 2)
    folder = workspace.root / "studies" / "care"
    (folder / studies.PAIRS).unlink()
    own = tuple(Judge(f"person-{at}", "people", "", "", "d") for at in range(2))
    studies.write_study(folder, replace(studies.read_study(folder), judges=own))
    of = collected(workspace)
    assert of.label.startswith("Human-aligned: judged by people: person-0, person-1, 2")
    assert of.verdict.headline == "the validation loss and the people agree"
    assert of.people is not None
    assert [of[:2] for of in of.people.kappas] == [("person-0", "person-1")]
    argv = ["--study", "care", "--workspace", str(workspace.root)]
    assert run_command(report.parser(), report.work, *argv)[0] == 0


def test_of_labels_that_say_otherwise_judges_are_not_called_human_aligned(tmp_path: Path) -> None:
    workspace = home(tmp_path, prompts=80)
    people(workspace, 3)
    other = {"first": "second", "second": "first", "tie": "tie"}
    rewritten(workspace, lambda v: replace(v, choice=other[str(v.choice)]))
    of = collected(workspace)
    assert of.people is not None
    assert not any(one.passes for one in of.people.replaced)
    assert of.label.startswith("Judge-aligned")


def test_hostile_texts_cannot_leave_their_place(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    workspace = home(tmp_path, prompts=12)
    folder = workspace.root / "studies" / "care"
    bad = "</script><script>window.owned = 1</script><img src=x onerror=alert(1)>"
    answers = [replace(one, texts=(bad,)) for one in studies.read_answers(folder).values()]
    studies.write_lines(folder / studies.ANSWERS, answers)
    of = collected(workspace)
    page = written.html(of, (), texts=True)
    assert bad not in page
    assert page.count("</script>") == 2
    [data] = re.findall(r'id="told">(.*?)</script>', page)
    assert json.loads(data)["answers"][0][0] == [bad, True]


def test_what_the_browser_shows_is_what_was_said(usual: Workspace) -> None:
    of = collected(usual)
    made_ = written.browsed(of)
    assert len(made_["prompts"]) == 60
    # The best, and the best of those that it met.
    assert made_["start"] == [0, 1]
    flat = [v for judge in made_["verdicts"] for prompt in judge for v in prompt]
    once = [one for one in of.pairs if not one.repeat]
    assert len(flat) == len(once)
    assert written.CODES.keys() == {"first", "second", "tie", None}


def test_a_panel_of_the_data_set_is_shown(usual: Workspace, tmp_path: Path) -> None:
    panel = {
        "dialogues": 10, "scenarios": 5, "words": {"user": {"p50": 3, "p95": 4}},
        "opening": {"user": {"share": 0.1, "text": "hello"}}, "distinct": {"1": 0.5},
        "self_bleu": 70.0, "cells": {"of": 2, "fewest": 1, "most": 2},
    }  # fmt: skip
    made_ = {"licence": "apache-2.0", "source": {"model": "m", "kind": "endpoint"}, "seed": 1,
             "rejects": {"fix": 3}, "panel": panel}  # fmt: skip
    (tmp_path / "files.json").write_text(json.dumps(made_))
    (tmp_path / "train.jsonl").write_text("")
    notes = told.chapters(collected(usual, tmp_path))[-1].notes
    assert notes[:2] == ("written by m (endpoint), seed 1, licence apache-2.0", "refused: fix 3")
    assert "10 dialogues of 5 scenarios" in notes


def test_what_quantization_loses_and_the_device_takes_is_shown(
    usual: Workspace, tmp_path: Path
) -> None:
    place = tmp_path / "results" / "smollm2-135m"
    share, mean = Share(9, 10, 0.9, 0.8, 0.95), Mean(0.01, 0.0, 0.02, 10, 5)
    said = "cannot be told (n too small)"
    counts = (3.0, 1, 0, 0, 0)
    one = Against("Q4", "F16", 10, share, mean, None, mean, share, *counts, mean, said)
    variant = {"variant": {"name": "Q4"}, "milliseconds_p50": 812.0, "memory_peak": 2e8}
    made_ = {"schema_version": 1, "against": [asdict(one)], "variants": [variant]}
    documents.write(place / "care.json", made_)
    of = found.collect(usual.root / "studies" / "care", Workspace(tmp_path), None)
    text = told.markdown(of, ())
    assert "| Q4 | F16 | 90.0 \\[80.0, 95.0\\] |" in text
    assert f"Q4: {said}" in text
    assert "| Q4 | 812 | 200 |" in text


def test_what_tel_judge_wrote_is_reported(tel_judge: Command, tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    names = {"great": 5, "good": 4, "weak": 2, "worst": 1}
    argv = for_judging.systems(tmp_path, names)
    assert tel_judge(*argv)[0] == 0
    workspace = Workspace(tmp_path / "home")
    folder = found.place(workspace, "answers")
    of = found.collect(folder, workspace, tmp_path / "data")
    assert of.label.startswith("Judged by stand-ins: rules, lexical")
    f1 = {row.system: row.f1 for row in of.rows}
    assert f1["great"] is not None
    assert f1["weak"] is not None
    assert f1["great"].value > f1["weak"].value
    assert of.cells_of.startswith("F1 of facts")
    assert [one.flips.value for one in of.audits] == [0.0, 0.0]
    # Systems of no sweep have no loss, and four scenarios are few.
    assert of.verdict.kind == UNTOLD
    assert "0 systems have a validation loss" in of.verdict.headline
    assert "few" in kinds(of)
    _, missing = written.write(of, tmp_path / "out")
    assert missing in ("", "matplotlib is not installed; run: pip install 'tel-edge[report]'")
