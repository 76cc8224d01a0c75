"""The embedded benchmark: no malformed row, no short cut to the answers, facts in every part."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tel_edge.eval.benchmarks import benchmark, ot_mini
from tel_edge.eval.benchmarks.split import split
from tel_edge.runtime.questions.categories import CATEGORIES, WORKING_GROUPS

# Columns as GSMA/ot-full has them; of teletables those that do not point into a document.
COLUMNS = {
    "teleqna": {"question", "choices", "answer", "subject"},
    "sixg_bench": {
        "question", "choices", "answer", "task_id", "task_name", "difficulty", "category",
    },
    "3gpp_tsg": {"question", "answer", "file_name"},
    "oranbench": {"question", "choices", "answer", "difficulty"},
    "srsranbench": {"question", "choices", "answer"},
    "teletables": {"question", "choices", "answer", "difficult", "table_title", "document_id"},
}  # fmt: skip
LETTERED = [name for name in CATEGORIES if name != "3gpp_tsg"]
each = pytest.mark.parametrize("name", CATEGORIES)


def facts(name: str) -> dict[str, tuple[str, str, str]]:
    """Return for each question text the fact that it asks."""
    return {
        (text := template.format(s=subject))[0].upper() + text[1:]: (family.name, subject, answer)
        for family in ot_mini.families(name)
        for subject, answer in family.facts
        for template in family.templates
    }


def test_all_categories_are_there() -> None:
    assert set(ot_mini.LAYOUTS) == set(CATEGORIES) == set(COLUMNS)


@each
def test_columns_are_those_of_the_real_data(name: str) -> None:
    assert all(set(row) == COLUMNS[name] for row in ot_mini.rows(name))


@each
def test_columns_are_in_the_real_files(name: str, shared: Path) -> None:
    import pyarrow.parquet as pq

    (file, *_) = sorted((shared / "ot-full" / name).glob("test-*.parquet"))
    assert set(pq.read_schema(file).names) >= COLUMNS[name]


@each
def test_rows_are_the_same_every_time(name: str) -> None:
    assert ot_mini.rows(name) == ot_mini.rows(name)
    assert ot_mini.rows(name, 1) != ot_mini.rows(name, 2)


@each
def test_no_row_is_malformed(name: str) -> None:
    read = benchmark.read("ot-mini", CATEGORIES[name], strict=True)
    assert len(read.questions) == len(ot_mini.rows(name)) >= 500
    assert len({question.text for question in read.questions}) == len(read.questions)


@each
def test_the_right_answer_is_that_of_the_fact(name: str) -> None:
    asked = facts(name)
    for question in benchmark.read("ot-mini", CATEGORIES[name]).questions:
        assert question.answer is not None
        assert question.choices[question.answer] == asked[question.text][2]


@pytest.mark.parametrize("name", LETTERED)
def test_right_answers_are_evenly_placed(name: str) -> None:
    counts = Counter(row["answer"] for row in ot_mini.rows(name))
    options = ot_mini.LAYOUTS[name].options
    mean = sum(counts.values()) / options
    assert len(counts) == options
    assert max(abs(count - mean) for count in counts.values()) < 0.12 * mean


def test_working_groups_are_evenly_asked() -> None:
    counts = Counter(row["answer"] for row in ot_mini.rows("3gpp_tsg"))
    assert set(counts) == set(WORKING_GROUPS)
    assert len(set(counts.values())) == 1


@pytest.mark.parametrize("name", LETTERED)
def test_the_longest_option_is_near_chance(name: str) -> None:
    rows = ot_mini.rows(name)
    right = 0.0
    for row in rows:
        lengths = [len(choice) for choice in row["choices"]]
        longest = [at for at, length in enumerate(lengths) if length == max(lengths)]
        right += (row["answer"] in longest) / len(longest)
    assert abs(right / len(rows) - 1 / ot_mini.LAYOUTS[name].options) < 0.05


@each
def test_what_the_test_part_asks_is_in_the_train_part(name: str) -> None:
    asked = facts(name)
    parts = split(benchmark.read("ot-mini", CATEGORIES[name]).questions)
    trained = {asked[question.text] for question in parts.train}
    tested = [asked[question.text] for question in parts.test]
    assert sum(fact in trained for fact in tested) >= 0.95 * len(tested)


@each
def test_written_as_parquet_it_reads_the_same(name: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / name).mkdir()
    table = pa.Table.from_pylist(ot_mini.rows(name))
    pq.write_table(table, tmp_path / name / "test-00000-of-00001.parquet")
    read = benchmark.read(str(tmp_path), CATEGORIES[name])
    assert read.questions == benchmark.read("ot-mini", CATEGORIES[name]).questions
