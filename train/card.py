"""The model card of an adapter's PEFT folder, in place of PEFT's own, which has blanks alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tel_edge.eval.folders.hub_card import front
from tel_edge.runtime.bundles.backbones import Backbone
from tel_edge.runtime.questions.categories import SPOKEN


def render(record: Mapping[str, Any], backbone: Backbone) -> str:
    """Return the card of a finished adapter, of what its `training.json` says."""
    name, of, rows = record["category"], record["config"], record["rows"]
    spoken, best = name in SPOKEN, record["best"]
    shown = {
        "trained on": f"{record['dataset']}, {rows['train']:,} of {rows['train_uncapped']:,} "
        f"{'dialogues' if spoken else 'questions'} of its train part, split "
        f"`{record['split'][:12]}`",
        "rank, alpha": f"{of['rank']}, {of['alpha']}",
        "projections": ", ".join(of["targets"]),
        "learning rate, batch": f"{of['learning_rate']:g}, {of['batch']}",
        "epochs": f"{len(record['curve'])} of at most {of['epochs']}; this is the "
        f"{'last' if record.get('kept') == 'last' else 'best'} one, {best['epoch']:g}",
        "validation loss": f"{best['validation_loss']:.3f}",
        "seed": str(record["seed"]),
        "made by": ", ".join(f"{what} {which}" for what, which in record["versions"].items()),
    }
    asked = (
        "It answers in sentences, by the backbone's own chat template."
        if spoken
        else "It answers with a single letter, to the prompt of tel-edge."
    )
    return "\n".join(
        [
            *front(backbone.hub, "adapter", "peft", ("lora",)), "",
            f"# {name} on {backbone.name}", "",
            f"A LoRA adapter of tel-edge for {backbone.name} ({backbone.licence}). {asked} "
            "It belongs to this very backbone; over another of the same size it answers wrongly. "
            "`training.json` has all that it was made from.", "",
            "| | |", "|---|---|",
            *(f"| {what} | {text} |" for what, text in shown.items()), "",
            "```sh", f"tel-export --backbone {backbone.name} --adapter .", "```",
        ]
    ) + "\n"  # fmt: skip
