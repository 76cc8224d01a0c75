"""Verdicts on disk, a line each, of which nothing is asked twice, and what replies cost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tel_edge.eval.care.judges.asking import Material, Said, Wanted
from tel_edge.eval.care.judges.studies import REPLIES, line, lines, write_lines
from tel_edge.eval.care.judges.verdicts import PairVerdict, RubricVerdict
from tel_edge.runtime.errors import named
from tel_edge.runtime.files.atomic import make_folder

EARLIER = "earlier"
Verdict = PairVerdict | RubricVerdict
# Who judged, the digest of what was sent, and the how-manieth time.
Ident = tuple[str, str, int]


class Ledger:
    """The verdicts of one file of a study.

    Those that this study does not want are kept in `earlier/`, for when it does again. `plan` are
    all that it wants, and what each is of.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        make: Callable[[dict[str, Any]], Verdict],
        plan: Sequence[tuple[Ident, Wanted]],
        of: Material,
    ) -> None:
        self.path, self.earlier = folder / name, folder / EARLIER / name
        self.plan, self.of = plan, of
        there: list[Verdict] = [*lines(self.earlier, make), *lines(self.path, make)]
        self.known: dict[Ident, Verdict] = {(one.judge, one.key, one.repeat): one for one in there}

    def missing(self, judge: str) -> list[tuple[Ident, Wanted]]:
        """Return what a judge has yet to be asked; of what is the very same only one."""
        found = {ident: one for ident, one in self.plan if ident[0] == judge}
        return [(ident, one) for ident, one in found.items() if ident not in self.known]

    def own(self) -> Iterator[Verdict]:
        """Yield the verdicts that are wanted and there, in the order of the plan."""
        for ident, wanted in self.plan:
            if ident in self.known:
                yield verdict(ident, wanted, self.known[ident], self.of)

    def settle(self) -> None:
        """Write the study's own verdicts to its file, and all others to `earlier/`."""
        own = {ident for ident, _ in self.plan}
        others = [one for ident, one in self.known.items() if ident not in own]
        if others or self.earlier.exists():
            make_folder(self.earlier.parent)
            write_lines(self.earlier, others)
        write_lines(self.path, self.own())

    def add(self, file: Any, made: Iterable[tuple[Ident, Wanted, Said]]) -> None:
        """Note verdicts in the open file; they are on the disk when this returns."""
        for ident, wanted, said in made:
            self.known[ident] = verdict(ident, wanted, said.value, self.of)
            file.write(line(self.known[ident]).encode())
        synced(file)


def verdict(ident: Ident, wanted: Wanted, of: Any, material: Material) -> Verdict:
    """Return a verdict on what is wanted, from what was said or from that on the very same texts.

    Two systems may have answered the same, and then one asking serves both.
    """
    judge, key, repeat = ident
    scenario = material.cases[wanted.prompt].scenario
    if not wanted.second:
        scores = of.scores if isinstance(of, RubricVerdict) else of
        return RubricVerdict(judge, wanted.prompt, scenario, wanted.first, scores, repeat, key)
    choice = of.choice if isinstance(of, PairVerdict) else of
    both = (material.answers[name, wanted.prompt] for name in (wanted.first, wanted.second))
    first, second = (answer.words for answer in both)
    return PairVerdict(
        judge, wanted.prompt, scenario, wanted.first, wanted.second, choice,
        (first, second), repeat, key,
    )  # fmt: skip


@dataclass(frozen=True)
class Reply:
    """What came back for one judgement, and what it took: tokens read and written."""

    judge: str
    key: str
    repeat: int
    tokens: tuple[int, int]
    text: str


class Spent:
    """What models were paid for in this study, by judge; what was noted once stays."""

    def __init__(self, folder: Path, prices: Mapping[str, tuple[float, float]]) -> None:
        self.path, self.prices = folder / REPLIES, prices
        self.tokens: dict[str, tuple[int, int]] = {}
        for reply in lines(self.path, _reply):
            self._count(reply)

    def add(self, file: Any, reply: Reply) -> None:
        """Note a reply in the open file; it is on the disk when this returns."""
        file.write(line(reply).encode())
        synced(file)
        self._count(reply)

    def _count(self, reply: Reply) -> None:
        read, written = self.tokens.get(reply.judge, (0, 0))
        self.tokens[reply.judge] = (read + reply.tokens[0], written + reply.tokens[1])

    @property
    def cost(self) -> float:
        """Return what all of it cost, by the prices of a million tokens."""
        found = ((self.prices.get(name, (0.0, 0.0)), used) for name, used in self.tokens.items())
        return sum((a * read + b * written) / 1e6 for (a, b), (read, written) in found)


def _reply(row: dict[str, Any]) -> Reply:
    read, written = row["tokens"]
    return replace(Reply(**row), tokens=(int(read), int(written)))


@contextmanager
def appending(path: Path) -> Iterator[Any]:
    """Open a file of lines to add to, with what a killed run left half cut off."""
    make_folder(path.parent)
    with named(path), path.open("a+b") as file:
        file.seek(0)
        text = file.read()
        file.truncate(text.rfind(b"\n") + 1)
        yield file


def synced(file: Any) -> None:
    """Have on the disk what was written to a file."""
    file.flush()
    os.fsync(file.fileno())
