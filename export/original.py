"""The model that an export is made from, as transformers and PEFT compute it in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tel_edge.eval.folders import contents, loading
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
    return _placed(model)


def mapped(folder: Path) -> Any:
    """Return the model of a folder, whose matrices stay as they are stored.

    Each is widened where it is used, so that it computes what `load` does: those of 16 bits in half
    the memory, and a third slower. One thread at a time may run it.
    """
    import torch
    from torch.nn.utils import parametrize

    kinds = {tensor.kind for tensor in contents.read(folder).tensors.values()}
    # One type for all, or the library would round what is finer than it.
    only = kinds.pop() if len(kinds) == 1 else ""
    dtype = {"BF16": torch.bfloat16, "F16": torch.float16}.get(only, torch.float32)
    model = _placed(loading.model(folder, dtype))

    # One place for all, each being used up before the next is asked for: new memory for each
    # would cost more than the products.
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    place = torch.empty(max(module.weight.numel() for module in linear), device=model.device)

    class Widened(torch.nn.Module):
        def forward(self, weight: Any) -> Any:
            return place[: weight.numel()].view(weight.shape).copy_(weight)

    for module in list(model.modules()):
        if isinstance(module, torch.nn.Embedding):
            module.register_forward_hook(lambda _, __, rows: rows.float())
        elif isinstance(module, torch.nn.Linear):
            # PEFT asks a layer for its type, and makes its own matrices of that one.
            parametrize.register_parametrization(module, "weight", Widened(), unsafe=True)
            if module.bias is not None:
                module.bias.data = module.bias.data.float()
        else:
            for weight in module.parameters(recurse=False):
                weight.data = weight.data.float()
    return model


def _placed(model: Any) -> Any:
    import torch

    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
