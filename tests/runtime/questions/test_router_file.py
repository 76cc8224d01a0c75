"""The router's features and its file, damaged ones among them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import for_router
import numpy as np
import pytest
from for_router import GOLDEN, LABELS, made, questions
from hypothesis import given
from hypothesis import strategies as st

from tel_edge.eval.scoring import router as training
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions import router
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.question import from_row
from tel_edge.runtime.questions.router import Router, features

trained = for_router.trained


def buckets(text: str, choices: Sequence[str] = ()) -> list[int]:
    return features(text, choices, 2**16)[0].tolist()


def test_the_hash_is_the_same_everywhere() -> None:
    indices, values = features("E2 node E2", ("1. gNB", "b) O-RU"), 2**16)
    assert indices.tolist() == [
        10444, 21303, 21828, 25021, 27045, 27979, 29499, 37114, 42262,
        44198, 45126, 48036, 49411, 52697, 54093, 59382, 64667,
    ]  # fmt: skip
    # "e2" and its one gram are there twice.
    counts = [2 if at in (10444, 27045) else 1 for at in indices.tolist()]
    assert values.tolist() == [(count / 19) ** 0.5 for count in counts]
    assert router._hash("wnode", router.QUESTION) == crc32(b"wnode")


def test_features_are_normalised_and_within_the_buckets() -> None:
    for text in ("a", "ünïcode ﬁle \ud800", "word " * 1000):
        indices, values = features(text, ("x", "y"), 97)
        assert (values**2).sum() == pytest.approx(1)
        assert indices.tolist() == sorted(set(indices.tolist()))
        assert 0 <= indices.min() <= indices.max() < 97


def test_without_words_there_are_none() -> None:
    for text in ("", " \n\t"):
        indices, values = features(text, (), 8)
        assert (indices.size, values.size) == (0, 0)


def test_case_and_forms_of_letters_do_not_count() -> None:
    assert buckets("The ﬁrst E2") == buckets("the first e2")


def test_labels_that_a_category_puts_to_all_are_no_features() -> None:
    alone = buckets("text of a working group")
    assert buckets("text of a working group", LABELS) == alone
    assert (
        buckets("text of a working group", [f"{at}) {x}" for at, x in enumerate(LABELS)]) == alone
    )
    assert buckets("text of a working group", (*LABELS, "other")) != alone


def test_the_numbering_of_choices_is_no_feature() -> None:
    plain = buckets("which", ("near-RT RIC", "SMO"))
    for one, two in (("1. ", "2. "), ("A) ", "B) "), ("(a) ", "(b) "), ("1: ", "2: ")):
        assert buckets("which", (f"{one}near-RT RIC", f"{two}SMO")) == plain
    assert buckets("which", ("3.5 GHz", "SMO")) != buckets("which", ("5 GHz", "SMO"))


def test_a_row_and_the_question_made_of_it_have_equal_features() -> None:
    row = {
        "question": "Name the group.\n\n###TEXT:\n{ An {excerpt} of a TDoc. }\n",
        "answer": "SA2",
    }
    read = from_row(row, CATEGORIES["3gpp_tsg"], "1", 16)
    assert buckets(row["question"]) == buckets(read.text, read.choices)


def test_a_word_of_the_question_is_another_feature_than_one_of_a_choice() -> None:
    assert not set(buckets("fronthaul")) & set(buckets("", ("fronthaul",)))


def test_golden_bytes() -> None:
    assert training.dumps(made()) == GOLDEN


def test_what_is_saved_is_loaded(tmp_path: Path, trained: Router) -> None:
    training.save(trained, tmp_path / "r.safetensors")
    loaded = router.load(tmp_path / "r.safetensors")
    assert training.dumps(loaded) == training.dumps(trained)
    for question in questions("oranbench", 20, seed=9):
        asked = (question.text, question.choices)
        assert loaded.route(*asked) == trained.route(*asked)
    assert [path.name for path in tmp_path.iterdir()] == ["r.safetensors"]


def test_the_reference_reader_agrees(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    read = numpy.load(training.dumps(made()))
    assert read["weights"].tolist() == made().weights.tolist()
    assert read["bias"].tolist() == made().bias.tolist()


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    wrong = replace(made(), bias=np.array([np.nan, 0], "<f4"))
    with pytest.raises(InputError, match="bias"):
        training.save(wrong, tmp_path / "r.safetensors")
    assert not list(tmp_path.iterdir())


def file(change: Callable[[dict[str, Any]], object], data: bytes = GOLDEN[-24:]) -> bytes:
    """Return the golden file with its header changed; settings are an object for `change`."""
    header = json.loads(GOLDEN[8:-24])
    header["__metadata__"]["settings"] = json.loads(header["__metadata__"]["settings"])
    change(header)
    metadata = header.get("__metadata__")
    if isinstance(metadata, dict) and isinstance(metadata.get("settings"), dict):
        metadata["settings"] = json.dumps(metadata["settings"])
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def of(*path: str, to: object) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        for name in path[:-1]:
            header = header[name]
        header[path[-1]] = to

    return change


def narrow(header: dict[str, Any]) -> None:
    """Give the weights one bucket, a length for which JSON has another word that Python takes."""
    header["weights"].update(shape=[2, True], data_offsets=[0, 4])
    header["bias"].update(data_offsets=[4, 12])


def padded(size: int) -> bytes:
    """Return the golden file with a header of `size` bytes."""
    return size.to_bytes(8, "little") + GOLDEN[8:-24].ljust(size) + GOLDEN[-24:]


SET = ("__metadata__", "settings")
NAN = np.array([np.nan], "<f4").tobytes()


def test_a_header_may_be_padded() -> None:
    assert router.loads(padded(1_000_000)).categories == made().categories


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"", "header"),
        (GOLDEN[:7], "header"),
        (GOLDEN[:200], "header"),
        ((2**63).to_bytes(8, "little") + GOLDEN[8:], "header"),
        (padded(1_000_001), "header"),
        (b"\x02\0\0\0\0\0\0\0[]", "header"),
        (b"\x03\0\0\0\0\0\0\0 {}", "header"),
        (b"\x04\0\0\0\0\0\0\0\xff\xfe{}", "header"),
        ((200_000).to_bytes(8, "little") + b"[" * 200_000, "header"),
        (GOLDEN.replace(b'"dtype":"F32",', b'"shape":[2],  '), "header"),
        (GOLDEN.replace(b'"bias"', b'"bios"'), "header"),
        (file(lambda h: h.update(extra=h["bias"])), "header"),
        (file(lambda h: h.pop("bias")), "header"),
        (file(lambda h: h.pop("__metadata__")), "__metadata__"),
        (file(of("__metadata__", "more", to="x")), "__metadata__"),
        (file(of("__metadata__", "feature_version", to=1)), "__metadata__"),
        (file(of("__metadata__", "feature_version", to="2")), "feature_version"),
        (file(of(*SET, to="{")), "settings"),
        (file(of(*SET, to="[]")), "settings"),
        (file(of(*SET, "more", to=1)), "settings"),
        (file(of(*SET, "threshold", to=float("nan"))), "settings"),
        (file(of(*SET, "categories", to="oranbench")), "categories"),
        (file(of(*SET, "categories", to=["oranbench"])), "categories"),
        (file(of(*SET, "categories", to=["oranbench"] * 2)), "categories"),
        (file(of(*SET, "categories", to=["oranbench", "../x"])), "categories"),
        (file(of(*SET, "categories", to=["teleqna", "oranbench", "srsranbench"])), "weights"),
        (file(of(*SET, "source", to="AB" * 32)), "source"),
        (file(of(*SET, "source", to=7)), "source"),
        (file(of(*SET, "temperature", to=0.0)), "temperature"),
        (file(of(*SET, "temperature", to=1e9)), "temperature"),
        (file(of(*SET, "temperature", to="0.5")), "temperature"),
        (file(of(*SET, "threshold", to=1.5)), "threshold"),
        (file(of(*SET, "threshold", to=True)), "threshold"),
        (file(of("weights", to=[1])), "weights"),
        (file(of("weights", "more", to=1)), "weights"),
        (file(of("weights", "dtype", to="F32")), "weights"),
        (file(of("weights", "dtype", to=["F16"])), "weights"),
        (file(of("weights", "shape", to=[8])), "weights"),
        (file(narrow, GOLDEN[-24:-20] + GOLDEN[-8:]), "weights"),
        (file(of("weights", "shape", to=[2, 4.0])), "weights"),
        (file(of("weights", "shape", to=[0, 4])), "weights"),
        (file(of("weights", "shape", to=[-2, -4])), "weights"),
        (file(of("weights", "shape", to=[2, 2**62])), "weights"),
        (file(of("weights", "shape", to=[4, 2])), "weights"),
        (file(of("weights", "shape", to=[2, 3])), "weights"),
        (file(of("weights", "data_offsets", to=[0, 17])), "weights"),
        (file(of("weights", "data_offsets", to=[16, 0])), "weights"),
        (file(of("weights", "data_offsets", to=[-16, 0])), "weights"),
        (file(of("bias", "data_offsets", to=[16, 2**64])), "bias"),
        (file(of("bias", "data_offsets", to=[8, 16])), "data_offsets"),
        (file(of("bias", "data_offsets", to=[0, 8])), "data_offsets"),
        (file(of("bias", "data_offsets", to=[20, 28]), GOLDEN[-28:]), "data_offsets"),
        (GOLDEN[:-1], "bias"),
        (GOLDEN + b"\0", "data_offsets"),
        (file(lambda h: None, GOLDEN[-24:-4] + NAN), "bias"),
        (file(lambda h: None, b"\x00\x7c" + GOLDEN[-22:]), "weights"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_with_its_name_and_the_field(
    data: bytes, field: str, tmp_path: Path
) -> None:
    (tmp_path / "r.safetensors").write_bytes(data)
    with pytest.raises(InputError) as caught:
        router.load(tmp_path / "r.safetensors")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'r.safetensors'}: {field}: ")
    assert message.count("\n") <= 1
    assert len(message) < 400 + len(str(tmp_path))


def test_a_missing_or_huge_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        router.load(tmp_path / "none")
    with (tmp_path / "huge").open("wb") as stream:
        stream.truncate(router.MOST_BYTES + 1)
    with pytest.raises(InputError, match="huge: file: more than"):
        router.load(tmp_path / "huge")


CHANGES = st.lists(
    st.tuples(st.integers(0, len(GOLDEN)), st.integers(0, 12), st.binary(max_size=12)), max_size=4
)


@given(CHANGES)
def test_a_changed_file_is_refused_or_a_whole_router(changes: list[tuple[int, int, bytes]]) -> None:
    data = GOLDEN
    for at, dropped, put in changes:
        data = data[:at] + put + data[at + dropped :]
    try:
        read = router.loads(data)
    except InputError:
        return
    chosen = read.route("fronthaul of the RIC", ("E2", "A1"))
    assert sum(chosen.probabilities.values()) == pytest.approx(1)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(InputError):
        router.loads(data)
