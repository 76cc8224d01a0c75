"""docs/report.schema.json is what `report.json` is: neither more nor less."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from made_reports import Result, floor, put, result

from tel_edge.eval.benchmarks import duplicates
from tel_edge.eval.benchmarks.duplicates import Duplicate, Duplicates
from tel_edge.eval.findings import findings
from tel_edge.eval.reports import report_document
from tel_edge.eval.scoring import records
from tel_edge.runtime.questions.orders import rotations
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.workspace import Workspace

SCHEMA = json.loads((ROOT / "docs" / "report.schema.json").read_text(encoding="utf-8"))
Check = Callable[[Any], list[str]]


@pytest.fixture(scope="module")
def faults() -> Check:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.check_schema(SCHEMA)
    return lambda document: [error.message for error in validator.iter_errors(document)]


def document(home: Path) -> Any:
    made = findings.collect(Workspace(home), "tel-nano", published=True)
    return json.loads(json.dumps(report_document.document(made), allow_nan=False))


def full(home: Path) -> Any:
    """Return a report that has something of everything but a router."""
    for name, right in (("base-F16", 60), ("lora-F16", 240), ("lora-int4", 238)):
        put(home, result(name, right=right, joules_per_question=0.5, power_mode="15W"))
    put(home, result("merged-Q8_0"), result("lora-F16-generate"), result("lora-F16", part="train"))
    put(home, result("lora-F16", "teletables"))
    put(home, Result(result("lora-tiny", "teletables").summary, ()))
    large = result("reference-big", right=200)
    served = replace(large.summary.variant, format="endpoint", backbone_bytes=0)
    put(home, Result(replace(large.summary, variant=served), large.records))
    plain = result()
    rows = []
    for each in plain.records:
        question = Question(each.id, "oranbench", "?", tuple("abcd"), each.gold)
        for moved in rotations(question):
            gold = moved.answer or 0
            rows.append(replace(each, id=moved.id, gold=gold, pick=gold))
    fields = records.measures(rows[:0], 0) | {"questions": len(rows)}
    put(home, Result(replace(plain.summary, rotated=True, **fields), tuple(rows)))
    floor(home, 120)
    pairs = (Duplicate("oranbench/1", "oranbench/900", 0.9, True),)
    made = Duplicates("oranbench", "ot-mini", "test", "split of oranbench", 300, 0.8, pairs)
    duplicates.write(records.duplicates_path(Workspace(home), "oranbench"), made)
    path = Workspace(home).adapter("tel-nano", "oranbench") / "training.json"
    path.parent.mkdir(parents=True)
    known = {"best": {"validation_pass1": 0.8}, "rows": {"validation": 300}, "seconds": 9}
    path.write_text(json.dumps({**known, "curve": [{"step": 1, "loss": 0.5}], "config": {"a": 1}}))
    return document(home)


def test_reports_are_valid(tmp_path: Path, faults: Check) -> None:
    made = full(tmp_path / "full")
    assert faults(made) == []
    # All of these stand in it, so all of them were looked at.
    assert made["checks"]
    assert made["categories"][0]["leakage"]["rotations"]
    assert made["categories"][0]["leakage"]["seen"]
    assert made["training"][0]["validation"]
    assert made["paper"]["references"]
    assert made["paper"]["lines"][0]["gap"]
    put(tmp_path / "least", Result(result(of=3).summary, ()))
    assert faults(document(tmp_path / "least")) == []


def objects(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every object in a JSON value."""
    if isinstance(value, dict):
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in inner:
        if isinstance(each, dict | list):
            yield from objects(each, (*path, key))


# What names belong to is open: settings, configurations, and by category or variant.
OPEN = {"settings", "config", "made_with", "milliseconds", "reliability", "ranks", "parts"}


def test_a_field_more_or_less_is_no_report(tmp_path: Path, faults: Check) -> None:
    """Of every kind of object, so a new field has to come into the schema with the code."""
    put(tmp_path, result("lora-F16", of=120, right=100), result("lora-Q8_0", of=120, right=99))
    made = document(tmp_path)
    assert faults(made) == []
    kinds: dict[frozenset[str], tuple[Any, ...]] = {}
    for path in objects(made):
        if not OPEN & set(path):
            kinds.setdefault(frozenset(_at(made, path)), path)
    assert len(kinds) > 12
    for path in kinds.values():
        own = _at(made, path)
        own["unheard of"] = 1
        assert faults(made), path
        del own["unheard of"]
        for name in list(own):
            value = own.pop(name)
            assert faults(made), (*path, name)
            own[name] = value
    assert faults(made) == []


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema_version",), 1),
        (("part",), "all"),
        (("ladder", 0, "verdict"), "fine"),
        (("ladder", 0, "kind"), "other"),
        (("ladder", 0, "pass1"), 80),
        (("categories", 0, "variants", 0, "pass1", "value"), 80.0),
        (("categories", 0, "variants", 0, "change"), 0),
        (("recommendation", "sentences"), []),
        (("recommendation", "bytes"), 1.5),
    ],
)
def test_values_of_something_else_are_refused(
    path: tuple[Any, ...], value: Any, tmp_path: Path, faults: Check
) -> None:
    put(tmp_path, result(of=20, right=10))
    made = document(tmp_path)
    assert faults(made) == []
    _at(made, path[:-1])[path[-1]] = value
    assert faults(made)
