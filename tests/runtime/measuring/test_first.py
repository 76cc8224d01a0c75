"""The first start on an ARM processor: measured once, kept if it is faster, and never elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_engine as fake
import fake_machines as fakes
import pytest

from tel_edge.runtime.bundles import formats
from tel_edge.runtime.device import power, profile
from tel_edge.runtime.device.power import Power
from tel_edge.runtime.engines.engine import EngineSettings
from tel_edge.runtime.measuring import first
from tel_edge.runtime.measuring.tune import Probe

SAFE = EngineSettings()


class Ways:
    """A `measure`: questions/s with plain and with repacked weights, and what was asked."""

    def __init__(self, plain: float, copied: float, moved: float = 0.0, error: str = "") -> None:
        self.rates, self.moved, self.error = {False: plain, True: copied}, moved, error
        self.asked: list[EngineSettings] = []

    def __call__(self, subject: Any) -> Callable[[EngineSettings], Probe]:
        self.questions = subject.questions

        def run(settings: EngineSettings) -> Probe:
            self.asked.append(settings)
            if settings.extra_buffers and self.error:
                return Probe(error=self.error)
            rate = self.rates[settings.extra_buffers]
            change = self.moved if settings.extra_buffers else 0.0
            return Probe(rate, 90 * rate, ((-1.0 - change, -2.0),))

        return run


class Device:
    """A device with a bundle; `start` is its first start."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder, self.said = tmp_path / "bundle", []
        fake.bundle(self.folder)
        self.system = fakes.machine("pi5", tmp_path / "pi5")

    def start(self, ways: Ways, settings: EngineSettings = SAFE, **more: Any) -> EngineSettings:
        given = {"system": self.system, "measure": ways, **more}
        first.start(self.folder, None, None, settings, self.said.append, **given)
        return profile.settings(settings, "tel-nano", "Q4_K_M", "gguf")[0]


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.setenv("TEL_PROFILE", str(tmp_path / "profile.json"))
    monkeypatch.setattr(formats.Format, "installed", lambda self: self.name == "gguf")
    return Device(tmp_path)


def test_faster_ones_are_kept_and_measured_once(device: Device, tmp_path: Path) -> None:
    ways = Ways(1.0, 2.5)
    assert device.start(ways).extra_buffers
    assert [settings.extra_buffers for settings in ways.asked] == [False, True]
    assert len(ways.questions) == first.QUESTIONS
    assert device.said == [
        "first start on this ARM processor: trying repacked weights (--no-tune leaves it out)",
        "repacked weights: 2.50 questions/s, plain ones 1.00; repacked ones are kept in "
        f"{tmp_path / 'profile.json'} (more: tel-bench --tune)",
    ]
    again = Ways(1.0, 2.5)
    assert device.start(again).extra_buffers
    assert again.asked == []
    assert len(device.said) == 2


OTHERS = (
    (Ways(1.0, 1.1), "1.10 questions/s"),
    (Ways(1.0, 9.0, moved=2.0), "9.00 questions/s"),
    (Ways(1.0, 9.0, error="crashed (SIGILL)"), "crashed (SIGILL)"),
)


@pytest.mark.parametrize(("ways", "said"), OTHERS)
def test_what_is_not_clearly_faster_or_computes_otherwise_is_not_taken(
    ways: Ways, said: str, device: Device
) -> None:
    assert not device.start(ways).extra_buffers
    assert f"repacked weights: {said}" in device.said[-1]
    assert "plain ones are kept" in device.said[-1]
    # That is known from now on too.
    again = Ways(1.0, 5.0)
    device.start(again)
    assert again.asked == []


def test_each_power_mode_is_measured(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    for mode, faster in (("15W", True), ("MAXN", False)):
        monkeypatch.setattr(power, "now", lambda _=None, mode=mode: Power(mode))
        assert device.start(Ways(1.0, 2.0 if faster else 1.0)).extra_buffers is faster
    made = profile.read(profile.location())
    assert made
    assert list(made.entries) == ["tel-nano/Q4_K_M at 15W", "tel-nano/Q4_K_M at MAXN"]


def test_nothing_is_measured_on_other_processors_or_for_a_gpu(
    device: Device, tmp_path: Path
) -> None:
    ways = Ways(1.0, 2.0)
    device.start(ways, system=fakes.machine("laptop", tmp_path / "laptop"))
    device.start(ways, EngineSettings(gpu_layers=-1))
    assert (ways.asked, device.said) == ([], [])


def test_nothing_is_measured_where_the_copy_has_no_room(device: Device) -> None:
    fakes.put(device.system.root, {"proc/meminfo": fakes.meminfo(900_000, 30_000)})
    ways = Ways(1.0, 2.0)
    device.start(ways)
    assert ways.asked == []


def test_nothing_is_measured_that_could_not_be_kept(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TEL_PROFILE", str(tmp_path / "file" / "profile.json"))
    ways = Ways(1.0, 2.0)
    first.start(device.folder, None, None, SAFE, device.said.append, device.system, ways)
    assert ways.asked == []
    [said] = device.said
    assert said.startswith("warning: nothing is measured on this first start: ")
    assert "set TEL_PROFILE to another path" in said


def test_what_was_asked_for_is_measured_and_not_kept(device: Device) -> None:
    ways = Ways(1.0, 2.0)
    found = device.start(ways, EngineSettings(threads=3, context=512))
    assert {(one.threads, one.context) for one in ways.asked} == {(3, 512)}
    assert found.threads == 3
    made = profile.read(profile.location())
    assert made
    [entry] = made.entries.values()
    assert (entry.threads, entry.extra_buffers) == (None, True)


def test_an_engine_that_fails_is_left_to_who_opens_it(device: Device) -> None:
    class Fails(Ways):
        def __call__(self, subject: Any) -> Callable[[EngineSettings], Probe]:
            return lambda settings: Probe(error="no room")

    assert device.start(Fails(1, 1)) == SAFE
    assert profile.read(profile.location()) is None
