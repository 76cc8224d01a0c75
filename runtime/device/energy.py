"""Energy of a run, from the counters that this machine has, and from nothing else.

The system's own are read as they are (`counters`). zeus, where it is installed, is asked instead:
it knows Apple's chips too, and gives nothing where there is no counter. codecarbon was looked at:
where a counter is missing it puts in an estimate from the processor's rated power, which afterwards
looks like a measurement.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tel_edge.runtime.device.counters import Counters

# Of a chip's sensors either the one for all of it, or the parts that together are all of it.
WHOLE = "total_energy_mj"
PARTS = ("cpu_total_mj", "dram_mj", "gpu_mj", "gpu_sram_mj", "ane_mj")


@dataclass(frozen=True)
class Energy:
    """Joules by what was measured; None where there is no counter that this process may read.

    `gpu` are all GPUs in use, `cpu` and `dram` the processor packages, `soc` a whole chip, or the
    board that it is on. Other work on the same parts at the same time is counted in.
    """

    gpu: float | None = None
    cpu: float | None = None
    dram: float | None = None
    soc: float | None = None

    @property
    def joules(self) -> float | None:
        """Return the sum of what was measured, None where nothing was."""
        # A chip's own sensor has its processor and its GPU in it.
        parts = [self.soc] if self.soc is not None else [self.gpu, self.cpu, self.dram]
        known = [part for part in parts if part is not None]
        return sum(known) if known else None

    def __add__(self, other: Energy) -> Energy:
        """Return the energy of two stretches; what one of them lacks is unknown for both."""
        pairs = {name: (value, getattr(other, name)) for name, value in asdict(self).items()}
        return Energy(**{n: None if None in (a, b) else a + b for n, (a, b) in pairs.items()})


class Meter:
    """Reads the counters from `begin` on; everything is None where there is none to read."""

    def __init__(self) -> None:
        self._monitor: Any = None
        self._counters: Counters | None = None
        self._before: dict[str, float] = {}

    def begin(self) -> None:
        """Note what the counters say now."""
        self._monitor = _monitor()
        if self._monitor is not None:
            self._monitor.begin_window("run", sync_execution=False)
            return
        self._counters = _counters()
        self._before = self._counters.read()

    def read(self) -> Energy:
        """Return the energy since `begin`, or since the last `read`."""
        if self._monitor is not None:
            found = energy_of(self._monitor.end_window("run", sync_execution=False))
            self._monitor.begin_window("run", sync_execution=False)
            return found
        before, self._before = self._before, self._counters.read() if self._counters else {}
        return Energy(**{part: now - before.get(part, 0.0) for part, now in self._before.items()})


def energy_of(measured: Any) -> Energy:
    """Return what a measurement of zeus says."""
    return Energy(
        gpu=_sum(measured.gpu_energy),
        cpu=_sum(measured.cpu_energy),
        dram=_sum(measured.dram_energy),
        soc=_soc(measured.soc_energy),
    )


def _sum(parts: Mapping[int, float] | None) -> float | None:
    return float(sum(parts.values())) if parts else None


def _soc(sensors: Any) -> float | None:
    if sensors is None:
        return None
    whole = getattr(sensors, WHOLE, None)
    parts = [whole] if whole is not None else [getattr(sensors, name, None) for name in PARTS]
    known = [part for part in parts if part is not None]
    return sum(known) / 1000 if known else None


def _counters() -> Counters:
    return Counters()


def _monitor() -> Any:
    """Return zeus' monitor of all that can be read, None where that is nothing."""
    try:
        from zeus.monitor import ZeusMonitor
    except ImportError:
        return None
    logging.getLogger("zeus").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = ZeusMonitor()
        except Exception:
            # A driver that is half there raises whatever it likes; then nothing can be read.
            return None
    readable = made.gpu_indices or made.cpu_indices or type(made.soc).__name__ != "EmptySoC"
    return made if readable else None
