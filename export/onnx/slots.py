"""Slots for adapters in a decoder's graph, and two more inputs that answering needs.

Works on what torch's exporter and optimum write. Every new input has an initializer of its own, so
it may be left out, and the graph then computes exactly what it did before:

- `<module>.lora_A` [in, r] and `<module>.lora_B` [r, out] of each projection: `x @ A @ B` is added
  to the projection's output. Left out, r is 0.
- `attention_bias` [1 or batch, 1, sequence, past + sequence]: added to the attention's mask. With
  minus infinity in it many questions share a row without seeing each other. Left out, it is 0.
- `logits_idx` [n]: the positions whose logits are computed. Left out, it is empty and means all.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tel_edge.eval.folders.architectures import Shape, projections
from tel_edge.export.onnx import container
from tel_edge.runtime.engines.with_onnx import BIAS, LOGITS
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.extras import need

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# The domain of onnxruntime's own operators.
CONTRIB = "com.microsoft"
# What a projection gives without an adapter is called by its module and this.
PLAIN = ".plain"
# What its input gives with an adapter's A.
DOWN = ".lora_down"
# What torch's exporter notes about where a node comes from, and the end of both ways of naming it.
SCOPES = "pkg.torch.onnx.name_scopes"
MODULE = re.compile(r"(?:^|[./])layers\.(\d+)[./](\w+[./]\w+)$")
MODULE_PATH = re.compile(MODULE.pattern.replace("$", "/MatMul$"))


@dataclass(frozen=True)
class Weight:
    """The initializer that a node multiplies by; `turned`: it is stored as [out, in]."""

    node: Any
    tensor: Any
    turned: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Return [in, out]."""
        dims = tuple(self.tensor.dims)
        return (dims[1], dims[0]) if self.turned else (dims[0], dims[1])

    def values(self, folder: Path) -> npt.NDArray[np.float32]:
        """Return the values [in, out] as a view; `folder` is where the data file is."""
        made = container.values(self.tensor, folder)
        return made.T if self.turned else made


def prepare(model: Any, shape: Shape, where: str) -> None:
    """Add slots and inputs to the protobuf `model`, in place.

    Raises `InputError` naming the projection that is not found, once each, as a product with a
    float32 initializer of the backbone's shape.
    """
    graph = Graph(model, where)
    for module, weight in _projections(graph, shape):
        _slot(graph, weight, module)
    _add_logits(graph, _checked_head(graph, shape))
    _add_bias(graph)
    graph.sort()
    _strip(model)


class Graph:
    """A graph's protobuf with its nodes by what they make and its initializers by name."""

    def __init__(self, model: Any, where: str) -> None:
        self.proto, self.where = model.graph, where
        self.initializers = {tensor.name: tensor for tensor in self.proto.initializer}
        self.makers = {name: node for node in self.proto.node for name in node.output}
        self._before: dict[str, list[Any]] = {}
        self._after: dict[str, list[Any]] = {}
        self._dropped: list[Any] = []

    def add_input(self, name: str, dims: Sequence[int | str | None], default: Any) -> None:
        """Add an input that may be left out; `default` is its value then, an array."""
        onnx = need("onnx", "export")
        kind = onnx.helper.np_dtype_to_tensor_dtype(default.dtype)
        self.proto.input.append(onnx.helper.make_tensor_value_info(name, kind, list(dims)))
        self.proto.initializer.append(onnx.numpy_helper.from_array(default, name))

    def constant(self, name: str, value: Any) -> str:
        """Add an initializer and return its name."""
        onnx = need("onnx", "export")
        self.proto.initializer.append(onnx.numpy_helper.from_array(value, name))
        return name

    def weight(self, node: Any) -> Weight | None:
        """Return the initializer that a product multiplies by, None where it has none."""
        name, maker = node.input[1], self.makers.get(node.input[1])
        turned = maker is not None and maker.op_type == "Transpose"
        tensor = self.initializers.get(maker.input[0] if maker is not None and turned else name)
        return None if tensor is None else Weight(node, tensor, turned)

    def before(self, node: Any, made: Sequence[Any]) -> None:
        """Put nodes before another one."""
        self._before.setdefault(node.output[0], []).extend(made)

    def after(self, node: Any, made: Sequence[Any]) -> None:
        """Put nodes after another one."""
        self._after.setdefault(node.output[0], []).extend(made)

    def drop(self, node: Any) -> None:
        """Take a node out, whose outputs another one makes."""
        self._dropped.append(node)
        for name in node.output:
            self.makers.pop(name, None)

    def sort(self) -> None:
        """Carry out `before`, `after` and `drop`."""
        nodes = []
        for node in self.proto.node:
            first = node.output[0]
            if any(node is one for one in self._dropped):
                continue
            nodes += [*self._before.get(first, ()), node, *self._after.get(first, ())]
        _replace(self.proto.node, nodes)

    def prune(self) -> None:
        """Drop nodes and initializers that nothing reads."""
        wanted = {output.name for output in self.proto.output}
        nodes = []
        for node in reversed(self.proto.node):
            if wanted.intersection(node.output):
                wanted.update(filter(None, node.input))
                nodes.append(node)
        _replace(self.proto.node, nodes[::-1])
        inputs = {entry.name for entry in self.proto.input}
        kept = [one for one in self.proto.initializer if one.name in wanted or one.name in inputs]
        _replace(self.proto.initializer, kept)


def _replace(field: Any, values: Sequence[Any]) -> None:
    # Emptying the field frees what it held.
    copies = [type(value).FromString(value.SerializeToString()) for value in values]
    del field[:]
    field.extend(copies)


def module_of(node: Any) -> tuple[int, str] | None:
    """Return (layer, projection) of a product's node, such as (0, "self_attn.q_proj"), or None."""
    noted = {entry.key: entry.value for entry in node.metadata_props}.get(SCOPES)
    if noted:
        try:
            scopes = ast.literal_eval(noted)
        except (ValueError, SyntaxError):
            scopes = []
        found = [match for scope in scopes if (match := MODULE.search(str(scope)))]
    else:
        found = [match for match in [MODULE_PATH.search(node.name)] if match]
    return (int(found[-1][1]), found[-1][2].replace("/", ".")) if found else None


def _projections(graph: Graph, shape: Shape) -> list[tuple[str, Weight]]:
    """Return (PEFT's module name, its product) of every projection."""
    found: dict[tuple[int, str], list[Weight]] = defaultdict(list)
    for node in graph.proto.node:
        place = module_of(node) if node.op_type == "MatMul" else None
        # The attention's own products have no initializer.
        if place and (weight := graph.weight(node)):
            found[place].append(weight)
    made = []
    for tensor in projections(shape):
        module = tensor.source.removesuffix(".weight")
        layer, name = module.removeprefix("model.layers.").split(".", 1)
        weights = found.get((int(layer), name), [])
        if len(weights) != 1:
            raise InputError(
                f"{graph.where}: {len(weights)} products for {module}, one is needed; "
                "export the decoder in float32 with torch's or optimum's exporter"
            )
        _check(graph, weights[0], module, (tensor.shape[1], tensor.shape[0]))
        made.append((module, weights[0]))
    return made


def _check(graph: Graph, weight: Weight, module: str, wanted: tuple[int, int]) -> None:
    float32 = need("onnx", "export").TensorProto.FLOAT
    if weight.shape != wanted or weight.tensor.data_type != float32:
        raise InputError(
            f"{graph.where}: the weight of {module} is {list(weight.shape)} of ONNX type "
            f"{weight.tensor.data_type}, the backbone makes it {list(wanted)} in float32"
        )


def _checked_head(graph: Graph, shape: Shape) -> Weight:
    weight = head(graph)
    _check(graph, weight, "the head", (shape.hidden, shape.vocabulary))
    return weight


def head(graph: Graph) -> Weight:
    """Return the product that makes the logits."""
    node = graph.makers.get("logits")
    found = graph.weight(node) if node is not None and node.op_type == "MatMul" else None
    if found is None:
        raise InputError(f"{graph.where}: the output logits is no product with an initializer")
    return found


def embedding(graph: Graph) -> Any | None:
    """Return the node that looks tokens up, None where it is not a plain one."""
    for node in graph.proto.node:
        if node.op_type == "Gather" and node.input[1] == "input_ids":
            return node if node.input[0] in graph.initializers else None
    return None


def plain(graph: Graph) -> list[Weight]:
    """Return the products of a graph with slots that adapters add to."""
    found = [
        graph.weight(node)
        for node in graph.proto.node
        if node.op_type == "MatMul" and node.output[0].endswith(PLAIN)
    ]
    return [weight for weight in found if weight]


def _slot(graph: Graph, weight: Weight, module: str) -> None:
    import numpy as np

    make, node = need("onnx", "export").helper.make_node, weight.node
    inner, outer = weight.shape
    a, b = f"{module}.lora_A", f"{module}.lora_B"
    graph.add_input(a, (inner, None), np.zeros((inner, 0), np.float32))
    graph.add_input(b, (None, outer), np.zeros((0, outer), np.float32))
    whole, part = node.output[0], f"{module}{PLAIN}"
    node.output[0] = part
    down, up = f"{module}{DOWN}", f"{module}.lora_up"
    added = [
        make("MatMul", [node.input[0], a], [down], down),
        make("MatMul", [down, b], [up], up),
        make("Add", [part, up], [whole], f"{module}.lora_add"),
    ]
    graph.after(node, added)


def share(graph: Graph) -> None:
    """Let adapters of projections that read one input share one product with it."""
    make = need("onnx", "export").helper.make_node
    groups: dict[str, list[Any]] = defaultdict(list)
    for node in graph.proto.node:
        if node.output[0].endswith(DOWN):
            groups[node.input[0]].append(node)
    for shown, nodes in groups.items():
        if len(nodes) == 1:
            continue
        name = f"{nodes[0].output[0]}.together"
        matrices = [node.input[1] for node in nodes]
        ranks = [f"{node.output[0]}.rank" for node in nodes]
        made = [
            *(
                make("Shape", [matrix], [rank], rank, start=1, end=2)
                for matrix, rank in zip(matrices, ranks, strict=True)
            ),
            make("Concat", ranks, [f"{name}.ranks"], f"{name}.ranks", axis=0),
            make("Concat", matrices, [f"{name}.A"], f"{name}.A", axis=1),
            make("MatMul", [shown, f"{name}.A"], [name], name),
        ]
        graph.before(nodes[0], made)
        outputs = [node.output[0] for node in nodes]
        for node in nodes[1:]:
            graph.drop(node)
        nodes[0].CopyFrom(make("Split", [name, f"{name}.ranks"], outputs, f"{name}.split", axis=-1))


def _add_bias(graph: Graph) -> None:
    """Add the bias to every mask that a softmax's input is the sum of scores and."""
    import numpy as np

    onnx = need("onnx", "export")
    masks: dict[str, str] = {}
    for node in graph.proto.node:
        if node.op_type != "Softmax":
            continue
        total = graph.makers.get(node.input[0])
        while total is not None and total.op_type == "Cast":
            total = graph.makers.get(total.input[0])
        if total is None or total.op_type != "Add":
            raise InputError(
                f"{graph.where}: {node.name} is not the softmax of scores and a mask; "
                "export the decoder with eager attention"
            )
        at = 0 if _are_scores(graph, total.input[1]) else 1
        mask = total.input[at]
        if mask not in masks:
            masks[mask] = f"{BIAS}.{len(masks)}"
            added = onnx.helper.make_node("Add", [mask, BIAS], [masks[mask]], masks[mask])
            maker = graph.makers.get(mask)
            if maker is None:
                graph.before(graph.proto.node[0], [added])
            else:
                graph.after(maker, [added])
        total.input[at] = masks[mask]
    if not masks:
        raise InputError(f"{graph.where}: no softmax, so no attention; a decoder is needed")
    graph.add_input(BIAS, (None, 1, None, None), np.zeros((1, 1, 1, 1), np.float32))


def _are_scores(graph: Graph, name: str) -> bool:
    """Return whether a value is a product of two values, scaled or not."""
    maker = graph.makers.get(name)
    while maker is not None and maker.op_type in ("Mul", "Div", "Cast"):
        maker = graph.makers.get(maker.input[0])
    return maker is not None and maker.op_type == "MatMul"


def _add_logits(graph: Graph, head: Weight) -> None:
    """Let the head see only the positions asked for, or all where none are.

    A slice of (all positions, those asked for) from 0 or from where the latter begin: no branch.
    """
    import numpy as np

    node = head.node
    make = need("onnx", "export").helper.make_node
    zero = graph.constant(f"{LOGITS}.zero", np.array(0, np.int64))
    one = graph.constant(f"{LOGITS}.one", np.array(1, np.int64))
    end = graph.constant(f"{LOGITS}.end", np.array([2**31 - 1], np.int64))
    first = graph.constant(f"{LOGITS}.axis", np.array([0], np.int64))
    hidden = node.input[0]

    def value(part: str) -> str:
        return f"{LOGITS}.{part}"

    made = [
        make("Shape", [hidden], [value("length")], start=1, end=2),
        make("Squeeze", [value("length")], [value("scalar")]),
        make("Range", [zero, value("scalar"), one], [value("all")]),
        make("Concat", [value("all"), LOGITS], [value("both")], axis=0),
        make("Shape", [LOGITS], [value("asked")]),
        make("Min", [value("asked"), one], [value("any")]),
        make("Mul", [value("any"), value("length")], [value("start")]),
        make("Slice", [value("both"), value("start"), end, first], [value("picked")]),
        make("Gather", [hidden, value("picked")], [value("hidden")], axis=1),
    ]
    for added in made:
        added.name = added.output[0]
    graph.before(node, made)
    node.input[0] = value("hidden")
    graph.add_input(LOGITS, ("logits",), np.zeros(0, np.int64))
    logits = next(output for output in graph.proto.output if output.name == "logits")
    logits.type.tensor_type.shape.dim[1].dim_param = "logits_length"


def contributed(model: Any) -> None:
    """Say in a model that nodes are of onnxruntime's own domain."""
    if all(entry.domain != CONTRIB for entry in model.opset_import):
        model.opset_import.append(need("onnx", "export").helper.make_opsetid(CONTRIB, 1))


def _strip(model: Any) -> None:
    """Drop what exporters note about their machine.

    The shapes of values stay: without them the engine plans its memory for seconds.
    """
    del model.graph.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]


def describe(model: Any, metadata: Mapping[str, str]) -> None:
    """Put keys into the model's metadata, which the runtime reads."""
    kept = [entry for entry in model.metadata_props if entry.key not in metadata]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
