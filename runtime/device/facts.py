"""What a machine is and how it fares: board, processor, memory, heat, and what else runs on it.

Sources: Linux `proc(5)`, `cgroups(7)`, admin-guide/cgroup-v2 and -v1, driver-api/thermal/sysfs-api,
the kernel's arch/arm64/include/asm/cputype.h for the numbers of ARM's cores.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from tel_edge.runtime.device import power
from tel_edge.runtime.device.system import System
from tel_edge.runtime.processors import cores

# ARM's own cores (implementer 0x41) on boards that are used as devices.
PARTS = {
    "0xd03": "Cortex-A53", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57", "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76", "0xd0c": "Neoverse-N1", "0xd40": "Neoverse-V1", "0xd42": "Cortex-A78AE",
    "0xd49": "Neoverse-N2", "0xd4f": "Neoverse-V2", "0xd83": "Neoverse-V3AE",
}  # fmt: skip
# Features that decide how fast quantized weights are multiplied, by the name of the machine.
FEATURES = {
    "x86_64": ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"),
    "aarch64": ("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
}
# NVIDIA's chips of Jetson boards: what they are called, and their CUDA architecture.
JETSONS = {"tegra194": ("Xavier", "72"), "tegra234": ("Orin", "87"), "tegra264": ("Thor", "110")}
# JetPack by the major version of Jetson Linux.
JETPACKS = {"35": "5", "36": "6", "38": "7", "39": "7"}
# Trips below this are for fans; where a board states none, chips slow down at about the other.
LEAST_TRIP, USUAL_TRIP = 70.0, 85.0
# A process counts as others' load from this share of a core on; seconds that are looked at.
SHARE, LOOK = 0.1, 0.5
# How macOS says what computes.
BRAND = ("sysctl", "-n", "machdep.cpu.brand_string")
# What cgroup v1 says for no limit is a little less than this.
UNLIMITED = 1 << 60


@dataclass(frozen=True)
class Processor:
    """`usable` cores this process may use, `quota` of them at a time (a container's; None: all).

    `capped` is what of the highest clock rate is allowed, 1 being all of it.
    """

    name: str
    features: tuple[str, ...]
    usable: int
    online: int | None
    present: int | None
    quota: float | None
    capped: float | None


@dataclass(frozen=True)
class Room:
    """Bytes of memory: the machine's, what of it is free for the asking, and a container's."""

    total: int | None
    available: int | None
    limit: int | None
    left: int | None

    @property
    def free(self) -> int | None:
        """Return what a new process may take."""
        known = [one for one in (self.available, self.left) if one is not None]
        return min(known) if known else None


@dataclass(frozen=True)
class Heat:
    """The hottest part, in degrees Celsius, where it is slowed down, and whether power lacks."""

    zone: str | None
    celsius: float | None
    trip: float
    undervoltage: bool


@dataclass(frozen=True)
class Other:
    """A process that computes, and the cores that it takes."""

    name: str
    share: float


def board(system: System) -> str | None:
    """Return what the maker calls the board."""
    for place in ("proc/device-tree/model", "sys/firmware/devicetree/base/model"):
        if text := system.text(place):
            return text
    return system.text("sys/class/dmi/id/product_name") or None


def jetson(system: System) -> tuple[str, str] | None:
    """Return name and CUDA architecture of a Jetson's chip, such as ("Orin", "87")."""
    found = re.search(r"nvidia,(tegra\d+)", system.text("proc/device-tree/compatible") or "")
    return JETSONS.get(found[1]) if found else None


def jetpack(system: System) -> str | None:
    """Return the version of Jetson Linux, such as "JetPack 6, Jetson Linux 36.4.3"."""
    text = system.text("etc/nv_tegra_release") or ""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    if found is None:
        return None
    return f"JetPack {JETPACKS.get(found[1], '?')}, Jetson Linux {found[1]}.{found[2]}"


def processor(system: System) -> Processor:
    """Return what computes."""
    text = system.text("proc/cpuinfo") or ""
    models = _values(text, "model name") or [
        PARTS.get(part, f"ARM core {part}") for part in _values(text, "CPU part")
    ]
    if not models and (said := system.said(*BRAND, seconds=LOOK)):
        models = [said.strip()]
    there = {word for line in _values(text, "flags", "Features") for word in line.split()}
    known = FEATURES.get(system.machine, ())
    return Processor(
        " and ".join(models) or system.machine or "unknown",
        tuple(name for name in known if name in there),
        cores(),
        power.online(system),
        power.count(system.text(f"{power.CORES}/present")),
        _quota(system),
        _capped(system),
    )


def _values(text: str, *names: str) -> list[str]:
    pairs = (line.partition(":") for line in text.splitlines())
    return sorted({value.strip() for name, _, value in pairs if name.strip() in names})


def _capped(system: System) -> float | None:
    shares = []
    for file in system.found(f"{power.CORES}/cpufreq/policy*/scaling_max_freq"):
        allowed, most = system.number(file), system.number(file.with_name("cpuinfo_max_freq"))
        if allowed and most:
            shares.append(allowed / most)
    return min(shares) if shares else None


def memory(system: System) -> Room:
    """Return how much memory there is, by what the kernel and the container's limit say."""
    known = dict(re.findall(r"^(\w+):\s+(\d+) kB$", system.text("proc/meminfo") or "", re.M))
    total, available = (
        int(known[name]) * 1024 if name in known else None for name in ("MemTotal", "MemAvailable")
    )
    if total is None and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        # Systems without /proc; how much of it is free they tell by programs alone.
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, left = min(_limits(system), key=lambda one: one[1], default=(None, None))
    if limit is not None and total is not None and limit >= total:
        limit = left = None
    return Room(total, available, limit, left)


def _groups(system: System) -> Iterator[tuple[str, PurePosixPath]]:
    """Yield (controllers, folder) of this process's group and those above it, "" for version 2.

    In a container the folder is the host's, and what is there begins at the root.
    """
    for line in (system.text("proc/self/cgroup") or "").splitlines():
        _, controllers, place = [*line.split(":", 2), "", ""][:3]
        own = PurePosixPath(place.lstrip("/"))
        for folder in dict.fromkeys([own, *own.parents, PurePosixPath()]):
            yield controllers, folder


def _limits(system: System) -> Iterator[tuple[int, int]]:
    """Yield (limit, what is left of it) in bytes, of each group that has one."""
    for controllers, folder in _groups(system):
        if not controllers:
            place, names = f"sys/fs/cgroup/{folder}", ("memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            place = f"sys/fs/cgroup/memory/{folder}"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        else:
            continue
        limit, used = (system.number(f"{place}/{name}") for name in names[:2])
        if limit is None or used is None or limit >= UNLIMITED:
            continue
        # Pages of files that nobody has used for a while go first.
        stat = system.text(f"{place}/memory.stat") or ""
        file = re.search(rf"^{names[2]}inactive_file (\d+)$", stat, re.M)
        yield limit, max(limit - used + (int(file[1]) if file else 0), 0)


def _quota(system: System) -> float | None:
    """Return how many cores a container may use at a time, None for all."""
    found = []
    for controllers, folder in _groups(system):
        if not controllers:
            words = (system.text(f"sys/fs/cgroup/{folder}/cpu.max") or "").split()
        elif "cpu" in controllers.split(","):
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            words = [system.text(f"sys/fs/cgroup/cpu/{folder}/{name}") or "" for name in names]
        else:
            continue
        if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
            found.append(int(words[0]) / int(words[1]))
    return min(found) if found else None


def heat(system: System) -> Heat:
    """Return how hot it is."""
    hottest: tuple[float, str] | None = None
    trips = []
    for file in system.found("sys/class/thermal/thermal_zone*/temp"):
        degrees = (system.number(file) or 0) / 1000
        # A sensor of a part that is off says nothing, or nonsense.
        if 0 < degrees < 150:
            zone = system.text(file.with_name("type")) or ""
            hottest = max(hottest or (0.0, ""), (degrees, zone))
        for kind in system.found(str(file.with_name("trip_point_*_type").relative_to(system.root))):
            degrees = (system.number(kind.with_name(kind.name[:-4] + "temp")) or 0) / 1000
            if system.text(kind) in ("passive", "hot") and degrees >= LEAST_TRIP:
                trips.append(degrees)
    return Heat(
        hottest[1] if hottest else None,
        hottest[0] if hottest else None,
        min(trips, default=USUAL_TRIP),
        _undervoltage(system),
    )


def _undervoltage(system: System) -> bool:
    """Return whether a Raspberry Pi's firmware has seen too low a voltage."""
    return any(
        system.text(file) == "rpi_volt" and system.number(file.with_name("in0_lcrit_alarm")) == 1
        for file in system.found("sys/class/hwmon/hwmon*/name")
    )


def load(system: System) -> float | None:
    """Return how many processes wanted a core in the last minute, on average."""
    words = (system.text("proc/loadavg") or "").split()
    return float(words[0]) if words else None


def others(system: System, pause: Callable[[float], None] = time.sleep) -> tuple[Other, ...]:
    """Return the processes that compute, but this one, the busiest first."""
    before = _ticks(system)
    pause(LOOK)
    second = LOOK * (os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100)
    found = [
        Other(name, (ticks - before[pid][1]) / second)
        for pid, (name, ticks) in _ticks(system).items()
        if pid in before and pid != str(os.getpid())
    ]
    return tuple(sorted((one for one in found if one.share >= SHARE), key=lambda one: -one.share))


def _ticks(system: System) -> dict[str, tuple[str, int]]:
    """Return name and processor time of each process, in ticks of the clock."""
    found = {}
    for file in system.found("proc/[0-9]*/stat"):
        # The name stands in brackets, and may hold some.
        head, _, rest = (system.text(file) or "").rpartition(")")
        words = rest.split()
        if len(words) > 12:
            found[file.parent.name] = head.partition("(")[2], int(words[11]) + int(words[12])
    return found
