"""A family of facts: one relation, its pairs, and six ways to ask for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """`facts` are (subject, object) pairs; each of `templates` holds `{s}` once.

    `tags` fill the extra columns that the category has in GSMA/ot-full (subject, difficulty...).
    """

    name: str
    tags: tuple[str, ...]
    templates: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
