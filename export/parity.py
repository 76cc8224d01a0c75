"""The gate: a file is accepted only when the engine answers with it as PEFT does.

Structure that is wrong in a silent way (a permutation left out, a scale folded twice, another
tokenizer) shows here and nowhere else before the device. Prompts are questions of ot-mini's train
part, which nobody is scored on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tel_edge.eval import benchmark
from tel_edge.eval.split import split
from tel_edge.export import original
from tel_edge.runtime import bundle
from tel_edge.runtime.categories import CATEGORIES
from tel_edge.runtime.engine import EngineSettings
from tel_edge.runtime.errors import WorkError
from tel_edge.runtime.prompt import labels, render
from tel_edge.runtime.question import Question
from tel_edge.runtime.scoring import Scorer, label_ids
from tel_edge.runtime.votes import pick, probabilities

if TYPE_CHECKING:
    from tel_edge.export.plan import Job
    from tel_edge.runtime.engine import Engine

# Prompts a file is measured on, and the most tokens of context that any of them needs.
PROMPTS = 12
CONTEXT = 1024
SEED = 42
# Questions of ot-mini's validation part for the types whose accuracy is checked as well.
CHECKED = 96
# A loss that chance alone gives more seldom than this is one.
CHANCE = 0.05


class Bound(Protocol):
    """A row of a table of types: its name, and the largest `Parity.error` that it may have."""

    @property
    def name(self) -> str:
        """Return the type's name."""
        ...

    @property
    def apart(self) -> float:
        """Return the bound."""
        ...


@dataclass(frozen=True)
class Parity:
    """How far the engine is from PEFT in float32, over the labels of `prompts` prompts.

    `largest` is the largest difference of a label's log-probability in nats, `kl` the mean
    divergence of the label distributions, `picks` the share of equal picks, and `error` the root
    mean square difference of label log-probabilities, each prompt's mean taken out, over theirs:
    0 is equality, 1 a model that has nothing to do with the other.
    """

    prompts: int
    largest: float
    kl: float
    picks: float
    error: float


@dataclass(frozen=True)
class Expected:
    """PEFT's answer to a prompt: ids of the prompt and the labels, log-probabilities of these."""

    question: Question
    prompt: tuple[int, ...]
    labels: tuple[int, ...]
    logprobs: tuple[float, ...]

    def right(self, logprobs: Sequence[float]) -> bool:
        """Return whether these log-probabilities pick the right answer."""
        return pick(logprobs) == self.question.answer


def questions(category: str | None, checked: bool = False) -> list[Question]:
    """Return the prompts for a category's adapter, or for the bare backbone some of each.

    With `checked` those of a category that its accuracy is measured on.
    """
    names = [category] if category else list(CATEGORIES)
    most = -(-PROMPTS // len(names))
    made: list[Question] = []
    for name in names:
        parts = split(benchmark.read("ot-mini", CATEGORIES[name]).questions, SEED)
        made += parts.validation[:CHECKED] if checked else parts.train[:most]
    return made


def measure(engine: Engine, expected: Sequence[Expected], adapter: str | None) -> Parity:
    """Return how far the engine is from what was expected; ids must be the same.

    Raises `WorkError` where the engine makes other tokens of a prompt.
    """
    largest = divergence = apart = spread = 0.0
    same = 0
    scorer = Scorer(engine)
    items = [scorer.item(wanted.question) for wanted in expected]
    for wanted, item in zip(expected, items, strict=True):
        if (tuple(item.prompt), item.labels) != (wanted.prompt, tuple((x,) for x in wanted.labels)):
            raise WorkError(
                f"the exported tokenizer reads {wanted.question.id} as other tokens than "
                "transformers does; the file is not accepted"
            )
    scores = dict(engine.score(items, adapter))
    for at, wanted in enumerate(expected):
        got = scores[at].logprobs
        largest = max(largest, *(abs(g - w) for g, w in zip(got, wanted.logprobs, strict=True)))
        p, q = probabilities(wanted.logprobs), probabilities(got)
        divergence += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
        same += pick(got) == pick(wanted.logprobs)
        got, centred = _centred(got), _centred(wanted.logprobs)
        apart += sum((g - w) ** 2 for g, w in zip(got, centred, strict=True))
        spread += sum(w**2 for w in centred)
    n = len(expected)
    error = math.sqrt(apart / spread) if spread else math.inf
    return Parity(n, round(largest, 6), round(divergence / n, 6), same / n, round(error, 6))


def _centred(values: Sequence[float]) -> tuple[float, ...]:
    mean = math.fsum(values) / len(values)
    return tuple(value - mean for value in values)


class Gate:
    """Measures exported files against the model they were made from, which is loaded once.

    `adapters` are PEFT folders by category; `opener` gives an engine for (backbone file, adapter
    files by name).
    """

    def __init__(
        self,
        folder: Path,
        adapters: Mapping[str, Path],
        opener: Callable[[Path, Mapping[str, Path]], Any],
    ) -> None:
        original.check()
        self.folder, self.adapters, self.opener = folder, adapters, opener
        self._expected: dict[bool, dict[str | None, list[Expected]]] = {}

    def expected(self, category: str | None, checked: bool = False) -> list[Expected]:
        """Return PEFT's answers with the category's adapter, None for the bare backbone."""
        if checked not in self._expected:
            self._expected[checked] = _reference(self.folder, self.adapters, checked)
        return self._expected[checked][category]

    def __call__(
        self,
        backbone: Path,
        row: Bound,
        adapter: Path | None = None,
        category: str | None = None,
        merged: bool = False,
    ) -> dict[str, float]:
        """Return the figures of a file for the manifest.

        `adapter` is that of `category`; `merged` says that the backbone file holds it. Raises
        `WorkError` where they are beyond what the backbone's type may cost.
        """
        expected = self.expected(category)
        name = None if merged else category
        engine = self.opener(backbone, {name: adapter} if name and adapter else {})
        try:
            made = measure(engine, expected, name)
        finally:
            engine.close()
        # NaN is beyond every bound.
        if not made.error <= row.apart:
            raise WorkError(
                f"{(adapter or backbone).name} does not answer as the model it was made from: "
                f"error {made.error:.3f}, at most {row.apart} is expected of {row.name}\n"
                "the file is not accepted; --no-verify keeps it, and the manifest says so"
            )
        return asdict(made)

    def accuracy(
        self, backbone: Path, row: Bound, adapter: Path, category: str, lost: float
    ) -> tuple[float, float]:
        """Return Pass@1 as PEFT has it and as the engine has it, on `CHECKED` questions.

        Raises `WorkError` where the engine is worse by more than `lost`, and by more than chance
        explains (one-sided sign test on the questions that only one of them has right).
        """
        expected = self.expected(category, checked=True)
        engine = self.opener(backbone, {category: adapter})
        try:
            scorer = Scorer(engine)
            items = [scorer.item(wanted.question) for wanted in expected]
            scores = dict(engine.score(items, category))
        finally:
            engine.close()
        before = [wanted.right(wanted.logprobs) for wanted in expected]
        after = [wanted.right(scores[at].logprobs) for at, wanted in enumerate(expected)]
        gone = sum(b and not a for b, a in zip(before, after, strict=True))
        won = sum(a and not b for b, a in zip(before, after, strict=True))
        n = len(expected)
        if (gone - won) / n > lost and sign_test(gone, won) < CHANCE:
            raise WorkError(
                f"{backbone.name} loses {100 * (gone - won) / n:.0f} points of Pass@1 on "
                f"{category} ({sum(before)} right before, {sum(after)} after, of {n}); "
                f"{100 * lost:.0f} are allowed\n"
                f"{row.name} does not suit this model; export another type, or --no-verify keeps it"
            )
        return sum(before) / n, sum(after) / n


def sign_test(worse: int, better: int) -> float:
    """Return the chance of so many cases being worse, or more, if either is as likely."""
    n = worse + better
    return sum(math.comb(n, k) for k in range(worse, n + 1)) / float(2**n)


def opened(folder: Path, jobs: Sequence[Job]) -> Gate:
    """Return the gate of a backbone's folder and its adapters, with the real engines."""

    def opener(path: Path, adapters: Mapping[str, Path]) -> Any:
        # One prompt at a time: the figures are the file's, and no other prompt's.
        settings = EngineSettings(context=CONTEXT, exact=True)
        return bundle.native(path, bundle.loose_adapters(path, adapters), settings)

    return Gate(folder, {job.category: job.adapter.folder for job in jobs}, opener)


def _reference(
    folder: Path, adapters: Mapping[str, Path], checked: bool
) -> dict[str | None, list[Expected]]:
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = original.load(folder)

    def tokenize(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, split_special_tokens=True)["input_ids"]
        return ids

    def answers(category: str | None) -> list[Expected]:
        made = []
        for question in questions(category, checked):
            prompt = render(question)
            ids, ends = tokenize(prompt), label_ids(tokenize, prompt, labels(question))
            if max(map(len, ends)) > 1:
                raise WorkError(
                    f"{question.id}: the labels are not one token each for this tokenizer, so the "
                    "file cannot be compared; --no-verify exports it unchecked"
                )
            shown = torch.tensor([ids], device=model.device)
            with torch.no_grad():
                logits = model(shown, logits_to_keep=1).logits[0, -1].double()
            values = torch.log_softmax(logits, -1)
            last = tuple(end for (end,) in ends)
            made.append(
                Expected(question, tuple(ids), last, tuple(float(values[at]) for at in last))
            )
        return made

    found: dict[str | None, list[Expected]] = {} if checked else {None: answers(None)}
    for category, path in adapters.items():
        model = PeftModel.from_pretrained(model, path, adapter_name=category).eval()
        found[category] = answers(category)
        model = model.unload()
    return found
