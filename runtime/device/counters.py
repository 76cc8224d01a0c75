"""Energy counters that the system itself has: RAPL, NVML, and the power monitors of Jetson boards.

Sources: Linux' Documentation/power/powercap/powercap.rst and hwmon/ina3221.rst, hwmon/ina238.rst;
NVML's `nvmlDeviceGetTotalEnergyConsumption`; the rails of NVIDIA's Jetson Linux Developer Guide,
"Power Monitoring". A monitor gives power at a moment, so a thread reads it and adds up.
"""

from __future__ import annotations

import ctypes
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from tel_edge.runtime.device.system import System

# Seconds between two readings: a register takes half a millisecond on the I2C bus.
PERIOD = 0.25
# Rails that are the whole board or module; without one the others are added up, but for those that
# another rail feeds.
WHOLE, FED = ("VIN", "VDD_IN", "POM_5V_IN"), ("VDDQ_VDD2_1V8AO",)
# The monitor of the whole supply on Thor, whose driver gives no label.
SUPPLY = "ina238"
LIBRARIES = ("libnvidia-ml.so.1", "nvml.dll")


class Source(Protocol):
    """One kind of counter."""

    def since(self, seconds: float) -> Mapping[str, float]:
        """Return the joules by part since this was asked last, `seconds` ago; {}: none to read."""
        ...


class Rapl:
    """The processor's own counters in microjoules, which begin anew at a stated number."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._zones: dict[Path, tuple[str, int, int]] = {}
        for file in system.found("sys/class/powercap/intel-rapl:*/name"):
            name = system.text(file) or ""
            part = "cpu" if name.startswith("package") else "dram" if name == "dram" else None
            counter = file.with_name("energy_uj")
            value = system.number(counter)
            most = system.number(file.with_name("max_energy_range_uj"))
            if part and value is not None and most is not None:
                self._zones[counter] = part, most, value

    def since(self, seconds: float) -> Mapping[str, float]:
        """Return the joules since the last time."""
        found: dict[str, float] = {}
        for counter, (part, most, before) in self._zones.items():
            value = self._system.number(counter)
            if value is None:
                continue
            gone = value - before if value >= before else value + most - before
            self._zones[counter] = part, most, value
            found[part] = found.get(part, 0.0) + gone / 1e6
        return found


class Rails:
    """The rails of a Jetson, integrated over time."""

    def __init__(self, system: System) -> None:
        self._system = system

    def since(self, seconds: float) -> Mapping[str, float]:
        """Return the power of this moment times the seconds."""
        power = watts(rails(self._system))
        return {} if power is None else {"soc": power * seconds}


def rails(system: System) -> dict[str, float]:
    """Return the watts of each rail that a monitor of this machine can read now."""
    found: dict[str, float] = {}
    for file in system.found("sys/class/hwmon/hwmon*/name"):
        kind, folder = system.text(file), file.parent
        if kind == SUPPLY and (power := system.number(folder / "power1_input")) is not None:
            found[WHOLE[0]] = power / 1e6
        if kind != "ina3221":
            continue
        for at in range(1, 4):
            label = system.text(folder / f"in{at}_label")
            volts, amperes = (system.number(folder / f"{n}{at}_input") for n in ("in", "curr"))
            if label and label != "NC" and volts is not None and amperes is not None:
                found[label] = volts * amperes / 1e6
    return found


def watts(found: Mapping[str, float]) -> float | None:
    """Return the power of the whole of some rails, None of none."""
    for name in WHOLE:
        if name in found:
            return found[name]
    parts = [power for name, power in found.items() if name not in FED]
    return sum(parts) if parts else None


class Nvml:
    """NVIDIA's counters in millijoules since the driver was loaded (Volta and later)."""

    def __init__(self, library: Any = None) -> None:
        self._library = library or _library()
        self._devices: list[tuple[Any, int]] = []
        count = ctypes.c_uint()
        if self._library is None or self._library.nvmlInit_v2() != 0:
            return
        if self._library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return
        for at in range(count.value):
            handle = ctypes.c_void_p()
            if self._library.nvmlDeviceGetHandleByIndex_v2(at, ctypes.byref(handle)) == 0:
                value = self._value(handle)
                if value is not None:
                    self._devices.append((handle, value))

    def _value(self, handle: Any) -> int | None:
        value = ctypes.c_ulonglong()
        asked = self._library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value))
        return value.value if asked == 0 else None

    def since(self, seconds: float) -> Mapping[str, float]:
        """Return the joules of all GPUs since the last time."""
        gone = 0.0
        for at, (handle, before) in enumerate(self._devices):
            value = self._value(handle)
            if value is not None:
                # The counter begins anew with the driver.
                gone += max(value - before, 0) / 1000
                self._devices[at] = handle, value
        return {"gpu": gone} if self._devices else {}


def _library() -> Any:
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


class Counters:
    """Joules since it was made by part: `gpu`, `cpu`, `dram`, `soc`, as far as they can be read.

    A thread reads as long as somebody holds this, and none where there is nothing to read.
    """

    def __init__(
        self,
        system: System | None = None,
        nvml: Source | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        system = system or System()
        self._sources: tuple[Source, ...] = (Rapl(system), Rails(system), nvml or Nvml())
        self._clock, self._lock = clock, threading.Lock()
        self._joules: dict[str, float] = {}
        self._last = clock()
        if self.read():
            threading.Thread(target=_reading, args=(weakref.ref(self),), daemon=True).start()

    def read(self) -> dict[str, float]:
        """Return the joules until now."""
        with self._lock:
            now = self._clock()
            seconds, self._last = now - self._last, now
            for source in self._sources:
                for part, gone in source.since(seconds).items():
                    self._joules[part] = self._joules.get(part, 0.0) + gone
            return dict(self._joules)


def _reading(held: weakref.ref[Counters]) -> None:
    while counters := held():
        counters.read()
        del counters
        time.sleep(PERIOD)
