"""Folders of a workspace are called by a backbone's name, and two backbones may be called alike."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.workspace import Workspace


def check_adapters(workspace: Workspace, backbone: str, weights: str) -> None:
    """Raise `InputError` where adapters of another backbone that is called `backbone` are kept.

    `weights` is the digest of this one's weights (`digest.of_weights`), which each `training.json`
    records. What has no readable record is nobody's.
    """
    folder = workspace.adapter(backbone, "*").parent
    for path, record in _documents(folder, "*/training.json"):
        _check(path.parent, record, ("backbone", "weights"), backbone, weights)


def check_results(workspace: Workspace, backbone: str, weights: str) -> None:
    """Raise `InputError` where results of another backbone that is called `backbone` are kept.

    `weights` is the digest that the bundle's manifest has, and each summary. Those of large
    reference models, which a bundle's backbone may be called like, are left out.
    """
    folder = workspace.results(backbone, "*", "*").parents[1]
    for path, summary in _documents(folder, "*/*.json"):
        _check(path, summary, ("made_with", "weights"), backbone, weights)


def _documents(folder: Path, pattern: str) -> Iterator[tuple[Path, Any]]:
    for path in sorted(folder.glob(pattern)):
        if path.parent.name.startswith("reference-"):
            continue
        try:
            yield path, json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue


def _check(place: Path, document: Any, keys: tuple[str, str], backbone: str, weights: str) -> None:
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    if isinstance(document, str) and document != weights:
        raise InputError(
            f"{place}: of another backbone that is called {backbone} too (other weights or config)"
            "\npass another --workspace, rename the backbone's folder, or move that one away"
        )
