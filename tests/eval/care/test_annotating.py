"""People who judge: the blind page in a real browser, and their labels read back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import for_browser
import for_judging as made_of
import pytest
from for_judging import Command

pytest.importorskip("sacrebleu")

from tel_edge.eval.care.judges import studies

tel_judge = made_of.tel_judge
HOSTILE = (
    "</script><script>window.owned = 1</script> <img src=x onerror='window.owned = 1'> {{items}}"
)


def judged(tel_judge: Command, home: Path) -> Path:
    """Have three systems judged by the stand-ins; return the study's folder."""
    assert tel_judge(*made_of.systems(home))[0] == 0
    return studies.folder(home / "home", "answers")


def annotate(tel_judge: Command, count: int, *argv: str) -> str:
    code, said, err = tel_judge("--name", "answers", "--annotate", str(count), *argv)
    assert (code, err) == (0, "")
    return said


def labels(folder: Path, who: str, count: int, choice: str = "first") -> list[dict[str, str]]:
    key = json.loads((folder / f"annotate-{who}.key.json").read_text())
    return [{"study": key["study"], "item": id_, "choice": choice} for id_ in [*key["items"]]][
        :count
    ]


def written(path: Path, rows: list[dict[str, str]]) -> list[str]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--name", "answers", "--labels", str(path)]


def test_the_page_is_blind(tel_judge: Command, tmp_path: Path) -> None:
    names = ("targets-qv_rank-16", "targets-all_rank-32", "targets-mlp_rank-16")
    argv = made_of.systems(tmp_path, dict.fromkeys(names))
    for at, name in enumerate(names):
        made_of.answered(
            tmp_path / name / "care.jsonl", tmp_path / "data", name,
            lambda case, _, at=at: f"{case.references[0]} Please be patient, {at}.",
        )  # fmt: skip
    assert tel_judge(*argv)[0] == 0
    folder = studies.folder(tmp_path / "home", "answers")
    said = annotate(tel_judge, 12, "--annotator", "ann")
    page = (folder / "annotate-ann.html").read_text()
    assert "next: tel-judge --name answers --labels FILE" in said
    for text in (*names, "targets", "rank-", "run of", made_of.BACKBONE, "lora", str(tmp_path)):
        assert text not in page
    data = json.loads(re.findall(r'id="items">(.*?)</script>', page)[0])
    assert len(data["items"]) == 12
    assert {*data["items"][0]} == {"id", "asked", "facts", "first", "second"}
    key = json.loads((folder / "annotate-ann.key.json").read_text())
    assert {one["id"] for one in data["items"]} == {*key["items"]}
    # All pairs and both orders, over as many dialogues as there are.
    shown_pairs = [(first, second) for _, first, second in key["items"].values()]
    assert len({frozenset(pair) for pair in shown_pairs}) == 3
    assert len(set(shown_pairs)) > 3
    assert len({prompt for prompt, _, _ in key["items"].values()}) == 8
    # Another person sees the same pairs in other orders, under other names.
    annotate(tel_judge, 12, "--annotator", "bob")
    other = json.loads((folder / "annotate-bob.key.json").read_text())

    def sorted_pairs(key: Any) -> list[Any]:
        return sorted((prompt, *sorted(pair)) for prompt, *pair in key["items"].values())

    assert sorted_pairs(key) == sorted_pairs(other)
    assert not {*key["items"]} & {*other["items"]}
    assert [*key["items"].values()] != [*other["items"].values()]
    # Fewer the next time orphan none of those that were handed out.
    annotate(tel_judge, 2, "--annotator", "ann")
    assert json.loads((folder / "annotate-ann.key.json").read_text()) == key


def test_labels_come_back(tel_judge: Command, tmp_path: Path) -> None:
    folder = judged(tel_judge, tmp_path)
    annotate(tel_judge, 6, "--annotator", "ann")
    rows = labels(folder, "ann", 4)
    code, said, _ = tel_judge(*written(tmp_path / "one.jsonl", rows))
    assert code == 0
    assert "labels: 4 new, 0 known, 0 changed, 4 in" in said
    made = studies.read_labels(folder)
    key = json.loads((folder / "annotate-ann.key.json").read_text())
    assert {(one.prompt, one.first, one.second) for one in made} == {
        tuple(key["items"][row["item"]]) for row in rows
    }
    texts = studies.read_answers(folder)
    assert {(one.judge, one.choice, one.repeat) for one in made} == {("ann", "first", 0)}
    assert made[0].words[1] == texts[made[0].second, made[0].prompt].words
    [person] = [one for one in studies.read_study(folder).judges if one.kind == "people"]
    assert person.name == "ann"
    # A longer file of the same page, with one changed.
    rows = [*labels(folder, "ann", 5)[1:], {**rows[0], "choice": "tie"}]
    code, said, _ = tel_judge(*written(tmp_path / "two.jsonl", rows))
    assert "labels: 1 new, 3 known, 1 changed, 5 in" in said
    # Judging again leaves people where they are; other answers put them away, and back.
    argv = made_of.systems(tmp_path)
    assert tel_judge(*argv)[0] == 0
    assert len(studies.read_labels(folder)) == 5
    assert tel_judge(*argv, "--prompts", "3")[0] == 0
    assert studies.read_labels(folder) == []
    assert [one.kind for one in studies.read_study(folder).judges] == ["standin"] * 2
    assert tel_judge(*argv)[0] == 0
    assert len(studies.read_labels(folder)) == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"study": "0" * 16}, "line 2: a label of another study"),
        ({"item": "0" * 16}, "line 2: item '0000000000000000' is on no page"),
        ({"choice": "A"}, "line 2: choice is 'A', not first, second or tie"),
        ({"note": "x"}, "line 2: unknown field 'note'"),
        (None, "line 2: tie, but first before for the same pair"),
    ],
)
def test_labels_that_are_refused(
    tel_judge: Command, tmp_path: Path, change: dict[str, str] | None, said: str
) -> None:
    folder = judged(tel_judge, tmp_path)
    annotate(tel_judge, 6)
    one, other = labels(folder, "person", 2)
    rows = [one, {**one, "choice": "tie"} if change is None else {**other, **change}]
    code, _, err = tel_judge(*written(tmp_path / "labels.jsonl", rows))
    assert code == 2
    assert f"labels.jsonl: {said}" in err
    assert studies.read_labels(folder) == []


def test_people_alone(tel_judge: Command, tmp_path: Path) -> None:
    argv = [*made_of.systems(tmp_path), "--annotate", "3"]
    assert tel_judge(*argv)[0] == 0
    folder = studies.folder(tmp_path / "home", "answers")
    assert studies.read_study(folder).judges == ()
    assert tel_judge(*written(tmp_path / "labels.jsonl", labels(folder, "person", 3)))[0] == 0
    assert len(studies.read_labels(folder)) == 3
    # Other dialogues would leave the verdicts that are there without their texts.
    code, _, err = tel_judge(*argv, "--prompts", "2")
    assert code == 2
    assert "a study of other answers or dialogues" in err


def test_who_cannot_annotate(tel_judge: Command, tmp_path: Path) -> None:
    folder = judged(tel_judge, tmp_path)
    for name, said in (("rules", "both a judge of the panel and an annotator"),
                       ("panel", "both a judge of the panel and an annotator"),
                       ("../x", "--annotator '../x': letters")):  # fmt: skip
        code, _, err = tel_judge("--name", "answers", "--annotate", "3", "--annotator", name)
        assert code == 2
        assert said in err
    code, _, err = tel_judge("--name", "answers", "--labels", str(tmp_path / "none.jsonl"))
    assert code == 2
    assert "no such file" in err
    assert not [*folder.glob("annotate*")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with for_browser.launched(tmp_path_factory.mktemp("home")) as launched:
        yield launched


def hostile(*_: Any) -> str:
    return HOSTILE


@for_browser.NEEDED[0]
@for_browser.NEEDED[1]
def test_pairs_by_the_keyboard_alone(tel_judge: Command, tmp_path: Path, browser: Any) -> None:
    argv = made_of.systems(tmp_path)
    made_of.answered(tmp_path / "weak" / "care.jsonl", tmp_path / "data", "weak", hostile)
    assert tel_judge(*argv)[0] == 0
    folder = studies.folder(tmp_path / "home", "answers")
    annotate(tel_judge, 4, "--annotator", "ann")
    said: list[str] = []
    context = browser.new_context(offline=True, accept_downloads=True)

    def opened() -> Any:
        page = context.new_page()
        page.set_default_timeout(5000)
        page.on("console", lambda message: said.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: said.append(f"request: {request.url}"))
        file = (folder / "annotate-ann.html").as_uri()
        page.goto(file)
        said.remove(f"request: {file}")
        return page

    page = opened()
    assert page.inner_text("#progress") == "Pair 1 of 4, 0 judged"
    data = json.loads(page.text_content("#items"))["items"]
    assert page.inner_text("#first") == data[0]["first"][0]
    page.keyboard.press("1")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("2")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#progress") == "Pair 3 of 4, 2 judged"
    assert page.get_attribute("[data-choice=second]", "aria-pressed") == "true"
    # Text that would be markup elsewhere is text.
    assert page.evaluate("window.owned") is None
    assert page.locator("img").count() == 0
    # Kept by the browser, where nobody has pressed anything else.
    page.close()
    page = opened()
    assert page.inner_text("#progress") == "Pair 2 of 4, 2 judged"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("1")
    assert page.inner_text("#progress") == "Pair 4 of 4, 3 judged"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("0")
    assert page.inner_text("#progress") == "Pair 3 of 4, all judged: download the labels"
    with page.expect_download() as download:
        page.click("#download")
    path = tmp_path / "labels.jsonl"
    download.value.save_as(path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["choice"] for row in rows] == ["first", "tie", "second", "first"]
    assert [row["item"] for row in rows] == [one["id"] for one in data]
    least, what = page.evaluate(for_browser.CONTRAST)[0]
    assert least >= 4.5, what
    context.close()
    assert said == []
    code, told, _ = tel_judge("--name", "answers", "--labels", str(path))
    assert code == 0
    assert "labels: 4 new" in told
