"""`Answerer`: what a service or a notebook uses, without a command line."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import export_models as models
import fake_engine as fake
import pytest
from conftest import ROOT

import tel_edge
from tel_edge.export import ExportRequest, export
from tel_edge.runtime import Answerer
from tel_edge.runtime.answerer import Answering
from tel_edge.runtime.errors import InputError, WorkError

CHOICES = ("red", "green", "blue", "white")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    fake.bundle(tmp_path / "tel-nano", adapters=("oranbench", "teleqna"))
    return tmp_path / "tel-nano"


def opened(bundle: Path, how: Answering | None = None, **options: Any) -> Answerer:
    return Answerer.of_bundle(bundle, how, opener=fake.FakeOpener(), **options)


def test_an_answer_says_all_that_there_is_to_say(bundle: Path) -> None:
    with opened(bundle, Answering(k=3)) as answerer:
        made = answerer.answer("Item, gold 2?", CHOICES, "oranbench", id="q7")
    assert (made.index, made.choice, made.question.id) == (2, "blue", "q7")
    assert made.probabilities == pytest.approx([0.1, 0.1, 0.7, 0.1])
    assert made.mass == pytest.approx(1)
    assert len(made.votes) == 3
    assert made.majority in made.votes
    assert made.text is None


def test_texts_are_read_as_the_command_reads_them(bundle: Path) -> None:
    with opened(bundle, Answering(generate=True, k=2)) as answerer:
        made = answerer.answer("Item, gold 1?", CHOICES, "oranbench")
    assert (made.index, made.votes, made.text) == (1, (1, None), "Well.\nANSWER: B")
    assert made.probabilities == []


@pytest.mark.parametrize(
    ("question", "choices", "category", "said"),
    [
        ("", CHOICES, "oranbench", "question"),
        ("Which?", (), "oranbench", "choices"),
        ("Which?", CHOICES, "poetry", "unknown category 'poetry'"),
        ("Which?", CHOICES, "sixg_bench", "no adapter for sixg_bench"),
        ("Which?", CHOICES, None, "no category"),
    ],
)
def test_what_cannot_be_answered_is_an_error(
    bundle: Path, question: str, choices: tuple[str, ...], category: str | None, said: str
) -> None:
    with opened(bundle) as answerer, pytest.raises(InputError, match=said):
        answerer.answer(question, choices, category)


def test_bare_and_only_are_those_of_the_command(bundle: Path) -> None:
    with opened(bundle, bare=True) as answerer:
        assert answerer.adapters is None
        assert answerer.answer("Item, gold 2?", CHOICES).probabilities == pytest.approx([0.25] * 4)
    with opened(bundle, only="teleqna") as answerer:
        assert answerer.adapters == ("teleqna",)
    with pytest.raises(InputError, match="no adapter for sixg_bench"):
        opened(bundle, only="sixg_bench")


def test_the_engine_is_closed_whatever_happens(bundle: Path) -> None:
    opener = fake.FakeOpener()
    with (
        pytest.raises(ZeroDivisionError),
        Answerer.of_bundle(bundle, opener=opener),
    ):
        raise ZeroDivisionError
    assert opener.engines[0].closed


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded backbone with an adapter that changes its answers, in a workspace."""
    pytest.importorskip("llama_cpp")
    pytest.importorskip("peft")
    home = tmp_path_factory.mktemp("real")
    nano = Path(tel_edge.__file__).parent / "tel_nano"
    adapter = models.bind(models.adapter(home / "peft", nano, r=4), nano)
    request = ExportRequest(
        workspace=home / "tel-workspace", adapter=str(adapter), quant="Q8_0", verify=False,
        quiet=True,
    )  # fmt: skip
    made = export(request)
    assert [(file.kind, new) for file, new in made.files] == [("backbone", True), ("adapter", True)]
    assert not any(new for _, new in export(request).files)
    return home


def test_threads_get_the_answers_of_one_alone(real: Path) -> None:
    asked = [(f"Which interface is number {at}?", ("A1", "E2", "O1")) for at in range(24)]
    with Answerer.of_bundle(real / "tel-workspace/bundles/tel-nano") as answerer:
        answerer.engine.tokenize("warm")

        def index(at: int) -> tuple[int, list[float]]:
            made = answerer.answer(*asked[at], "oranbench", id=str(at))
            return made.index or 0, made.probabilities

        alone = [index(at) for at in range(len(asked))]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(index, range(len(asked))))
    for one, other in zip(alone, together, strict=True):
        assert one[1] == pytest.approx(other[1], abs=1e-4)
    with pytest.raises(WorkError, match="closed"):
        answerer.answer(*asked[0], "oranbench")


def test_closing_ends_who_is_asking_in_order(real: Path) -> None:
    """Nobody reads what the engine has freed: an answer is whole, or the engine is closed."""
    answerer = Answerer.of_bundle(real / "tel-workspace/bundles/tel-nano")

    def ask(at: int) -> str:
        try:
            for turn in range(40):
                answerer.answer(f"Which {at}, {turn}?", ("A1", "E2"), "oranbench")
        except WorkError as error:
            return str(error)
        return "answered"

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, at) for at in range(4)]
        answerer.close()
        answerer.close()
        assert {each.result(timeout=60) for each in asking} <= {"the engine is closed", "answered"}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"temperature": 0.0}, "temperature 0.0: a number above 0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"k": 0}, "k 0: 1 to 128 votes"),
        ({"k": 1000}, "k 1000"),
        ({"limit": 0}, "limit 0: a text has at least one token"),
    ],
)
def test_what_means_nothing_is_refused(how: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Answering(**how)


def test_requests_take_what_a_notebook_has(tmp_path: Path) -> None:
    made = ExportRequest(
        workspace=str(tmp_path), adapter=[tmp_path / "a", "b"], quant=["F16", "Q8_0"]
    )  # type: ignore[arg-type]
    assert (made.workspace, made.adapter, made.quant) == (
        tmp_path, f"{tmp_path}/a,b", "F16,Q8_0"
    )  # fmt: skip
    for wrong in ({"format": "ggml"}, {"adapter_quant": "Q4_0"}, {"wait": -1.0}):
        with pytest.raises(InputError):
            ExportRequest(**wrong)  # type: ignore[arg-type]


def test_votes_of_questions_without_an_id_are_not_the_same(bundle: Path) -> None:
    with opened(bundle) as answerer:
        made = [answerer.answer(f"Item {at}, gold 2?", CHOICES, bare_or(at)) for at in range(4)]
    assert len({each.question.id for each in made}) == 4


def bare_or(at: int) -> str:
    return ("oranbench", "teleqna")[at % 2]


def test_only_is_the_category_of_those_that_name_none(bundle: Path) -> None:
    with opened(bundle, only="teleqna") as answerer:
        made = answerer.answer("Item, gold 2?", CHOICES)
    assert (made.question.category, made.adapter) == ("teleqna", "teleqna")


def test_the_lines_of_the_readme_answer_a_question(
    real: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) == 3
    monkeypatch.chdir(real)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() in ("F1", "E2", "O1")


def test_importing_the_package_loads_nothing() -> None:
    code = "import sys, tel_edge.runtime, tel_edge.export; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert not {"numpy", "torch", "llama_cpp", "tel_edge.runtime.answerer"} & set(loaded.split())
