"""The model that an export is made from, as transformers and PEFT compute it in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tel_edge.eval.folders import loading
from tel_edge.runtime import extras


def check() -> None:
    """Raise `InputError` where what `load` needs is not installed."""
    for module in ("torch", "transformers", "peft"):
        extras.check(module, "train")


def load(folder: Path, adapter: Path | None = None, attention: str | None = None) -> Any:
    """Return the model of a Hugging Face folder, with a PEFT adapter over it if one is given.

    `attention` is transformers' implementation of it, None leaving that to the library.
    """
    import torch
    from peft import PeftModel

    model = loading.model(folder, torch.float32, attention)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
