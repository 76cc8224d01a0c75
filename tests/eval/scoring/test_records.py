"""Records and summaries: what is written is what is read, and torn files are told apart."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from tel_edge.eval.scoring.records import (
    UNPARSED,
    Record,
    Summary,
    Variant,
    asked_digest,
    line,
    measures,
    read_records,
    read_summary,
    summaries,
    write_summary,
)
from tel_edge.eval.statistics import quantile, share
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.workspace import Workspace


def record(at: int, gold: int = 1, pick: int = 1, draws: tuple[int, ...] = (1, 1, 0, 0)) -> Record:
    return Record("run", f"q/{at}", gold, (-1.5, -0.25), pick, draws, 100 + at, 2.0 + at)


def text(at: int, gold: int, pick: int, draws: tuple[int, ...]) -> Record:
    return Record("run", f"t/{at}", gold, (), pick, draws, 10, 1.0, "Über\u2028 ANSWER: B")


SUMMARY = Summary(
    backbone="nano", variant=Variant("lora-F16", "F16", "gguf", True, 900, 50),
    category="oranbench", dataset="ot-mini", part="test", split="5" * 64, run="run",
    made_with={"k": 4}, rejected=0, k=4, memory_anonymous=None, memory_file=1, memory_peak=2,
    **measures([record(0)], 0),
)  # fmt: skip
# Fields that summaries of older versions lack.
YOUNG = (
    "left_out",
    "measured",
    "rotated", "first_answer_ms", "kv_bytes_per_token", "context", "joules_per_question",
    "power_mode",
)  # fmt: skip


def test_a_record_reads_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    wanted = [*map(record, range(3)), text(3, 1, 1, (0, UNPARSED))]
    path.write_text("".join(map(line, wanted)))
    assert list(read_records(path)) == wanted
    assert list(read_records(path, "other")) == []
    assert list(read_records(tmp_path / "none.jsonl")) == []


def test_the_line_of_a_record_never_changes() -> None:
    made = Record("r", "q/0", 1, (-0.12345678, -2.0), 0, (0, 1), 7, 1.23456, asked="0a1b2c3d")
    assert line(made) == (
        '{"run":"r","id":"q/0","gold":1,"logprobs":[-0.123457,-2.0],"pick":0,"draws":[0,1],'
        '"tokens":7,"milliseconds":1.235,"text":null,"asked":"0a1b2c3d"}\n'
    )
    made = Record("r", "q/0", 1, (), UNPARSED, (0, UNPARSED), 7, 1.0, "I\n")
    assert line(made) == (
        '{"run":"r","id":"q/0","gold":1,"logprobs":[],"pick":-2,"draws":[0,-2],'
        '"tokens":7,"milliseconds":1.0,"text":"I\\n","asked":""}\n'
    )


def test_a_torn_end_is_passed_over_wherever_it_is_torn(tmp_path: Path) -> None:
    path, text = tmp_path / "x.jsonl", line(record(0)) + line(record(1))
    for size in range(len(line(record(0))), len(text) - 1):
        path.write_text(text[:size])
        assert list(read_records(path)) == [record(0)]
    path.write_bytes(line(record(0)).encode() + b"\xff\x00\x00")
    assert list(read_records(path)) == [record(0)]


@pytest.mark.parametrize("broken", ["{}", "[]", "x", '{"run": 1}', line(record(0))[:-3], "null"])
def test_a_broken_line_inside_is_refused(broken: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(line(record(0)) + broken + "\n" + line(record(1)))
    with pytest.raises(InputError, match=r"x\.jsonl, line 2: no record .*delete the file"):
        list(read_records(path))


def test_measures_by_hand() -> None:
    made = measures(
        [
            record(0),
            record(1, pick=0),
            record(2, draws=(0, 1, 1, 0)),
            record(3, gold=0, pick=0, draws=(0, 0, 1, 1)),
        ],
        too_long=1,
    )
    assert (made["questions"], made["too_long"]) == (5, 1)
    # Right picks are 0, 2, 3; right majorities 0, 1, 3: in 2 the wrong answer came first.
    assert made["pass1"] == share(3, 5)
    assert made["majority"] == share(3, 5)
    assert made["label_mass"] == pytest.approx(math.exp(-1.5) + math.exp(-0.25))
    assert made["tokens_mean"] == 101.5
    assert (made["milliseconds_p50"], made["milliseconds_p95"]) == (4.0, 5.0)


def test_measures_of_nothing_are_numbers() -> None:
    made = measures([], 2)
    assert (made["questions"], made["pass1"].right, made["label_mass"]) == (2, 0, None)
    assert made["majority_exact"] == 0
    made = measures([], 0)
    assert (made["pass1"], made["majority_exact"], made["unparsed"]) == (share(0, 0), 0, 0)


def test_the_exact_majority_is_that_of_all_draws() -> None:
    records = [record(at, gold=at % 2) for at in range(3)]
    probability = math.exp(-1.5 / 0.7) / (math.exp(-1.5 / 0.7) + math.exp(-0.25 / 0.7))
    right = [probability if made.gold == 0 else 1 - probability for made in records]
    # One draw is its own majority; of two the first seen wins.
    for k in (1, 2):
        made = measures(records, 1, k, 0.7)
        assert made["majority_exact"] == pytest.approx(sum(right) / 4)
    # Of three, two or three have to be right.
    wanted = sum(p**3 + 3 * p**2 * (1 - p) for p in right) / 4
    assert measures(records, 1, 3, 0.7)["majority_exact"] == pytest.approx(wanted)
    # The temperature is that of the draws.
    assert measures(records, 1, 1, 100.0)["majority_exact"] == pytest.approx(3 / 8, abs=0.01)
    # Nobody knows the answer, so nothing can be right.
    assert measures([replace(record(0), gold=-1)], 0)["majority_exact"] == 0


def test_texts_that_give_no_answer_are_wrong_and_counted() -> None:
    made = measures(
        [
            text(0, 1, 1, (1, UNPARSED, 1, 1)),
            text(1, 1, UNPARSED, (UNPARSED, UNPARSED, 1, 1)),
            text(2, 0, UNPARSED, (UNPARSED, 0, 0, 0)),
        ],
        too_long=1,
    )
    assert (made["unparsed"], made["pass1"], made["majority"]) == (2, share(1, 4), share(2, 4))
    assert (made["label_mass"], made["majority_exact"]) == (None, None)
    # Nor is one right whose answer nobody knows.
    nobody = measures([text(0, -1, UNPARSED, (UNPARSED,))], 0)
    assert (nobody["pass1"].right, nobody["majority"].right) == (0, 0)


def test_wilson_intervals() -> None:
    made = share(15, 20)
    assert (made.value, made.low, made.high) == pytest.approx((0.75, 0.5313, 0.8881), abs=1e-4)
    assert (share(0, 10).low, share(10, 10).high) == (0.0, 1.0)
    assert 0 < share(0, 10).high < 0.31
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0


def test_a_summary_reads_back_equal(tmp_path: Path) -> None:
    texts = {"unparsed": 3, "majority_exact": None, "label_mass": None}
    for made in (SUMMARY, replace(SUMMARY, **texts)):
        write_summary(tmp_path / "x.jsonl", made)
        assert read_summary(tmp_path / "x.json") == made


def test_a_summary_from_before_onnx_is_read(tmp_path: Path) -> None:
    write_summary(tmp_path / "x.jsonl", SUMMARY)
    document = json.loads((tmp_path / "x.json").read_text())
    del document["variant"]["tokenizer_bytes"]
    (tmp_path / "x.json").write_text(json.dumps(document))
    assert read_summary(tmp_path / "x.json") == SUMMARY


def test_a_summary_of_another_version_is_made_again(tmp_path: Path) -> None:
    write_summary(tmp_path / "x.jsonl", SUMMARY)
    whole = (tmp_path / "x.json").read_text()
    assert '"schema_version": 2' in whole
    for version in ("1", "3", '"2"'):
        (tmp_path / "x.json").write_text(
            whole.replace('"schema_version": 2', f'"schema_version": {version}')
        )
        with pytest.raises(InputError, match=r"x\.json: no summary \(schema_version"):
            read_summary(tmp_path / "x.json")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"schema_version": 2}', '{"schema_version": 3}', b"\xff"],
)
def test_what_is_no_summary_is_refused(content: str | bytes, tmp_path: Path) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(InputError, match=r"x\.json: no summary .*run tel-eval again"):
        read_summary(tmp_path / "x.json")


def test_a_summary_without_a_field_is_refused_unless_that_is_younger_than_the_file(
    tmp_path: Path,
) -> None:
    write_summary(tmp_path / "x.jsonl", SUMMARY)
    document = json.loads((tmp_path / "x.json").read_text())
    for name in document:
        less = {key: value for key, value in document.items() if key != name}
        (tmp_path / "x.json").write_text(json.dumps(less))
        if name in YOUNG:
            assert read_summary(tmp_path / "x.json") == SUMMARY
        else:
            with pytest.raises(InputError, match=name):
                read_summary(tmp_path / "x.json")


def test_young_fields_are_read(tmp_path: Path) -> None:
    made = replace(
        SUMMARY, rotated=True, first_answer_ms=9.5, kv_bytes_per_token=64, context=512,
        joules_per_question=0.5, power_mode="15W",
    )  # fmt: skip
    write_summary(tmp_path / "x.jsonl", made)
    assert read_summary(tmp_path / "x.json") == made
    assert set(YOUNG) <= set(json.loads((tmp_path / "x.json").read_text()))


def test_a_record_from_before_the_digest_is_read(tmp_path: Path) -> None:
    path, made = tmp_path / "x.jsonl", record(0)
    path.write_text(line(made).replace(',"asked":""', ""))
    assert "asked" not in path.read_text()
    assert list(read_records(path)) == [made]


def test_the_digest_of_a_question_is_of_its_words_their_order_and_the_answer() -> None:
    asked = Question("a/1", "a", "Why?", ("x", "y"), 1)
    digest = asked_digest(asked)
    assert len(digest) == 8
    assert int(digest, 16) >= 0
    assert asked_digest(replace(asked, id="b/2", category="b")) == digest
    others = (
        replace(asked, text="Who?"),
        replace(asked, choices=("y", "x")),
        replace(asked, answer=0),
        replace(asked, answer=None),
    )
    assert len({digest, *map(asked_digest, others)}) == 5


def test_summaries_of_a_backbone_are_found(tmp_path: Path) -> None:
    home = Workspace(tmp_path)
    for category in ("teleqna", "oranbench"):
        for name in ("lora-Q8_0", "base-F16"):
            made = replace(SUMMARY, category=category, variant=replace(SUMMARY.variant, name=name))
            path = home.results("nano", name, category)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_summary(path, made)
    found = [(made.category, made.variant.name) for made in summaries(home, "nano")]
    assert found == [
        ("oranbench", "base-F16"), ("oranbench", "lora-Q8_0"),
        ("teleqna", "base-F16"), ("teleqna", "lora-Q8_0"),
    ]  # fmt: skip
    assert summaries(home, "other") == []
