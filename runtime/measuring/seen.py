"""What `tel-doctor` looks at: a machine, its engines, and a bundle that is to run there."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tel_edge.runtime.answerer import selected
from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.bundles.manifest import BundleFile, Manifest
from tel_edge.runtime.device import counters, facts, needs, power, profile
from tel_edge.runtime.device.facts import Heat, Other, Processor, Room
from tel_edge.runtime.device.needs import Need
from tel_edge.runtime.device.power import Power
from tel_edge.runtime.device.system import System
from tel_edge.runtime.engines.engine import EngineSettings
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.measuring.trial import Tried

# What tel-serve imports beside the engine.
SERVICE = ("starlette", "uvicorn", "msgspec", "prometheus_client")


@dataclass(frozen=True)
class Python:
    """The interpreter, the bits of its addresses, what of `SERVICE` it lacks; `signs` if it can."""

    version: str
    bits: int
    lacks: tuple[str, ...]
    signs: bool


@dataclass(frozen=True)
class Machine:
    """All that is read of a machine; `driver` decides what its governor's name means.

    `nvidia` says that NVIDIA's driver is loaded, `rails` are watts by rail, `rapl` whether the
    processor's energy counter is there and whether this user may read it.
    """

    python: Python
    system: str
    board: str | None
    chip: tuple[str, str] | None
    jetpack: str | None
    processor: Processor
    power: Power
    driver: str | None
    heat: Heat
    room: Room
    disk: int | None
    load: float | None
    others: tuple[Other, ...]
    nvidia: bool
    rails: dict[str, float]
    rapl: tuple[bool, bool]


@dataclass(frozen=True)
class Bundle:
    """A bundle on this machine, or the `error` that stands in its way.

    `chosen` is the file that tel-run would take, `format` of it, `needs` what each backbone takes,
    `tuned` whether the profile has settings for the chosen one that hold now, `profile` what is
    wrong with it, and `broken` are files of other types that cannot be read.
    """

    folder: str
    error: str = ""
    name: str = ""
    chosen: str = ""
    format: str = ""
    quant: str = ""
    adapters: tuple[str, ...] = ()
    needs: tuple[Need, ...] = ()
    tuned: bool = False
    profile: str = ""
    broken: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seen:
    """Everything; an engine is None where it is not installed, a bundle where none was found."""

    machine: Machine
    llama: Tried | None
    onnx: Tried | None
    bundle: Bundle | None


def machine(system: System, folder: Path, pause: Callable[[float], None] = time.sleep) -> Machine:
    """Look at a machine; `folder` is on the disk that bundles are on."""
    files = system.found("sys/class/powercap/intel-rapl:*/energy_uj")
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    return Machine(
        Python(
            platform.python_version(),
            64 if sys.maxsize > 1 << 32 else 32,
            tuple(name for name in SERVICE if importlib.util.find_spec(name) is None),
            importlib.util.find_spec("cryptography") is not None,
        ),
        f"{system.name} {system.machine}",
        facts.board(system),
        facts.jetson(system),
        facts.jetpack(system),
        facts.processor(system),
        power.now(system),
        system.text(f"{power.CORES}/cpufreq/policy0/scaling_driver"),
        facts.heat(system),
        facts.memory(system),
        shutil.disk_usage(there).free,
        facts.load(system),
        facts.others(system, pause),
        bool(system.found("dev/nvidia[0-9]*")),
        counters.rails(system),
        (bool(files), any(system.number(file) is not None for file in files)),
    )


def of_bundle(folder: Path, settings: EngineSettings) -> Bundle:
    """Look at a bundle as tel-run does before it opens an engine."""
    try:
        made = bundle.read(folder)
        chosen, _ = selected(folder, made, None, None, lambda _: None)
        others = bundle.companions(folder, made, chosen, made.adapters(chosen.format))
        bundle.verify(folder, made, [chosen, *others])
        put, tuned, said = _put(settings, made, chosen)
        found, broken = [], []
        for file in made.files:
            if file.kind == "backbone":
                try:
                    of = put if file is chosen else settings
                    found.append(needs.need(folder, made, file, of))
                except (InputError, OSError):
                    broken.append(file.path)
    except (InputError, WorkError) as error:
        return Bundle(str(folder), str(error))
    return Bundle(
        str(folder),
        "",
        made.backbone.name,
        chosen.path,
        chosen.format,
        chosen.quant,
        made.adapters(chosen.format),
        tuple(found),
        tuned,
        said,
        tuple(broken),
    )


def _put(
    settings: EngineSettings, made: Manifest, file: BundleFile
) -> tuple[EngineSettings, bool, str]:
    """Return the settings of the profile, whether it has any that hold, and what is wrong there."""
    of = made.backbone.name, file.quant, file.format
    try:
        put, said = profile.settings(settings, *of)
        tuned = profile.tuned_here(*of)
    except InputError as error:
        return settings, False, str(error)
    return put, tuned, "" if tuned else said or ""
