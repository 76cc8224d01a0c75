"""The search for the fastest settings, and the processes that it goes on in."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import fake_engine as fake
import for_bench
import pytest
from for_bench import ONE, SAFE, Engine

from tel_edge.runtime import processors
from tel_edge.runtime.bundles import bundle, formats
from tel_edge.runtime.device import child, profile
from tel_edge.runtime.engines.engine import (
    EngineSettings,
)
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.measuring import probe, tune
from tel_edge.runtime.measuring.tune import Device, Knob, Probe

_clock = for_bench._clock


class DiesOfExtraBuffers(Engine):
    def cost(self) -> float:
        if self.settings.extra_buffers:
            print("pages of native noise", flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().cost()


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


def test_what_is_faster_in_some_rounds_only_is_noise() -> None:
    """Seconds of the runs in their order, the second value's every other one from the third on."""
    beat = iter([1.0, 1.0, 0.9, 1.0, 0.9, 1.0, 1.1, 1.0])
    machine = Machine(lambda settings: next(beat))
    knob = next(knob for knob in tune.KNOBS if knob.field == "batch")
    found = tuned(machine, chosen=[replace(knob, candidates=lambda device, base: (256,))])
    (made,) = found.findings
    assert made.ratio is not None
    assert made.ratio > tune.GAIN
    assert (made.verdict, found.settings.batch) == ("not faster", 512)


def test_a_value_that_was_beaten_is_not_tried_again() -> None:
    machine = Machine(lambda settings: {512: 1.0, 256: 0.5}.get(settings.batch, 2.0))
    knob = next(knob for knob in tune.KNOBS if knob.field == "batch")
    found = tuned(machine, chosen=[replace(knob, candidates=lambda device, base: (256, 512, 128))])
    assert [made.value for made in found.findings] == [256, 128]


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
