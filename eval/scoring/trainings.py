"""What `training.json` beside an adapter says of its training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tel_edge.eval.statistics import Share, share
from tel_edge.runtime.bundles.manifest import BundleFile, Manifest
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import digest
from tel_edge.runtime.workspace import Workspace


@dataclass(frozen=True)
class Training:
    """One adapter's record; what it does not say is None or empty.

    `curve` holds points with `step` and any of `epoch`, `loss`, `validation_loss` and
    `validation_pass1`. `validation` is Pass@1 of the saved epoch, scored with PEFT.
    """

    category: str
    seconds: float | None
    parameters: int | None
    config: Mapping[str, Any]
    curve: tuple[Mapping[str, float], ...]
    validation: Share | None = None


def read(workspace: Workspace, backbone: str, category: str) -> Training | None:
    """Return the record of a category's adapter, None where there is none.

    Raises `InputError` if the file is something else.
    """
    path = workspace.adapter(backbone, category) / "training.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        seconds, parameters = found.get("seconds"), found.get("parameters")
        config, curve = found.get("config") or {}, found.get("curve") or []
        return Training(
            category,
            None if seconds is None else float(seconds),
            None if parameters is None else int(parameters),
            dict(config),
            tuple(_point(point) for point in curve if point.get("step") is not None),
            _validation(found),
        )
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{path}: not the record of a training ({error})\n"
            f"train again: tel-train --backbone {backbone} --category {category}"
        ) from None


def source(workspace: Workspace, backbone: str, category: str) -> str | None:
    """Return the digest of the adapter that lies beside the record, None where it has gone."""
    try:
        return digest.of_adapter(workspace.adapter(backbone, category))
    except OSError:
        return None


def check_tokenizer(workspace: Workspace, made: Manifest, file: BundleFile) -> str | None:
    """Compare the tokenizer that an adapter was trained with and the one of its bundle.

    `file` is an adapter or a merged model; its training.json may have gone. Returns a warning where
    an older record tells that the files differ and no more, and raises `InputError` where prompts
    are other tokens.
    """
    folder = workspace.adapter(made.backbone.name, file.category or "")
    path = folder / "training.json"
    try:
        trained = json.loads(path.read_text(encoding="utf-8")).get("backbone") or {}
        then, files = trained.get("tokenization"), trained.get("tokenizer")
    except (OSError, ValueError, AttributeError):
        return None
    now, differ = made.backbone.tokenization, files not in (None, made.backbone.tokenizer)
    if not differ or (then is not None and then == now) or digest.of_adapter(folder) != file.source:
        return None
    if then is not None and now is not None:
        raise InputError(
            f"{file.path}: trained with another tokenizer than {made.backbone.name} has in the "
            "bundle: prompts become other tokens; export it again with the files of the training"
        )
    return (
        f"warning: {file.path}: trained with other tokenizer files than the bundle's; if more than "
        "the chat template differs its scores are too low"
    )


def _point(point: Mapping[str, Any]) -> dict[str, float]:
    """Keep what can be drawn; a loss that has left the numbers is no JSON either."""
    names = ("step", "epoch", "loss", "validation_loss", "validation_pass1")
    known = {name: float(point[name]) for name in names if point.get(name) is not None}
    return {name: value for name, value in known.items() if math.isfinite(value)}


def _validation(found: Mapping[str, Any]) -> Share | None:
    value = (found.get("best") or {}).get("validation_pass1")
    count = (found.get("rows") or {}).get("validation")
    return share(round(value * count), count) if value is not None and count else None
