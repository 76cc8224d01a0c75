"""Requests that are about no category of the benchmark: what a router should leave alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

# Every so many fields one is kept from the training: whoever knows cooking need not know law.
HELD_OUT = 3


@dataclass(frozen=True)
class OtherRequest:
    """A question of another field, and its choices."""

    text: str
    choices: tuple[str, ...]


def by_field() -> Mapping[str, tuple[OtherRequest, ...]]:
    """Return the embedded requests by field, in the order of the file."""
    made: dict[str, list[OtherRequest]] = {}
    file = resources.files(__package__) / "other_fields.txt"
    for row in file.read_text(encoding="utf-8").splitlines():
        if not row.startswith("#"):
            field, text, choices = row.split("|")
            made.setdefault(field, []).append(OtherRequest(text, tuple(choices.split(";"))))
    return {field: tuple(requests) for field, requests in made.items()}


def parts() -> tuple[tuple[OtherRequest, ...], tuple[OtherRequest, ...]]:
    """Return the requests to train on and those to measure with: of other fields than these."""
    train: list[OtherRequest] = []
    test: list[OtherRequest] = []
    for at, requests in enumerate(by_field().values(), start=1):
        (test if at % HELD_OUT == 0 else train).extend(requests)
    return tuple(train), tuple(test)
