"""`tel-run` with an engine that has no model: questions in, records out."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import fake_engine as fake
import for_run
import pytest
from for_run import ASK, MIXED, Command, jsonl, records

from tel_edge.runtime.commands import run
from tel_edge.runtime.questions import votes
from tel_edge.runtime.questions.categories import CATEGORIES

home = for_run.home
tel_run = for_run.tel_run


def test_a_question_from_arguments(tel_run: Command) -> None:
    argv = ["--category", "oranbench", "--choice", "x", "--choice", "y", "--choice", "z"]
    code, out, err = tel_run(*argv, "is it gold 1?", "or gold 2?")
    assert code == 0
    wanted = [
        {"id": "1", "answer": "y", "index": 1, "probabilities": [0.15, 0.7, 0.15]},
        {"id": "2", "answer": "z", "index": 2, "probabilities": [0.15, 0.15, 0.7]},
    ]
    for record, head in zip(records(out), wanted, strict=True):
        logprobs = [math.log(share) for share in head["probabilities"]]  # type: ignore[attr-defined]
        drawn = votes.draws(logprobs, 4, 0.7, 42, str(head["id"]))
        tail = {"mass": 1.0, "votes": list(drawn), "majority": votes.majority(drawn)}
        tail["adapter"] = "oranbench"
        assert record == head | tail
        assert list(record) == [*head, *tail]
    assert err == "2 answered with nano-Q4_K_M.gguf, 0 refused\n"


def test_a_category_with_labels_needs_no_choices(tel_run: Command) -> None:
    code, out, _ = tel_run("--category", "3gpp_tsg", "paging, gold 5")
    (record,) = records(out)
    assert code == 0
    assert record["answer"] == CATEGORIES["3gpp_tsg"].labels[5] == "RAN2"
    assert len(record["probabilities"]) == 16


BAD_LINES: list[tuple[Any, dict[str, Any]]] = [
    (b'{"question": "torn', {"error": "not JSON: "}),
    (b"[" * 100_000, {"error": "not JSON: "}),
    ([1], {"error": "not a JSON object"}),
    ({"choices": ["a", "b"]}, {"error": "column 'question' is missing"}),
    ({"question": "?"}, {"error": "column 'choices' is missing"}),
    ({"question": "  ", "choices": ["a", "b"]}, {"error": "empty question"}),
    ({"question": "?", "choices": ["a"]}, {"error": "1 choices; 2 to 16 can be answered"}),
    (
        {"question": "?", "choices": [str(at) for at in range(30)]},
        {"error": "30 choices; 2 to 16 can be answered"},
    ),
    ({**ASK, "category": "poetry"}, {"error": "unknown category 'poetry'; there are: teleqna"}),
    ({**ASK, "id": 7, "category": "teleqna"}, {"id": 7, "error": "no adapter for teleqna"}),
    ({**ASK, "question": "half \ud83d"}, {"error": "'\\ud83d' is no Unicode character"}),
    (
        {**ASK, "id": "half \ud83d"},
        {"id": "half \ud83d", "error": "'\\ud83d' is no Unicode character"},
    ),
    ({"id": 7}, {"id": 7, "error": "column 'question' is missing"}),
    ({"id": 1.5, "question": "?"}, {"id": 1.5, "error": "column 'choices' is missing"}),
    (b'{"id": NaN}', {"id": "nan", "error": "column 'question' is missing"}),
    (b'{"question": "caf\xe9", "choices": ["a", "b"]}', {"error": "byte 0xE9 is no UTF-8"}),
    ({**ASK, "question": "x" * 5000}, {"id": "LINE", "error": "tokens, the context holds 4096"}),
]


@pytest.mark.parametrize("at", range(len(BAD_LINES)))
def test_a_bad_line_gets_an_error_record_in_its_place(at: int, tel_run: Command) -> None:
    bad, wanted = BAD_LINES[at]
    code, out, err = tel_run("--category", "oranbench", lines=jsonl(ASK, b"", bad, ASK))
    first, second, third = records(out)
    assert code == 1
    assert (first["id"], third["id"]) == ("1", "4")
    assert first["answer"] == third["answer"] == "c"
    assert second["line"] == 3
    assert wanted["error"] in second["error"]
    assert second.get("id") == ("3" if wanted.get("id") == "LINE" else wanted.get("id"))
    assert "2 answered" in err
    assert "1 refused" in err


def test_lines_are_answered_in_order_with_their_ids_and_categories(tel_run: Command) -> None:
    lines = jsonl(
        {**ASK, "id": "one", "category": "oranbench"},
        {"question": "gold 15", "category": "3gpp_tsg", "id": None},
        {**ASK, "category": "oranbench", "answer": 0},
    )
    opener = fake.FakeOpener()
    code, out, _ = tel_run(lines=lines, opener=opener)
    assert code == 0
    assert [(r["id"], r["answer"]) for r in records(out)] == [
        ("one", "c"), ("2", "SA6"), ("3", "c")
    ]  # fmt: skip
    assert set(opener.opened[0][1]) == {"oranbench", "3gpp_tsg"}


def test_a_line_without_category_is_told_where_to_name_one(tel_run: Command) -> None:
    code, out, _ = tel_run(lines=jsonl(ASK))
    assert code == 1
    said = (
        "no category, and no router in the bundle that finds one; name it with --category or in "
        "the line"
    )
    assert records(out) == [{"line": 1, "error": said}]


def test_no_line_at_all_is_no_failure(tel_run: Command) -> None:
    assert tel_run("--category", "oranbench", "--quiet") == (0, "", "")


def test_probabilities_sum_to_one(tel_run: Command) -> None:
    _, out, _ = tel_run("--category", "oranbench", lines=jsonl(ASK))
    assert math.isclose(sum(records(out)[0]["probabilities"]), 1, abs_tol=1e-5)


def test_json_ends_stdout_with_the_counts(tel_run: Command) -> None:
    code, out, err = tel_run(
        "--category", "oranbench", "--json", "--quiet", lines=jsonl(ASK, {"question": 1})
    )
    assert code == 1
    document = records(out)[-1]
    timing = document.pop("timing")
    assert document == {"answered": 1, "refused": 1}
    assert timing.keys() == {"python", "open", "first_answer"}
    assert all(value is None or value >= 0 for value in timing.values())
    assert err == ""


def test_no_adapter_asks_the_bare_backbone(tel_run: Command, home: Path) -> None:
    """It needs no adapter in the bundle either."""
    (home / "bundles" / "tel-nano" / "nano-oranbench-LoRA.gguf").unlink()
    opener = fake.FakeOpener()
    lines = jsonl({**ASK, "category": "teleqna"}, {"question": 1})
    code, out, _ = tel_run("--no-adapter", lines=lines, opener=opener)
    assert code == 1
    assert records(out)[0]["probabilities"] == [0.25] * 4
    assert records(out)[1]["line"] == 2
    assert opener.opened[0][1] == []


def test_quant_and_bundle_choose_the_file(tel_run: Command, home: Path) -> None:
    fake.bundle(home / "elsewhere")
    opener = fake.FakeOpener()
    argv = ["--bundle", str(home / "elsewhere"), "--quant", "F16", "--category", "oranbench"]
    assert tel_run(*argv, opener=opener)[0] == 0
    assert opener.opened[0][0] == home / "elsewhere" / "nano-F16.gguf"


# Arguments, exit code, what is said on stderr.
COMMANDS: tuple[tuple[list[str], int, str], ...] = (
    (["--nonsense"], 2, "unrecognized arguments: --nonsense"),
    (["--category"], 2, "expected one argument"),
    (["--context", "many"], 2, "argument --context: 'many' is no whole number above 0"),
    (["--threads", "0"], 2, "argument --threads: '0' is no whole number above 0"),
    (["--categ", "oranbench"], 2, "unrecognized arguments"),
    (["--category", "poetry"], 2, "unknown category 'poetry'; there are: teleqna sixg_bench"),
    (["--category", "teleqna"], 2, "no adapter for teleqna (there: 3gpp_tsg oranbench)"),
    (
        ["--backbone", "nothing"],
        2,
        "no backbone 'nothing': it is neither a folder, a GGUF file nor one of",
    ),
    (["--backbone", "qwen3-0.6b"], 2, "no such folder; make a bundle with tel-export"),
    (["--bundle", "nowhere"], 2, "--bundle nowhere: no such folder; make a bundle with tel-export"),
    (["--quant", "Q8_0"], 2, "no Q8_0 backbone (there: F16 Q4_K_M); run: tel-export --quant Q8_0"),
    (["a question", "--choice", "a", "--choice", "b", "--labels", "x,y"], 2, "give one"),
    (["a question"], 2, "questions given as arguments need their answers: --choice TEXT"),
    (["--adapter-file", "x.gguf"], 2, "--adapter-file needs --backbone-file; a bundle brings"),
    (["--backbone-file", "no.gguf"], 2, "no.gguf: "),
    (["--window", "0"], 2, "argument --window: '0' is no whole number above 0"),
    (["--max-adapters", "-1"], 2, "argument --max-adapters: '-1' is no whole number above 0"),
    (["--threshold", "2"], 2, "argument --threshold: '2' is no number from 0 to 1"),
    (["--protocol", "poem"], 2, "argument --protocol: invalid choice: 'poem'"),
    (["--temperature", "0"], 2, "--temperature 0.0: a number above 0 is needed"),
    (["-k", "0"], 2, "argument -k: '0' is no whole number above 0"),
    (["-k", "129"], 2, "argument -k: '129' is no whole number from 1 to 128"),
    (["-k", "9" * 5000], 2, "is no whole number above 0"),
    (["-k", "63", "--protocol", "generate"], 2, "-k 63: with --protocol generate at most 62 work"),
    (["--threads", "513"], 2, "argument --threads: '513' is no whole number from 1 to 512"),
    (["--context", str(2**31)], 2, "argument --context: '2147483648' is no whole number from 1"),
    (["--gpu-layers", "-2"], 2, "argument --gpu-layers: '-2' is no whole number from -1"),
    (["--seed", "-1"], 2, "argument --seed: '-1' is no whole number from 0 to 4294967295"),
    (["--seed", "1_0"], 2, "argument --seed: '1_0' is no whole number from 0"),
    (["--temperature", "nan"], 2, "--temperature nan: a number above 0 is needed"),
    (["--max-tokens", "0"], 2, "argument --max-tokens: '0' is no whole number above 0"),
    (["--category", "oranbench", "a question"], 2, "need their answers: --choice TEXT"),
)


@pytest.mark.parametrize(("argv", "code", "said"), COMMANDS)
def test_wrong_usage(argv: list[str], code: int, said: str, tel_run: Command) -> None:
    opener = fake.FakeOpener()
    found, out, err = tel_run(*argv, opener=opener)
    assert (found, out, opener.opened) == (code, "", [])
    assert said in err
    assert err.startswith("tel-run: ")
    assert len(err.splitlines()) <= 2


def test_choices_without_questions_are_not_mistaken_for_one(tel_run: Command) -> None:
    code, out, _ = tel_run("--category", "oranbench", "--choice", "a", "?")
    assert code == 1
    assert "1 choices" in records(out)[0]["error"]


def test_the_parser_is_no_other_than_that_of_the_command() -> None:
    made: argparse.Namespace = run.parser().parse_args([])
    assert (made.category, made.context, made.quant) == ("all", 4096, None)


def test_categories_of_a_window_are_asked_together_and_answered_in_order(tel_run: Command) -> None:
    opener = fake.FakeOpener()
    code, out, _ = tel_run(lines=jsonl(*MIXED), opener=opener)
    assert code == 0
    assert [record["id"] for record in records(out)] == [str(at + 1) for at in range(20)]
    assert [record["index"] for record in records(out)] == [at % 3 for at in range(20)]
    assert opener.engines[0].calls == [(7, "3gpp_tsg"), (13, "oranbench")]


@pytest.mark.parametrize("argv", [[], ["--protocol", "generate"]])
def test_answers_and_votes_are_the_same_whatever_the_window(
    argv: list[str], tel_run: Command
) -> None:
    lines, found = jsonl(*MIXED), []
    for window in ("1", "3", "256"):
        opener = fake.FakeOpener()
        code, out, _ = tel_run("--window", window, *argv, lines=lines, opener=opener)
        assert code == 0
        assert max(count for count, _ in opener.engines[0].calls) <= int(window)
        found.append(out)
    assert len(set(found)) == 1
    assert len(set(map(str, (record["votes"] for record in records(found[0]))))) > 1


def test_votes_are_drawn_as_they_are_asked_for(tel_run: Command) -> None:
    code, out, _ = tel_run("-k", "9", "--temperature", "3", "--seed", "5", lines=jsonl(*MIXED))
    assert code == 0
    for record, row in zip(records(out), MIXED, strict=True):
        count = 3 if "choices" in row else 16
        shares = fake.gold(str(row["question"]), "x", count)
        drawn = votes.draws([math.log(share) for share in shares], 9, 3.0, 5, record["id"])
        assert record["votes"] == list(drawn)
        assert record["majority"] == votes.majority(drawn)


def test_mass_is_that_of_all_labels(tel_run: Command) -> None:
    opener = fake.FakeOpener(rule=lambda prompt, adapter, labels: [0.1] * labels)
    _, out, _ = tel_run("--category", "oranbench", lines=jsonl(ASK), opener=opener)
    assert records(out)[0]["mass"] == 0.4
    assert records(out)[0]["probabilities"] == [0.25] * 4


def test_settings_reach_the_engine(tel_run: Command) -> None:
    argv = ["--exact", "--max-adapters", "2", "--threads", "3", "--context", "512"]
    opener = fake.FakeOpener()
    assert tel_run(*argv, "--gpu-layers", "-1", opener=opener)[0] == 0
    made = opener.engines[0].settings
    assert (made.exact, made.max_adapters, made.threads) == (True, 2, 3)
    assert (made.context, made.gpu_layers) == (512, -1)
    assert tel_run(opener=opener)[0] == 0
    made = opener.engines[1].settings
    assert (made.exact, made.max_adapters, made.threads, made.context) == (False, None, None, 4096)


def test_a_damaged_adapter_is_the_trouble_of_its_own_questions(
    tel_run: Command, home: Path
) -> None:
    path = home / "bundles" / "tel-nano" / "nano-3gpp_tsg-LoRA.gguf"
    path.write_bytes(path.read_bytes()[:-1])
    code, out, err = tel_run("--window", "8", lines=jsonl(*MIXED))
    assert code == 1
    assert "13 answered with nano-Q4_K_M.gguf, 7 refused" in err
    for at, record in enumerate(records(out)):
        assert record["id"] == str(at + 1)
        if at % 3:
            assert record["index"] == at % 3
        else:
            assert record["line"] == at + 1
            assert "nano-3gpp_tsg-LoRA.gguf: " in record["error"]
    # Asked for by name, it is refused before anything is read.
    opener = fake.FakeOpener()
    code, out, err = tel_run("--category", "3gpp_tsg", lines=jsonl(*MIXED), opener=opener)
    assert (code, out, opener.opened) == (2, "", [])
    assert "nano-3gpp_tsg-LoRA.gguf: " in err
