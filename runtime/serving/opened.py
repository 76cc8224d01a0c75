"""A bundle in the engine's process: opened once, its adapters exchanged while it answers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tel_edge.runtime.bundles import bundle, manifest
from tel_edge.runtime.bundles.manifest import Manifest
from tel_edge.runtime.engines.engine import Item, LoraFile
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.measuring import probe
from tel_edge.runtime.questions.categories import CATEGORIES, SPOKEN, category
from tel_edge.runtime.serving.worker import Worker

# Characters of a digest in the engine's name of an adapter.
SHORT = 16


def told(worker: Worker, made: Manifest) -> dict[str, Any]:
    """Return what is said of the bundle that answers now."""
    engine: Any = worker.answerer.engine
    otherwise = worker.answerer.defaults()
    adapters = {of: engine.adapter(name).digest for of, name in worker.adapters.items()}
    return {
        "event": "ready",
        "bundle": worker.bundle,
        "backbone": made.backbone.name,
        "file": worker.answerer.name,
        "adapters": adapters,
        "context": engine.context,
        "engine": engine.version,
        # The answers of categories that have their own; whether a question may name none.
        "labels": {
            of: CATEGORIES[of].labels
            for of in adapters
            if of in CATEGORIES and CATEGORIES[of].labels
        },
        "auto": bool(otherwise.category or otherwise.router or otherwise.bare),
    }


def exchange(worker: Worker, old: Manifest, folder: Path) -> Manifest:
    """Answer from now on with the adapters of the bundle in `folder`; return its manifest.

    Its backbone has to be the file that is open, of the bundle `old`. Adapters are checked, loaded
    between two decodes and asked a question each; if one of them cannot answer, nothing has
    changed. Nothing of the old folder is needed afterwards. Raises `InputError`.
    """
    made = bundle.read(folder)
    [file] = [one for one in old.files if one.path == worker.answerer.name]
    if all(one.sha256 != file.sha256 for one in made.files):
        raise InputError(f"{folder}: has not the backbone that is open, {file.path}; start anew")
    engine: Any = worker.answerer.engine
    names: dict[str, str] = {}
    adopted: list[str] = []
    moved: dict[str, LoraFile] = {}
    there = {engine.adapter(name).digest: name for name in worker.adapters.values()}
    try:
        for of in made.adapters(file.format):
            adapter = bundle.adapter_file(folder, made, of, file.format)
            path = bundle.verified(folder, made, adapter)
            names[of] = there.get(adapter.sha256) or f"{of}@{adapter.sha256[:SHORT]}"
            loaded = LoraFile(lambda path=path: path, adapter.sha256)  # type: ignore[misc]
            if adapter.sha256 in there:
                moved[names[of]] = loaded
                continue
            engine.adopt(names[of], loaded)
            adopted.append(names[of])
            _asked(worker, of, names[of])
    except (InputError, WorkError) as error:
        for name in adopted:
            engine.drop(name)
        raise InputError(f"{error}; the bundle before it goes on") from None
    for name, loaded in moved.items():
        engine.move(name, loaded)
    worker.change(manifest.of_folder(folder), names)
    return made


def _asked(worker: Worker, of: str, name: str) -> None:
    """Ask one question, so that what loads and does not answer is found now."""
    if of in SPOKEN:
        *ids, last = worker.answerer.engine.tokenize("Which answer do you give?")
        item = Item(ids, ((last,),))
    else:
        [question] = probe.questions(category(of), 1)
        item = worker.answerer.scorer.item(question)
    [(_, score)] = worker.answerer.engine.score([item], name)
    if not all(map(math.isfinite, score.logprobs)):
        raise InputError(f"the adapter for {of} gives no probabilities")
