"""What bench_onnx.py measures, each in a process of its own: both engines, and ways of sharing.

The questions are random token ids behind a prefix that all begin with, since speed does not depend
on what they say.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from contender_tasks import clock
from graph_contender import PREFIX, QUESTION, SEED, items

from tel_edge.runtime.bundles import formats
from tel_edge.runtime.device import memory
from tel_edge.runtime.engines.engine import EngineSettings, Item, LoraFile
from tel_edge.runtime.engines.logits import log_sum
from tel_edge.runtime.engines.packed import PackedEngine
from tel_edge.runtime.processors import cores

# Tokens of a plain prompt.
PLAIN = 128
# How far a question's length may be from `QUESTION` where lengths differ.
APART = 24
# Plain prompts that are timed after one that is not, and changes of the adapter.
PLAINS, SWITCHES = 3, 50
# Questions of a batch, the largest first: its room in memory then does for all.
BATCHES = (16, 8, 4)
# onnxruntime writes a line for each slot; only what ends the process is let through.
FATAL = 4


@dataclass(frozen=True)
class Subject:
    """A backbone's file, its adapters as name to (file, SHA-256), and how many questions it gets.

    The first adapter answers.
    """

    model: str
    adapters: Mapping[str, tuple[str, str]]
    questions: int

    def opened(self) -> PackedEngine:
        """Return tel-edge's engine with its default settings."""
        adapters = {
            name: LoraFile(lambda file=file: Path(file), digest)  # type: ignore[misc]
            for name, (file, digest) in self.adapters.items()
        }
        model = Path(self.model)
        engine = formats.of_file(model).engine(model, adapters, EngineSettings())
        assert isinstance(engine, PackedEngine)
        return engine


def even(count: int) -> list[int]:
    """Return the lengths of questions that are all as long."""
    return [QUESTION] * count


def uneven(count: int) -> list[int]:
    """Return lengths in random order; each is as far above the mean as another one is below it."""
    chance, made = random.Random(SEED), [QUESTION] * (count % 2)
    for _ in range(count // 2):
        apart = chance.randint(0, APART)
        made += [QUESTION - apart, QUESTION + apart]
    chance.shuffle(made)
    return made


def runtime(subject: Subject) -> dict[str, Any]:
    """Measure an engine; times are milliseconds but for `open` and the questions' seconds.

    `first` are the questions with their prefix computed among them, `kept` the same ones with the
    prefix kept from before, `alone` without any of it: one at a time, all of their tokens.
    """
    began = time.perf_counter()
    engine = subject.opened()
    opened = time.perf_counter() - began
    name, other = subject.adapters
    load = clock(engine.load_adapter, name)
    plain = [PLAIN / engine.plain_rate(None, PLAIN) * 1000 for _ in range(1 + PLAINS)]
    asked = items(even(subject.questions), engine.vocabulary)
    # Touches the adapter.
    answered(engine, [Item(asked[0].prompt[:8], asked[0].labels)], name)
    engine.forget()
    first, kept = (clock(answered, engine, asked, name) / 1000 for _ in range(2))
    engine.settings = replace(engine.settings, exact=True)
    alone = clock(answered, engine, asked, name) / 1000
    engine.settings = replace(engine.settings, exact=False)
    return {
        "open": opened,
        "load": load,
        "plain": statistics.median(plain[1:]),
        "questions": {"first": first, "kept": kept, "alone": alone},
        **switched(engine, (other, name), asked[0]),
        "memory": asdict(memory.now()),
    }


def answered(engine: PackedEngine, asked: Sequence[Item], adapter: str) -> list[tuple[float, ...]]:
    """Return the labels' log-probabilities of each question."""
    scores = dict(engine.score(asked, adapter))
    return [scores[at].logprobs for at in range(len(asked))]


def switched(engine: PackedEngine, names: Sequence[str], item: Item) -> dict[str, float]:
    """Measure, in milliseconds, setting another adapter, and how much longer the next run takes.

    A run is one token, so that what a change adds to it is not lost among many.
    """
    tiny = [Item(item.prompt[:1], item.labels)]
    for name in names:
        answered(engine, tiny, name)
    use, extra, stay = [], [], []
    for at in range(SWITCHES):
        name = names[at % len(names)]
        use.append(clock(engine.use, name))
        changed = clock(answered, engine, tiny, name)
        stay.append(clock(answered, engine, tiny, name))
        extra.append(changed - stay[-1])
    return {
        "use": statistics.median(use),
        "extra": statistics.median(extra),
        "run": statistics.median(stay),
    }


# Ways of sharing


@dataclass(frozen=True)
class Batch:
    """Rows of one run: questions by number, and on which side shorter ones are filled up."""

    held: tuple[int, ...]
    left: bool = False

    def tokens(self, lengths: Sequence[int]) -> int:
        """Return how many tokens are computed, with those that fill up."""
        return len(self.held) * max(lengths[at] for at in self.held)


@dataclass(frozen=True)
class Way:
    """How questions are put into runs; `batches` takes their lengths and the most in a batch.

    `sizes` are the most that are tried.
    """

    name: str
    batches: Callable[[Sequence[int], int], list[Batch]]
    sizes: tuple[int, ...] = (1,)


def _by_length(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda at: lengths[at])


def _padded(lengths: Sequence[int], most: int, left: bool) -> list[Batch]:
    """Return batches of questions of about the same length, so that little is filled up."""
    order = _by_length(lengths)
    return [Batch(tuple(order[start : start + most]), left) for start in range(0, len(order), most)]


def _equal(lengths: Sequence[int], _: int) -> list[Batch]:
    groups = defaultdict(list)
    for at in _by_length(lengths):
        groups[lengths[at]].append(at)
    return [Batch(tuple(held)) for held in groups.values()]


def _single(lengths: Sequence[int], _: int) -> list[Batch]:
    return [Batch((at,)) for at in range(len(lengths))]


ROW, ALONE = "one row, attention bias (tel-edge)", "one by one"
WAYS = {
    way.name: way
    for way in (
        Way("batches, padded left", lambda lengths, most: _padded(lengths, most, True), BATCHES),
        Way("batches, padded right", lambda lengths, most: _padded(lengths, most, False), BATCHES),
        Way("groups of equal length", _equal),
        Way(ALONE, _single),
    )
}


def sharing(subject: Subject, name: str) -> dict[str, Any]:
    """Answer questions of different lengths in a way, `ROW` or one of `WAYS`.

    In all of them the prefix is computed before the clock runs. Returns, for each size of batch
    (`ROW` has none), seconds, tokens computed and log-probabilities.
    """
    lengths = uneven(subject.questions)
    return {
        "runs": [_row(subject, lengths)] if name == ROW else _runs(subject, lengths, WAYS[name])
    }


def _row(subject: Subject, lengths: Sequence[int]) -> dict[str, Any]:
    engine, adapter = subject.opened(), next(iter(subject.adapters))
    asked = items(lengths, engine.vocabulary)
    # The prefix, and as much beside it as is warmed in the other ways.
    answered(engine, asked[: max(BATCHES)], adapter)
    began = time.perf_counter()
    found = answered(engine, asked, adapter)
    seconds = time.perf_counter() - began
    return {"batch": None, "seconds": seconds, "tokens": sum(lengths), "logprobs": found}


def _runs(subject: Subject, lengths: Sequence[int], way: Way) -> list[dict[str, Any]]:
    plain = Plain(subject)
    asked, made = items(lengths, plain.vocabulary), []
    past = plain.prefix(asked[0].prompt[:PREFIX])
    for size in way.sizes:
        batches = way.batches(lengths, size)
        # Repeated before the clock runs, too: it is done once for all questions of a device.
        rows = {len(batch.held): plain.repeated(past, len(batch.held)) for batch in batches}
        if size == way.sizes[0]:
            most = max(batches, key=lambda batch: batch.tokens(lengths))
            plain.answers(most, asked, rows[len(most.held)])
        found: dict[int, list[float]] = {}
        began = time.perf_counter()
        for batch in batches:
            found |= plain.answers(batch, asked, rows[len(batch.held)])
        seconds = time.perf_counter() - began
        tokens = sum(batch.tokens(lengths) for batch in batches)
        logprobs = [found[at] for at in range(len(asked))]
        largest = max(len(batch.held) for batch in batches)
        made.append({"batch": largest, "seconds": seconds, "tokens": tokens, "logprobs": logprobs})
    return made


class Plain:
    """A session of onnxruntime on the same file, with the engine's options and an adapter."""

    def __init__(self, subject: Subject) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = FATAL
        options.intra_op_num_threads, options.inter_op_num_threads = cores(), 1
        self._session = onnxruntime.InferenceSession(
            subject.model, options, providers=["CPUExecutionProvider"]
        )
        self._adapter, self._options = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
        file, _ = next(iter(subject.adapters.values()))
        self._adapter.Load(file)
        self._options.add_active_adapter(self._adapter)
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        self.vocabulary = int(self._session.get_outputs()[0].shape[-1])
        self._past = {
            given.name: given.shape
            for given in self._session.get_inputs()
            if given.name.startswith("past_key_values.")
        }

    def prefix(self, tokens: Sequence[int]) -> list[Any]:
        """Return keys and values of a beginning, [1, heads, tokens, width] each."""
        import numpy as np

        ids = np.array([tokens], np.int64)
        empty = [
            self._value(np.zeros((1, dims[1], 0, dims[3]), np.float32))
            for dims in self._past.values()
        ]
        wanted = [name.replace("past_key_values", "present") for name in self._past]
        positions = np.arange(ids.size, dtype=np.int64)[None]
        made = self._run(wanted, ids, np.ones_like(ids), positions, [ids.size - 1], empty)
        return [value.numpy() for value in made]

    def repeated(self, past: Sequence[Any], rows: int) -> list[Any]:
        """Return the past of a batch whose rows all begin with `past`."""
        import numpy as np

        return [self._value(np.repeat(part, rows, axis=0)) for part in past]

    def answers(
        self, batch: Batch, asked: Sequence[Item], past: Sequence[Any]
    ) -> dict[int, list[float]]:
        """Return the labels' log-probabilities of a batch's questions by their number."""
        import numpy as np

        texts = [asked[at].prompt[PREFIX:] for at in batch.held]
        wide = max(map(len, texts))
        ids = np.zeros((len(texts), wide), np.int64)
        mask = np.zeros((len(texts), PREFIX + wide), np.int64)
        mask[:, :PREFIX] = 1
        positions = np.full_like(ids, PREFIX)
        lasts = []
        for row, text in enumerate(texts):
            start = wide - len(text) if batch.left else 0
            end = start + len(text)
            ids[row, start:end] = text
            mask[row, PREFIX + start : PREFIX + end] = 1
            positions[row, start:end] = PREFIX + np.arange(len(text))
            lasts.append(end - 1)
        reads = sorted(set(lasts))
        logits = self._run(["logits"], ids, mask, positions, reads, past)[0].numpy()
        return dict(zip(batch.held, self._labels(batch, asked, logits, lasts, reads), strict=True))

    def _labels(
        self,
        batch: Batch,
        asked: Sequence[Item],
        logits: Any,
        lasts: Sequence[int],
        reads: Sequence[int],
    ) -> Iterator[list[float]]:
        for row, (at, last) in enumerate(zip(batch.held, lasts, strict=True)):
            mine = logits[row, reads.index(last)]
            total = log_sum(mine)
            yield [float(mine[token]) - total for (token,) in asked[at].labels]

    def _run(
        self,
        wanted: Sequence[str],
        ids: Any,
        mask: Any,
        positions: Any,
        reads: Sequence[int],
        past: Sequence[Any],
    ) -> Any:
        import numpy as np

        feeds = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": positions,
            "logits_idx": np.array(reads, np.int64),
        }
        given = {name: self._value(value) for name, value in feeds.items()}
        given |= dict(zip(self._past, past, strict=True))
        # As the engine does it, so that nothing is copied on the way.
        return self._session.run_with_ort_values(wanted, given, self._options)
