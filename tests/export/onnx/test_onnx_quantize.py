"""Types of ONNX: the quantizer's own blocks, one embedding, and files of one tensor at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onnx_models import Graph, Tiny, apart, ids, initializers, node

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import onnx_header

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
np = pytest.importorskip("numpy")

from tel_edge.export.onnx import container, quantize, slots  # noqa: E402
from tel_edge.export.onnx.quantize import ONNX_QUANTS, SMALLEST, bits, rows  # noqa: E402

# The largest share of the logits' spread that a type changes them by, and the least: 0 would be
# another type's file.
BOUNDS = {
    "int8": (0.005, 0.06),
    "int4": (0.1, 0.35),
    "int8-128": (0.005, 0.06),
    "int4-128": (0.1, 0.45),
    "dynamic-int8": (0.02, 0.12),
}
DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def llama(tiny: Callable[[str], Tiny]) -> Tiny:
    return tiny("llama")


@pytest.fixture(scope="module")
def files(llama: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny llama in every type."""
    folder = tmp_path_factory.mktemp("types")
    made = {"fp32": llama.slots}
    for name in BOUNDS:
        made[name] = quantized(llama.slots, folder / f"x-{name}.onnx", name)
    return made


def quantized(source: Path, out: Path, name: str) -> Path:
    out.parent.mkdir(exist_ok=True)
    quantize.quantize(source, out, ONNX_QUANTS[name], lambda _: None)
    return out


def weight(llama: Tiny, module: str) -> Any:
    """Return the values [in, out] of a projection."""
    model = llama.loaded()
    tensor = initializers(model)[node(model, module).input[1]]
    return np.array(container.values(tensor, llama.plain.parent))


def place(path: Path, name: str) -> tuple[str, str, str]:
    tensor = initializers(container.load(path))[name]
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return entries["location"], entries["offset"], entries["length"]


def relative(got: Any, wanted: Any) -> float:
    return float(np.sqrt(np.mean((got - wanted) ** 2)) / wanted.std())


def read(path: Path, name: str) -> Any:
    return np.array(container.values(initializers(container.load(path))[name], path.parent))


def maker(path: Path, output: str) -> Any:
    return next(one for one in container.load(path).graph.node if one.output[0] == output)


@pytest.mark.parametrize("name", BOUNDS)
def test_logits_are_within_the_bound_of_the_type(
    name: str, llama: Tiny, files: dict[str, Path]
) -> None:
    least, most = BOUNDS[name]
    plain, other = Graph(files["fp32"]), Graph(files[name])
    wanted, got = plain(ids(30))[0], other(ids(30))[0]
    assert least < relative(got, wanted) < most
    # An adapter goes over it in float32: what it adds is what it adds to fp32.
    tuned, also = (g(ids(30), adapter=llama.onnx_adapter)[0] for g in (plain, other))
    assert least < relative(also, tuned) < most
    assert relative(tuned, wanted) > 0.5
    assert relative(also - got, tuned - wanted) < 2 * most


@pytest.mark.parametrize("name", BOUNDS)
def test_the_other_inputs_still_work(name: str, files: dict[str, Path]) -> None:
    graph = Graph(files[name])
    every, present = graph(ids(12))
    got, _ = graph(ids(12), logits_idx=np.array([-1, 2], np.int64))
    assert apart(got, every[[-1, 2]]) <= 1e-4
    rest, _ = graph(ids(3, 2), present)
    # Dynamic types have one scale for all that is computed together.
    whole = graph([*ids(12), *ids(3, 2)])[0][12:]
    assert relative(rest, whole) < (0.1 if name == "dynamic-int8" else 1e-4)


@pytest.mark.parametrize("width", [4, 8])
def test_blocks_are_those_of_the_quantizer_of_onnxruntime(
    width: int, llama: Tiny, files: dict[str, Path]
) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    values = weight(llama, "1.mlp.down_proj")
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "m")],
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", values.shape[0]])],
        [helper.make_tensor_value_info("y", 1, ["n", values.shape[1]])],
        [onnx.numpy_helper.from_array(values, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    how = DefaultWeightOnlyQuantConfig(
        block_size=SMALLEST, is_symmetric=True, accuracy_level=4, bits=width
    )
    theirs = MatMulNBitsQuantizer(model, algo_config=how)
    theirs.process()
    (wanted,) = theirs.model.model.graph.node
    blocks, scales = (
        onnx.numpy_helper.to_array(initializers(theirs.model.model)[name])
        for name in wanted.input[1:3]
    )

    path = files[f"int{width}"]
    got = maker(path, f"{DOWN}.plain")
    assert (got.op_type, got.domain, len(got.input)) == ("MatMulNBits", "com.microsoft", 3)
    attributes = {one.name: one.i for one in got.attribute}
    assert attributes == {one.name: one.i for one in wanted.attribute if one.name in attributes}
    assert attributes["bits"] == width
    assert np.array_equal(read(path, got.input[1]).reshape(blocks.shape), blocks)
    assert np.array_equal(read(path, got.input[2]), scales.reshape(-1))


def test_what_the_blocks_hold(llama: Tiny, files: dict[str, Path]) -> None:
    """Unpacked by hand: scale times (value minus the middle), 32 of a column to a scale."""
    values = weight(llama, "1.mlp.down_proj").T
    for width in (4, 8):
        path = files[f"int{width}"]
        one = maker(path, f"{DOWN}.plain")
        blocks, scales = read(path, one.input[1]), read(path, one.input[2])
        numbers = blocks.astype(np.int32)
        if width == 4:
            numbers = np.stack([numbers & 15, numbers >> 4], -1)
        numbers = numbers.reshape(256, 512 // SMALLEST, SMALLEST) - (1 << (width - 1))
        made = (numbers * scales.reshape(256, -1, 1)).reshape(values.shape)
        largest = np.abs(values.reshape(256, -1, SMALLEST)).max(-1, keepdims=True)
        off = np.abs((made - values).reshape(256, -1, SMALLEST)) / largest
        assert off.max() <= 1.01 / (1 << (width - 1))
        assert relative(made, values) < (0.13 if width == 4 else 0.01)


def test_dynamic_values_have_seven_bits(llama: Tiny, files: dict[str, Path]) -> None:
    path = files["dynamic-int8"]
    names = [name for name in initializers(container.load(path)) if ".dynamic" in name]
    assert len(names) == 2 * 14
    for name in names:
        if name.endswith(".values"):
            made = read(path, name)
            assert made.dtype == np.int8
            # Every column has its largest value at the end of the range.
            assert (np.abs(made).max(axis=0) == 64).all()
            assert np.abs(made.astype(int)).max() == 64
    last = maker(path, f"{DOWN}.plain")
    scale = maker(path, last.input[1])
    name = scale.input[1].removesuffix(".scales")
    made = read(path, f"{name}.values") * read(path, f"{name}.scales")
    wanted = weight(llama, "1.mlp.down_proj")
    assert (np.abs(made - wanted).max(axis=0) <= np.abs(wanted).max(axis=0) / 127.9).all()


def test_what_shares_an_input_is_quantized_once(files: dict[str, Path]) -> None:
    model = container.load(files["dynamic-int8"])
    kinds = [one.op_type for one in model.graph.node]
    # Of a layer: query, key and value; output; gate and up; down.
    assert kinds.count("DynamicQuantizeLinear") == 2 * 4
    assert kinds.count("MatMulInteger") == 2 * 7
    assert kinds.count("MatMulNBits") == kinds.count("GatherBlockQuantized") == 1


def test_embedding_and_head_are_one_region_of_the_file(files: dict[str, Path]) -> None:
    for name, width in (("int8", 8), ("int4", 8), ("dynamic-int8", 8)):
        path = files[name]
        head, gather = maker(path, "logits"), maker(path, "embedding")
        assert gather.op_type == "GatherBlockQuantized"
        assert {one.name: one.i for one in gather.attribute} == {
            "bits": width, "block_size": SMALLEST, "gather_axis": 0, "quantize_axis": 1
        }  # fmt: skip
        assert place(path, gather.input[0]) == place(path, head.input[1])
        assert place(path, gather.input[2]) == place(path, head.input[2])
        assert gather.input[0] != head.input[1]


def untied(llama: Tiny, model: Any, factor: float) -> Any:
    """Give a traced graph an embedding of its own, the head's times a factor."""
    gather = next(one for one in model.graph.node if one.output[0] == "embedding")
    table = container.values(initializers(model)[gather.input[0]], llama.plain.parent)
    model.graph.initializer.append(onnx.numpy_helper.from_array(table * factor, "own"))
    gather.input[0] = "own"
    return model


@pytest.mark.parametrize(("factor", "apiece"), [(np.float32(1), 1), (np.float32(3), 2)])
def test_an_embedding_of_its_own(factor: Any, apiece: int, llama: Tiny, tmp_path: Path) -> None:
    """One that is written twice is kept once; another one has blocks of its own."""
    source = llama.prepared(untied(llama, llama.loaded(), factor), tmp_path / "a" / "x.onnx")
    path = quantized(source, tmp_path / "y.onnx", "int8")
    head, gather = maker(path, "logits"), maker(path, "embedding")
    places = {place(path, head.input[1]), place(path, gather.input[0])}
    assert len(places) == apiece
    assert relative(Graph(path)(ids(30))[0], Graph(source)(ids(30))[0]) < 0.06
    tied = quantized(llama.slots, tmp_path / "z.onnx", "int8")
    more = container.data_file(path).stat().st_size - container.data_file(tied).stat().st_size
    table = llama.shape.vocabulary * llama.shape.hidden * bits(8, SMALLEST) / 8
    assert abs(more - (apiece - 1) * table) < 200


def test_a_model_that_is_untied_from_the_start(tmp_path: Path) -> None:
    """As transformers writes it, and the plan's forecast of its size."""
    import export_models as models
    from onnx_models import KINDS

    made = Tiny(tmp_path, "llama")
    kind, more = KINDS["llama"]
    made.base = models.backbone(tmp_path / "base", kind, tie_word_embeddings=False,  # type: ignore[misc]
                                num_hidden_layers=1, **more)  # fmt: skip
    wanted = made.reference(ids(20))
    assert apart(Graph(made.slots)(ids(20))[0], wanted) < 1e-4
    for name, (_, most) in BOUNDS.items():
        path = quantized(made.slots, tmp_path / f"{name}.onnx", name)
        head, gather = maker(path, "logits"), maker(path, "embedding")
        assert place(path, head.input[1]) != place(path, gather.input[0])
        assert relative(Graph(path)(ids(20))[0], wanted) < most


def test_merged_weights_are_quantized_once(llama: Tiny, tmp_path: Path) -> None:
    model = llama.loaded()
    node(model, "0.mlp.gate_proj").input[1] = node(model, "1.mlp.gate_proj").input[1]
    source = llama.prepared(model, tmp_path / "a" / "x.onnx")
    wanted = Graph(source)(ids(9))[0]
    for name, (_, most) in BOUNDS.items():
        path = quantized(source, tmp_path / f"{name}.onnx", name)
        assert relative(Graph(path)(ids(9))[0], wanted) < most
        names = list(initializers(container.load(path)))
        assert len(names) == len(set(names))


def test_sizes(files: dict[str, Path], llama: Tiny) -> None:
    shape = llama.shape
    head = shape.vocabulary * shape.hidden
    vectors = 5 * shape.hidden
    body = llama.checkpoint.parameters - head - vectors
    for name, row in ONNX_QUANTS.items():
        inner = 8 if row.dynamic else bits(row.body, row.block)
        wanted = (body * inner + head * bits(row.head, row.block)) / 8 + 4 * vectors
        size = container.data_file(files[name]).stat().st_size
        # Rotary tables, alignment, scales of the columns.
        assert abs(size - wanted) < 0.015 * wanted, name
        assert files[name].stat().st_size < 100_000
    sizes = [container.data_file(files[name]).stat().st_size for name in ("fp32", "int8", "int4")]
    assert sizes == sorted(sizes, reverse=True)


def test_every_tensor_is_counted(llama: Tiny, tmp_path: Path) -> None:
    steps: list[int] = []
    quantize.quantize(llama.slots, tmp_path / "x.onnx", ONNX_QUANTS["int4"], steps.append)
    inline = 100_000
    size = container.data_file(tmp_path / "x.onnx").stat().st_size
    assert size - 64 * len(steps) < sum(steps) < size + inline
    assert len(steps) > 30


def test_a_quantized_file_says_its_type(files: dict[str, Path]) -> None:
    for name in BOUNDS:
        header = onnx_header.check(files[name])
        assert header.metadata["tel_edge.quant"] == name
        assert header.data == (f"x-{name}.onnx.data",)
        assert len([given for given in header.defaults if ".lora_" in given]) == 28
        assert {"attention_bias", "logits_idx"} < header.defaults
        model = container.load(files[name])
        # Nothing of the float32 weights is left.
        used = {given for one in model.graph.node for given in one.input}
        used |= {given.name for given in model.graph.input}
        assert set(initializers(model)) <= used


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("int4", ["int4"]),
        (" fp32, int8,fp32,", ["fp32", "int8"]),
        ("dynamic-int8,int4", ["dynamic-int8", "int4"]),
    ],
)
def test_types_by_name(text: str, names: list[str]) -> None:
    assert [row.name for row in rows(text)] == names


@pytest.mark.parametrize(("text", "named"), [("", ""), (",", ""), ("int4,Q8_0", "Q8_0"),
                                             ("INT4", "INT4")])  # fmt: skip
def test_types_that_there_are_not(text: str, named: str) -> None:
    wanted = f"no ONNX type '{named}'; there are: fp32 int8 int4 int8-128 int4-128 dynamic-int8"
    with pytest.raises(InputError, match=wanted):
        rows(text)


# The files


def test_large_tensors_begin_where_they_can_be_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    arrays = {
        "small": rng.random(256, np.float32),
        "more": rng.random(257, np.float32),
        "odd": rng.integers(0, 255, 1025, np.uint8),
        "large": rng.random((1 << 18) + 1, np.float32),
        "last": rng.random((300, 3), np.float32),
    }
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [], "g", [], [], [onnx.numpy_helper.from_array(v, k) for k, v in arrays.items()]
        )
    )
    steps: list[int] = []
    container.write(model, tmp_path / "x.onnx", tmp_path, steps.append)
    assert steps == [value.nbytes for value in arrays.values()]
    loaded = container.load(tmp_path / "x.onnx")
    found = initializers(loaded)
    inline = [k for k, v in found.items() if v.data_location != onnx.TensorProto.EXTERNAL]
    assert inline == ["small"]
    offsets = {k: int(place(tmp_path / "x.onnx", k)[1]) for k in arrays if k not in inline}
    assert all(at % 64 == 0 for at in offsets.values())
    assert offsets["large"] % 4096 == 0
    assert offsets["odd"] == 1088
    for name, value in arrays.items():
        assert np.array_equal(container.values(found[name], tmp_path), value)
    # What onnx itself reads is the same.
    whole = initializers(onnx.load(tmp_path / "x.onnx"))
    for name, value in arrays.items():
        assert np.array_equal(onnx.numpy_helper.to_array(whole[name]), value)
    assert container.data_names(loaded) == ["x.onnx.data"]


def test_defaults_stay_in_the_graphs_own_file(files: dict[str, Path]) -> None:
    """An engine asks for their shapes before there is any data, and empty ones have no place."""
    for path in files.values():
        model = container.load(path)
        given = {entry.name for entry in model.graph.input}
        defaults = [tensor for name, tensor in initializers(model).items() if name in given]
        assert len(defaults) == 30
        assert all(one.data_location != onnx.TensorProto.EXTERNAL for one in defaults)
        assert [0 in one.dims for one in defaults].count(True) == 29


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_data_file_that_is_not_whole(damage: str, llama: Tiny, tmp_path: Path) -> None:
    for part in llama.slots.parent.iterdir():
        shutil.copyfile(part, tmp_path / part.name)
    data = tmp_path / "x-fp32.onnx.data"
    if damage == "cut":
        with data.open("r+b") as stream:
            stream.truncate(data.stat().st_size - 1)
    else:
        data.unlink()
    wanted = r"x-fp32\.onnx\.data: missing or truncated, tensor \S+ ends at [\d,]+"
    with pytest.raises(InputError, match=wanted):
        quantized(tmp_path / "x-fp32.onnx", tmp_path / "y.onnx", "int8")


def test_what_is_quantized_has_to_have_a_head(llama: Tiny, tmp_path: Path) -> None:
    model = container.load(llama.slots)
    slots.head(slots.Graph(model, "x"))
    for one in model.graph.node:
        if one.output[0] == "logits":
            one.op_type = "Gemm"
    container.write(model, tmp_path / "x.onnx", llama.slots.parent, lambda _: None)
    with pytest.raises(InputError, match="the output logits is no product with an initializer"):
        quantized(tmp_path / "x.onnx", tmp_path / "y.onnx", "int8")
