"""The questions that variants answer differently, for the page's browser: its data and markup.

The markup, style and script are the files of `page_files`; none of them holds data. The data stand
in the page as JSON, and the script puts them in as text only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from tel_edge.eval.benchmarks.facets import Facets
from tel_edge.eval.findings.answers import Answers, Floats, Indices, Truths, aligned
from tel_edge.eval.findings.calibration import probabilities
from tel_edge.eval.scoring.records import Summary, Variant, asked_digest
from tel_edge.runtime.files import digest
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.question import Question

# The pick of a variant that has no record of a question, or one of other words.
MISSING = -3


@dataclass(frozen=True, eq=False)
class _Compared:
    """One category: all variants on the n questions that the reference answered.

    `picks` are [n] by variant, `shares` [n, most choices], NaN where there are no probabilities.
    `changes` [n] counts the variants that pick otherwise than the reference, `moved` [n] is the
    most probability that one of those puts elsewhere, 0 to 1.
    """

    reference: Answers
    picks: Mapping[str, Indices]
    shares: Mapping[str, Floats]
    changes: npt.NDArray[np.int64]
    moved: Floats


def document(
    by_category: Mapping[str, Sequence[Answers]],
    reference: str,
    questions: Mapping[str, Question],
    facets: Mapping[str, Facets],
    most: int = 20_000,
    decided: str | None = None,
) -> dict[str, Any]:
    """Return what the page's browser shows, as JSON values.

    A question is in it if any variant picks otherwise than `reference`, with what every variant
    made of it. Of more than `most` such picks the questions with the largest changes are kept,
    whole. `questions` and `facets`, by question id, may lack some or all; a text stands only
    beside the answers to those very words. Left out are categories without the reference's
    records, and variants scored on other questions than the reference.

    - `reference`, `after` (`decided`, or else the smallest other variant with an adapter),
      `variants` (all names, the reference first)
    - `left_out`: how many `questions` with how many `changes` are not in it
    - `categories`: a list of `name`, `title` and columns, a value for each question: `ids`, `gold`
      (index), `difficulty`, `subject`, `texts`, `choices` (null: unknown), and by variant `picks`
      (index, `records.UNPARSED` or `MISSING`) and `permille` (by choice, [] where unknown)
    """
    made = {
        name: compared
        for name, answers in by_category.items()
        if (compared := _compared(answers, reference))
    }
    sizes = [compared.changes for compared in made.values()]
    kept = _largest([compared.moved for compared in made.values()], sizes, most)
    variants = {
        answers.summary.variant.name: answers.summary.variant
        for name, compared in made.items()
        for answers in by_category[name]
        if answers.summary.variant.name in compared.picks
    }
    smallest = _after(variants, reference)
    lost = [changes[~rows] for changes, rows in zip(sizes, kept, strict=True)]
    return {
        "reference": reference,
        "after": decided if decided in variants and decided != reference else smallest,
        "variants": sorted(variants, key=lambda name: (name != reference, *_order(variants[name]))),
        "left_out": {
            "questions": sum(int(np.count_nonzero(changes)) for changes in lost),
            "changes": sum(int(changes.sum()) for changes in lost),
        },
        "categories": [
            _columns(name, compared, np.flatnonzero(rows).tolist(), questions, facets)
            for (name, compared), rows in zip(made.items(), kept, strict=True)
        ],
    }


def fragment(document: Mapping[str, Any]) -> str:
    """Return the section "Questions" of the page, or "" where `document` has no category."""
    if not document["categories"]:
        return ""
    notes = "\n".join(f'<p class="units">{escape(note)}</p>' for note in _notes(document))
    if not _count(document):
        return f'<section id="questions">\n<h2>Questions</h2>\n{notes}\n</section>'
    # Nothing in the data can end the element: "<" stands in JSON strings only.
    data = json.dumps(document, separators=(",", ":")).replace("<", "\\u003c")
    return (
        _file("questions.html").replace("{{notes}}", notes)
        + f'<script type="application/json" id="answers">{data}</script>\n'
        + f"<script>{scripted(_file('browse.js'))}</script>"
    )


def style() -> str:
    """Return the style sheet of the whole page."""
    return _file("report.css").strip()


def scripted(browser: str) -> str:
    """Return a browser's script with what all of them share before it."""
    return f"{_file('pages.js')}{browser}"


def policy(script: str | None = None) -> str:
    """Return the page's Content-Security-Policy: no network, and no script but the one it has.

    It is the browser's by default. Source: https://www.w3.org/TR/CSP3/. Plots may hold rasters as
    data URLs.
    """
    own = scripted(_file("browse.js")) if script is None else script
    return (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src 'unsafe-inline'; script-src {digest.in_policy(own)}"
    )


def _file(name: str) -> str:
    return (resources.files(__package__) / "page_files" / name).read_text(encoding="utf-8")


def _compared(answers: Sequence[Answers], reference: str) -> _Compared | None:
    to = next((each for each in answers if each.summary.variant.name == reference), None)
    if to is None or not to.ids:
        return None
    own = [each for each in answers if each.ids and _asked(each.summary) == _asked(to.summary)]
    count, width = len(to.ids), max(each.logprobs.shape[1] for each in own)
    asked, base = np.array(to.asked), _shares(to, width)
    picks, shares = {}, {}
    changes, moved = np.zeros(count, np.int64), np.zeros(count, np.float32)
    for each in own:
        pick = np.full(count, MISSING, np.int16)
        share = np.full((count, width), np.nan, np.float32)
        here, there = map(np.array, aligned(to, each))
        digests = np.array(each.asked)[there]
        same = (digests == asked[here]) | (digests == "") | (asked[here] == "")
        here, there = here[same], there[same]
        pick[here], share[here] = each.pick[there], _shares(each, width)[there]
        changed = (pick != to.pick) & (pick != MISSING)
        distance = np.nan_to_num(np.abs(share - base).sum(axis=1) / 2)
        moved = np.where(changed, np.maximum(moved, distance), moved)
        changes += changed
        picks[each.summary.variant.name], shares[each.summary.variant.name] = pick, share
    return _Compared(to, picks, shares, changes, moved)


def _shares(answers: Answers, width: int) -> Floats:
    """Return the probabilities [n, width], NaN in rows without any."""
    made = np.full((len(answers.ids), width), np.nan, np.float32)
    scored = np.isfinite(answers.logprobs).any(axis=1)
    if scored.any():
        known = probabilities(answers.logprobs[scored])
        made[scored] = np.pad(known, ((0, 0), (0, width - known.shape[1])))
    return made


def _asked(summary: Summary) -> tuple[str, str, str, bool]:
    return summary.dataset, summary.part, summary.split, summary.rotated


def _largest(
    moved: Sequence[Floats], changes: Sequence[npt.NDArray[np.int64]], most: int
) -> list[Truths]:
    """Return which questions of each category are kept, at most `most` changes together."""
    if not moved:
        return []
    sizes, counts = np.concatenate(moved), np.concatenate(changes)
    order = np.argsort(-sizes, kind="stable")
    order = order[counts[order] > 0]
    kept = np.zeros(len(counts), np.bool_)
    kept[order[np.cumsum(counts[order]) <= most]] = True
    return np.split(kept, np.cumsum([len(each) for each in changes])[:-1])


def _order(variant: Variant) -> tuple[bool, str, int, str]:
    """Sort those with an adapter first, by format, large before small."""
    bare = not (variant.adapter or variant.merged)
    return bare, variant.format, -variant.backbone_bytes, variant.name


def _after(variants: Mapping[str, Variant], reference: str) -> str | None:
    others = [variant for name, variant in variants.items() if name != reference]
    among = [variant for variant in others if variant.adapter and not variant.merged] or others
    size = {v.name: (v.disk, v.name) for v in among}
    return min(size, key=lambda name: size[name], default=None)


def _columns(
    name: str,
    compared: _Compared,
    rows: Sequence[int],
    questions: Mapping[str, Question],
    facets: Mapping[str, Facets],
) -> dict[str, Any]:
    to, none = compared.reference, Facets(None, None)
    ids = [to.ids[row] for row in rows]
    asked = [_text(questions.get(to.ids[row]), to.asked[row]) for row in rows]
    widths = [
        len(question.choices) if question else _choices(to, row)
        for row, question in zip(rows, asked, strict=True)
    ]
    return {
        "name": name,
        "title": CATEGORIES[name].title if name in CATEGORIES else name,
        "ids": ids,
        "gold": to.gold[rows].tolist(),
        "difficulty": [facets.get(id, none).difficulty for id in ids],
        "subject": [facets.get(id, none).subject for id in ids],
        "texts": [question.text if question else None for question in asked],
        "choices": [list(question.choices) if question else None for question in asked],
        "picks": {variant: pick[rows].tolist() for variant, pick in compared.picks.items()},
        "permille": {
            variant: _permille(share[rows], widths) for variant, share in compared.shares.items()
        },
    }


def _text(question: Question | None, asked: str) -> Question | None:
    """Return the question if it is the one that was asked, as far as the record says."""
    return question if question and asked in ("", asked_digest(question)) else None


def _choices(answers: Answers, row: int) -> int:
    """Return how many choices a question has whose text is not there."""
    scored = int(np.isfinite(answers.logprobs[row]).sum())
    return scored or int(max(answers.pick[row], answers.gold[row])) + 1


def _permille(shares: Floats, widths: Sequence[int]) -> list[list[int]]:
    known = np.asarray(~np.isnan(shares).any(axis=1))
    whole = np.rint(np.nan_to_num(shares) * 1000).astype(np.int64).tolist()
    return [
        row[:width] if there else [] for row, width, there in zip(whole, widths, known, strict=True)
    ]


def _notes(document: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know of the questions shown and of those that are not."""
    made, lost, reference = document["categories"], document["left_out"], document["reference"]
    count = _count(document)
    if not count + lost["questions"]:
        return [f"Every variant gives the answers of {reference}."]
    of = f"in {len(made)} categories" if len(made) > 1 else f"of {made[0]['title']}"
    notes = [f"{_questions(count)} {of}: some variant answers them otherwise than {reference}."]
    if lost["questions"]:
        notes.append(
            f"{_questions(lost['questions'])} with smaller changes ({lost['changes']:,} answers) "
            "left out to keep this file small."
        )
    without = sum(text is None for category in made for text in category["texts"])
    if without:
        notes.append(f"The texts of {_questions(without)} are left out; the ids say which.")
    return notes


def _count(document: Mapping[str, Any]) -> int:
    return sum(len(category["ids"]) for category in document["categories"])


def _questions(count: int) -> str:
    return f"{count:,} question" + "s" * (count != 1)
