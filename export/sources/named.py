"""What is exported, opened and checked against each other, and what of it is there already."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tel_edge.eval.folders import chat
from tel_edge.eval.folders import checkpoint as checkpoints
from tel_edge.eval.folders.checkpoint import Checkpoint
from tel_edge.eval.from_gguf import fetching
from tel_edge.export.output import Output
from tel_edge.export.progress import Step
from tel_edge.export.request import ExportRequest
from tel_edge.export.sources import adapter, selection
from tel_edge.export.sources.adapter import AdapterExport
from tel_edge.runtime import cli, progress
from tel_edge.runtime.bundles import backbones
from tel_edge.runtime.bundles.formats import FORMATS
from tel_edge.runtime.bundles.manifest import BackboneInfo, BundleFile
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.files import digest, gguf_header
from tel_edge.runtime.questions import prompt
from tel_edge.runtime.questions.categories import SPOKEN


@dataclass(frozen=True)
class Sources:
    """What is exported, opened and checked against each other: a backbone and its adapters.

    `file` is the GGUF file that the backbone is, None where it is a folder.
    """

    checkpoint: Checkpoint
    info: BackboneInfo
    jobs: tuple[AdapterExport, ...]
    file: Path | None = None


def sources(request: ExportRequest, half: bool, slides: bool = False) -> Sources:
    """Open the backbone and the adapters that the arguments name.

    `half`: values have to fit float16; `slides`: layers of any model may slide.
    """
    row = backbones.find(request.backbone)
    chosen = selection.chosen(request.adapter, request.category, request.home, row.name)
    fetched = fetching.fetch(row, None, partial(cli.say, request), request.quiet)
    folder = fetched.folder
    opened = checkpoints.load(folder, slides)
    info = BackboneInfo(
        name=row.name,
        architecture=opened.shape.architecture.gguf,
        weights=digest.of_weights(folder),
        tokenizer=digest.of_tokenizer(folder),
        tokenization=digest.of_tokenization(folder),
        prompt=prompt.digest(),
        licence=row.licence,
        origin=FORMATS["gguf"].weights(fetched.file) if fetched.file else None,
        template=chat.digest(folder),
    )
    return Sources(opened, info, _jobs(request, chosen, opened, info, half), fetched.file)


def say_quantized(request: ExportRequest, file: Path | None, types: Sequence[str]) -> None:
    """Warn of types that are made from a file which has lost something already."""
    if file is None or not types:
        return
    kind = gguf_header.file_type(gguf_header.check(file).metadata)
    if kind not in ("F32", "F16", "BF16"):
        cli.say(
            request,
            f"warning: {', '.join(types)}: made from {file.name}, which was quantized before "
            f"({kind}); what that lost stays lost, and the file itself is --quant {kind}",
        )


def _jobs(
    request: ExportRequest,
    chosen: list[selection.Chosen],
    opened: Checkpoint,
    info: BackboneInfo,
    half: bool,
) -> tuple[AdapterExport, ...]:
    jobs: dict[str, AdapterExport] = {}
    for one in chosen:
        loaded = adapter.load(one.folder, opened.shape, info, half)
        category = selection.agreed(one, loaded.category, len(loaded.splits) > 1)
        if category in SPOKEN and info.template is None:
            raise InputError(
                f"{opened.folder}: no chat template, by which {category} is answered; put the "
                "backbone's chat_template.jinja there"
            )
        if category in jobs:
            raise InputError(
                f"two adapters for {category}: {jobs[category].adapter.folder} and {one.folder}; "
                "export one of them"
            )
        for note in loaded.notes:
            cli.say(request, f"warning: {one.folder}: {note}")
        before = {job.adapter.folder for job in jobs.values()}
        if loaded.contaminated != 0 and one.folder not in before:
            known = "unknown how many" if loaded.contaminated is None else loaded.contaminated
            cli.say(
                request,
                f"warning: {one.folder}: {known} test questions stand in the training of another "
                "of its categories; their scores are too good",
            )
        split = dict(loaded.splits).get(category, loaded.split)
        jobs[category] = AdapterExport(category, replace(loaded, split=split))
    # A folder that is named for several categories is one.
    unbound = {job.adapter.folder: job.adapter for job in jobs.values() if not job.adapter.bound}
    for first in list(unbound.values())[:1]:
        others = f" (and {len(unbound) - 1} other adapters)" if len(unbound) > 1 else ""
        cli.say(
            request,
            f"warning: {first.folder}{others}: no {adapter.TRAINING}; only shapes bind it to "
            f"{info.name}, it names {first.base} as its base",
        )
    return tuple(jobs.values())


def unfinished(
    request: ExportRequest,
    jobs: tuple[AdapterExport, ...],
    output: Output,
    quant: str,
    format: str = "gguf",
) -> tuple[AdapterExport, ...]:
    """Return the jobs whose adapters are still to be made."""
    left = []
    for job in jobs:
        made = job.adapter
        file = None if request.force else there(
            request, output, "adapter", quant, job.category, made.source, format=format,
            split=made.split,
        )  # fmt: skip
        if file is None or file.rank != made.rank:
            left.append(job)
    return tuple(left)


def there(
    request: ExportRequest,
    output: Output,
    kind: str,
    quant: str,
    category: str | None,
    source: str,
    options: str | None = None,
    format: str = "gguf",
    *,
    inputs: str | None = None,
    former: str | None = None,
    split: str | None = None,
) -> BundleFile | None:
    """Return the finished file of that key, unless it still has to be measured.

    `split` is that of the adapter in it; see `Output.intact` for the others.
    """
    file = output.intact(
        kind, quant, category, source, options, format, inputs=inputs, former=former
    )
    measured = file and (file.parity or not request.verify)
    return file if measured and file and file.split == split else None


def check_space(request: ExportRequest, output: Output, needed: float) -> None:
    """Raise `WorkError` unless so many bytes are free where the bundle is."""
    if request.dry_run:
        return
    place = output.folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise WorkError(
            f"{place}: {free / 1e6:,.0f} MB free, about {needed / 1e6:,.0f} MB needed; "
            "make room, or pass --out on another disk"
        )


@contextmanager
def bar(request: ExportRequest, total: int, label: str) -> Iterator[Step]:
    """Give the step function of a progress bar on stderr."""
    with progress.bar(label, "", total, request.quiet, unit_scale=total > 1000) as shown:
        yield shown.update
