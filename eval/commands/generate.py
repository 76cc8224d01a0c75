"""`tel-generate`: write a data set of customer support dialogues."""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tel_edge.runtime import cli, extras, progress
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import lock

TEMPLATES = "templates"


def work(args: argparse.Namespace) -> dict[str, Any]:
    """Write what is missing, then the files of the data set, and say what it is like."""
    from tel_edge.eval.care import panel, scenarios
    from tel_edge.eval.care.dialogues import key, plan
    from tel_edge.eval.care.generate import Prices, finished, rejects, written
    from tel_edge.eval.care.journal import Journal

    for module in ("datasketch", "sacrebleu"):
        extras.check(module, "care")
    if args.limit_cost is not None and args.price == (0.0, 0.0):
        raise InputError("--limit-cost needs --price")
    every = scenarios.scenarios(args.glossary)
    parts = scenarios.split(every, args.seed)
    chosen = _some(every, args.limit, args.seed)
    wanted = [*plan(chosen, args.each, args.turns, args.seed)]
    folder = args.out or cli.workspace(args).root / "care"
    prices = Prices(args.price[0], args.price[1], args.limit_cost)
    say = partial(cli.say, args)
    _check_own(folder)
    with lock.held(folder, args.wait, say, inside=True), _writer(args) as writer:
        journal = Journal(folder)
        keys = [key(one, writer.source) for one in wanted]
        with progress.bar("tel-generate", "dialogue", len(wanted), args.quiet) as bar:
            made = written(wanted, keys, writer, journal, prices, _stepping(bar))
        refused = rejects(keys, journal)
        why = ", ".join(f"{gate} {count}" for gate, count in refused.items())
        if not made:
            raise InputError(f"{folder}: none of {len(wanted)} dialogues passed the gates: {why}")
        if missing := len(wanted) - len(made):
            say(f"warning: {missing:,} of {len(wanted):,} could not be written: {why}")
        about: dict[str, Any] = {
            "seed": args.seed, "each": args.each, "turns": list(args.turns),
            "source": asdict(writer.source), "rejects": refused,
        }  # fmt: skip
        if journal.tokens != (0, 0):
            read, wrote = journal.tokens
            about["tokens"] = {"read": read, "written": wrote}
            about["cost"] = round(prices.of(read, wrote), 4)
        document = finished(folder, parts, made, about)
        journal.close()
    for line in panel.lines(document["panel"]):
        print(line)
    left = document["near_duplicates"]
    rows = ", ".join(f"{name} {of['rows']:,}" for name, of in document["files"].items())
    print(f"near-duplicates left out: {left['within']} in scenarios, {left['across']} across parts")
    print(f"data set: {folder} ({rows})")
    return {"folder": str(folder), **document}


def _stepping(bar: Any) -> Callable[[int], None]:
    """Return what moves a bar on by what was written, and says how many tries were refused."""
    refused = 0

    def step(count: int) -> None:
        nonlocal refused
        if not count:
            refused += 1
            bar.set_postfix_str(f"{refused:,} tries refused", refresh=False)
        bar.update(count)

    return step


def _check_own(folder: Path) -> None:
    """Refuse a folder with a data set in it that this command did not write."""
    from tel_edge.eval.care import journal
    from tel_edge.eval.care.answers.cases import PARTS

    names = [*(f"{part}.jsonl" for part in PARTS), "README.md"]
    other = next((name for name in names if (folder / name).exists()), None)
    if other and not any((folder / name).exists() for name in (journal.NAME, "files.json")):
        raise InputError(
            f"{folder}: {other} is there, and no tel-generate wrote it; name another --out"
        )


def _some(every: Sequence[Any], limit: int | None, seed: int) -> Sequence[Any]:
    """Return at most `limit` scenarios, drawn from all of them."""
    if limit is None or limit >= len(every):
        return every
    places = random.Random(f"{seed} some").sample(range(len(every)), limit)
    return [every[at] for at in sorted(places)]


@contextmanager
def _writer(args: argparse.Namespace) -> Iterator[Any]:
    from tel_edge.eval.care import writers

    where = getattr(args, "from")
    if where == TEMPLATES:
        yield writers.Templates()
    elif where.startswith(("http://", "https://")):
        yield _endpoint(args, where)
    elif Path(where).is_file():
        from tel_edge.runtime.files import gguf_header

        gguf_header.check(Path(where))
        model = writers.Model(Path(where), args.threads)
        try:
            yield model
        finally:
            model.close()
    else:
        raise InputError(f"--from {where}: neither {TEMPLATES}, a URL that ends in /v1 nor a file")


def _endpoint(args: argparse.Namespace, where: str) -> Any:
    from tel_edge.eval.care.writers import Endpoint
    from tel_edge.eval.references import client

    server = client.connect(where, "--from", partial(cli.say, args))
    if not (server.local or args.send):
        raise InputError(
            f"--from {where}: scenarios would be sent to {urlsplit(where).hostname}; pass --send "
            "if they may leave this machine"
        )
    name = args.model
    if name is None:
        models = server.models()
        if len(models) != 1:
            raise InputError(f"--model is needed, the server has: {' '.join(models) or 'none'}")
        [name] = models
    return Endpoint(server, name, args.parallel)


def turns(text: str) -> tuple[int, int]:
    """Return the fewest and most exchanges of a dialogue, as the `type` of an option."""
    from tel_edge.eval.care.templates import MOST_TURNS

    found = re.fullmatch(r"([1-9])(?:-([1-9]))?", text)
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= low <= high <= MOST_TURNS:
        raise argparse.ArgumentTypeError(f"{text!r}: 1 to {MOST_TURNS} exchanges, such as 1 or 2-4")
    return low, high


def prices(text: str) -> tuple[float, float]:
    """Return the prices of a million tokens, read and written, as the `type` of an option."""
    try:
        read, written = (float(part) for part in text.split(","))
    except ValueError:
        read = written = -1.0
    if not (0 <= read < 1e6 and 0 <= written < 1e6):
        raise argparse.ArgumentTypeError(f"{text!r}: two prices, such as 0.15,0.60")
    return read, written


def model_options(made: cli.Parser, what: str) -> None:
    """Add the options of commands that ask models: `what` may leave the machine, at which cost."""
    made.add_argument("--send", action="store_true", help=f"{what} may go to other machines")
    made.add_argument(
        "--price", type=prices, default=(0.0, 0.0), metavar="IN,OUT",
        help="of a million tokens, read and written; nothing is assumed",
    )  # fmt: skip
    made.add_argument(
        "--limit-cost", type=cli.above_zero, metavar="X", help="stop there, in the unit of --price"
    )
    made.add_argument(
        "--parallel", type=cli.whole(1, 64), default=4, metavar="N",
        help="requests to an endpoint at a time (%(default)s)",
    )  # fmt: skip
    made.add_argument("--threads", type=cli.threads, metavar="N", help="of a GGUF file (all cores)")


def parser() -> cli.Parser:
    """Return the command's options."""
    made = cli.parser(
        "tel-generate", "Write a data set of customer support dialogues.", "seed", "wait"
    )
    made.add_argument("--out", type=cli.folder, metavar="DIR", help="(care in the workspace)")
    made.add_argument(
        "--from",
        default=TEMPLATES,
        metavar="WHERE",
        help="who writes: templates, the URL of an OpenAI-compatible endpoint, ending in /v1 (key: "
        "env TEL_API_KEY), or a GGUF file (%(default)s)",
    )
    made.add_argument("--model", metavar="NAME", help="of the endpoint's models (the only one)")
    made.add_argument(
        "--glossary", type=Path, metavar="FILE", help="a table of terms instead of the embedded one"
    )
    made.add_argument(
        "--each", type=cli.whole(1, 99), default=20, metavar="N", help="of a scenario (%(default)s)"
    )
    made.add_argument(
        "--turns", type=turns, default=(1, 1), metavar="N|A-B", help="exchanges of a dialogue (1)"
    )
    made.add_argument(
        "--limit", type=cli.positive, metavar="N", help="of the scenarios, drawn from all (all)"
    )
    model_options(made, "the scenarios")
    return made


def main() -> None:
    """Run the command."""
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
