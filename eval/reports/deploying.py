"""`tel-report --write`: the decision goes into the bundle, and `tel-run` takes that file."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tel_edge.eval.findings.decision import DEPLOY, IN_PART, NOT
from tel_edge.eval.findings.findings import Report
from tel_edge.eval.findings.worth import WORTH
from tel_edge.eval.reports import card
from tel_edge.eval.scoring.records import Summary
from tel_edge.runtime.bundles import bundle, manifest
from tel_edge.runtime.bundles.manifest import BundleFile, Deployed, Manifest
from tel_edge.runtime.bundles.shipping import store
from tel_edge.runtime.bundles.shipping.sources import Folder
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import lock
from tel_edge.runtime.files.atomic import make_folder, remove, replace_folder, temporary


def write(report: Report, folder: Path, say: Callable[[str], None]) -> Deployed:
    """Put the decision into the manifest of the bundle that was evaluated.

    Where it is to deploy nothing, an earlier one is taken out. Raises `InputError` then, and where
    the bundle has other files than those that the results are of.
    """
    made = report.decision
    with lock.held(folder, math.inf, say, inside=True):
        there = bundle.read(folder)
        if made.verdict not in (DEPLOY, IN_PART) or made.variant is None:
            raise InputError(f"--write: {made.headline}; {_refused(made.verdict, there, folder)}")
        rung = card.chosen(report)
        if rung is not None and rung.texts:
            raise InputError(
                f"--write: {made.variant} answers in texts, and what tel-run takes by itself "
                "answers by letters; pass --protocol generate there, nothing was written"
            )
        worth = tuple(each.category for each in made.categories if each.verdict == WORTH)
        file = _file(report, there, folder)
        adapters = {
            name: bundle.adapter_file(folder, there, name, file.format).sha256
            for name in worth
            if name in there.adapters(file.format)
        }
        deployed = Deployed(made.variant, file.sha256, worth, adapters)
        manifest.write(replace(there, deploy=deployed), folder)
    return deployed


def ship(folder: Path, out: Path) -> int:
    """Copy what was decided for in a bundle into one of its own, and return its bytes.

    `store.chosen` says what that is. Raises `InputError` where `out` is something else than such a
    bundle.
    """
    made = bundle.read(folder)
    if made.deploy is None:
        raise InputError(f"--ship: nothing was decided for in {folder}")
    if out.exists() and not (out / manifest.NAME).is_file():
        raise InputError(f"--ship: {out} is there and is no bundle; choose another folder")
    made = replace(made, files=store.chosen(folder, made))
    bundle.verify(folder, made, made.files)
    partial = temporary(out)
    try:
        make_folder(partial)
        store.fill(partial, made, Folder(folder), {})
        manifest.write(made, partial)
        replace_folder(partial, out)
    finally:
        remove(partial)
    return manifest.total_bytes(made.files)


def _refused(verdict: str, there: Manifest, folder: Path) -> str:
    if there.deploy is None:
        return "nothing was written"
    if verdict != NOT:
        return f"that {there.deploy.variant} was decided for before still stands in the bundle"
    manifest.write(replace(there, deploy=None), folder)
    return f"that {there.deploy.variant} was decided for before was taken out of the bundle"


def _file(report: Report, there: Manifest, folder: Path) -> BundleFile:
    """Return the backbone that was decided for, after checking it and what it answers with."""
    made = report.decision
    decided = {each.category for each in made.categories}
    own = [
        row.summary
        for section in report.sections
        for row in section.rows
        if row.summary.variant.name == made.variant and section.category in decided
    ]
    digests = {str(summary.made_with.get("backbone")) for summary in own}
    files = [f for f in there.files if f.kind == "backbone" and f.sha256 in digests]
    if len(digests) != 1 or not files:
        raise _another(folder, f"the file that {made.variant} was evaluated with")
    for summary in own:
        if _adapter(there, summary, files[0].format, folder) != summary.made_with.get("adapter"):
            raise _another(folder, f"the {summary.category} adapter that was evaluated")
    return files[0]


def _adapter(there: Manifest, summary: Summary, format: str, folder: Path) -> str | None:
    if summary.category not in there.adapters(format):
        return ""
    return bundle.adapter_file(folder, there, summary.category, format).sha256


def _another(folder: Path, what: str) -> InputError:
    return InputError(
        f"--write: {folder} does not hold {what}, or tel-run would take another there; evaluate "
        "this bundle, then report again"
    )
