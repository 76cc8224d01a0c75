"""Parts and rotations of a benchmark, scored and kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_engine as fake
import for_ladder_variants
from for_ladder_variants import Command, folder, out, parts, summary
from hypothesis import given
from hypothesis import strategies as st

from tel_edge.eval.scoring.records import Record, asked_digest, read_records
from tel_edge.runtime.questions.categories import WORKING_GROUPS
from tel_edge.runtime.questions.orders import rotations
from tel_edge.runtime.questions.question import Question

installed = for_ladder_variants.installed
home = for_ladder_variants.home
tel_eval = for_ladder_variants.tel_eval


def records(home: Path, variant: str, *where: Any) -> list[Record]:
    return list(read_records(out(home, variant, *where)))


def test_parts_lie_beside_each_other(tel_eval: Command, home: Path) -> None:
    assert tel_eval()[0] == 0
    before = out(home, "lora-F16").read_bytes()
    code, said, _ = tel_eval("--part", "train,test,validation")
    assert code == 0
    assert said.splitlines()[-1] == "results: 6 scored now, 3 before; tel-report shows them"
    assert [line.split("ms")[1].strip() for line in said.splitlines()[::3][:3]] == [
        "(train)", "(scored before)", "(validation)",
    ]  # fmt: skip
    assert out(home, "lora-F16").read_bytes() == before
    made = parts(home)
    for part in ("train", "validation", "test"):
        assert [record.id for record in records(home, "lora-F16", part)] == [
            question.id for question in made.part(part)
        ]
        assert summary(home, "lora-F16", part).part == part
    assert tel_eval("--part", "train")[1].count("(scored before)") == 3


def test_every_record_says_what_was_asked(tel_eval: Command, home: Path) -> None:
    assert tel_eval()[0] == 0
    asked = {question.id: asked_digest(question) for question in parts(home).test}
    assert {record.id: record.asked for record in records(home, "base-F16")} == asked
    # Records without the digest are of an older version, and stay what they are.
    path = out(home, "base-F16")
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**one, "asked": ""}) + "\n" for one in lines))
    opener = fake.FakeOpener()
    assert tel_eval(opener=opener)[1].count("(scored before)") == 3
    assert opener.opened == []


@given(st.lists(st.text(min_size=1), min_size=2, max_size=16, unique=True), st.data())
def test_orders_rotate_back_and_keep_the_right_text(choices: list[str], data: Any) -> None:
    count = len(choices)
    answer = data.draw(st.none() | st.integers(0, count - 1))
    question = Question("q/7", "oranbench", "Why?", tuple(choices), answer)
    made = rotations(question)
    assert [one.id for one in made] == [f"q/7#{by}" for by in range(1, count)]
    assert len({one.choices for one in (question, *made)}) == count
    for by, one in enumerate(made, start=1):
        assert tuple(one.choices[(at - by) % count] for at in range(count)) == question.choices
        assert one.choices[0] == choices[by]
        if answer is None:
            assert one.answer is None
        else:
            assert one.answer is not None
            assert one.choices[one.answer] == choices[answer]
        assert replace(one, id="q/7", choices=question.choices, answer=answer) == question


def test_every_order_of_the_options_is_asked(tel_eval: Command, home: Path) -> None:
    assert tel_eval()[0] == 0
    opener = fake.FakeOpener()
    code, said, _ = tel_eval("--rotations", opener=opener)
    assert (code, said.count("(scored before)"), said.count("(other orders of the options)")) == (
        0,
        3,
        3,
    )
    # The questions as they are come first, and are not asked again.
    assert [len(engine.asked) for engine in opener.engines] == [18, 18, 18]
    test = parts(home).test
    wanted = [one for question in test for one in rotations(question)]
    found = records(home, "base-F16", "test", True)
    assert [record.id for record in found] == [question.id for question in wanted]
    assert [record.gold for record in found] == [question.answer for question in wanted]
    assert [record.asked for record in found] == list(map(asked_digest, wanted))
    made = summary(home, "base-F16", "test", True)
    assert (made.rotated, made.questions, made.made_with["rotations"]) == (True, 18, True)
    plain = summary(home, "base-F16")
    assert (plain.rotated, "rotations" in plain.made_with) == (False, False)
    # The bare backbone likes the first letter: over all orders it is right as often as chance.
    assert plain.pass1.right + made.pass1.right == len(test)


def test_orders_are_scored_on_from_where_they_ended(tel_eval: Command, home: Path) -> None:
    argv = ("--rotations", "--quant", "F16", "--part", "validation")
    code, said, _ = tel_eval(*argv)
    lines = said.splitlines()[:-1]
    assert (code, ["(other orders of the options)" in line for line in lines]) == (
        0,
        [False, False, True, True],
    )
    path = out(home, "lora-F16", "validation", True)
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:7]))
    path.with_suffix(".json").unlink()
    opener = fake.FakeOpener()
    said = tel_eval(*argv, opener=opener)[1]
    assert said.splitlines()[-1] == "results: 1 scored now, 3 before; tel-report shows them"
    assert [len(engine.asked) for engine in opener.engines] == [18 - 7]
    assert path.read_text() == whole
    assert not out(home, "lora-Q4_K_M", "validation", True).exists()


def test_fixed_labels_have_one_order(tel_eval: Command, home: Path) -> None:
    rows = [
        {"question": f"###TEXT:{{Text {at}}}", "answer": WORKING_GROUPS[at % 16]}
        for at in range(30)
    ]
    fake.dataset(home / "data", "3gpp_tsg", rows)
    fake.bundle(folder(home), ("3gpp_tsg",), split=parts(home, "3gpp_tsg").digest)
    code, said, err = tel_eval("--rotations", quiet=False)
    assert (code, "(other orders of the options)" in said, len(said.splitlines())) == (0, False, 4)
    assert err.count("3gpp_tsg: its options are fixed labels, no other orders") == 1
