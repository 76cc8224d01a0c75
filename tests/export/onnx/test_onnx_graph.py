"""The graph with slots computes what transformers and PEFT do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import for_onnx_graph
import pytest
from for_onnx_graph import MOST
from onnx_models import ADAPTERS, KINDS, Graph, Tiny, apart, ids

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
np = pytest.importorskip("numpy")

made = for_onnx_graph.made
WINDOW = 6
# Longer than the window, and than the example that the tracer had.
LONG = 40


@pytest.fixture(scope="module")
def plain(made: Tiny) -> Graph:
    return Graph(made.plain)


@pytest.fixture(scope="module", params=["slots", "fused"])
def slotted(made: Tiny, request: Any) -> Graph:
    return Graph(getattr(made, request.param))


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


def test_without_an_adapter_nothing_has_changed(made: Tiny, plain: Graph) -> None:
    """Not one bit, with a past and without."""
    slotted, wanted = Graph(made.slots), plain(ids(LONG))
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
