"""What is behind a record: the files, the settings and the engine that it depends on."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

from tel_edge.eval.benchmarks.source import CategorySource
from tel_edge.eval.scoring.records import Summary, Variant
from tel_edge.eval.scoring.resumed import complete
from tel_edge.eval.scoring.scored import ScoringTask, in_child, score
from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.bundles.formats import FORMATS
from tel_edge.runtime.device.energy import Meter
from tel_edge.runtime.questions import protocol

# Fields of `EngineSettings` that change no number, whatever the engine.
WITHOUT_EFFECT = {"threads", "max_adapters"}


def evaluate(
    task: ScoringTask,
    source: CategorySource,
    variant: Variant,
    opener: bundle.Opener,
    isolated: bool,
    meter: Meter | None = None,
) -> tuple[Summary, bool]:
    """Score what is missing of a bundle's task; return (summary, whether all was there already)."""
    run = partial(in_child if isolated else score, opener=opener)
    return complete(task, source, variant, made_with(task, source), run, meter)


def made_with(task: ScoringTask, source: CategorySource) -> dict[str, Any]:
    """Return the files, settings and engine behind a record; their digest is its `run`."""
    row = FORMATS[task.backbone.format]
    passed = WITHOUT_EFFECT | row.ignored
    engine = {name: value for name, value in asdict(task.engine).items() if name not in passed}
    engine["batch"] = engine["batch"] or row.batch
    # Left out where empty: the digests of GGUF results are older than the field.
    if not engine.get("providers"):
        engine.pop("providers", None)
    if task.settings.protocol != "letters":
        engine["protocol_prompt"] = protocol.digest()
    trained = (task.adapter or task.backbone).split
    # An ONNX backbone's weights and tokenizer are files of their own.
    parts = task.manifest.parts(task.backbone)
    return {
        "backbone": task.backbone.sha256,
        **{f"backbone_{part.kind}": part.sha256 for part in parts if part != task.backbone},
        "adapter": task.adapter.sha256 if task.adapter else None,
        "weights": task.manifest.backbone.weights,
        "prompt": task.manifest.backbone.prompt,
        "engine": row.version(),
        "engine_settings": engine,
        "split": source.parts.digest,
        "settings": task.settings.known(),
        # Only where it is so: other digests are older than the fields.
        **({"rotations": True} if task.rotated else {}),
        **({"trained_split": trained} if trained not in (None, source.parts.digest) else {}),
    }
