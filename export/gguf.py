"""The GGUF half of `tel-export`: backbones, merged models and adapters for llama.cpp."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from tel_edge.export import adapter, calibration, importance, parity
from tel_edge.export.backbone import write_backbone
from tel_edge.export.importance import Importance
from tel_edge.export.output import Accept
from tel_edge.export.parity import Gate
from tel_edge.export.plan import HALF, Job, Model, Plan, bar
from tel_edge.export.quantize import QUANTS, Outcome, Quant, quantize, size
from tel_edge.runtime import cli
from tel_edge.runtime.manifest import BundleFile


def make(args: argparse.Namespace, made: Plan) -> list[tuple[BundleFile, bool]]:
    """Make what is missing; return all files that were asked for, and which of them are new."""
    gate = parity.opened(made.checkpoint.folder, made.jobs) if args.verify else None
    # One matrix may serve several models.
    matrix = cache(partial(_matrix, args, made))
    for model in made.models:
        _model(args, made, model, gate, matrix)
    for job in made.unfinished:
        _adapter(args, made, job, gate)
    find, files = made.output.manifest.find, []
    for model in made.models if args.merge else made.models[:1]:
        for row in made.wanted:
            files.append((find(model.kind, row.name, model.category), row in model.missing))
    for job in () if args.merge else made.jobs:
        files.append((find("adapter", args.adapter_quant, job.category), job in made.unfinished))
    return [(file, new) for file, new in files if file]


def _model(
    args: argparse.Namespace,
    made: Plan,
    model: Model,
    gate: Gate | None,
    matrix: Callable[[tuple[Job, ...]], Importance | None],
) -> None:
    def file(row: Quant) -> AbstractContextManager[Path]:
        name = f"{model.stem}-{row.name}.gguf"
        known = made.known(model, row)
        return made.output.file(name, _of(gate, model, row), format="gguf", **known)

    for row in model.missing:
        if row.plain:
            with file(row) as out:
                _plain(args, made, model, row, out)
            cli.say(args, f"{model.stem} {row.name} written")
    quantized = [row for row in model.missing if not row.plain]
    if not quantized:
        return
    alone = model.job if args.imatrix == "category" else None
    weights = matrix((alone,) if alone else made.jobs)
    with _source(args, made, model) as source:
        for row in quantized:
            with (
                file(row) as out,
                bar(args, len(made.checkpoint.tensors), row.name) as step,
            ):
                outcome = quantize(
                    source, out, row, step, overrides=made.overrides, importance=weights
                )
            cli.say(args, f"{model.stem} {row.name} written")
            _warn(args, row, outcome)


def _of(gate: Gate | None, model: Model, row: Quant) -> Accept | None:
    if gate is None:
        return None
    return partial(gate, row=row, category=model.category, merged=model.job is not None)


def _warn(args: argparse.Namespace, row: Quant, outcome: Outcome) -> None:
    for fallback in outcome.fallbacks:
        cli.say(
            args,
            f"warning: {row.name}: {fallback.tensor} is {fallback.got} instead of "
            f"{fallback.wanted}, for its rows are no multiple of that type's blocks",
        )


def _plain(
    args: argparse.Namespace, made: Plan, model: Model, row: Quant, out: Path, hollow: bool = False
) -> None:
    with bar(args, made.checkpoint.parameters, row.name) as step:
        write_backbone(
            made.checkpoint,
            made.vocabulary,
            out,
            info=made.info,
            quant=row,
            step=step,
            merged=model.job.adapter if model.job else None,
            hollow=hollow,
        )


@contextmanager
def _source(args: argparse.Namespace, made: Plan, model: Model) -> Iterator[Path]:
    """Give the F16 file to quantize: the bundle's own if it is there, else a passing one."""
    # Of a file that may hold other metadata another type would have it too.
    kept = made.output.intact(
        model.kind, HALF.name, model.category, model.source, inputs=made.inputs, known=True
    )
    if kept:
        yield made.output.folder / kept.path
        return
    with made.output.scratch(f"{model.stem}-{HALF.name}.gguf") as passing:
        _plain(args, made, model, HALF, passing)
        yield passing


def _matrix(args: argparse.Namespace, made: Plan, jobs: tuple[Job, ...]) -> Importance | None:
    """Return the importance matrix of `--imatrix` and keep what was computed in the workspace."""
    shape = made.checkpoint.shape
    if args.imatrix not in ("pooled", "category"):
        return made.given
    adapters = {job.category: job.adapter for job in jobs}
    with bar(args, calibration.total(list(adapters)), "imatrix") as step:
        found = calibration.calibrated(
            made.checkpoint.folder, shape, adapters, args.dataset, args.seed, step
        )
    name = "-".join(adapters) if args.imatrix == "category" else "pooled"
    out = cli.workspace(args).imatrix(made.info.name, name)
    out.parent.mkdir(parents=True, exist_ok=True)
    importance.write(found, out)
    cli.say(args, f"importance matrix written to {out}")
    return found


def _adapter(args: argparse.Namespace, made: Plan, job: Job, gate: Gate | None) -> None:
    loaded, kind = job.adapter, args.adapter_quant
    accept = None
    if gate is not None:
        # Measured over the largest backbone that is there: the adapter's own error shows best.
        largest = QUANTS[made.output.manifest.quants()[0]]
        file = made.output.manifest.find("backbone", largest.name)
        assert file is not None

        def accept(path: Path) -> Mapping[str, float]:
            backbone = made.output.folder / file.path
            return gate(backbone, largest, adapter=path, category=job.category)

    with made.output.file(
        f"{made.info.name}-{job.category}-r{loaded.rank}-{kind}-LoRA.gguf",
        accept,
        format="gguf",
        quant=kind,
        made_by=made.made_by(),
        **job.known(made.info),
    ) as out:
        adapter.write_adapter(loaded, out, made.info, job.category, kind)
    cli.say(args, f"{job.category} adapter written")


def forecast(args: argparse.Namespace, made: Plan) -> Mapping[str, Any]:
    """Print the size that each file would have; nothing is left behind."""
    shapes = {tensor.name: tensor.shape for tensor, _ in made.checkpoint.tensors}
    made.output.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with made.output.scratch("dry-run") as hollow:
        model = made.models[0]
        _plain(args, made, model, HALF, hollow, hollow=True)
        names = dict.fromkeys(shapes, HALF.name)
        names |= {name: "F32" for name, shape in shapes.items() if len(shape) == 1}
        header = hollow.stat().st_size - size(Outcome(names, ()), shapes)
        for row in made.wanted:
            if row.plain:
                kinds = {name: "F32" if kind == "F32" else row.name for name, kind in names.items()}
                outcome = Outcome(kinds, ())
            else:
                outcome = quantize(
                    hollow, hollow, row, lambda _: None, overrides=made.overrides, dry=True
                )
                _warn(args, row, outcome)
            rows.append({"quant": row.name, "bytes": header + size(outcome, shapes)})
    print(f"{'quant':<8} {'MB':>9}")
    for line in rows:
        print(f"{line['quant']:<8} {line['bytes'] / 1e6:>9,.2f}")
    print(f"dry run: nothing was written; {made.checkpoint.parameters:,} weights")
    return {"dry_run": rows}
