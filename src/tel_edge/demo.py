"""`tel-demo`: the whole path on the embedded default, each stage a command of its own.

With `--study` it is the path of the customer-support study: dialogues, a sweep, the answers of
every run, judges, a report.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tel_edge.runtime import cli, extras
from tel_edge.runtime.bundles import backbones
from tel_edge.runtime.device import child
from tel_edge.runtime.errors import InputError, Terminated, WorkError
from tel_edge.runtime.files.atomic import write_text
from tel_edge.runtime.questions.categories import categories

# Module that holds the command, its name, and what it needs, to say so before minutes of work.
STAGES = {
    "tel-train": "tel_edge.train.commands.train",
    "tel-export": "tel_edge.export.commands.export",
    "tel-eval": "tel_edge.eval.commands.evaluate",
    "tel-report": "tel_edge.eval.commands.report",
    "tel-generate": "tel_edge.eval.commands.generate",
    "tel-sweep": "tel_edge.train.commands.sweep",
    "tel-judge": "tel_edge.eval.commands.judge",
}
NEEDS = (
    ("torch", "train"),
    ("peft", "train"),
    ("gguf", "export"),
    ("llama_cpp", "llama"),
    ("sklearn", "report"),
    ("matplotlib", "report"),
)
STUDY_NEEDS = (*NEEDS, ("datasketch", "care"), ("sacrebleu", "care"))

EMBEDDED = "tel-nano"
# Questions and epochs of a backbone that is many times the embedded one.
BRIEF = (150, 3)
# The demo's study: dialogues to train on, epochs, and dialogues that every run answers.
STUDIED = (384, 1, 24)
# The embedded backbone was never talked to, so it gets the plainest way to be.
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def commands(args: argparse.Namespace) -> list[list[str]]:
    """Return the command lines of the demo, in order, as a user would type them."""
    shared = ["--workspace", str(args.workspace), "--backbone", args.backbone]
    source = ["--dataset", args.dataset, "--seed", str(args.seed)]
    source += ["--strict"] if args.strict else []
    data = [*source, "--category", args.category]
    quiet = ["--quiet"] if args.quiet else []
    most, turns = args.max_train, args.epochs
    if args.backbone != EMBEDDED:
        # To see the path, minutes of training are enough; tel-train itself is not in a hurry.
        most, turns = most or BRIEF[0], turns or BRIEF[1]
    cap = ["--max-train", str(most)] if most else []
    epochs = ["--epochs", str(turns)] if turns else []
    recipe = ["--recipe", args.recipe] if args.recipe else []
    names = ",".join(row.name for row in categories(args.category))
    # With one category there is nothing to choose between.
    router = ["--router"] if "," in names else []
    export = ["--adapter", names, "--quant", args.quant, *router]
    return [
        ["tel-train", *shared, *data, *recipe, *cap, *epochs, *quiet],
        ["tel-export", *shared, *source, *export, *quiet],
        ["tel-eval", *shared, *data, "--baselines", *quiet],
        ["tel-report", *shared, *quiet],
    ]


def talking(folder: Path) -> Path:
    """Return `folder` with the embedded backbone in it, as one that has a chat template."""
    shutil.copytree(backbones.embedded(), folder, dirs_exist_ok=True)
    told = json.loads((folder / "tokenizer_config.json").read_text())
    told["chat_template"] = TEMPLATE
    write_text(folder / "tokenizer_config.json", json.dumps(told, indent=2) + "\n")
    return folder


def study_commands(args: argparse.Namespace) -> Iterator[list[str]]:
    """Yield the command lines of the study; those of its runs once there are any.

    Raises `InputError` for options that mean nothing in it.
    """
    usual = parser().parse_args([])
    for name in ("dataset", "category", "quant", "recipe", "strict"):
        if getattr(args, name) != getattr(usual, name):
            raise InputError(f"--{name}: means nothing with --study")
    home, quiet = args.workspace, ["--quiet"] if args.quiet else []
    backbone = args.backbone
    if backbone == EMBEDDED:
        backbone = str(talking(home / "tel-nano-chat"))
    dialogues = str(home / "dialogues")
    most, turns, asked = args.max_train or STUDIED[0], args.epochs or STUDIED[1], str(STUDIED[2])
    seed = ["--seed", str(args.seed)]
    data = ["--dataset", dialogues, *seed]
    yield ["tel-generate", "--out", dialogues, "--each", "1", *seed, *quiet]
    rates = ["--grid", "learning-rate=5e-4,4e-3", "--grid", "rank=16"]
    sets = ["--grid", "targets=qv,all", "--set", f"max-train={most}", "--set", f"epochs={turns}"]
    shared = ["--workspace", str(home), "--backbone", backbone]
    yield [
        "tel-sweep", *shared, "--preset", "care", "--category", "care", *data, *rates, *sets,
        "--jobs", "2", *quiet,
    ]  # fmt: skip
    for run_ in sorted((home / "sweeps" / "care" / "runs").iterdir()):
        own = ["--workspace", str(run_), "--backbone", backbone]
        yield ["tel-export", *own, *data, "--adapter", "care", "--quant", "Q8_0", *quiet]
        yield ["tel-eval", *own, *data, "--category", "care", "--no-bare", "--limit", asked,
               "--max-tokens", "96", *quiet]  # fmt: skip
    there = ["--workspace", str(home)]
    yield ["tel-judge", *there, "--sweep", "care", "--dataset", dialogues, *seed, *quiet]
    yield ["tel-report", *there, "--study", "care", "--dataset", dialogues, *quiet]


def run(command: Sequence[str]) -> float:
    """Run one stage in a process of its own and return its seconds.

    Raises `InputError` or `WorkError` for its exit code; the stage has said why by then.
    """
    began = time.monotonic()
    name, *argv = command
    code = child.finished(child.started([*child.command(STAGES[name], name), *argv]))
    if code == 2:
        raise InputError(f"{command[0]} refused its input (see above)")
    if code == 130:
        raise KeyboardInterrupt
    if code == 143:
        raise Terminated
    if code:
        raise WorkError(f"{command[0]} failed with exit code {code}; run tel-demo again to go on")
    return time.monotonic() - began


def work(args: argparse.Namespace) -> dict[str, Any]:
    """Train, export, score and report; each stage reuses what an earlier run finished."""
    for module, extra in STUDY_NEEDS if args.study else NEEDS:
        extras.check(module, extra)
    seconds: dict[str, float] = {}
    for command in study_commands(args) if args.study else commands(args):
        cli.say(args, f"\n$ {shlex.join(command)}")
        seconds[command[0]] = round(seconds.get(command[0], 0.0) + run(command), 1)
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    cli.say(args, f"\ntel-demo: {sum(seconds.values()):.0f} s in all ({spent})")
    return {"seconds": seconds}


def parser() -> cli.Parser:
    """Return the command's options."""
    made = cli.parser(
        "tel-demo",
        "Train, export, score and report: the whole path on the embedded default.",
        "backbone",
        "dataset",
        "category",
        "seed",
    )
    made.set_defaults(category="oranbench,teleqna")
    made.add_argument(
        "--study", action="store_true", help="dialogues, a sweep, judges and their report instead"
    )
    made.add_argument(
        "--quant", default="F16,Q8_0,Q4_K_M", metavar="TYPES", help="types to export (%(default)s)"
    )
    made.add_argument("--recipe", metavar="NAME", help="of the training; see tel-train")
    made.add_argument(
        "--max-train",
        type=cli.positive,
        metavar="N",
        help=f"cap of questions to train on ({BRIEF[0]} for a backbone that is not embedded)",
    )
    made.add_argument(
        "--epochs",
        type=cli.positive,
        metavar="N",
        help=f"at most; instead of the recipe's ({BRIEF[1]} for a backbone that is not embedded)",
    )
    return made


def main() -> None:
    """Run the command."""
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
