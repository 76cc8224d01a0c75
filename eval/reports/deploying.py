"""`tel-report --write`: the decision goes into the bundle, and `tel-run` takes that file."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tel_edge.eval.findings.decision import DEPLOY, IN_PART, WORTH
from tel_edge.eval.findings.findings import Report
from tel_edge.runtime.bundles import bundle, manifest
from tel_edge.runtime.bundles.manifest import Deployed
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import lock


def write(report: Report, folder: Path, say: Callable[[str], None]) -> Deployed:
    """Put the decision into the manifest of the bundle that was evaluated.

    Raises `InputError` where there is nothing to deploy, or the bundle has other files than those
    that the results are of.
    """
    made = report.decision
    if made.verdict not in (DEPLOY, IN_PART) or made.variant is None:
        raise InputError(f"--write: {made.headline}; nothing was written")
    digests = {
        str(row.summary.made_with.get("backbone"))
        for section in report.sections
        for row in section.rows
        if row.summary.variant.name == made.variant
    }
    with lock.held(folder, math.inf, say, inside=True):
        there = bundle.read(folder)
        file = next((f for f in there.files if f.kind == "backbone" and f.sha256 in digests), None)
        if file is None or len(digests) != 1:
            raise InputError(
                f"--write: {folder} does not hold the file that {made.variant} was evaluated with; "
                "evaluate this bundle, then report again"
            )
        worth = tuple(each.category for each in made.categories if each.verdict == WORTH)
        deployed = Deployed(made.variant, file.sha256, worth)
        manifest.write(replace(there, deploy=deployed), folder)
    return deployed
