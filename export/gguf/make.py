"""The GGUF half of `tel-export`: backbones, merged models and adapters for llama.cpp."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from tel_edge.export.gate import gate as gates
from tel_edge.export.gate.gate import Gate, Whole
from tel_edge.export.gguf import calibration, importance, lora
from tel_edge.export.gguf.backbone import write_backbone
from tel_edge.export.gguf.importance import Importance
from tel_edge.export.gguf.plan import FULL, HALF, GgufPlan, Model, plan
from tel_edge.export.gguf.quantize import Quant, QuantizeOutcome, fallen, quantize, size
from tel_edge.export.output import Accept
from tel_edge.export.request import ExportRequest
from tel_edge.export.sources.adapter import AdapterExport
from tel_edge.export.sources.named import bar
from tel_edge.runtime import cli
from tel_edge.runtime.bundles.manifest import BundleFile
from tel_edge.runtime.files import gguf_header
from tel_edge.runtime.questions.categories import SPOKEN

__all__ = ["forecast", "make", "plan"]


def make(request: ExportRequest, made: GgufPlan) -> list[tuple[BundleFile, bool]]:
    """Make what is missing; return all files that were asked for, and which of them are new."""
    # One matrix may serve several models.
    matrix = cache(partial(_matrix, request, made))
    with ExitStack() as stack:
        gate = whole = None
        if request.verify and (made.unfinished or any(model.missing for model in made.models)):
            gate = gates.opened(made.checkpoint.folder, made.jobs, partial(bar, request))
            whole = stack.enter_context(_whole(request, made, made.bare, gate, None))
        for model in made.models:
            _model(request, made, model, gate, whole, matrix)
        for job in made.unfinished:
            _adapter(request, made, job, gate, whole)
    find, files = made.output.manifest.find, []
    for model in made.models if request.merge else made.models[:1]:
        for row in made.wanted:
            files.append((find(model.kind, row.name, model.category), row in model.missing))
    for job in () if request.merge else made.jobs:
        files.append((find("adapter", request.adapter_type, job.category), job in made.unfinished))
    return [(file, new) for file, new in files if file]


def _file(
    made: GgufPlan, model: Model, row: Quant, accept: Accept | None
) -> AbstractContextManager[Path]:
    return made.output.file(_name(model, row), accept, format="gguf", **made.known(model, row))


def _kept(made: GgufPlan, model: Model, row: Quant) -> Path | None:
    """Return the bundle's own file of an unquantized type, from which others can be made."""
    # Of a file that may hold other metadata another type would have it too.
    if made.own is not None and made.own.name == row.name:
        return None
    kept = made.output.intact(
        model.kind, row.name, model.category, model.source, inputs=made.inputs, known=True
    )
    return made.output.folder / kept.path if kept else None


def _name(model: Model, row: Quant) -> str:
    # Of a file that is called by its type already the name is kept.
    own = row.file is not None and model.stem.casefold().endswith(row.name.casefold())
    return f"{model.stem}.gguf" if own else f"{model.stem}-{row.name}.gguf"


@contextmanager
def _whole(
    request: ExportRequest, made: GgufPlan, model: Model, gate: Gate, over: Whole | None
) -> Iterator[Whole]:
    """Give the model in float32, judged: the bundle's own or a passing one.

    `over` is the unquantized backbone that a merged model is judged beside.
    """

    def judged(path: Path) -> Whole:
        stated = gguf_header.check(path).metadata
        gates.check_numbers(stated, gate.expected.numbers, path.name)
        if over is None:
            return gate.converted(path, FULL)
        return gate.merged(over, path, str(model.category))

    if FULL in model.missing:
        new: list[Whole] = []

        def accept(path: Path) -> Mapping[str, float]:
            new.append(judged(path))
            return gate.figures(new[0])

        with _file(made, model, FULL, accept) as out:
            _plain(request, made, model, FULL, out)
        cli.say(request, f"{model.stem} {FULL.name} written")
        yield replace(new[0], path=made.output.folder / _name(model, FULL))
    elif kept := _kept(made, model, FULL):
        yield judged(kept)
    else:
        with made.output.scratch(_name(model, FULL)) as passing:
            _plain(request, made, model, FULL, passing)
            yield judged(passing)


def _model(
    request: ExportRequest,
    made: GgufPlan,
    model: Model,
    gate: Gate | None,
    bare: Whole | None,
    matrix: Callable[[tuple[AdapterExport, ...]], Importance | None],
) -> None:
    if not model.missing:
        return
    with ExitStack() as stack:
        whole = bare
        if gate and bare and model.job:
            whole = stack.enter_context(_whole(request, made, model, gate, bare))

        def file(row: Quant) -> AbstractContextManager[Path]:
            return _file(made, model, row, _of(gate, whole, row))

        for row in model.missing:
            if row.file is not None:
                with file(row) as out:
                    shutil.copyfile(row.file, out)
                cli.say(request, f"{row.file.name} taken as it is ({row.name})")
            elif row.plain and not (whole and row == FULL):
                with file(row) as out:
                    _plain(request, made, model, row, out)
                cli.say(request, f"{model.stem} {row.name} written")
        quantized = [row for row in model.missing if not row.fixed]
        if not quantized:
            return
        alone = model.job if request.imatrix == "category" else None
        weights = matrix((alone,) if alone else made.jobs)
        with _source(request, made, model) as source:
            for row in quantized:
                with (
                    file(row) as out,
                    bar(request, len(made.checkpoint.tensors), row.name) as step,
                ):
                    outcome = quantize(
                        source, out, row, step, overrides=made.overrides, importance=weights
                    )
                cli.say(request, f"{model.stem} {row.name} written")
                # Models of one shape fall back in one way.
                if model is next(one for one in made.models if row in one.missing):
                    _warn(request, made, row, outcome)


def _of(gate: Gate | None, whole: Whole | None, row: Quant) -> Accept | None:
    if gate is None or whole is None:
        return None
    return partial(gate.quantized, whole, row=row)


def _warn(request: ExportRequest, made: GgufPlan, row: Quant, outcome: QuantizeOutcome) -> None:
    if said := fallen(outcome, _shapes(made)):
        cli.say(request, f"warning: {row.name}: {said}")


def _shapes(made: GgufPlan) -> Mapping[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for tensor, _ in made.checkpoint.tensors}


def _plain(
    request: ExportRequest,
    made: GgufPlan,
    model: Model,
    row: Quant,
    out: Path,
    hollow: bool = False,
) -> None:
    with bar(request, made.checkpoint.parameters, row.name) as step:
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
def _source(request: ExportRequest, made: GgufPlan, model: Model) -> Iterator[Path]:
    """Give the F16 file to quantize: the bundle's own if it is there, else a passing one."""
    if kept := _kept(made, model, HALF):
        yield kept
        return
    with made.output.scratch(_name(model, HALF)) as passing:
        _plain(request, made, model, HALF, passing)
        yield passing


def _matrix(
    request: ExportRequest, made: GgufPlan, jobs: tuple[AdapterExport, ...]
) -> Importance | None:
    """Return the importance matrix of `--imatrix` and keep what was computed in the workspace."""
    shape = made.checkpoint.shape
    if request.imatrix not in ("pooled", "category"):
        return made.given
    # Its prompts are questions.
    adapters = {job.category: job.adapter for job in jobs if job.category not in SPOKEN}
    with bar(request, calibration.total(list(adapters)), "imatrix") as step:
        found = calibration.calibrated(
            made.checkpoint.folder, shape, adapters, request.dataset, request.seed, step,
            partial(cli.say, request),
        )  # fmt: skip
    name = "-".join(adapters) if request.imatrix == "category" else "pooled"
    out = request.home.imatrix(made.info.name, name)
    out.parent.mkdir(parents=True, exist_ok=True)
    importance.write(found, out)
    cli.say(request, f"importance matrix written to {out}")
    return found


def _adapter(
    request: ExportRequest,
    made: GgufPlan,
    job: AdapterExport,
    gate: Gate | None,
    whole: Whole | None,
) -> None:
    loaded, kind = job.adapter, request.adapter_type
    accept = None
    if gate and whole:
        accept = partial(gate.adapter, whole, category=job.category, kind=kind)
    with made.output.file(
        f"{made.info.name}-{job.category}-r{loaded.rank}-{kind}-LoRA.gguf",
        accept,
        format="gguf",
        quant=kind,
        made_by=made.made_by(),
        **job.known(made.info),
    ) as out:
        lora.write_adapter(loaded, out, made.info, job.category, kind)
    cli.say(request, f"{job.category} adapter written")


def forecast(request: ExportRequest, made: GgufPlan) -> dict[str, int]:
    """Return the bytes that each type's file would have; nothing is left behind."""
    shapes = _shapes(made)
    sizes = {}
    with tempfile.TemporaryDirectory() as passing:
        hollow = Path(passing) / "hollow.gguf"
        model = made.models[0]
        _plain(request, made, model, HALF, hollow, hollow=True)
        names = dict.fromkeys(shapes, HALF.name)
        names |= {name: "F32" for name, shape in shapes.items() if len(shape) == 1}
        header = hollow.stat().st_size - size(QuantizeOutcome(names, ()), shapes)
        for row in made.wanted:
            if row.file is not None:
                sizes[row.name] = row.file.stat().st_size
                continue
            if row.plain:
                kinds = {name: "F32" if kind == "F32" else row.name for name, kind in names.items()}
                outcome = QuantizeOutcome(kinds, ())
            else:
                outcome = quantize(
                    hollow, hollow, row, lambda _: None, overrides=made.overrides, dry=True
                )
                _warn(request, made, row, outcome)
            sizes[row.name] = header + size(outcome, shapes)
    return sizes
