"""From a Hugging Face model to a plain ONNX decoder, through torch's exporter.

The graph has the inputs and outputs that optimum gives its decoders, so other tools know them:
`input_ids`, `attention_mask`, `position_ids` and `past_key_values.N.key|value` in, `logits` and
`present.N.key|value` out. Attention is the eager one: its mask is one value that all layers add,
where `slots` finds it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tel_edge.export import original

OPSET = 20


def trace(folder: Path, out: Path) -> None:
    """Write the model of `folder` to `out` in float32, its weights to `out`.data beside it."""
    import torch

    model = original.load(folder, attention="eager").cpu()
    past = 2 * model.config.num_hidden_layers
    inputs = ["input_ids", "attention_mask", "position_ids", *_names("past_key_values", past)]
    with _silence(), torch.no_grad():
        program = torch.onnx.export(
            _decoder(model),
            _example(model.config),
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=["logits", *_names("present", past)],
            dynamic_shapes=_dynamic(past),
            verbose=False,
        )
    assert program is not None
    program.save(out, external_data=True)


def _decoder(model: Any) -> Any:
    """Return the module that is traced: flat past in, flat present out."""
    import torch
    from transformers import DynamicCache

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self, input_ids: Any, attention_mask: Any, position_ids: Any, *past: Any
        ) -> Any:
            # Without the configuration no layer drops what has slid out of its window: the mask
            # hides it, and a prefix can be longer than the window.
            cache = DynamicCache()
            for layer, (key, value) in enumerate(zip(past[::2], past[1::2], strict=True)):
                cache.update(key, value, layer)
            made = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
            )
            layers = made.past_key_values.layers
            return made.logits, *(part for layer in layers for part in (layer.keys, layer.values))

    return Decoder().eval()


def _example(config: Any) -> tuple[Any, ...]:
    """Return inputs to trace with: all sizes above 1, for 1 would be taken as a constant."""
    import torch

    batch, sequence, past = 2, 3, 5
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = (batch, config.num_key_value_heads, past, width)
    return (
        torch.ones(batch, sequence, dtype=torch.int64),
        torch.ones(batch, past + sequence, dtype=torch.int64),
        torch.arange(past, past + sequence).repeat(batch, 1),
        *(torch.zeros(shape) for _ in range(2 * config.num_hidden_layers)),
    )


def _dynamic(past: int) -> tuple[Any, ...]:
    from torch.export import Dim

    batch, sequence = Dim("batch_size"), Dim("sequence_length")
    flat = tuple({0: batch, 2: Dim("past_sequence_length")} for _ in range(past))
    # The mask's length is the sum of the two others, which the exporter finds out itself.
    return {0: batch, 1: sequence}, {0: batch, 1: Dim.DYNAMIC}, {0: batch, 1: sequence}, flat


def _names(kind: str, count: int) -> list[str]:
    return [f"{kind}.{at // 2}.{('key', 'value')[at % 2]}" for at in range(count)]


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's notes to itself: what is missing of torchvision, and its deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
