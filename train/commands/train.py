"""`tel-train`: one LoRA adapter per category, or one for all, over one frozen backbone."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from tel_edge.runtime import cli, extras
from tel_edge.runtime.files import lock, ownership
from tel_edge.runtime.questions.categories import SPOKEN
from tel_edge.train.dialogues import job as dialogues
from tel_edge.train.job import RECORD, WEIGHTS, Job, jobs
from tel_edge.train.recipes import LOSSES, RECIPES, SELECTIONS, TARGETS
from tel_edge.train.training import Fit, Tested, finished, spin_shortly, train, with_scores


def work(args: argparse.Namespace) -> dict[str, Any]:
    """Train what is not finished yet."""
    for module in ("torch", "transformers", "peft", "accelerate"):
        extras.check(module, "train")
    first = not int(os.environ.get("RANK", "0"))
    if not first:
        # Of several processes of one training the first one speaks.
        args.quiet, sys.stdout = True, open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    done: list[dict[str, Any]] = []
    spoken = dialogues.spoken(args.category)
    todo: Sequence[Job] = dialogues.jobs(args) if spoken else jobs(args)
    home = cli.workspace(args)
    ownership.check_adapters(home, todo[0].backbone.name, todo[0].bound["backbone"]["weights"])
    for job in todo:
        if shared := job.about["rows"]["shared"]:
            cli.say(args, f"{job.stem}: {shared} {SHARED[spoken]}")
        out = home.adapter(job.backbone.name, job.stem)
        record = _reused(args, job, out)
        if record is None:
            # Of several processes of one training the first one has the folder.
            with lock.held(out, args.wait, partial(cli.say, args)) if first else nullcontext():
                record = _made(args, job, out, spoken)
        _warn(args, job, out, record)
        best = record["best"]
        said = _losses(record) if spoken else _accuracy(best)
        print(
            f"{job.stem:<12} {said}  epoch {best['epoch']:.0f}  "
            f"{record['seconds']:.0f} s{_joules(record)}  {out}",
            flush=True,
        )
        if spoken:
            print(f"  the last epoch's: {out.with_name(f'{out.name}-last')}", flush=True)
        for scored in record.get("test") or ():
            print(
                f"  {scored['category']:<12} test Pass@1 {scored['pass1']['value']:.3f}  "
                f"Maj@4 {scored['majority']['value']:.3f}  of {scored['questions']}",
                flush=True,
            )
        done.append({"category": job.name, "path": str(out), **best})
    return {"backbone": todo[0].backbone.name, "adapters": done}


# What is left out of a training, of questions and of dialogues.
SHARED = (
    "questions are left out, whose text another category holds out",
    "dialogues are left out, which stand in another part of the data set too",
)


def _accuracy(best: Mapping[str, Any]) -> str:
    return f"validation Pass@1 {best['validation_pass1']:.3f}  loss {best['validation_loss']:.3f}"


def _losses(record: Mapping[str, Any]) -> str:
    made = record["losses"]
    parts = [f"{name} loss {of['loss']:.3f}" for name, of in made.items()]
    parts.append(f"perplexity {made['validation']['perplexity']:.2f}")
    stopped = (record.get("stop_rate") or {}).get("stopped")
    parts += [f"stops {stopped['value']:.0%} of {stopped['of']}"] if stopped else []
    return "  ".join(parts)


def _reused(args: argparse.Namespace, job: Job, out: Path) -> dict[str, Any] | None:
    """Return the record of the finished adapter, None where something is still to be done."""
    record = finished(out, job) if args.resume else None
    if record is None or not job.measured(record):
        return None
    cli.say(args, f"{job.stem}: finished before, reused")
    return record


def _made(args: argparse.Namespace, job: Job, out: Path, spoken: bool) -> dict[str, Any]:
    """Train the adapter, or score it, unless another command has done so meanwhile."""
    fit: Fit | None = None
    tested: Tested | None = None
    if spoken:
        from tel_edge.train.dialogues import fitting

        fit, tested = fitting.fit, fitting.stopped_again
    if record := _reused(args, job, out):
        return record
    if args.resume and (record := finished(out, job)):
        cli.say(args, f"{job.stem}: finished before, reused")
        return with_scores(job, out, record, args.quiet, tested)
    if (out / RECORD).is_file():
        cli.say(
            args,
            f"{job.stem}: the adapter that is there is of another training and will be replaced; "
            "pass another --workspace to keep both",
        )
    rows, what = job.about["rows"], "dialogues" if spoken else "questions"
    cli.say(
        args,
        f"{job.stem}: {rows['train']} {what} to train on, {rows['validation']} to "
        "validate on after each epoch",
    )
    if rows["shared"] and _mixed(out):
        cli.say(args, f"{job.stem}: the adapter of before was trained on some of those")
    return train(job, out, args.resume, args.quiet, fit)


def _mixed(folder: Path) -> bool:
    """Return whether the adapter there is of before texts that categories share were left out."""
    try:
        rows = json.loads((folder / RECORD).read_text(encoding="utf-8"))["rows"]
        return "shared" not in rows
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _warn(args: argparse.Namespace, job: Job, out: Path, record: dict[str, Any]) -> None:
    if record["too_long"]:
        kind = "dialogues" if job.name in SPOKEN else "questions"
        cli.say(
            args,
            f"{job.stem}: {record['too_long']} {kind} are longer than the backbone's context and "
            "were left out",
        )
    if _idle(out):
        cli.say(
            args,
            f"warning: {job.stem}: every lora_B is zero, so the adapter changes nothing; the rate "
            "of so few steps was that of the warm-up: train on more questions, or for more epochs",
        )


def _idle(folder: Path) -> bool:
    from safetensors.numpy import load_file

    tensors = load_file(folder / WEIGHTS)
    return not any(value.any() for name, value in tensors.items() if "lora_B" in name)


def _joules(record: dict[str, Any]) -> str:
    joules = (record.get("energy") or {}).get("joules")
    return "" if joules is None else f"  {joules:,.0f} J"


def parser() -> cli.Parser:
    """Return the command's options."""
    made = cli.parser(
        "tel-train",
        "Train one LoRA adapter per category over a frozen backbone, of questions, or with "
        "--category care of dialogues (--dataset DIR).",
        "backbone",
        "dataset",
        "category",
        "spoken",
        "seed",
        "wait",
    )
    made.add_argument(
        "--recipe",
        metavar="NAME",
        help=f"{', '.join(RECIPES)} (nano for tel-nano, paper for all others)",
    )
    made.add_argument(
        "--joint", action="store_true", help="one adapter for all of --category together"
    )
    made.add_argument("--rank", type=cli.positive, metavar="R", help="instead of the recipe's")
    made.add_argument("--alpha", type=cli.positive, metavar="A", help="instead of the recipe's")
    made.add_argument(
        "--targets",
        metavar="SET|A,B",
        help=f"projections: {', '.join(TARGETS)}, or names with commas; instead of the recipe's",
    )
    made.add_argument("--dropout", type=float, metavar="P", help="instead of the recipe's")
    made.add_argument("--rslora", action="store_true", help="scale by alpha / sqrt(rank)")
    made.add_argument(
        "--loss", choices=LOSSES, help="over the answer's token or all tokens (the recipe's)"
    )
    made.add_argument(
        "--select-by",
        choices=SELECTIONS,
        help="what is best of the validation part, and stops training (the recipe's: loss)",
    )
    made.add_argument(
        "--over-quant",
        metavar="TYPE",
        help="train on the dequantized weights of the bundle's GGUF file of that type",
    )
    made.add_argument(
        "--revision", metavar="REV", help="branch, tag or commit of the backbone on the hub"
    )
    made.add_argument(
        "--checkpointing",
        action="store_true",
        help="compute activations again instead of keeping them: less memory, more time",
    )
    made.add_argument(
        "--score", action="store_true", help="score the test part afterwards, in this process"
    )
    made.add_argument(
        "--stop-rate",
        type=cli.positive,
        metavar="N",
        help="of dialogues: write N answers of the test part and count those that end",
    )
    made.add_argument(
        "--watts",
        type=float,
        metavar="W",
        help="a stated power of this machine, for an energy column of its own",
    )
    made.add_argument(
        "--epochs", type=cli.positive, metavar="N", help="at most; instead of the recipe's"
    )
    made.add_argument("--batch", type=cli.positive, metavar="N", help="instead of the recipe's")
    made.add_argument("--learning-rate", type=float, metavar="X", help="instead of the recipe's")
    made.add_argument(
        "--orders",
        type=cli.positive,
        metavar="N",
        help="times that a question is shown in an epoch, each with its choices in another order",
    )
    made.add_argument(
        "--exchanged",
        type=float,
        metavar="P",
        help="share of these with other wrong choices; instead of the recipe's",
    )
    made.add_argument(
        "--told",
        type=float,
        metavar="P",
        help="share of these with the answer in the question; instead of the recipe's",
    )
    made.add_argument(
        "--max-train",
        type=cli.positive,
        metavar="N",
        help="train on at most N questions of each category, or dialogues, and choose the epoch "
        "by as few",
    )
    made.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="reuse finished adapters and go on from checkpoints; --no-resume trains anew",
    )
    return made


def main() -> None:
    """Run the command."""
    spin_shortly()
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
