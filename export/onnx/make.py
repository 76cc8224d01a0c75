"""The ONNX half of `tel-export`: one backbone with slots in several types, and adapters for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tel_edge.eval.folders import chat, numbers
from tel_edge.eval.folders import checkpoint as checkpoints
from tel_edge.eval.folders.checkpoint import Checkpoint
from tel_edge.eval.folders.files import json_object
from tel_edge.export.gate import gate as gates
from tel_edge.export.gate.gate import Gate, Whole
from tel_edge.export.made import made_by
from tel_edge.export.onnx import container, fused, quantize, slots, trace
from tel_edge.export.onnx.adapter import write_adapter
from tel_edge.export.onnx.quantize import ONNX_QUANTS, OnnxQuant, bits
from tel_edge.export.output import Accept, Output
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
from tel_edge.runtime.bundles.manifest import BackboneInfo, BundleFile
from tel_edge.runtime.device import memory
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.extras import need
from tel_edge.runtime.files import digest
from tel_edge.runtime.files.onnx_adapter import WEIGHTS
from tel_edge.runtime.questions.categories import SPOKEN

FORMAT = "onnx"
REFERENCE = ONNX_QUANTS["fp32"]
ADAPTER_QUANT = "F32"
# Options of the GGUF half that mean nothing here, and why.
REFUSED: tuple[tuple[str, Any, str], ...] = (
    ("merge", False, "an ONNX adapter goes over the backbone as it is"),
    ("imatrix", "none", "the quantizer of ONNX has no importance matrix"),
    ("tensor_type", (), "the types of ONNX are whole"),
)


@dataclass(frozen=True)
class OnnxPlan:
    """All that is to be in the bundle, checked; `missing` and `unfinished` are still to be made.

    `given` is the decoder of `--from-onnx`, `options` what the values depend on because of it.
    `inputs` is the digest of what goes into every model's file beside its graph and weights.
    """

    checkpoint: Checkpoint
    info: BackboneInfo
    wanted: tuple[OnnxQuant, ...]
    missing: tuple[OnnxQuant, ...]
    jobs: tuple[AdapterExport, ...]
    unfinished: tuple[AdapterExport, ...]
    given: Path | None
    options: str | None
    output: Output
    inputs: str

    def name(self, row: OnnxQuant) -> str:
        """Return the file name of the backbone in that type."""
        return f"{self.info.name}-{row.name}.onnx"


def plan(request: ExportRequest) -> OnnxPlan:
    """Read and check all that the arguments name; raise `InputError` for what does not fit."""
    wanted = quantize.rows(request.types)
    for name, default, reason in REFUSED:
        if getattr(request, name) != default:
            raise InputError(f"--{name.replace('_', '-')} is for --format gguf: {reason}")
    if request.adapter_type != ADAPTER_QUANT:
        raise InputError(
            f"--adapter-quant {request.adapter_type}: ONNX adapters are {ADAPTER_QUANT}"
        )
    given = _given(request.from_onnx) if request.from_onnx else None
    for module in ("onnx", "onnxscript", "onnxruntime"):
        need(module, "export")
    source = sources(request, half=False, slides=True)
    say_quantized(request, source.file, [row.name for row in wanted])
    output = Output(
        request.out or request.home.bundle(source.info.name), source.info, request.force
    )
    options = f"from-onnx {_digest(given)[:16]}" if given else None
    if not request.fuse:
        options = f"{options} no-fuse" if options else "no-fuse"
    inputs = digest.of_value(_metadata(source.checkpoint, source.info))
    missing = tuple(
        row
        for row in wanted
        if request.force
        or not there(request, output, "backbone", row.name, None, source.info.weights, options,
                     format=FORMAT, inputs=inputs, former=options)
    )  # fmt: skip
    left = unfinished(request, source.jobs, output, ADAPTER_QUANT, FORMAT)
    made = OnnxPlan(
        source.checkpoint, source.info, wanted, missing, source.jobs, left, given, options, output,
        inputs,
    )  # fmt: skip
    for line in output.told():
        cli.say(request, line)
    if missing and not request.dry_run:
        with bar(request, made.checkpoint.parameters, "checking") as step:
            checkpoints.check_values(made.checkpoint, False, step)
    check_space(request, output, _needed(made))
    return made


def _given(folder: Path) -> Path:
    """Return the decoder in a folder that optimum wrote."""
    if not folder.is_dir():
        raise InputError(f"--from-onnx: {folder} is no folder")
    for name in ("model.onnx", "decoder_with_past_model.onnx", "onnx/model.onnx"):
        if (folder / name).is_file():
            return folder / name
    found = sorted(folder.glob("*.onnx"))
    if len(found) != 1:
        raise InputError(
            f"--from-onnx: {folder} has {len(found)} .onnx files and no model.onnx; "
            "pass a folder with the one decoder"
        )
    return found[0]


def _digest(model: Path) -> str:
    parts = container.data_names(container.load(model))
    for name in parts:
        if not (model.parent / name).is_file():
            raise InputError(
                f"--from-onnx: {model.parent / name} is missing, where {model.name} has its weights"
            )
    return digest.of_value([digest.of_file(model.parent / name) for name in (model.name, *parts)])


def _sizes(made: OnnxPlan) -> dict[OnnxQuant, int]:
    """Return the bytes that each wanted type takes, about."""
    shape = made.checkpoint.shape
    head = shape.vocabulary * shape.hidden
    tied = not any(tensor.name == "output.weight" for tensor, _ in made.checkpoint.tensors)
    ends = head if tied else 2 * head
    vectors = sum(t.shape[0] for t, _ in made.checkpoint.tensors if len(t.shape) == 1)
    body = made.checkpoint.parameters - ends - vectors
    return {
        row: int(
            (
                body * (row.body if row.dynamic else bits(row.body, row.block))
                + ends * bits(row.head, row.block)
            )
            / 8
            + 4 * vectors
        )
        for row in made.wanted
    }


def _needed(made: OnnxPlan) -> float:
    sizes = _sizes(made)
    needed = float(sum(sizes[row] for row in made.missing))
    if made.missing or made.unfinished:
        # The decoder as it was traced, and with slots.
        needed += made.checkpoint.parameters * 4 * (1 if made.given else 2)
    return needed + 4 * sum(job.adapter.size for job in made.unfinished)


def forecast(_: ExportRequest, made: OnnxPlan) -> dict[str, int]:
    """Return the bytes of each type's file, but for the graph, which takes less than 1 MB."""
    return {row.name: size for row, size in _sizes(made).items()}


def make(request: ExportRequest, made: OnnxPlan) -> list[tuple[BundleFile, bool]]:
    """Make what is missing; return all files that were asked for, and which of them are new."""
    gate = None
    if request.verify and (made.missing or made.unfinished):
        gate = gates.opened(made.checkpoint.folder, made.jobs, partial(bar, request))
    made.output.tokenizer(made.checkpoint.folder)
    if made.missing or (gate and made.unfinished):
        with _reference(request, made, gate) as (reference, whole):
            for row in made.missing:
                if row != REFERENCE:
                    _quantized(request, made, row, reference, gate, whole)
            for job in made.unfinished:
                _adapter(request, made, job, gate, whole)
    else:
        for job in made.unfinished:
            _adapter(request, made, job, None, None)
    peak = memory.now().peak
    cli.say(request, f"peak memory {peak / 1e6:,.0f} MB")
    find = made.output.manifest.find
    files = [
        (find("backbone", row.name, format=FORMAT), row in made.missing) for row in made.wanted
    ]
    files += [
        (find("adapter", ADAPTER_QUANT, job.category, FORMAT), job in made.unfinished)
        for job in made.jobs
    ]
    return [(file, new) for file, new in files if file]


@contextmanager
def _reference(
    request: ExportRequest, made: OnnxPlan, gate: Gate | None
) -> Iterator[tuple[Path, Whole | None]]:
    """Give the float32 backbone with slots and its judgement, None without a gate.

    It is the bundle's own if it has one, else a passing one.
    """
    kept = made.output.intact(
        "backbone", REFERENCE.name, None, made.info.weights, made.options, FORMAT,
        inputs=made.inputs, known=True,
    )  # fmt: skip
    name = made.name(REFERENCE)
    if REFERENCE in made.missing:
        whole: list[Whole] = []

        def accept(path: Path) -> Mapping[str, float]:
            assert gate
            whole.append(gate.converted(path, REFERENCE))
            return gate.figures(whole[0])

        with made.output.model(name, accept if gate else None, **_known(made, REFERENCE)) as out:
            _prepared(request, made, out)
        cli.say(request, f"{made.info.name} {REFERENCE.name} written")
        path = made.output.folder / name
        yield path, replace(whole[0], path=path) if whole else None
    elif kept:
        path = made.output.folder / kept.path
        yield path, gate.converted(path, REFERENCE) if gate else None
    else:
        with made.output.room(name) as room:
            _prepared(request, made, room / name)
            yield room / name, gate.converted(room / name, REFERENCE) if gate else None


def _prepared(request: ExportRequest, made: OnnxPlan, out: Path) -> None:
    """Write the float32 backbone with slots to `out`."""
    with made.output.room(f"{made.info.name}-plain") as room:
        plain = made.given
        if plain is None:
            layers = made.checkpoint.shape.layers
            cli.say(request, f"tracing the model: {layers} layers, some 2 to 6 s each")
            plain = room / "plain.onnx"
            trace.trace(made.checkpoint.folder, plain)
        model = container.load(plain)
        slots.prepare(model, made.checkpoint.shape, str(made.given or made.checkpoint.folder))
        if request.fuse:
            made_of = fused.fuse(model, made.checkpoint.shape, str(plain))
            if not made_of[fused.ATTENTION]:
                cli.say(request, "warning: attention is not as torch's exporter writes it, so it "
                        "stays in many small nodes")  # fmt: skip
        slots.describe(model, _metadata(made.checkpoint, made.info))
        with bar(request, made.checkpoint.parameters * 4, REFERENCE.name) as step:
            container.write(model, out, plain.parent, step)


def _metadata(checkpoint: Checkpoint, info: BackboneInfo) -> dict[str, str]:
    shape, made = checkpoint.shape, chat.template(checkpoint.folder)
    spoken = {} if made is None else {
        "tel_edge.chat_template": made.text,
        "tel_edge.chat_start": made.start,
        "tel_edge.chat_end": made.end,
    }  # fmt: skip
    return {
        WEIGHTS: info.stated,
        "tel_edge.prompt": info.prompt,
        "tel_edge.context": str(shape.context),
        "tel_edge.window": str(shape.window),
        "tel_edge.eos": ",".join(map(str, _ends(checkpoint))),
        "tel_edge.quant": REFERENCE.name,
        **spoken,
    }


def _ends(checkpoint: Checkpoint) -> list[int]:
    """Return the ids that end a text, those of config.json and of generation_config.json."""
    found: dict[int, None] = {}
    generation = checkpoint.folder / "generation_config.json"
    where, rows = str(checkpoint.folder), checkpoint.shape.vocabulary
    for config in (checkpoint.config, json_object(generation) if generation.is_file() else {}):
        found |= dict.fromkeys(numbers.ids(config, "eos_token_id", where, rows))
    return list(found)


def _quantized(
    request: ExportRequest,
    made: OnnxPlan,
    row: OnnxQuant,
    reference: Path,
    gate: Gate | None,
    whole: Whole | None,
) -> None:
    accept: Accept | None = None
    if gate and whole:
        accept = partial(gate.quantized, whole, row=row)
        if row.lost is not None:
            accept = partial(_accurate, request, made, row, gate, whole)
    with (
        made.output.model(made.name(row), accept, **_known(made, row)) as out,
        bar(request, _sizes(made)[row], row.name) as step,
    ):
        quantize.quantize(reference, out, row, step)
    cli.say(request, f"{made.info.name} {row.name} written")


def _accurate(
    request: ExportRequest,
    made: OnnxPlan,
    row: OnnxQuant,
    gate: Gate,
    whole: Whole,
    backbone: Path,
) -> Mapping[str, float]:
    """Measure a file as every other, and its accuracy under every adapter that was named."""
    figures = gate.quantized(whole, backbone, row)
    assert row.lost is not None
    if not made.jobs:
        cli.say(
            request,
            f"warning: {row.name}: no --adapter, so its accuracy was not checked; "
            "activations in int8 do not suit every model",
        )
    for job in made.jobs:
        if job.category in SPOKEN:
            cli.say(
                request,
                f"warning: {row.name}: of {job.category} the accuracy was not checked, sentences "
                "have none; tel-eval compares them with those of another type",
            )
            continue
        file = backbone.with_name("checked.onnx_adapter")
        write_adapter(job.adapter, file, made.info.stated)
        before, after = gate.accuracy(backbone, row, file, job.category, row.lost)
        cli.say(request, f"{row.name} {job.category}: Pass@1 {after:.3f}, PEFT {before:.3f}")
    return figures


def _known(made: OnnxPlan, row: OnnxQuant) -> dict[str, Any]:
    traced = () if made.given else ("torch", "transformers", "onnxscript")
    return {
        "kind": "backbone",
        "format": FORMAT,
        "quant": row.name,
        "category": None,
        "source": made.info.weights,
        "options": made.options,
        "inputs": made.inputs,
        "made_by": made_by("onnx", "onnxruntime", *traced),
    }


def _adapter(
    request: ExportRequest,
    made: OnnxPlan,
    job: AdapterExport,
    gate: Gate | None,
    whole: Whole | None,
) -> None:
    loaded, accept = job.adapter, None
    if gate and whole:
        accept = partial(gate.adapter, whole, category=job.category, kind=ADAPTER_QUANT)
    with made.output.file(
        f"{made.info.name}-{job.category}-r{loaded.rank}.onnx_adapter",
        accept,
        format=FORMAT,
        quant=ADAPTER_QUANT,
        made_by=made_by("onnxruntime"),
        **job.known(made.info),
    ) as out:
        write_adapter(loaded, out, made.info.stated)
    cli.say(request, f"{job.category} adapter written")
