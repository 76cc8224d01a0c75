"""Difficulty and subject of a question, from the columns of each category."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tel_edge.eval.benchmarks import benchmark, facets
from tel_edge.eval.benchmarks.facets import Facets
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.categories import CATEGORIES

ROW = {"question": "Which one?", "choices": ["a", "b"], "answer": 1}


@pytest.mark.parametrize(
    ("category", "columns", "found"),
    [
        ("oranbench", {"difficulty": " easy "}, Facets("easy", None)),
        ("teletables", {"difficult": True}, Facets("difficult", None)),
        ("teletables", {"difficult": False}, Facets("ordinary", None)),
        ("teleqna", {"subject": "Lexicon"}, Facets(None, "Lexicon")),
        (
            "sixg_bench",
            {"difficulty": "very_hard", "task_name": "Handover", "category": "MINIMAX_REGRET"},
            Facets("very_hard", "Handover"),
        ),
        ("srsranbench", {}, None),
        ("oranbench", {"difficulty": 3, "subject": ""}, None),
    ],
)
def test_each_category_has_its_columns(
    category: str, columns: Mapping[str, Any], found: Facets | None, tmp_path: Path
) -> None:
    (tmp_path / category).mkdir()
    # A line that is no row still has a number.
    lines = ["torn", json.dumps({**ROW, **columns})]
    (tmp_path / category / "test.jsonl").write_text("\n".join(lines), encoding="utf-8")
    made = facets.read(str(tmp_path), CATEGORIES[category])
    assert made == ({f"{category}/1": found} if found else {})


def test_the_ids_are_those_of_the_benchmark() -> None:
    for name in ("sixg_bench", "teletables"):
        made = facets.read("ot-mini", CATEGORIES[name])
        assert list(made) == [q.id for q in benchmark.read("ot-mini", CATEGORIES[name]).questions]
    assert {each.difficulty for each in made.values()} == {"ordinary", "difficult"}


def test_no_data_set_is_told() -> None:
    with pytest.raises(InputError, match="no data set 'nowhere'"):
        facets.read("nowhere", CATEGORIES["teleqna"])
