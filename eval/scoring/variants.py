"""Which variants of a bundle are scored: its formats and types, bare, with an adapter or merged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tel_edge.eval.scoring.records import Variant
from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.bundles.formats import FORMATS
from tel_edge.runtime.bundles.manifest import BundleFile, Manifest
from tel_edge.runtime.errors import InputError

# What a variant's name says of what its values depend on besides their type.
SUFFIXES = {"imatrix": "-imatrix", "tensor-type": "-mixed"}

# Types by format: formats in the order of `FORMATS`, the largest type of each first.
Types = Mapping[str, tuple[str, ...]]
# A variant, the file that is opened, and the adapter beside it.
Files = tuple[Variant, BundleFile, BundleFile | None]


def types(
    folder: Path,
    made: Manifest,
    format: str | None,
    wanted: Sequence[str] | None,
    say: Callable[[str], None],
    ladder: bool = False,
) -> Types:
    """Return the types to score: all or those `wanted`, of all formats or of one.

    Types are those of backbones, with `ladder` those of merged models too. A format whose engine
    is not installed is left out, and `say` is told why. Raises `InputError` where a type that is
    wanted is not there, or nothing is left.
    """
    kinds = ("backbone", "merged") if ladder else ("backbone",)
    there = {name: _largest_first(made, kinds, name) for name in FORMATS if format in (None, name)}
    # Without any model there would be nothing to score, and nothing said.
    for quant in wanted or (None,):
        if not any(quant in quants if quant else quants for quants in there.values()):
            bundle.backbone_file(folder, made, quant, format)
    found: dict[str, tuple[str, ...]] = {}
    missing = []
    for name, quants in there.items():
        row = FORMATS[name]
        own = tuple(quant for quant in quants if wanted is None or quant in wanted)
        if own and row.installed():
            found[name] = own
        elif own:
            missing.append(
                f"{name.upper()} cannot be scored, {row.package[1]} is not installed; "
                f"run: pip install 'tel-edge[{row.extra}]'"
            )
    if not found:
        raise InputError("\n".join(missing))
    for line in missing:
        say(line)
    return found


def _largest_first(made: Manifest, kinds: Sequence[str], format: str) -> tuple[str, ...]:
    sizes: dict[str, int] = {}
    for file in made.files:
        if file.kind in kinds and file.format == format:
            sizes[file.quant] = max(made.disk(file), sizes.get(file.quant, 0))
    return tuple(sorted(sizes, key=lambda quant: -sizes[quant]))


def categories(made: Manifest, of: Types, ladder: bool = False) -> tuple[str, ...]:
    """Return the categories that something was trained for, in the order of the manifest."""
    names = [category for name in of for category in made.adapters(name)]
    names += [f.category for f in made.files if ladder and f.category and _merged(f, of)]
    return tuple(dict.fromkeys(names))


def adapters(
    folder: Path, made: Manifest, category: str, of: Types, ladder: bool = False
) -> dict[str, tuple[BundleFile, ...]]:
    """Return the category's adapters in each format that has one, in the runtime's order.

    Without `ladder` it is the first alone. Raises `InputError` for an adapter of another backbone,
    and where there are adapters, but nothing for the category.
    """
    known = [name for name in of if made.adapters(name)]
    own = [name for name in known if category in made.adapters(name)]
    if not own and ladder and any(f.category == category and _merged(f, of) for f in made.files):
        return {}
    found = {}
    for name in own or known[:1]:
        there = bundle.adapter_files(folder, made, category, name)
        chosen = there if ladder else there[:1]
        found[name] = tuple(bundle.fitting(folder, made, file) for file in chosen)
    return found


def variants(
    folder: Path,
    made: Manifest,
    category: str,
    of: Types,
    suffix: str = "",
    ladder: bool = False,
) -> list[Files]:
    """Return what there is to score: the bare backbone at its best type, the adapter at each.

    The bare backbone is the reference "before" and is scored once, in the largest type of the
    first format. With `ladder` it is scored at each type, and so are the adapters of other types
    and the category's merged model. Raises `InputError` as `adapters` does, and for a merged model
    of another backbone. `suffix` is that of `Settings`.
    """
    found: list[Files] = []
    fitting = adapters(folder, made, category, of, ladder)
    for name, quants in of.items():
        for quant in quants:
            backbone = made.find("backbone", quant, format=name)
            if backbone:
                if ladder or not found:
                    found.append((variant_of(made, backbone, None, "", suffix), backbone, None))
                for adapter in fitting.get(name, ()):
                    # Also where the usual one is not there: another bundle may have it.
                    other = "" if adapter.quant == FORMATS[name].usual else f"+{adapter.quant}"
                    variant = variant_of(made, backbone, adapter, other, suffix)
                    found.append((variant, backbone, adapter))
            whole = made.find("merged", quant, category, name) if ladder else None
            if whole:
                _check_merged(folder, made, whole)
                found.append((variant_of(made, whole, None, "", suffix), whole, None))
    return found


def before_and_after(there: Sequence[Files]) -> list[Files]:
    """Return the bare backbone and its adapter at the largest type: what training changed."""
    bare = [files for files in there if not files[0].adapter][:1]
    return bare + [files for files in there if files[2] is not None][:1]


def trained(files: Files) -> BundleFile | None:
    """Return the file of a variant that knows the training questions, None for a bare backbone."""
    _, model, adapter = files
    return model if model.kind == "merged" else adapter


def _merged(file: BundleFile, of: Types) -> bool:
    """Return whether a file is a merged model of one of the types."""
    return file.kind == "merged" and file.quant in of.get(file.format, ())


def _check_merged(folder: Path, made: Manifest, file: BundleFile) -> None:
    if file.backbone != made.backbone.weights:
        raise InputError(
            f"{folder / file.path}: made for another backbone than {made.backbone.name}; "
            f"run: tel-export --merge --adapter {file.category} --quant {file.quant}"
        )


def variant_of(
    made: Manifest,
    model: BundleFile,
    adapter: BundleFile | None,
    other: str = "",
    asked: str = "",
) -> Variant:
    """Return what a file with that adapter is called and says of itself.

    `other` and `asked` are what the name says of the adapter's type and of how it was asked.
    """
    merged = model.kind == "merged"
    kind = "merged" if merged else "lora" if adapter else "base"
    options = [part.split()[0] for part in (model.options or "").split("; ") if part.strip()]
    suffix = "".join(text for word, text in SUFFIXES.items() if word in options)
    return Variant(
        name=f"{kind}-{model.quant}{suffix}{other}{asked}",
        quant=model.quant,
        format=model.format,
        adapter=merged or adapter is not None,
        backbone_bytes=made.disk(model),
        adapter_bytes=adapter.bytes if adapter else 0,
        tokenizer_bytes=sum(f.bytes for f in made.parts(model) if f.kind == "tokenizer"),
        merged=merged,
        adapter_quant=adapter.quant if adapter else None,
        options=model.options,
        source=model.source if merged else adapter.source if adapter else None,
    )
