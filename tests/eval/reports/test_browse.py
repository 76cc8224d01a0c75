"""What the page's browser of questions is given: which questions, which numbers, which texts."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from typing import Any

import made_answers as made
import pytest

from tel_edge.eval.benchmarks.facets import Facets
from tel_edge.eval.findings.answers import Answers
from tel_edge.eval.reports import browse
from tel_edge.eval.scoring.records import UNPARSED, asked_digest
from tel_edge.runtime.questions.question import Question

# The labels' probabilities of four questions; of the second the pick changes, of the last two too.
BEFORE = {"0": (0, (0.7, 0.2, 0.1)), "1": (1, (0.1, 0.8, 0.1)), "2": (0, (0.3, 0.7)),
          "3": (0, (0.45, 0.55))}  # fmt: skip
AFTER = {"0": (0, (0.6, 0.3, 0.1)), "1": (1, (0.6, 0.4, 0.0)), "2": (0, (0.9, 0.1)),
         "3": (0, (0.55, 0.45))}  # fmt: skip
Rows = dict[str, tuple[int, tuple[float, ...]]]


def answers(name: str, rows: Rows, category: str = "oranbench", **changes: Any) -> Answers:
    records = [
        made.record(f"{category}/{id}", gold, shares, **changes)
        for id, (gold, shares) in rows.items()
    ]
    return made.columns(records, name, category)


def shown(*variants: Answers, **options: Any) -> dict[str, Any]:
    options = {"questions": {}, "facets": {}, **options}
    return browse.document({"oranbench": variants}, "lora-F16", **options)


def test_questions_whose_pick_changed_are_there_with_all_variants() -> None:
    # A variant need not have the reference's order, nor all of its questions.
    after = dict(reversed(AFTER.items()))
    base = {"1": (1, (0.2, 0.5, 0.3))}
    document = shown(
        answers("base-F16", base), answers("lora-F16", BEFORE), answers("lora-Q4_K_M", after)
    )
    [category] = document["categories"]
    assert document["variants"] == ["lora-F16", "lora-Q4_K_M", "base-F16"]
    assert document["after"] == "lora-Q4_K_M"
    assert category["ids"] == ["oranbench/1", "oranbench/2", "oranbench/3"]
    assert category["gold"] == [1, 0, 0]
    assert category["picks"] == {
        "base-F16": [1, browse.MISSING, browse.MISSING],
        "lora-F16": [1, 1, 1],
        "lora-Q4_K_M": [0, 0, 0],
    }
    assert category["permille"]["lora-F16"] == [[100, 800, 100], [300, 700], [450, 550]]
    assert category["permille"]["base-F16"] == [[200, 500, 300], [], []]
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_the_largest_changes_are_kept_and_the_others_counted() -> None:
    third = answers("lora-Q8_0", {"3": (0, (0.56, 0.44))})
    document = shown(answers("lora-F16", BEFORE), answers("lora-Q4_K_M", AFTER), third, most=2)
    assert document["categories"][0]["ids"] == ["oranbench/1", "oranbench/2"]
    assert document["left_out"] == {"questions": 1, "changes": 2}
    assert "1 question with smaller changes (2 answers) left out" in browse.fragment(document)


def test_a_text_stands_only_beside_the_answers_to_it() -> None:
    question = Question("oranbench/1", "oranbench", "Which?", ("x", "y", "z"), 1)
    facets = {"oranbench/2": Facets("hard", "beams")}
    options = {"questions": {question.id: question}, "facets": facets}
    document = shown(answers("lora-F16", BEFORE), answers("lora-Q4_K_M", AFTER), **options)
    [category] = document["categories"]
    assert category["texts"] == ["Which?", None, None]
    assert category["choices"] == [["x", "y", "z"], None, None]
    assert category["difficulty"] == [None, "hard", None]
    assert category["subject"] == [None, "beams", None]
    assert "texts of 2 questions are left out" in browse.fragment(document)
    asked = asked_digest(replace(question, text="Which one?"))
    document = shown(
        answers("lora-F16", BEFORE, asked=asked), answers("lora-Q4_K_M", AFTER), **options
    )
    assert document["categories"][0]["texts"] == [None, None, None]


def test_what_was_asked_otherwise_is_not_compared() -> None:
    reference = answers("lora-F16", BEFORE, asked="00000001")
    assert not shown(reference, answers("lora-Q4_K_M", AFTER, asked="00000002"))["categories"][0][
        "ids"
    ]
    other = answers("lora-Q4_K_M", AFTER)
    for changes in ({"part": "all"}, {"split": "x"}, {"rotated": True}, {"dataset": "y"}):
        moved = replace(other, summary=replace(other.summary, **changes))
        document = shown(reference, moved)
        assert document["variants"] == ["lora-F16"]
        assert "Every variant gives the answers of lora-F16" in browse.fragment(document)


def test_generated_texts_have_picks_and_no_probabilities() -> None:
    texts = [
        made.record("oranbench/1", 1, (0.5, 0.5), logprobs=(), pick=UNPARSED, draws=(UNPARSED,))
    ]
    document = shown(answers("lora-F16", BEFORE), made.columns(texts, "lora-F16-generate"))
    [category] = document["categories"]
    assert category["ids"] == ["oranbench/1"]
    assert category["picks"]["lora-F16-generate"] == [UNPARSED]
    assert category["permille"]["lora-F16-generate"] == [[]]


def test_a_category_without_the_references_records_is_left_out() -> None:
    nothing = made.columns([], "lora-F16")
    document = shown(nothing, answers("lora-Q4_K_M", AFTER))
    assert document["categories"] == []
    assert browse.fragment(document) == ""


@pytest.mark.parametrize("text", ["</script><script>", "<!--<script>", "\u2028]]>", "\ud800"])
def test_no_text_ends_the_data(text: str) -> None:
    after = answers("lora-Q4_K_M", AFTER)
    document = shown(answers("lora-F16", BEFORE), after, facets={"oranbench/1": Facets(None, text)})
    page = browse.fragment(document)
    data = re.findall(r'<script type="application/json" id="answers">([^<]*)</script>', page)
    assert json.loads(data[0]) == document
    assert page.encode().count(b"</script>") == 2


def test_the_policy_allows_the_browsers_script_alone() -> None:
    page = browse.fragment(shown(answers("lora-F16", BEFORE), answers("lora-Q4_K_M", AFTER)))
    script = page.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in browse.policy()
    assert "default-src 'none'" in browse.policy()
    # Data are put in as text: nothing in the script makes markup of a string.
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)
