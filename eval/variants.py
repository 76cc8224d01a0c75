"""Which variants of a bundle are scored: its formats and types, bare and with an adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tel_edge.eval.records import Variant
from tel_edge.runtime import bundle
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.formats import FORMATS
from tel_edge.runtime.manifest import BundleFile, Manifest

# The extra of pyproject.toml that a format's engine is in.
EXTRAS = {"gguf": "llama", "onnx": "onnx"}

# Types by format: formats in the order of `FORMATS`, the largest type of each first.
Types = Mapping[str, tuple[str, ...]]


def types(
    folder: Path,
    made: Manifest,
    format: str | None,
    wanted: Sequence[str] | None,
    say: Callable[[str], None],
) -> Types:
    """Return the types to score: all or those `wanted`, of all formats or of one.

    A format whose engine is not installed is left out, and `say` is told why. Raises `InputError`
    where a type that is wanted is not there, or nothing is left.
    """
    # Without any backbone there would be nothing to score, and nothing said.
    for quant in wanted or (None,):
        bundle.backbone_file(folder, made, quant, format)
    found: dict[str, tuple[str, ...]] = {}
    missing = []
    for name, row in FORMATS.items():
        there = made.quants(format=name) if format in (None, name) else ()
        own = tuple(quant for quant in there if wanted is None or quant in wanted)
        if own and row.installed():
            found[name] = own
        elif own:
            missing.append(
                f"{name.upper()} cannot be scored, {row.package[1]} is not installed; "
                f"run: pip install 'tel-edge[{EXTRAS[name]}]'"
            )
    if not found:
        raise InputError("\n".join(missing))
    for line in missing:
        say(line)
    return found


def adapters(folder: Path, made: Manifest, category: str, of: Types) -> dict[str, BundleFile]:
    """Return the category's adapter in each of the formats that has one.

    Raises `InputError` where there are adapters, but none for the category.
    """
    known = [name for name in of if made.adapters(name)]
    own = [name for name in known if category in made.adapters(name)]
    # Asking for one that is not there makes the error.
    return {name: bundle.adapter_file(folder, made, category, name) for name in own or known[:1]}


def variants(
    folder: Path, made: Manifest, category: str, of: Types, protocol: str = "letters"
) -> list[tuple[Variant, BundleFile, BundleFile | None]]:
    """Return what there is to score: the bare backbone at its best type, the adapter at each.

    The bare backbone is the reference "before" and is scored once, in the largest type of the
    first format. Raises `InputError` as `adapters` does.
    """
    found: list[tuple[Variant, BundleFile, BundleFile | None]] = []
    fitting = adapters(folder, made, category, of)
    for name, quants in of.items():
        for quant in quants:
            backbone = made.find("backbone", quant, format=name)
            if backbone is None:
                continue
            if not found:
                found.append((_variant(made, "base", backbone, None, protocol), backbone, None))
            if adapter := fitting.get(name):
                variant = _variant(made, "lora", backbone, adapter, protocol)
                found.append((variant, backbone, adapter))
    return found


def _variant(
    made: Manifest, kind: str, backbone: BundleFile, adapter: BundleFile | None, protocol: str
) -> Variant:
    parts = made.parts(backbone)
    return Variant(
        f"{kind}-{backbone.quant}" + ("" if protocol == "letters" else f"-{protocol}"),
        backbone.quant,
        backbone.format,
        adapter is not None,
        made.disk(backbone),
        adapter.bytes if adapter else 0,
        sum(part.bytes for part in parts if part.kind == "tokenizer"),
    )
