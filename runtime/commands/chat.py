"""`tel-run --chat`: a conversation at the terminal, or many of them as JSONL."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tel_edge.runtime import cli, progress
from tel_edge.runtime.answerer import Answerer
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import jsonl
from tel_edge.runtime.questions.categories import CATEGORIES, SPOKEN
from tel_edge.runtime.questions.conversation import Message
from tel_edge.runtime.questions.stream import MOST_LINE
from tel_edge.runtime.questions.talking import Reply, Talking, messages, reply
from tel_edge.runtime.records import line

# What is for questions only, and what it is where nobody says otherwise.
FOR_QUESTIONS: dict[str, Any] = {
    "choice": [], "labels": None, "protocol": "letters", "orders": 1, "k": 4, "threshold": None
}  # fmt: skip
FOR_CHATS: dict[str, Any] = {"stream": False, "stop": [], "guard": False}

# What was said, and what is told of the answer as it comes.
Talk = Callable[[list[Message], Callable[[str], bool]], Reply]


def check(args: argparse.Namespace) -> None:
    """Refuse options that mean nothing with, or without, `--chat`."""
    for name, usual in (FOR_QUESTIONS if args.chat else FOR_CHATS).items():
        if getattr(args, name) != usual:
            option = "-k" if name == "k" else f"--{name}"
            raise InputError(f"{option} is for {'questions' if args.chat else '--chat'} only")
    if args.chat and args.category in CATEGORIES:
        raise InputError(
            f"--category {args.category} with --chat: its adapter answers with a letter; "
            f"name {' '.join(SPOKEN)}, or pass --no-adapter"
        )
    if args.chat and "" in args.stop:
        raise InputError("--stop '': a text is needed")
    if args.chat and args.temperature is not None and not 0 <= args.temperature < float("inf"):
        raise InputError(f"--temperature {args.temperature}: a number from 0 is needed")


def work(
    args: argparse.Namespace, answerer: Answerer, rows: Iterable[str] | None, total: int | None
) -> dict[str, Any]:
    """Answer all conversations of `rows`, `total` lines of JSONL; None is a person who types."""
    how = Talking(
        args.max_tokens or Talking.most,
        args.temperature or 0.0,
        args.seed,
        tuple(args.stop),
        args.guard,
    )
    adapter = next(iter(answerer.spoken), None)
    engine: Any = answerer.engine
    if engine.template is None:
        raise InputError(f"{answerer.name} has no chat template, so nobody can talk to it")

    guards = 0

    def talk(said: list[Message], tell: Callable[[str], bool]) -> Reply:
        nonlocal guards
        made = reply(engine, adapter, said, how, tell)
        guards += made.refused is not None
        return made

    cli.say(args, f"{answerer.name} with {f'its {adapter} adapter' if adapter else 'no adapter'}")
    if rows is None:
        cli.say(args, "/new begins a new conversation, /quit ends; Ctrl-C stops an answer")
        answered, refused = person(talk, input, sys.stdout.write, sys.stdout.flush), 0
    else:
        with progress.bar("tel-run", "conversation", total, args.quiet) as bar:
            answered, refused = lines(watched(rows, bar), talk, args.stream, adapter)
    guarded = f", {guards} of them by the guard" if guards else ""
    cli.say(args, f"{answered} answered with {answerer.name}{guarded}, {refused} refused")
    return {
        "answered": answered, "guarded": guards, "refused": refused,
        "exit_code": 1 if refused else 0,
    }  # fmt: skip


def watched(rows: Iterable[str], bar: Any) -> Iterator[str]:
    """Yield the lines, each of which is answered when the next one is asked for."""
    for text in rows:
        yield text
        bar.update()


def lines(rows: Iterable[str], talk: Talk, streamed: bool, adapter: str | None) -> tuple[int, int]:
    """Print a record for each conversation; return how many were answered, and how many not."""
    done = failed = 0
    for number, text in enumerate(rows, 1):
        if number == 1:
            jsonl.check_start(text)
        own: Any = None
        try:
            if len(text) > MOST_LINE:
                raise InputError(f"more than {MOST_LINE:,} characters")
            row = jsonl.parsed(text)
            if row is None:
                continue
            own = row.get("id")
            if own is not None and (isinstance(own, bool) or not isinstance(own, (str, int))):
                own = None
                raise InputError("id is neither a text nor a whole number")
            id = str(number) if own is None else own

            def tell(new: str, id: Any = id) -> bool:
                if streamed and new:
                    print(line({"id": id, "delta": new}), flush=True)
                return True

            made = talk(messages(row), tell)
        except InputError as error:
            head = {} if own is None else {"id": own}
            print(line(head | {"line": number, "error": str(error)}), flush=True)
            failed += 1
            continue
        if made.dropped:
            print(f"tel-run: line {number}: {_dropped(made.dropped)}", file=sys.stderr)
        print(line({"id": id} | made.record() | {"adapter": adapter}), flush=True)
        done += 1
    return done, failed


def person(
    talk: Talk, read: Callable[[str], str], write: Callable[[str], Any], flush: Callable[[], Any]
) -> int:
    """Talk until the person at the terminal ends it; return how many answers there were."""
    with suppress(ImportError):
        # Editing and history of what is typed, by being there.
        import readline  # noqa: F401
    said: list[Message] = []
    answered = 0
    while True:
        try:
            typed = read("> ").strip()
        except (EOFError, KeyboardInterrupt):
            write("\n")
            return answered
        if typed == "/quit":
            return answered
        if typed == "/new":
            said = []
        elif typed.startswith("/"):
            _note("there are /new and /quit")
        if not typed or typed.startswith("/"):
            continue
        try:
            with _stoppable() as goes_on:

                def tell(new: str, goes_on: Callable[[], bool] = goes_on) -> bool:
                    write(_shown(new))
                    flush()
                    return goes_on()

                made = talk([*said, Message("user", typed)], tell)
        except InputError as error:
            _note(str(error))
            continue
        write("\n")
        answered += 1
        if made.masked:
            _note(f"hidden from the model: {', '.join(made.masked)}")
        if made.dropped:
            _note(_dropped(made.dropped))
        if made.ended == "length":
            _note("the answer was cut off; --max-tokens allows more")
        if not made.refused:
            said = [*made.heard, Message("assistant", made.text)]


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Give whether it goes on, which a first Ctrl-C ends; a second one is as always."""
    pressed: list[int] = []

    def press(*_: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(1)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: not pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _shown(text: str) -> str:
    """Return a text without what a terminal would take for a command."""
    return "".join(char for char in text if char.isprintable() or char in "\n\t")


def _dropped(count: int) -> str:
    oldest = "the oldest exchange was" if count == 1 else f"the {count} oldest exchanges were"
    return f"the context is full: {oldest} dropped"


def _note(text: str) -> None:
    print(f"tel-run: {text}", file=sys.stderr, flush=True)


def asked(texts: Iterable[str]) -> Iterator[str]:
    """Yield a line for each text, a conversation of one message."""
    for text in texts:
        yield json.dumps({"messages": [{"role": "user", "content": text}]})
