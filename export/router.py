"""The router of a bundle: trained, measured and put beside the backbone."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tel_edge.eval.benchmarks.split import apart
from tel_edge.eval.scoring import router as training
from tel_edge.eval.scoring import router_figures
from tel_edge.runtime.bundles import manifest as manifests
from tel_edge.runtime.bundles.manifest import BundleFile, Manifest
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions import router
from tel_edge.runtime.workspace import Workspace

KIND = "router"
QUANT = router.TENSORS["weights"][0]


def make(
    folder: Path,
    manifest: Manifest,
    workspace: Workspace,
    dataset: str,
    seed: int,
    strict: bool,
    force: bool,
    say: Callable[[str], None],
) -> tuple[BundleFile, bool]:
    """Return the entry of the bundle's router, for the manifest, and whether it was made anew.

    A router that was made of the same questions in the same way is kept, unless `force`. Its
    figures on the test part go into the workspace. Raises `InputError` for a data set that is not
    there or has fewer than two categories, and if scikit-learn is not installed.
    """
    splits = training.sources(dataset, seed, strict, say)
    file = None if force else _kept(folder, manifest, training.source(splits))
    report = router_figures.report_path(workspace)
    if file and _reported(report, file):
        return file, False
    anew = file is None
    seconds: float | None = None
    if file is None:
        trained = sum(len(made.train) for made in apart(splits).values())
        left = sum(len(made.train) for made in splits.values()) - trained
        shared = f", {left:,} left out that another category holds out" if left else ""
        say(f"training the router on {trained:,} requests{shared}")
        path, began = folder / f"{manifest.backbone.name}-router.safetensors", time.perf_counter()
        made = training.train(splits, seed)
        seconds = time.perf_counter() - began
        training.save(made, path)
        file = manifests.describe(
            folder, path, kind=KIND, format=router.FORMAT, quant=QUANT, source=made.source
        )
    path = folder / file.path
    measured = training.evaluate(
        router.load(path), path, splits, dataset=dataset, seed=seed, seconds=seconds
    )
    router_figures.write(workspace, measured)
    say(
        f"router {'written' if anew else 'measured'}: {measured.whole.right.value:.1%} of "
        f"{measured.whole.right.of:,} {measured.part} requests went right, "
        f"{measured.whole.abstained.value:.1%} to the bare backbone"
        + (f", as did {measured.others.value:.0%} of other fields'" if measured.others else "")
    )
    return file, anew


def _kept(folder: Path, manifest: Manifest, source: str) -> BundleFile | None:
    file = manifest.find(KIND, QUANT, format=router.FORMAT)
    if file is None or file.source != source:
        return None
    try:
        manifests.verified(folder, file)
    except InputError:
        return None
    return file


def _reported(path: Path, file: BundleFile) -> bool:
    try:
        return router_figures.read(path).sha256 == file.sha256
    except InputError:
        return False
