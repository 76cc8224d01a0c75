"""Files of dialogues: what is taken, and what is refused by file, line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from for_dialogues import dataset, write

from tel_edge.runtime.errors import InputError
from tel_edge.train.dialogues.reading import read

ASK, SAY = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def test_messages_alone_are_enough(tmp_path: Path) -> None:
    row = {"messages": [{"role": "system", "content": "s"}, ASK, SAY], "anything": 1}
    other = {"id": 7, "messages": [ASK, SAY], "scenario": "x.y.z", "facts": {}}
    found = read(write(tmp_path / "data", train=[row, other], validation=[[ASK, SAY, ASK, SAY]]))
    assert found.name == "data"
    assert {name: len(of) for name, of in found.parts.items()} == {"train": 2, "validation": 1}
    assert [one.id for one in found.parts["train"]] == ["", "7"]
    assert found.parts["train"][0].messages[0].role == "system"


def test_the_digest_is_of_what_is_said(tmp_path: Path) -> None:
    one = read(dataset(tmp_path / "one"))
    other = dataset(tmp_path / "other")
    text = (other / "test.jsonl").read_text()
    rows = [{"id": at, **json.loads(line)} for at, line in enumerate(text.splitlines())]
    write(other, test=rows)
    assert read(other).digest == one.digest
    write(other, test=rows[1:])
    assert read(other).digest != one.digest


def test_what_another_part_has_too_is_not_trained_on(tmp_path: Path) -> None:
    both, own = [ASK, SAY], [ASK, {**SAY, "content": "c"}]
    found = read(write(tmp_path, train=[both, own], validation=[[ASK, SAY]], test=[both]))
    # The validation part's dialogue is the same one.
    assert found.shared == 1
    assert [one.messages[1].content for one in found.parts["train"]] == ["c"]
    with pytest.raises(InputError, match="every dialogue stands in another part too"):
        read(write(tmp_path, train=[both]))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, "field 'messages': a list of messages is needed"),
        ({"messages": []}, "field 'messages': a list"),
        ({"messages": "hello"}, "field 'messages': a list"),
        ({"messages": [ASK, "b"]}, r"messages\[1\] is no object"),
        (
            {"messages": [ASK, {"role": "bot", "content": "b"}]},
            r"messages\[1\]\.role is 'bot'",
        ),
        ({"messages": [ASK, ASK]}, r"messages\[1\]\.role is 'user', 'assistant' is to follow"),
        ({"messages": [SAY]}, r"messages\[0\]\.role is 'assistant', 'user' is to follow"),
        ({"messages": [ASK]}, r"messages\[0\]\.role: the last message has to be an assistant's"),
        ({"messages": [ASK, SAY, ASK]}, r"messages\[2\]\.role: the last message"),
        ({"messages": [ASK, {**SAY, "content": " "}]}, r"messages\[1\]\.content: a text"),
        ({"messages": [ASK, {**SAY, "content": None}]}, r"messages\[1\]\.content: a text"),
        ({"messages": [ASK, {**SAY, "content": "\ud800"}]}, r"messages\[1\]\.content has bytes"),
        ({"messages": [ASK, {**SAY, "tool_calls": [1]}]}, r"messages\[1\]\.tool_calls cannot be"),
        ({"messages": [ASK, SAY], "tools": [1]}, "field 'tools' cannot be trained with"),
        (
            {"messages": [ASK, {"role": "system", "content": "s"}, SAY]},
            r"messages\[1\]\.role is 'system', 'assistant' is to follow",
        ),
    ],
)
def test_what_is_no_dialogue_is_refused_by_its_place(tmp_path: Path, row: Any, said: str) -> None:
    write(tmp_path, train=[[ASK, SAY], row], validation=[[ASK, SAY]])
    with pytest.raises(InputError, match=rf"train\.jsonl: line 2: {said}"):
        read(tmp_path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no train\.jsonl"):
        read(tmp_path)
    write(tmp_path, train=[[ASK, SAY]])
    with pytest.raises(InputError, match=r"no validation\.jsonl"):
        read(tmp_path)
    write(tmp_path, validation=[])
    with pytest.raises(InputError, match=r"validation\.jsonl: no dialogue in it"):
        read(tmp_path)
    (tmp_path / "validation.jsonl").write_text("\n[1]\n")
    with pytest.raises(InputError, match=r"validation\.jsonl: line 2: not a JSON object but a l"):
        read(tmp_path)
