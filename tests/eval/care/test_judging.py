"""`tel-judge`: nothing is asked twice, nothing is lost, and what goes wrong is told."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import for_judging as made_of
import pytest
from for_judging import MARKS, PAIRS, Command, endpoint, panel, serving, study, wins

pytest.importorskip("sacrebleu")

from tel_edge.eval.care.judges import studies
from tel_edge.eval.care.judges.judging import flips
from tel_edge.eval.care.judges.verdicts import CRITERIA, Judge, PairVerdict

tel_judge = made_of.tel_judge


def test_the_stand_ins_of_no_panel(tel_judge: Command, tmp_path: Path) -> None:
    argv = made_of.systems(tmp_path)
    code, said, err = tel_judge(*argv)
    assert (code, err) == (0, "")
    assert "rules (stand-in, no judge of language)" in said
    assert "0.0% flipped" in said
    assert said.splitlines()[-1].startswith("next: tel-report --study answers --workspace ")
    folder = study(tmp_path)
    pairs = studies.read_pairs(folder)
    rules = [one for one in pairs if one.judge == "rules"]
    assert len([one for one in rules if not one.repeat]) == PAIRS
    # Two say all facts, and the third lacks the fix.
    assert wins(rules) == {"great": 16, "good": 16, "tie": 16}
    lexical = wins([one for one in pairs if one.judge == "lexical"])
    assert lexical["great"] == 32
    assert lexical["weak"] == 0
    assert studies.read_rubric(folder) == []
    made = studies.read_study(folder)
    assert [judge.name for judge in made.judges] == ["rules", "lexical"]
    assert (made.backbone, made.dataset, made.part) == (made_of.BACKBONE, "data", "test")
    assert made.written_by == ("template",)
    assert len(made.prompts) == len(set(made.prompts)) == 8
    cases, texts = studies.read_prompts(folder), studies.read_answers(folder)
    assert [*cases] == [*made.prompts]
    for one in pairs:
        assert one.scenario == cases[one.prompt].scenario
        assert one.words == (
            texts[one.first, one.prompt].words,
            texts[one.second, one.prompt].words,
        )
    for system in made.systems:
        assert (folder / system.answers).is_file()
    before = (folder / "pairs.jsonl").read_bytes()
    assert " 0 made" in tel_judge(*argv)[1]
    assert (folder / "pairs.jsonl").read_bytes() == before


def test_an_endpoint_is_asked_for_everything_once(tel_judge: Command, tmp_path: Path) -> None:
    argv = [*made_of.systems(tmp_path), "--price", "10,20"]
    with serving() as server:
        argv += panel(tmp_path, endpoint(server.url))
        code, said, err = tel_judge(*argv)
        assert (code, err) == (0, "")
        count = len(server.asked)
        assert f"{count} verdicts, {count} to be made in as many requests to 127.0.0.1" in said
        assert f"big (org/Big-8B): {count} made, 0 reused, 0 missing, 0 unreadable, 0.0%" in said
        assert f"spent in this study: {count * 0.0102:.2f}" in said
        code, said, _ = tel_judge(*argv)
        assert (code, len(server.asked)) == (0, count)
        assert f"0 made, {count} reused" in said
    pairs, marks = (read(study(tmp_path)) for read in (studies.read_pairs, studies.read_rubric))
    assert len([one for one in pairs if not one.repeat]) == PAIRS
    assert len([one for one in marks if not one.repeat]) == MARKS
    assert len(pairs) + len(marks) == count
    assert 0 < count - PAIRS - MARKS < 15
    # Every pair of systems stands in both orders, and the better one wins in each.
    assert Counter((one.first, one.second) for one in pairs if not one.repeat) == dict.fromkeys(
        ((a, b) for a in made_of.QUALITY for b in made_of.QUALITY if a != b), 8
    )
    assert wins(pairs) == {"great": 32, "good": 16}
    assert {one.system: one.scores for one in marks} == {
        name: dict.fromkeys(CRITERIA, mark) for name, mark in made_of.QUALITY.items()
    }
    # What is not wanted now is put away, and comes back for nothing.
    few = [*argv, "--prompts", "2", "--no-rubric"]
    with serving() as server:
        few += panel(tmp_path, endpoint(server.url))
        assert tel_judge(*few)[0] == 0
        assert len([v for v in studies.read_pairs(study(tmp_path)) if not v.repeat]) == 12
        assert studies.read_rubric(study(tmp_path)) == []
        assert tel_judge(*argv)[0] == 0
        assert server.asked == []
    assert studies.read_pairs(study(tmp_path)) == pairs
    assert studies.read_rubric(study(tmp_path)) == marks


def test_the_key_is_of_the_variable_that_the_panel_names(
    tel_judge: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [*made_of.systems(tmp_path), "--no-rubric", "--prompts", "1"]
    monkeypatch.setenv("TEL_API_KEY", "another")
    monkeypatch.delenv("BIG_KEY", raising=False)
    with serving() as server:
        named = [*argv, *panel(tmp_path, endpoint(server.url, key="BIG_KEY"))]
        code, _, err = tel_judge(*named)
        assert (code, server.asked) == (2, [])
        assert "judge big: the environment variable BIG_KEY is not set" in err
        monkeypatch.setenv("BIG_KEY", "secret-1")
        code, said, _ = tel_judge(*named)
        assert (code, server.keys) == (0, {"Bearer secret-1"})
        server.keys.clear()
        assert tel_judge(*argv, *panel(tmp_path, endpoint(server.url, "other")))[0] == 0
        assert server.keys == {None}
    assert not [path for path in study(tmp_path).rglob("*") if path.is_file()
                and b"secret-1" in path.read_bytes()]  # fmt: skip
    assert "secret-1" not in said


def test_nothing_leaves_the_machine_unasked(tel_judge: Command, tmp_path: Path) -> None:
    argv = [*made_of.systems(tmp_path), *panel(tmp_path, endpoint("https://api.example/v1"))]
    code, _, err = tel_judge(*argv)
    assert code == 2
    assert "judge big: dialogues and answers would be sent to api.example; pass --send" in err
    assert not (study(tmp_path) / "study.json").exists()
    code, said, _ = tel_judge(*argv, "--dry-run", "--price", "1,2")
    assert code == 0
    assert "3 systems, 3 pairs in both orders, 8 prompts of 4 scenarios" in said
    assert "requests to api.example, about" in said
    assert "at least" in said
    assert [path for path in study(tmp_path).iterdir() if path.name[0] != "."] == []


def test_the_sweep_names_what_lacks(tel_judge: Command, tmp_path: Path) -> None:
    place = made_of.sweep(tmp_path, "great", "good")
    argv = ("--dataset", str(tmp_path / "data"))
    code, _, err = tel_judge("--sweep", "care", *argv)
    assert (code, err) == (0, "")
    made = studies.read_study(study(tmp_path, "care"))
    assert [one.name for one in made.systems] == ["good", "great"]
    assert made.systems[0].row["options"] == {"backbone": made_of.BACKBONE}
    assert made.systems[0].answers.startswith("../../sweeps/care/runs/good/")
    results = place / "runs" / "great" / "results" / made_of.BACKBONE / "lora-F16"
    (results / "care.json").unlink()
    code, _, err = tel_judge("--sweep", str(place), *argv)
    assert code == 2
    first, typed = err.splitlines()
    assert first.endswith("no answers to the test part of: great; type")
    assert f"tel-export --workspace {place / 'runs' / 'great'} --backbone smollm2-135m" in typed
    assert "tel-eval" in typed
    # A run that failed is left out, and one alone is no comparison.
    row = place / "rows" / "great.json"
    row.write_text(json.dumps({"run": "great", "category": "", "error": "out of memory"}))
    code, _, err = tel_judge("--sweep", str(place), *argv)
    assert code == 2
    assert "warning: runs without an adapter are left out: great" in err
    assert "1 system; two at least are compared" in err
    code, _, err = tel_judge("--sweep", str(tmp_path / "data"), *argv)
    assert "no rows/*.json" in err


def test_answers_to_other_dialogues(tel_judge: Command, tmp_path: Path) -> None:
    argv = made_of.systems(tmp_path)
    path = tmp_path / "good" / "care.jsonl"
    text = path.read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    rows[3]["asked"] = "00000000"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, err = tel_judge(*argv)
    assert code == 2
    assert f"{rows[3]['id']} is another dialogue than that of data" in err
    # Those that only some have answered are left out.
    path.write_text("".join(text.splitlines(keepends=True)[2:]))
    code, _, err = tel_judge(*argv)
    assert code == 0
    assert "warning: 6 dialogues have answers of all systems, 8 were wanted" in err
    rows = [{**json.loads(line), "run": str(at)} for at, line in enumerate(text.splitlines())]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "answers of 8 runs" in tel_judge(*argv)[2]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "pass --sweep DIR, or --answers"),
        (("--answers", "x"), "NAME=FILE is needed"),
        (("--answers", "x=none.jsonl"), "--dataset DIR is needed"),
        (("--answers", "x=none.jsonl", "--dataset", "DATA"), "no such file"),
        (("--sweep", "x", "--answers", "x=y"), "one of them"),
        (("--variant", "lora-F16"), "--variant is for --sweep"),
        (("--name", "../x"), "letters, digits"),
        (("--annotate", "3", "--labels", "x"), "one of them"),
        (("--annotate", "3"), "no study.json, so no study"),
        (("--price", "1"), "two prices"),
        (("--limit-cost", "1", "GIVEN"), "--limit-cost needs --price"),
    ],
)
def test_what_is_refused(
    tel_judge: Command, tmp_path: Path, argv: tuple[str, ...], said: str
) -> None:
    given = made_of.systems(tmp_path)
    places = {"DATA": [str(tmp_path / "data")], "GIVEN": given}
    code, _, err = tel_judge(*(one for part in argv for one in places.get(part, [part])))
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) <= 2


def test_own_families_are_flagged(tel_judge: Command, tmp_path: Path) -> None:
    argv = [*made_of.systems(tmp_path), "--no-rubric", "--prompts", "1"]
    with serving() as server:
        said = tel_judge(*argv, *panel(tmp_path, endpoint(server.url, family="SmolLM2")))[1]
        assert "big: of its own family: backbone smollm2-135m; it may favour it" in said
        assert "own family" not in tel_judge(
            *argv, *panel(tmp_path, endpoint(server.url, family="llama"))
        )[1]  # fmt: skip
    made = studies.read_study(study(tmp_path))
    judge = Judge("j", "endpoint", "qwen", "m", "d")
    of = type(made)(**{**made.__dict__, "written_by": ("template", "Qwen/Qwen2.5-72B")})
    assert studies.own_family(of, judge) == ("references by Qwen/Qwen2.5-72B",)
    assert studies.own_family(of, Judge("j", "people", "qwen", "m", "d")) == ()
    # A short name is part of many others.
    assert studies.own_family(of, Judge("j", "gguf", "tem", "m", "d")) == ()


def test_flips_are_of_pairs_in_both_orders() -> None:
    def verdict(first: str, second: str, choice: str | None, repeat: int = 0) -> PairVerdict:
        return PairVerdict("j", "p", "s", first, second, choice, (1, 1), repeat, "k")

    steady = [verdict("a", "b", "first"), verdict("b", "a", "second")]
    flipped = [verdict("a", "c", "first"), verdict("c", "a", "first")]
    half = [verdict("b", "c", "tie"), verdict("c", "b", None), verdict("b", "c", "first", 1)]
    assert flips([*steady, *flipped, *half]) == (1, 2)
    assert flips([verdict("b", "c", "tie"), verdict("c", "b", "second")]) == (1, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"choice": "A"}, "choice is 'A'"),
        ({"words": [1]}, "words are not two counts"),
        ({"repeat": -1}, "repeat is -1"),
        ({"judge": ""}, "are texts"),
        ({"more": 1}, "unexpected keyword argument 'more'"),
    ],
)
def test_a_broken_verdict_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    row = {"judge": "j", "prompt": "p", "scenario": "s", "first": "a", "second": "b",
           "choice": None, "words": [1, 2], "repeat": 0, "key": "k"}  # fmt: skip
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"{json.dumps(row)}\n{json.dumps({**row, **change})}\n{{")
    with pytest.raises(ValueError, match=f"pairs.jsonl: line 2 is none of tel-judge's .*{said}"):
        studies.read_pairs(tmp_path)
    path.write_text(f"{json.dumps(row)}\n{{")
    assert studies.read_pairs(tmp_path)[0].words == (1, 2)
