"""What is different between two bundles, and what has to travel from one place to the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from tel_edge.runtime.bundles.manifest import BundleFile, Manifest, total_bytes

Key = tuple[str, str, str, str]


def differences(old: Manifest, new: Manifest) -> dict[str, Any]:
    """Return the changes as a document: backbone, files, decision, serials, bytes to move.

    `files` has a row for each that was added, removed or changed, or measured anew, with the
    figures of the gate (`parity`) before and after. Bytes are those of files of `new` whose content
    `old` does not have.
    """
    before, after = _by_key(old), _by_key(new)
    has = {file.sha256 for file in old.files}
    return {
        "serial": [old.serial, new.serial],
        "backbone": {
            name: [value, asdict(new.backbone)[name]]
            for name, value in asdict(old.backbone).items()
            if value != asdict(new.backbone)[name]
        },
        "files": [
            row
            for key in sorted({**before, **after})
            if (row := _row(before.get(key), after.get(key), has))
        ],
        "deploy": None if _decision(old) == _decision(new) else [_decision(old), _decision(new)],
        "move": total_bytes({f.sha256: f for f in new.files if f.sha256 not in has}.values()),
        "bytes": total_bytes(new.files),
    }


def told(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that say so."""
    old, new = found["serial"]
    yield f"serial {old or 'none'} -> {new or 'none'}"
    for name, (before, after) in found["backbone"].items():
        yield f"backbone {name}: {_short(before)} -> {_short(after)}"
    for row in found["files"]:
        figures = [f"{name} {was} -> {now}" for name, (was, now) in row["parity"].items()]
        size = "" if row["state"] == "removed" else f", {row['move'] / 1e6:,.2f} MB to move"
        yield f"{row['state']} {row['path']} ({row['what']}){size}" + "".join(
            f", {figure}" for figure in figures
        )
    if found["deploy"]:
        before, after = found["deploy"]
        yield f"decision: {before or 'none'} -> {after or 'none'}"
    yield f"to move: {found['move'] / 1e6:,.2f} of {found['bytes'] / 1e6:,.2f} MB"


def _by_key(made: Manifest) -> dict[Key, BundleFile]:
    return {(f.kind, f.category or "", f.format, f.quant): f for f in made.files}


def _row(old: BundleFile | None, new: BundleFile | None, has: set[str]) -> dict[str, Any] | None:
    file = new or old
    assert file is not None
    if old is None or new is None:
        state = "removed" if new is None else "added"
    elif (old.sha256, old.path) != (new.sha256, new.path):
        state = "changed" if old.sha256 != new.sha256 else "renamed"
    elif old.parity != new.parity:
        state = "measured"
    else:
        return None
    parity = [(one.parity or {}) if one else {} for one in (old, new)]
    return {
        "state": state,
        "path": file.path,
        "what": " ".join(filter(None, (file.kind, file.category, file.format, file.quant))),
        "move": file.bytes if new is not None and file.sha256 not in has else 0,
        "sha256": [one.sha256 if one else None for one in (old, new)],
        "parity": {
            name: [_figure(each.get(name)) for each in parity]
            for name in ("change", "adapter", "quantization", "conversion", "kl", "picks", "error")
            if all(parity) and parity[0].get(name) != parity[1].get(name)
        },
    }


def _figure(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")


def _decision(made: Manifest) -> str | None:
    if made.deploy is None:
        return None
    return f"{made.deploy.variant} in {', '.join(made.deploy.categories) or 'no category'}"


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
