"""Attention and norms of a decoder's graph as onnxruntime's own operators, where they are found.

Torch's exporter writes a norm as seven nodes and an attention with its rotation as twenty-four.
onnxruntime computes each in one operator, with the same inputs and outputs of the graph: the mask,
in which `attention_bias` is, stays a value of the graph that all layers add. A norm or attention
that does not look as expected stays as it is.

Source: onnxruntime's `docs/ContribOperators.md` (GroupQueryAttention, RotaryEmbedding,
SkipSimplifiedLayerNormalization) and its `SimplifiedLayerNormalization`, which stands in ONNX's
own domain.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tel_edge.eval.folders.architectures import Shape
from tel_edge.export.onnx.slots import CONTRIB, Graph, contributed, share
from tel_edge.runtime.engines.with_onnx import IDS, MASK, POSITIONS
from tel_edge.runtime.extras import need

NORM, SKIP, ROTATION, ATTENTION = (
    *("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"),
    *("RotaryEmbedding", "GroupQueryAttention"),
)


@dataclass(frozen=True)
class _Norm:
    """x / sqrt(mean(x^2) + epsilon) * weight, which ends in the node `last`."""

    last: Any
    of: str
    weight: str
    epsilon: float


@dataclass(frozen=True)
class _Projected:
    """Heads [batch, heads, sequence, width] of a projection's output, normed or not."""

    output: str
    split: Any
    norm: _Norm | None


@dataclass(frozen=True)
class _Rotated:
    """Heads after their rotation by angles of the frequencies; None where none is."""

    heads: str
    frequencies: str | None


@dataclass(frozen=True)
class _Attention:
    """One layer's attention: three projections in, past and present, `out` [.., heads * width]."""

    query: _Projected
    key: _Projected
    value: _Projected
    past: tuple[str, str]
    present: tuple[str, str]
    mask: str
    scale: float
    frequencies: str | None
    last: Any


def fuse(model: Any, shape: Shape, where: str) -> Mapping[str, int]:
    """Put the operators into the protobuf `model` with slots; return how many there are of each.

    One thing is lost: several rows that have a past and more than one new token each.
    """
    graph = Graph(model, where)
    search = _Search(graph)
    norms = {norm.last.output[0]: norm for norm in search.norms()}
    attentions = [made for node in graph.proto.node if (made := search.attention(node, norms))]
    # All layers keep their past in one way, so an exporter's graph is taken whole or left.
    if len(attentions) != shape.layers:
        attentions = []
    work = _Work(graph, shape, search)
    for attention in attentions:
        work.attend(attention)
    for norm in norms.values():
        work.normalize(norm)
    share(graph)
    graph.sort()
    graph.prune()
    contributed(model)
    kinds = [node.op_type for node in graph.proto.node]
    return {kind: kinds.count(kind) for kind in (NORM, SKIP, ROTATION, ATTENTION)}


class _Search:
    """Finds what can be one operator, from the end of it backwards."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.readers: dict[str, list[Any]] = defaultdict(list)
        for node in graph.proto.node:
            for name in node.input:
                self.readers[name].append(node)

    def number(self, name: str) -> float | None:
        """Return the one number of a small initializer, None for anything else."""
        tensor = self.graph.initializers.get(name)
        if tensor is None or any(dim != 1 for dim in tensor.dims):
            return None
        return float(need("onnx", "export").numpy_helper.to_array(tensor).reshape(()))

    def maker(self, name: str, *kinds: str) -> Any | None:
        """Return the node of one of those kinds that makes a value, or None."""
        node = self.graph.makers.get(name)
        return node if node is not None and node.op_type in kinds else None

    def norms(self) -> list[_Norm]:
        """Return the norms: (x^2, mean, + epsilon, root, reciprocal, * x, * weight)."""
        return [
            found
            for node in self.graph.proto.node
            if node.op_type == "ReduceMean" and (found := self._norm(node))
        ]

    def _next(self, node: Any, *kinds: str) -> Any | None:
        """Return the only reader of what a node makes, if it is of one of those kinds."""
        readers = self.readers[node.output[0]]
        return readers[0] if len(readers) == 1 and readers[0].op_type in kinds else None

    def _norm(self, mean: Any) -> _Norm | None:
        square = self.maker(mean.input[0], "Pow")
        if square is None or self.number(square.input[1]) != 2:
            return None
        of, node, epsilon = square.input[0], mean, None
        for kind in ("Add", "Sqrt", "Reciprocal", "Mul"):
            node = self._next(node, kind)
            if node is None:
                return None
            if kind == "Add":
                epsilon = self.number(node.input[1])
        if epsilon is None or of not in node.input or not (last := self._next(node, "Mul")):
            return None
        weight = last.input[0 if last.input[1] == node.output[0] else 1]
        if weight not in self.graph.initializers:
            return None
        return _Norm(last, of, weight, epsilon)

    def attention(self, softmax: Any, norms: dict[str, _Norm]) -> _Attention | None:
        """Return the attention around a softmax, None where it is not as expected."""
        total = self.maker(softmax.input[0], "Add") if softmax.op_type == "Softmax" else None
        if total is None:
            return None
        for at in (0, 1):
            scaled = self.maker(total.input[at], "Mul")
            scale = self.number(scaled.input[1]) if scaled is not None else None
            if scaled is not None and scale is not None:
                return self._around(softmax, scaled.input[0], total.input[1 - at], scale, norms)
        return None

    def _around(
        self, softmax: Any, scores: str, mask: str, scale: float, norms: dict[str, _Norm]
    ) -> _Attention | None:
        product, mixed = self.maker(scores, "MatMul"), self._next(softmax, "MatMul")
        turned = self.maker(product.input[1], "Transpose") if product is not None else None
        heads = self._next(mixed, "Transpose") if mixed is not None else None
        last = self._next(heads, "Reshape") if heads is not None else None
        if product is None or mixed is None or turned is None or last is None:
            return None
        key, value = self._kept(turned.input[0]), self._kept(mixed.input[1])
        if key is None or value is None:
            return None
        rotated = [self.rotated(name) for name in (product.input[0], key.input[1])]
        if rotated[0].frequencies != rotated[1].frequencies:
            return None
        query, of_key = (self.projected(one.heads, norms) for one in rotated)
        of_value = self.projected(value.input[1], norms)
        if query is None or of_key is None or of_value is None or of_value.norm:
            return None
        return _Attention(
            query, of_key, of_value,
            (key.input[0], value.input[0]), (key.output[0], value.output[0]),
            mask, scale, rotated[0].frequencies, last,
        )  # fmt: skip

    def _kept(self, name: str) -> Any | None:
        """Return the node that puts past and new heads together, behind their repetition."""
        while node := self.maker(name, "Reshape", "Expand", "Unsqueeze"):
            name = node.input[0]
        node = self.maker(name, "Concat")
        if node is None or len(node.input) != 2:
            return None
        return node if node.input[0].startswith("past_key_values.") else None

    def rotated(self, name: str) -> _Rotated:
        """Return what is rotated there: x * cos + (-x2, x1) * sin, or the value itself."""
        plain = _Rotated(name, None)
        total = self.maker(name, "Add")
        straight, crossed = (
            (self.maker(one, "Mul") for one in total.input) if total is not None else (None, None)
        )
        if straight is None or crossed is None:
            return plain
        halves = self.maker(crossed.input[0], "Concat")
        if halves is None:
            return plain
        back = self.maker(halves.input[0], "Neg")
        second = self.maker(back.input[0], "Slice") if back is not None else None
        if second is None:
            return plain
        first, of = self.maker(halves.input[1], "Slice"), straight.input[0]
        if first is None or {first.input[0], second.input[0]} != {of}:
            return plain
        cosine = self._frequencies(straight.input[1], "Cos")
        sine = self._frequencies(crossed.input[1], "Sin")
        return _Rotated(of, cosine) if cosine and cosine == sine else plain

    def _frequencies(self, name: str, kind: str) -> str | None:
        """Return the initializer whose products with the positions are the angles."""
        apart = self.maker(name, "Unsqueeze")
        turn = self.maker(apart.input[0], kind) if apart is not None else None
        twice = self.maker(turn.input[0], "Concat") if turn is not None else None
        if twice is None or len(set(twice.input)) != 1:
            return None
        angles = self.maker(twice.input[0], "Mul")
        found = angles.input[1] if angles is not None else None
        return found if found in self.graph.initializers else None

    def projected(self, name: str, norms: dict[str, _Norm]) -> _Projected | None:
        """Return which projection's output the heads are."""
        norm = norms.get(name)
        turned = self.maker(norm.of if norm else name, "Transpose")
        if turned is None:
            return None
        inner = turned.input[0]
        if norm is None and (norm := norms.get(inner)):
            inner = norm.of
        split = self.maker(inner, "Reshape")
        return _Projected(split.input[0], split, norm) if split is not None else None


class _Work:
    """Replaces nodes. What is read by nothing any longer is pruned afterwards."""

    def __init__(self, graph: Graph, shape: Shape, search: _Search) -> None:
        self.graph, self.shape, self.search = graph, shape, search
        self._turns: dict[str, tuple[str, str, str]] = {}
        self._lengths: tuple[str, str] | None = None

    def _node(self, kind: str, inputs: list[str], output: str, **of: Any) -> Any:
        return need("onnx", "export").helper.make_node(kind, inputs, [output], output, **of)

    def normalize(self, norm: _Norm) -> None:
        """Make one node of a norm, with the sum before it where it is of one."""
        make = need("onnx", "export").helper.make_node
        name = norm.last.output[0]
        if name not in self.graph.makers:
            return
        total = self.search.maker(norm.of, "Add")
        if total is None or set(total.input) & set(self.graph.initializers):
            made = self._node(
                NORM, [norm.of, norm.weight], name, axis=-1, epsilon=norm.epsilon, stash_type=1
            )
            norm.last.CopyFrom(made)
            return
        made = make(
            SKIP, [*total.input, norm.weight], [name, "", "", norm.of], name,
            domain=CONTRIB, epsilon=norm.epsilon,
        )  # fmt: skip
        total.CopyFrom(made)
        self.graph.drop(norm.last)

    def attend(self, found: _Attention) -> None:
        """Make one node of an attention."""
        layer = found.present[0].removesuffix(".key")
        ahead: list[Any] = []
        query, key = (
            self._heads(one, f"{layer}.{kind}", heads, found.frequencies, ahead)
            for one, kind, heads in (
                (found.query, "query", self.shape.heads),
                (found.key, "key", self.shape.kv_heads),
            )
        )
        inputs = [
            query, key, found.value.output, *found.past, *self._until(), "", "", "", found.mask
        ]  # fmt: skip
        made = need("onnx", "export").helper.make_node(
            ATTENTION, inputs, [found.last.output[0], *found.present], f"{layer}.attention",
            domain=CONTRIB, num_heads=self.shape.heads, kv_num_heads=self.shape.kv_heads,
            scale=found.scale,
        )  # fmt: skip
        for name in found.present:
            self.graph.drop(self.graph.makers[name])
        self.graph.before(found.last, ahead)
        found.last.CopyFrom(made)

    def _heads(
        self, of: _Projected, name: str, heads: int, frequencies: str | None, ahead: list[Any]
    ) -> str:
        """Return a projection's output, each of its heads normed and rotated where they are."""
        output = self._normed(of, name, ahead) if of.norm else of.output
        if frequencies is None:
            return output
        rows, *turns = self._angles(frequencies)
        # The attention's own rotation counts positions itself where there is no past.
        ahead.append(
            self._node(ROTATION, [output, rows, *turns], f"{name}.rotated", domain=CONTRIB,
                       num_heads=heads)
        )  # fmt: skip
        return f"{name}.rotated"

    def _normed(self, of: _Projected, name: str, ahead: list[Any]) -> str:
        import numpy as np

        assert of.norm

        flat = f"{ATTENTION}.flat"
        if flat not in self.graph.initializers:
            # As many rows and columns as there are, heads and widths together.
            self.graph.constant(flat, np.array([0, 0, -1], np.int64))
        ahead += [
            self._node(NORM, [of.split.output[0], of.norm.weight], f"{name}.normed", axis=-1,
                       epsilon=of.norm.epsilon, stash_type=1),
            self._node("Reshape", [f"{name}.normed", flat], f"{name}.flat"),
        ]  # fmt: skip
        self.graph.drop(of.norm.last)
        return f"{name}.flat"

    def _until(self) -> tuple[str, str]:
        """Return the values (index of the last token of each row, number of tokens) in int32."""
        if self._lengths is None:
            import numpy as np

            one = self.graph.constant(f"{ATTENTION}.one", np.array([1], np.int64))
            name = f"{ATTENTION}.tokens"
            made = [
                self._node("Shape", [MASK], name, start=1, end=2),
                self._node("Shape", [IDS], f"{name}.rows", start=0, end=1),
                self._node("Sub", [name, one], f"{name}.last"),
                self._node("Cast", [f"{name}.last"], f"{name}.last32", to=6),
                self._node("Expand", [f"{name}.last32", f"{name}.rows"], f"{name}.until"),
                self._node("Squeeze", [name], f"{name}.scalar"),
                self._node("Cast", [f"{name}.scalar"], f"{name}.whole", to=6),
            ]
            self.graph.before(self.graph.proto.node[0], made)
            self._lengths = f"{name}.until", f"{name}.whole"
        return self._lengths

    def _angles(self, frequencies: str) -> tuple[str, str, str]:
        """Return (a row for each token [batch, sequence], cosines, sines [row, width / 2])."""
        if frequencies not in self._turns:
            import numpy as np

            name = f"{frequencies}.turns"
            zero = self.graph.constant(f"{name}.zero", np.array(0, np.int64))
            one = self.graph.constant(f"{name}.one", np.array(1, np.int64))
            column = self.graph.constant(f"{name}.column", np.array([-1, 1], np.int64))
            made = [
                self._node("Size", [POSITIONS], f"{name}.count"),
                self._node("Range", [zero, f"{name}.count", one], f"{name}.flat"),
                self._node("Shape", [POSITIONS], f"{name}.shape"),
                self._node("Reshape", [f"{name}.flat", f"{name}.shape"], f"{name}.rows"),
                self._node("Reshape", [POSITIONS, column], f"{name}.positions"),
                self._node("Cast", [f"{name}.positions"], f"{name}.float", to=1),
                self._node("Mul", [f"{name}.float", frequencies], f"{name}.angles"),
                self._node("Cos", [f"{name}.angles"], f"{name}.cos"),
                self._node("Sin", [f"{name}.angles"], f"{name}.sin"),
            ]
            self.graph.before(self.graph.proto.node[0], made)
            self._turns[frequencies] = f"{name}.rows", f"{name}.cos", f"{name}.sin"
        return self._turns[frequencies]
