"""What an export has to do: everything is read and checked here before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tel_edge.eval.folders import checkpoint as checkpoints
from tel_edge.eval.folders.checkpoint import Checkpoint
from tel_edge.export.gguf import backbone, calibration, importance, quantize, tokenizer
from tel_edge.export.gguf.importance import Importance
from tel_edge.export.gguf.quantize import QUANTS, Override, Quant
from tel_edge.export.gguf.tokenizer import Vocabulary
from tel_edge.export.made import made_by
from tel_edge.export.output import Output
from tel_edge.export.request import ExportRequest
from tel_edge.export.sources.adapter import AdapterExport
from tel_edge.export.sources.named import (
    bar,
    check_space,
    say_quantized,
    sources,
    there,
    unfinished,
)
from tel_edge.runtime import cli
from tel_edge.runtime.bundles.manifest import BackboneInfo
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.extras import need
from tel_edge.runtime.files import digest
from tel_edge.runtime.questions.categories import SPOKEN

HALF = QUANTS["F16"]
# What a model is judged in; nothing is lost on the way from a checkpoint.
FULL = QUANTS["F32"]
# Small models take more than the table's bits, since their embedding weighs more.
MARGIN = 1.3
# The values of --imatrix that are no file.
MATRICES = ("none", "pooled", "category")


@dataclass(frozen=True)
class Model:
    """A model and the types of it still to be made: the backbone, or it with a job merged in."""

    stem: str
    source: str
    job: AdapterExport | None
    missing: tuple[Quant, ...]

    @property
    def kind(self) -> str:
        """Return what the manifest calls it."""
        return "merged" if self.job else "backbone"

    @property
    def category(self) -> str | None:
        """Return the category of the merged adapter."""
        return self.job.category if self.job else None


@dataclass(frozen=True)
class GgufPlan:
    """All that is to be in the bundle, checked; `unfinished` are the adapters still to be made.

    `options` is what the quantized types depend on besides their source, None for nothing; `given`
    is the matrix of `--imatrix FILE`. `inputs` is the digest of what goes into every model's file
    beside its weights, and `packages` make and measure the files, `learned` the matrix too. `own`
    is the type of the file that the backbone is, None where it is a folder.
    """

    checkpoint: Checkpoint
    vocabulary: Vocabulary
    info: BackboneInfo
    wanted: tuple[Quant, ...]
    models: tuple[Model, ...]
    jobs: tuple[AdapterExport, ...]
    unfinished: tuple[AdapterExport, ...]
    overrides: tuple[Override, ...]
    options: str | None
    given: Importance | None
    output: Output
    inputs: str
    packages: tuple[str, ...]
    learned: tuple[str, ...] = ()
    own: Quant | None = None

    @property
    def bare(self) -> Model:
        """Return the backbone without an adapter, of which `--merge` wants no file."""
        alone = Model(self.info.name, self.info.weights, None, ())
        return next((model for model in self.models if model.job is None), alone)

    def known(self, model: Model, row: Quant) -> dict[str, Any]:
        """Return what the manifest says of a model's file beside its size and figures."""
        return {
            "kind": model.kind,
            "quant": row.name,
            "category": model.category,
            "source": model.source,
            "backbone": self.info.weights if model.job else None,
            "split": model.job.adapter.split if model.job else None,
            "options": None if row.fixed else self.options,
            "inputs": self.inputs,
            "made_by": self.made_by(row),
        }

    def made_by(self, row: Quant | None = None) -> dict[str, str]:
        """Return the versions of what makes and measures a model's file, or an adapter's."""
        if row is None or row.fixed:
            return made_by(*self.packages)
        return made_by(*self.packages, "llama_cpp", *self.learned)


def plan(request: ExportRequest) -> GgufPlan:
    """Read and check all that the arguments name; raise `InputError` for what does not fit."""
    need("gguf", "export")
    if not request.fuse:
        raise InputError("--no-fuse is for --format onnx: a GGUF file has no graph")
    home = request.home
    source = sources(request, half=request.adapter_type != "F32")
    opened, info, jobs = source.checkpoint, source.info, source.jobs
    own = quantize.of_file(source.file, opened.parameters) if source.file else None
    wanted = _wanted(request, own)
    vocabulary = tokenizer.load(opened.folder, opened.shape.vocabulary, info.architecture)
    _check_jobs(request, jobs)
    matrices = [tensor.name for tensor, _ in opened.tensors if len(tensor.shape) > 1]
    overrides = quantize.overrides(request.tensor_type, matrices)
    given, (options, former) = _given(request, opened), _options(request, jobs)
    inputs = backbone.inputs(opened, vocabulary, info)
    output = Output(request.out or home.bundle(info.name), info, request.force)
    models = _models(request, wanted, jobs, info, options, output, inputs, former)
    left = () if request.merge else unfinished(request, jobs, output, request.adapter_type)
    made = GgufPlan(
        opened, vocabulary, info, wanted, models, jobs, left, overrides, options, given, output,
        inputs, ("gguf", "llama_cpp") if request.verify else ("gguf",),
        ("torch", "transformers", "peft") if request.imatrix in MATRICES[1:] else (), own,
    )  # fmt: skip
    for line in output.told():
        cli.say(request, line)
    _check_models(request, made)
    _check_space(request, made)
    return made


def _wanted(request: ExportRequest, own: Quant | None) -> tuple[Quant, ...]:
    """Return the rows to be there; of a backbone that is a file, that file where none is named."""
    if own is None or request.merge:
        return quantize.rows(request.types)
    wanted = (own,) if request.quant is None else quantize.rows(request.quant, own)
    say_quantized(request, own.file, [row.name for row in wanted if row.file is None])
    return wanted


def _check_jobs(request: ExportRequest, jobs: tuple[AdapterExport, ...]) -> None:
    if request.merge and not jobs:
        raise InputError("--merge needs an adapter to merge; name it with --adapter")
    if request.imatrix == "category" and (spoken := [j for j in jobs if j.category in SPOKEN]):
        raise InputError(
            f"--imatrix category: {spoken[0].category} has no questions to show; pooled, or a FILE"
        )
    if request.imatrix == "category" and not request.merge and len(jobs) != 1:
        raise InputError(
            "--imatrix category is for one adapter or with --merge; a backbone shared by several "
            "takes --imatrix pooled"
        )


def _given(request: ExportRequest, opened: Checkpoint) -> Importance | None:
    if request.imatrix in MATRICES:
        return None
    path = Path(request.imatrix)
    if not path.is_file():
        raise InputError(f"--imatrix: {path} is no file and none of {' '.join(MATRICES)}")
    made = importance.read(path)
    importance.check_fit(made, calibration.widths(opened.shape), path)
    return made


def _options(
    request: ExportRequest, jobs: tuple[AdapterExport, ...]
) -> tuple[str | None, str | None]:
    """Return the options as the manifest has them, and as older manifests have them."""
    parts = [f"tensor-type {text}" for text in request.tensor_type]
    former = list(parts)
    if request.imatrix not in MATRICES:
        parts.append(f"imatrix {digest.of_file(Path(request.imatrix))[:16]}")
    elif request.imatrix != "none":
        jobs = tuple(job for job in jobs if job.category not in SPOKEN)
        sources = [job.adapter.source for job in jobs]
        shown = calibration.shown(
            request.dataset, request.seed, {job.category: job.adapter.split for job in jobs}
        )
        parts.append(f"imatrix {request.imatrix} {digest.of_value([sources, shown])[:16]}")
        # By the data set's name, whatever was in it.
        key = digest.of_value([sources, request.dataset, request.seed])
        former.append(f"imatrix {request.imatrix} {key[:16]}")
    return "; ".join(parts) or None, "; ".join(former) or None


def _models(
    request: ExportRequest,
    wanted: tuple[Quant, ...],
    jobs: tuple[AdapterExport, ...],
    info: BackboneInfo,
    options: str | None,
    output: Output,
    inputs: str,
    former: str | None,
) -> tuple[Model, ...]:
    made = []
    for job in jobs if request.merge else (None,):
        stem = f"{info.name}-{job.category}" if job else info.name
        source = job.adapter.source if job else info.weights
        whole = Model(stem, source, job, ())
        missing = tuple(
            row
            for row in wanted
            if request.force
            or not there(request, output, whole.kind, row.name, whole.category, source,
                         None if row.fixed else options, inputs=inputs,
                         former=None if row.fixed else former,
                         split=job.adapter.split if job else None)
        )  # fmt: skip
        made.append(Model(stem, source, job, missing))
    return tuple(made)


def _check_models(request: ExportRequest, made: GgufPlan) -> None:
    missing = {row for model in made.models for row in model.missing}
    quantized = [row for row in missing if not row.fixed]
    if quantized or (request.verify and (missing or made.unfinished)):
        need("llama_cpp", "export")
    if missing and not request.dry_run:
        half = bool(quantized) or HALF in missing
        with bar(request, made.checkpoint.parameters, "checking") as step:
            checkpoints.check_values(made.checkpoint, half, step)


def _check_space(request: ExportRequest, made: GgufPlan) -> None:
    weights = made.checkpoint.parameters
    needed = 0.0
    for model in made.models:
        needed += sum(weights * r.bits / 8 * (1 if r.plain else MARGIN) for r in model.missing)
    if any(not row.fixed for model in made.models for row in model.missing):
        needed += weights * HALF.bits / 8
    if request.verify and (needed or made.unfinished):
        # In float32, beside it, for the gate: the backbone, and with an adapter merged in.
        needed += weights * FULL.bits / 8 * (2 if request.merge else 1)
    needed += sum(job.adapter.size for job in made.unfinished) * 4
    check_space(request, made.output, needed)
