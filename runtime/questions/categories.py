"""The six categories of GSMA/ot-full, one row each.

Source: the data set card of https://huggingface.co/datasets/GSMA/ot-full. To add a category, add
a row.
"""

from __future__ import annotations

from dataclasses import dataclass

from tel_edge.runtime.errors import InputError


@dataclass(frozen=True)
class Category:
    """One category of the benchmark.

    `name` is the data set's config name. `labels` is the answer set shared by all questions, or
    empty where each question brings its own choices; `stem` is then the question put to the model
    and `marker` the string after which a row's `question` column holds the text to classify.
    """

    name: str
    title: str
    source: str
    licence: str
    labels: tuple[str, ...] = ()
    stem: str = ""
    marker: str = ""


# In the order in which the questions of the data set list them.
WORKING_GROUPS = (
    *("CT1", "CT3", "CT4", "CT6"),
    *("RAN1", "RAN2", "RAN3", "RAN4", "RAN5", "RAN_AH1"),
    *("SA1", "SA2", "SA3", "SA4", "SA5", "SA6"),
)

CATEGORIES: dict[str, Category] = {
    row.name: row
    for row in (
        Category("teleqna", "TeleQnA", "netop-team/TeleQnA", "MIT"),
        Category("sixg_bench", "6G-Bench", "maferrag/6G-Bench", "CC-BY-4.0"),
        Category(
            "3gpp_tsg",
            "3GPP-TSG",
            "GSMA/ot-full",
            "MIT",
            labels=WORKING_GROUPS,
            stem="Which 3GPP working group is this text from?",
            marker="###TEXT:",
        ),
        Category("oranbench", "ORANBench", "prnshv/ORAN-Bench-13K", "MIT"),
        Category("srsranbench", "srsRANBench", "prnshv/srsRANBench", "MIT"),
        Category("teletables", "TeleTables", "netop/TeleTables", "MIT"),
    )
}


# What is answered in sentences, by the backbone's own chat template, and has no labels to choose
# from. An adapter for it is trained, kept and exported under this name, as those of categories are.
SPOKEN: dict[str, Category] = {
    row.name: row for row in (Category("care", "Customer support", "tel-generate", "Apache-2.0"),)
}


def category(name: str) -> Category:
    """Return the row called `name`, or raise `InputError` with the names there are."""
    if name not in CATEGORIES:
        raise InputError(f"unknown category {name!r}; there are: {' '.join(CATEGORIES)}")
    return CATEGORIES[name]


def categories(name: str) -> tuple[Category, ...]:
    """Return the categories that `--category NAME|all` (or a comma list) stands for."""
    if name == "all":
        return tuple(CATEGORIES.values())
    return tuple(category(part) for part in dict.fromkeys(name.split(",")))
