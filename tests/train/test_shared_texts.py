"""A text that two categories share: what one holds out, nothing made for both is trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import export_models as models
import fake_engine as fake
import for_merge as merging
import for_train as base
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tel_edge.eval.benchmarks import benchmark, other_fields
from tel_edge.eval.benchmarks.split import Split, normalised, split
from tel_edge.eval.folders import checkpoint
from tel_edge.eval.scoring import router as routing
from tel_edge.export.commands import export
from tel_edge.export.sources import adapter
from tel_edge.runtime.bundles.manifest import BackboneInfo
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import digest
from tel_edge.runtime.questions import prompt
from tel_edge.runtime.questions.categories import category
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.workspace import Workspace
from tel_edge.train.commands import merge, train
from tel_edge.train.merging import compared

torch = pytest.importorskip("torch")
Command = Callable[..., tuple[int, str, str]]
NAMES = ("teleqna", "oranbench")
JOINT = ("--category", "teleqna,oranbench", "--joint")
PARTS = ("train", "validation", "test")
whole_numbers = base.whole_numbers


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The backbone `base`, `data` with 30 shared texts among 40 and 60, and `alone` with none."""
    made = tmp_path_factory.mktemp("texts")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    models.backbone(made / "base", "llama", dtype=torch.float32, **small)
    rows = fake.rows(100)
    dressed = [{**row, "question": row["question"].upper() + " "} for row in rows[:30]]
    fake.dataset(made / "data", "teleqna", rows[:40])
    fake.dataset(made / "data", "oranbench", [*rows[40:70], *reversed(dressed)])
    fake.dataset(made / "alone", "teleqna", rows[:40])
    fake.dataset(made / "alone", "oranbench", rows[40:100])
    return made


def splits(root: Path, data: str = "data") -> dict[str, Split]:
    return {
        name: split(benchmark.read(str(root / data), category(name)).questions, 42)
        for name in NAMES
    }


def texts(made: Split, *parts: str) -> set[str]:
    return {normalised(question.text) for part in parts for question in made.part(part)}


def held(of: dict[str, Split], *parts: str) -> set[str]:
    return set().union(*(texts(made, *parts) for made in of.values()))


def jobs(root: Path, home: Path, *argv: str, data: str = "data") -> list[train.Job]:
    return base.jobs(root, home, "--dataset", str(root / data), *argv)


def asked(name: str, texts: list[str]) -> list[Question]:
    return [Question(f"{name}/{at}", name, text, ("a", "b"), 0) for at, text in enumerate(texts)]


TEXTS = st.lists(st.sampled_from("abcdefghijklmnop?!"), max_size=20)


@given(st.lists(TEXTS, min_size=2, max_size=4))
def test_no_text_is_trained_on_that_any_split_holds_out(several: list[list[str]]) -> None:
    from tel_edge.eval.benchmarks.split import apart, key

    of = {str(at): split(asked(str(at), each)) for at, each in enumerate(several)}
    made = apart(of)
    for name, kept in made.items():
        assert kept.test == of[name].test
        for part in PARTS:
            assert set(kept.part(part)) <= set(of[name].part(part))
    test = {key(q.text) for each in made.values() for q in each.test}
    tuned = {key(q.text) for each in made.values() for q in each.validation}
    fitted = {key(q.text) for each in made.values() for q in each.train}
    assert not fitted & (test | tuned)
    assert not tuned & test
    # Nothing is taken without need, and what lost nothing is what it was.
    for name, kept in made.items():
        for question in {*of[name].train, *of[name].validation} - {*kept.train, *kept.validation}:
            others = [each for other, each in of.items() if other != name]
            held = [q for each in others for q in (*each.validation, *each.test)]
            assert key(question.text) in {key(q.text) for q in held}
    assert all(made[name] == of[name] for name in of if made[name].size == of[name].size)
    assert apart(made) == made


def test_a_joint_adapter_is_not_trained_on_what_a_category_holds_out(
    root: Path, tmp_path: Path
) -> None:
    (joint,) = jobs(root, tmp_path, *JOINT)
    of = splits(root)
    assert texts(of["oranbench"], "train") & texts(of["teleqna"], "test"), "a case worth the test"
    assert not texts(joint.parts, "train") & held(of, "validation", "test")
    assert not texts(joint.parts, "validation") & held(of, "test")
    # The questions that are scored, and how they are known, are those of single adapters.
    assert joint.parts.test == of["teleqna"].test + of["oranbench"].test
    assert joint.splits == {name: made.digest for name, made in of.items()}


def test_where_no_text_is_shared_a_joint_adapter_of_before_stays_finished(
    root: Path, tmp_path: Path
) -> None:
    (joint,) = jobs(root, tmp_path, *JOINT, data="alone")
    assert joint.parts.digest == digest.of_value(joint.splits)
    (other,) = jobs(root, tmp_path, *JOINT)
    assert other.parts.digest != digest.of_value(other.splits)


def test_what_is_left_out_is_counted_and_said(
    root: Path, tmp_path: Path, run_command: Command
) -> None:
    argv = [one for one in base.common(root, tmp_path) if one != "--quiet"]
    argv += [*JOINT, "--epochs", "1"]
    of, (joint,) = splits(root), jobs(root, tmp_path, *JOINT)
    count = sum(len(made.part(part)) for made in of.values() for part in PARTS)
    left = count - sum(len(joint.parts.part(part)) for part in PARTS)
    path = tmp_path / "adapters" / "base" / "joint" / "training.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"rows": {}, "digest": "of before"}))
    code, _, err = run_command(train.parser(), train.work, *argv)
    assert code == 0
    assert f"joint: {left} questions are left out, whose text another category holds out\n" in err
    assert "joint: the adapter of before was trained on some of those\n" in err
    rows = json.loads(path.read_text())["rows"]
    assert (rows["shared"], rows["train"]) == (left, len(joint.parts.train))
    code, _, err = run_command(train.parser(), train.work, *argv)
    assert code == 0
    assert "finished before, reused" in err
    assert "adapter of before" not in err


def test_a_category_that_is_wholly_another_s_test_is_refused(root: Path, tmp_path: Path) -> None:
    test = splits(root, "alone")["oranbench"].test
    rows = [{"question": q.text, "choices": q.choices, "answer": q.answer} for q in test]
    fake.dataset(tmp_path / "data", "teleqna", rows)
    fake.dataset(tmp_path / "data", "oranbench", fake.rows(100)[40:])
    with pytest.raises(InputError, match=r"teleqna: too few questions .* no other category holds"):
        jobs(root, tmp_path, *JOINT, "--dataset", str(tmp_path / "data"))


def test_a_cap_counts_for_each_category(root: Path, tmp_path: Path) -> None:
    (joint,) = jobs(root, tmp_path, *JOINT, "--max-train", "5", data="alone")
    of: dict[str, list[Question]] = {}
    for question in joint.shown:
        of.setdefault(question.category, []).append(question)
    own = jobs(root, tmp_path, *JOINT[:2], "--max-train", "5", data="alone")
    assert of == {job.name: list(job.shown) for job in own}
    assert {name: len(each) for name, each in of.items()} == {"teleqna": 5, "oranbench": 5}
    chosen_by = [question.category for question in joint.validated]
    assert chosen_by == ["teleqna"] * 5 + ["oranbench"] * 5


@pytest.mark.parametrize(("most", "same"), [(5, False), (1000, True)])
def test_the_digest_tells_a_cap_of_each_from_one_of_all(
    root: Path, tmp_path: Path, most: int, same: bool
) -> None:
    (joint,) = jobs(root, tmp_path, *JOINT, "--max-train", str(most), data="alone")
    from tel_edge.train.recipes import identity

    parts = [joint.bound, joint.parts.digest, identity(joint.recipe), joint.seed, most]
    assert (joint.digest == digest.of_value(parts)) is same
    (single,) = jobs(root, tmp_path, "--max-train", str(most), data="alone")
    parts = [single.bound, single.parts.digest, identity(single.recipe), single.seed, most]
    assert single.digest == digest.of_value(parts)


@pytest.fixture
def home(root: Path, tmp_path: Path) -> Path:
    """A workspace with an adapter a category, trained on `data`."""
    for seed, name in enumerate(NAMES):
        put(root, tmp_path, name, seed)
    return tmp_path


def put(root: Path, home: Path, name: str, seed: int) -> None:
    folder = models.adapter(
        home / "adapters" / "base" / name, root / "base",
        seed=seed, r=4, lora_alpha=8, target_modules=["q_proj"],
    )  # fmt: skip
    known = splits(root)[name].digest
    models.bind(
        folder, root / "base", category=name, split=known, splits={name: known}, seed=42,
        dataset="data", over=None, config={"batch": 4},
    )  # fmt: skip


@pytest.fixture
def tel_merge(root: Path, home: Path, run_command: Command) -> Command:
    def run(*argv: str) -> tuple[int, str, str]:
        common = ["--workspace", str(home), "--backbone", str(root / "base"), "--method", "linear"]
        return run_command(
            merge.parser(), merge.work, *common, "--dataset", str(root / "data"), *argv
        )

    return run


def contaminated(of: dict[str, Split]) -> dict[str, int]:
    trained = held(of, "train")
    return {
        name: sum(normalised(q.text) in trained for q in made.test) for name, made in of.items()
    }


def test_a_merged_adapter_is_not_scored_on_what_a_part_of_it_was_trained_on(
    tel_merge: Command, root: Path, home: Path
) -> None:
    of = splits(root)
    known = contaminated(of)
    assert all(known.values()), "a case worth the test"
    code, _, err = tel_merge("--score")
    assert code == 0
    for name, count in known.items():
        whole = len(of[name].test)
        assert f"{name}: {count} of {whole} test questions stand in the train part" in err
    record = merging.record(home, "merged-linear")
    assert record["merged"]["contaminated"] == known
    counts = {row["category"]: row["questions"] for row in record["test"]}
    assert counts == {name: len(of[name].test) - known[name] for name in NAMES}
    _, text = compared.compare(Workspace(home), "base")
    for name, count in known.items():
        assert f"- merged-linear: {count} questions of {name} are left out, since" in text


def test_scores_of_a_merge_that_had_them_in_are_made_again(tel_merge: Command, home: Path) -> None:
    assert tel_merge("--score")[0] == 0
    path = merging.placed(home, "merged-linear") / "training.json"
    good = json.loads(path.read_text())
    old = {**good, "merged": dict(good["merged"]), "test": []}
    del old["merged"]["contaminated"]
    path.write_text(json.dumps(old))
    assert "merged before, reused" not in tel_merge("--score")[2]
    assert json.loads(path.read_text())["test"] == good["test"]
    assert "merged before, reused" in tel_merge("--score")[2]


def test_a_merge_without_the_adapters_data_says_that_it_does_not_know(
    tel_merge: Command, root: Path, home: Path
) -> None:
    code, _, err = tel_merge("--dataset", str(root / "alone"))
    assert code == 0
    assert "whether one knows another's test questions is not known" in err
    assert merging.record(home, "merged-linear")["merged"]["contaminated"] is None
    # With it, that is counted without a score too.
    assert tel_merge()[0] == 0
    assert merging.record(home, "merged-linear")["merged"]["contaminated"]


def test_the_comparison_says_which_scores_are_of_before(tmp_path: Path) -> None:
    both = {"oranbench": "a", "teleqna": "b"}
    merging.scored(tmp_path, "oranbench", {"oranbench": "a"}, oranbench=8)
    for name in ("joint", "merged-linear"):
        merging.scored(tmp_path, name, both, oranbench=7)
    found, _ = compared.compare(Workspace(tmp_path), "base")
    assert [note.split(" is of before")[0] for note in found["notes"]] == ["joint", "merged-linear"]


@pytest.mark.parametrize(
    ("changed", "known"),
    [
        ({}, 0),
        ({"splits": {"a": "1", "b": "2"}}, None),
        ({"splits": {"a": "1", "b": "2"}, "rows": {"shared": 4}}, 0),
        ({"splits": {"a": "1", "b": "2"}, "merged": {}}, None),
        ({"splits": {"a": "1", "b": "2"}, "merged": {"contaminated": {}}}, 0),
        ({"splits": {"a": "1", "b": "2"}, "merged": {"contaminated": {"a": 2, "b": 3}}}, 5),
    ],
)
def test_an_export_knows_whether_the_scores_will_be_too_good(
    root: Path, home: Path, changed: dict[str, Any], known: int | None
) -> None:
    folder = models.bind(home / "adapters" / "base" / "teleqna", root / "base", **changed)
    opened = checkpoint.load(root / "base")
    weights = digest.of_weights(root / "base")
    info = BackboneInfo("base", "llama", weights, "c" * 64, prompt.digest())
    assert adapter.load(folder, opened.shape, info, half=True).contaminated == known


def test_an_export_warns_once_of_scores_that_are_too_good(
    root: Path, home: Path, run_command: Command
) -> None:
    folder = home / "adapters" / "base" / "teleqna"
    known = {name: made.digest for name, made in splits(root).items()}
    models.bind(
        folder, root / "base", category="merged-ties", splits=known,
        merged={"contaminated": {"teleqna": 4}},
    )  # fmt: skip
    code, _, err = run_command(
        export.parser(), export.work, "--workspace", str(home), "--backbone", str(root / "base"),
        "--adapter", str(folder), "--category", ",".join(NAMES), "--quant", "F16", "--dry-run",
    )  # fmt: skip
    assert code == 0
    assert err.count("4 test questions stand in the training of another of its categories") == 1


def test_the_router_is_not_trained_on_what_a_category_holds_out(root: Path) -> None:
    pytest.importorskip("sklearn")
    of = splits(root)
    kept = {
        name: Split(
            tuple(q for q in made.train if normalised(q.text) not in held(of, *PARTS[1:])),
            tuple(q for q in made.validation if normalised(q.text) not in held(of, "test")),
            made.test, 42, "",
        )
        for name, made in of.items()
    }  # fmt: skip
    made, wanted = routing.train(of, 42), routing.train(kept, 42)
    assert made.weights.tobytes() == wanted.weights.tobytes()
    assert (made.temperature, made.threshold) == (wanted.temperature, wanted.threshold)


def test_a_router_is_another_only_where_texts_are_shared(root: Path) -> None:
    of, alone = splits(root), splits(root, "alone")
    how = [
        *(routing.runtime.FEATURE_VERSION, routing.BUCKETS, routing.C, routing.BALANCE),
        *(routing.STRANGE, routing.LEAST, routing.WANTED, routing.MOST_ABSTAINED),
        [asdict(request) for request in other_fields.parts()[0]],
    ]

    def before(of: dict[str, Split]) -> str:
        return digest.of_value([how, [(name, made.digest) for name, made in of.items()]])

    assert routing.source(alone) == before(alone)
    assert routing.source(of) != before(of)
