"""Where a graph's projections are found, and graphs that cannot be used."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import for_onnx_graph
import pytest
from for_onnx_graph import MOST
from onnx_models import Graph, Tiny, apart, ids, initializers, node

from tel_edge.export.onnx import container, slots
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import onnx_header

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
np = pytest.importorskip("numpy")
made = for_onnx_graph.made


def test_what_the_file_tells_of_itself(made: Tiny) -> None:
    header = onnx_header.check(made.slots)
    modules = [
        f"model.layers.{layer}.{part}_proj"
        for layer in (0, 1)
        for part in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate",
                     "mlp.up", "mlp.down")
    ]  # fmt: skip
    wanted = {f"{module}.lora_{part}" for module in modules for part in "AB"}
    assert header.defaults == wanted | {"attention_bias", "logits_idx"}
    assert header.inputs["model.layers.1.mlp.down_proj.lora_A"] == (512, None)
    assert header.inputs["model.layers.1.mlp.down_proj.lora_B"] == (None, 256)
    past = [f"past_key_values.{layer}.{part}" for layer in (0, 1) for part in ("key", "value")]
    asked = {"input_ids", "attention_mask", "position_ids", *past}
    assert set(header.inputs) == asked | header.defaults
    assert header.outputs == ("logits", *(name.replace("past_key_values", "present")
                                          for name in past))  # fmt: skip
    assert header.data == ("x-fp32.onnx.data",)
    assert [path.name for path in sorted(made.slots.parent.iterdir())] == [
        "x-fp32.onnx", "x-fp32.onnx.data"
    ]  # fmt: skip


def test_nothing_of_this_machine_is_left(made: Tiny) -> None:
    before, after = made.plain.read_bytes(), made.slots.read_bytes()
    for trace in (b"stack_trace", b"name_scopes", b".py"):
        assert trace in before, "the exporter notes no such thing any longer"
        assert trace not in after
    assert str(made.folder).encode() not in after
    assert b"site-packages" not in after
    model = container.load(made.slots)
    assert not any(one.metadata_props or one.doc_string for one in model.graph.node)
    assert not model.graph.metadata_props
    graph = model.graph
    values = (*graph.value_info, *graph.input, *graph.output)
    assert not any(one.metadata_props or one.doc_string for one in values)


def optimum_names(model: Any) -> Any:
    """Call the products as optimum's exporter does, and note nothing else about them."""
    for one in model.graph.node:
        place = slots.module_of(one) if one.op_type == "MatMul" else None
        if place and one.input[1] in initializers(model):
            one.name = f"/model/layers.{place[0]}/{place[1].replace('.', '/')}/MatMul"
        else:
            one.name = f"/x/{one.op_type}"
        del one.metadata_props[:]
    return model


def test_names_of_optimum_say_the_same(made: Tiny) -> None:
    loaded = optimum_names(made.loaded())
    slots.prepare(loaded, made.shape, "x")
    wanted = container.load(made.slots).graph

    def slot(graph: Any) -> list[tuple[str, ...]]:
        return [
            (*one.input, *one.output)
            for one in graph.node
            if any(".lora_" in name for name in (*one.input, *one.output))
        ]

    assert slot(loaded.graph) == slot(wanted)
    assert len(slot(wanted)) == 3 * 14
    assert [one.name for one in loaded.graph.input] == [one.name for one in wanted.input]


@pytest.mark.parametrize(
    ("scope", "name", "place"),
    [
        ("['', 'model', 'model.layers.1.mlp.up_proj', 'linear']", "x", (1, "mlp.up_proj")),
        ("['model.layers.1', 'model.layers.12.self_attn.k_proj']", "x", (12, "self_attn.k_proj")),
        ("['model.layers.1.self_attn', 'matmul']", "x", None),
        ("not a list", "/model/layers.0/mlp/up_proj/MatMul", None),
        (None, "/model/layers.0/mlp/up_proj/MatMul", (0, "mlp.up_proj")),
        (None, "/model/layers.21/self_attn/o_proj/MatMul", (21, "self_attn.o_proj")),
        (None, "/model/layers.0/self_attn/MatMul", None),
        (None, "/model/players.0/mlp/up_proj/MatMul", None),
        (None, "/lm_head/MatMul", None),
        (None, "/model/layers.0/mlp/up_proj/MatMul_1", None),
    ],
)
def test_where_a_product_comes_from(scope: str | None, name: str, place: Any) -> None:
    one = onnx.helper.make_node("MatMul", ["a", "b"], ["c"], name)
    if scope is not None:
        entry = one.metadata_props.add()
        entry.key, entry.value = slots.SCOPES, scope
    assert slots.module_of(one) == place


@pytest.fixture(scope="module")
def llama(tiny: Callable[[str], Tiny]) -> Tiny:
    return tiny("llama")


def run_changed(llama: Tiny, model: Any, out: Path) -> tuple[Any, Any]:
    """Return the logits of a changed graph as it was and with slots in it."""
    before = out / "before" / "x.onnx"
    before.parent.mkdir()
    copy = type(model).FromString(model.SerializeToString())
    container.write(copy, before, llama.plain.parent, lambda _: None)
    after = llama.prepared(model, out / "after" / "x.onnx")
    return Graph(before)(ids(9))[0], Graph(after)(ids(9))[0]


def test_equal_weights_are_told_apart_by_module(llama: Tiny, tmp_path: Path) -> None:
    """Exporters merge them into one initializer."""
    model = llama.loaded()
    for one, other in (("0.self_attn.k_proj", "0.self_attn.v_proj"),
                       ("0.mlp.gate_proj", "1.mlp.gate_proj")):  # fmt: skip
        node(model, one).input[1] = node(model, other).input[1]
    before, after = run_changed(llama, model, tmp_path)
    assert np.array_equal(before, after)
    changed = {
        one.output[0]: one.input[1]
        for one in model.graph.node
        if one.op_type == "MatMul" and one.output[0].endswith(".plain")
    }
    assert len(changed) == 14
    assert (
        changed["model.layers.0.self_attn.k_proj.plain"]
        == changed["model.layers.0.self_attn.v_proj.plain"]
    )
    # The adapter still goes where it belongs.
    peft = Graph(tmp_path / "after" / "x.onnx")(ids(9), adapter=llama.onnx_adapter)[0]
    assert apart(peft, after) > 0.1


def test_weights_may_be_stored_as_rows(llama: Tiny, tmp_path: Path) -> None:
    model = llama.loaded()
    one = node(model, "0.mlp.down_proj")
    tensor = initializers(model)[one.input[1]]
    values = container.values(tensor, llama.plain.parent)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values.T), tensor.name))
    turn = onnx.helper.make_node("Transpose", [tensor.name], ["turned"], "turn", perm=[1, 0])
    model.graph.node.insert(0, turn)
    one.input[1] = "turned"
    before, after = run_changed(llama, model, tmp_path)
    assert np.array_equal(before, after)
    assert apart(before, Graph(llama.plain)(ids(9))[0]) <= MOST


def drop_scope(model: Any) -> None:
    del node(model, "1.mlp.up_proj").metadata_props[:]


def twice(model: Any) -> None:
    one = node(model, "1.mlp.up_proj")
    more = model.graph.node.add()
    more.CopyFrom(one)
    more.output[0] = "more"


def half(model: Any) -> None:
    tensor = initializers(model)[node(model, "0.self_attn.q_proj").input[1]]
    tensor.data_type = onnx.TensorProto.FLOAT16


def other_logits(model: Any) -> None:
    next(one for one in model.graph.node if one.output[0] == "logits").op_type = "Mul"


def no_weight_for_logits(model: Any) -> None:
    next(one for one in model.graph.node if one.output[0] == "logits").input[1] = "input_ids"


def no_sum(model: Any) -> None:
    soft = next(one for one in model.graph.node if one.op_type == "Softmax")
    next(one for one in model.graph.node if one.output[0] == soft.input[0]).op_type = "Sub"


def no_softmax(model: Any) -> None:
    for one in model.graph.node:
        if one.op_type == "Softmax":
            one.op_type = "Relu"


WRONG: dict[str, tuple[Any, str]] = {
    "a lost projection": (drop_scope, r"0 products for model\.layers\.1\.mlp\.up_proj, one is"),
    "one too many": (twice, r"2 products for model\.layers\.1\.mlp\.up_proj, one is needed"),
    "half": (
        half, r"weight of model\.layers\.0\.self_attn\.q_proj is \[256, 256\] of ONNX type 10, "
        r"the backbone makes it \[256, 256\] in float32",
    ),
    "logits": (other_logits, "the output logits is no product with an initializer"),
    "no head": (no_weight_for_logits, "the output logits is no product with an initializer"),
    "no mask": (no_sum, "is not the softmax of scores and a mask.*eager attention"),
    "no attention": (no_softmax, "no softmax, so no attention; a decoder is needed"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_graph_that_cannot_be_used(name: str, llama: Tiny) -> None:
    change, said = WRONG[name]
    model = llama.loaded()
    change(model)
    with pytest.raises(InputError, match=f"^x.onnx: .*{said}"):
        slots.prepare(model, llama.shape, "x.onnx")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"layers": 3}, r"0 products for model\.layers\.2\.self_attn\.q_proj"),
        ({"intermediate": 768}, r"mlp\.gate_proj is \[256, 512\] .* makes it \[256, 768\]"),
        ({"vocabulary": 500}, r"the weight of the head is \[256, 392\] .* makes it \[256, 500\]"),
    ],
)
def test_the_graph_of_another_model(changed: dict[str, int], said: str, llama: Tiny) -> None:
    with pytest.raises(InputError, match=said):
        slots.prepare(llama.loaded(), replace(llama.shape, **changed), "x.onnx")


def test_no_onnx_file(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(random.Random(1).randbytes(500))
    with pytest.raises(InputError, match=r"x\.onnx: no ONNX model \(.+\)"):
        container.load(path)
    with pytest.raises(InputError, match=r"y\.onnx: no ONNX model \(FileNotFoundError\)"):
        container.load(tmp_path / "y.onnx")


def test_keys_are_put_into_a_model_once(llama: Tiny) -> None:
    model = llama.loaded()
    slots.describe(model, {"a": "1", "b": "2"})
    slots.describe(model, {"b": "3"})
    assert {entry.key: entry.value for entry in model.metadata_props} == {"a": "1", "b": "3"}
    assert len(model.metadata_props) == 2
