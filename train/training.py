"""One training from its job to a finished adapter's folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tel_edge.eval.folders import checkpoint, contents, hub_card
from tel_edge.eval.from_gguf.source import opened
from tel_edge.eval.from_gguf.weights import write as write_weights
from tel_edge.runtime.bundles import backbones
from tel_edge.runtime.bundles.backbones import Backbone
from tel_edge.runtime.device import memory
from tel_edge.runtime.errors import WorkError
from tel_edge.runtime.files import digest
from tel_edge.runtime.files.atomic import replace_folder, write_text
from tel_edge.train import card
from tel_edge.train.job import RECORD, WEIGHTS, Job, Over

# Trains a job in a folder, quietly or not, over other weights if any: what is to be recorded.
Fit = Callable[[Any, Path, bool, Path | None], dict[str, Any]]
# Measures a job's adapter in a folder, over those weights, quietly or not: what is recorded.
Tested = Callable[[Any, Path, Path, bool], dict[str, Any]]

SCHEMA_VERSION = 1
# Rounds that a waiting thread spins before it sleeps: with fewer an idle machine loses more than a
# tenth, with the library's 300,000 a busy one half of what it has left (docs/training.md).
SPINS = 10_000
# How a full disk reads: from the system and safetensors, and from torch's writer.
FULL = ("No space left", "unexpected pos", "PytorchStreamWriter failed")


def finished(folder: Path, job: Job) -> dict[str, Any] | None:
    """Return the record of a finished adapter of this very job, or None."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = (folder / WEIGHTS).is_file()
    return record if whole and record.get("digest") == job.digest else None


def with_scores(
    job: Job, out: Path, record: dict[str, Any], quiet: bool, tested: Tested | None = None
) -> dict[str, Any]:
    """Measure a finished adapter that was trained without it, and put that into its record.

    `tested` is what measures it, by default the scores of questions.
    """
    from tel_edge.train import trainer
    from tel_edge.train.trainer import enough_memory, processes

    passing = out.with_name(f".{out.name}.scored")
    with enough_memory(), dequantized(job, passing, processes()) as weights:
        measure: Tested = tested or trainer.tested
        record = {**record, **measure(job, out, weights or job.folder, quiet)}
    write_text(out / RECORD, json.dumps(record, indent=1) + "\n")
    return record


def train(job: Job, out: Path, resume: bool, quiet: bool, fit: Fit | None = None) -> dict[str, Any]:
    """Train `job` and put the PEFT folder with its `training.json` at `out`; return the record.

    `fit` is what trains it, by default the trainer of questions. Where it leaves the adapter of the
    last epoch too, with what is to be said of that one as `last`, it is put beside at `out`-last.
    Until it is finished everything is in a hidden sibling folder, whose checkpoints a later call
    with `resume` goes on from. Raises `WorkError` when the loss is no number any more.
    """
    from tel_edge.train import trainer
    from tel_edge.train.trainer import enough_memory, processes

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
        run: Fit = fit or trainer.fit
        made = run(job, partial, quiet, weights)
    last = made.pop("last", None)
    record = {
        "schema_version": SCHEMA_VERSION,
        "digest": job.digest,
        "category": job.name,
        **job.about,
        "seed": job.seed,
        "backbone": {
            **job.bound["backbone"],
            "tokenization": digest.of_tokenization(job.folder),
            "revision": backbones.commit(job.folder),
        },
        "over": {"quant": job.over.quant, "sha256": job.over.sha256} if job.over else None,
        "config": asdict(job.recipe),
        **made,
        "peak_memory": memory.now().peak,
        "versions": versions(),
    }
    every.wait_for_everyone()
    if every.is_main_process:
        if last is not None:
            beside = out.with_name(f"{out.name}-last")
            _place(partial / "last", beside, {**record, **last}, job.backbone)
        _place(partial / "adapter", out, record, job.backbone)
        shutil.rmtree(partial)
    every.wait_for_everyone()
    return record


def _place(made: Path, out: Path, record: dict[str, Any], backbone: Backbone) -> None:
    write_text(made / RECORD, json.dumps(record, indent=1) + "\n")
    write_text(made / hub_card.NAME, card.render(record, backbone))
    replace_folder(made, out)


@contextmanager
def dequantized(job: Job, partial: Path, every: Any) -> Iterator[Path | None]:
    """Give a folder with the weights that `--over-quant` trains on, None where it is not asked for.

    The first of `every` process makes it: the file's weights under the backbone's own numbers.
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
    shape = checkpoint.load(folder).shape
    out.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.json"):
        # The index would name shards that are not here.
        if path.name != contents.INDEX and path.is_file():
            shutil.copyfile(path, out / path.name)
    write_weights(opened(over.path), shape, out / contents.SINGLE, lambda _: None)


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


def spin_shortly() -> None:
    """Let the threads of GNU's OpenMP sleep soon while they wait, unless the user says otherwise.

    By default they spin for milliseconds, and where something else wants the cores one spins for
    another that is not running. The variable is read once, when torch is loaded. Source: manual of
    libgomp, GOMP_SPINCOUNT.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
