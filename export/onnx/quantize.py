"""The types a backbone can be exported in as ONNX, one row each, and how its graph gets there.

Weights are quantized tensor by tensor, so the peak is one tensor and not the model. The blocks are
onnxruntime's own quantizer's. Slots are left alone: the nodes of an adapter compute in float32.

Sources: onnxruntime's `docs/ContribOperators.md` (MatMulNBits, GatherBlockQuantized), ONNX's
operators DynamicQuantizeLinear and MatMulInteger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tel_edge.export.onnx import container
from tel_edge.export.onnx.slots import (
    CONTRIB,
    Graph,
    Weight,
    contributed,
    describe,
    embedding,
    head,
    plain,
)
from tel_edge.export.progress import Step
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.extras import need

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# The fewest weights that share a scale; multiples of it are what all kernels take.
SMALLEST = 32
# Multiply in int8: what the processors' dot-product instructions do.
ACCURACY = 4


@dataclass(frozen=True)
class OnnxQuant:
    """One row: `body` and `head` are bits a weight, 32 as it is, the head with the embedding.

    `block` weights share a scale: fewer are nearer to the weights, more are faster.
    `dynamic`: activations are quantized too, by one scale for all that is computed together.
    `apart` is the largest `parity.Parity.error` with which a file of that type is accepted, beside
    fp32, and that one beside transformers; `lost` is how much of Pass@1 it may cost, None where
    the error says enough.
    """

    name: str
    body: int
    head: int
    dynamic: bool
    apart: float
    lost: float | None
    use: str
    block: int = SMALLEST

    @property
    def plain(self) -> bool:
        """Return whether the type is written as it is, without the quantizer."""
        return self.body == 32


ONNX_QUANTS: dict[str, OnnxQuant] = {
    row.name: row
    for row in (
        OnnxQuant("fp32", 32, 32, False, 0.0002, None, "reference; opens in optimum too"),
        OnnxQuant("int8", 8, 8, False, 0.2, None, "weights only: almost no loss"),
        OnnxQuant("int4", 4, 8, False, 0.9, None, "weights only: the usual balance"),
        OnnxQuant("int8-128", 8, 8, False, 0.2, None, "int8 in larger blocks: faster", 128),
        OnnxQuant("int4-128", 4, 8, False, 0.9, None, "int4 in larger blocks: faster", 128),
        OnnxQuant(
            "dynamic-int8", 8, 8, True, 0.9, 0.05,
            "weights and activations: the fastest prefill on x86; not for every model",
        ),
    )
}  # fmt: skip


def bits(row_bits: int, block: int) -> float:
    """Return the bits that a weight takes with its share of a block's scale."""
    return row_bits if row_bits == 32 else row_bits + 32 / block


def rows(text: str) -> tuple[OnnxQuant, ...]:
    """Return the rows that `--quant A,B` names. Raises `InputError` with the names there are."""
    names = dict.fromkeys(part.strip() for part in text.split(",") if part.strip())
    unknown = [name for name in names if name not in ONNX_QUANTS]
    if unknown or not names:
        raise InputError(
            f"--quant: no ONNX type {(unknown or [''])[0]!r}; there are: {' '.join(ONNX_QUANTS)}"
        )
    return tuple(ONNX_QUANTS[name] for name in names)


def quantize(source: Path, out: Path, row: OnnxQuant, step: Step) -> None:
    """Write the backbone in `source`, float32 with slots, to `out` as `row`.

    `step` is called with the number of bytes of each tensor that is written.
    """
    model = container.load(source)
    work = _Work(Graph(model, str(source)), source.parent, row)
    for weight in plain(work.graph):
        work.product(weight)
    work.head()
    work.finish(model)
    describe(model, {"tel_edge.quant": row.name})
    container.write(model, out, source.parent, step, work.made, work.same)


class _Work:
    """What has been put into the graph, and how the new tensors are made."""

    def __init__(self, graph: Graph, folder: Path, row: OnnxQuant) -> None:
        self.graph, self.folder, self.row = graph, folder, row
        self.made: dict[str, Callable[[], npt.NDArray[Any]]] = {}
        self.same: dict[str, str] = {}
        self._quantized: dict[str, str] = {}
        self._scales: dict[str, npt.NDArray[np.float32]] = {}

    def product(self, weight: Weight) -> None:
        """Replace a product with a float32 weight by one with a quantized weight."""
        if self.row.dynamic:
            self._integer(weight)
        else:
            self._blocks(weight, self.row.body, self.row.block)

    def head(self) -> None:
        """Quantize the projection to the vocabulary, and the embedding, which may be the same."""
        import numpy as np

        weight, gather = head(self.graph), embedding(self.graph)
        # A table's rows have to be whole blocks, and head and embedding may be one tensor.
        block = self.row.block if weight.shape[0] % self.row.block == 0 else SMALLEST
        name = self._blocks(weight, self.row.head, block)
        rows, columns = weight.shape[1], weight.shape[0]
        if gather is None or columns % block:
            return
        table, own = self.graph.initializers[gather.input[0]], False
        if table.name != weight.tensor.name:
            values = container.values(table, self.folder)
            if not np.array_equal(values, weight.values(self.folder).T):
                other = Weight(gather, table, True)
                name, own = self._tensors(other, self.row.head, block), True
        parts = [f"{name}.table", f"{name}.table_scales"]
        self._placeholder(parts[0], np.uint8, (rows, columns))
        self._placeholder(parts[1], np.float32, (rows, columns // block))
        blocks, scales = f"{name}.blocks", f"{name}.scales"
        if own:
            # Nothing else reads these blocks, so they are written as the table alone.
            self.made[parts[0]] = lambda: self.made[blocks]().reshape(rows, columns)
            self.made[parts[1]] = lambda: self.made[scales]().reshape(rows, columns // block)
        else:
            self.same |= {parts[0]: blocks, parts[1]: scales}
        made = need("onnx", "export").helper.make_node(
            "GatherBlockQuantized",
            [parts[0], gather.input[1], parts[1]],
            [gather.output[0]],
            gather.name,
            domain=CONTRIB,
            bits=self.row.head,
            block_size=block,
            gather_axis=0,
            quantize_axis=1,
        )
        gather.CopyFrom(made)

    def _blocks(self, weight: Weight, width: int, block: int) -> str:
        name = self._tensors(weight, width, block)
        inner, outer = weight.shape
        made = need("onnx", "export").helper.make_node(
            "MatMulNBits",
            [weight.node.input[0], f"{name}.blocks", f"{name}.scales"],
            [weight.node.output[0]],
            weight.node.name,
            domain=CONTRIB,
            K=inner,
            N=outer,
            bits=width,
            block_size=block,
            accuracy_level=ACCURACY,
        )
        weight.node.CopyFrom(made)
        return name

    def _tensors(self, weight: Weight, width: int, block: int) -> str:
        """Add the blocks and scales of a weight, once, and return the name they begin with."""
        import numpy as np

        key = weight.tensor.name
        if key in self._quantized:
            return self._quantized[key]
        name = self._quantized[key] = f"{key}.int{width}"
        inner, outer = weight.shape
        count = -(-inner // block)
        self._placeholder(f"{name}.blocks", np.uint8, (outer, count, block * width // 8))
        self._placeholder(f"{name}.scales", np.float32, (outer * count,))

        def blocks() -> npt.NDArray[Any]:
            packed, scales = _packed(weight.values(self.folder), width, block)
            self._scales[name] = scales
            return packed

        self.made[f"{name}.blocks"] = blocks
        self.made[f"{name}.scales"] = lambda: self._scales.pop(name)
        return name

    def _integer(self, weight: Weight) -> None:
        import numpy as np

        make, node = need("onnx", "export").helper.make_node, weight.node
        name = f"{weight.tensor.name}.dynamic"
        if weight.tensor.name not in self._quantized:
            self._quantized[weight.tensor.name] = name
            self._placeholder(f"{name}.values", np.int8, weight.shape)
            self._placeholder(f"{name}.scales", np.float32, (weight.shape[1],))

            def values() -> npt.NDArray[Any]:
                made, scales = _columns(weight.values(self.folder))
                self._scales[name] = scales
                return made

            self.made[f"{name}.values"] = values
            self.made[f"{name}.scales"] = lambda: self._scales.pop(name)
        shown, result = f"{node.input[0]}.quantized", f"{node.output[0]}.dynamic"
        parts = [shown, f"{shown}.scale", f"{shown}.zero"]
        added = []
        # Query, key and value are of one input, and so are gate and up.
        if shown not in self.graph.makers:
            added.append(make("DynamicQuantizeLinear", [node.input[0]], parts, shown))
            self.graph.makers[shown] = added[0]
        added += [
            make(
                "MatMulInteger",
                [shown, f"{name}.values", parts[2]],
                [f"{result}.sum"],
                f"{result}.sum",
            ),
            make("Cast", [f"{result}.sum"], [f"{result}.float"], f"{result}.float", to=1),
            make("Mul", [parts[1], f"{name}.scales"], [f"{result}.scale"], f"{result}.scale"),
        ]
        self.graph.before(node, added)
        last = make("Mul", [f"{result}.float", f"{result}.scale"], [node.output[0]], node.name)
        node.CopyFrom(last)

    def _placeholder(self, name: str, kind: Any, dims: tuple[int, ...]) -> None:
        import numpy as np

        onnx = need("onnx", "export")
        tensor = self.graph.proto.initializer.add()
        tensor.name = name
        tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        tensor.dims.extend(dims)

    def finish(self, model: Any) -> None:
        """Put the nodes into order, and drop what nothing reads any longer."""
        self.graph.sort()
        self.graph.prune()
        contributed(model)


def _packed(
    values: npt.NDArray[np.float32], width: int, block: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Return blocks [out, blocks, bytes] and scales [out * blocks] of values [in, out].

    Symmetric: the middle of the range is 0, as the operators have it where no zero point is given.
    """
    import numpy as np

    library = need("onnxruntime.quantization.matmul_nbits_quantizer", "export")
    how = library.DefaultWeightOnlyQuantConfig(
        block_size=block, is_symmetric=True, accuracy_level=ACCURACY, bits=width
    )
    quantizer = library.DefaultWeightOnlyQuantizer(how)
    packed, scales, _ = quantizer.qbits_block_quant(np.ascontiguousarray(values))
    return packed, scales.reshape(-1)


# Seven bits: two products of a byte and such a weight fit the int16 in which processors without
# VNNI add them; with eight bits the sum overflows there, silently.
MOST = 64


def _columns(
    values: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return values [in, out] in -MOST to MOST, and the scale of each column."""
    import numpy as np

    scales = np.maximum(np.abs(values).max(axis=0), np.float32(1e-12)) / np.float32(MOST)
    return np.rint(values / scales).astype(np.int8), scales.astype(np.float32)
