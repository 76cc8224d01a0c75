"""Stand-ins for judges that need no model: they show that all works, and judge no English.

`rules` compares the facts that answers say, `lexical` how much they have in common with the
reference. Neither gives marks, since nothing that they measure is empathy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tel_edge.eval.care.answers.cases import Case
from tel_edge.eval.care.answers.measured import Table, measured
from tel_edge.eval.care.judges.asking import Material, Said, Wanted
from tel_edge.eval.care.judges.panels import Row
from tel_edge.eval.care.judges.studies import Answer
from tel_edge.eval.care.judges.verdicts import Judge
from tel_edge.runtime.extras import need
from tel_edge.runtime.files import digest

# Raised when a stand-in judges otherwise than before.
VERSION = 1
# What asking for a secret and going in circles cost, in F1. Closer than `SAME` is a tie.
COST, SAME = 0.5, 1e-9


@dataclass(frozen=True)
class StandIn:
    """A measure of answers in the place of a judge."""

    row: Row
    of: Material
    parallel: int = 1
    marks: bool = False
    note: str = ""
    _known: dict[tuple[str, str], float] = field(default_factory=dict)

    @property
    def judge(self) -> Judge:
        """Return who this is."""
        made = digest.of_value(["standin", self.row.name, VERSION])[:16]
        return Judge(self.row.name, "standin", "", self.row.name, made)

    def key(self, wanted: Wanted) -> str:
        """Return the digest of all that the verdict depends on."""
        case, answers = self.of.cases[wanted.prompt], self.of.answers
        texts = [answers[name, wanted.prompt].texts for name in (wanted.first, wanted.second)]
        # The table of facts is left out: that of a data set's other parts may grow.
        return digest.of_value([self.judge.digest, case.asked, texts])[:32]

    def ask(self, todo: Sequence[Wanted]) -> Iterator[tuple[int, Said]]:
        """Yield (index, which answer has the higher measure)."""
        for at, one in enumerate(todo):
            first, second = (self.of_answer(one.prompt, name) for name in (one.first, one.second))
            better = "first" if first > second else "second"
            yield at, Said("tie" if abs(first - second) < SAME else better)

    def of_answer(self, prompt: str, system: str) -> float:
        """Return the measure of one answer, the higher the better."""
        if (system, prompt) not in self._known:
            case, answer = self.of.cases[prompt], self.of.answers[system, prompt]
            self._known[system, prompt] = self._measure(case, answer)
        return self._known[system, prompt]

    def close(self) -> None:
        """Do nothing."""

    @cached_property
    def _measure(self) -> Callable[[Case, Answer], float]:
        return rules(self.of.others) if self.row.name == "rules" else lexical()


def rules(others: Sequence[str]) -> Callable[[Case, Answer], float]:
    """Return what measures facts: F1, less for asking for a secret and for going in circles."""
    table = Table(others)

    def measure(case: Case, answer: Answer) -> float:
        asked = [one.content for one in case.messages if one.role != "assistant"]
        made = measured(answer.texts, asked, case.term, case.facts, case.wanted, table)
        return made.f1 - COST * made.asks_secret - COST * made.loops

    return measure


def lexical() -> Callable[[Case, Answer], float]:
    """Return what measures likeness to the reference: chrF, of 100 (sacrebleu's)."""
    chrf = need("sacrebleu.metrics", "care").CHRF()

    def measure(case: Case, answer: Answer) -> float:
        return float(chrf.sentence_score(answer.text, ["\n\n".join(case.references)]).score)

    return measure
