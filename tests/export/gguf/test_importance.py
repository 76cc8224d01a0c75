"""Importance matrices: what is collected, how it is pooled, and the file it is kept in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import export_models as models
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tel_edge.export.gguf import container, importance
from tel_edge.export.gguf.container import Planned
from tel_edge.export.gguf.importance import Importance
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import gguf_header

FIRST, SECOND, DOWN = "blk.0.attn_q.weight", "blk.1.attn_q.weight", "blk.1.ffn_down.weight"
NAMES = {
    "model.layers.0.self_attn.q_proj": FIRST,
    "model.layers.1.self_attn.q_proj": SECOND,
    "model.layers.1.mlp.down_proj": DOWN,
}
PROMPTS = (
    "The near-RT RIC hosts xApps.",
    "Which interface joins the SMO and the non-RT RIC?\nA) A1\nB) E2\nAnswer: A",
    "a<|end_of_text|>b",
)


def made(**changed: Any) -> Importance:
    sums = {
        "blk.1.b.weight": np.array([4.0, 0.0], np.float32),
        "blk.0.a.weight": np.array([1.0, 2.0, 9.5], np.float32),
    }
    counts = {"blk.1.b.weight": 2.0, "blk.0.a.weight": 4.0}
    fields = {"sums": sums, "counts": counts, "datasets": ("ot-mini", "own"), "chunks": 3}
    return Importance(**{**fields, "chunk": 40, **changed})


# The file.


def test_the_file_is_llama_cpps(tmp_path: Path) -> None:
    from gguf import GGUFReader, GGUFValueType

    out = tmp_path / "new" / "matrix.gguf"
    importance.write(made(), out)
    header = gguf_header.check(out)
    # No architecture; of an array the header keeps the length.
    assert header.metadata == {
        "general.type": "imatrix",
        "imatrix.datasets": 2,
        "imatrix.chunk_count": 3,
        "imatrix.chunk_size": 40,
    }
    reader = GGUFReader(out)
    assert reader.get_field("imatrix.datasets").contents() == ["ot-mini", "own"]
    for key in ("imatrix.chunk_count", "imatrix.chunk_size"):
        assert reader.get_field(key).types == [GGUFValueType.UINT32]
    # The order of ggml's dimensions: columns first.
    assert [(t.name, t.shape.tolist(), t.tensor_type.name) for t in reader.tensors] == [
        ("blk.0.a.weight.in_sum2", [3, 1], "F32"),
        ("blk.0.a.weight.counts", [1, 1], "F32"),
        ("blk.1.b.weight.in_sum2", [2, 1], "F32"),
        ("blk.1.b.weight.counts", [1, 1], "F32"),
    ]
    assert reader.tensors[0].data.tolist() == [[1.0, 2.0, 9.5]]
    assert reader.tensors[1].data.tolist() == [[4.0]]
    assert [path.name for path in out.parent.iterdir()] == ["matrix.gguf"]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    out = tmp_path / "matrix.gguf"
    # More tokens than float32 counts one by one.
    wanted = made(counts={"blk.1.b.weight": 2.0**24 + 1, "blk.0.a.weight": 4.0})
    importance.write(wanted, out)
    found = importance.read(out)
    assert {name: values.tolist() for name, values in found.sums.items()} == {
        "blk.0.a.weight": [1.0, 2.0, 9.5],
        "blk.1.b.weight": [4.0, 0.0],
    }
    assert all(values.dtype == np.float32 for values in found.sums.values())
    assert found.counts == {"blk.0.a.weight": 4.0, "blk.1.b.weight": 2.0**24}
    assert (found.datasets, found.chunks, found.chunk) == (("ot-mini", "own"), 3, 40)
    assert found.digest == wanted.digest


def row(*values: float) -> Any:
    return np.array([values], np.float32)


# What the file says it is, its tensors, what is said of it.
REFUSED: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("model", {"a.in_sum2": row(1), "a.counts": row(1)}, "general.type is 'model'"),
    ("imatrix", {"a.in_sum2": row(1), "a.counts": row(1), "b.counts": row(1)}, "b has only one"),
    ("imatrix", {"a.in_sum2": row(1), "b.in_sum2": row(1), "b.counts": row(1)}, "a has only one"),
    ("imatrix", {"a.in_sum": row(1)}, "no .in_sum2 tensor in it"),
    ("imatrix", {"a.in_sum2": row(1, -1), "a.counts": row(1)}, "a.in_sum2 has negative"),
    ("imatrix", {"a.in_sum2": row(1, np.nan), "a.counts": row(1)}, "a.in_sum2 has negative"),
    ("imatrix", {"a.in_sum2": row(1, np.inf), "a.counts": row(1)}, "a.in_sum2 has negative"),
    ("imatrix", {"a.in_sum2": row(1), "a.counts": row(0)}, r"a.counts is \[0.0\]"),
    ("imatrix", {"a.in_sum2": row(1), "a.counts": row(-1)}, "a.counts has negative"),
    ("imatrix", {"a.in_sum2": row(1), "a.counts": row(np.nan)}, "a.counts has negative"),
    ("imatrix", {"a.in_sum2": row(1), "a.counts": row(1, 1)}, r"a.counts is \[1.0, 1.0\]"),
    ("imatrix", {"a.in_sum2": np.ones((8, 4), "f4"), "a.counts": row(1)}, r"F32 of \[8, 4\]"),
    ("imatrix", {"a.in_sum2": np.ones((1, 4), "f2"), "a.counts": row(1)}, r"F16 of \[1, 4\]"),
)


@pytest.mark.parametrize(("kind", "tensors", "said"), REFUSED)
def test_refusals(kind: str, tensors: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "matrix.gguf"

    def planned(name: str, values: Any) -> Planned:
        return Planned(name, values.shape, f"F{values.itemsize * 8}", lambda: values)

    listed = [planned(name, values) for name, values in tensors.items()]
    container.write(path, "", {"general.type": kind}, listed, lambda _: None)
    with pytest.raises(InputError, match=said) as caught:
        importance.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) <= 2


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        importance.read(tmp_path / "matrix.gguf")
    (tmp_path / "matrix.dat").write_bytes(b"\x0e\x00\x00\x00" * 20)
    with pytest.raises(InputError, match="no GGUF file"):
        importance.read(tmp_path / "matrix.dat")


def test_other_statistics_and_missing_keys_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "matrix.gguf"
    tensors = {"a.in_sum": row(-1, 2), "a.in_sum2": row(1, 4), "a.counts": row(1)}
    planned = [Planned(n, v.shape, "F32", lambda v=v: v) for n, v in tensors.items()]
    container.write(path, "", {"general.type": "imatrix"}, planned, lambda _: None)
    found = importance.read(path)
    assert found.mean("a").tolist() == [1.0, 4.0]
    assert (found.datasets, found.chunks, found.chunk) == ((), 0, 0)


def test_the_digest_is_of_names_counts_and_sums() -> None:
    wanted = made().digest
    turned = dict(reversed(made().sums.items()))
    assert made(sums=turned, datasets=("x",), chunks=1).digest == wanted
    sums = dict(made().sums)
    changed = [
        made(sums=sums | {"blk.0.a.weight": np.array([1.0, 2.0, 9.75], np.float32)}),
        made(counts=dict(made().counts) | {"blk.0.a.weight": 5.0}),
        Importance(
            {"c": sums["blk.0.a.weight"], "blk.1.b.weight": sums["blk.1.b.weight"]},
            {"c": 4.0, "blk.1.b.weight": 2.0},
            (), 3, 40,
        ),
    ]  # fmt: skip
    assert len({wanted, *(one.digest for one in changed)}) == 4


def test_the_mean_is_per_token() -> None:
    found = made().mean("blk.0.a.weight")
    assert found.tolist() == [0.25, 0.5, 2.375]
    assert found.dtype == np.float32


# Widths of the backbone's tensors, what is said, None where they fit.
FITS: tuple[tuple[dict[str, int], str | None], ...] = (
    ({"blk.0.a.weight": 3, "blk.1.b.weight": 2}, None),
    ({"blk.0.a.weight": 3, "blk.7.b.weight": 2}, None),
    ({"blk.0.a.weight": 3, "blk.1.b.weight": 4}, "blk.1.b.weight has 2 columns, the .* has 4"),
    ({"blk.7.b.weight": 2}, "none of the backbone's weights is in it, but blk.0.a.weight"),
)


@pytest.mark.parametrize(("widths", "said"), FITS)
def test_fit(widths: dict[str, int], said: str | None) -> None:
    if said is None:
        importance.check_fit(made(), widths, Path("m.gguf"))
        return
    with pytest.raises(InputError, match=f"m.gguf: {said}"):
        importance.check_fit(made(), widths, Path("m.gguf"))


# Pooling.

# Whole numbers that float32 holds exactly, also five of them added.
WEIGHTS = st.tuples(
    st.lists(st.integers(0, 1 << 20), min_size=3, max_size=3), st.integers(1, 1 << 16)
)
PARTS = st.lists(
    st.dictionaries(st.sampled_from(("a", "b", "c")), WEIGHTS, min_size=1), min_size=1, max_size=5
)


def part(weights: dict[str, tuple[list[int], int]]) -> Importance:
    return Importance(
        {name: np.array(sums, np.float32) for name, (sums, _) in weights.items()},
        {name: float(count) for name, (_, count) in weights.items()},
        ("x",),
        2,
        5,
    )


@given(PARTS)
def test_pooling_adds(weights: list[dict[str, tuple[list[int], int]]]) -> None:
    parts = [part(one) for one in weights]
    found = importance.pooled(parts)
    assert found.sums.keys() == {name for one in weights for name in one}
    for name in found.sums:
        has = [one[name] for one in weights if name in one]
        columns = zip(*(sums for sums, _ in has), strict=True)
        assert found.sums[name].tolist() == [sum(column) for column in columns]
        assert found.counts[name] == sum(count for _, count in has)
    assert (found.datasets, found.chunks, found.chunk) == (("x",), 2 * len(parts), 5)
    # Neither order nor grouping matters, and one part is itself.
    assert importance.pooled(parts[::-1]).digest == found.digest
    assert importance.pooled([importance.pooled(parts[:1]), *parts[1:]]).digest == found.digest
    assert importance.pooled(parts[:1]).digest == parts[0].digest


def test_parts_of_different_backbones() -> None:
    wide = made(sums={"blk.1.b.weight": np.ones(5, np.float32)}, counts={"blk.1.b.weight": 1.0})
    with pytest.raises(InputError, match=r"blk\.1\.b\.weight have 2 and 5 columns"):
        importance.pooled([made(), wide])


def test_chunks_of_different_lengths() -> None:
    found = importance.pooled(
        [made(datasets=("a", "b")), made(datasets=("b", "c"), chunks=1, chunk=10)]
    )
    assert (found.datasets, found.chunks, found.chunk) == (("a", "b", "c"), 4, 33)


# Collecting.


@pytest.fixture(scope="module")
def trained(tmp_path_factory: Any) -> tuple[Path, Path]:
    """Return a backbone and an adapter for it."""
    root = tmp_path_factory.mktemp("importance")
    base = models.backbone(root / "base", "llama")
    return base, models.adapter(root / "one", base)


def coded(base: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(base)
    return [tok(text, split_special_tokens=True)["input_ids"] for text in PROMPTS]


def expected(base: Path, adapter: Path | None) -> dict[str, Any]:
    """Return the sums of squared inputs of the two q_proj, computed without any hook."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    made = {FIRST: 0.0, SECOND: 0.0}
    for ids in coded(base):
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            for at, name in enumerate(made):
                rows = model.model.layers[at].input_layernorm(states[at])[0].double()
                made[name] = made[name] + (rows**2).sum(0).numpy()
    return made


@pytest.mark.parametrize("adapted", [False, True])
def test_collected_are_the_inputs_of_the_frozen_layer(
    adapted: bool, trained: tuple[Path, Path]
) -> None:
    base, adapter = trained
    steps: list[int] = []
    found = importance.collect(
        base, adapter if adapted else None, PROMPTS, NAMES, "own", steps.append
    )
    lengths = [len(ids) for ids in coded(base)]
    assert found.sums.keys() == {FIRST, SECOND, DOWN}
    assert found.counts == dict.fromkeys((FIRST, SECOND, DOWN), float(sum(lengths)))
    assert {name: values.shape for name, values in found.sums.items()} == {
        FIRST: (256,),
        SECOND: (256,),
        DOWN: (512,),
    }
    assert all(values.dtype == np.float32 for values in found.sums.values())
    for name, wanted in expected(base, adapter if adapted else None).items():
        np.testing.assert_allclose(found.sums[name], wanted, rtol=1e-4, err_msg=name)
    assert steps == [1, 1, 1]
    assert (found.datasets, found.chunks) == (("own",), 3)
    assert found.chunk == -(-sum(lengths) // 3)


def test_an_adapter_shows_behind_its_first_layer(trained: tuple[Path, Path]) -> None:
    base, adapter = trained

    def collected(folder: Path | None) -> Importance:
        return importance.collect(base, folder, PROMPTS, NAMES, "own", lambda _: None)

    off, on = collected(None), collected(adapter)
    np.testing.assert_allclose(on.sums[FIRST], off.sums[FIRST], rtol=1e-6)
    for name in (SECOND, DOWN):
        assert np.abs(on.sums[name] / off.sums[name] - 1).max() > 0.01, name


def test_special_tokens_in_a_prompt_are_text(trained: tuple[Path, Path]) -> None:
    from transformers import AutoTokenizer

    tok, text = AutoTokenizer.from_pretrained(trained[0]), PROMPTS[-1]
    whole = tok(text)["input_ids"]
    split = tok(text, split_special_tokens=True)["input_ids"]
    assert len(split) > len(whole)
    found = importance.collect(trained[0], None, [text], NAMES, "own", lambda _: None)
    assert found.counts[FIRST] == len(split)


LONG = "interface " * 600
# Prompts, modules, what is said.
WRONG: tuple[tuple[list[str], dict[str, str], str], ...] = (
    ([LONG], NAMES, "own: no prompt fits the backbone's 512 tokens"),
    ([], NAMES, "own: no prompt fits"),
    (["a"], {"model.layers.2.self_attn.q_proj": "x"}, r"no module model\.layers\.2\.self_attn"),
)


@pytest.mark.parametrize(("prompts", "names", "said"), WRONG)
def test_nothing_to_collect(
    prompts: list[str], names: dict[str, str], said: str, trained: tuple[Path, Path]
) -> None:
    with pytest.raises(InputError, match=said):
        importance.collect(trained[0], trained[1], prompts, names, "own", lambda _: None)


def test_a_prompt_that_does_not_fit_is_left_out(trained: tuple[Path, Path]) -> None:
    steps: list[int] = []

    def collected(prompts: tuple[str, ...], step: Callable[[int], None]) -> Importance:
        return importance.collect(trained[0], None, prompts, NAMES, "own", step)

    found = collected((PROMPTS[0], LONG), steps.append)
    assert steps == [1, 1]
    assert found.chunks == 1
    assert found.digest == collected(PROMPTS[:1], lambda _: None).digest
