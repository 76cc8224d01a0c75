"""`tel-judge`: have judges compare what systems answered to customers."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tel_edge.eval.commands.generate import model_options
from tel_edge.runtime import cli, progress
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import lock

if TYPE_CHECKING:
    from tel_edge.eval.care.judges.asking import Material
    from tel_edge.eval.care.judges.judging import Tally, Work
    from tel_edge.eval.care.judges.models import Judging
    from tel_edge.eval.care.judges.panels import Row
    from tel_edge.eval.care.judges.studies import Answer
    from tel_edge.eval.care.judges.verdicts import Study

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Those that cost nothing come first, so that what a limit stops is the rest.
ORDER = ("standin", "gguf", "endpoint")
# Characters of a token of English, for an estimate.
CHARACTERS = 4


@dataclass(frozen=True)
class Prepared:
    """What is to be judged: the study without its judges, the texts, and answers that were cut."""

    study: Study
    material: Material
    answers: Sequence[Answer]
    cut: int


def work(args: argparse.Namespace) -> dict[str, Any]:
    """Judge, or make a page for people, or read their labels back."""
    _check(args)
    prepared = _prepared(args) if args.sweep or args.answers else None
    folder = _folder(args)
    say = partial(cli.say, args)
    if args.dry_run or not (args.annotate or args.labels):
        if prepared is None:
            raise InputError("nothing to judge: pass --sweep DIR, or --answers NAME=FILE NAME=FILE")
        return _judge(args, folder, prepared)
    from tel_edge.eval.care.judges import people, studies

    with lock.held(folder, args.wait, say, inside=True) if prepared else _there(args, folder):
        if prepared:
            _known(folder, prepared)
        study = studies.read_study(folder)
        if args.labels:
            made = people.read_back(folder, study, args.labels)
            print(f"labels: {made.new} new, {made.same} known, {made.changed} changed, "
                  f"{made.all} in {folder / studies.LABELS} by {', '.join(made.by)}")  # fmt: skip
            print(_next(args, f"tel-report --study {folder.name}"))
            return {"folder": str(folder), **asdict(made)}
        page, key = people.annotate(folder, study, args.annotate, args.annotator, args.seed)
    print(f"page: {page} (open it in a browser; it asks nothing of any other place)")
    print(f"key: {key} (keep it: it says whose answers they are)")
    print(_next(args, f"tel-judge --name {folder.name} --labels FILE..."))
    return {"folder": str(folder), "page": str(page), "key": str(key)}


def _next(args: argparse.Namespace, command: str) -> str:
    """Return what to type next, in the workspace of this command."""
    home = str(args.workspace)
    usual = home == str(parser().get_default("workspace"))
    return f"next: {command}" + ("" if usual else f" --workspace {shlex.quote(home)}")


def _there(args: argparse.Namespace, folder: Path) -> Any:
    """Lock a study that is there; a folder without one is not made."""
    from tel_edge.eval.care.judges import studies

    studies.read_study(folder)
    return lock.held(folder, args.wait, partial(cli.say, args), inside=True)


def _known(folder: Path, prepared: Prepared) -> None:
    """Write the study for people alone, or see that the one that is there is of these answers."""
    from tel_edge.eval.care.judges import studies

    if not (folder / studies.STUDY).is_file():
        _write(folder, prepared.study, prepared)
    elif studies.answers_digest(studies.read_study(folder)) != studies.answers_digest(
        prepared.study
    ):
        raise InputError(
            f"{folder}: a study of other answers or dialogues; run the same command without "
            "--annotate and --labels first, or name another study"
        )


def _check(args: argparse.Namespace) -> None:
    if args.name is not None and not NAME.fullmatch(args.name):
        raise InputError(f"--name {args.name!r}: letters, digits, dots and dashes only")
    if args.sweep and args.answers:
        raise InputError("--sweep and --answers: one of them")
    if args.variant and not args.sweep:
        raise InputError("--variant is for --sweep: a file of answers is of one")
    if args.annotate and args.labels:
        raise InputError("--annotate and --labels: one of them")


def _folder(args: argparse.Namespace) -> Path:
    from tel_edge.eval.care.judges import studies

    home = _sweep(args).resolve().name if args.sweep else "answers"
    name = args.name or home + ("" if args.part == "test" else f"-{args.part}")
    return studies.folder(cli.workspace(args).root, name)


def _sweep(args: argparse.Namespace) -> Path:
    """Return the sweep's folder, which may be given by its name in the workspace."""
    given = Path(args.sweep)
    inside = cli.workspace(args).root / "sweeps" / args.sweep
    return inside if not given.is_dir() and inside.is_dir() else given


def _prepared(args: argparse.Namespace) -> Prepared:
    from tel_edge.eval.care.answers import cases
    from tel_edge.eval.care.judges import systems
    from tel_edge.eval.care.judges.asking import Material
    from tel_edge.eval.care.judges.verdicts import Study

    if args.dataset is None:
        raise InputError("--dataset DIR is needed: the data set whose dialogues were answered")
    say = partial(cli.say, args)
    of = cases.read(args.dataset, args.part)
    judged = (
        systems.of_sweep(_sweep(args), args.part, args.variant, args.dataset, say)
        if args.sweep
        else systems.of_files(args.answers)
    )
    chosen = systems.asked(judged, of, args.prompts, args.seed, say)
    prompts, folder = tuple(case.id for case in chosen), _folder(args)
    study = Study(
        folder.name, systems.backbone(judged), of.dataset, of.digest, of.part, prompts,
        systems.written_by(args.dataset, args.part),
        systems.placed(judged, cli.workspace(args).root, folder), (),
    )  # fmt: skip
    answers = systems.answers(judged, chosen)
    material = Material(
        {case.id: case for case in chosen},
        {(one.system, one.prompt): one for one in answers},
        of.others,
    )
    return Prepared(study, material, answers, sum(one.cut(prompts) for one in judged))


def _write(folder: Path, study: Study, prepared: Prepared) -> None:
    from tel_edge.eval.care.judges import people, studies

    studies.write_lines(folder / studies.PROMPTS, prepared.material.cases.values())
    studies.write_lines(folder / studies.ANSWERS, prepared.answers)
    studies.write_study(folder, people.with_people(folder, study))


def _judge(args: argparse.Namespace, folder: Path, prepared: Prepared) -> dict[str, Any]:
    from tel_edge.eval.care.judges import models, panels, studies
    from tel_edge.eval.care.judges.judging import Work

    rows = panels.USUAL if args.panel is None else panels.read(args.panel)
    rows = tuple(sorted(rows, key=lambda row: ORDER.index(row.kind)))
    cost = _prices(args, rows)
    judging = [models.judging(row, prepared.material, args.parallel, args.threads) for row in rows]
    study = replace(prepared.study, judges=tuple(one.judge for one in judging))

    def planned() -> Work:
        return Work(folder, study, judging, prepared.material, args.rubric, cost, args.seed)

    if args.dry_run:
        _tell_plan(planned(), prepared)
        return {"folder": str(folder), "study": asdict(study)}
    try:
        with lock.held(folder, args.wait, partial(cli.say, args), inside=True):
            made = planned()
            _check_sent(args, made)
            _tell_plan(made, prepared)
            _write(folder, study, prepared)
            left = sum(len(made.todo(one)) for one in judging)
            bar = progress.bar("tel-judge", "verdict", left, args.quiet)
            with bar:
                tallies = made.run(args.limit_cost, bar.update)
    finally:
        for one in judging:
            one.close()
    for tally in tallies:
        _tell(tally)
    if any(tally.unreadable for tally in tallies):
        print(f"what was unreadable is in {folder / studies.REPLIES}, and is not asked for again")
    if made.spent.cost:
        print(f"spent in this study: {made.spent.cost:.2f}")
    print(f"study: {folder}")
    print(_next(args, f"tel-report --study {folder.name}"))
    return {
        "folder": str(folder),
        "judges": [asdict(tally) for tally in tallies],
        "cost": round(made.spent.cost, 4),
        "exit_code": int(any(tally.failed for tally in tallies)),
    }


def _prices(args: argparse.Namespace, rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """Return the price of each endpoint: the panel's, or that of `--price`."""
    found = {row.name: row.price or args.price for row in rows if row.kind == "endpoint"}
    if args.limit_cost is not None and not any(map(any, found.values())):
        raise InputError("--limit-cost needs --price, or prices in the panel")
    return found


def _check_sent(args: argparse.Namespace, made: Work) -> None:
    """Refuse to send to other machines what may not be sent, before anything is."""
    from tel_edge.eval.care.judges.models import Endpoint

    for one in made.judging:
        if not isinstance(one, Endpoint) or not made.todo(one):
            continue
        if not (one.client.local or args.send):
            raise InputError(
                f"judge {one.row.name}: dialogues and answers would be sent to "
                f"{urlsplit(one.row.url).hostname}; pass --send if they may leave this machine"
            )
        one.check()
        if one.client.key and not (one.client.local or one.row.url.startswith("https:")):
            cli.say(args, f"warning: {one.row.key} goes to {one.row.url} unencrypted; use https")


def _tell_plan(made: Work, prepared: Prepared) -> None:
    """Print what is judged and what is asked of whom, before anything is."""
    study, cases = made.study, prepared.material.cases
    scenarios = len({case.scenario for case in cases.values()})
    print(
        f"study {study.name}: {len(study.systems)} systems, {len(made.compared)} pairs in both "
        f"orders, {len(cases)} prompts of {scenarios} scenarios ({study.part} part of "
        f"{study.dataset})"
    )
    if prepared.cut:
        print(f"{prepared.cut:,} of {len(prepared.answers):,} answers were cut at the limit")
    for one in made.judging:
        todo, name = made.todo(one), one.judge.name
        wanted = sum(ident[0] == name for of in (made.pairs, made.rubric) for ident, _ in of.plan)
        print(f"{_named(one.judge)}: {wanted:,} verdicts, {len(todo):,} to be made"
              + _sent(one, made, todo), flush=True)  # fmt: skip


def _sent(one: Judging, made: Work, todo: Sequence[Any]) -> str:
    from tel_edge.eval.care.judges.models import Endpoint

    if not isinstance(one, Endpoint) or not todo:
        return ""
    tokens = sum(one.size(wanted) for wanted in todo) // CHARACTERS
    read, _ = made.spent.prices[one.judge.name]
    cost = f", {tokens * read / 1e6:.2f} at least" if read else ""
    return (
        f" in as many requests to {urlsplit(one.row.url).hostname}, about {tokens:,} tokens to "
        f"read{cost}"
    )


def _named(judge: Any) -> str:
    of = {
        "standin": "stand-in, no judge of language",
        "gguf": f"file {judge.model}",
        "endpoint": judge.model,
    }
    return f"{judge.name} ({of[judge.kind]})"


def _tell(tally: Tally) -> None:
    """Print what came of one judge: a line, and one for each thing to know."""
    flips = f", {tally.flips / tally.both:.1%} flipped with the order" if tally.both else ""
    print(
        f"{_named(tally.judge)}: {tally.made:,} made, {tally.reused:,} reused, "
        f"{tally.missing:,} missing, {tally.unreadable:,} unreadable{flips}"
    )
    if tally.missing:
        why = sorted(tally.faults.items(), key=lambda one: -one[1])
        told = "; ".join(f"{count:,} x {text}" for text, count in why[:3])
        others = sum(count for _, count in why[3:])
        print(
            f"{tally.judge.name}: {tally.missing:,} not judged: {told}"
            + (f"; {others:,} x others" if others else "")
            + "; the same command asks for them again"
        )
    if tally.note:
        print(f"{tally.judge.name}: {tally.note}")
    if tally.own:
        print(f"{tally.judge.name}: of its own family: {', '.join(tally.own)}; it may favour it")


def _answers(text: str) -> str:
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r}: NAME=FILE is needed")
    return text


def parser() -> cli.Parser:
    """Return the command's options."""
    made = cli.parser(
        "tel-judge", "Have judges compare what systems answered to customers.", "seed", "wait"
    )
    given = os.environ.get("TEL_DATASET") or None
    made.add_argument("--sweep", metavar="DIR|NAME", help="a sweep of care, whose runs are judged")
    made.add_argument(
        "--answers", type=_answers, nargs="+", metavar="NAME=FILE", default=[],
        help="the care.jsonl of each system instead, as tel-eval leaves it",
    )  # fmt: skip
    made.add_argument(
        "--variant", metavar="NAME",
        help="whose answers of each run (the largest with an adapter that all have)",
    )  # fmt: skip
    made.add_argument(
        "--dataset", type=cli.folder, metavar="DIR", default=given,
        help="the data set whose dialogues were answered (env TEL_DATASET)",
    )  # fmt: skip
    made.add_argument(
        "--part", choices=("test", "unseen", "validation"), default="test", help="(%(default)s)"
    )
    made.add_argument(
        "--prompts", type=cli.positive, default=144, metavar="N",
        help="dialogues, of as many scenarios as there are (%(default)s)",
    )  # fmt: skip
    made.add_argument(
        "--panel", type=Path, metavar="FILE",
        help="who judges, see docs/judging.md (two stand-ins that need no model)",
    )  # fmt: skip
    made.add_argument("--name", help="of the study (the sweep's, or answers)")
    made.add_argument(
        "--no-rubric", dest="rubric", action="store_false", help="compare, and give no marks"
    )
    made.add_argument(
        "--dry-run", action="store_true", help="print what would be asked of whom, and end"
    )
    model_options(made, "dialogues and answers")
    made.add_argument(
        "--annotate", type=cli.positive, metavar="N",
        help="write a page on which a person compares N pairs",
    )  # fmt: skip
    made.add_argument(
        "--annotator", default="person", metavar="NAME", help="who that is (%(default)s)"
    )
    made.add_argument(
        "--labels", type=Path, nargs="+", metavar="FILE", help="read back what people said"
    )
    return made


def main() -> None:
    """Run the command."""
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
