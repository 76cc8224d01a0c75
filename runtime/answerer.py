"""`Answerer`: questions in, answers out, with all that this takes inside."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from tel_edge.runtime.bundles import bundle, formats
from tel_edge.runtime.bundles.manifest import BundleFile, Manifest
from tel_edge.runtime.device import profile
from tel_edge.runtime.engines.engine import Engine, EngineSettings, Generation, Score
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import digest
from tel_edge.runtime.files.atomic import followed
from tel_edge.runtime.questions import protocol, stream, votes
from tel_edge.runtime.questions import router as routers
from tel_edge.runtime.questions.categories import SPOKEN, category
from tel_edge.runtime.questions.orders import averaged
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.requests import Defaults, Request, request
from tel_edge.runtime.questions.router import Router
from tel_edge.runtime.questions.scoring import Asked, Scorer, Scores

Say = Callable[[str], None]


@dataclass(frozen=True)
class Answering:
    """How questions are answered: by the letters' probabilities, or by text that is generated.

    `k` votes are drawn at `temperature`, by random numbers of (`seed`, the question's id). A text
    has at most `limit` tokens. The probabilities are means over `orders` orders of the options.
    """

    generate: bool = False
    k: int = 4
    temperature: float = 0.7
    seed: int = 42
    limit: int = 64
    orders: int = 1

    def __post_init__(self) -> None:
        """Raise `InputError` for what means nothing."""
        if not 1 <= self.k <= votes.MOST_DRAWS:
            raise InputError(f"k {self.k}: 1 to {votes.MOST_DRAWS} votes can be drawn")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"temperature {self.temperature}: a number above 0 is needed")
        if self.limit < 1:
            raise InputError(f"limit {self.limit}: a text has at least one token")
        if self.orders < 1 or (self.generate and self.orders > 1):
            raise InputError(f"orders {self.orders}: 1 or more, and 1 for generated texts")


@dataclass(frozen=True)
class Answer:
    """What came of a question: the index of the choice that was picked, and of each vote's.

    They are None where a generated `text` names none. `logprobs` are those of the labels over the
    whole vocabulary, empty where a text was generated. `tokens` is the prompt's length,
    `milliseconds` the question's share of what was computed together, and `adapter` the one that
    answered, None for the bare backbone.
    """

    question: Question
    index: int | None
    votes: tuple[int | None, ...]
    tokens: int
    milliseconds: float
    logprobs: tuple[float, ...] = ()
    text: str | None = None
    adapter: str | None = None

    @property
    def choice(self) -> str | None:
        """Return the text of the choice that was picked."""
        return None if self.index is None else self.question.choices[self.index]

    @property
    def majority(self) -> int | None:
        """Return the index that most votes are for, of equal ones the first seen."""
        return votes.majority(self.votes) if self.votes else self.index

    @property
    def probabilities(self) -> list[float]:
        """Return the choices' probabilities, which add up to 1; none of a generated text."""
        return votes.probabilities(self.logprobs) if self.logprobs else []

    @property
    def mass(self) -> float:
        """Return the probability that any of the labels comes next; 0 of a generated text."""
        return votes.mass(self.logprobs) if self.logprobs else 0.0


def answered(
    question: Question, made: Score | Generation, how: Answering, adapter: str | None
) -> Answer:
    """Return what the result of an engine with that adapter says of a question."""
    if isinstance(made, Score):
        drawn = votes.draws(made.logprobs, how.k, how.temperature, how.seed, question.id)
        picked = votes.pick(made.logprobs)
        return Answer(
            question, picked, drawn, made.tokens, made.milliseconds, made.logprobs, adapter=adapter
        )
    index, *rest = (protocol.parse(text, question) for text in made.texts)
    return Answer(
        question, index, tuple(rest), made.tokens, made.milliseconds, text=made.texts[0],
        adapter=adapter,
    )  # fmt: skip


class Answerer:
    """An open engine and what it is asked with; `close` it, or use it in a `with` statement.

    `adapters` are the categories that have one, None asks the bare backbone whatever the category;
    `spoken` are those that are talked to instead, of which no question is.
    A question that names no category is of the category `only`, or of the one that `router` finds.
    Several threads may ask at a time.
    """

    def __init__(
        self,
        engine: Engine,
        how: Answering | None = None,
        *,
        name: str = "",
        adapters: Sequence[str] | None = (),
        router: Router | None = None,
        only: str | None = None,
    ) -> None:
        self.engine, self.scorer, self.how = engine, Scorer(engine), how or Answering()
        self.name, self.router, self.only = name, router, only
        self.adapters = None if adapters is None else tuple(adapters)
        self.spoken: tuple[str, ...] = ()

    @classmethod
    def of_bundle(
        cls,
        folder: Path | str,
        how: Answering | None = None,
        *,
        quant: str | None = None,
        format: str | None = None,
        only: str | None = None,
        bare: bool = False,
        threshold: float | None = None,
        engine: EngineSettings | None = None,
        opener: bundle.Opener = bundle.native,
        say: Say = lambda _: None,
    ) -> Self:
        """Open a bundle as `tel-run` does: checked, with this machine's profile.

        Without `quant` and `format` the file is the one that a report decided for, else the one
        that this machine's profile has as the fastest, else of the smallest type and of a format
        whose engine is installed.
        `only` loads one category's adapter and no router, `bare` no adapter at all; `threshold` is
        the router's, unless given; it chooses among the bundle's adapters that were decided for.
        `say` is told what there is to say. Raises `InputError` for a
        file that is not what it should be.
        """
        folder = followed(Path(folder))
        made = bundle.read(folder)
        backbone, worth = selected(folder, made, quant, format, say)
        names = [only] if only else list(made.adapters(backbone.format))
        asked = [name for name in names if name not in SPOKEN]
        if worth is not None and not bare and (doubted := [n for n in asked if n not in worth]):
            say(_doubted(doubted, worth))
        if bare:
            names = asked = []
        adapters = [bundle.adapter_file(folder, made, name, backbone.format) for name in names]
        if warning := bundle.unmeasured([backbone, *adapters]):
            say(warning)
        router = None
        if only is None and asked and (file := made.find("router", format=routers.FORMAT)):
            router = routers.load(bundle.verified(folder, made, file))
            among = tuple(name for name in asked if worth is None or name in worth)
            router = replace(router, among=among)
            if threshold is not None:
                router = replace(router, threshold=threshold)
        settings, note = profile.settings(
            engine or EngineSettings(), made.backbone.name, backbone.quant, backbone.format
        )
        if note:
            say(note)
        # Of several, an adapter that is damaged is the trouble of its own questions.
        opened = cls.of_files(
            folder, made, backbone, adapters, how, engine=settings, opener=opener, lazily=not only
        )
        opened.adapters, opened.router = None if bare else tuple(asked), router
        opened.spoken = tuple(name for name in names if name in SPOKEN)
        opened.only = only
        return opened

    @classmethod
    def of_files(
        cls,
        folder: Path,
        made: Manifest,
        backbone: BundleFile,
        adapters: Sequence[BundleFile],
        how: Answering | None = None,
        *,
        engine: EngineSettings,
        opener: bundle.Opener = bundle.native,
        lazily: bool = False,
    ) -> Self:
        """Open files of a bundle with just these settings; see `bundle.open_engine`."""
        opened = bundle.open_engine(
            folder, made, backbone, adapters, settings=engine, opener=opener, lazily=lazily
        )
        names = tuple(file.category or "" for file in adapters)
        return cls(opened, how, name=backbone.path, adapters=names or None)

    @classmethod
    def of_loose_files(
        cls,
        backbone: Path | str,
        adapters: Mapping[str, Path],
        how: Answering | None = None,
        *,
        engine: EngineSettings | None = None,
        opener: bundle.Opener = bundle.native,
    ) -> Self:
        """Open a backbone's file and adapters by category, which no manifest binds to each other.

        They are checked as far as they say themselves what they are of.
        """
        backbone = Path(backbone)
        formats.of_file(backbone).weights(backbone)
        files = bundle.loose_adapters(backbone, adapters)
        opened = opener(backbone, files, engine or EngineSettings())
        return cls(opened, how, name=backbone.name, adapters=tuple(adapters) or None)

    def __enter__(self) -> Self:
        """Return the answerer, which is closed at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Free the engine; who asks later gets `WorkError`."""
        self.engine.close()

    def exchange(self, names: Sequence[str]) -> None:
        """Answer from now on with the adapters of these categories."""
        self.adapters = tuple(name for name in names if name not in SPOKEN)
        self.spoken = tuple(name for name in names if name in SPOKEN)
        if self.router:
            self.router = replace(self.router, among=self.adapters)

    def answer(
        self,
        question: str,
        choices: Sequence[str] = (),
        category: str | None = None,
        *,
        id: str | None = None,
    ) -> Answer:
        """Return the answer to one question, of the router's category where none is named.

        `choices` may be left out for a category with fixed labels. The votes of a question depend
        on its `id`, by default a digest of the question. Raises `InputError` for what cannot be
        answered.
        """
        if isinstance(choices, str):
            raise InputError(f"choices {choices[:40]!r}: a list of texts is needed")
        own = digest.of_value([question, list(choices)])[:16] if id is None else id
        row = {"question": question, "category": category, "id": own}
        asked = request(1, row | ({"choices": list(choices)} if choices else {}), self.defaults())
        [(_, made)] = self.replies([asked])
        if isinstance(made, InputError):
            raise made
        return made

    def defaults(self, only: str | None = None, labels: Sequence[str] = ()) -> Defaults:
        """Return what requests to this answerer mean by what they do not say.

        `only` is the category of those that name none, `labels` the answers of those that bring
        none.
        """
        route, named = self.router.route if self.router else None, only or self.only
        of = category(named) if named else None
        return Defaults(of, route, self.adapters is None, tuple(labels))

    def replies(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer | InputError]]:
        """Yield each request, in order, with its answer or why there is none."""
        for at, made in stream.in_order(self._replies(requests)):
            yield requests[at], made

    def _replies(
        self, requests: Sequence[Request]
    ) -> Iterator[tuple[int, tuple[int, Answer | InputError]]]:
        asked: list[Asked] = []
        places: list[int] = []
        for at, one in enumerate(requests):
            if one.question is None:
                yield at, (at, InputError(one.error))
                continue
            try:
                asked.append((one.question, self.adapter_of(one)))
            except InputError as error:
                yield at, (at, error)
                continue
            places.append(at)
        for index, made in self.many(asked):
            yield places[index], (places[index], made)

    def adapter_of(self, asked: Request) -> str | None:
        """Return the adapter that a request is for, None for the bare backbone.

        A question of no category is the bare backbone's, and so is one that was only sent to a
        category that has no adapter. Raises `InputError` where it names such a one.
        """
        named = asked.question.category if asked.question else None
        if self.adapters is None or not named or (asked.route and named not in self.adapters):
            return None
        if named not in self.adapters:
            there = " ".join(self.adapters) or "none"
            raise InputError(f"no adapter for {named} (there: {there})")
        return named

    def many(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Answer | InputError]]:
        """Yield (index, answer or why there is none) as they are ready, an adapter at a time.

        `asked` are questions with the name of the adapter to ask, None being the bare backbone.
        """
        yield from answers(self.scorer, asked, self.how)


def selected(
    folder: Path, made: Manifest, quant: str | None, format: str | None, say: Say
) -> tuple[BundleFile, tuple[str, ...] | None]:
    """Return the backbone that a bundle is opened with, see `Answerer.of_bundle`.

    Where a report decided for it, the categories that it is worth deploying for come with it.
    """
    decided, worth = None, None
    if quant is None:
        decided, said = bundle.deployed_file(made, format)
        if said:
            say(said)
        if decided and made.deploy:
            worth = made.deploy.categories
    return decided or _chosen(folder, made, quant, format, say), worth


def _chosen(
    folder: Path, made: Manifest, quant: str | None, format: str | None, say: Say
) -> BundleFile:
    """Return the backbone's file of that type and format, else the one chosen for this machine."""
    chosen = None if quant or format else profile.choice(made.backbone.name)
    if chosen and formats.FORMATS[chosen.format].installed():
        file = made.find("backbone", chosen.quant, format=chosen.format)
        if file:
            say(f"{chosen.quant} was chosen here of {', '.join(chosen.rates)} (tel-bench --tune)")
            return file
    return bundle.backbone_file(folder, made, quant, format)


def _doubted(names: Sequence[str], worth: Sequence[str]) -> str:
    """Return what there is to say of adapters that the report did not decide for."""
    return (
        f"warning: the report decided for {', '.join(worth)} only; in {', '.join(names)} the "
        "answers were not found worth deploying"
    )


def answers(
    scorer: Scores, asked: Sequence[Asked], how: Answering
) -> Iterator[tuple[int, Answer | InputError]]:
    """Yield (index, answer or why there is none) of all that a scorer is asked."""
    results: Iterator[tuple[int, Score | Generation | InputError]] = (
        scorer.texts(asked, how.k, how.temperature, how.limit, how.seed)
        if how.generate
        else averaged(scorer, asked, how.orders)
        if how.orders > 1
        else scorer.many(asked)
    )
    for index, made in results:
        if isinstance(made, InputError):
            yield index, made
        else:
            question, adapter = asked[index]
            yield index, answered(question, made, how, adapter)
