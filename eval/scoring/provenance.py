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
from tel_edge.runtime.bundles.manifest import BundleFile, Manifest
from tel_edge.runtime.device.energy import Meter
from tel_edge.runtime.engines.engine import EngineSettings
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
    made = files_behind(task.manifest, task.backbone, task.adapter, task.engine)
    if task.settings.protocol != "letters":
        made["engine_settings"]["protocol_prompt"] = protocol.digest()
    trained = (task.adapter or task.backbone).split
    return {
        **made,
        "prompt": task.manifest.backbone.prompt,
        "split": source.parts.digest,
        "settings": task.settings.known(),
        # Only where it is so: other digests are older than the fields.
        **({"rotations": True} if task.rotated else {}),
        **({"trained_split": trained} if trained not in (None, source.parts.digest) else {}),
    }


def files_behind(
    manifest: Manifest, backbone: BundleFile, adapter: BundleFile | None, settings: EngineSettings
) -> dict[str, Any]:
    """Return the digests of the files that answer, the engine, and those settings that count."""
    row = FORMATS[backbone.format]
    passed = WITHOUT_EFFECT | row.ignored
    engine = {name: value for name, value in asdict(settings).items() if name not in passed}
    engine["batch"] = engine["batch"] or row.batch
    # Left out where empty: the digests of GGUF results are older than the field.
    if not engine.get("providers"):
        engine.pop("providers", None)
    # An ONNX backbone's weights and tokenizer are files of their own.
    parts = manifest.parts(backbone)
    return {
        "backbone": backbone.sha256,
        **{f"backbone_{part.kind}": part.sha256 for part in parts if part != backbone},
        "adapter": adapter.sha256 if adapter else None,
        "weights": manifest.backbone.weights,
        "engine": row.version(),
        "engine_settings": engine,
    }
