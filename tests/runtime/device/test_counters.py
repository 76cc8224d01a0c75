"""Energy counters of the system, and the rails of Jetson boards beside what tegrastats says."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import fake_machines as fakes
import pytest

from tel_edge.runtime.device import counters
from tel_edge.runtime.device.counters import Counters, Nvml, Rapl, rails, watts


def milliwatts(line: str) -> dict[str, int]:
    """What a line of tegrastats has for each rail, now."""
    return {name: int(now) for name, now in re.findall(r"(V\w+) (\d+)mW/\d+mW", line)}


# Milliwatts of the whole.
BOARDS = (
    ("orin", fakes.ORIN_TEGRASTATS, 4130),
    ("thor", fakes.THOR_TEGRASTATS, 26784),
    ("agx", fakes.AGX_TEGRASTATS, 3150 + 14310 + 4968),
)


@pytest.mark.parametrize(("name", "line", "whole"), BOARDS)
def test_rails_are_those_of_tegrastats(name: str, line: str, whole: int, tmp_path: Path) -> None:
    fakes.put(tmp_path, fakes.AGX if name == "agx" else fakes.FILES[name])
    found = rails(fakes.bare(tmp_path))
    wanted = milliwatts(line)
    assert set(found) == set(wanted)
    for rail, power in wanted.items():
        assert found[rail] * 1000 == pytest.approx(power, abs=2.5), rail
    power = watts(found)
    assert power
    assert power * 1000 == pytest.approx(whole, abs=2.5)


def test_other_sensors_are_no_rails(tmp_path: Path) -> None:
    fakes.put(tmp_path, fakes.FILES["pi5"])
    fakes.put(tmp_path, fakes.rails(9, "ina219", X=(5000, 1)))
    assert rails(fakes.bare(tmp_path)) == {}
    assert watts({}) is None


RAPL = "sys/class/powercap/intel-rapl:0"


def zone(root: Path, place: str, name: str, value: int, most: int = 1_000_000) -> None:
    files = {"name": name, "energy_uj": str(value), "max_energy_range_uj": str(most)}
    fakes.put(root, {f"{place}/{part}": text for part, text in files.items()})


def test_packages_and_memory_are_apart_and_a_counter_that_began_anew_goes_on(
    tmp_path: Path,
) -> None:
    for at, (name, value) in enumerate([("package-0", 900_000), ("package-1", 0)]):
        zone(tmp_path, f"sys/class/powercap/intel-rapl:{at}", name, value)
    zone(tmp_path, f"{RAPL}:0", "core", 5)
    zone(tmp_path, f"{RAPL}:1", "dram", 100)
    zone(tmp_path, "sys/class/powercap/intel-rapl:2", "psys", 7)
    made = Rapl(fakes.bare(tmp_path))
    assert made.since(1) == {"cpu": 0.0, "dram": 0.0}
    zone(tmp_path, RAPL, "package-0", 100_000)
    zone(tmp_path, "sys/class/powercap/intel-rapl:1", "package-1", 50_000)
    zone(tmp_path, f"{RAPL}:1", "dram", 40_100)
    found = made.since(1)
    assert found["cpu"] == pytest.approx(0.2 + 0.05)
    assert found["dram"] == pytest.approx(0.04)


def test_a_counter_that_may_not_be_read_is_none(tmp_path: Path) -> None:
    fakes.put(tmp_path, fakes.FILES["laptop"])
    assert Rapl(fakes.bare(tmp_path)).since(1) == {}


class Driver:
    """NVML's functions, over a list of millijoules; None is a GPU without the counter."""

    def __init__(self, *values: int | None, answers: bool = True) -> None:
        self.values, self.answers = list(values), answers

    def nvmlInit_v2(self) -> int:
        return 0 if self.answers else 9

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.values)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, at: int, handle: Any) -> int:
        handle._obj.value = at + 1
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: ctypes.c_void_p, value: Any) -> int:
        found = self.values[(handle.value or 0) - 1]
        if found is None:
            return 3
        value._obj.value = found
        return 0


def test_gpus_are_summed_and_one_without_a_counter_is_left_out() -> None:
    driver = Driver(1000, None, 5000)
    made = Nvml(driver)
    assert made.since(1) == {"gpu": 0.0}
    driver.values = [3000, None, 5500]
    assert made.since(1) == {"gpu": 2.5}
    # The driver was loaded anew.
    driver.values = [10, None, 6000]
    assert made.since(1) == {"gpu": 0.5}


@pytest.mark.parametrize("driver", [Driver(None), Driver(), Driver(1, answers=False)])
def test_without_a_counter_there_is_no_gpu(driver: Driver) -> None:
    assert Nvml(driver).since(1) == {}


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "LIBRARIES", ("libnothing-of-that-name.so.1",))
    assert Nvml().since(1) == {}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_power_is_added_up_over_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "PERIOD", 1e9)
    fakes.put(tmp_path, fakes.rails(1, "ina3221", VDD_IN=(5000, 1000)))
    clock = Clock()
    made = Counters(fakes.bare(tmp_path), Nvml(Driver()), clock)
    # The thread reads once at its start, at which no time has gone.
    clock.now = 2.0
    assert made.read()["soc"] == pytest.approx(10.0)
    fakes.put(tmp_path, fakes.rails(1, "ina3221", VDD_IN=(5000, 2000)))
    clock.now = 3.0
    assert made.read()["soc"] == pytest.approx(20.0)


def test_what_nobody_holds_is_read_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading
    import time

    monkeypatch.setattr(counters, "PERIOD", 0.01)
    fakes.put(tmp_path, fakes.rails(1, "ina3221", VDD_IN=(5000, 1000)))
    before = threading.active_count()
    made = Counters(fakes.bare(tmp_path), Nvml(Driver()))
    assert threading.active_count() == before + 1
    del made
    end = time.monotonic() + 5
    while threading.active_count() > before:
        assert time.monotonic() < end
        time.sleep(0.01)
    # Nor is a thread begun where there is nothing to read.
    kept = Counters(fakes.bare(tmp_path / "empty"), Nvml(Driver()))
    assert threading.active_count() == before
    assert kept.read() == {}
