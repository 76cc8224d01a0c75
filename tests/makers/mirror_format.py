"""A format that is only there for a test: GGUF files with another ending, and their engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tel_edge.eval.folders.checkpoint import Checkpoint
from tel_edge.export.gguf import lora, quantize, tokenizer
from tel_edge.export.gguf.backbone import write_backbone
from tel_edge.export.output import Output
from tel_edge.export.request import ExportRequest
from tel_edge.export.sources.named import Sources, sources
from tel_edge.runtime.bundles.manifest import BundleFile
from tel_edge.runtime.engines.with_llama import LlamaEngine


class MirrorEngine(LlamaEngine):
    """The engine's module of the format."""


@dataclass(frozen=True)
class MirrorPlan:
    """What is to be in the bundle."""

    source: Sources
    output: Output

    @property
    def checkpoint(self) -> Checkpoint:
        return self.source.checkpoint


def plan(request: ExportRequest) -> MirrorPlan:
    source = sources(request, half=True)
    out = Output(request.home.bundle(source.info.name), source.info, request.force)
    return MirrorPlan(source, out)


def make(request: ExportRequest, made: MirrorPlan) -> Sequence[tuple[BundleFile, bool]]:
    source, out = made.source, made.output
    info, opened = source.info, source.checkpoint
    vocabulary = tokenizer.load(opened.folder, opened.shape.vocabulary, info.architecture)
    known: dict[str, Any] = {"format": "mirror", "quant": request.types}
    with out.scratch("half.gguf") as half:
        write_backbone(
            opened, vocabulary, half, info=info, quant=quantize.QUANTS["F16"], step=lambda _: None
        )
        name = f"{info.name}-{request.types}.mirror"
        with out.file(name, None, kind="backbone", source=info.weights, **known) as file:
            [row] = quantize.rows(request.types)
            quantize.quantize(half, file, row, lambda _: None)
    known["quant"] = "F16"
    for job in source.jobs:
        told = job.known(info) | known
        with out.file(f"{info.name}-{job.category}.mirror", None, **told) as file:
            lora.write_adapter(job.adapter, file, info, job.category, "F16")
    return [(file, True) for file in out.manifest.files]


def forecast(request: ExportRequest, made: MirrorPlan) -> Mapping[str, int]:
    return {request.types: made.checkpoint.parameters}
