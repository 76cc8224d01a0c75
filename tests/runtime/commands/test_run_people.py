"""What `tel-run` reads from files that other systems wrote, and the ids that it gives back."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest

from tel_edge.runtime.answerer import Answerer
from tel_edge.runtime.commands import run
from tel_edge.runtime.errors import InputError

Command = Callable[..., tuple[int, str, str]]
ASK = {"question": "gold 2", "choices": ["a", "b", "c", "d"]}


@pytest.fixture
def tel_run(tmp_path: Path, run_command: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command for oranbench with a fake engine; the bytes go to stdin."""
    fake.bundle(tmp_path / "bundles" / "tel-nano", adapters=("oranbench",))

    def made(lines: bytes, *argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
        given = ["--workspace", str(tmp_path), "--category", "oranbench", *argv]
        return run_command(run.parser(), partial(run.work, opener=fake.FakeOpener()), *given)

    return made


def jsonl(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_a_file_of_windows_loses_no_question(tel_run: Command) -> None:
    lines = b"\xef\xbb\xbf" + jsonl(ASK, ASK).replace(b"\n", b"\r\n")
    code, out, _ = tel_run(lines)
    assert code == 0
    assert [json.loads(line)["id"] for line in out.splitlines()] == ["1", "2"]


def test_ids_come_back_as_they_were_given(tel_run: Command) -> None:
    ids: list[Any] = [7, "seven", 7, 7.5, "caf\u00e9", "half \ud83d"]
    _, out, _ = tel_run(jsonl(*({**ASK, "id": id} for id in ids), {"id": 8}, {"id": "x/9"}))
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["id"] for record in records] == [*ids, 8, "x/9"]
    assert ["error" in record for record in records] == [False] * 5 + [True] * 3


def test_utf_16_is_refused_as_a_whole(tel_run: Command) -> None:
    code, out, err = tel_run(jsonl(ASK, ASK).decode().encode("utf-16"), "--quiet")
    assert (code, out) == (2, "")
    assert err.startswith("tel-run: this is UTF-16, not UTF-8; save it as UTF-8")


def test_a_file_beside_questions_is_told(tel_run: Command, tmp_path: Path) -> None:
    file = tmp_path / "asked.txt"
    file.write_text("{}")
    code, _, err = tel_run(b"", str(file), "A question?", "--choice", "a", "--choice", "b")
    assert code == 2
    assert f"{file}: a file is read alone, without questions or other files" in err


def test_a_pipe_is_read_as_a_file_is(tel_run: Command, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(json.dumps(ASK),))
    writer.start()
    code, out, _ = tel_run(b"", str(pipe))
    writer.join()
    assert (code, json.loads(out)["index"]) == (0, 2)


def test_a_pipe_by_its_name_is_answered_as_its_lines_come(
    tel_run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, answered = tmp_path / "pipe", threading.Event()
    os.mkfifo(pipe)
    answers = Answerer.replies

    def replies(self: Answerer, window: Any) -> Any:
        yield from answers(self, window)
        answered.set()

    monkeypatch.setattr(Answerer, "replies", replies)
    waited: list[bool] = []

    def write() -> None:
        with pipe.open("w") as lines:
            print(json.dumps(ASK), file=lines, flush=True)
            waited.append(answered.wait(20))
            print(json.dumps(ASK), file=lines)

    writer = threading.Thread(target=write)
    writer.start()
    code, out, _ = tel_run(b"", str(pipe))
    writer.join()
    assert (code, len(out.splitlines()), waited) == (0, 2, [True])


def test_log_lines_never_stand_among_the_answers(
    tel_run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", None)
    code, out, _ = tel_run(json.dumps(ASK).encode())
    assert (code, len(out.splitlines())) == (0, 1)


def test_closed_streams_are_told(tel_run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--category", "oranbench"]
    monkeypatch.setattr("sys.stdin", None)
    args = run.parser().parse_args(given)
    assert run._total(args) is None
    with pytest.raises(InputError, match="no standard input"):
        run._rows(args)
    monkeypatch.setattr("sys.stdout", None)
    with pytest.raises(InputError, match="standard output is closed"):
        run.work(args)
