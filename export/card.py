"""The model card of a bundle: README.md with the front matter that the hub reads."""

from __future__ import annotations

from tel_edge.eval.folders.hub_card import front
from tel_edge.runtime.bundles.backbones import BACKBONES
from tel_edge.runtime.bundles.formats import FIRST
from tel_edge.runtime.bundles.manifest import NOT_MEASURED, BundleFile, Manifest, total_bytes
from tel_edge.runtime.questions.categories import CATEGORIES, SPOKEN


def render(made: Manifest) -> str:
    """Return the card of a bundle."""
    return "\n".join([*_front(made), "", *_body(made)]) + "\n"


def _front(made: Manifest) -> list[str]:
    row = BACKBONES.get(made.backbone.name)
    # A bundle that holds adapters is one of adapters to the hub, though backbones lie beside them.
    relation = "adapter" if _adapters(made) else "quantized"
    licence = None if made.backbone.licence == "unknown" else made.backbone.licence
    there = made.formats() or (FIRST,)
    tags = (*there, "lora") if _adapters(made) else there
    return front(row.hub if row else "", relation, there[0], tags, licence)


def _body(made: Manifest) -> list[str]:
    name, adapters = made.backbone.name, _adapters(made)
    # With fixed labels there is nothing to choose between.
    own = [each for each in adapters if each in CATEGORIES and not CATEGORIES[each].labels]
    asked, types = next(iter(own), "oranbench"), sum(f.kind == "backbone" for f in made.files)
    lines = [
        f"# {name}: telecom question answering on the device",
        "",
        f"A bundle of tel-edge: the backbone {name} ({made.backbone.architecture}) in "
        f"{types} types and {len(adapters)} LoRA adapters, one a category. "
        "`manifest.json` binds the files to each other by SHA-256.",
        "",
        "| file | kind | category | type | MB | KL to PEFT | equal picks |",
        "|---|---|---|---|---:|---:|---:|",
        *(_row(file) for file in made.files),
        "",
        f"Together {total_bytes(made.files) / 1e6:,.1f} MB.",
        "",
        "Answers are single letters: the prompt ends with the lettered options, and the letter "
        "with the largest probability is the answer. An adapter belongs to this very backbone; "
        "over another of the same size it loads and answers wrongly.",
        "",
        "```sh",
        f"tel-run --bundle . --category {asked} --choice FIRST --choice SECOND QUESTION",
        "```",
    ]
    if spoken := [name for name in adapters if name in SPOKEN]:
        lines += [
            "",
            f"The {', '.join(spoken)} adapter answers in sentences instead, by the "
            "backbone's own chat template.",
        ]
    if trained := [file for file in made.files if file.category]:
        lines += ["", "## Training", ""]
        lines += [
            f"- {file.path}: trained on {file.dataset or 'unknown data'}, rank {file.rank or '?'}, "
            f"split `{(file.split or 'unknown')[:12]}`"
            for file in trained
        ]
    return lines


def _adapters(made: Manifest) -> tuple[str, ...]:
    """Return the categories that have an adapter in any format."""
    found = (name for format in made.formats() for name in made.adapters(format))
    return tuple(dict.fromkeys(found))


def _row(file: BundleFile) -> str:
    figures = (_unmeasured(file), "") if file.parity is None else (
        f"{file.parity['kl']:.1e}", f"{file.parity['picks']:.0%}"
    )  # fmt: skip
    return (
        f"| {file.path} | {file.kind} | {file.category or ''} | {file.quant} | "
        f"{file.bytes / 1e6:,.2f} | {figures[0]} | {figures[1]} |"
    )


def _unmeasured(file: BundleFile) -> str:
    # These hold no model by themselves, so there is nothing to compare.
    return "" if file.kind in NOT_MEASURED else "not verified"
