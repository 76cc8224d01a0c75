"""`export`: from a request to a bundle, as `tel-export` does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tel_edge.export.exporters import EXPORTERS
from tel_edge.export.output import Output
from tel_edge.export.request import ExportRequest
from tel_edge.runtime import cli
from tel_edge.runtime.bundles.manifest import BundleFile, Manifest
from tel_edge.runtime.files.atomic import write_text


@dataclass(frozen=True)
class Exported:
    """What an export made: the files that were asked for, and which of them are new.

    `seconds` are what writing and judging took, by path of a new file. Of a dry run there is only
    `forecast`, the bytes of each type's file; `parameters` is the number of the backbone's weights,
    `pushed` the address on the hub.
    """

    bundle: Path
    manifest: Manifest
    parameters: int
    files: tuple[tuple[BundleFile, bool], ...] = ()
    seconds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    forecast: Mapping[str, int] = field(default_factory=dict)
    pushed: str | None = None


def export(request: ExportRequest) -> Exported:
    """Check everything, then make what is missing, and nothing that is there.

    Raises `InputError` for what does not fit, with nothing written, and `WorkError` for a file that
    the gate does not accept.
    """
    request = request.resolved()
    if request.push:
        from tel_edge.export import push

        push.check(request.push)
    half = EXPORTERS[request.format].half
    plan = half.plan(request)
    parameters = plan.checkpoint.parameters
    if request.dry_run:
        sizes = half.forecast(request, plan)
        return Exported(plan.output.folder, plan.output.manifest, parameters, forecast=sizes)
    with plan.output.owned(request.wait, partial(cli.say, request)) as changed:
        plan = half.plan(request) if changed else plan
        files = [*half.make(request, plan)]
        if request.router:
            files.append(_router(request, plan.output))
        out = plan.output
        _card(out)
        url = _pushed(out, request.push) if request.push else None
    return Exported(out.folder, out.manifest, parameters, tuple(files), dict(out.took), pushed=url)


def _router(request: ExportRequest, out: Output) -> tuple[BundleFile, bool]:
    """Return the bundle's router and whether it is new."""
    from tel_edge.export import router

    routed = router.make(
        out.folder, out.manifest, request.home, request.dataset, request.seed, request.strict,
        request.force, partial(cli.say, request),
    )  # fmt: skip
    out.add(routed[0])
    return routed


def _pushed(out: Output, repository: str) -> str:
    from tel_edge.export import push

    return push.push(out.folder, out.manifest, repository)


def _card(out: Output) -> None:
    from tel_edge.eval.folders import hub_card
    from tel_edge.export import card

    path, text = out.folder / hub_card.NAME, card.render(out.manifest)
    # The same card is left alone, so a run that has nothing to do changes no file.
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
