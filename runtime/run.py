"""`tel-run`: answer questions from arguments or JSONL with the workspace's bundle."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from tel_edge.runtime import backbones, bundle, cli
from tel_edge.runtime.categories import Category, category
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.prompt import LETTERS
from tel_edge.runtime.question import Question, from_row
from tel_edge.runtime.scoring import Scorer, pick, probabilities


@dataclass(frozen=True)
class Request:
    """A question to answer, or the reason why the line is none. `line` counts from 1."""

    line: int
    question: Question | None
    error: str = ""


def from_arguments(texts: Iterable[str], choices: Iterable[str], of: Category) -> Iterator[Request]:
    """Yield one request a text, all with the same choices."""
    for line, text in enumerate(texts, start=1):
        yield _request(line, {"question": text, "choices": list(choices)}, of)


def from_lines(stream: TextIO, default: Category | None) -> Iterator[Request]:
    """Yield one request a JSONL line; empty lines are passed over.

    A line holds `question`, `choices` (unless the category has fixed labels), and may hold `id`
    and `category`.
    """
    for line, text in enumerate(stream, start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield Request(line, None, f"not JSON: {error}")
            continue
        if not isinstance(row, dict):
            yield Request(line, None, "not a JSON object")
            continue
        yield _request(line, row, default)


def _request(line: int, row: Mapping[str, Any], default: Category | None) -> Request:
    try:
        of = category(str(row["category"])) if "category" in row else default
        if of is None:
            raise InputError("no category in the line and none in --category")
        asked = {key: value for key, value in row.items() if key != "answer"}
        id = line if row.get("id") is None else row["id"]
        return Request(line, from_row(asked, of, str(id), len(LETTERS)))
    except InputError as error:
        return Request(line, None, str(error))


def answer(request: Request, scorer: Scorer, adapters: Container[str] | None) -> dict[str, Any]:
    """Return the output record of a request: an answer, or `error` with the line's number.

    `adapters` names the categories that have one; None asks the bare backbone.
    """
    question = request.question
    if question is None:
        return {"line": request.line, "error": request.error}
    if adapters is not None and question.category not in adapters:
        return {
            "id": question.id,
            "line": request.line,
            "error": f"no adapter for {question.category}",
        }
    try:
        score = scorer(question, None if adapters is None else question.category)
    except InputError as error:
        return {"id": question.id, "line": request.line, "error": str(error)}
    index = pick(score.logprobs)
    return {
        "id": question.id,
        "answer": question.choices[index],
        "index": index,
        "probabilities": [round(value, 6) for value in probabilities(score.logprobs)],
    }


def work(args: argparse.Namespace, opener: bundle.Opener = bundle.llama) -> dict[str, Any]:
    """Answer everything; the exit code is 1 if some line got an error record."""
    default = None if args.category == "all" else category(args.category)
    folder = args.bundle or cli.workspace(args).bundle(backbones.find(args.backbone).name)
    if args.questions and default is None:
        raise InputError("questions given as arguments need --category NAME")
    if args.questions and not (default and default.labels) and not args.choice:
        raise InputError(
            "questions given as arguments need their answers: --choice TEXT, twice or more"
        )
    made = bundle.read(folder)
    backbone = bundle.backbone_file(folder, made, args.quant)
    names = [default.name] if default else list(made.adapters())
    if args.no_adapter:
        names = []
    adapters = [bundle.adapter_file(folder, made, name) for name in names]
    engine = bundle.open_engine(
        folder,
        made,
        backbone,
        adapters,
        threads=args.threads,
        context=args.context,
        opener=opener,
    )
    scorer = Scorer(engine)
    if args.questions:
        requests = from_arguments(args.questions, args.choice, default)  # type: ignore[arg-type]
    else:
        if isinstance(sys.stdin, io.TextIOWrapper):
            # A byte that is no UTF-8 is one line's error and not the end of all.
            sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
        requests = from_lines(sys.stdin, default)
    done = failed = 0
    for request in requests:
        record = answer(request, scorer, None if args.no_adapter else names)
        print(json.dumps(record, ensure_ascii=False), flush=True)
        done, failed = done + 1, failed + ("error" in record)
    cli.say(args, f"{done - failed} answered with {backbone.path}, {failed} refused")
    return {"answered": done - failed, "refused": failed, "exit_code": 1 if failed else 0}


def parser() -> cli.Parser:
    """Return the command's options."""
    made = cli.parser(
        "tel-run",
        "Answer questions with the workspace's bundle: one JSON object a line out.",
        "backbone",
        "category",
    )
    made.add_argument(
        "questions", nargs="*", metavar="QUESTION", help="read from stdin as JSONL if none is given"
    )
    made.add_argument(
        "--choice", action="append", default=[], metavar="TEXT", help="an answer, once for each"
    )
    cli.engine_options(made)
    made.add_argument("--quant", metavar="TYPE", help="the variant to use (the smallest there is)")
    made.add_argument("--no-adapter", action="store_true", help="ask the bare backbone")
    return made


def main() -> None:
    """Run the command."""
    sys.exit(cli.run(parser(), work))
