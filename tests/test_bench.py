"""`tel-bench`: what it measures, how it tunes, and what a crash leaves behind."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest

from tel_edge.runtime import processors
from tel_edge.runtime.answerer import Answerer
from tel_edge.runtime.bundles import bundle, formats
from tel_edge.runtime.commands import bench
from tel_edge.runtime.device import child, memory, profile
from tel_edge.runtime.engines.engine import (
    EngineSettings,
    Generation,
    Item,
    LoraFile,
    Sampling,
    Score,
)
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.measuring import measurement, probe, tune
from tel_edge.runtime.measuring.tune import Device, Knob, Probe
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.prompt import render
from tel_edge.runtime.questions.scoring import Scorer

Command = Callable[..., tuple[int, str, str]]
SAFE = EngineSettings()
ONE = CATEGORIES["oranbench"]


class Clock:
    """Stands for the module `time` where the command measures: only engines make it go on."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


CLOCK = Clock()


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (probe, measurement):
        monkeypatch.setattr(module, "time", CLOCK)


class Engine:
    """Bytes are tokens; every call of `score` takes the seconds of `cost` for the settings."""

    version = "fake 1"
    kv_bytes_per_token = None

    def __init__(
        self, path: Path, adapters: Mapping[str, LoraFile], settings: EngineSettings
    ) -> None:
        CLOCK.now += 0.100
        self.path = path
        self.settings, self.adapters, self.context = settings, adapters, settings.context
        self.timing = {"load": 60.0, "context": 30.0}
        self.calls: list[tuple[Any, ...]] = []
        self.scored = 0

    def cost(self) -> float:
        return 0.002

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode())

    def score(self, items: Sequence[Item], adapter: str | None) -> Iterator[tuple[int, Score]]:
        self.calls.append(("score", len(items), adapter))
        CLOCK.now += self.cost()
        # Last first: decodes end in any order.
        for at, item in reversed(list(enumerate(items))):
            self.scored += 1
            size = len(item.labels)
            tokens = len(item.prompt)
            yield at, Score((math.log(1 / size),) * size, tokens, tokens - 10, 0.0)

    def generate(
        self, prompts: Sequence[tuple[Sequence[int], Sampling]], adapter: str | None
    ) -> Iterator[tuple[int, Generation]]:
        raise NotImplementedError

    def load_adapter(self, name: str) -> None:
        assert name in self.adapters
        CLOCK.now += 0.003
        self.calls.append(("load", name))

    def use(self, name: str | None) -> None:
        CLOCK.now += 0.0005
        self.calls.append(("use", name))

    def plain_rate(self, adapter: str | None, tokens: int = 512) -> float:
        self.calls.append(("plain", adapter, tokens))
        return 1e6

    def memory_split(self) -> dict[str, int]:
        return {"weights": 700, "kv": 50, "compute": 20, "output": 3}

    def close(self) -> None:
        self.calls.append(("close",))


class OnnxIsFaster(Engine):
    """As engines of both formats are: 1 ms and 2 ms, and ONNX tells little about its memory."""

    def cost(self) -> float:
        return 0.001 if self.path.suffix == ".onnx" else 0.002

    def memory_split(self) -> dict[str, int]:
        return {"kv": 60, "adapters": 4} if self.path.suffix == ".onnx" else super().memory_split()


class GetsSlower(Engine):
    """All are the same, and every engine is 1 % slower than the one before."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        SLOWER.append(0.002 * (1 + len(SLOWER) / 100))
        self.seconds = SLOWER[-1]

    def cost(self) -> float:
        return self.seconds


SLOWER: list[float] = []


class RefusesOnnx(Engine):
    def score(self, items: Sequence[Item], adapter: str | None) -> Iterator[tuple[int, Score]]:
        if self.path.suffix == ".onnx":
            raise InputError("no\n room")
        return super().score(items, adapter)


class LikesSmallBatches(Engine):
    def cost(self) -> float:
        return {128: 0.004, 256: 0.001}.get(self.settings.batch, 0.008)


class IsInterrupted(Engine):
    def score(self, items: Sequence[Item], adapter: str | None) -> Iterator[tuple[int, Score]]:
        if self.settings.batch == 256:
            raise KeyboardInterrupt
        return super().score(items, adapter)


class DiesOfExtraBuffers(Engine):
    def cost(self) -> float:
        if self.settings.extra_buffers:
            print("pages of native noise", flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().cost()


def engine(settings: EngineSettings = SAFE, kind: type[Engine] = Engine) -> Engine:
    return kind(Path("model"), {"oranbench": LoraFile(Path, "d")}, settings)


# The questions


def test_questions_are_the_same_everywhere_and_all_different() -> None:
    made = probe.questions(ONE, 300)
    assert probe.questions(ONE, 10) == made[:10]
    assert len({render(question) for question in made}) == 300
    assert {len(question.choices) for question in made} == {4}
    # Rates of two machines can be compared only if both answered the same.
    texts = "".join(map(render, made[:64]))
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "4161e373d5bf61ef"


def test_questions_are_as_long_as_real_ones() -> None:
    lengths = [len(render(question).split()) for question in probe.questions(ONE, 100)]
    assert 40 < min(lengths) < max(lengths) < 100


@pytest.mark.parametrize("name", CATEGORIES)
def test_every_category_has_questions_of_its_own_form(name: str) -> None:
    (question,) = probe.questions(CATEGORIES[name], 1)
    assert question.category == name
    assert question.choices == CATEGORIES[name].labels or len(question.choices) == 4


# One pass


def test_a_pass_consumes_everything_and_keeps_the_order() -> None:
    asked, made, concluded = probe.questions(ONE, 9), engine(), []
    done = probe.ask(Scorer(made), asked, None, lambda q, score: concluded.append(q.id))
    assert made.scored == len(done.scores) == 9
    assert sorted(concluded) == sorted(question.id for question in asked)
    assert [score.tokens for score in done.scores] == [len(render(q).encode()) for q in asked]
    computed = sum(score.tokens - 10 for score in done.scores)
    assert done.tokens_per_second == pytest.approx(computed / done.seconds)
    assert done.questions_per_second == pytest.approx(9 / done.seconds)


def test_a_question_without_a_score_is_no_fast_question() -> None:
    class Forgets(Engine):
        def score(self, items: Sequence[Item], adapter: str | None) -> Iterator[tuple[int, Score]]:
            yield from list(super().score(items, adapter))[1:]

    with pytest.raises(WorkError, match="1 of 9 questions got no score"):
        probe.ask(Scorer(engine(kind=Forgets)), probe.questions(ONE, 9), None, probe.picked)


def test_a_question_that_does_not_fit_ends_the_measuring() -> None:
    small = engine(replace(SAFE, context=20))
    with pytest.raises(InputError, match=r"question probe-0: the prompt has \d+ tokens"):
        probe.ask(Scorer(small), probe.questions(ONE, 9), None, probe.picked)


# Measuring


def test_measure_asks_everything_of_one_engine_and_closes_it() -> None:
    opened: list[Engine] = []

    def opener() -> Answerer:
        opened.append(engine(kind=LikesSmallBatches))
        return Answerer(opened[-1])

    found = measurement.measure(opener, probe.questions(ONE, 16), "oranbench", repeat=2)
    (made,) = opened
    assert made.calls[:2] == [("load", "oranbench"), ("score", 1, "oranbench")]
    assert made.calls[-1] == ("close",)
    assert made.calls.count(("score", 4, "oranbench")) == 1
    assert made.calls.count(("score", 16, "oranbench")) == 4
    assert made.calls.count(("plain", "oranbench", 512)) == 2
    assert found.questions_per_second == pytest.approx(16 / 0.008)
    assert found.maj_per_second == pytest.approx(16 / 0.008)
    assert found.share == pytest.approx(found.tokens_per_second / 1e6)
    assert found.tokens_per_question == found.computed_per_question + 10
    assert asdict(found.first_answer) == pytest.approx(
        {"total_ms": 111, "checks_ms": 10, "load_ms": 60, "context_ms": 30, "adapter_ms": 3,
         "prefill_ms": 8}
    )  # fmt: skip
    assert found.swap is not None
    assert asdict(found.swap) == pytest.approx(
        {"load_ms": 3, "set_ms": 0.5, "prefill_ms": 8, "stay_ms": 8}
    )


def test_a_swap_comes_from_the_bare_backbone_to_another_question() -> None:
    made = engine()
    asks: list[tuple[str, str | None]] = []

    class Watched(Scorer):
        def many(self, asked: Any) -> Any:
            asks.extend((question.id, adapter) for question, adapter in asked)
            return super().many(asked)

    measurement._swap(made, Watched(made), probe.questions(ONE, 8), "oranbench", 2, 0.0)
    assert asks == [
        ("probe-0", None), ("probe-1", "oranbench"), ("probe-2", "oranbench"),
        ("probe-3", None), ("probe-4", "oranbench"), ("probe-5", "oranbench"),
    ]  # fmt: skip
    assert [call for call in made.calls if call[0] == "use"] == [("use", "oranbench")] * 2


def test_without_an_adapter_there_is_no_swap() -> None:
    made = engine(replace(SAFE, context=500))
    found = measurement.measure(lambda: Answerer(made), probe.questions(ONE, 1), None, repeat=1)
    assert found.swap is None
    assert {call[0] for call in made.calls} == {"score", "plain", "close"}
    # A plain prompt is no longer than what the cache holds.
    assert ("plain", None, 500) in made.calls
    assert "swap" not in bench.table(found)


def test_a_failure_closes_the_engine() -> None:
    made = engine(replace(SAFE, context=20))
    with pytest.raises(InputError):
        measurement.measure(lambda: Answerer(made), probe.questions(ONE, 8), None, repeat=1)
    assert made.calls[-1] == ("close",)


def test_the_rest_of_memory_is_what_no_buffer_explains() -> None:
    parts = {"weights": 700, "repacked": 40, "kv": 50, "compute": 20, "output": 3, "adapters": 7}
    now = memory.Memory(1000, 900, 2000)
    found = measurement._memory(parts, now, False)
    assert found.rest == 1000 - 40 - 50 - 20 - 3 - 7
    assert (found.weights, found.kv, found.anonymous, found.peak) == (700, 50, 1000, 2000)
    assert measurement._memory(parts | {"kv": 5000}, now, False).rest == 0
    copied = {"repacked": 700, "compute": 20}
    assert measurement._memory(copied, now, False).rest == 1000 - 720
    assert measurement._memory(parts, now, True).rest is None
    assert measurement._memory(parts, memory.Memory(None, None, 5), False).rest is None


@pytest.mark.parametrize("untold", ["weights", "compute"])
def test_without_the_engine_s_parts_there_is_no_rest(untold: str) -> None:
    parts = {name: 10 for name in ("weights", "kv", "compute", "adapters") if name != untold}
    found = measurement._memory(parts, memory.Memory(1000, 900, 2000), False)
    assert found.rest is None
    assert getattr(found, untold) is None
    assert (found.kv, found.anonymous) == (10, 1000)


def test_rounds_are_averaged_part_by_part() -> None:
    asked = probe.questions(ONE, 8)
    one, other = (
        measurement.measure(lambda: Answerer(engine(kind=GetsSlower)), asked, adapter, repeat=1)
        for adapter in ("oranbench", "oranbench")
    )
    made = measurement.averaged([one, other])
    assert measurement.averaged([one]) == one
    assert made.questions_per_second == pytest.approx(
        (one.questions_per_second + other.questions_per_second) / 2
    )
    assert made.first_answer.prefill_ms == pytest.approx(
        (one.first_answer.prefill_ms + other.first_answer.prefill_ms) / 2
    )
    assert (made.questions, made.memory.kv, made.memory.repacked) == (8, 50, None)
    assert made.swap is not None
    assert measurement.averaged([replace(one, swap=None)] * 2).swap is None


# Tuning


@dataclass
class Machine:
    """A `Measure`: seconds a question are a function of the settings, and so are answers."""

    seconds: Callable[[EngineSettings], float]
    answers: Callable[[EngineSettings], float] = lambda settings: -1.0
    dies: Callable[[EngineSettings], bool] = lambda settings: False
    asked: list[EngineSettings] = field(default_factory=list)

    def __call__(self, settings: EngineSettings) -> Probe:
        self.asked.append(settings)
        if self.dies(settings):
            return Probe(error="crashed (SIGSEGV)")
        rate = 1 / self.seconds(settings)
        return Probe(rate, 50 * rate, ((-2.0, self.answers(settings)), (-math.inf, -3.0)))


def tuned(machine: Machine, start: EngineSettings = SAFE, **kwargs: Any) -> tune.Tuned:
    return tune.tune(machine, start, Device(8, False), **kwargs)


def verdicts(found: tune.Tuned) -> dict[tuple[str, Any], str]:
    return {(made.field, made.value): made.verdict for made in found.findings}


def test_each_knob_goes_to_its_fastest_value() -> None:
    def seconds(settings: EngineSettings) -> float:
        threads = {1: 8.0, 4: 0.9, 7: 1.1}.get(settings.threads or 0, 1.3)
        batch = {128: 1.0, 256: 0.7, 1024: 0.6}.get(settings.batch, 0.8)
        return threads * batch * (0.5 if settings.extra_buffers else 1)

    found = tuned(Machine(seconds))
    assert found.settings == EngineSettings(threads=4, batch=1024, extra_buffers=True)
    assert found.tokens_per_second == pytest.approx(50 / (0.9 * 0.6 * 0.5))
    assert {part for part, said in verdicts(found).items() if said == "taken"} == {
        ("extra_buffers", True), ("threads", 4), ("batch", 256), ("batch", 1024)
    }  # fmt: skip


def test_a_crash_is_a_finding_and_the_search_goes_on() -> None:
    machine = Machine(
        lambda settings: 1 if settings.batch == 256 else 2,
        dies=lambda settings: settings.extra_buffers,
    )
    said: list[str] = []
    found = tuned(machine, say=said.append)
    assert found.settings == EngineSettings(batch=256)
    assert verdicts(found)["extra_buffers", True] == "crashed (SIGSEGV)"
    assert sum(settings.extra_buffers for settings in machine.asked) == 1
    assert "extra_buffers on: crashed (SIGSEGV)" in said
    (crash,) = (line for line in tune.table(found.findings).splitlines() if "SIGSEGV" in line)
    assert crash.split()[:4] == ["extra_buffers", "on", "off", "-"]


def test_safe_settings_that_fail_end_the_search() -> None:
    with pytest.raises(WorkError, match=r"engine fails with threads all, batch 512.*\ncrashed"):
        tuned(Machine(lambda settings: 1, dies=lambda settings: True))


def test_a_setting_that_worked_once_and_then_fails_is_never_kept() -> None:
    machine = Machine(lambda settings: 1 if settings.extra_buffers else 2)
    machine.dies = lambda settings: settings.extra_buffers and len(machine.asked) > 8
    with pytest.raises(WorkError, match="nothing is saved"):
        tuned(machine)


@pytest.mark.parametrize(("gain", "taken"), [(1.015, False), (1.025, True)])
def test_a_value_has_to_be_clearly_faster(gain: float, taken: bool) -> None:
    found = tuned(Machine(lambda settings: 1 if settings.batch == 256 else gain))
    assert (found.settings.batch == 256) is taken


def test_a_machine_that_slows_down_slows_both() -> None:
    """Each run takes 10 % longer than the one before, as under heat; no value differs."""
    machine = Machine(lambda settings: 1.1 ** len(machine.asked))
    for rounds in (1, 2, 3):
        found = tuned(machine, rounds=rounds)
        assert {made.verdict for made in found.findings} == {"not faster"}
        assert all(made.ratio == pytest.approx(1) for made in found.findings)


def test_runs_alternate_and_a_hopeless_value_is_not_tried_again() -> None:
    machine = Machine(lambda settings: 2 if settings.threads == 1 else 1)
    knob = next(knob for knob in tune.KNOBS if knob.field == "threads")
    tuned(machine, chosen=[replace(knob, candidates=lambda device, base: (1, 4))])
    assert [settings.threads for settings in machine.asked] == [
        None, None, 1, None, 4, None, 4, None, 4, None
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("moved", "verdict"),
    [(0.04, "taken"), (0.06, "faster, but moves answers by over 0.05 nats")],
)
def test_a_quantized_cache_must_not_move_answers(moved: float, verdict: str) -> None:
    machine = Machine(
        lambda settings: 1 if settings.kv == "Q8_0" else 2,
        lambda settings: -1.0 - (moved if settings.kv == "Q8_0" else 0),
    )
    found = tuned(machine)
    made = next(made for made in found.findings if made.field == "kv")
    assert made.verdict == verdict
    assert made.drift == pytest.approx(moved)
    assert made.ratio == pytest.approx(2)


def test_a_value_that_computes_wrong_is_not_taken() -> None:
    machine = Machine(
        lambda settings: 1 if settings.extra_buffers else 2,
        lambda settings: -9.0 if settings.extra_buffers else -1.0,
    )
    assert tuned(machine).settings == replace(SAFE, batch=512)


def test_what_was_asked_for_is_not_tuned() -> None:
    said: list[str] = []
    machine = Machine(lambda settings: 1 if settings.kv == "Q8_0" else 2)
    start = replace(SAFE, threads=3, flash=False)
    found = tuned(machine, start, say=said.append)
    assert {settings.threads for settings in machine.asked} == {3}
    # Without flash attention the engine quantizes no cache.
    assert not [made for made in found.findings if made.field in ("threads", "flash", "kv")]
    assert "threads 3, as asked for" in said
    assert "flash off, as asked for" in said


# Knob, device, settings beside it, candidates.
CANDIDATES: tuple[tuple[str, Device, EngineSettings, list[Any]], ...] = (
    ("threads", Device(1, False), SAFE, []),
    ("threads", Device(2, False), SAFE, [1]),
    ("threads", Device(8, False), SAFE, [1, 4, 7]),
    ("gpu_layers", Device(8, False), SAFE, []),
    ("gpu_layers", Device(8, True), SAFE, [0, -1]),
    ("extra_buffers", Device(8, False), SAFE, [False, True]),
    ("flash", Device(8, False), SAFE, [True, False]),
    ("flash", Device(8, False), replace(SAFE, kv="Q8_0"), [True]),
    ("kv", Device(8, False), SAFE, ["F16", "Q8_0"]),
    ("kv", Device(8, False), replace(SAFE, flash=False), []),
    ("batch", Device(8, False), SAFE, [128, 192, 256, 512, 1024]),
    ("batch", Device(8, False), replace(SAFE, context=300), [128, 192, 256]),
)


@pytest.mark.parametrize(("name", "device", "beside", "wanted"), CANDIDATES)
def test_candidates(name: str, device: Device, beside: EngineSettings, wanted: list[Any]) -> None:
    knob = next(knob for knob in tune.KNOBS if knob.field == name)
    assert list(knob.candidates(device, beside)) == wanted


def test_every_knob_can_be_saved() -> None:
    for format in formats.FORMATS:
        fields = [knob.field for knob in tune.knobs(format)]
        assert sorted(fields) == sorted(formats.FORMATS[format].tuned)
    assert tune.knobs("gguf") == tune.KNOBS
    assert all(isinstance(knob, Knob) and knob.reason for knob in tune.KNOBS)


def test_for_onnx_only_what_its_engine_knows_is_tried() -> None:
    machine = Machine(lambda settings: 1 if settings.batch == 256 else 2)
    found = tuned(machine, format="onnx")
    tried = {name: [m.value for m in found.findings if m.field == name] for name in profile.RULES}
    assert {name: values for name, values in tried.items() if values} == {
        "threads": [1, 4, 7], "batch": [128, 256, 512, 1024]
    }  # fmt: skip
    assert found.settings == EngineSettings(batch=256)
    with pytest.raises(WorkError, match="engine fails with threads all, batch 192\ncrashed"):
        tuned(Machine(lambda settings: 1, dies=lambda settings: True), format="onnx")


def test_nobody_looks_for_a_gpu_that_no_layers_can_go_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "in_child", lambda limit, work: True)
    assert tune.device("onnx") == Device(processors.cores(), False)
    assert tune.device("gguf") == Device(processors.cores(), True)


# Processes


def test_a_process_answers_or_says_why_not(tmp_path: Path) -> None:
    broken = tmp_path / "profile.json"
    broken.write_text("{")
    assert child.in_child(30, math.sqrt, 9.0) == 3
    assert child.in_child(None, math.sqrt, 4.0) == 2
    with pytest.raises(WorkError, match="ValueError: math domain error"):
        child.in_child(30, math.sqrt, -1.0)
    with pytest.raises(InputError, match=r"profile.json: not JSON .* remove it, or write it anew"):
        child.in_child(30, profile.settings, SAFE, "a", "F16", "gguf", broken)
    with pytest.raises(WorkError, match=r"crashed \(exit code 3\)"):
        child.in_child(30, os._exit, 3)


def test_a_process_that_hangs_is_ended() -> None:
    began = time.monotonic()
    with pytest.raises(WorkError, match="took longer than 0 s"):
        child.in_child(0.4, time.sleep, 60)
    assert time.monotonic() - began < 10


def test_native_code_that_crashes_is_an_error_of_the_probe(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = fake.bundle(tmp_path)
    what = probe.Subject(
        tmp_path,
        made,
        bundle.backbone_file(tmp_path, made, None),
        bundle.adapter_file(tmp_path, made, "oranbench"),
        probe.questions(ONE, 8),
    )
    measure = tune.InChild(what, DiesOfExtraBuffers)
    assert measure(replace(SAFE, extra_buffers=True)) == Probe(error="crashed (SIGSEGV)")
    good = measure(SAFE)
    assert good.error == ""
    assert good.questions_per_second > 0
    assert [len(values) for values in good.logprobs] == [4] * 8
    assert capfd.readouterr() == ("", "")


# The command


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a bundle, and a place for a profile."""
    fake.bundle(tmp_path / "bundles" / "tel-nano", adapters=("oranbench", "3gpp_tsg"))
    monkeypatch.setenv("TEL_PROFILE", str(tmp_path / "profile.json"))
    return tmp_path


@pytest.fixture
def tel_bench(home: Path, run_command: Command) -> Command:
    def made(*argv: str, opener: Any = Engine) -> tuple[int, str, str]:
        work = partial(bench.work, opener=opener, isolated=False)
        return run_command(bench.parser(), work, "--workspace", str(home), *argv)

    return made


def test_the_command_measures_with_safe_settings(tel_bench: Command) -> None:
    code, out, err = tel_bench("--questions", "16", "--repeat", "1", "--json")
    assert code == 0
    *lines, last = out.splitlines()
    assert lines[0].startswith("questions/s ")
    # The bundle's order, in which the manifest sorts its adapters.
    assert err.splitlines()[0] == "tel-nano Q4_K_M, 3gpp_tsg adapter, 16 questions"
    assert "nothing tuned, so safe settings: threads all, batch auto" in err
    document = json.loads(last)
    assert document["adapter"] == "3gpp_tsg"
    assert document["questions"] == 16
    assert document["settings"]["extra_buffers"] is False
    assert set(document["swap"]) == {"load_ms", "set_ms", "prefill_ms", "stay_ms"}
    assert document["memory"]["weights"] == 700


def test_tuning_saves_what_measuring_then_uses(tel_bench: Command, home: Path) -> None:
    code, out, err = tel_bench("--tune", "--questions", "8", "--repeat", "1", "--json",
                               opener=LikesSmallBatches)  # fmt: skip
    assert code == 0
    *lines, last = out.splitlines()
    assert lines[0].split() == [
        "knob", "value", "before", "questions/s", "before", "ratio", "drift", "verdict"
    ]  # fmt: skip
    assert lines[-1].startswith(f"saved in {home / 'profile.json'} for tel-nano/Q4_K_M: threads ")
    assert "batch 256" in lines[-1]
    assert "batch 128: 2000.00 questions/s, 512: 1000.00; taken" in err
    assert "batch 256: 8000.00 questions/s, 128: 2000.00; taken" in err
    assert "batch 1024: 1000.00 questions/s, 256: 8000.00; not faster" in err
    document = json.loads(last)
    assert document["settings"]["batch"] == 256
    assert {finding["field"] for finding in document["findings"]} >= {"batch", "kv", "flash"}
    saved = profile.read(home / "profile.json")
    assert saved is not None
    assert list(saved.entries) == ["tel-nano/Q4_K_M"]
    assert saved.entries["tel-nano/Q4_K_M"].tokens_per_second > 0
    assert saved.entries["tel-nano/Q4_K_M"].engine == profile.engine("gguf")
    code, out, err = tel_bench("--questions", "8", "--repeat", "1", "--json")
    assert code == 0
    assert f"settings of {home / 'profile.json'}: threads " in err
    assert json.loads(out.splitlines()[-1])["settings"]["batch"] == 256


def test_an_interrupt_leaves_no_half_profile(tel_bench: Command, home: Path) -> None:
    code, _, err = tel_bench("--tune", "--questions", "8", opener=IsInterrupted)
    assert code == 130
    assert "interrupted" in err
    assert sorted(path.name for path in home.iterdir()) == ["bundles"]


def test_a_damaged_profile_stops_measuring_and_not_tuning(tel_bench: Command, home: Path) -> None:
    (home / "profile.json").write_text("{")
    code, _, err = tel_bench("--questions", "8")
    assert code == 2
    assert "profile.json: not JSON" in err
    code, _, err = tel_bench("--tune", "--questions", "8", "--repeat", "1")
    assert code == 0
    assert "it is replaced" in err
    assert profile.read(home / "profile.json") is not None


def test_questions_of_a_file_are_those_of_the_category(tel_bench: Command, home: Path) -> None:
    row = {"question": "Why?", "choices": ["a", "b"], "category": "oranbench"}
    rows = [row | {"category": "teleqna"}] + [row | {"question": f"Why {n}?"} for n in range(12)]
    file = home / "asked.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ("--jsonl", str(file), "--category", "oranbench", "--repeat", "1", "--json")
    code, out, _ = tel_bench(*argv)
    assert code == 0
    assert json.loads(out.splitlines()[-1])["questions"] == 12
    assert json.loads(tel_bench(*argv, "--questions", "9")[1].splitlines()[-1])["questions"] == 9
    file.write_text(json.dumps(row) + "\n{\n")
    code, _, err = tel_bench(*argv)
    assert code == 2
    assert f"{file}: line 2: not JSON" in err


def test_a_bundle_without_adapters_is_measured_bare(tel_bench: Command, home: Path) -> None:
    fake.bundle(home / "bare", adapters=())
    code, out, err = tel_bench("--bundle", str(home / "bare"), "--questions", "8", "--json")
    assert code == 0
    assert "the bundle has no adapter: the bare backbone is measured" in err
    assert json.loads(out.splitlines()[-1])["adapter"] is None


# Arguments, exit code, what is said on stderr.
COMMANDS: tuple[tuple[list[str], int, str], ...] = (
    (["--questions", "0"], 2, "argument --questions: '0' is no whole number above 0"),
    (["--questions", "7"], 2, "7 questions; 8 or more are needed to measure anything"),
    (["--category", "poetry"], 2, "no adapter for poetry"),
    (["--category", "poetry", "--no-adapter"], 2, "unknown category 'poetry'"),
    (["--category", "teleqna"], 2, "no adapter for teleqna (there: 3gpp_tsg oranbench)"),
    (["--quant", "Q8_0"], 2, "no Q8_0 backbone (there: F16 Q4_K_M)"),
    (["--jsonl", "nothing.jsonl"], 2, "nothing.jsonl: No such file or directory"),
    (["--context", "40"], 2, "question probe-0: the prompt has"),
    (["--quant", "F16,"], 2, "argument --quant: 'F16,' has an empty name"),
    (["--quant", "F16,int4"], 2, "no int4 backbone (there: F16 Q4_K_M)"),
    (["--quant", "F16,Q4_K_M", "--context", "40"], 2, "question probe-0: the prompt has"),
    (
        ["--tune", "--quant", "F16,Q4_K_M"],
        2,
        "--tune tunes one variant at a time; pass --quant F16",
    ),
)


@pytest.mark.parametrize(("argv", "code", "said"), COMMANDS)
def test_wrong_usage(argv: list[str], code: int, said: str, tel_bench: Command) -> None:
    found, out, err = tel_bench("--quiet", *argv)
    assert (found, out) == (code, "")
    assert said in err
    assert err.startswith("tel-bench: ")


def test_an_engine_that_tells_nothing_cannot_be_measured(tel_bench: Command) -> None:
    def silent(*given: Any) -> Any:
        return argparse.Namespace(version="other 1")

    code, _, err = tel_bench(opener=silent)
    assert code == 2
    assert "other 1 cannot be measured; a GGUF or ONNX bundle is needed" in err


# Several variants


@pytest.fixture
def both(home: Path) -> Path:
    """The workspace's bundle, with ONNX beside GGUF."""
    folder = home / "bundles" / "tel-nano"
    fake.onnx(folder)
    return folder


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The formats whose engine is installed, both if nothing is taken out."""
    there = {"gguf", "onnx"}
    monkeypatch.setattr(formats.Format, "installed", lambda self: self.name in there)
    return there


@pytest.mark.usefixtures("both", "installed")
def test_the_smallest_of_each_format_are_compared_in_one_table(tel_bench: Command) -> None:
    code, out, err = tel_bench("--questions", "8", "--repeat", "1", "--json", opener=OnnxIsFaster)
    assert code == 0
    head, first, *lines, verdict, last = out.splitlines()
    assert head.split() == ["Q4_K_M", "(gguf)", "int4", "(onnx)"]
    assert first.split() == ["questions/s", "4,000.00", "8,000.00"]
    assert verdict == (
        "faster on this machine: int4 (onnx), 8,000.00 questions/s, 2.00 times Q4_K_M (gguf)"
    )
    shown = {line[:20].strip(): line[20:].split() for line in lines}
    assert shown["KV cache"] == ["0.0", "MiB", "0.0", "MiB"]
    assert shown["compute"] == ["0.0", "MiB", "-"]
    assert shown["rest"][-1] == "-"
    # The rows are those of one variant.
    alone = tel_bench("--questions", "8", "--repeat", "1", "--quant", "int4")[1].splitlines()
    assert [line[:20].strip() for line in alone] == ["questions/s", *shown]
    said = err.splitlines()
    # Of the bundle's two adapters, the one that both formats have.
    assert said[0] == "tel-nano Q4_K_M and int4, oranbench adapter, 8 questions"
    assert said[1].startswith("Q4_K_M (gguf): nothing tuned, so safe settings: threads all, batch")
    assert said[2] == "int4 (onnx): nothing tuned, so safe settings: threads all, batch auto"
    assert said[3:] == [
        "Q4_K_M (gguf): 4,000.00 questions/s",
        "int4 (onnx): 8,000.00 questions/s",
    ]
    document = json.loads(last)
    assert set(document) == {"variants", "fastest"}
    assert document["fastest"] == "int4"
    assert [one["quant"] for one in document["variants"]] == ["Q4_K_M", "int4"]
    engines = [one["engine"] for one in document["variants"]]
    assert engines == [profile.engine("gguf"), profile.engine("onnx")]
    _, out, _ = tel_bench("--questions", "8", "--repeat", "1", "--quant", "F16", "--json")
    assert set(document["variants"][0]) == set(json.loads(out.splitlines()[-1]))


# What is installed, arguments, what is measured.
CHOSEN: tuple[tuple[set[str], list[str], list[str]], ...] = (
    ({"gguf"}, [], ["Q4_K_M"]),
    ({"onnx"}, [], ["int4"]),
    (set(), [], ["Q4_K_M"]),
    ({"gguf", "onnx"}, [], ["Q4_K_M", "int4"]),
    ({"gguf", "onnx"}, ["--format", "onnx"], ["int4"]),
    ({"gguf", "onnx"}, ["--format", "gguf"], ["Q4_K_M"]),
    ({"gguf", "onnx"}, ["--quant", "fp32"], ["fp32"]),
    ({"gguf", "onnx"}, ["--tune"], ["Q4_K_M"]),
    ({"gguf", "onnx"}, ["--tune", "--quant", "int4,int4"], ["int4"]),
    ({"gguf", "onnx"}, ["--quant", "int4, F16,fp32,int4"], ["int4", "F16", "fp32"]),
    ({"gguf", "onnx"}, ["--quant", "fp32,int4", "--format", "onnx"], ["fp32", "int4"]),
)


@pytest.mark.parametrize(("there", "argv", "wanted"), CHOSEN)
def test_what_is_measured(
    there: set[str], argv: list[str], wanted: list[str], both: Path, installed: set[str]
) -> None:
    installed.intersection_update(there)
    args = bench.parser().parse_args(["--bundle", str(both), "--quiet", *argv])
    whats = bench.subjects(args)
    assert [what.backbone.quant for what in whats] == wanted
    assert len({(what.category, what.questions) for what in whats}) == 1
    assert all(what.adapter and what.adapter.format == what.backbone.format for what in whats)


@pytest.mark.usefixtures("installed")
def test_an_adapter_that_one_format_lacks_is_used_for_none(tel_bench: Command, home: Path) -> None:
    folder = home / "bundles" / "tel-nano"
    fake.onnx(folder, adapters=())
    code, out, err = tel_bench("--questions", "8", "--repeat", "1", "--json")
    assert code == 0
    assert "no adapter is there in every format: the bare backbones are measured" in err
    assert "adapter swap" not in out
    document = json.loads(out.splitlines()[-1])
    assert [one["adapter"] for one in document["variants"]] == [None, None]
    code, _, err = tel_bench("--category", "oranbench")
    assert code == 2
    assert "tel-export --format onnx --adapter oranbench" in err


def test_a_machine_that_slows_down_favours_neither(
    tel_bench: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("test_bench.SLOWER", [])
    opened: list[str] = []

    def opener(path: Path, *given: Any) -> Engine:
        opened.append(path.name)
        return GetsSlower(path, *given)

    argv = ("--quant", "F16,Q4_K_M", "--questions", "8", "--json", "--repeat")
    code, out, _ = tel_bench(*argv, "3", opener=opener)
    assert code == 0
    assert opened == [f"nano-{quant}.gguf" for quant in ("F16", "Q4_K_M", "Q4_K_M", "F16")]
    first, other = json.loads(out.splitlines()[-1])["variants"]
    assert first["questions_per_second"] == pytest.approx(other["questions_per_second"], rel=1e-3)
    assert "no clear difference on this machine: " in out
    opened.clear()
    assert tel_bench(*argv, "1", opener=opener)[0] == 0
    assert opened == ["nano-F16.gguf", "nano-Q4_K_M.gguf"]


def test_the_fastest_of_three_is_told_beside_the_next() -> None:
    assert bench.verdict({"a": 2.0, "b": 5.0, "c": 4.0}) == (
        "fastest on this machine: b, 5.00 questions/s, 1.25 times c"
    )
    assert bench.verdict({"a": 2.0, "b": 2.02}).startswith("no clear difference on this machine: b")


def test_each_variant_has_a_process_of_its_own(
    both: Path, run_command: Command, installed: set[str]
) -> None:
    before = CLOCK.now
    argv = ["--bundle", str(both), "--questions", "8", "--repeat", "1", "--quiet", "--json"]
    code, out, _ = run_command(bench.parser(), partial(bench.work, opener=OnnxIsFaster), *argv)
    assert code == 0
    assert [one["quant"] for one in json.loads(out.splitlines()[-1])["variants"]] == [
        "Q4_K_M", "int4"
    ]  # fmt: skip
    # This process has opened no engine.
    assert CLOCK.now == before
    work = partial(bench.work, opener=RefusesOnnx)
    code, out, err = run_command(bench.parser(), work, *argv, "--quant", "int4,fp32")
    assert (code, out, err) == (2, "", "tel-bench: int4 (onnx): question probe-0: no room\n")


@pytest.mark.usefixtures("both")
def test_a_damaged_file_stops_before_anything_is_measured(tel_bench: Command, both: Path) -> None:
    (both / "nano-int4.onnx.data").write_bytes(b"")
    code, out, err = tel_bench("--quant", "Q4_K_M,int4", opener=None)
    assert (code, out) == (2, "")
    assert "nano-int4.onnx.data: 0 bytes" in err


def test_a_missing_engine_is_told_before_anything_is_measured(
    tel_bench: Command, both: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.modules", {**sys.modules, "onnxruntime": None})
    code, out, err = tel_bench("--quant", "Q4_K_M,int4", opener=bundle.native)
    assert (code, out) == (2, "")
    assert "onnxruntime is not installed; run: pip install 'tel-edge[onnx]'" in err


def test_tuning_onnx_saves_an_entry_beside_the_others(
    tel_bench: Command, both: Path, home: Path
) -> None:
    for quant in ("Q4_K_M", "int4"):
        code, out, err = tel_bench("--tune", "--quant", quant, "--questions", "8", "--repeat", "1",
                                   opener=LikesSmallBatches)  # fmt: skip
        assert code == 0
    assert out.splitlines()[-1].startswith(
        f"saved in {home / 'profile.json'} for tel-nano/int4: threads "
    )
    assert out.splitlines()[-1].endswith(", batch 256")
    assert "kv" not in err
    saved = profile.read(home / "profile.json")
    assert saved is not None
    assert {name: made.engine for name, made in saved.entries.items()} == {
        "tel-nano/Q4_K_M": profile.engine("gguf"), "tel-nano/int4": profile.engine("onnx")
    }  # fmt: skip
    code, out, err = tel_bench("--quant", "int4,Q4_K_M", "--questions", "8", "--repeat", "1")
    assert code == 0
    for title in ("int4 (onnx)", "Q4_K_M (gguf)"):
        assert f"{title}: settings of {home / 'profile.json'}: threads " in err


def test_a_profile_that_cannot_be_written_stops_before_the_work(
    tel_bench: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEL_PROFILE", str(home))
    code, _, err = tel_bench("--tune", "--quiet", opener=None)
    assert code == 2
    assert "no plain file, so no profile" in err
