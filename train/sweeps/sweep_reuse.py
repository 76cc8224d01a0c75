"""Which rows of a sweep still hold: what their trainings recorded, compared with what is here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.benchmarks.split import split
from tel_edge.eval.folders import chat
from tel_edge.eval.from_gguf import fetching
from tel_edge.runtime.bundles import backbones, bundle
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import checked, digest
from tel_edge.runtime.questions import prompt
from tel_edge.runtime.questions.categories import SPOKEN, category
from tel_edge.runtime.workspace import Workspace
from tel_edge.train.dialogues.reading import read


class Here:
    """The digests of what a run would be made of now; each is computed once, when it is needed."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._backbone, self._split = cache(_backbone), cache(_split)

    def changed(self, options: Mapping[str, str], record: Mapping[str, Any]) -> str | None:
        """Return what is another one than in a training's `record`, None if nothing is.

        What the record does not say is not compared. Raises `InputError` where something that it
        says cannot be had here.
        """
        for what, recorded, now in self._facts(options, record):
            if recorded is not None and recorded != now():
                return what
        return None

    def _facts(
        self, options: Mapping[str, str], record: Mapping[str, Any]
    ) -> Iterator[tuple[str, Any, Callable[[], Any]]]:
        trained, over = record.get("backbone") or {}, record.get("over") or {}
        revision = options.get("revision")

        def backbone(part: str) -> Callable[[], str | None]:
            return lambda: self._backbone(options["backbone"], revision)[part]

        yield "the prompt", record.get("prompt"), prompt.digest
        yield "the chat template", record.get("template"), backbone("template")
        yield (
            "the data set",
            record.get("split"),
            lambda: self._split(
                options["dataset"], options["category"], int(options["seed"]), "strict" in options
            ),
        )
        yield "the backbone", trained.get("weights"), backbone("weights")
        yield "the backbone's tokenizer", trained.get("tokenizer"), backbone("tokenizer")
        yield "the quantized file", over.get("sha256"), lambda: self._over(options)

    def _over(self, options: Mapping[str, str]) -> str:
        folder = self._workspace.bundle(backbones.find(options["backbone"]).name)
        made = bundle.read(folder)
        return bundle.backbone_file(folder, made, options.get("over-quant"), "gguf").sha256


def _backbone(name: str, revision: str | None) -> Mapping[str, str | None]:
    folder = fetching.fetch(backbones.find(name), revision).folder
    # Weights that were hashed before and have not changed are not read again.
    return {
        "weights": digest.of_weights(folder, checked.sha256),
        "tokenizer": digest.of_tokenizer(folder),
        "template": chat.digest(folder),
    }


def _split(dataset: str, name: str, seed: int, strict: bool) -> str:
    if name in SPOKEN:
        return read(Path(dataset)).digest
    return split(benchmark.read(dataset, category(name), strict).questions, seed).digest


def judged(
    here: Here, name: str, options: Mapping[str, str], record: Mapping[str, Any] | None
) -> tuple[bool, str | None]:
    """Return whether the row of run `name` still holds, and a line for the log or None."""
    try:
        what = here.changed(options, record or {})
    except InputError as error:
        reason = str(error).split("\n")[0]
        return True, f"{name}: reused, though what it was made of cannot be compared: {reason}"
    return what is None, what and f"{name}: {what} is another one since, run again"
