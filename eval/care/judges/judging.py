"""Asks every judge for what a study lacks, and says what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tel_edge.eval.care.judges import asking
from tel_edge.eval.care.judges.asking import Material, Wanted
from tel_edge.eval.care.judges.ledger import Ident, Ledger, Reply, Spent, appending
from tel_edge.eval.care.judges.models import Judging
from tel_edge.eval.care.judges.studies import (
    PAIRS,
    REPLIES,
    RUBRIC,
    own_family,
    pair_of,
    rubric_of,
)
from tel_edge.eval.care.judges.verdicts import Judge, PairVerdict, Study

# How many judgements are asked for at a time where money has no limit.
BLOCK = 256
# The share of a judge's replies that may be unreadable before the run counts as failed.
UNREADABLE = 0.1
SILENT = "the server does not say how many tokens it used, so no --limit-cost holds"


@dataclass(frozen=True)
class Tally:
    """What one judge's verdicts are: so many `made` now, `reused` from before, and `missing`.

    `unreadable` of those that are there say nothing. `flips` of `both` pairs that were asked in
    both orders had another winner in the other order. `faults` say why some are missing, `own`
    what of the study is of the judge's family.
    """

    judge: Judge
    made: int
    reused: int
    missing: int
    unreadable: int
    flips: int
    both: int
    faults: Mapping[str, int]
    note: str
    own: tuple[str, ...]

    @property
    def failed(self) -> bool:
        """Return whether the run has to be called a failure for this judge."""
        return bool(self.missing) or self.unreadable > UNREADABLE * (self.made + self.reused)


class Work:
    """A study's verdicts as they are on disk, and who is to be asked for the rest."""

    def __init__(
        self,
        folder: Path,
        study: Study,
        judging: Sequence[Judging],
        of: Material,
        rubric: bool,
        prices: Mapping[str, tuple[float, float]],
        seed: int,
    ) -> None:
        systems = [one.name for one in study.systems]
        self.folder, self.study, self.judging, self.of = folder, study, judging, of
        self.compared = asking.pairs(systems, seed)
        both = [*asking.compared(study.prompts, self.compared)]
        alone = [*asking.marked(study.prompts, systems)] if rubric else []
        pairs = [one for judge in judging for one in _plan(judge, both)]
        marks = [one for judge in judging if judge.marks for one in _plan(judge, alone)]
        self.pairs = Ledger(folder, PAIRS, pair_of, pairs, of)
        self.rubric = Ledger(folder, RUBRIC, rubric_of, marks, of)
        self.spent = Spent(folder, prices)

    def todo(self, one: Judging) -> list[Wanted]:
        """Return what a judge has yet to be asked."""
        both = (self.pairs, self.rubric)
        return [wanted for of in both for _, wanted in of.missing(one.judge.name)]

    def run(self, most: float | None, step: Callable[[int], object]) -> list[Tally]:
        """Ask for all that is missing, at a cost of at most `most` in all; return what came."""
        self.pairs.settle()
        self.rubric.settle()
        before = {one.judge.name: len(self.todo(one)) for one in self.judging}
        with ExitStack() as opened:
            files = {name: opened.enter_context(appending(self.folder / name))
                     for name in (PAIRS, RUBRIC, REPLIES)}  # fmt: skip
            faults = {one.judge.name: self._ask(one, files, most, step) for one in self.judging}
        self.pairs.settle()
        self.rubric.settle()
        return [self._tally(one, before[one.judge.name], faults[one.judge.name])
                for one in self.judging]  # fmt: skip

    def _ask(
        self,
        one: Judging,
        files: Mapping[str, Any],
        most: float | None,
        step: Callable[[int], object],
    ) -> Counter[str]:
        faults: Counter[str] = Counter()
        paid = any(self.spent.prices.get(one.judge.name, (0.0, 0.0)))
        most = most if paid else None
        silent = False
        for ledger, name in ((self.pairs, PAIRS), (self.rubric, RUBRIC)):
            todo = ledger.missing(one.judge.name)
            # Where money has a limit, no more is asked for than may be in flight beyond it.
            size = BLOCK if most is None else one.parallel
            for start in range(0, len(todo), size):
                if why := self._stops(most, silent):
                    faults[why] += len(todo) - start
                    break
                block = todo[start : start + size]
                rows = []
                for at, said in one.ask([wanted for _, wanted in block]):
                    ident, wanted = block[at]
                    if one.row.kind == "endpoint" and (said.text or any(said.tokens)):
                        reply = Reply(*ident, said.tokens, said.text)
                        self.spent.add(files[REPLIES], reply)
                        silent = silent or not all(said.tokens)
                    if said.fault:
                        faults[said.fault] += 1
                    else:
                        rows.append((ident, wanted, said))
                    # What costs time or money is kept one by one.
                    if one.row.kind != "standin":
                        ledger.add(files[name], rows)
                        rows = []
                    step(1)
                ledger.add(files[name], rows)
        return faults

    def _stops(self, most: float | None, silent: bool) -> str:
        if most is None:
            return ""
        if silent:
            return SILENT
        cost = self.spent.cost
        return f"{cost:.2f} were spent, --limit-cost is {most:.2f}" if cost >= most else ""

    def _tally(self, one: Judging, before: int, faults: Mapping[str, int]) -> Tally:
        judge, left = one.judge, len(self.todo(one))
        own = [v for of in (self.pairs, self.rubric) for v in of.own() if v.judge == judge.name]
        there = [v for v in own if isinstance(v, PairVerdict)]
        unread = sum((v.choice if isinstance(v, PairVerdict) else v.scores) is None for v in own)
        made = before - left
        changed, both = flips(there)
        return Tally(
            judge, made, len(own) - made, left, unread, changed, both, faults,
            one.note, own_family(self.study, judge),
        )  # fmt: skip


def _plan(judge: Judging, wanted: Iterable[Wanted]) -> Iterator[tuple[Ident, Wanted]]:
    for one in wanted:
        key = judge.key(one)
        yield (judge.judge.name, key, 0), one
        if asking.again(key):
            yield (judge.judge.name, key, 1), replace(one, repeat=1)


def flips(verdicts: Iterable[PairVerdict]) -> tuple[int, int]:
    """Return how many pairs have another winner in the other order, and how many have both orders.

    Repeats and what could not be read are left out.
    """
    found: dict[tuple[str, str, frozenset[str]], list[str]] = {}
    for one in verdicts:
        if one.choice is not None and not one.repeat:
            winner = {"first": one.first, "second": one.second}.get(one.choice, "")
            pair = frozenset((one.first, one.second))
            found.setdefault((one.judge, one.prompt, pair), []).append(winner)
    both = [set(winners) for winners in found.values() if len(winners) == 2]
    return sum(len(winners) == 2 for winners in both), len(both)
