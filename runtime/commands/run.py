"""`tel-run`: answer questions from arguments or JSONL with the workspace's bundle."""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tel_edge.runtime import cli, clock
from tel_edge.runtime.bundles import backbones, bundle
from tel_edge.runtime.bundles.formats import of_file
from tel_edge.runtime.device import profile
from tel_edge.runtime.engines.engine import Engine, Generation, Score
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions import protocol, router, stream, votes
from tel_edge.runtime.questions.categories import CATEGORIES, Category, category
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.requests import Defaults, Request, from_arguments, from_lines
from tel_edge.runtime.questions.scoring import Scorer

# Lines that are read before the first is answered, so that questions of a category stand together.
WINDOW = 256


@dataclass(frozen=True)
class Way:
    """How questions are answered: by the letters' probabilities, or by generated text.

    `adapters` names the categories that have one; None asks the bare backbone. `k` votes are drawn
    at `temperature`; `limit` is the most tokens of a generated text.
    """

    adapters: Container[str] | None
    generate: bool
    k: int
    temperature: float
    seed: int
    limit: int


def answers(requests: Sequence[Request], scorer: Scorer, way: Way) -> Iterator[dict[str, Any]]:
    """Yield the output record of each request, in order: an answer, or `error` with the line."""
    yield from stream.in_order(_answers(requests, scorer, way))


def _answers(
    requests: Sequence[Request], scorer: Scorer, way: Way
) -> Iterator[tuple[int, dict[str, Any]]]:
    asked: list[tuple[Question, str | None]] = []
    places: list[int] = []
    for at, request in enumerate(requests):
        question = request.question
        if question is None:
            yield at, _refused(request, request.error)
            continue
        # A question of no category is the bare backbone's, and so is one that was only sent to a
        # category that has no adapter.
        named: str | None = question.category or None
        if way.adapters is None or (named and request.route and named not in way.adapters):
            named = None
        if named and way.adapters is not None and named not in way.adapters:
            yield at, _refused(request, f"no adapter for {named}")
            continue
        asked.append((question, named))
        places.append(at)
    results: Iterable[tuple[int, Score | Generation | InputError]] = (
        scorer.texts(asked, way.k, way.temperature, way.limit, way.seed)
        if way.generate
        else scorer.many(asked)
    )
    for index, result in results:
        request, question = requests[places[index]], asked[index][0]
        if isinstance(result, InputError):
            yield places[index], _refused(request, str(result))
            continue
        head: dict[str, Any] = {"id": request.id}
        if request.route:
            head["category"] = request.route.category
            head["route_probability"] = round(request.route.probability, 6)
        made = _scored if isinstance(result, Score) else _generated
        yield places[index], head | made(question, result, way)  # type: ignore[arg-type]


def _refused(request: Request, reason: str) -> dict[str, Any]:
    id = {} if request.id is None else {"id": request.id}
    return id | {"line": request.line, "error": reason}


def _line(record: dict[str, Any]) -> str:
    """Return a record as JSON; half a surrogate pair, which has no bytes, as its escape."""
    text = json.dumps(record, ensure_ascii=False)
    return json.dumps(record) if any("\ud800" <= c <= "\udfff" for c in text) else text


def _scored(question: Question, score: Score, way: Way) -> dict[str, Any]:
    index = votes.pick(score.logprobs)
    drawn = votes.draws(score.logprobs, way.k, way.temperature, way.seed, question.id)
    return {
        "answer": question.choices[index],
        "index": index,
        "probabilities": [round(value, 6) for value in votes.probabilities(score.logprobs)],
        "mass": round(votes.mass(score.logprobs), 6),
        "votes": list(drawn),
        "majority": votes.majority(drawn),
    }


def _generated(question: Question, made: Generation, way: Way) -> dict[str, Any]:
    index, *drawn = (protocol.parse(text, question) for text in made.texts)
    return {
        "answer": None if index is None else question.choices[index],
        "index": index,
        "text": made.texts[0],
        "votes": drawn,
        "majority": protocol.majority(drawn) if drawn else index,
    }


@dataclass(frozen=True)
class Source:
    """What answers: an engine, the categories that have an adapter, and the bundle's router."""

    engine: Engine
    name: str
    adapters: tuple[str, ...] | None
    router: router.Router | None = None


def open_bundle(
    args: argparse.Namespace, default: Category | None, opener: bundle.Opener
) -> Source:
    """Open the workspace's bundle or that of `--bundle`."""
    folder = cli.bundle_folder(args, backbones.find(args.backbone).name)
    made = bundle.read(folder)
    backbone = bundle.backbone_file(folder, made, args.quant, args.format)
    names = [default.name] if default else list(made.adapters(backbone.format))
    if args.no_adapter:
        names = []
    adapters = [bundle.adapter_file(folder, made, name, backbone.format) for name in names]
    if warning := bundle.unmeasured([backbone, *adapters]):
        cli.say(args, warning)
    routes = None
    if default is None and names and (file := made.find("router", format=router.FORMAT)):
        routes = router.load(bundle.verified(folder, made, file))
        if args.threshold is not None:
            routes = replace(routes, threshold=args.threshold)
    settings, note = profile.settings(cli.engine_settings(args), made.backbone.name, backbone.quant)
    if note:
        cli.say(args, note)
    engine = bundle.open_engine(
        folder,
        made,
        backbone,
        adapters,
        settings=settings,
        opener=opener,
        # Of several, an adapter that is damaged is the trouble of its own questions.
        lazily=default is None,
    )
    return Source(engine, backbone.path, None if args.no_adapter else tuple(names), routes)


def open_files(args: argparse.Namespace, opener: bundle.Opener) -> Source:
    """Open the files of `--backbone-file` and `--adapter-file`, which no manifest binds."""
    path: Path = args.backbone_file
    files: dict[str, Path] = {}
    for text in args.adapter_file:
        name, _, file = text.partition("=")
        if name not in CATEGORIES:
            # A path may hold a "=" too.
            if file and not Path(text).exists():
                category(name)
            if args.category == "all":
                raise InputError(f"--adapter-file {text}: pass --category, or CATEGORY={text}")
            name, file = args.category, text
        files[category(name).name] = Path(file)
    of_file(path).weights(path)
    adapters = bundle.loose_adapters(path, files)
    print(
        f"tel-run: warning: nothing binds {path.name} and its {len(files)} adapters to each other "
        "but what they say themselves; a wrong pair from elsewhere answers without an error",
        file=sys.stderr,
    )
    engine = opener(path, adapters, cli.engine_settings(args))
    return Source(engine, path.name, tuple(files) or None)


def work(args: argparse.Namespace, opener: bundle.Opener = bundle.native) -> dict[str, Any]:
    """Answer everything; the exit code is 1 if some line got an error record."""
    began, started = time.perf_counter(), clock.since_start()
    cli.check_draws(args)
    if args.adapter_file and not args.backbone_file:
        raise InputError("--adapter-file needs --backbone-file; a bundle brings its own adapters")
    default = None if args.category == "all" else category(args.category)
    labels = tuple(part.strip() for part in args.labels.split(",")) if args.labels else ()
    if args.choice and labels:
        raise InputError("both --labels and --choice; give one")
    if args.questions and not (default and default.labels) and not (args.choice or labels):
        raise InputError(
            "questions given as arguments need their answers: --choice TEXT, twice or more"
        )
    source = open_files(args, opener) if args.backbone_file else open_bundle(args, default, opener)
    defaults = Defaults(
        default, source.router.route if source.router else None, source.adapters is None, labels
    )
    opened = time.perf_counter()
    way = Way(source.adapters, args.protocol == "generate", args.k, args.temperature, args.seed,
              args.max_tokens)  # fmt: skip
    scorer = Scorer(source.engine)
    done = failed = 0
    first = 0.0
    windows, total = _windows(args, defaults)
    with _bar(args, total) as bar:
        for window in windows:
            for record in answers(window, scorer, way):
                print(_line(record), flush=True)
                first = first or time.perf_counter()
                done, failed = done + 1, failed + ("error" in record)
                bar.update()
    cli.say(args, f"{done - failed} answered with {source.name}, {failed} refused")
    timing = {
        "python": started,
        "open": (opened - began) * 1000,
        **getattr(source.engine, "timing", {}),
        "first_answer": (first - opened) * 1000 if first else None,
    }
    return {
        "answered": done - failed,
        "refused": failed,
        "timing": {key: value and round(value, 1) for key, value in timing.items()},
        "exit_code": 1 if failed else 0,
    }


def _windows(
    args: argparse.Namespace, defaults: Defaults
) -> tuple[Iterator[list[Request]], int | None]:
    """Return the requests in windows, and how many lines there are, where that is known."""
    if args.questions:
        made = from_arguments(args.questions, args.choice, defaults)
        return stream.windows(made, args.window), len(args.questions)
    if sys.stdin is None:
        raise InputError("no standard input; pass questions as arguments or JSONL on stdin")
    fd = stream.descriptor(sys.stdin)
    if fd is not None and stream.is_live(fd):
        requests = from_lines(stream.raw_lines(fd), defaults)
        return stream.live_windows(requests, args.window), None
    if isinstance(sys.stdin, io.TextIOWrapper):
        # A byte that is no UTF-8 is one line's error and not the end of all.
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    # The file is read once more for this, so only where somebody sees the bar.
    seen = not args.quiet and sys.stderr.isatty()
    total = stream.count_lines(fd) if fd is not None and seen else None
    lines = sys.stdin if fd is None else stream.raw_lines(fd)
    return stream.windows(from_lines(lines, defaults), args.window), total


def _bar(args: argparse.Namespace, total: int | None) -> Any:
    from tqdm import tqdm

    # None: off where stderr is no terminal.
    return tqdm(total=total, disable=args.quiet or None, unit="question", desc="tel-run")


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
        "questions", nargs="*", metavar="QUESTION", help="read from stdin as JSONL if none is given"
    )
    made.add_argument(
        "--choice", action="append", default=[], metavar="TEXT", help="an answer, once for each"
    )
    made.add_argument(
        "--labels", metavar="A,B,C", help="answers in words, which are scored but not shown"
    )
    cli.engine_options(made)
    cli.draw_options(made)
    made.add_argument("--quant", metavar="TYPE", help="the variant to use (the smallest there is)")
    made.add_argument("--no-adapter", action="store_true", help="ask the bare backbone")
    made.add_argument(
        "--max-adapters",
        type=cli.positive,
        metavar="N",
        help="adapters in memory; the least recently used makes room (any number)",
    )
    made.add_argument(
        "--window",
        type=cli.positive,
        default=WINDOW,
        metavar="N",
        help="lines of a file that are regrouped by category (%(default)s)",
    )
    made.add_argument(
        "--threshold",
        type=cli.share,
        metavar="P",
        help="below it a request without a category goes to the bare backbone (the router's)",
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
