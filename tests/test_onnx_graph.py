"""Slots for adapters in a decoder's graph: nothing else changes, and PEFT's numbers come out."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from onnx_models import ADAPTERS, KINDS, Graph, Tiny, apart, ids, initializers, node

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.headers import onnx_header

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
np = pytest.importorskip("numpy")

from tel_edge.export.onnx import container, slots  # noqa: E402

MOST = 1e-4
WINDOW = 6
# Longer than the window, and than the example that the tracer had.
LONG = 40


@pytest.fixture(scope="module", params=KINDS)
def made(request: Any, tiny: Callable[[str], Tiny]) -> Tiny:
    return tiny(request.param)


@pytest.fixture(scope="module")
def plain(made: Tiny) -> Graph:
    return Graph(made.plain)


@pytest.fixture(scope="module")
def slotted(made: Tiny) -> Graph:
    return Graph(made.slots)


def test_the_plain_graph_is_the_model_of_transformers(made: Tiny, plain: Graph) -> None:
    assert made.shape.window == (WINDOW if made.kind == "sliding" else 0)
    for count in (1, 2, LONG):
        assert apart(plain(ids(count))[0], made.reference(ids(count))) <= MOST


def test_a_window_slides(made: Tiny, plain: Graph) -> None:
    """What the first layer shows the second of a token depends on those in its window only."""
    first = ids(LONG)
    (_, one), (_, other) = plain(first), plain([first[0] ^ 1, *first[1:]])
    seen = np.abs(one[2] - other[2]).max(axis=(0, 1, 3)) > 0
    assert seen.tolist() == [made.kind != "sliding" or at < WINDOW for at in range(LONG)]


def test_without_an_adapter_nothing_has_changed(plain: Graph, slotted: Graph) -> None:
    """Not one bit, with a past and without."""
    wanted = plain(ids(LONG))
    got = slotted(ids(LONG))
    for turn in range(2):
        assert np.array_equal(got[0], wanted[0])
        assert len(got[1]) == len(wanted[1]) == 4
        assert all(np.array_equal(a, b) for a, b in zip(got[1], wanted[1], strict=True))
        past = wanted[1]
        wanted, got = plain(ids(7, turn), past), slotted(ids(7, turn), past)


def test_with_an_adapter_it_is_peft(made: Tiny, slotted: Graph) -> None:
    wanted = made.reference(ids(LONG), made.adapter)
    got, _ = slotted(ids(LONG), adapter=made.onnx_adapter)
    assert apart(got, wanted) <= MOST
    # And the adapter does something.
    assert apart(slotted(ids(LONG))[0], wanted) > 1000 * MOST
    assert set(ADAPTERS) == set(KINDS)


def test_two_active_adapters_are_not_what_an_engine_may_ask_for(
    made: Tiny, slotted: Graph, tmp_path: Path
) -> None:
    """One of them is dropped in silence, which is why the engine makes its options anew."""
    import onnxruntime

    options, kept = onnxruntime.RunOptions(), []
    for path in (made.onnx_adapter, made.onnx_adapter):
        kept.append(onnxruntime.LoraAdapter())
        kept[-1].Load(str(path))
        options.add_active_adapter(kept[-1])
    past = [np.zeros((1, s[1], 0, s[3]), np.float32) for s in slotted.pasts.values()]
    feeds = {
        "input_ids": np.array([ids(5)], np.int64),
        "attention_mask": np.ones((1, 5), np.int64),
        "position_ids": np.arange(5)[None],
        **dict(zip(slotted.pasts, past, strict=True)),
    }
    (logits,) = slotted.session.run(["logits"], feeds, options)
    once, _ = slotted(ids(5), adapter=made.onnx_adapter)
    assert np.array_equal(logits[0], once)


@pytest.mark.parametrize("adapter", [False, True])
def test_a_prefix_and_the_rest_are_the_whole(made: Tiny, slotted: Graph, adapter: bool) -> None:
    file = made.onnx_adapter if adapter else None
    whole, present = slotted(ids(LONG), adapter=file)
    for split in (1, 5, LONG - 1):
        first, past = slotted(ids(LONG)[:split], adapter=file)
        rest, after = slotted(ids(LONG)[split:], past, adapter=file)
        assert apart(np.concatenate([first, rest]), whole) <= MOST
        assert max(map(apart, after, present)) <= MOST


def test_only_the_logits_asked_for_are_computed(slotted: Graph) -> None:
    every, present = slotted(ids(12))
    assert every.shape[0] == 12
    for asked in ([11], [-1], [0, 5, 5, -2], [3, 1], list(range(12))):
        got, also = slotted(ids(12), logits_idx=np.array(asked, np.int64))
        assert apart(got, every[asked]) <= MOST
        assert len({row.tobytes() for row in got}) == len({at % 12 for at in asked})
        assert max(map(apart, also, present)) == 0
    got, _ = slotted(ids(12), logits_idx=np.zeros(0, np.int64))
    assert np.array_equal(got, every)
    # After a past, positions are those of what is computed.
    got, _ = slotted(ids(4, 2), present, logits_idx=np.array([2], np.int64))
    assert apart(got, slotted(ids(4, 2), present)[0][[2]]) <= MOST


def bias(hidden: Any) -> Any:
    return np.where(hidden, np.float32(-np.inf), np.float32(0))[None, None]


@pytest.mark.parametrize("adapter", [False, True])
def test_questions_in_one_row_do_not_see_each_other(
    made: Tiny, slotted: Graph, adapter: bool
) -> None:
    file = made.onnx_adapter if adapter else None
    # Both and what they begin with are within the window of the one that slides.
    shared, one, other = ids(2, 1), ids(2, 2), ids(2, 3)
    if made.kind != "sliding":
        shared, one, other = ids(9, 1), ids(13, 2), ids(8, 3)
    branch = np.array([0] * len(shared) + [1] * len(one) + [2] * len(other))
    hidden = (branch[None] != branch[:, None]) & (branch[None] != 0)
    start = len(shared)
    positions = [*range(start + len(one)), *range(start, start + len(other))]
    row, _ = slotted([*shared, *one, *other], positions=positions, adapter=file,
                     attention_bias=bias(hidden))  # fmt: skip
    alone = slotted([*shared, *one], adapter=file)[0]
    assert apart(row[: start + len(one)], alone) <= MOST
    second = slotted([*shared, *other], adapter=file)[0]
    assert apart(row[start + len(one) :], second[start:]) <= MOST
    # Without the bias they would.
    mixed, _ = slotted([*shared, *one, *other], positions=positions, adapter=file)
    assert apart(mixed[start + len(one) :], second[start:]) > 20 * MOST
    # The same after a past that both share, as the engine does it.
    _, past = slotted(shared, adapter=file)
    row, _ = slotted([*one, *other], past, positions[start:], file,
                     attention_bias=bias(hidden[start:]))  # fmt: skip
    assert apart(row[: len(one)], alone[start:]) <= MOST
    assert apart(row[len(one) :], second[start:]) <= MOST


def test_a_batch_may_have_a_bias_for_each_row(made: Tiny, slotted: Graph) -> None:
    rows = np.array([ids(5, 1), ids(5, 2)], np.int64)
    hidden = np.zeros((2, 1, 5, 5), bool)
    hidden[1, 0, 2:, 1] = True
    feeds = {
        "input_ids": rows,
        "attention_mask": np.ones((2, 5), np.int64),
        "position_ids": np.arange(5)[None].repeat(2, 0),
        "attention_bias": np.where(hidden, np.float32(-np.inf), np.float32(0)),
        **{
            name: np.zeros((2, dims[1], 0, dims[3]), np.float32)
            for name, dims in slotted.pasts.items()
        },
    }
    (logits,) = slotted.session.run(["logits"], feeds)
    assert apart(logits[0], slotted(ids(5, 1))[0]) <= MOST
    assert apart(logits[1], slotted(ids(5, 2), attention_bias=bias(hidden[1, 0]))[0]) <= MOST
    assert apart(logits[1], slotted(ids(5, 2))[0]) > 20 * MOST


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


# Graphs of other exporters and other models, made of the tiny llama's.


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
