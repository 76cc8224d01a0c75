"""The search for the fastest engine settings: one knob after the other, each value in a process.

A value takes the place of the one before only if it is clearly faster when both are measured in
turns, and if the answers stay what they were. A value that takes the process down is a finding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from tel_edge.runtime import extras
from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.bundles.formats import FORMATS
from tel_edge.runtime.device import profile
from tel_edge.runtime.device.child import in_child
from tel_edge.runtime.engines.engine import EngineSettings
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.measuring.probe import WARM, Subject, ask, opened, picked
from tel_edge.runtime.processors import cores

# A value has to be this much faster, and faster in every round; less is what one machine varies.
GAIN = 1.02
NOTE = (
    "ratio: the median over the rounds, each beside the runs just before and after it; "
    "drift: how far a label's log-probability moves at most, in nats"
)
# Slower than this at the first try, and it is not tried again.
HOPELESS = 0.8
# Seconds for a first process, which may have to read the weights from a slow disk; a later one
# gets so many times the longest that went well, and this much more.
FIRST, TIMES, MORE = 1800.0, 5.0, 30.0


@dataclass(frozen=True)
class Device:
    """What the candidates depend on: cores that may be used, and a GPU that the engine can use."""

    cores: int
    gpu: bool


@dataclass(frozen=True)
class Knob:
    """One field of `EngineSettings`.

    `candidates` gives the values to try on a device beside given settings. Values that move a
    label's log-probability by more than `drift` nats are not taken, however fast.
    """

    field: str
    candidates: Callable[[Device, EngineSettings], Sequence[Any]]
    reason: str
    drift: float = 1.0


# In the order in which they are tried: what changes most first. To tune another field, add a row,
# its name to `tuned` of the formats that it means something to, and its rule to `RULES` of
# `profile`.
BATCHES = (128, 192, 256, 512, 1024)
KNOBS = (
    Knob(
        "gpu_layers",
        lambda device, _: (0, -1) if device.gpu else (),
        "a small GPU that shares the memory can be slower than the cores beside it",
    ),
    Knob(
        "extra_buffers",
        lambda device, _: (False, True),
        "helps ARM processors with dot products, does not help many others, crashes in some builds",
    ),
    Knob(
        "threads",
        lambda device, _: sorted({1, device.cores // 2, device.cores - 1} - {0, device.cores}),
        "two threads of one core share its units, and a core that is busy otherwise holds up all",
    ),
    Knob(
        "flash",
        lambda device, base: (True,) if base.kv.startswith("Q") else (True, False),
        "fewer passes over memory, but not every kind of processor has a fast version",
    ),
    Knob(
        "batch",
        lambda device, base: [size for size in BATCHES if size <= base.context],
        "a larger one shares more reading of weights, a smaller one stays in the cache",
    ),
    Knob(
        "kv",
        # The engine quantizes the cache only with flash attention.
        lambda device, base: () if base.flash is False else ("F16", "Q8_0"),
        "half the memory traffic of attention, at some loss of precision",
        # What Q8_0 loses stays well below what quantizing the weights does.
        drift=0.05,
    ),
)


def knobs(format: str) -> tuple[Knob, ...]:
    """Return the knobs that mean something to the engine of a format."""
    return tuple(knob for knob in KNOBS if knob.field in FORMATS[format].tuned)


@dataclass(frozen=True)
class Probe:
    """The questions answered once with some settings, or the `error` that came instead.

    `logprobs` are those of the labels, question by question.
    """

    questions_per_second: float = 0.0
    tokens_per_second: float = 0.0
    logprobs: tuple[tuple[float, ...], ...] = ()
    error: str = ""


Measure = Callable[[EngineSettings], Probe]


@dataclass(frozen=True)
class TuneFinding:
    """A value beside the best until then: medians in questions/s, and what became of it.

    `ratio` is the median of the ratios to the runs just before and after, `drift` the largest
    difference of a label's log-probability, in nats. They are None where the value failed.
    """

    field: str
    value: Any
    before: Any
    verdict: str
    taken: bool = False
    questions_per_second: float | None = None
    questions_per_second_before: float | None = None
    tokens_per_second: float | None = None
    tokens_per_second_before: float | None = None
    ratio: float | None = None
    drift: float | None = None


@dataclass(frozen=True)
class Tuned:
    """The fastest settings, the tokens/s last measured with them, and how they were found."""

    settings: EngineSettings
    tokens_per_second: float
    findings: tuple[TuneFinding, ...]


def tune(
    measure: Measure,
    start: EngineSettings,
    device: Device,
    format: str = "gguf",
    chosen: Sequence[Knob] | None = None,
    rounds: int = 3,
    say: Callable[[str], None] = lambda text: None,
) -> Tuned:
    """Try the values of one knob after the other and return the fastest settings.

    Those of `chosen` are tried, None being all of the format's. Fields of `start` that are not the
    default were asked for and stay. Raises `WorkError` if the engine fails with `start`, or with
    settings that it worked with before.
    """

    def working(settings: EngineSettings) -> Probe:
        made = measure(settings)
        if made.error:
            raise WorkError(
                "nothing is saved: the engine fails with "
                f"{profile.described(settings, format)}\n{made.error}"
            )
        return made

    default = replace(EngineSettings(), batch=FORMATS[format].batch)
    start = replace(start, batch=start.batch or default.batch)
    best = start
    # Reads the weights into memory, so that no later run has to.
    rate = working(start).tokens_per_second
    latest: Probe | None = None
    findings: list[TuneFinding] = []
    for knob in knobs(format) if chosen is None else chosen:
        if getattr(start, knob.field) != getattr(default, knob.field):
            kept = profile.shown(knob.field, getattr(start, knob.field))
            say(f"{knob.field} {kept}, as asked for")
            continue
        for value in knob.candidates(device, best):
            beaten = [one.before for one in findings if one.taken and one.field == knob.field]
            if value in (getattr(best, knob.field), *beaten):
                continue
            latest = latest or working(best)
            made, latest = compare(measure, working, best, latest, knob, value, rounds)
            findings.append(made)
            say(_line(made))
            if made.taken:
                best = replace(best, **{knob.field: value})
                rate = made.tokens_per_second or rate
            else:
                rate = made.tokens_per_second_before or rate
    return Tuned(best, rate, tuple(findings))


def compare(
    measure: Measure,
    working: Measure,
    best: EngineSettings,
    latest: Probe,
    knob: Knob,
    value: Any,
    rounds: int,
) -> tuple[TuneFinding, Probe | None]:
    """Measure `value` and `best` in turns; `latest` is the last run of `best`.

    `working` measures what must not fail, and raises `WorkError` where it does.
    Each run of the value is held against those of `best` just before and just after it, so that a
    machine that slows down or speeds up meanwhile favours neither. Returns the finding and the
    last run of `best`, None where something else has run since.
    """
    candidate, before = replace(best, **{knob.field: value}), getattr(best, knob.field)
    old, new = [latest], [measure(candidate)]
    hopeless = new[0].questions_per_second < HOPELESS * latest.questions_per_second
    while not new[-1].error and not hopeless:
        old.append(working(best))
        if len(new) == rounds:
            break
        new.append(measure(candidate))
    if error := new[-1].error:
        return TuneFinding(knob.field, value, before, error), None
    ratios = [
        run.questions_per_second / math.sqrt(a.questions_per_second * b.questions_per_second)
        for run, a, b in zip(new, old, old[1:] or old, strict=False)
    ]
    ratio = median(ratios)
    moved = max(drift(a, b) for a, b in zip(new, old, strict=False))
    # On a busy machine half of all medians are above 1 by chance; all rounds seldom are.
    faster, same = ratio > GAIN and min(ratios) > 1, moved <= knob.drift
    verdict = "not faster"
    if faster:
        verdict = "taken" if same else f"faster, but moves answers by over {knob.drift} nats"
    made = TuneFinding(
        knob.field,
        value,
        before,
        verdict,
        faster and same,
        questions_per_second=median(run.questions_per_second for run in new),
        questions_per_second_before=median(run.questions_per_second for run in old),
        tokens_per_second=median(run.tokens_per_second for run in new),
        tokens_per_second_before=median(run.tokens_per_second for run in old),
        ratio=ratio,
        drift=moved,
    )
    return made, None if hopeless or made.taken else old[-1]


def drift(one: Probe, other: Probe) -> float:
    """Return the largest difference of a label's log-probability, in nats."""
    pairs = (
        (a, b)
        for these, those in zip(one.logprobs, other.logprobs, strict=True)
        for a, b in zip(these, those, strict=True)
    )
    # Equal infinities have no difference that is a number.
    return max((abs(a - b) for a, b in pairs if a != b), default=0.0)


def table(findings: Sequence[TuneFinding]) -> str:
    """Return the findings as aligned lines under a header."""
    header = ("knob", "value", "before", "questions/s", "before", "ratio", "drift", "verdict")
    rows = [header, *map(_cells, findings)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(header) - 1)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]
    return "\n".join([*lines, NOTE])


def _line(made: TuneFinding) -> str:
    name, value, before, rate, rate_before, _, _, verdict = _cells(made)
    rates = f"{rate} questions/s, {before}: {rate_before}; " if made.ratio else ""
    return f"{name} {value}: {rates}{verdict}"


def _cells(made: TuneFinding) -> tuple[str, ...]:
    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    return (
        made.field,
        profile.shown(made.field, made.value),
        profile.shown(made.field, made.before),
        number(made.questions_per_second, 2),
        number(made.questions_per_second_before, 2),
        number(made.ratio, 2),
        number(made.drift, 4),
        made.verdict,
    )


# Measuring


def answered(subject: Subject, settings: EngineSettings, opener: bundle.Opener) -> Probe:
    """Open the engine, answer the questions once and return how fast that was."""
    with opened(subject, settings, opener) as answerer:
        ask(answerer.scorer, subject.questions[:WARM], subject.category, picked)
        done = ask(answerer.scorer, subject.questions, subject.category, picked)
    return Probe(
        done.questions_per_second,
        done.tokens_per_second,
        tuple(score.logprobs for score in done.scores),
    )


class InChild:
    """A `Measure` that answers in a new process each time; a crash there is an error of the probe.

    A process that takes many times longer than the others is ended.
    """

    def __init__(self, subject: Subject, opener: bundle.Opener, first: float = FIRST) -> None:
        self._subject, self._opener = subject, opener
        self._first, self._longest = first, 0.0

    def __call__(self, settings: EngineSettings) -> Probe:
        """Return what `answered` returns, or an error."""
        limit = self._first if not self._longest else TIMES * self._longest + MORE
        began = time.monotonic()
        try:
            made = in_child(limit, answered, self._subject, settings, self._opener)
        except (InputError, WorkError) as error:
            return Probe(error=str(error))
        self._longest = max(self._longest, time.monotonic() - began)
        return made


def device(format: str) -> Device:
    """Return what this machine has. The engine is asked in a process: drivers may crash too."""
    # Where no layers can go to a GPU, nobody needs to know whether there is one.
    return Device(cores(), "gpu_layers" in FORMATS[format].tuned and in_child(FIRST, _gpu))


def _gpu() -> bool:
    llama = extras.need("llama_cpp.llama_cpp", "llama")
    return bool(llama.llama_supports_gpu_offload())
