"""What engines that pack have in common: adapters in memory, kept prefixes, shared decodes.

An engine of its own says how tokens are computed: it fills the cache's cells and gives logits. All
that decides which tokens stand together is here, once, so that two engines ask the same of a model.
"""

from __future__ import annotations

import random
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from tel_edge.runtime.engines import conversing, packing
from tel_edge.runtime.engines.adapters import Adapters
from tel_edge.runtime.engines.alone import alone
from tel_edge.runtime.engines.engine import (
    EngineSettings,
    Generation,
    Item,
    LoraFile,
    Sampling,
    Score,
    Template,
    Unanswered,
)
from tel_edge.runtime.engines.logits import drawn, log_sum
from tel_edge.runtime.engines.packing import END, Cost, PackedEntry
from tel_edge.runtime.engines.prefixes import KEEPER, Key, Prefixes
from tel_edge.runtime.errors import InputError, WorkError

T = TypeVar("T")

FREE = packing.BRANCHES
# The cache's sequences: `KEEPER` holds the prefix, the others the prompts of a decode.
SEQUENCES = 1 + FREE
# Logits rows of one decode, a vocabulary of floats each.
OUTPUTS = 64


class PackedEngine(Adapters):
    """One backbone and its LoRA adapters in memory.

    A decode, with all that goes before and after it, has the engine for itself; between two decodes
    another thread may have its turn.

    `adapters` are loaded when they are first asked for. `context` is the longest prompt in tokens,
    `most` how many tokens one decode computes, `span` in how many cells it and all that it looks
    at have to be, `kv_bytes_per_token` what the keys and values of a cell take, `vocabulary` the
    number of tokens, `timing` what opening took, in milliseconds, `template` the model's chat
    template, None where the file has none.
    """

    context: int
    span: int
    kv_bytes_per_token: int
    vocabulary: int
    most: int
    cache: Prefixes
    template: Template | None = None

    def __init__(
        self, adapters: Mapping[str, LoraFile] | None, settings: EngineSettings | None
    ) -> None:
        self.settings = settings or EngineSettings()
        super().__init__(adapters, self.settings.max_adapters)
        self.timing: dict[str, float] = {}
        # Apart, so that reading a text does not wait for a decode.
        self._reading = threading.Lock()

    def timed(self, name: str, work: Callable[..., None], *given: Any) -> None:
        """Do `work` and note how long it took."""
        began = time.perf_counter()
        work(*given)
        self.timing[name] = (time.perf_counter() - began) * 1000

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of a text at the start of a sequence; see `Engine`."""
        with self._reading:
            if self.shut:
                raise WorkError("the engine is closed")
            return self.ids(text)

    # What an engine does

    @abstractmethod
    def ids(self, text: str) -> list[int]:
        """Return the ids of `text`, with the tokens that belong to the start of a sequence."""

    @abstractmethod
    def marked(self, text: str) -> list[int]:
        """Return the ids of what a chat template made: special tokens are what they say."""

    @abstractmethod
    def decode(self, entries: Sequence[PackedEntry]) -> Iterator[tuple[tuple[int, int], Any]]:
        """Compute tokens into the cells and yield (what is read, its logits [vocabulary]).

        The logits hold until the next step. On an error the engine has forgotten everything.
        """

    @abstractmethod
    def ends(self, token: int) -> bool:
        """Return whether a generated text ends with that token."""

    @abstractmethod
    def end(self) -> tuple[int, str]:
        """Return the token that ends a text, and its name. Raises `InputError` if there is none."""

    @abstractmethod
    def name(self, token: int) -> str:
        """Return what the vocabulary calls a token."""

    @abstractmethod
    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of generated tokens."""

    def close(self) -> None:
        """Free what the library holds; the engine is not usable after it."""
        with self.lock, self._reading:
            self.shut = True
            self.clear_adapters()
            self.free()

    @abstractmethod
    def free(self) -> None:
        """Free the model and all that hangs on it, of which anything may be missing."""

    def _key(self, name: str | None, units: Sequence[tuple[int, ...]]) -> Key:
        if name is None:
            return Key("", 1, tuple(units))
        adapter = self.adapter(name)
        return Key(adapter.digest, adapter.scale, tuple(units))

    # Scoring

    def score(self, items: Sequence[Item], adapter: str | None) -> Iterator[tuple[int, Score]]:
        """Yield (index, score) as decodes end; see `Engine.score`."""
        if not items:
            return
        prompts = [item.prompt for item in items]
        units: list[tuple[int, ...]] = []
        bins = [[at] for at in range(len(items))]
        if not self.settings.exact:
            units = packing.units(prompts, min(item.known for item in items))
            start = sum(map(len, units))
            tries = [packing.trie(item.labels) for item in items]
            costs = [Cost(len(made.nodes), made.branches, len(made.nodes) + 1) for made in tries]
            room = Cost(min(self.most, self.span - start), FREE, OUTPUTS)
            bins = packing.bins(prompts, start, costs, room)
        yield from self._each(
            adapter, bins, lambda held: self._packed(adapter, [items[at] for at in held], units)
        )

    def _each(
        self,
        adapter: str | None,
        bins: Sequence[Sequence[int]],
        work: Callable[[Sequence[int]], Sequence[T]],
    ) -> Iterator[tuple[int, T]]:
        """Do the work of one decode after the other; one that is refused is no other's trouble."""
        # Nobody has an answer without the adapter.
        self.use(adapter)
        refused: dict[int, InputError] = {}
        for held in bins:
            try:
                made = work(held)
            except InputError as error:
                refused |= dict.fromkeys(held, error)
                continue
            yield from zip(held, made, strict=True)
        if refused:
            raise Unanswered(refused)

    @alone
    def _packed(
        self, adapter: str | None, items: Sequence[Item], units: Sequence[tuple[int, ...]]
    ) -> list[Score]:
        """Score `items`, which begin with `units`, in one decode, or in several if they must."""
        began = time.perf_counter()
        # Each time: whoever reads the results may ask for another adapter between two decodes.
        self.use(adapter)
        tries = [packing.trie(item.labels) for item in items]
        if (most := max(made.branches for made in tries)) > FREE:
            raise InputError(f"the labels have {most} branches, at most {FREE} work")
        prompts = [item.prompt for item in items]
        branches = [made.branches for made in tries]
        entries, sequences, fresh = self._begin(adapter, prompts, units, branches)
        for number, (made, mine) in enumerate(zip(tries, sequences, strict=True)):
            for index, node in enumerate(made.nodes):
                where = tuple(mine[branch] for branch in node.sequences)
                position = len(prompts[number]) + node.depth - 1
                entries[number].append(PackedEntry(node.token, position, where, (number, index)))
        computed = [len(part) for part in entries]
        computed[0] += fresh
        reads = [made.reads() for made in tries]
        found: dict[tuple[int, int, int], float] = {}
        for (number, at), logits in self.decode([e for part in entries for e in part]):
            total = log_sum(logits)
            for token in reads[number][at]:
                found[number, at, token] = float(logits[token]) - total

        def logprobs(number: int) -> tuple[float, ...]:
            return tries[number].logprobs(lambda at, token: found[number, at, token])

        self._end(sequences)
        spent = (time.perf_counter() - began) * 1000 / sum(computed)
        return [
            Score(
                logprobs(number),
                len(prompts[number]),
                computed[number],
                spent * computed[number],
                len(items),
            )
            for number in range(len(items))
        ]

    # Generation

    def generate(
        self, prompts: Sequence[tuple[Sequence[int], Sampling]], adapter: str | None
    ) -> Iterator[tuple[int, Generation]]:
        """Yield (index, texts); see `Engine.generate`. A prompt and its texts fit the context."""
        if not prompts:
            return
        if any(how.kept for _, how in prompts):
            alone = [[at] for at in range(len(prompts))]
            yield from self._each(
                adapter, alone, lambda held: self._spoken(adapter, *prompts[held[0]])
            )
            return
        known = min(how.known for _, how in prompts)
        beginnings = [ids for ids, _ in prompts]
        units = [] if self.settings.exact else packing.units(beginnings, known)
        start = sum(map(len, units))
        costs = [Cost((how.k + 1) * how.limit, how.k + 1, how.k + 1) for _, how in prompts]
        room = Cost(self.span - start, 1 if self.settings.exact else FREE, OUTPUTS)
        bins = packing.bins(beginnings, start, costs, room)
        yield from self._each(
            adapter,
            bins,
            lambda held: self._generated(adapter, [prompts[at] for at in held], units),
        )

    @alone
    def _generated(
        self,
        adapter: str | None,
        prompts: Sequence[tuple[Sequence[int], Sampling]],
        units: Sequence[tuple[int, ...]],
    ) -> list[Generation]:
        """Generate the texts of all `prompts` side by side, a token of each in a decode."""
        began = time.perf_counter()
        self.use(adapter)
        ways = [how for _, how in prompts]
        counts = [how.k + 1 for how in ways]
        if max(counts) > FREE:
            raise InputError(f"{max(counts)} texts of one prompt, at most {FREE} work")
        beginnings = [ids for ids, _ in prompts]
        entries, sequences, fresh = self._begin(adapter, beginnings, units, counts)
        computed = [len(part) for part in entries]
        computed[0] += fresh
        texts: dict[tuple[int, int], list[int]] = {
            (number, turn): [] for number, count in enumerate(counts) for turn in range(count)
        }
        # One generator for each text, so that its numbers depend on nothing but its own prompt.
        chance = {at: random.Random(f"{ways[at[0]].seed} {at[1]}") for at in texts}
        for (number, _), numbers in chance.items():
            for _ in range(ways[number].spent):
                numbers.random()
        todo = [e for part in entries for e in part]
        while todo:
            active = []
            for (number, turn), logits in self.decode(todo):
                # The prompt's end is read once for all texts.
                for at in [(number, turn)] if turn != END else [t for t in texts if t[0] == number]:
                    how, text = ways[number], texts[at]
                    token = drawn(logits, how.temperature if at[1] else 0, chance[at])
                    if self.ends(token):
                        continue
                    text.append(token)
                    more = how.goes_on is None or how.goes_on(at[1], text)
                    if more and len(text) < how.limit:
                        position = len(prompts[number][0]) + len(text) - 1
                        where = (sequences[number][at[1]],)
                        active.append(PackedEntry(token, position, where, at))
            todo = active
        self._end(sequences)
        spent = (time.perf_counter() - began) * 1000 / len(prompts)
        return [
            Generation(
                tuple(self.text(texts[number, turn]) for turn in range(counts[number])),
                len(ids),
                computed[number],
                sum(len(texts[number, turn]) for turn in range(counts[number])),
                spent,
                len(prompts),
            )
            for number, ids in enumerate(beginnings)
        ]

    @alone
    def _spoken(self, adapter: str | None, ids: Sequence[int], how: Sampling) -> list[Generation]:
        self.use(adapter)
        return [conversing.written(self, ids, how, self._key(adapter, ()))]

    # Decoding

    @alone
    def forget(self) -> None:
        """Drop everything that is kept of earlier prompts."""
        self.cache.forget()

    def _begin(
        self,
        adapter: str | None,
        prompts: Sequence[Sequence[int]],
        units: Sequence[tuple[int, ...]],
        branches: Sequence[int],
    ) -> tuple[list[list[PackedEntry]], list[tuple[int, ...]], int]:
        """Give every prompt its sequences, with `units`, which they all begin with, in them.

        Returns, for each prompt, the tokens that are still to be decoded, and its sequences; and
        how many tokens of the units were computed.
        """
        ids = iter(range(KEEPER + 1, SEQUENCES))
        sequences = [tuple(next(ids) for _ in range(count)) for count in branches]
        key = self._key(adapter, units)
        fresh = 0
        if units and not self.cache.place(key):
            for unit in units:
                part = [PackedEntry(t, fresh + at, (KEEPER,)) for at, t in enumerate(unit)]
                for _ in self.decode(part):
                    pass
                fresh += len(unit)
            self.cache.keep(key)
        if units:
            self.cache.share(key, [one for mine in sequences for one in mine])
        else:
            self.cache.clear()
        entries = packing.tree(prompts, key.tokens, sequences)
        return entries, sequences, fresh

    def _end(self, sequences: Sequence[Sequence[int]]) -> None:
        self.cache.end([sequence for mine in sequences for sequence in mine])

    @alone
    def plain_rate(self, adapter: str | None, tokens: int = 512) -> float:
        """Return the tokens/s of one plain prompt of that length: the engine's own rate."""
        self.use(adapter)
        self.forget()
        last = self.vocabulary - 1
        entries = [
            PackedEntry(at * 7919 % last, at, (KEEPER,), (0, END) if at == tokens - 1 else None)
            for at in range(tokens)
        ]
        began = time.perf_counter()
        for _ in self.decode(entries):
            pass
        rate = tokens / (time.perf_counter() - began)
        self.forget()
        return rate
