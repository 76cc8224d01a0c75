"""What was written so far: a line a try, kept whatever happens."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tel_edge.runtime.errors import InputError

NAME = "written.jsonl"


class Journal:
    """The tries of a run by key, in the order in which they ended; lines are only ever added.

    `taken` has the messages of those that were, `refused` the gates that refused others.

    A line has `key`, `tokens` (read, written) and either `messages` or `gate`, `why` and `text`.
    One that a killed run left half is cut off. Raises `InputError` for another file.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.taken: dict[str, list[dict[str, str]]] = {}
        self.refused: dict[str, list[str]] = {}
        self.tokens = (0, 0)
        whole = 0
        if self.path.is_file():
            with self.path.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    if not line.endswith(b"\n"):
                        break
                    try:
                        self._take(json.loads(line))
                    except (ValueError, KeyError, TypeError):
                        raise InputError(
                            f"{self.path}: line {number} is none of tel-generate's; move the file "
                            "away"
                        ) from None
                    whole += len(line)
        self._file = self.path.open("ab")
        self._file.truncate(whole)

    def _take(self, row: Mapping[str, Any]) -> None:
        read, written = row["tokens"]
        self.tokens = (self.tokens[0] + read, self.tokens[1] + written)
        if "messages" in row:
            self.taken[row["key"]] = row["messages"]
        else:
            self.refused.setdefault(row["key"], []).append(row["gate"])

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Note tries; they are on the disk when this returns."""
        for row in rows:
            self._file.write(json.dumps(row).encode() + b"\n")
            self._take(row)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()
