"""The router's choice, its training and its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import for_router
import numpy as np
import pytest
from for_router import GOLDEN, LABELS, WORDS, made, questions, splits
from hypothesis import given
from hypothesis import strategies as st

from tel_edge.eval.benchmarks import other_fields
from tel_edge.eval.reports import router_tables
from tel_edge.eval.scoring import router as training
from tel_edge.eval.scoring import router_figures
from tel_edge.export import router as exporting
from tel_edge.runtime.bundles.manifest import BackboneInfo, Manifest
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions import router
from tel_edge.runtime.questions.router import Router
from tel_edge.runtime.workspace import Workspace

trained = for_router.trained


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
    # The third is what belongs to neither.
    assert found.categories == ("oranbench", "srsranbench", "none")
    assert found.weights.shape == (3, training.BUCKETS)
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


def report(tmp_path: Path, trained: Router) -> tuple[router_figures.Measured, Path]:
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
    return measured, router_figures.write(Workspace(tmp_path), measured)


def test_figures_are_written_read_and_shown(tmp_path: Path, trained: Router) -> None:
    measured, path = report(tmp_path, trained)
    assert path == tmp_path / "results" / "router" / "router.json"
    assert router_figures.read(path) == measured
    assert measured.dataset == "data"
    assert measured.microseconds_p50 == pytest.approx(1000)
    assert measured.whole.forced.of == 24
    text = router_tables.text(measured)
    assert text.startswith("A request without a category goes to one of 3")
    assert "trained in 2 s" in text
    assert ("oranbench", "8", "0", "0", "0") in router_tables.matrix(measured).rows
    names = [row[0] for row in router_tables.figures(measured).rows]
    assert names[0] == "right (an abstention is wrong)"
    assert names[-2:] == ["abstained", "left alone of 56 requests of other fields"]


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
            router_figures.read(path)
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
    figures = router_figures.read(router_figures.report_path(Workspace(tmp_path / "ws")))
    assert (figures.sha256, figures.whole.right.value) == (made.sha256, 1)
    assert said[-1].startswith("router written: 100.0% of 16 test requests")

    manifest = manifest.with_file(made)
    stamp, count = (out / made.path).stat().st_mtime_ns, len(said)
    assert make(manifest) == (made, False)
    assert len(said) == count
    # Another workspace has no figures of it yet; measuring needs no training.
    assert make(manifest, where="other") == (made, False)
    assert router_figures.report_path(Workspace(tmp_path / "other")).is_file()
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
        "import sys; from pathlib import Path; from tel_edge.runtime.questions import router;"
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
    for choices in (True, False):
        assert training.measure(found, unseen, choices).right.value == 1
        assert training.measure_others(found, choices).value == 1


def test_of_other_fields_those_to_measure_with_are_not_trained_on() -> None:
    train, test = other_fields.parts()
    assert not {one.text for one in train} & {one.text for one in test}
    assert sorted(one.text for one in (*train, *test)) == sorted(
        one.text for of in other_fields.by_field().values() for one in of
    )
    assert all(len(one.choices) == len(set(one.choices)) == 4 for one in train if one.choices)


def test_what_may_not_be_chosen_is_none_of_these(trained: Router) -> None:
    """A bundle with two adapters: what is of a third category is the bare backbone's."""
    text = "proposal agreed at the meeting, tdoc revised"
    whole = trained.route(text)
    some = replace(trained, among=("oranbench", "srsranbench")).route(text)
    assert (whole.category, some.category) == ("3gpp_tsg", None)
    assert some.probabilities == whole.probabilities
    assert replace(trained, among=()).route(text).category is None
    assert replace(trained, among=("3gpp_tsg",)).route(text).category == "3gpp_tsg"


def test_what_is_of_no_category_is_left_alone(trained: Router) -> None:
    for text in ("My office router has no internet since the move.", "How do I cook rice?"):
        assert trained.route(text).category is None


@pytest.mark.slow
def test_real_questions_are_routed(shared: Path, tmp_path: Path) -> None:
    parts = training.sources(str(shared / "ot-full"), 42)
    training.save(training.train(parts, 42), tmp_path / "r.safetensors")
    found = router.load(tmp_path / "r.safetensors")
    assert (tmp_path / "r.safetensors").stat().st_size <= 1_000_000
    unseen = {name: part.test for name, part in parts.items()}
    assert len(unseen) == 6
    assert training.measure_others(found).value >= 0.8
    assert training.measure_others(found, choices=False).value >= 0.75
    whole, alone = training.measure(found, unseen), training.measure(found, unseen, choices=False)
    assert whole.right.value >= 0.97
    assert whole.routed.value >= 0.985
    assert whole.abstained.value <= 0.02
    assert alone.forced.value >= 0.97
    assert alone.routed.value >= 0.985
    assert alone.right.value >= 0.97
