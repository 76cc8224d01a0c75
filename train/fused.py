"""A LoRA layer's forward and backward pass in as few operations as it takes.

PEFT's layer computes the adapter's two products in copies of their own and adds them up; under
autocast it casts the frozen weights again for every part of a step, too, and keeps the input in
float32 and in bfloat16. Of a small model's step on a CPU that is more than the products themselves:
measured in docs/training.md.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear


class LoraProduct(torch.autograd.Function):
    """y = x W' + x (s A)' B', with gradients for x, A and B.

    x [.., in] in any precision, W [out, in] in the one that is computed in, and frozen; A [rank,
    in] and B [out, rank] in float32; y [.., out] has the precision of W.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """Return y."""
        rows = x.to(weight.dtype).flatten(0, -2)
        down, up = (a * scale).to(weight.dtype), b.to(weight.dtype)
        inner = rows @ down.t()
        ctx.save_for_backward(rows, inner, weight, down, up)
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, x.dtype
        return (rows @ weight.t()).addmm_(inner, up.t()).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, given: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x, A and B."""
        rows, inner, weight, down, up = ctx.saved_tensors
        given = given.to(weight.dtype).flatten(0, -2)
        through = given @ up
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (given @ weight).addmm_(through, down).view(ctx.shape).to(ctx.dtype)
        of_a = (through.t() @ rows).float() * ctx.scale
        return of_x, None, of_a, (given.t() @ inner).float(), None


def fuse(peft: torch.nn.Module, dtype: torch.dtype) -> int:
    """Let the plain LoRA layers of `peft` compute this way, in `dtype`; return how many they are.

    Their frozen weights get this precision for good. Layers with dropout, whose two products have
    different inputs, stay as they are. What is saved of the adapter is the same.
    """
    layers = [layer for layer in peft.modules() if isinstance(layer, Linear) and _plain(layer)]
    for layer in layers:
        layer.base_layer.weight.data = layer.base_layer.weight.data.to(dtype)
        layer.forward = partial(_forward, layer)
    return len(layers)


def _plain(layer: Linear) -> bool:
    return (
        list(layer.lora_A) == ["default"]
        and isinstance(layer.lora_dropout["default"], torch.nn.Identity)
        and not layer.lora_variant
    )


def _forward(layer: Linear, x: torch.Tensor) -> torch.Tensor:
    base, a, b = layer.base_layer, layer.lora_A["default"], layer.lora_B["default"]
    scale = layer.scaling["default"]
    product: Any = LoraProduct.apply
    made: torch.Tensor = product(x, base.weight, a.weight, b.weight, scale)
    made = made if base.bias is None else made + base.bias
    # Outside autocast what meets this next has the precision of `x`.
    return made if torch.is_autocast_enabled("cpu") else made.to(x.dtype)
