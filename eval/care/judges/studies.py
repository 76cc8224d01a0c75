"""A study's folder as its readers and writers see it: what is judged, the texts, the verdicts.

`WORKSPACE/studies/NAME` stands by itself: `study.json`, `prompts.jsonl` (the dialogues),
`answers.jsonl` (a line an answer), `pairs.jsonl`, `rubric.jsonl`, `labels.jsonl` (of people, as
pairs are) and `replies.jsonl` (what judges sent back). Readers raise `InputError` with file and
line; a last line that a killed run left half is no line yet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from tel_edge.eval import documents
from tel_edge.eval.care.answers.cases import Case
from tel_edge.eval.care.judges.verdicts import (
    CHOICES,
    CRITERIA,
    SCHEMA_VERSION,
    Judge,
    PairVerdict,
    RubricVerdict,
    Study,
    System,
)
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import digest
from tel_edge.runtime.files.atomic import replacing
from tel_edge.runtime.questions.conversation import Message

T = TypeVar("T")

STUDY, PROMPTS, ANSWERS = "study.json", "prompts.jsonl", "answers.jsonl"
BROKEN = "{path}: line {number} is none of tel-judge's ({error}); move the file away"
PAIRS, RUBRIC, LABELS, REPLIES = "pairs.jsonl", "rubric.jsonl", "labels.jsonl", "replies.jsonl"
PEOPLE = "people"


@dataclass(frozen=True)
class Answer:
    """What a system answered to one dialogue: a text for each message of the customer.

    `ended` says of each whether the model's own end token ended it; one that was not was cut at
    the limit.
    """

    system: str
    prompt: str
    texts: tuple[str, ...]
    ended: tuple[bool, ...]

    @property
    def text(self) -> str:
        """Return all that was said, an empty line between answers."""
        return "\n\n".join(self.texts)

    @property
    def words(self) -> int:
        """Return the length in words."""
        return len(self.text.split())


def folder(workspace: Path, name: str) -> Path:
    """Return the folder of a study."""
    return workspace / "studies" / name


def answers_digest(study: Study) -> str:
    """Return 16 hexadecimal digits of what is judged, whoever judges: labels of people carry it."""
    systems = [(one.name, one.run) for one in study.systems]
    return digest.of_value([study.split, study.part, study.prompts, systems])[:16]


def own_family(study: Study, judge: Judge) -> tuple[str, ...]:
    """Return what of a study is of the judge's own model family; nothing for stand-ins and people.

    A family is the letters that its name begins with ("qwen" of "Qwen2.5"), and a model is of it
    if its own name has them.
    """
    letters = re.match(r"[a-z]+", judge.family.rpartition("/")[2].lower())
    if letters is None or judge.kind not in ("endpoint", "gguf"):
        return ()
    own = [("backbone", study.backbone), *(("references by", name) for name in study.written_by)]
    # A short name is part of many others.
    there = re.compile(letters[0] if len(letters[0]) > 3 else rf"\b{letters[0]}(?![a-z])")
    return tuple(f"{what} {name}" for what, name in own if there.search(name.lower()))


def read_study(folder: Path) -> Study:
    """Return what a study judges and who. Raises `InputError` for a folder without one."""
    path = folder / STUDY
    try:
        made = dict(documents.read(path, SCHEMA_VERSION))
        del made["schema_version"]
        lists = {name: tuple(map(str, made[name])) for name in ("prompts", "written_by")}
        return Study(
            **made
            | lists
            | {
                "systems": tuple(System(**one) for one in made["systems"]),
                "judges": tuple(Judge(**one) for one in made["judges"]),
            }
        )
    except FileNotFoundError:
        raise InputError(f"{folder}: no {STUDY}, so no study; tel-judge makes one") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no study of this version ({error})") from None


def write_study(folder: Path, study: Study) -> None:
    """Write what is judged and who judges, in one step."""
    documents.write(folder / STUDY, {"schema_version": SCHEMA_VERSION, **asdict(study)})


def read_pairs(folder: Path) -> list[PairVerdict]:
    """Return what judges said of pairs, repeats among them; none where nobody was asked."""
    return [*lines(folder / PAIRS, pair_of)]


def read_rubric(folder: Path) -> list[RubricVerdict]:
    """Return the marks that judges gave, repeats among them."""
    return [*lines(folder / RUBRIC, rubric_of)]


def read_labels(folder: Path) -> list[PairVerdict]:
    """Return what people said of pairs; `judge` is the annotator's name."""
    return [*lines(folder / LABELS, pair_of)]


def read_prompts(folder: Path) -> dict[str, Case]:
    """Return the dialogues that were judged, by id, in the study's order."""
    return {case.id: case for case in lines(folder / PROMPTS, _case)}


def read_answers(folder: Path) -> dict[tuple[str, str], Answer]:
    """Return the answers that were judged, by (system, id of the dialogue)."""
    return {(one.system, one.prompt): one for one in lines(folder / ANSWERS, _answer)}


def pair_of(row: Mapping[str, Any]) -> PairVerdict:
    """Return the verdict of a row. Raises `ValueError` or `TypeError` for what is none."""
    made = PairVerdict(**{**row, "words": tuple(row["words"])})
    _check(made, made.first, made.second)
    if made.choice not in (*CHOICES, None):
        raise ValueError(f"choice is {made.choice!r}, not one of {', '.join(CHOICES)} or null")
    if len(made.words) != 2 or not all(type(n) is int and n >= 0 for n in made.words):
        raise ValueError("words are not two counts")
    return made


def rubric_of(row: Mapping[str, Any]) -> RubricVerdict:
    """Return the marks of a row. Raises `ValueError` or `TypeError` for what are none."""
    made = RubricVerdict(**row)
    _check(made, made.system)
    if made.scores is not None and not marks(made.scores):
        raise ValueError(f"scores are not of {', '.join(CRITERIA)}, each from 1 to 5")
    return made


def marks(given: Any) -> bool:
    """Return whether these are marks of 1 to 5, one for each criterion and no other."""
    return (
        isinstance(given, Mapping)
        and given.keys() == set(CRITERIA)
        and all(type(mark) is int and 1 <= mark <= 5 for mark in given.values())
    )


def _check(made: PairVerdict | RubricVerdict, *systems: str) -> None:
    texts = (made.judge, made.prompt, made.scenario, made.key, *systems)
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError("judge, prompt, scenario, key and systems are texts")
    if type(made.repeat) is not int or made.repeat < 0:
        raise ValueError(f"repeat is {made.repeat!r}, not a count")


def _case(row: Mapping[str, Any]) -> Case:
    messages = tuple(Message(**one) for one in row["messages"])
    return Case(**{**row, "messages": messages})


def _answer(row: Mapping[str, Any]) -> Answer:
    return Answer(**{**row, "texts": tuple(row["texts"]), "ended": tuple(row["ended"])})


def lines(path: Path, make: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    """Yield what `make` makes of each whole line of a study's file; see `documents.lines`."""
    return documents.lines(path, make, BROKEN)


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write records as lines of JSON, in one step."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(line(row))


def line(row: Any) -> str:
    """Return a record as one line of JSON."""
    return json.dumps(asdict(row), separators=(",", ":"), ensure_ascii=False) + "\n"
