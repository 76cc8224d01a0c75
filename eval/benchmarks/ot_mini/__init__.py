"""ot-mini, the embedded benchmark: six categories in the layout of GSMA/ot-full, made by code.

Each fact is asked in six ways. The split of the benchmark puts some of them into the train part
and others into the test part, so a test question asks a covered fact in other words, with other
distractors and at another answer position. Distractors are answers of sister facts, drawn as often
as they are right answers, and positions are dealt out evenly, so that neither position, length nor
an option by itself tells the answer.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tel_edge.eval.benchmarks.ot_mini.family import Family
from tel_edge.runtime.questions.categories import WORKING_GROUPS


@dataclass(frozen=True)
class Layout:
    """One category: its facts' module, the options shown, the columns that `tags` fill."""

    module: str
    options: int
    columns: tuple[str, ...] = ()


LAYOUTS = {
    "teleqna": Layout("teleqna", 4, ("subject",)),
    "sixg_bench": Layout("sixg_bench", 4, ("task_id", "task_name", "difficulty", "category")),
    "3gpp_tsg": Layout("tsg", 16),
    "oranbench": Layout("oranbench", 4, ("difficulty",)),
    "srsranbench": Layout("srsranbench", 4),
    "teletables": Layout("teletables", 5, ("difficult", "table_title", "document_id")),
}

# What a row of the real 3gpp_tsg says before the excerpt, shortened; the reader cuts it off.
TSG_TASK = f"Name the working group, one of {', '.join(WORKING_GROUPS)}.\n\n###TEXT:\n"


def families(category: str) -> tuple[Family, ...]:
    """Return the facts of one category."""
    module = importlib.import_module(f"{__name__}.{LAYOUTS[category].module}")
    made: tuple[Family, ...] = module.FAMILIES
    return made


def glossary() -> list[str]:
    """Return every subject, object and wording once, unconnected: a vocabulary without facts."""
    words = set()
    for category in LAYOUTS:
        for family in families(category):
            words |= {template.replace("{s}", "") for template in family.templates}
            words |= {f" {part}" for fact in family.facts for part in fact}
    return sorted(words)


def rows(category: str, seed: int = 42) -> list[dict[str, Any]]:
    """Return the category's rows with the columns that GSMA/ot-full has there."""
    layout = LAYOUTS[category]
    rng = random.Random(f"ot-mini {category} {seed}")
    if category == "3gpp_tsg":
        made = list(_labelled(families(category)[0], rng))
    else:
        made = [row for family in families(category) for row in _chosen(family, layout, rng)]
    rng.shuffle(made)
    return made


def _chosen(family: Family, layout: Layout, rng: random.Random) -> Iterator[dict[str, Any]]:
    tags: list[Any] = list(family.tags)
    if layout.columns[:1] == ("difficult",):
        tags[0] = tags[0] == "hard"
    golds = [answer for _, answer in family.facts]
    for subject, answer in family.facts:
        positions = rng.sample(range(layout.options), layout.options)
        for way, template in enumerate(family.templates):
            options = _distractors(golds, answer, layout.options - 1, rng)
            place = positions[way % layout.options]
            options.insert(place, answer)
            yield {
                "question": _sentence(template.format(s=subject)),
                "choices": options,
                "answer": place,
                **dict(zip(layout.columns, tags, strict=False)),
            }


def _distractors(golds: list[str], answer: str, count: int, rng: random.Random) -> list[str]:
    drawn: list[str] = []
    pool = [gold for gold in golds if gold != answer]
    while len(drawn) < count:
        if (made := rng.choice(pool)) not in drawn:
            drawn.append(made)
    return drawn


def _labelled(family: Family, rng: random.Random) -> Iterator[dict[str, Any]]:
    for subject, answer in family.facts:
        for template in family.templates:
            excerpt = _sentence(template.format(s=subject))
            # The working group stands in the file's name, as it does in the real data.
            name = f"{answer}-{rng.randint(100000, 999999)}.txt"
            yield {
                "question": f"{TSG_TASK}{{{excerpt}}}\n",
                "answer": answer,
                "file_name": name,
            }


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
