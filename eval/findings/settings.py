"""What results were made with, in a word each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tel_edge.eval.scoring.records import Summary


def settings(summaries: Sequence[Summary]) -> dict[str, str]:
    """Return what the results were made with, by name; of more than three values their number."""
    found: dict[str, list[str]] = {}
    for summary in summaries:
        made = {"data set": summary.dataset, "part": summary.part, "k": summary.k}
        # The groups of `made_with` are flattened; the split is a category's own.
        made |= {**summary.made_with, "split": {summary.category: summary.split}}
        for name, text in _flat(made):
            found.setdefault(name, []).append(text)
    unique = {name: tuple(dict.fromkeys(texts)) for name, texts in found.items()}
    return {
        name: " or ".join(texts) if len(texts) <= 3 else f"{len(texts)} different values"
        for name, texts in unique.items()
    }


def _flat(made: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in made.items():
        if isinstance(value, Mapping):
            yield from _flat(value, "" if name == "settings" else f"{name} ")
        elif value is not None:
            text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            # A SHA-256 is told apart by its beginning; the summaries hold it whole.
            yield prefix + name, text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text
