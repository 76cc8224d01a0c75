"""How short a prompt may be: `python scripts/bench_prompt.py --workspace DIR --out FILE`.

What a question costs is its tokens. For each form of the prompt and each seed an adapter is trained
and scored on the test part, both by tel-train in a process in which the prompt has that form;
beside it stands how many tokens a question has, and how many of them are computed where a window of
questions shares what they begin with. Finished adapters are reused, so a run that ended goes on.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from bench_tables import check_ended, head, keep, line, machine, seeds_option

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.benchmarks.split import split
from tel_edge.eval.folders import loading
from tel_edge.eval.from_gguf import fetching
from tel_edge.eval.reports.tables import percent, points
from tel_edge.eval.statistics import Share, difference, share, stored_share
from tel_edge.runtime import cli
from tel_edge.runtime.bundles import backbones
from tel_edge.runtime.engines import packing
from tel_edge.runtime.errors import WorkError
from tel_edge.runtime.questions import prompt
from tel_edge.runtime.questions.categories import category
from tel_edge.runtime.questions.question import Question

# Questions that are answered together, tokens and sequences of a decode: what tel-run has.
WINDOW, TOKENS, SEQUENCES = 256, 512, 63


@dataclass(frozen=True)
class Form:
    """A way of asking: what comes first, before an option's text after its letter, and last."""

    name: str
    header: str = prompt.HEADER
    after: str = ") "
    end: str = "\nAnswer:"

    def render(self, question: Question) -> str:
        """Return the prompt of a question with options."""
        pairs = zip(prompt.LETTERS, question.choices, strict=False)
        lines = [question.text, *(f"{letter}{self.after}{text}" for letter, text in pairs)]
        return self.header + "\n".join(lines) + self.end


FORMS = {
    form.name: form
    for form in (
        Form("as it is"),
        Form("no header", header=""),
        Form("letters alone", after=" "),
        Form("short end", end="\n:"),
        Form("all three", header="", after=" ", end="\n:"),
    )
}


@dataclass(frozen=True)
class Tokens:
    """Means of a question: in its prompt, and computed, alone and in windows that are shared."""

    prompt: float
    alone: float
    windows: float
    ordered: float


def counted(form: Form, questions: Sequence[Question], tokenizer: Any) -> Tokens:
    """Return the tokens of questions whose common beginning is kept."""
    texts = [form.render(question) for question in questions]
    ids = tokenizer(texts, split_special_tokens=True)["input_ids"]
    kept = len(tokenizer([form.header], split_special_tokens=True)["input_ids"][0])
    windows = [ids[at : at + WINDOW] for at in range(0, len(ids), WINDOW)]
    return Tokens(
        statistics.mean(map(len, ids)),
        statistics.mean(len(one) - kept for one in ids),
        sum(_computed(each, kept) for each in windows) / len(ids),
        _computed(ids, kept) / len(ids),
    )


def _computed(prompts: Sequence[Sequence[int]], kept: int) -> int:
    cost, room = packing.Cost(0, 1, 1), packing.Cost(TOKENS, SEQUENCES, SEQUENCES)
    total = 0
    for decode in packing.bins(prompts, kept, [cost] * len(prompts), room):
        of = [prompts[at] for at in decode]
        total += sum(map(len, packing.tree(of, kept, [(at,) for at in range(len(of))])))
    return total


@dataclass(frozen=True)
class Asked:
    """What a form costs and gets: means over all seeds, and Pass@1 of each and of all together."""

    form: str
    tokens: Tokens
    seeds: Mapping[int, Share]
    pass1: Share


def measured(
    args: argparse.Namespace, form: Form, tests: Mapping[int, Sequence[Question]], tokenizer: Any
) -> Asked:
    """Count and score a form on the test part that each seed deals."""
    counts, scores = [], {}
    for seed, test in tests.items():
        cli.say(args, f"{form.name}, seed {seed}: training")
        counts.append(astuple(counted(form, test, tokenizer)))
        scores[seed] = scored(args, form, seed)
    right, total = (sum(getattr(one, name) for one in scores.values()) for name in ("right", "of"))
    means = Tokens(*map(statistics.mean, zip(*counts, strict=True)))
    return Asked(form.name, means, scores, share(right, total))


def scored(args: argparse.Namespace, form: Form, seed: int) -> Share:
    """Train an adapter that is asked in that form; return its Pass@1 on the test part."""
    home = cli.workspace(args).root / f"seed-{seed}" / form.name.replace(" ", "-")
    given = ["--workspace", str(home), "--backbone", args.backbone, "--dataset", args.dataset]
    given += ["--category", args.category, "--seed", str(seed), "--score", "--quiet"]
    command = [sys.executable, __file__, "--asked", form.name, *given, *args.train]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    check_ended(form.name, done)
    name = backbones.find(args.backbone).name
    record = json.loads((home / "adapters" / name / args.category / "training.json").read_text())
    [score] = record["test"]
    return stored_share(score["pass1"])


def asked(name: str, argv: Sequence[str]) -> int:
    """Run tel-train in this process with the prompt in another form; return its exit code."""
    # Before anything has taken the function by its name. Where nothing is changed nothing is put in
    # its place, and the adapter is one for the product's prompt.
    if FORMS[name] != Form(name):
        prompt.render = FORMS[name].render
    from tel_edge.train.commands import train

    sys.argv = ["tel-train", *argv]
    return cli.run(train.parser(), train.work)


def work(args: argparse.Namespace) -> Mapping[str, Any]:
    """Measure every form and print the table."""
    of = category(args.category)
    if of.labels:
        raise WorkError(f"{of.name}: its answers are not letters")
    tokenizer = loading.tokenizer(fetching.fetch(backbones.find(args.backbone)).folder)
    questions = benchmark.read(args.dataset, of).questions
    tests = {seed: split(questions, seed).test for seed in args.seeds}
    rows = [measured(args, FORMS[name], tests, tokenizer) for name in args.form or FORMS]
    text = table(rows) + f"\n\n{args.backbone}, {of.name}; {machine()}\n"
    print(text, end="")
    document = [asdict(row) for row in rows]
    keep(args.out, text, document)
    return {"forms": document}


def table(rows: Sequence[Asked]) -> str:
    """Return a line for each form; all are compared with the first."""
    names = ("tokens", "computed alone", f"in windows of {WINDOW}", "in order of all")
    seeds = [f"seed {seed}" for seed in rows[0].seeds]
    lines = [*head("form", *names, *seeds, "Pass@1", f"beside {rows[0].form}")]
    for row in rows:
        counts = [f"{count:.1f}" for count in astuple(row.tokens)]
        each = [f"{100 * of.value:.1f}" for of in row.seeds.values()]
        beside = "" if row is rows[0] else points(difference(row.pass1, rows[0].pass1))
        lines.append(line(row.form, *counts, *each, percent(row.pass1), beside))
    return "\n".join(lines)


def parser() -> cli.Parser:
    """Return the options."""
    made = cli.parser(
        "bench_prompt.py",
        "Measure how short a prompt may be: tokens, and accuracy of adapters trained with it.",
        *("backbone", "dataset"),
    )
    made.add_argument("--category", default="oranbench", metavar="NAME", help="(%(default)s)")
    made.add_argument(
        "--form", action="append", choices=FORMS, help="one of them; repeatable (all)"
    )
    seeds_option(made, "each deals its own test part and trains its own adapters")
    made.add_argument(
        "--train", type=shlex.split, metavar="OPTIONS", default=[], help="for tel-train, in quotes"
    )
    made.add_argument("--out", type=Path, metavar="FILE", help="the table, and JSON beside it")
    return made


def main() -> None:
    """Run the benchmark, or tel-train for it."""
    if sys.argv[1:2] == ["--asked"]:
        sys.exit(asked(sys.argv[2], sys.argv[3:]))
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
