"""The front matter of a model card, which the hub reads.

Source of the fields: the hub's model card metadata (base_model, base_model_relation, library_name,
license, pipeline_tag, tags).
"""

from __future__ import annotations

from collections.abc import Sequence

NAME = "README.md"
# What all cards of the project are tagged with.
TAGS = ("telecom", "question-answering", "tel-edge")


def front(
    hub: str, relation: str, library: str, tags: Sequence[str], licence: str | None = None
) -> list[str]:
    """Return its lines; `hub` is the backbone's id there, empty for one that is not."""
    lines = ["---"]
    if hub:
        lines += [f"base_model: {hub}", f"base_model_relation: {relation}"]
    if licence:
        lines.append(f"license: {licence}")
    lines += [f"library_name: {library}", "pipeline_tag: text-generation", "language: en", "tags:"]
    return [*lines, *(f"- {tag}" for tag in (*TAGS, *tags)), "---"]
