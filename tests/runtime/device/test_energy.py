"""Energy: what zeus says, what follows from it, and what stays unknown."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fake_machines as fakes
import pytest

from tel_edge.runtime.device import energy
from tel_edge.runtime.device.counters import Counters
from tel_edge.runtime.device.energy import Energy, Meter, energy_of
from tel_edge.train.energy import recorded, restored


def measurement(**known: Any) -> Any:
    """What zeus' `end_window` returns; a part that it cannot read is None."""
    names = ("gpu_energy", "cpu_energy", "dram_energy", "soc_energy")
    return SimpleNamespace(**{name: known.get(name) for name in names})


def test_all_devices_of_a_kind_are_summed() -> None:
    found = energy_of(
        measurement(gpu_energy={0: 10.0, 1: 5.5}, cpu_energy={0: 3.0}, dram_energy={0: 1.0})
    )
    assert found == Energy(gpu=15.5, cpu=3.0, dram=1.0)
    assert found.joules == 19.5


def test_what_cannot_be_read_is_unknown_and_not_zero() -> None:
    assert energy_of(measurement()) == Energy()
    # zeus gives empty mappings where there is no such device.
    assert energy_of(measurement(gpu_energy={}, cpu_energy={}, dram_energy={})) == Energy()
    assert Energy().joules is None
    assert energy_of(measurement(gpu_energy={0: 0.0})) == Energy(gpu=0.0)
    assert Energy(gpu=0.0).joules == 0.0
    assert Energy(cpu=2.0).joules == 2.0


def test_a_chip_is_its_own_sum_or_that_of_its_parts() -> None:
    jetson = SimpleNamespace(total_energy_mj=4000.0, cpu_total_mj=1000.0, gpu_mj=2500.0)
    assert energy_of(measurement(soc_energy=jetson)).soc == 4.0
    apple = SimpleNamespace(
        cpu_total_mj=1000.0, gpu_mj=500.0, gpu_sram_mj=None, dram_mj=250.0, ane_mj=0.0,
        efficiency_cores_mj=[900.0], performance_core_manager_mj=100.0,
    )  # fmt: skip
    assert energy_of(measurement(soc_energy=apple)).soc == 1.75
    assert energy_of(measurement(soc_energy=SimpleNamespace())).soc is None


def test_a_whole_chip_has_its_parts_in_it() -> None:
    assert Energy(gpu=5.0, cpu=3.0, soc=9.0).joules == 9.0


def test_two_stretches_are_summed_and_a_gap_stays_a_gap() -> None:
    made = Energy(gpu=1.0, cpu=2.0) + Energy(gpu=10.0, dram=5.0)
    assert made == Energy(gpu=11.0)
    assert made.joules == 11.0
    assert Energy() + Energy(gpu=1.0) == Energy()


def test_what_is_kept_with_a_checkpoint_comes_back() -> None:
    for one in (Energy(), Energy(gpu=1.5, soc=0.0)):
        assert restored(asdict(one)) == one
    assert restored({"gpu": 1.0, "of a later version": 2}) == Energy(gpu=1.0)


def test_measured_and_stated_joules_are_apart() -> None:
    said = recorded(Energy(gpu=300.0, cpu=200.0), 10.0, 250, 20.0)
    assert said == {
        "gpu_joules": 300.0, "cpu_joules": 200.0, "dram_joules": None, "soc_joules": None,
        "joules": 500.0, "joules_per_1000_examples": 2000.0, "examples": 250,
        "stated_watts": 20.0, "stated_joules": 200.0, "stated_joules_per_1000_examples": 800.0,
    }  # fmt: skip


def test_a_stated_power_never_looks_like_a_measurement() -> None:
    said = recorded(Energy(), 10.0, 4, 20.0)
    assert (said["joules"], said["joules_per_1000_examples"]) == (None, None)
    assert said["stated_joules"] == 200.0
    nothing = recorded(Energy(), 10.0, 0, None)
    assert all(value is None for name, value in nothing.items() if name != "examples")
    assert recorded(Energy(gpu=1.0), 1.0, 0, 1.0)["joules_per_1000_examples"] is None


class Monitor:
    """Zeus' monitor with a GPU that takes 5 J a window."""

    gpu_indices: tuple[int, ...] = (0,)
    cpu_indices: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.soc = type("EmptySoC", (), {})()
        self.open: list[str] = []

    def begin_window(self, key: str, sync_execution: bool = True) -> None:
        assert key not in self.open, "zeus raises for a window that is open already"
        self.open.append(key)

    def end_window(self, key: str, sync_execution: bool = True) -> Any:
        self.open.remove(key)
        return measurement(gpu_energy={0: 5.0}, cpu_energy={}, dram_energy={})


def zeus(monkeypatch: pytest.MonkeyPatch, monitor: Any) -> None:
    made = ModuleType("zeus.monitor")
    made.ZeusMonitor = monitor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "zeus", ModuleType("zeus"))
    monkeypatch.setitem(sys.modules, "zeus.monitor", made)


def test_each_reading_is_of_the_time_since_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    zeus(monkeypatch, Monitor)
    meter = Meter()
    assert meter.read() == Energy(), "it has not begun"
    meter.begin()
    assert [meter.read().gpu for _ in range(3)] == [5.0, 5.0, 5.0]


@pytest.fixture
def no_zeus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zeus", None)
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)


@pytest.mark.usefixtures("no_zeus")
def test_without_zeus_the_own_counters_are_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = "sys/class/powercap/intel-rapl:0"
    files = {"name": "package-0", "energy_uj": "1000000", "max_energy_range_uj": "9000000"}
    fakes.put(tmp_path, {f"{place}/{name}": text for name, text in files.items()})
    system = fakes.bare(tmp_path)
    monkeypatch.setattr(energy, "_counters", lambda: Counters(system, Nothing()))
    meter = Meter()
    assert meter.read() == Energy(), "it has not begun"
    meter.begin()
    fakes.put(tmp_path, {f"{place}/energy_uj": "3500000"})
    assert meter.read() == Energy(cpu=2.5)
    assert meter.read() == Energy(cpu=0.0)


@pytest.mark.usefixtures("no_zeus")
def test_without_anything_everything_is_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(energy, "_counters", lambda: Counters(fakes.bare(tmp_path), Nothing()))
    meter = Meter()
    meter.begin()
    assert meter.read() == Energy()


class Nothing:
    """No GPU."""

    def since(self, seconds: float) -> dict[str, float]:
        return {}


def test_without_a_counter_everything_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    class Empty(Monitor):
        gpu_indices: tuple[int, ...] = ()

    def fails() -> None:
        raise RuntimeError("NVML Shared Library Not Found")

    for monitor in (Empty, fails):
        zeus(monkeypatch, monitor)
        assert energy._monitor() is None


def test_a_resumed_run_has_the_energy_of_all_its_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    from tel_edge.train.callbacks import Watch

    zeus(monkeypatch, Monitor)
    first = Watch(tmp_path, "nano", quiet=True)
    assert first.spent()[1] == Energy(gpu=5.0)
    first.on_save(None, None, None)
    kept = first.spent()[1]
    assert kept == Energy(gpu=15.0), "what came after the checkpoint is this run's too"
    second = Watch(tmp_path, "nano", quiet=True)
    seconds, found = second.spent()
    assert found == Energy(gpu=15.0), "10 J at the checkpoint and 5 J since"
    assert seconds >= second.before

    # A run that went on where nothing can be read has no sum.
    zeus(monkeypatch, lambda: None)
    monkeypatch.setattr(energy, "_monitor", lambda: None)
    monkeypatch.setattr(energy, "_counters", lambda: Counters(fakes.bare(tmp_path), Nothing()))
    assert Watch(tmp_path, "nano", quiet=True).spent()[1] == Energy()
