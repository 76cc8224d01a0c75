"""The router: its features, its file, what it chooses, and what it is worth on real questions."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tel_edge.eval.benchmarks.split import Split, split
from tel_edge.eval.reports import report_tables
from tel_edge.eval.scoring import router as training
from tel_edge.export import router as exporting
from tel_edge.runtime.bundles.manifest import BackboneInfo, Manifest
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions import router
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.question import Question, from_row
from tel_edge.runtime.questions.router import Router, features
from tel_edge.runtime.workspace import Workspace

LABELS = CATEGORIES["3gpp_tsg"].labels
WORDS = {
    "oranbench": "xapp rapp near-rt non-rt fronthaul ric smo o-cloud open e2".split(),
    "srsranbench": "class function scheduler gnb_du library header unit_test pdcp lib cpp".split(),
    "3gpp_tsg": "meeting tdoc agreed proposal clause contribution revised noted cr wid".split(),
}


def made(threshold: float = 0.75, temperature: float = 0.5) -> Router:
    """Return a router of two categories and four buckets."""
    return Router(
        categories=("oranbench", "srsranbench"),
        weights=np.array([[0.5, 0, -1, 2], [1, 0, 0, -2]], "<f2"),
        bias=np.array([0.25, -0.25], "<f4"),
        temperature=temperature,
        threshold=threshold,
        source="ab" * 32,
    )


GOLDEN = (
    b"`\x01\0\0\0\0\0\0"
    rb'{"__metadata__":{"feature_version":"1","settings":"{\"categories\": [\"oranbench\", '
    rb"\"srsranbench\"], \"source\": \"" + b"ab" * 32 + rb"\", \"temperature\": 0.5, "
    rb'\"threshold\": 0.75}"},"bias":{"data_offsets":[16,24],"dtype":"F32","shape":[2]},'
    rb'"weights":{"data_offsets":[0,16],"dtype":"F16","shape":[2,4]}}   '
    b"\x008\0\0\0\xbc\0@\0<\0\0\0\0\0\xc0"
    b"\0\0\x80>\0\0\x80\xbe"
)


def questions(name: str, count: int, seed: int = 1) -> list[Question]:
    rng = random.Random(f"{name} {seed}")

    def words(number: int) -> str:
        return " ".join(rng.choice(WORDS[name]) for _ in range(number))

    return [
        Question(
            f"{name}/{at}",
            name,
            f"{words(6)} {at}",
            CATEGORIES[name].labels or tuple(f"{place}. {words(2)} {place}" for place in range(4)),
            at % 4,
        )
        for at in range(count)
    ]


def splits(count: int = 40) -> dict[str, Split]:
    return {name: split(questions(name, count)) for name in WORDS}


@pytest.fixture(scope="module")
def trained() -> Router:
    return training.train(splits(), 42)


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


@given(st.text(st.characters(), max_size=80), st.lists(st.text(max_size=20), max_size=4))
def test_any_request_has_probabilities(text: str, choices: list[str]) -> None:
    chosen = made().route(text, choices)
    assert sum(chosen.probabilities.values()) == pytest.approx(1)
    assert chosen.probability == max(chosen.probabilities.values())
    assert (chosen.category is None) or chosen.probability >= 0.75


def test_below_the_threshold_it_abstains() -> None:
    text = "fronthaul of the RIC"
    sure = made(0.0).route(text)
    assert sure.category == max(sure.probabilities, key=sure.probabilities.__getitem__)
    assert made(sure.probability).route(text).category == sure.category
    chosen = made(min(1.0, sure.probability + 1e-9)).route(text)
    assert chosen.category is None
    assert chosen.probabilities == sure.probabilities


def test_of_equally_likely_categories_the_first_is_chosen() -> None:
    even = replace(made(0.5), weights=np.zeros((2, 4), "<f2"), bias=np.zeros(2, "<f4"))
    chosen = even.route("anything")
    assert (chosen.category, chosen.probability) == ("oranbench", 0.5)


def test_nothing_to_go_by_has_no_category() -> None:
    for text in ("", "  \n"):
        assert made(0.0).route(text).category is None
        assert made(0.0).route(text, LABELS).category is None
    assert made(0.0).route("", ("E2", "A1")).category


def test_own_choices_are_never_replaced_by_a_category_s_labels(trained: Router) -> None:
    text = "proposal agreed at the meeting, tdoc revised"
    assert trained.route(text).category == "3gpp_tsg"
    assert trained.route(text, LABELS).category == "3gpp_tsg"
    asked = trained.route(text, ("yes", "no"))
    assert asked.category != "3gpp_tsg"
    assert asked.probabilities["3gpp_tsg"] == 0


def test_it_learns_what_tells_categories_apart(trained: Router) -> None:
    unseen = {name: questions(name, 30, seed=2) for name in WORDS}
    for choices in (True, False):
        assert training.measure(trained, unseen, choices).forced.value == 1
    assert trained.threshold == training.LEAST
    assert trained.source == training.source(splits())


def test_equal_questions_make_equal_files(trained: Router) -> None:
    again = training.train(splits(), 42)
    assert training.dumps(again) == training.dumps(trained)
    other = training.train(splits(44), 42)
    assert training.dumps(other) != training.dumps(trained)
    assert other.source != trained.source


def test_two_categories_are_enough_and_an_empty_part_is_not() -> None:
    two = {name: made for name, made in splits().items() if name != "3gpp_tsg"}
    found = training.train(two, 42)
    assert found.weights.shape == (2, training.BUCKETS)
    parts = {name: part.test for name, part in two.items()}
    assert training.measure(found, parts).forced.value == 1
    bare = {name: replace(part, validation=()) for name, part in two.items()}
    assert training.train(bare, 42).temperature == 1
    empty = {**two, "oranbench": replace(two["oranbench"], train=())}
    with pytest.raises(InputError, match="oranbench: no train questions"):
        training.train(empty, 42)


def test_the_temperature_makes_probabilities_true() -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(4000, 3)) * 2
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    golds = np.array([rng.choice(3, p=each) for each in shares])
    assert training.temperature(logits, golds) == pytest.approx(1, abs=0.06)
    assert training.temperature(logits * 3, golds) == pytest.approx(3, abs=0.18)


def test_the_threshold_keeps_to_its_rule() -> None:
    sure, right = np.full(1000, 0.99), np.ones(1000, bool)
    assert training.threshold(sure, right) == 0.5
    # Seven wrong of a thousand, the least likely: three have to go, at 0.51, 0.52 and 0.53.
    right[:7] = False
    sure[:7] = [0.505, 0.515, 0.525, 0.535, 0.545, 0.555, 0.565]
    assert training.threshold(sure, right) == 0.53
    # Out of reach within the share that may be abstained from: as far as that allows.
    sure[:30], right[:30] = np.linspace(0.6, 0.89, 30) + 0.005, False
    assert training.threshold(sure, right) == 0.70
    # Or not at all.
    assert training.threshold(np.full(10, 0.3), np.zeros(10, bool)) == 0.5


def test_the_confusion_counts_every_question_once() -> None:
    parts = {"oranbench": questions("oranbench", 9), "srsranbench": questions("srsranbench", 5)}
    asked = [question for part in parts.values() for question in part]
    sure = sorted(made().route(q.text, q.choices).probability for q in asked)
    found = training.measure(made(sure[5]), parts)
    assert [sum(row) for row in found.counts] == [9, 5]
    right = sum(found.counts[at][at] for at in range(2))
    lost = sum(row[-1] for row in found.counts)
    assert 0 < lost <= 5
    assert (found.right.right, found.right.of) == (right, 14)
    assert (found.routed.right, found.routed.of) == (right, 14 - lost)
    assert (found.abstained.right, found.abstained.of) == (lost, 14)
    assert found.forced.right >= right


def report(tmp_path: Path, trained: Router) -> tuple[training.Measured, Path]:
    training.save(trained, tmp_path / "r.safetensors")
    ticks = iter(range(1000))
    measured = training.evaluate(
        trained,
        tmp_path / "r.safetensors",
        splits(),
        dataset=str(tmp_path / "data"),
        seed=42,
        seconds=2.5,
        clock=lambda: next(ticks) / 1000,
    )
    return measured, training.write(Workspace(tmp_path), measured)


def test_figures_are_written_read_and_shown(tmp_path: Path, trained: Router) -> None:
    measured, path = report(tmp_path, trained)
    assert path == tmp_path / "results" / "router" / "router.json"
    assert training.read(path) == measured
    assert measured.dataset == "data"
    assert measured.microseconds_p50 == pytest.approx(1000)
    assert measured.whole.forced.of == 24
    text = report_tables.router_text(measured)
    assert text.startswith("A request without a category goes to one of 3")
    assert "trained in 2 s" in text
    assert ("oranbench", "8", "0", "0", "0") in report_tables.router_matrix(measured).rows
    names = [row[0] for row in report_tables.router_figures(measured).rows]
    assert names[0] == "right (an abstention is wrong)"
    assert names[-1] == "abstained"


def test_damaged_figures_are_one_line(tmp_path: Path, trained: Router) -> None:
    _, path = report(tmp_path, trained)
    document = json.loads(path.read_text())
    for field, value in (
        ("schema_version", 2),
        ("bytes", "many"),
        ("whole", None),
        ("whole", {**document["whole"], "counts": [[1]]}),
        ("alone", {**document["alone"], "right": {"value": 1}}),
    ):
        path.write_text(json.dumps({**document, field: value}))
        with pytest.raises(InputError, match="no figures of a router") as caught:
            training.read(path)
        assert "\n" not in str(caught.value)


def folder(tmp_path: Path, count: int = 40) -> Path:
    for name in ("oranbench", "srsranbench"):
        rows = [
            {"question": q.text, "choices": q.choices, "answer": q.answer}
            for q in questions(name, count)
        ]
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        text = "\n".join(map(json.dumps, rows))
        (tmp_path / name / "test.jsonl").write_text(text + "\n", encoding="utf-8")
    return tmp_path


def test_the_bundle_s_router_is_made_once(tmp_path: Path) -> None:
    data, out, said = folder(tmp_path / "data"), tmp_path / "bundle", []
    manifest = Manifest(BackboneInfo("tiny", "llama", "b" * 64, "c" * 64, "d" * 64))

    def make(manifest: Manifest, force: bool = False, where: str = "ws") -> tuple[Any, bool]:
        workspace = Workspace(tmp_path / where)
        args = (str(data), 42, False, force, said.append)
        return exporting.make(out, manifest, workspace, *args)

    made, anew = make(manifest)
    assert anew
    assert (made.path, made.kind, made.format, made.quant, made.category) == (
        "tiny-router.safetensors", "router", "safetensors", "F16", None,
    )  # fmt: skip
    assert made.source == training.source(training.sources(str(data), 42))
    figures = training.read(training.report_path(Workspace(tmp_path / "ws")))
    assert (figures.sha256, figures.whole.right.value) == (made.sha256, 1)
    assert said[-1].startswith("router written: 100.0% of 16 test requests")

    manifest = manifest.with_file(made)
    stamp, count = (out / made.path).stat().st_mtime_ns, len(said)
    assert make(manifest) == (made, False)
    assert len(said) == count
    # Another workspace has no figures of it yet; measuring needs no training.
    assert make(manifest, where="other") == (made, False)
    assert training.report_path(Workspace(tmp_path / "other")).is_file()
    assert (out / made.path).stat().st_mtime_ns == stamp
    assert make(manifest, force=True) == (made, True)

    (out / made.path).write_bytes(b"damaged")
    assert make(manifest) == (made, True)
    folder(tmp_path / "data", 44)
    changed, anew = make(manifest)
    assert anew
    assert changed.source != made.source


def test_a_data_set_of_one_category_has_nothing_to_route(tmp_path: Path) -> None:
    data = folder(tmp_path / "data")
    assert list(training.sources(str(data), 42)) == ["oranbench", "srsranbench"]
    (data / "srsranbench").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="has 1 of the categories"):
        training.sources(str(data), 42)
    with pytest.raises(InputError, match="no data set"):
        training.sources(str(tmp_path / "none"), 42)


def test_the_runtime_side_needs_numpy_alone(tmp_path: Path) -> None:
    (tmp_path / "r.safetensors").write_bytes(GOLDEN)
    code = (
        "import sys; from pathlib import Path; from tel_edge.runtime import router;"
        "early = 'numpy' in sys.modules;"
        "router.load(Path(sys.argv[1])).route('a request', ('a', 'b'));"
        "heavy = {'sklearn', 'scipy', 'safetensors', 'torch', 'pyarrow'} & set(sys.modules);"
        "print(early, sorted(heavy), [m for m in sys.modules if m.startswith('tel_edge.eval')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "r.safetensors")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False [] []\n"


def test_ot_mini_is_routed_without_an_error() -> None:
    parts = training.sources("ot-mini", 42)
    found = training.train(parts, 42)
    unseen = {name: part.test for name, part in parts.items()}
    assert training.measure(found, unseen).right.value == 1
    assert training.measure(found, unseen, choices=False).right.value == 1


@pytest.mark.slow
def test_real_questions_are_routed(shared: Path, tmp_path: Path) -> None:
    parts = training.sources(str(shared / "ot-full"), 42)
    training.save(training.train(parts, 42), tmp_path / "r.safetensors")
    found = router.load(tmp_path / "r.safetensors")
    assert (tmp_path / "r.safetensors").stat().st_size <= 1_000_000
    unseen = {name: part.test for name, part in parts.items()}
    assert len(unseen) == 6
    whole, alone = training.measure(found, unseen), training.measure(found, unseen, choices=False)
    assert whole.right.value >= 0.97
    assert whole.routed.value >= 0.985
    assert whole.abstained.value <= 0.02
    assert alone.right.value >= 0.97
