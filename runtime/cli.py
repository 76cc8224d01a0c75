"""What all commands share: options, exit codes, errors in one or two lines."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, Protocol

import tel_edge
from tel_edge.runtime.engines.engine import EngineSettings
from tel_edge.runtime.engines.packing import BRANCHES
from tel_edge.runtime.errors import REMEDIES, InputError, Terminated, WorkError
from tel_edge.runtime.files.atomic import followed
from tel_edge.runtime.questions.votes import MOST_DRAWS
from tel_edge.runtime.workspace import Workspace

Work = Callable[[argparse.Namespace], Mapping[str, Any] | None]


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are two lines, the second of which says where to look.

    Paths must not be empty: that is a variable that nobody set, and would be the current folder.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register("type", Path, path)

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2."""
        self.exit(2, f"{self.prog}: {message}\nsee {self.prog} --help\n")


# Tokens of a generated text where nobody says otherwise.
TEXT = 64


def parser(prog: str, description: str, *options: str) -> Parser:
    """Return a parser with the common options and those of `options` that the command takes.

    `options` may name backbone, dataset, category, seed and wait; workspace, json and quiet are
    always there. With `spoken` the categories have those that are talked to beside them. `wait` is
    in seconds (`lock.held`), 0 unless the command sets another default.
    """
    made = Parser(prog=prog, description=description, allow_abbrev=False)
    made.add_argument(
        "--workspace",
        type=folder,
        metavar="DIR",
        default=os.environ.get("TEL_WORKSPACE") or "tel-workspace",
        help="where adapters, bundles, results and reports are (env TEL_WORKSPACE; %(default)s)",
    )
    if "backbone" in options:
        made.add_argument(
            "--backbone",
            metavar="NAME|DIR|FILE",
            default="tel-nano",
            help="tel-nano, smollm2-135m, llama-3.2-1b, qwen3-0.6b, qwen3-1.7b, qwen2.5-1.5b, "
            "qwen2.5-3b, exaone-4.0-1.2b, a Hugging Face folder, or a GGUF file (%(default)s)",
        )
    if "dataset" in options:
        made.add_argument(
            "--dataset",
            metavar="NAME|DIR",
            default=os.environ.get("TEL_DATASET") or "ot-mini",
            help="ot-mini (embedded), ot-full (the hub's) or a folder in the same layout "
            "(env TEL_DATASET; %(default)s)",
        )
        made.add_argument(
            "--strict", action="store_true", help="refuse a data set with malformed rows"
        )
    if "category" in options:
        made.add_argument(
            "--category",
            metavar="NAME|all",
            default="all",
            help="teleqna, sixg_bench, 3gpp_tsg, oranbench, srsranbench, teletables, several "
            "with commas, or all (%(default)s)" + ("; or care" if "spoken" in options else ""),
        )
    if "seed" in options:
        made.add_argument("--seed", type=seed, default=42, help="(%(default)s)")
    if "wait" in options:
        wait_option(made)
    made.add_argument("--version", action="version", version=f"{prog} {tel_edge.__version__}")
    made.add_argument(
        "--json", action="store_true", help="end stdout with one line of JSON that says it all"
    )
    made.add_argument(
        "--quiet", action="store_true", help="no log lines but warnings, and no progress bars"
    )
    return made


def wait_option(made: Parser) -> None:
    """Add how long a command waits for another one that writes the same place."""
    made.add_argument(
        "--wait",
        type=seconds,
        nargs="?",
        const=math.inf,
        default=0.0,
        metavar="SECONDS",
        help="how long to wait for another command that writes the same place, without a "
        "number for as long as it takes, 0 not at all (%(default)g)",
    )


def bundle_options(made: Parser) -> None:
    """Add which bundle, and for prompts of what length."""
    made.add_argument("--bundle", type=Path, metavar="DIR", help="instead of the workspace's")
    made.add_argument(
        "--context", type=positive, default=4096, metavar="N", help="tokens (%(default)s)"
    )


def engine_options(made: Parser) -> None:
    """Add the options of every command that opens an engine."""
    from tel_edge.runtime.bundles.formats import FORMATS

    bundle_options(made)
    made.add_argument("--threads", type=threads, metavar="N", help="(the profile's, or all cores)")
    made.add_argument(
        "--exact",
        action="store_true",
        help="one question at a time, nothing shared: answers that no other question touches",
    )
    made.add_argument(
        "--format",
        choices=tuple(FORMATS),
        help="of the backbone (one whose engine is installed, gguf first)",
    )
    made.add_argument(
        "--provider",
        action="append",
        default=[],
        metavar="NAME",
        help="onnxruntime's execution provider, such as cuda or openvino; repeatable, the first "
        "that can computes (cpu)",
    )
    made.add_argument(
        "--gpu-layers",
        type=layers,
        metavar="N",
        help="layers on the GPU, -1 for all (the profile's, or 0)",
    )


def variant_options(made: Parser) -> None:
    """Add the options of what answers from a bundle, in all commands that answer."""
    made.add_argument(
        "--quant",
        metavar="TYPE",
        help="the variant to use (the one that a report decided for, else tel-bench --tune's "
        "fastest, else the smallest there is)",
    )
    made.add_argument("--no-adapter", action="store_true", help="ask the bare backbone")
    made.add_argument(
        "--no-tune", action="store_true", help="measure nothing on the first start on an ARM device"
    )
    made.add_argument(
        "--threshold",
        type=share,
        metavar="P",
        help="below it a request without a category goes to the bare backbone (the router's)",
    )


def bundle_folder(args: argparse.Namespace, backbone: str) -> Path:
    """Return the folder of `--bundle`, or the workspace's bundle of `backbone` without it.

    Raises `InputError` for one that is not there and names the workspace's of that name, if any.
    """
    given: Path | None = args.bundle
    if given is None:
        return workspace(args).bundle(backbone)
    if not given.exists():
        there = workspace(args).bundle(given.name)
        has = there.is_dir() and there != given
        hint = f"pass --bundle {there}" if has else "make a bundle with tel-export"
        raise InputError(f"--bundle {given}: no such folder; {hint}")
    return followed(given)


def engine_settings(args: argparse.Namespace) -> EngineSettings:
    """Return what the options of `engine_options` say."""
    return EngineSettings(
        threads=args.threads,
        context=args.context,
        gpu_layers=args.gpu_layers,
        providers=tuple(args.provider),
        max_adapters=getattr(args, "max_adapters", None),
        exact=args.exact,
    )


def adapters_option(made: Parser) -> None:
    """Add how many adapters stay in memory, for commands that answer with several."""
    made.add_argument(
        "--max-adapters",
        type=positive,
        metavar="N",
        help="adapters in memory; the least recently used makes room (any number)",
    )


def draw_options(made: Parser, spoken: str = "") -> None:
    """Add the options of every command that answers: the protocol and the votes.

    `spoken` says how long answers in sentences are, for commands that give such too; what is not
    given is None there.
    """
    made.add_argument(
        "--protocol",
        choices=("letters", "generate"),
        default="letters",
        help="letters: the probabilities of the answers; generate: read from free text "
        "(%(default)s)",
    )
    made.add_argument(
        "--orders",
        type=positive,
        default=1,
        metavar="N",
        help="of the options: average the probabilities over so many, at so many times the time "
        "(%(default)s)",
    )
    made.add_argument("-k", type=draws, default=4, metavar="K", help="votes (%(default)s)")
    made.add_argument(
        "--temperature", type=float, default=0.7, metavar="T", help="of the votes (0.7)"
    )
    made.add_argument(
        "--max-tokens",
        type=positive,
        default=None if spoken else TEXT,
        metavar="N",
        help=f"of a generated text ({TEXT}{spoken and f', {spoken}'})",
    )


def check_draws(args: argparse.Namespace) -> None:
    """Refuse options of `draw_options` that mean nothing."""
    if not 0 < args.temperature < math.inf:
        raise InputError(f"--temperature {args.temperature}: a number above 0 is needed")
    # Each text has a sequence of its own, the greedy one too.
    if args.protocol == "generate" and args.orders > 1:
        raise InputError("--orders is for --protocol letters: texts are read, not averaged")
    if args.protocol == "generate" and args.k >= BRANCHES:
        raise InputError(f"-k {args.k}: with --protocol generate at most {BRANCHES - 1} work")


def path(text: str) -> Path:
    """Return a path as the `type` of an option."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path; name a file or folder")
    return Path(text)


def folder(text: str) -> Path:
    """Return a folder that is there or can be made, as the `type` of an option."""
    given = path(text)
    if given.exists() and not given.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file, a folder is needed")
    return given


def whole(least: int, most: int) -> Callable[[str], int]:
    """Return the `type` of an option that is a whole number from `least` to `most`."""

    def read(text: str) -> int:
        # `int` alone also takes spaces, underscores and other scripts' digits.
        digits = text.removeprefix("-")
        value = int(text) if digits.isascii() and digits.isdigit() and len(text) < 20 else None
        if value is None or not least <= value <= most:
            below = value is None or value < least
            said = "above 0" if least == 1 and below else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number {said}")
        return value

    return read


# Any count: whatever is more, no machine has.
positive = whole(1, 2**31 - 1)
# GGML_MAX_N_THREADS of llama.cpp.
threads = whole(1, 512)
layers = whole(-1, 2**31 - 1)
draws = whole(1, MOST_DRAWS)
# What numpy takes.
seed = whole(0, 2**32 - 1)


def number(holds: Callable[[float], bool], said: str) -> Callable[[str], float]:
    """Return the `type` of an option that is a number for which `holds` is true."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not holds(value):
            raise argparse.ArgumentTypeError(f"{text!r} is no number {said}")
        return value

    return read


seconds = number(lambda value: value >= 0, "of seconds")
above_zero = number(lambda value: 0 < value < math.inf, "above 0")
share = number(lambda value: 0 <= value <= 1, "from 0 to 1")


def workspace(args: argparse.Namespace) -> Workspace:
    """Return the workspace of parsed arguments."""
    return Workspace(args.workspace)


class Quietable(Protocol):
    """What says whether log lines are wanted."""

    @property
    def quiet(self) -> bool:
        """Return whether they are not."""
        ...


def say(args: argparse.Namespace | Quietable, text: str) -> None:
    """Write a log line to stderr, unless `--quiet`, which leaves warnings alone."""
    if not args.quiet or text.startswith("warning: "):
        print(text, file=sys.stderr, flush=True)


@contextmanager
def _terminated_in_order() -> Iterator[None]:
    """Raise `Terminated` at SIGTERM, unless somebody else handles it."""
    import signal
    import threading

    def end(*_: object) -> None:
        # Once is enough: what ends in order is not interrupted at that.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if ours:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def run(parser: Parser, work: Work, argv: list[str] | None = None) -> int:
    """Parse `argv`, do the work and return the exit code.

    0 done, 1 the work failed, 2 wrong usage or bad input, 130 interrupted, 143 ended by SIGTERM.
    What `work` returns is the document of `--json`; its key `exit_code`, if any, is the exit code.
    """
    if sys.stderr is None:
        # Closed: `print` would take standard output instead, and put log lines among the results.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    args = parser.parse_args(argv)
    try:
        with _terminated_in_order():
            document = dict(work(args) or {})
        code = int(document.pop("exit_code", 0))
        if args.json:
            print(json.dumps(document, ensure_ascii=False), flush=True)
        return code
    except InputError as error:
        return _leave(parser, error, 2)
    except WorkError as error:
        return _leave(parser, error, 1)
    except BrokenPipeError:
        # The reader has gone; keep the interpreter from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as error:
        ended, code = ("terminated", 143) if isinstance(error, Terminated) else ("interrupted", 130)
        return _leave(parser, f"{ended}; what was finished is kept", code)
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        place = error.filename or "a file or standard output"
        return _leave(parser, f"{place}: {error.strerror}; {REMEDIES[error.errno]}", 1)


def _leave(parser: Parser, error: object, code: int) -> int:
    print(f"{parser.prog}: {error}", file=sys.stderr, flush=True)
    return code
