"""`tel-train`: one LoRA adapter per category, or one for all, over one frozen backbone."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tel_edge.runtime import cli, extras
from tel_edge.runtime.bundles import backbones
from tel_edge.runtime.device import child, memory
from tel_edge.runtime.errors import WorkError
from tel_edge.runtime.files import digest, lock, ownership
from tel_edge.runtime.files.atomic import replace_folder, write_text
from tel_edge.train.job import RECORD, WEIGHTS, Over, TrainingJob, jobs
from tel_edge.train.recipes import LOSSES, SELECTIONS, TARGETS

SCHEMA_VERSION = 1
# Rounds that a waiting thread spins before it sleeps: with fewer an idle machine loses more than a
# tenth, with the library's 300,000 a busy one half of what it has left (docs/training.md).
SPINS = 10_000
# How a full disk reads: from the system and safetensors, and from torch's writer.
FULL = ("No space left", "unexpected pos", "PytorchStreamWriter failed")


def finished(folder: Path, job: TrainingJob) -> dict[str, Any] | None:
    """Return the record of a finished adapter of this very job, or None."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = (folder / WEIGHTS).is_file()
    return record if whole and record.get("digest") == job.digest else None


def with_scores(job: TrainingJob, out: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Score a finished adapter that was trained without it, and put that into its record."""
    from tel_edge.train.trainer import enough_memory, processes, tested

    passing = out.with_name(f".{out.name}.scored")
    with enough_memory(), dequantized(job, passing, processes()) as weights:
        record = {**record, "test": tested(job, out, weights or job.folder)}
    write_text(out / RECORD, json.dumps(record, indent=1) + "\n")
    return record


def train(job: TrainingJob, out: Path, resume: bool, quiet: bool) -> dict[str, Any]:
    """Train `job` and put the PEFT folder with its `training.json` at `out`; return the record.

    Until it is finished everything is in a hidden sibling folder, whose checkpoints a later call
    with `resume` goes on from. Raises `WorkError` when the loss is no number any more.
    """
    from tel_edge.train.trainer import enough_memory, fit, processes

    partial, every = out.with_name(f".{out.name}.partial"), processes()
    if every.is_main_process:
        mark = partial / "job.json"
        same = mark.is_file() and mark.read_text(encoding="utf-8") == job.digest
        if partial.exists() and not (resume and same):
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        write_text(mark, job.digest)
    every.wait_for_everyone()
    with enough_disk(partial), enough_memory(), dequantized(job, partial, every) as weights:
        made = fit(job, partial, quiet, weights)
    record = {
        "schema_version": SCHEMA_VERSION,
        "digest": job.digest,
        "category": job.name,
        "dataset": job.dataset,
        "split": job.parts.digest,
        "splits": dict(job.splits),
        "seed": job.seed,
        "backbone": {
            **job.bound["backbone"],
            "tokenization": digest.of_tokenization(job.folder),
            "revision": backbones.commit(job.folder),
        },
        "over": {"quant": job.over.quant, "sha256": job.over.sha256} if job.over else None,
        "prompt": job.bound["prompt"],
        "config": asdict(job.recipe),
        "rows": {
            "train": len(job.shown),
            "train_uncapped": len(job.parts.train),
            "validation": len(job.parts.validation),
            "test": len(job.parts.test),
            "rejected": job.rejected,
            "shared": job.shared,
        },
        **made,
        "peak_memory": memory.now().peak,
        "versions": versions(),
    }
    every.wait_for_everyone()
    if every.is_main_process:
        adapter = partial / "adapter"
        write_text(adapter / RECORD, json.dumps(record, indent=1) + "\n")
        replace_folder(adapter, out)
        shutil.rmtree(partial)
    every.wait_for_everyone()
    return record


@contextmanager
def dequantized(job: TrainingJob, partial: Path, every: Any) -> Iterator[Path | None]:
    """Give a folder with the weights that `--over-quant` trains on, None where it is not asked for.

    The first of `every` process makes it, with the export's command, since training and export meet
    on disk only.
    """
    if job.over is None:
        yield None
        return
    folder = partial / "dequantized"
    try:
        if every.is_main_process:
            _dequantize(job.over, job.folder, folder)
        every.wait_for_everyone()
        yield folder
        every.wait_for_everyone()
    finally:
        if every.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)


def _dequantize(over: Over, folder: Path, out: Path) -> None:
    command = child.command("tel_edge.export.gguf.dequantize", "dequantize")
    # A file, which unlike a pipe never fills up.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as told:
        argv = [*command, str(over.path), str(folder), str(out)]
        code = child.finished(child.started(argv, stdout=subprocess.DEVNULL, stderr=told))
        told.seek(0)
        said = told.read().strip().splitlines() or ["it says nothing"]
    if code:
        raise WorkError(f"{over.path.name} cannot be dequantized: {said[-1]}")


@contextmanager
def enough_disk(folder: Path) -> Iterator[None]:
    """Turn a full disk, which the libraries report in their own ways, into one clear error."""
    try:
        yield
    except Exception as error:
        if isinstance(error, WorkError) or not any(text in str(error) for text in FULL):
            raise
        raise WorkError(
            f"{folder}: the disk is full; make room and run the same command again, it goes on "
            "from the last whole checkpoint"
        ) from error


def versions() -> dict[str, str]:
    """Return the versions of what an adapter depends on."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "peft", "tel-edge")}


def work(args: argparse.Namespace) -> dict[str, Any]:
    """Train what is not finished yet."""
    for module in ("torch", "transformers", "peft", "accelerate"):
        extras.check(module, "train")
    first = not int(os.environ.get("RANK", "0"))
    if not first:
        # Of several processes of one training the first one speaks.
        args.quiet, sys.stdout = True, open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    done = []
    todo = jobs(args)
    home = cli.workspace(args)
    ownership.check_adapters(home, todo[0].backbone.name, todo[0].bound["backbone"]["weights"])
    for job in todo:
        if job.shared:
            cli.say(
                args,
                f"{job.stem}: {job.shared} questions are left out, whose text another category "
                "holds out",
            )
        out = home.adapter(job.backbone.name, job.stem)
        record = _reused(args, job, out)
        if record is None:
            # Of several processes of one training the first one has the folder.
            with lock.held(out, args.wait, partial(cli.say, args)) if first else nullcontext():
                record = _made(args, job, out)
        _warn(args, job, out, record)
        best = record["best"]
        print(
            f"{job.stem:<12} validation Pass@1 {best['validation_pass1']:.3f}  "
            f"loss {best['validation_loss']:.3f}  epoch {best['epoch']:.0f}  "
            f"{record['seconds']:.0f} s{_joules(record)}  {out}",
            flush=True,
        )
        for scored in record.get("test") or ():
            print(
                f"  {scored['category']:<12} test Pass@1 {scored['pass1']['value']:.3f}  "
                f"Maj@4 {scored['majority']['value']:.3f}  of {scored['questions']}",
                flush=True,
            )
        done.append({"category": job.name, "path": str(out), **best})
    return {"backbone": todo[0].backbone.name, "adapters": done}


def _reused(args: argparse.Namespace, job: TrainingJob, out: Path) -> dict[str, Any] | None:
    """Return the record of the finished adapter, None where something is still to be done."""
    record = finished(out, job) if args.resume else None
    if record is None or (job.scored and "test" not in record):
        return None
    cli.say(args, f"{job.stem}: finished before, reused")
    return record


def _made(args: argparse.Namespace, job: TrainingJob, out: Path) -> dict[str, Any]:
    """Train the adapter, or score it, unless another command has done so meanwhile."""
    if record := _reused(args, job, out):
        return record
    if args.resume and (record := finished(out, job)):
        cli.say(args, f"{job.stem}: finished before, reused")
        return with_scores(job, out, record)
    if (out / RECORD).is_file():
        cli.say(
            args,
            f"{job.stem}: the adapter that is there is of another training and will be replaced; "
            "pass another --workspace to keep both",
        )
    cli.say(
        args,
        f"{job.stem}: {len(job.shown)} questions to train on, {len(job.parts.validation)} to "
        "validate on after each epoch",
    )
    if job.shared and _mixed(out):
        cli.say(args, f"{job.stem}: the adapter of before was trained on some of those")
    return train(job, out, args.resume, args.quiet)


def _mixed(folder: Path) -> bool:
    """Return whether the adapter there is of before texts that categories share were left out."""
    try:
        rows = json.loads((folder / RECORD).read_text(encoding="utf-8"))["rows"]
        return "shared" not in rows
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _warn(args: argparse.Namespace, job: TrainingJob, out: Path, record: dict[str, Any]) -> None:
    if record["too_long"]:
        cli.say(
            args,
            f"{job.stem}: {record['too_long']} questions are longer than the backbone's context "
            "and were left out",
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
        "Train one LoRA adapter per category over a frozen backbone.",
        "backbone",
        "dataset",
        "category",
        "seed",
        "wait",
    )
    made.add_argument(
        "--recipe", metavar="NAME", help="paper or nano (nano for tel-nano, paper for all others)"
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
        "--max-train",
        type=cli.positive,
        metavar="N",
        help="train on at most N questions of each category",
    )
    made.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="reuse finished adapters and go on from checkpoints; --no-resume trains anew",
    )
    return made


def spin_shortly() -> None:
    """Let the threads of GNU's OpenMP sleep soon while they wait, unless the user says otherwise.

    By default they spin for milliseconds, and where something else wants the cores one spins for
    another that is not running. The variable is read once, when torch is loaded. Source: manual of
    libgomp, GOMP_SPINCOUNT.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def main() -> None:
    """Run the command."""
    spin_shortly()
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
