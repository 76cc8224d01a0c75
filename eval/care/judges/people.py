"""People who judge: a blind page for each, in a file of its own, and their labels read back.

The page holds no name of a system, in no form: its pairs have digests for names, in an order that
another digest draws, and only the key file beside it says whose answers they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from math import lcm
from pathlib import Path
from typing import Any

from tel_edge.eval import documents
from tel_edge.eval.care.judges import asking
from tel_edge.eval.care.judges.ledger import EARLIER
from tel_edge.eval.care.judges.panels import NAME
from tel_edge.eval.care.judges.studies import (
    LABELS,
    PEOPLE,
    answers_digest,
    lines,
    pair_of,
    read_answers,
    read_labels,
    read_pairs,
    read_prompts,
    write_lines,
    write_study,
)
from tel_edge.eval.care.judges.verdicts import (
    CHOICES,
    PANEL,
    SCHEMA_VERSION,
    Judge,
    PairVerdict,
    Study,
)
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import digest, jsonl
from tel_edge.runtime.files.atomic import write_text


@dataclass(frozen=True)
class Item:
    """Two answers to one dialogue, in the order in which they are shown."""

    id: str
    prompt: str
    first: str
    second: str


@dataclass(frozen=True)
class Labelled:
    """What came of reading labels: how many were new, known already, and changed; who gave all."""

    new: int
    same: int
    changed: int
    all: int
    by: tuple[str, ...]


def annotate(
    folder: Path, study: Study, count: int, annotator: str, seed: int
) -> tuple[Path, Path]:
    """Write the page of an annotator, and its key; return both files.

    Every annotator of a study gets the same pairs, which judges are asked for too. More of them
    later leave the key of those before as it is.
    """
    if not NAME.fullmatch(annotator):
        raise InputError(f"--annotator {annotator!r}: letters, digits and . _ - only")
    _check_free(study, [annotator])
    texts = read_answers(folder)
    items = [
        _item(study, annotator, prompt, pair)
        for prompt, pair in _chosen(folder, study, texts, count, seed)
    ]
    if not items:
        raise InputError(f"{folder}: no two systems answered anything differently")
    page, key = (folder / f"annotate-{annotator}.{end}" for end in ("html", "key.json"))
    known = {one.id: one for one in (*_keys(key, study), *items)}
    document = {
        "schema_version": SCHEMA_VERSION,
        "study": answers_digest(study),
        "annotator": annotator,
        "items": {id_: [one.prompt, one.first, one.second] for id_, one in known.items()},
    }
    documents.write(key, document)
    write_text(page, _page(folder, study, annotator, items, texts))
    return page, key


def _chosen(
    folder: Path, study: Study, texts: Mapping[tuple[str, str], Any], count: int, seed: int
) -> list[tuple[str, tuple[str, str]]]:
    """Return (dialogue, pair) of `count` pairs of different answers, even over both."""
    # Those that judges were asked for, whatever seed they were drawn with.
    judged = dict.fromkeys(tuple(sorted((v.first, v.second))) for v in read_pairs(folder))
    pairs: list[Any] = [*judged] or asking.pairs([one.name for one in study.systems], seed)
    pairs.sort(key=lambda pair: digest.of_value([seed, "people", *sorted(pair)]))
    prompts = study.prompts
    every = len(pairs) * len(prompts)
    around = lcm(len(pairs), len(prompts))
    ranked = (
        (prompts[(at + at // around) % len(prompts)], pairs[at % len(pairs)]) for at in range(every)
    )
    differ = (
        (prompt, pair)
        for prompt, pair in ranked
        if texts[pair[0], prompt].texts != texts[pair[1], prompt].texts
    )
    return [one for one, _ in zip(differ, range(count), strict=False)]


def _item(study: Study, annotator: str, prompt: str, pair: Sequence[str]) -> Item:
    name = digest.of_value([answers_digest(study), annotator, prompt, sorted(pair)])
    one, other = sorted(pair, reverse=int(name[-1], 16) % 2 == 1)
    return Item(name[:16], prompt, one, other)


def _page(
    folder: Path,
    study: Study,
    annotator: str,
    items: Sequence[Item],
    texts: Mapping[tuple[str, str], Any],
) -> str:
    cases = read_prompts(folder)
    # Not in the order of the pairs either.
    shuffled = sorted(items, key=lambda one: digest.of_value([one.id, "place"]))
    data = {
        "study": answers_digest(study),
        "page": digest.of_value([annotator, [one.id for one in shuffled]])[:16],
        "items": [
            {
                "id": one.id,
                "asked": [m.content for m in cases[one.prompt].messages if m.role == "user"],
                "facts": [cases[one.prompt].facts[name] for name in ("check", "fix", "escalate")],
                "first": texts[one.first, one.prompt].texts,
                "second": texts[one.second, one.prompt].texts,
            }
            for one in shuffled
        ],
    }
    style, script = _file("annotate.css"), _file("annotate.js")
    # Source: https://www.w3.org/TR/CSP3/. Nothing in the data can end its element: "<" stands in
    # JSON strings only.
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"style-src {digest.in_policy(style)}; script-src {digest.in_policy(script)}"
    )
    parts = {
        "policy": policy,
        "style": style,
        "script": script,
        "items": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    }
    made = _file("annotate.html")
    before, *rest = made.split("{{")
    # One pass: what is put in is not looked through again.
    return before + "".join(
        parts[name] + text for name, text in (part.split("}}", 1) for part in rest)
    )


def _file(name: str) -> str:
    return (resources.files(__package__) / "page_files" / name).read_text(encoding="utf-8")


def _keys(path: Path, study: Study) -> Iterator[Item]:
    """Yield the pairs of a key file that are of this study as it is now."""
    if not path.is_file():
        return
    try:
        made = documents.read(path, SCHEMA_VERSION)
        if made["study"] == answers_digest(study):
            yield from (Item(id_, *map(str, row)) for id_, row in made["items"].items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: no key of tel-judge's ({error}); move it away") from None


def read_back(folder: Path, study: Study, files: Sequence[Path]) -> Labelled:
    """Add people's labels to the study; a later one of the same pair takes an earlier one's place.

    Raises `InputError` with file and line for labels of another study, or of a pair of no page.
    """
    items = {
        one.id: (path.name.removeprefix("annotate-").removesuffix(".key.json"), one)
        for path in sorted(folder.glob("annotate-*.key.json"))
        for one in _keys(path, study)
    }
    cases, texts = read_prompts(folder), read_answers(folder)

    def made(row: dict[str, Any]) -> PairVerdict:
        if other := sorted(set(row) - {"study", "item", "choice"}):
            raise InputError(f"unknown field {other[0]!r}; there are: study item choice")
        if row.get("study") != answers_digest(study):
            raise InputError(
                f"a label of another study, or of this one before its answers were others: "
                f"{str(row.get('study'))[:40]!r}"
            )
        if row.get("choice") not in CHOICES:
            raise InputError(f"choice is {str(row.get('choice'))[:40]!r}, not first, second or tie")
        found = items.get(str(row.get("item")))
        if found is None:
            raise InputError(
                f"item {str(row.get('item'))[:40]!r} is on no page whose key file is in {folder}"
            )
        annotator, one = found
        words = texts[one.first, one.prompt].words, texts[one.second, one.prompt].words
        return PairVerdict(
            annotator, one.prompt, cases[one.prompt].scenario, one.first, one.second,
            row["choice"], words, 0, answers_digest(study) + one.id,
        )  # fmt: skip

    given: dict[tuple[str, str], PairVerdict] = {}
    for file in files:
        if not file.is_file():
            raise InputError(f"--labels {file}: no such file")
        for number, label in jsonl.read(file, made):
            twice = given.setdefault((label.judge, label.key), label)
            if twice.choice != label.choice:
                raise InputError(
                    f"{file}: line {number}: {label.choice}, but {twice.choice} before for the "
                    "same pair; leave one of them"
                )
    known = {(label.judge, label.key): label for label in read_labels(folder)}
    old = [known[name].choice for name in given if name in known]
    same = sum(known[name].choice == given[name].choice for name in given if name in known)
    write_lines(folder / LABELS, (known | given).values())
    study = with_people(folder, study)
    write_study(folder, study)
    by = tuple(judge.name for judge in study.judges if judge.kind == PEOPLE)
    all_ = len(known | given)
    return Labelled(len(given) - len(old), same, len(old) - same, all_, by)


def with_people(folder: Path, study: Study) -> Study:
    """Return the study with the people whose labels are there among its judges.

    Labels of other answers than it has now are put away, and those that are its again come back.
    """
    of = answers_digest(study)
    earlier = folder / EARLIER / LABELS
    there = [*lines(earlier, pair_of), *lines(folder / LABELS, pair_of)]
    every = {(label.judge, label.key): label for label in there}
    own = [label for label in every.values() if label.key.startswith(of)]
    others = [label for label in every.values() if not label.key.startswith(of)]
    if others or earlier.exists():
        write_lines(earlier, others)
    if own or (folder / LABELS).exists():
        write_lines(folder / LABELS, own)
    judges = tuple(judge for judge in study.judges if judge.kind != PEOPLE)
    names = [*dict.fromkeys(label.judge for label in own)]
    _check_free(replace(study, judges=judges), names)
    return replace(study, judges=(*judges, *(Judge(name, PEOPLE, "", "", of) for name in names)))


def _check_free(study: Study, names: Sequence[str]) -> None:
    """Refuse annotators who are called as a judge of the panel is."""
    taken = {judge.name for judge in study.judges if judge.kind != PEOPLE} | {PANEL}
    if both := [name for name in names if name in taken]:
        raise InputError(f"{both[0]}: both a judge of the panel and an annotator; rename one")
