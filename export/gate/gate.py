"""The gate: a file is accepted only when the engine answers with it as PEFT does.

Structure that is wrong in a silent way (a permutation left out, a scale folded twice, another
rotation) shows here and nowhere else before the device. Three things are judged, each where nothing
else hides it: the conversion unquantized, in float32 throughout; an adapter by the change that it
makes to those answers; a type beside the engine's own unquantized answers.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tel_edge.eval.folders import loading
from tel_edge.eval.folders.gguf_layout import FIELDS
from tel_edge.export import original
from tel_edge.export.gate import along
from tel_edge.export.gate.parity import (
    Answers,
    Asked,
    answers,
    changes,
    compared,
    distance,
    error,
    projected,
    questions,
    sign_test,
    spread,
)
from tel_edge.export.progress import Bar, Step, unseen
from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.engines.engine import EngineSettings
from tel_edge.runtime.errors import WorkError
from tel_edge.runtime.questions.categories import SPOKEN
from tel_edge.runtime.questions.prompt import labels, render
from tel_edge.runtime.questions.scoring import label_ids
from tel_edge.runtime.questions.votes import pick

if TYPE_CHECKING:
    from tel_edge.export.sources.adapter import AdapterExport

# Tokens of context that no prompt of the comparison needs more of.
CONTEXT = 1024
# Nothing but the file may differ: caches in float32, and one prompt at a time.
SETTINGS = EngineSettings(context=CONTEXT, exact=True, kv="F32", flash=False)
# The largest error of an adapter's change, by the type of its matrices.
ADAPTED = {"F32": 0.02, "F16": 0.02, "Q8_0": 0.2}
# A change is not told from what float32 leaves open, so many times what it was at the conversion.
OPEN = 8
# The share of an adapter's change that a model with it merged in has to have, in any type.
KEPT = (0.5, 1.5)
# A loss of accuracy that chance alone gives more seldom than this is one.
CHANCE = 0.05

KEEP = "--no-verify keeps such a file, and the manifest says so"
# What was seen to make a file wrong, for each judgement.
CAUSES = {
    "conversion": "likely: files of the backbone's folder that do not belong together (compare "
    "config.json with its origin), another version of transformers or of the engine than the "
    "pinned one",
    "adapter": "likely: an adapter_config.json that is not the one of these weights, another "
    "version of PEFT than the pinned one, an adapter of another backbone without training.json",
    "quantization": "likely: a type that this model does not bear (try a larger one), or an engine "
    "whose quantizer or kernels are broken on this processor (see: tel-bench --tune)",
}


class Bound(Protocol):
    """A row of a table of types: its name, and the largest `Parity.error` that it may cost."""

    @property
    def name(self) -> str:
        """Return the type's name."""
        ...

    @property
    def apart(self) -> float:
        """Return the bound."""
        ...


@dataclass(frozen=True)
class Expected:
    """What transformers and PEFT answer in float32, bare (None) and by category.

    `asked` are questions (`Asked`), or dialogues of a category (`Along`). `numbers` are the model's
    own, as transformers read them, by their names in GGUF.
    """

    asked: tuple[Any, ...]
    answers: Mapping[str | None, Answers]
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Whole:
    """An unquantized model that was accepted: its file, its answers, and its judgements.

    `judged` are the errors of all types made of it: `conversion`, for a merged model `adapter` and
    `change` too, beside the answers `bare` of the backbone. `noise` is what the conversion is away
    from transformers, in nats.
    """

    path: Path
    category: str | None
    answers: Answers
    judged: Mapping[str, float]
    noise: float = 0.0
    bare: Answers | None = None


class Gate:
    """Judges files beside the model they were made from, which is loaded once.

    `adapters` are PEFT folders by category; `opener` gives an engine for (backbone file, adapter
    files by name). `bar` shows how many prompts have been answered.
    """

    def __init__(
        self,
        folder: Path,
        adapters: Mapping[str, Path],
        opener: Callable[[Path, Mapping[str, Path]], Any],
        bar: Bar = unseen,
    ) -> None:
        original.check()
        self.folder, self.adapters, self.opener, self.bar = folder, adapters, opener, bar
        self._expected: Expected | None = None
        self._spoken: dict[str, Expected] = {}

    @property
    def expected(self) -> Expected:
        """Return the answers to questions that files are judged by."""
        if self._expected is None:
            asked = {name: at for name, at in self.adapters.items() if name not in SPOKEN}
            self._expected = reference(self.folder, asked, bar=self.bar)
        return self._expected

    def wanted(self, category: str | None) -> Expected:
        """Return what the files of a category are judged by: dialogues if it is a spoken one."""
        if category not in SPOKEN or category is None:
            return self.expected
        if category not in self._spoken:
            with self.bar(along.readings(), f"{category} by PEFT") as step:
                asked, bare, adapted = along.reference(self.folder, self.adapters[category], step)
            answered: dict[str | None, Answers] = {None: bare, category: adapted}
            self._spoken[category] = Expected(asked, answered, self.expected.numbers)
        return self._spoken[category]

    def converted(self, path: Path, row: Bound) -> Whole:
        """Judge the unquantized backbone, of the float32 type `row`, over which all else is judged.

        Raises `WorkError` where it does not answer as transformers does.
        """
        found, wanted = self._answers(path), self.expected.answers[None]
        made = error(found, wanted)
        _accept(f"the conversion to {row.name}", "conversion", made, row.apart)
        judged = {"conversion": round(made, 6)}
        return Whole(path, None, found, judged, distance(found, wanted))

    def merged(self, whole: Whole, path: Path, category: str) -> Whole:
        """Judge the unquantized model with that category's adapter merged in, beside `whole`."""
        found, bare = self._answers(path, of=category), self._bare(whole, category)
        judged = self._changed(whole, found, category, ADAPTED["F32"], bare)
        return Whole(path, category, found, {**whole.judged, **judged}, whole.noise, bare)

    def adapter(self, whole: Whole, path: Path, category: str, kind: str) -> dict[str, float]:
        """Judge an adapter file with matrices of type `kind` over the unquantized backbone.

        Returns what the manifest says of it: `Parity` of its answers, `adapter`, the error of the
        change that it makes, and `change`, the size of that change in nats. Raises `WorkError`
        where it changes other things than PEFT's does.
        """
        found, bare = self._answers(whole.path, path, category), self._bare(whole, category)
        judged = self._changed(whole, found, category, ADAPTED[kind], bare)
        return asdict(compared(found, self.wanted(category).answers[category])) | judged

    def quantized(self, whole: Whole, path: Path, row: Bound) -> dict[str, float]:
        """Judge a file of another type beside the unquantized one.

        Returns what the manifest says of it: `Parity` beside PEFT, the judgements of the
        unquantized model, and `quantization`, what the type costs; of a merged model also `kept`,
        the share of the adapter's change that is in this file. Raises `WorkError` where more is
        lost than any sound file loses.
        """
        found = self._answers(path, of=whole.category)
        made = error(found, whole.answers)
        _accept(f"the {row.name} file", "quantization", made, row.apart)
        figures = self.figures(whole, found) | {"quantization": round(made, 6)}
        if whole.bare is not None:
            change = changes(whole.answers, whole.bare)
            kept, doubt = projected(changes(found, whole.bare), change)
            if 3 * doubt < KEPT[0] and not KEPT[0] <= kept <= KEPT[1]:
                raise WorkError(
                    f"the {row.name} file has {kept:.0%} of the change that the {whole.category} "
                    f"adapter makes\n{CAUSES['quantization']}; {KEEP}"
                )
            figures["kept"] = round(kept, 4)
        return figures

    def figures(self, whole: Whole, found: Answers | None = None) -> dict[str, float]:
        """Return what the manifest says of a model's file with those answers."""
        wanted = self.wanted(whole.category).answers[whole.category]
        return asdict(compared(found or whole.answers, wanted)) | dict(whole.judged)

    def _bare(self, whole: Whole, category: str) -> Answers:
        """Return the answers of the unquantized backbone to what a category is judged on."""
        return self._answers(whole.path, of=category) if category in SPOKEN else whole.answers

    def _changed(
        self, whole: Whole, found: Answers, category: str, bound: float, bare: Answers
    ) -> dict[str, float]:
        wanted = self.wanted(category).answers
        change, got = changes(wanted[category], wanted[None]), changes(found, bare)
        made = error(got, change)
        if distance(got, change) > OPEN * whole.noise:
            _accept(f"the {category} adapter", "adapter", made, bound)
        return {"adapter": round(made, 6), "change": round(spread(change), 6)}

    def _answers(
        self,
        path: Path,
        adapter: Path | None = None,
        category: str | None = None,
        asked: Sequence[Asked] | None = None,
        of: str | None = None,
    ) -> Answers:
        """Return what the engine answers with a file, and the adapter of `category` if any.

        It is asked the prompts of the comparison that are of this category or `of`, or `asked`.
        """
        of = category or of
        prompts: Any = self.wanted(of).asked if asked is None else asked
        # The model of `reference` refers to itself, and would stay beside the engine's file.
        gc.collect()
        engine = self.opener(path, {category: adapter} if category and adapter else {})
        try:
            with self.bar(len(prompts), path.name) as step:
                return (along.answers if of in SPOKEN else answers)(engine, prompts, category, step)
        finally:
            engine.close()

    def accuracy(
        self, backbone: Path, row: Bound, adapter: Path, category: str, lost: float
    ) -> tuple[float, float]:
        """Return Pass@1 as PEFT has it and as the engine has it, on `parity.CHECKED` questions.

        Raises `WorkError` where the engine is worse by more than `lost`, and by more than chance
        explains (one-sided sign test on the questions that only one of them has right).
        """
        of = {category: self.adapters[category]}
        wanted = reference(self.folder, of, category, self.bar)
        found = self._answers(backbone, adapter, category, wanted.asked)
        gold = [one.question.answer for one in wanted.asked]
        before = [pick(row) == at for row, at in zip(wanted.answers[category], gold, strict=True)]
        after = [pick(row) == at for row, at in zip(found, gold, strict=True)]
        gone = sum(b and not a for b, a in zip(before, after, strict=True))
        won = sum(a and not b for b, a in zip(before, after, strict=True))
        n = len(gold)
        if (gone - won) / n > lost and sign_test(gone, won) < CHANCE:
            raise WorkError(
                f"{backbone.name} loses {100 * (gone - won) / n:.0f} points of Pass@1 on "
                f"{category} ({sum(before)} right before, {sum(after)} after, of {n}); "
                f"{100 * lost:.0f} are allowed\n"
                f"{row.name} does not suit this model; export another type, or --no-verify keeps it"
            )
        return sum(before) / n, sum(after) / n


def _accept(what: str, judgement: str, made: float, bound: float) -> None:
    # What is no number is beyond every bound.
    if not made <= bound:
        raise WorkError(
            f"{what} does not answer as the model it was made from: the error of its {judgement} "
            f"is {made:.2g}, at most {bound:g} is expected\n"
            f"{CAUSES[judgement]}; {KEEP}"
        )


def opened(folder: Path, jobs: Sequence[AdapterExport], bar: Bar) -> Gate:
    """Return the gate of a backbone's folder and its adapters, with the real engines."""

    def opener(path: Path, adapters: Mapping[str, Path]) -> Any:
        return bundle.native(path, bundle.loose_adapters(path, adapters), SETTINGS)

    return Gate(folder, {job.category: job.adapter.folder for job in jobs}, opener, bar)


def reference(
    folder: Path,
    adapters: Mapping[str, Path],
    category: str | None = None,
    bar: Bar = unseen,
) -> Expected:
    """Return what transformers and PEFT answer, to the prompts that `category`'s accuracy needs.

    Without it to the prompts of the comparison, by the bare backbone as well.
    """
    import torch
    from peft import PeftModel

    tokenizer = loading.tokenizer(folder)

    def tokenize(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, split_special_tokens=True)["input_ids"]
        return ids

    asked = []
    for question in questions(category):
        prompt = render(question)
        ends = label_ids(tokenize, prompt, labels(question))
        asked.append(Asked(question, tuple(tokenize(prompt)), ends))
    model = original.mapped(folder)

    def after(ids: Sequence[int], count: int) -> Any:
        """Return the log-probabilities [count, vocabulary] at the last `count` of the ids."""
        shown = torch.tensor([ids], device=model.device)
        with torch.no_grad():
            logits = model(shown, logits_to_keep=count).logits[0].double()
        return torch.log_softmax(logits, -1)

    def found(step: Step) -> Answers:
        made = []
        for one in asked:
            first = after(one.prompt, 1)[0]
            row = [float(first[label[0]]) for label in one.labels]
            for at, label in enumerate(one.labels):
                if rest := label[1:]:
                    steps = after([*one.prompt, *label[:-1]], len(rest))
                    row[at] += sum(float(x[end]) for x, end in zip(steps, rest, strict=True))
            made.append(row)
            step(1)
        return made

    made: dict[str | None, Answers] = {}
    models = len(adapters) + (category is None)
    with bar(models * len(asked), f"{category or 'the original'} by PEFT") as step:
        if category is None:
            made[None] = found(step)
        for name, path in adapters.items():
            model = PeftModel.from_pretrained(model, path, adapter_name=name).eval()
            made[name] = found(step)
            model = model.unload()
    return Expected(tuple(asked), made, _numbers(model.config))


def _numbers(config: Any) -> dict[str, float]:
    stated = {**config.to_dict(), **(config.rope_parameters or {})}
    return {name: float(stated[own]) for name, own in FIELDS.items() if own in stated}


def check_numbers(stated: Mapping[str, Any], expected: Mapping[str, float], name: str) -> None:
    """Raise `WorkError` where the metadata of a GGUF file is not the model that was read."""
    for key, value in stated.items():
        wanted = expected.get(key.partition(".")[2])
        # Both are rounded to float32 in a file.
        if wanted is not None and abs(value - wanted) > 1e-6 * abs(wanted):
            raise WorkError(
                f"{name}: {key} is {value:g}, transformers reads {wanted:g} from the same folder\n"
                f"{CAUSES['conversion']}; {KEEP}"
            )
