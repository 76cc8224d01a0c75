"""`tel-run --chat`: lines in and out, a person at a terminal, and what is refused."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_engine as fake
import for_run
import pytest
from for_run import jsonl, records

from tel_edge.runtime import progress
from tel_edge.runtime.commands import chat
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.conversation import Message
from tel_edge.runtime.questions.talking import Reply

tel_run = for_run.tel_run
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    fake.bundle(tmp_path / "bundles" / "tel-nano", adapters=("oranbench", "care"))
    return tmp_path


def says(prompt: str, adapter: str | None, turn: int) -> str:
    return f"{adapter} heard {prompt.strip().splitlines()[-1]}"


def talk(text: str, **of: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **of}


def test_lines_are_answered_by_the_care_adapter(tel_run: Run) -> None:
    lines = jsonl(talk(" one", id="a"), talk(" two"), b"", b"{", talk(" three", id=3), {"id": 4})
    opener = fake.FakeOpener(writer=says)
    code, out, err = tel_run("--chat", lines=lines, opener=opener)
    made = records(out)
    assert [(one.get("id"), one.get("text")) for one in made] == [
        ("a", "care heard one"), ("2", "care heard two"), (None, None), (3, "care heard three"),
        (4, None),
    ]  # fmt: skip
    assert code == 1
    assert (made[2]["line"], "not JSON" in made[2]["error"]) == (4, True)
    assert (made[4]["line"], "no messages" in made[4]["error"]) == (6, True)
    assert (made[0]["adapter"], made[0]["ended"]) == ("care", "stop")
    assert {"tokens", "prompt_tokens", "decoded", "first_ms", "ms"} < made[0].keys()
    assert "3 answered with nano-Q4_K_M.gguf, 2 refused" in err
    # Nobody asks the adapter of questions, so nobody loads it.
    assert opener.opened[0][1] == ["care"]


def test_it_says_how_far_it_is(
    tel_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    file = tmp_path / "asked.jsonl"
    file.write_bytes(jsonl(talk(" one"), b"{", talk(" three")))
    for argv in ([str(file)], []):
        with file.open() as lines:
            opener = fake.FakeOpener(writer=says)
            code, _, err = tel_run("--chat", *argv, lines=lines, opener=opener)
        assert (code, "tel-run: conversation 2 of 3 after" in err) == (1, True)


def test_nobody_talks_to_a_model_without_a_template(tel_run: Run) -> None:
    class Silent(fake.FakeEngine):
        template = None

    lines = jsonl(talk(" one"), talk(" two"))
    code, out, err = tel_run("--chat", lines=lines, opener=fake.FakeOpener(engine=Silent))
    assert (code, out) == (2, "")
    assert "nano-Q4_K_M.gguf has no chat template, so nobody can talk to it" in err


def test_a_question_among_conversations_is_told(tel_run: Run) -> None:
    lines = jsonl({"question": "?", "choices": ["a", "b"]})
    said = records(tel_run("--chat", lines=lines, opener=fake.FakeOpener(writer=says))[1])
    assert "lines of questions go without --chat" in said[0]["error"]


def test_half_a_character_is_that_lines_own_trouble(tel_run: Run) -> None:
    lines = b'{"messages": [{"role": "user", "content": "\\ud83d alone"}]}\n' + jsonl(talk(" two"))
    code, out, _ = tel_run("--chat", lines=lines, opener=fake.FakeOpener(writer=says))
    made = records(out)
    assert code == 1
    assert "no Unicode character" in made[0]["error"]
    assert made[1]["text"] == "care heard two"


def test_a_stop_is_a_text(tel_run: Run) -> None:
    code, _, err = tel_run("--chat", "--stop", "", lines=jsonl(talk(" x")))
    assert (code, "a text is needed" in err) == (2, True)


def test_a_stream_has_a_line_for_each_piece(tel_run: Run) -> None:
    opener = fake.FakeOpener(writer=says)
    code, out, _ = tel_run("--chat", "--stream", lines=jsonl(talk(" x", id=1)), opener=opener)
    *pieces, last = records(out)
    assert code == 0
    assert len(pieces) > 3
    assert {tuple(one) for one in pieces} == {("id", "delta")}
    assert "".join(one["delta"] for one in pieces) == last["text"] == "care heard x"


def test_a_file_an_argument_the_backbone_and_stops(tel_run: Run, tmp_path: Path) -> None:
    file = tmp_path / "talks.jsonl"
    file.write_bytes(jsonl(talk(" x")))
    opener = fake.FakeOpener(writer=says)
    assert records(tel_run("--chat", str(file), opener=opener)[1])[0]["text"] == "care heard x"
    argv = ("--chat", "--no-adapter", "--stop", "eard", " Hello?")
    [made] = records(tel_run(*argv, opener=opener)[1])
    assert (made["text"], made["adapter"]) == ("None h", None)
    [made] = records(tel_run("--chat", "--max-tokens", "3", " x", opener=opener)[1])
    assert (made["text"], made["ended"]) == ("car", "length")


def test_a_bundle_without_the_adapter_talks_anyway(tel_run: Run, tmp_path: Path) -> None:
    fake.bundle(tmp_path / "plain", adapters=("oranbench",))
    bundle = ("--bundle", str(tmp_path / "plain"))
    opener = fake.FakeOpener(writer=says)
    code, out, err = tel_run("--chat", *bundle, " x", opener=opener)
    assert (code, records(out)[0]["text"]) == (0, "None heard x")
    assert "no adapter for care in this bundle" in err
    code, _, err = tel_run("--chat", "--category", "care", *bundle, " x", opener=opener)
    assert (code, "no adapter for care" in err) == (2, True)


def test_what_the_guard_did_is_told(tel_run: Run) -> None:
    lines = jsonl(talk(" call 0171 5550199"), talk("Tell me my PIN."))
    opener = fake.FakeOpener(writer=says)
    _, out, _ = tel_run("--chat", "--guard", lines=lines, opener=opener)
    one, two = records(out)
    assert (one["text"], one["masked"]) == ("care heard call [phone number]", ["phone number"])
    assert (two["refused"], two["ended"], two["tokens"]) == ("secrets", "content_filter", 0)


def test_what_was_dropped_is_told(tel_run: Run) -> None:
    said = [{"role": role, "content": "x" * 40} for role in ("user", "assistant")] * 3
    lines = jsonl({"messages": [*said, {"role": "user", "content": " end"}]})
    opener = fake.FakeOpener(writer=says, context=100)
    _, out, err = tel_run("--chat", "--max-tokens", "30", lines=lines, opener=opener)
    assert records(out)[0]["dropped"] == 3
    assert "line 1: the context is full: the 3 oldest exchanges were dropped" in err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--chat", "--choice", "a", "x"), "--choice is for questions only"),
        (("--chat", "-k", "2", "x"), "-k is for questions only"),
        (("--chat", "--category", "oranbench", "x"), "answers with a letter"),
        (("--chat", "--category", "poetry", "x"), "unknown category 'poetry'"),
        (("--chat", "--temperature", "-1", "x"), "a number from 0"),
        (("--stream", "x"), "--stream is for --chat only"),
        (("--guard", "x"), "--guard is for --chat only"),
        (("--category", "care", "x"), "care is answered in sentences and has no labels"),
        (("--chat", "gone.jsonl"), "gone.jsonl: no such file; its lines would be as"),
        (("--chat", "."), ". is a folder; its lines would be as"),
    ],
)
def test_options_that_mean_nothing(tel_run: Run, argv: tuple[str, ...], said: str) -> None:
    code, _, err = tel_run(*argv)
    assert (code, said in err) == (2, True), err


def test_no_question_is_of_the_adapter_that_is_talked_to(tel_run: Run) -> None:
    ask = {"question": "gold 1", "choices": ["a", "b"]}
    lines = jsonl({**ask, "category": "care"}, {**ask, "category": "oranbench"})
    code, out, _ = tel_run(lines=lines)
    one, two = records(out)
    assert (code, two["adapter"]) == (1, "oranbench")
    assert "care is answered in sentences" in one["error"]


class Person:
    """Somebody at a terminal: what they type, and what they see."""

    def __init__(self, *typed: str | type[BaseException]) -> None:
        self.typed = iter(typed)
        self.seen: list[str] = []
        self.heard: list[list[Message]] = []

    def read(self, prompt: str) -> str:
        self.seen.append(prompt)
        line = next(self.typed)
        if isinstance(line, str):
            return line
        raise line

    def pieces(self, said: list[Message]) -> Iterator[str]:
        yield from ("I ", "heard ", said[-1].content, "\x1b[2J.")

    def talk(self, said: list[Message], tell: Callable[[str], bool]) -> Reply:
        self.heard.append(list(said))
        if said[-1].content == "bad":
            raise InputError("too bad")
        text, ended = "", "stop"
        for piece in self.pieces(said):
            text += piece
            if said[-1].content.startswith("press"):
                for _ in range(said[-1].content.count("press")):
                    os.kill(os.getpid(), signal.SIGINT)
            if not tell(piece):
                ended = "interrupted"
                break
        return Reply(text, ended, 4, 9, 9, 1, 2, tuple(said))

    def run(self) -> int:
        return chat.person(self.talk, self.read, self.seen.append, lambda: None)


def test_a_person_talks(capsys: pytest.CaptureFixture[str]) -> None:
    person = Person("one", "", "two", "/new", "bad", "/what", "three", EOFError)
    assert person.run() == 3
    shown = "".join(person.seen)
    assert shown.startswith("> I heard one[2J.\n> > I heard two[2J.\n> ")
    assert "\x1b" not in shown
    assert [len(one) for one in person.heard] == [1, 3, 1, 1]
    assert person.heard[1][1] == Message("assistant", "I heard one\x1b[2J.")
    said = capsys.readouterr().err
    assert "too bad" in said
    assert "there are /new and /quit" in said


def test_an_interrupt_ends_the_answer_and_a_second_one_all() -> None:
    before = signal.getsignal(signal.SIGINT)
    person = Person("press", "and", "/quit")
    assert person.run() == 2
    assert person.heard[1][1] == Message("assistant", "I ")
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        Person("press press").run()
    assert signal.getsignal(signal.SIGINT) is before
    assert Person(KeyboardInterrupt).run() == 0
