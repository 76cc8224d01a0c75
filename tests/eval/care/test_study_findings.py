"""The report's own checks of a study: what is found, and what nothing is told of then."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import for_studies
import pytest
from for_studies import STANDINS, collected, home, kinds, rewritten

from tel_edge.eval.care.answers.measured import FACTS
from tel_edge.eval.care.judges import studies
from tel_edge.eval.care.judges.studies import Answer
from tel_edge.eval.care.judges.verdicts import Judge
from tel_edge.eval.care.study import checks
from tel_edge.eval.care.study.losses import UNTOLD
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.workspace import Workspace

usual = for_studies.usual


def test_a_sound_study_has_no_finding_but_that_nobody_saw_the_data(
    usual: Workspace, tmp_path: Path
) -> None:
    assert kinds(collected(usual)) == {"training"}
    (tmp_path / "train.jsonl").write_text('{"scenario": "another.outage.home"}\n')
    assert kinds(collected(usual, tmp_path)) == set()


def test_a_data_set_that_was_not_judged_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = home(tmp_path / "home")
    study = workspace.root / "studies" / "care"
    data = tmp_path / studies.read_study(study).dataset
    data.mkdir()
    row = {
        "id": "x", "scenario": "term-0.coverage.home",
        "facts": dict.fromkeys((*FACTS, "term"), "a fact"),
        "messages": [{"role": who, "content": "a text"} for who in ("user", "assistant")],
    }  # fmt: skip
    for part in ("train", "test"):
        (data / f"{part}.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="another data set than the one that was judged"):
        collected(workspace, data)
    monkeypatch.chdir(tmp_path)
    of = collected(workspace)
    assert [one.text.split(",")[0] for one in of.findings] == ["the data set is not here"]
    assert of.data is None


def test_a_prompt_that_was_trained_on_makes_all_of_it_worthless(
    usual: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "train.jsonl").write_text('{"scenario": "term-0.coverage.home"}\n')
    of = collected(usual, tmp_path)
    assert kinds(of) == {"training"}
    assert of.verdict.kind == UNTOLD
    assert "1 of the prompts' scenarios are in the training part" in of.verdict.headline


def test_a_judge_that_takes_the_first_or_the_longer_is_not_believed(tmp_path: Path) -> None:
    workspace = home(tmp_path)
    rewritten(workspace, lambda v: replace(v, choice="first") if v.judge == "left-7b" else v)
    of = collected(workspace)
    assert ("first", "left-7b") in {(one.kind, one.about) for one in of.findings if one.grave}
    assert of.verdict.kind == UNTOLD
    assert "takes the first answer in 100%" in of.verdict.headline
    workspace = home(tmp_path / "long")
    rewritten(
        workspace,
        lambda v: replace(v, choice="first" if v.words[0] > v.words[1] else "second"),
    )
    of = collected(workspace)
    assert {one.about for one in of.findings if one.kind == "length" and one.grave} == {
        "left-7b",
        "right-8b",
    }


def test_what_cannot_be_read_is_counted_and_told(tmp_path: Path) -> None:
    workspace = home(tmp_path)
    counter = iter(range(10**6))
    rewritten(workspace, lambda v: replace(v, choice=None) if next(counter) % 9 == 0 else v)
    of = collected(workspace)
    assert {"unread", "few"} <= kinds(of)
    assert any("judged in one order only" in one.text for one in of.findings)


def test_a_judge_of_the_answers_family_is_flagged(tmp_path: Path) -> None:
    own = [Judge("smol", "gguf", "smollm2", "smollm2-1.7b", "d"), *STANDINS]
    of = collected(home(tmp_path, judges=own))
    assert ("family", "smol") in {(one.kind, one.about) for one in of.findings}
    assert of.audits[0].own == ("backbone smollm2-135m",)


def test_answers_that_are_the_same_or_cut_are_found() -> None:
    prompts = [f"p{at}" for at in range(10)]
    given = {
        (name, prompt): Answer(name, prompt, (f"{text} {prompt}",), (name != "cut",))
        for name, text in (("a", "same"), ("b", "same"), ("cut", "other"))
        for prompt in prompts
    }
    of = [*checks.of_answers(("a", "b", "cut"), prompts, given)]
    assert [(one.kind, one.about) for one in of] == [("same", "a, b"), ("cut", "cut")]
    assert not any(one.grave for one in of)
    [_, every, *_] = checks.of_answers(
        ("a", "b", "cut"), prompts,
        {at: replace(one, ended=(at[0] == "a",)) for at, one in given.items()},
    )  # fmt: skip
    assert (every.about, every.grave) == ("", True)
    assert every.text.startswith("20 of all 30 answers were cut at the limit")
    del given["a", "p3"]
    of = [*checks.of_answers(("a",), prompts, given)]
    assert [one.text for one in of] == ["a has no answer to 1 of 10 prompts"]


def test_of_answers_that_were_mostly_cut_nothing_is_told(tmp_path: Path) -> None:
    workspace = home(tmp_path)
    file = workspace.root / "studies" / "care"
    assert collected(workspace).verdict.kind != "cannot be told"
    answers = [*studies.read_answers(file).values()]
    cut = [replace(one, ended=(False,)) for one in answers]
    studies.write_lines(file / studies.ANSWERS, cut)
    verdict = collected(workspace).verdict
    assert verdict.kind == "cannot be told"
    assert "were cut at the limit" in verdict.headline


def test_verdicts_on_texts_that_have_changed_since_are_found(tmp_path: Path) -> None:
    workspace = home(tmp_path)
    file = workspace.root / "studies" / "care"
    answers = [*studies.read_answers(file).values()]
    assert "changed" not in kinds(collected(workspace))
    changed = [replace(answers[0], texts=("One word more than it had", *answers[0].texts))]
    studies.write_lines(file / studies.ANSWERS, [*changed, *answers[1:]])
    of = collected(workspace)
    assert of.verdict.kind == "cannot be told"
    [one] = [one for one in of.findings if one.kind == "changed"]
    assert "verdicts are of answers that have changed since" in one.text
    assert int(one.text.split()[0]) < len(of.pairs) / 10


def test_few_prompts_are_told(tmp_path: Path) -> None:
    of = collected(home(tmp_path, prompts=20))
    assert any("20 scenarios were judged, 30 are needed" in one.text for one in of.findings)
