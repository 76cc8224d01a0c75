"""Tiny decoders as ONNX: each is traced once a session, and all else is made of that."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import export_models as models

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "exaone4": ("exaone4", {}),
    "sliding": (
        "exaone4",
        {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}
# What PEFT's scale is made of, another way for each of them.
ADAPTERS: dict[str, dict[str, Any]] = {
    "llama": {
        "use_rslora": True,
        "rank_pattern": {"k_proj": 2, "^model.layers.0.mlp.gate_proj": 12},
        "alpha_pattern": {"q_proj": 40, "layers.1.mlp.up_proj": 3},
    },
    "qwen2": {"lora_alpha": 8},
    "qwen3": {"alpha_pattern": {"v_proj": 5}, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "exaone4": {"r": 4, "lora_alpha": 20},
    "sliding": {"layers_to_transform": [1]},
}
SOURCE = "plain.onnx"
CATEGORIES = ("oranbench", "teleqna", "teletables")
QUANTS = ("fp32", "int8", "int4", "dynamic-int8")


class Tiny:
    """One of `KINDS`; each of its files is made when it is first asked for."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind

    @cached_property
    def base(self) -> Path:
        kind, more = KINDS[self.kind]
        return models.backbone(self.folder / "base", kind, **more)

    @cached_property
    def plain(self) -> Path:
        from tel_edge.export.onnx import trace

        base = self.base
        (self.folder / "traced").mkdir()
        trace.trace(base, self.folder / "traced" / SOURCE)
        return self.folder / "traced" / SOURCE

    @cached_property
    def checkpoint(self) -> Any:
        from tel_edge.eval.folders import checkpoint

        return checkpoint.load(self.base, True)

    @property
    def shape(self) -> Any:
        return self.checkpoint.shape

    @cached_property
    def slots(self) -> Path:
        """The float32 backbone with slots."""
        return self.prepared(self.loaded(), self.folder / "slots" / "x-fp32.onnx")

    def loaded(self) -> Any:
        from tel_edge.export.onnx import container

        return container.load(self.plain)

    def prepared(self, model: Any, out: Path) -> Path:
        from tel_edge.export.onnx import container, slots

        slots.prepare(model, self.shape, "x.onnx")
        out.parent.mkdir(exist_ok=True)
        container.write(model, out, self.plain.parent, lambda _: None)
        return out

    @cached_property
    def fused(self) -> Path:
        """The same with onnxruntime's operators for attention and norms."""
        from tel_edge.export.onnx import container, fused

        model = container.load(self.slots)
        fused.fuse(model, self.shape, "x.onnx")
        out = self.folder / "fused" / "x-fp32.onnx"
        out.parent.mkdir()
        container.write(model, out, self.slots.parent, lambda _: None)
        return out

    @cached_property
    def adapter(self) -> Path:
        """A PEFT folder."""
        return models.adapter(self.folder / "adapter", self.base, **ADAPTERS[self.kind])

    @cached_property
    def onnx_adapter(self) -> Path:
        return self.written(self.adapter, self.folder / "x.onnx_adapter")

    def written(self, peft: Path, out: Path, weights: str = "a" * 64) -> Path:
        """Write an adapter that says it was made for the backbone `weights`."""
        from tel_edge.export.onnx.adapter import write_adapter
        from tel_edge.export.sources import adapter
        from tel_edge.runtime.bundles.manifest import BackboneInfo
        from tel_edge.runtime.files import digest

        info = BackboneInfo("base", self.kind, digest.of_weights(self.base), "", "")
        write_adapter(adapter.load(peft, self.shape, info, False), out, weights)
        return out

    @cached_property
    def model(self) -> Any:
        """The model in transformers."""
        from tel_edge.export import original

        return original.load(self.base).cpu()

    def reference(self, ids: Sequence[int], adapter: Path | None = None) -> Any:
        """Return all logits in transformers, or in PEFT."""
        import torch
        from peft import PeftModel

        model = PeftModel.from_pretrained(self.model, adapter).eval() if adapter else self.model
        with torch.no_grad():
            made = model(torch.tensor([ids])).logits[0].numpy()
        if adapter:
            model.unload()
        return made


class Graph:
    """A session that is run on one row, with what may be left out left out."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.pasts = {
            given.name: given.shape
            for given in self.session.get_inputs()
            if given.name.startswith("past_key_values.")
        }

    def __call__(
        self,
        ids: Sequence[int],
        past: Sequence[Any] | None = None,
        positions: Sequence[int] | None = None,
        adapter: Path | None = None,
        **more: Any,
    ) -> tuple[Any, list[Any]]:
        """Return the logits of the row and what the next run has to know of it."""
        import numpy as np
        import onnxruntime

        past = past or [np.zeros((1, s[1], 0, s[3]), np.float32) for s in self.pasts.values()]
        before = past[0].shape[2]
        where = positions or range(before, before + len(ids))
        feeds = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, before + len(ids)), np.int64),
            "position_ids": np.array([list(where)], np.int64),
            **dict(zip(self.pasts, past, strict=True)),
            **{name: np.asarray(value) for name, value in more.items()},
        }
        options = onnxruntime.RunOptions()
        if adapter:
            loaded = onnxruntime.LoraAdapter()
            loaded.Load(str(adapter))
            options.add_active_adapter(loaded)
        logits, *present = self.session.run(self.outputs, feeds, options)
        return logits[0], present


def ids(count: int, seed: int = 1) -> list[int]:
    """Return random tokens that are no special ones."""
    import random

    return random.Random(seed).choices(range(10, 380), k=count)


def apart(one: Any, other: Any) -> float:
    """Return the largest difference; shapes must be the same."""
    import numpy as np

    assert one.shape == other.shape
    return float(np.abs(one - other).max())


def initializers(model: Any) -> Mapping[str, Any]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def node(model: Any, module: str) -> Any:
    """Return the product of a projection in a traced graph, such as `0.self_attn.q_proj`."""
    from tel_edge.export.onnx.slots import module_of

    layer, name = module.split(".", 1)
    (found,) = (
        one
        for one in model.graph.node
        if one.op_type == "MatMul" and module_of(one) == (int(layer), name)
        and one.input[1] in initializers(model)
    )  # fmt: skip
    return found


def copy_trace(tiny: Tiny) -> Any:
    """Return what `trace.trace` does, without the seconds that it takes."""
    plain = tiny.plain

    def trace(folder: Path, out: Path) -> None:
        assert (folder, out.name) == (tiny.base, SOURCE)
        for part in plain.parent.iterdir():
            shutil.copyfile(part, out.parent / part.name)

    return trace


def exported(tiny: Tiny, home: Path) -> Path:
    """Run `tel-export` with all types and adapters, but for the tracing."""
    import pytest

    from tel_edge.export.commands import export
    from tel_edge.export.onnx import trace

    for seed, category in enumerate(CATEGORIES, start=1):
        at = home / "adapters" / "base" / category
        models.bind(models.adapter(at, tiny.base, seed=seed), tiny.base, category=category)
    argv = ["--workspace", str(home), "--backbone", str(tiny.base), "--adapter", "all", "--quiet"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "trace", copy_trace(tiny))
        # Not by `cli.run`, which would tell nobody what is wrong.
        argv += ["--format", "onnx", "--quant", ",".join(QUANTS)]
        export.work(export.parser().parse_args(argv))
    return home
