"""`tel-run`: answer questions from arguments or JSONL with the workspace's bundle."""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tel_edge.runtime import cli, clock, progress
from tel_edge.runtime.bundles import backbones
from tel_edge.runtime.device.power import Watch, told
from tel_edge.runtime.device.system import System
from tel_edge.runtime.errors import InputError, named
from tel_edge.runtime.questions import stream
from tel_edge.runtime.questions.categories import CATEGORIES, SPOKEN, category
from tel_edge.runtime.records import line, record

if TYPE_CHECKING:
    from tel_edge.runtime.answerer import Answerer, Answering
    from tel_edge.runtime.bundles.bundle import Opener
    from tel_edge.runtime.questions.requests import Defaults, Request

# Lines that are read before the first is answered, so that questions of a category stand together.
WINDOW = 256


def _loose(args: argparse.Namespace, how: Answering | None, opener: Opener) -> Answerer:
    """Open the files of `--backbone-file` and `--adapter-file`."""
    from tel_edge.runtime.answerer import Answerer

    path: Path = args.backbone_file
    files: dict[str, Path] = {}
    for text in args.adapter_file:
        name, _, file = text.partition("=")
        if name not in (*CATEGORIES, *SPOKEN):
            # A path may hold a "=" too.
            if file and not Path(text).exists():
                category(name)
            if args.category == "all" and not args.chat:
                raise InputError(f"--adapter-file {text}: pass --category, or CATEGORY={text}")
            name, file = next(iter(SPOKEN)) if args.chat else args.category, text
        if not args.chat:
            category(name)
        files[name] = Path(file)
    engine = cli.engine_settings(args)
    answerer = Answerer.of_loose_files(path, files, how, engine=engine, opener=opener)
    if files:
        print(
            f"tel-run: warning: nothing binds {path.name} and its {len(files)} adapters to each "
            "other but what they say themselves; a wrong pair from elsewhere answers without an "
            "error",
            file=sys.stderr,
        )
    return answerer


def _opened(args: argparse.Namespace, opener: Opener | None) -> Answerer:
    """Open what the arguments name."""
    from tel_edge.runtime.answerer import Answerer, Answering
    from tel_edge.runtime.bundles import bundle

    if opener is None and not (args.backbone_file or args.no_tune):
        _measured_first(args)
    opener = opener or bundle.native
    if args.chat:
        return _talking(args, opener)
    generate = args.protocol == "generate"
    how = Answering(
        generate, args.k, args.temperature, args.seed, args.max_tokens or cli.TEXT, args.orders
    )
    if args.backbone_file:
        return _loose(args, how, opener)
    return Answerer.of_bundle(
        cli.bundle_folder(args, backbones.find(args.backbone).name),
        how,
        quant=args.quant,
        format=args.format,
        only=None if args.category == "all" else category(args.category).name,
        bare=args.no_adapter,
        threshold=args.threshold,
        engine=cli.engine_settings(args),
        opener=opener,
        say=partial(cli.say, args),
    )


def _measured_first(args: argparse.Namespace) -> None:
    """Measure what an ARM processor likes better, where nobody has yet."""
    if not System().arm:
        return
    from tel_edge.runtime.measuring import first

    folder = cli.bundle_folder(args, backbones.find(args.backbone).name)
    say = partial(cli.say, args)
    first.start(folder, args.quant, args.format, cli.engine_settings(args), say)


def _talking(args: argparse.Namespace, opener: Opener) -> Answerer:
    """Open the backbone and the one adapter that is talked to, if there is one."""
    from tel_edge.runtime.answerer import Answerer
    from tel_edge.runtime.bundles import bundle

    if args.backbone_file:
        answerer = _loose(args, None, opener)
        answerer.spoken = answerer.adapters or ()
        return answerer
    folder = cli.bundle_folder(args, backbones.find(args.backbone).name)
    made = bundle.read(folder)
    there = [file.category for file in made.files if file.kind == "adapter"]
    only = next((name for name in SPOKEN if name in there), None)
    if args.category != "all":
        only = args.category if args.category in SPOKEN else category(args.category).name
    bare = args.no_adapter or only is None
    if bare and not args.no_adapter:
        cli.say(args, f"no adapter for {' '.join(SPOKEN)} in this bundle: the backbone answers")
    return Answerer.of_bundle(
        folder,
        quant=args.quant,
        format=args.format,
        only=None if bare else only,
        bare=bare,
        engine=cli.engine_settings(args),
        opener=opener,
        say=partial(cli.say, args),
    )


def work(args: argparse.Namespace, opener: Opener | None = None) -> dict[str, Any]:
    """Answer everything; the exit code is 1 if some line got an error record."""
    began, started = time.perf_counter(), clock.since_start()
    from tel_edge.runtime.commands import chat

    chat.check(args)
    if sys.stdout is None:
        raise InputError("standard output is closed, so no answer would be seen")
    if args.adapter_file and not args.backbone_file:
        raise InputError("--adapter-file needs --backbone-file; a bundle brings its own adapters")
    if args.chat:
        _check_there(args, '{"messages": [{"role": "user", "content": "..."}]}')
        if not args.questions and sys.stdin is not None and sys.stdin.isatty():
            rows = None
        else:
            rows = chat.asked(args.questions) if args.questions and not _file(args) else _rows(args)
        with told(Watch(), partial(cli.say, args)), _opened(args, opener) as answerer:
            return chat.work(args, answerer, rows, None if rows is None else _total(args))
    args.temperature = 0.7 if args.temperature is None else args.temperature
    cli.check_draws(args)
    default = None if args.category == "all" else category(args.category)
    labels = tuple(part.strip() for part in args.labels.split(",")) if args.labels else ()
    if args.choice and labels:
        raise InputError("both --labels and --choice; give one")
    asked = args.questions and not _file(args)
    _check_there(args, '{"question": "...", "choices": ["...", "..."], "category": "oranbench"}')
    if asked and not (default and default.labels) and not (args.choice or labels):
        raise InputError(
            "questions given as arguments need their answers: --choice TEXT, twice or more"
        )
    done = failed = 0
    first = 0.0
    with told(Watch(), partial(cli.say, args)), _opened(args, opener) as answerer:
        opened = time.perf_counter()
        defaults = answerer.defaults(default.name if default else None, labels)
        with progress.bar("tel-run", "question", _total(args), args.quiet) as bar:
            for window in _windows(args, defaults):
                for made in starmap(record, answerer.replies(window)):
                    print(line(made), flush=True)
                    first = first or time.perf_counter()
                    done, failed = done + 1, failed + ("error" in made)
                    bar.update()
    cli.say(args, f"{done - failed} answered with {answerer.name}, {failed} refused")
    timing = {
        "python": started,
        "open": (opened - began) * 1000,
        **answerer.engine.timing,
        "first_answer": (first - opened) * 1000 if first else None,
    }
    return {
        "answered": done - failed,
        "refused": failed,
        "timing": {key: value and round(value, 1) for key, value in timing.items()},
        "exit_code": 1 if failed else 0,
    }


def _windows(args: argparse.Namespace, defaults: Defaults) -> Iterator[list[Request]]:
    """Return the requests in windows."""
    from tel_edge.runtime.questions.requests import from_arguments, from_lines

    file = _file(args)
    if args.questions and not file:
        made = from_arguments(args.questions, args.choice, defaults)
        return stream.windows(made, args.window)
    requests = from_lines(_rows(args), defaults)
    fd = None if file else stream.descriptor(sys.stdin)
    # A pipe is one by its name too.
    live = not file.is_file() if file else fd is not None and stream.is_live(fd)
    return (stream.live_windows if live else stream.windows)(requests, args.window)


def _total(args: argparse.Namespace) -> int | None:
    """Return how many lines there are, where that is known and somebody sees how far it is."""
    if args.quiet:
        return None
    if file := _file(args):
        if not file.is_file():
            return None
        with named(file), file.open("rb") as lines:
            return stream.count_lines(lines.fileno())
    if args.questions:
        return len(args.questions)
    fd = stream.descriptor(sys.stdin) if sys.stdin else None
    return None if fd is None or stream.is_live(fd) else stream.count_lines(fd)


def _rows(args: argparse.Namespace) -> Iterator[str]:
    """Return the lines of the one argument, a file, or of standard input."""
    if file := _file(args):
        return _lines(file)
    if sys.stdin is None:
        raise InputError("no standard input; pass questions as arguments or JSONL on stdin")
    fd = stream.descriptor(sys.stdin)
    if fd is not None:
        return stream.raw_lines(fd)
    if isinstance(sys.stdin, io.TextIOWrapper):
        # A byte that is no UTF-8 is one line's error and not the end of all.
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    return iter(sys.stdin)


def _file(args: argparse.Namespace) -> Path | None:
    """Return the file that the one argument names, None where it is a question."""
    given = args.questions
    # A question is hardly ever the name of a file that is there.
    return Path(given[0]) if len(given) == 1 and _there(given[0]) else None


def _check_there(args: argparse.Namespace, like: str) -> None:
    """Refuse what names a file and is none that can be read, and would be asked as it stands."""
    for name in args.questions if len(args.questions) > 1 else ():
        if _there(name):
            raise InputError(f"{name}: a file is read alone, without questions or other files")
    if len(args.questions) == 1 and _is(args.questions[0], Path.is_dir):
        raise InputError(f"{args.questions[0]} is a folder; its lines would be as {like}")
    if args.questions and not _file(args) and args.questions[0].endswith(".jsonl"):
        raise InputError(f"{args.questions[0]}: no such file; its lines would be as {like}")


def _there(text: str) -> bool:
    """Return whether that names what lines can be read of, be it a pipe."""
    return _is(text, Path.exists) and not _is(text, Path.is_dir)


def _is(text: str, kind: Callable[[Path], bool]) -> bool:
    try:
        return bool(text) and kind(Path(text))
    except (OSError, ValueError):
        # Longer than any name, or with characters that no name has.
        return False


def _lines(file: Path) -> Iterator[str]:
    with named(file), file.open(encoding="utf-8", errors="surrogateescape") as lines:
        yield from lines


def parser() -> cli.Parser:
    """Return the command's options."""
    made = cli.parser(
        "tel-run",
        "Answer questions with the workspace's bundle: one JSON object a line out.",
        "backbone",
        "seed",
    )
    made.add_argument(
        "--category",
        metavar="NAME",
        default="all",
        help="the category of all questions that name none themselves: "
        f"{', '.join(CATEGORIES)} (the one that the bundle's router finds)",
    )
    made.add_argument(
        "questions",
        nargs="*",
        metavar="QUESTION|FILE",
        help="questions, or a file of JSONL; read from stdin if none is given",
    )
    made.add_argument(
        "--choice", action="append", default=[], metavar="TEXT", help="an answer, once for each"
    )
    made.add_argument(
        "--labels", metavar="A,B,C", help="answers in words, which are scored but not shown"
    )
    cli.engine_options(made)
    cli.draw_options(made, "with --chat 512")
    # 0 is right for a --chat.
    made.set_defaults(temperature=None)
    made.add_argument(
        "--chat",
        action="store_true",
        help="talk to the backbone, with the bundle's care adapter if it has one: at the terminal, "
        'or lines as {"messages": [...]}',
    )
    made.add_argument(
        "--stream", action="store_true", help="with --chat: a line for each piece of an answer"
    )
    made.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="of a --chat; repeatable"
    )
    made.add_argument(
        "--guard",
        action="store_true",
        help="with --chat: mask numbers of people, refuse account data and secrets",
    )
    cli.variant_options(made)
    cli.adapters_option(made)
    made.add_argument(
        "--window",
        type=cli.positive,
        default=WINDOW,
        metavar="N",
        help="lines of a file that are regrouped by category (%(default)s)",
    )
    made.add_argument(
        "--backbone-file", type=Path, metavar="FILE", help="a GGUF or ONNX file instead of a bundle"
    )
    made.add_argument(
        "--adapter-file",
        action="append",
        default=[],
        metavar="[CATEGORY=]FILE",
        help="a LoRA file of the same format for --backbone-file, once for each",
    )
    return made


def main() -> None:
    """Run the command."""
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
