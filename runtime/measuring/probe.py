"""What `tel-bench` measures with: questions of its own, and one timed pass over questions."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from tel_edge.runtime import extras
from tel_edge.runtime.answerer import Answerer
from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.bundles.formats import FORMATS
from tel_edge.runtime.bundles.manifest import BundleFile, Manifest
from tel_edge.runtime.engines.engine import Engine, EngineSettings, Score
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.questions.categories import Category
from tel_edge.runtime.questions.prompt import LETTERS
from tel_edge.runtime.questions.question import Question, from_row
from tel_edge.runtime.questions.scoring import Scorer
from tel_edge.runtime.questions.votes import pick

# So many answers are not timed: the first packed decode touches memory that later ones find warm.
WARM = 4

# Invented, and right about nothing: only the length and the look of real questions matter here.
WORDS: dict[str, tuple[str, ...]] = {
    "system": ("O-RAN", "5G NR", "LTE-Advanced", "NTN", "network slicing", "IMS", "V2X", "MEC"),
    "node": (
        "near-real-time controller", "distributed unit", "session management function", "gNB",
        "radio unit", "access and mobility function", "relay node", "policy control function",
    ),
    "thing": (
        "measurement report", "beam failure indication", "quality-of-service flow identifier",
        "timing advance command", "bearer modification request", "handover preparation message",
        "resource block allocation", "slice selection assistance information",
    ),
    "verb": ("forwards", "withholds", "aggregates", "schedules", "encrypts", "retransmits"),
    "when": (
        "before the timer expires", "while the cell is barred", "after a radio link failure",
        "during initial registration", "when the load exceeds a threshold",
        "over the control plane only", "once security is activated", "for every active session",
    ),
}  # fmt: skip

TEXTS = (
    "Which statement describes what the {node} of {system} does with the {thing} {when}?",
    "When the {node} {verb} the {thing} {when}, what does {system} require of its peer?",
    "According to the {system} specification, how is the {thing} handled by the {node} {when}?",
    "In {system}, what is the purpose of the {thing} that the {node} {verb} {when}?",
)
CHOICES = (
    "It {verb} the {thing} {when}",
    "The {node} {verb} it {when}",
    "To let the {node} see the {thing} {when}",
    "The {thing} is left to the {node}",
)


def questions(category: Category, count: int) -> tuple[Question, ...]:
    """Return `count` made-up questions of that category, the same ones each time.

    As prompts they have some 80 to 110 tokens, with the labels of 3gpp_tsg 130, like real ones.
    """
    return tuple(
        from_row(_row(f"{category.name} {at}"), category, f"probe-{at}", len(LETTERS))
        for at in range(count)
    )


def _row(seed: str) -> dict[str, object]:
    chance = random.Random(f"probe {seed}")

    def filled(pattern: str) -> str:
        return pattern.format(**{kind: chance.choice(words) for kind, words in WORDS.items()})

    choices: list[str] = []
    while len(choices) < 4:
        choice = filled(chance.choice(CHOICES))
        choices += [] if choice in choices else [choice]
    return {"question": filled(chance.choice(TEXTS)), "choices": choices}


@runtime_checkable
class Measurable(Engine, Protocol):
    """An engine that also tells what its parts cost."""

    def load_adapter(self, name: str) -> None:
        """Load an adapter that is not loaded yet."""
        ...

    def use(self, name: str | None) -> None:
        """Make what is decoded next go through that adapter, None being the bare backbone."""
        ...

    def plain_rate(self, adapter: str | None, tokens: int = 512) -> float:
        """Return the tokens/s of one plain prompt of that length."""
        ...

    def memory_split(self) -> dict[str, int]:
        """Return the bytes of the engine's buffers; those that are not known are missing."""
        ...


@dataclass(frozen=True)
class Subject:
    """What is measured: files of a bundle and questions. `adapter` None is the bare backbone."""

    folder: Path
    manifest: Manifest
    backbone: BundleFile
    adapter: BundleFile | None
    questions: tuple[Question, ...]

    @property
    def category(self) -> str | None:
        """Return the adapter's name."""
        return self.adapter.category if self.adapter else None

    @property
    def title(self) -> str:
        """Return the type and format, which a backbone has once."""
        return f"{self.backbone.quant} ({self.backbone.format})"


def check_engine(format: str) -> None:
    """Raise `InputError` where the engine of a format is missing, before minutes go into others."""
    row = FORMATS[format]
    extras.check(row.package[0], row.extra)


def opened(subject: Subject, settings: EngineSettings, opener: bundle.Opener) -> Answerer:
    """Check the subject's files and open the engine on them."""
    adapters = [subject.adapter] if subject.adapter else []
    answerer = Answerer.of_files(
        subject.folder, subject.manifest, subject.backbone, adapters, engine=settings, opener=opener
    )
    measurable(answerer.engine)
    return answerer


def measurable(engine: Engine) -> Measurable:
    """Return the engine if it tells what is measured; raise `InputError` if not."""
    if not isinstance(engine, Measurable):
        known = " or ".join(name.upper() for name in FORMATS)
        raise InputError(f"{engine.version} cannot be measured; a {known} bundle is needed")
    return engine


@dataclass(frozen=True)
class Pass:
    """Questions answered once, packed; `scores` are in their order."""

    seconds: float
    scores: tuple[Score, ...]

    @property
    def questions_per_second(self) -> float:
        """Return how many questions were answered in a second."""
        return len(self.scores) / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """Return how many tokens were computed in a second, kept prefixes not counted."""
        return sum(score.decoded for score in self.scores) / self.seconds


def picked(_: Question, score: Score) -> int:
    """Conclude the answer of Pass@1."""
    return pick(score.logprobs)


def ask(
    scorer: Scorer,
    asked: Sequence[Question],
    adapter: str | None,
    conclude: Callable[[Question, Score], object],
) -> Pass:
    """Score all questions and conclude an answer from each score, and time all of it."""
    found: dict[int, Score] = {}
    began = time.perf_counter()
    for at, score in scorer.many([(question, adapter) for question in asked]):
        if isinstance(score, InputError):
            raise InputError(f"question {asked[at].id}: {score}")
        conclude(asked[at], score)
        found[at] = score
    # A clock can be coarser than a fake or very small model is fast.
    seconds = max(time.perf_counter() - began, 1e-9)
    if len(found) != len(asked):
        raise WorkError(f"{len(asked) - len(found)} of {len(asked)} questions got no score")
    return Pass(seconds, tuple(found[at] for at in range(len(asked))))
