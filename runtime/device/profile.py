"""The device profile: the engine settings that `tel-bench --tune` found fastest on this machine.

One JSON file for each machine, with one entry for each backbone, type and way in which its power is
set. A profile of another machine, or an entry of another build of its engine or another power mode,
is not used: what is fast or even safe there (extra buffers crash in some builds) says nothing here.

Older profiles do not say how the power was set, nor do those of machines where it cannot be read.
Such an entry is used as before, but on a device with power modes: it may be of any of them.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tel_edge.runtime import versions
from tel_edge.runtime.bundles.formats import FORMATS
from tel_edge.runtime.device import power as powers
from tel_edge.runtime.device.power import Power
from tel_edge.runtime.device.system import System
from tel_edge.runtime.engines.engine import KV_TYPES, EngineSettings
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import digest, lock
from tel_edge.runtime.files.atomic import write_text
from tel_edge.runtime.processors import cores

SCHEMA_VERSION = 2
# Between the name of an entry and the power that it was measured under.
AT = " at "


@dataclass(frozen=True, kw_only=True)
class ProfileEntry:
    """What was fastest for one backbone at one type: what its format tunes, and what that gave.

    Fields that are not the format's have their default. `engine` is what `engine` returned,
    `tokens_per_second` are prompt tokens computed while answering; `date` is that of the tuning,
    YYYY-MM-DD.
    """

    threads: int | None
    batch: int
    flash: bool | None = None
    kv: str = "F16"
    extra_buffers: bool = False
    gpu_layers: int | None = None
    engine: str
    tokens_per_second: float
    date: str


@dataclass(frozen=True)
class Choice:
    """Which of a backbone's files answers here, of those that were compared.

    `rates` are questions/s by type, each at the settings tuned for it; `date` is YYYY-MM-DD.
    """

    format: str
    quant: str
    rates: Mapping[str, float]
    date: str


@dataclass(frozen=True)
class Profile:
    """Entries by `key`, choices by `chosen_key`, and the machine that they hold for."""

    machine: str
    entries: Mapping[str, ProfileEntry] = field(default_factory=dict)
    chosen: Mapping[str, Choice] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


def location() -> Path:
    """Return where the profile is: env TEL_PROFILE, else in the user's configuration folder."""
    if named := os.environ.get("TEL_PROFILE"):
        return Path(named)
    home = os.environ.get("XDG_CONFIG_HOME", "")
    # The XDG specification says that a relative path there is to be ignored.
    folder = home if os.path.isabs(home) else os.path.expanduser("~/.config")
    return Path(folder) / "tel-edge" / "profile.json"


def machine(system: System | None = None) -> str:
    """Return what settings depend on: the processor's model, its cores in use and its features.

    Cores that are offline count: a power mode that wakes them is no other machine.
    Source: Linux `proc(5)`; the names differ between x86, ARM and RISC-V.
    """
    system = system or System()
    model, flags = platform.processor() or platform.machine(), ""
    if text := system.text("proc/cpuinfo"):
        model = ", ".join(_values(text, "model name", "Model", "CPU part", "uarch")) or model
        words = {
            word for line in _values(text, "flags", "Features", "isa") for word in line.split()
        }
        flags = f", features {digest.of_value(sorted(words))[:8]}"
    return f"{model or 'unknown'}, {_cores(system)} cores{flags}"


def _cores(system: System) -> int:
    """Return the cores that this process may use, all that there are if it may use all online."""
    usable, present = cores(), powers.count(system.text(f"{powers.CORES}/present"))
    return present if present and usable == powers.online(system) else usable


def _values(text: str, *names: str) -> list[str]:
    pairs = (line.partition(":") for line in text.splitlines())
    return sorted({value.strip() for name, _, value in pairs if name.strip() in names})


def engine(format: str) -> str:
    """Return the version of a format's engine and a digest of its libraries, without loading them.

    Two builds of one version differ in what they can do, and in what crashes.
    """
    from importlib.metadata import distribution

    row, endings = FORMATS[format], (".so", ".dylib", ".dll")
    names = versions.distributions(*row.package)
    libraries = sorted(
        f"{file} {file.hash.value}"
        for name in names
        for file in distribution(name).files or ()
        if file.hash and any(ending in file.name for ending in endings)
    )
    return row.version() + (f", build {digest.of_value(libraries)[:8]}" if names else "")


def key(backbone: str, quant: str, power: Power | None = None) -> str:
    """Return the name of the entry for that backbone and type under that power."""
    return chosen_key(f"{backbone}/{quant}", power)


def chosen_key(backbone: str, power: Power | None = None) -> str:
    """Return the name of the choice among that backbone's files under that power."""
    return f"{backbone}{AT}{power.key}" if power and power.key else backbone


def shown(name: str, value: Any) -> str:
    """Return the value of a tuned field in a word."""
    if value is None:
        return {"threads": "all", "batch": "auto", "flash": "auto", "gpu_layers": "0"}[name]
    if isinstance(value, bool):
        return "on" if value else "off"
    return "all" if name == "gpu_layers" and value < 0 else str(value)


def described(settings: EngineSettings, format: str) -> str:
    """Return the settings that are tuned for a format, in words."""
    return ", ".join(
        f"{name} {shown(name, getattr(settings, name))}" for name in FORMATS[format].tuned
    )


def settings(
    base: EngineSettings, backbone: str, quant: str, format: str, path: Path | None = None
) -> tuple[EngineSettings, str | None]:
    """Return `base` with the profile's entry put in, and a line for the log, None without an entry.

    A field of `base` that is not the default was asked for and stays. A profile of another machine
    is left alone, and so is an entry of another engine or power mode, and the line says so. Raises
    `InputError` for a damaged file.
    """
    path = path or location()
    made = read(path)
    if made is None:
        return base, None
    if stale := _difference("machine", made.machine, machine()):
        return base, f"warning: {path} is not used, {stale}; run: tel-bench --tune"
    name, entry, stale = _found(made, key(backbone, quant))
    if entry is None and not stale:
        return base, None
    if entry is not None:
        stale = stale or _difference("engine", entry.engine, engine(format))
    if entry is None or stale:
        remedy = f"run: tel-bench --tune --quant {quant}"
        return base, f"warning: {path}: {name} is not used, {stale}; {remedy}"
    default = EngineSettings()
    free = [part for part in FORMATS[format].tuned if getattr(base, part) == getattr(default, part)]
    put = replace(base, **{part: getattr(entry, part) for part in free})
    if put.flash is False and put.kv.startswith("Q"):
        # One was asked for, the other was tuned without it: a quantized cache needs flash.
        put = replace(put, flash=base.flash, kv=base.kv)
    if put.batch:
        put = replace(put, batch=min(put.batch, base.context))
    return put, f"settings of {path}: {described(put, format)}"


def _found(made: Profile, name: str) -> tuple[str, ProfileEntry | None, str]:
    """Return the entry for the power that is set now, its name, and why it does not hold, if so."""
    under = [found.partition(AT)[2] for found in sorted(made.entries) if _of(found, name)]
    if not under:
        return name, None, ""
    # Only now, since a program may have to be asked.
    power = powers.now()
    if entry := made.entries.get(chosen_key(name, power)):
        return chosen_key(name, power), entry, ""
    if entry := made.entries.get(name):
        unsure = f"tuned under a power mode that nobody noted (this is {power.key})"
        return name, entry, unsure if power.mode else ""
    return name, None, f"tuned under another power ({under[0]}; this is {power.key or 'unknown'})"


def _of(found: str, name: str) -> bool:
    return found == name or found.startswith(name + AT)


def tuned_here(backbone: str, quant: str, format: str) -> bool:
    """Return whether this machine's profile has an entry that holds now.

    Raises `InputError` for a damaged file.
    """
    made = read(location())
    if made is None or made.machine != machine():
        return False
    _, entry, stale = _found(made, key(backbone, quant))
    return entry is not None and not stale and entry.engine == engine(format)


def choice(backbone: str, path: Path | None = None) -> Choice | None:
    """Return which file of a backbone this machine's profile says to answer with, None if none.

    Raises `InputError` for a damaged file.
    """
    made = read(path or location())
    if made is None or made.machine != machine():
        return None
    if not any(_of(found, backbone) for found in made.chosen):
        return None
    power = powers.now()
    unsure = None if power.mode else made.chosen.get(backbone)
    return made.chosen.get(chosen_key(backbone, power), unsure)


def _difference(what: str, theirs: str, ours: str) -> str:
    """Return why something does not hold here, or "" if it does."""
    return "" if theirs == ours else f"made on another {what} ({theirs}; this is {ours})"


def with_entry(made: Profile | None, name: str, entry: ProfileEntry) -> Profile:
    """Return the profile of this machine with `entry` in it.

    The other entries of `made` are kept if it is of this machine, whatever their engines: each is
    compared with its own when it is used.
    """
    kept = _here(made)
    return replace(kept, entries={**kept.entries, name: entry})


def with_choice(made: Profile | None, backbone: str, found: Choice) -> Profile:
    """Return the profile of this machine with `found` in it, and all that it had."""
    kept = _here(made)
    return replace(kept, chosen={**kept.chosen, backbone: found})


def _here(made: Profile | None) -> Profile:
    here = machine()
    return made if made and made.machine == here else Profile(here)


def kept(change: Callable[[Profile | None], Profile], say: Callable[[str], None]) -> Path:
    """Write the changed profile, which nobody else changes meanwhile, and return where it is.

    A damaged one is replaced, and `say` told.
    """
    path = location()
    with lock.held(path, math.inf, say):
        try:
            there = read(path)
        except InputError as error:
            say(f"warning: {error}\nit is replaced")
            there = None
        write(change(there), path)
    return path


def write(made: Profile, path: Path) -> None:
    """Write the profile in one step."""
    check_writable(path)
    write_text(path, json.dumps(asdict(made), indent=2, sort_keys=True) + "\n")


def check_writable(path: Path) -> None:
    """Raise `InputError` where no profile can be written, before minutes go into making one."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: no plain file, so no profile; set TEL_PROFILE to another path")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; set TEL_PROFILE to another path") from None
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"{path}: its folder cannot be written; set TEL_PROFILE to another path")


def read(path: Path) -> Profile | None:
    """Return the profile, None if there is none. Raises `InputError` naming the field at fault."""
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > 1_000_000:
            raise InputError("larger than any profile")
        return _parse(json.loads(path.read_text(encoding="utf-8")))
    except InputError as error:
        raise InputError(f"{path}: {error}\n{REMEDY}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})\n{REMEDY}") from None


REMEDY = "remove it, or write it anew: tel-bench --tune"


def _parse(document: Any) -> Profile:
    if not isinstance(document, dict):
        raise InputError("not a JSON object")
    if document.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"schema_version {document.get('schema_version')!r}, this version reads "
            f"{SCHEMA_VERSION}"
        )
    for name, kind in (("machine", str), ("entries", dict)):
        if not isinstance(document.get(name), kind):
            raise InputError(f"field {name!r} is missing or not {kind.__name__}")
    entries = {name: _entry(name, values) for name, values in document["entries"].items()}
    given = document.get("chosen", {})
    if not isinstance(given, dict):
        raise InputError("field 'chosen' is not dict")
    return Profile(
        document["machine"], entries, {name: _choice(name, given[name]) for name in given}
    )


def _choice(name: str, values: Any) -> Choice:
    rules: dict[str, Callable[[Any], bool]] = {
        "format": lambda value: value in FORMATS,
        "quant": lambda value: isinstance(value, str),
        "rates": lambda value: isinstance(value, dict),
        "date": lambda value: isinstance(value, str),
    }
    for part, right in rules.items():
        if not isinstance(values, dict) or not right(values.get(part)):
            raise InputError(
                f"chosen[{name!r}]: field {part!r} is missing or not what it should be"
            )
    return Choice(**{part: values[part] for part in rules})


def _entry(name: str, values: Any) -> ProfileEntry:
    if not isinstance(values, dict):
        raise InputError(f"entries[{name!r}] is not a JSON object")
    for part in fields(ProfileEntry):
        right, wanted = RULES[part.name]
        if part.name not in values or not right(values[part.name]):
            raise InputError(f"entries[{name!r}]: field {part.name!r} is missing or not {wanted}")
    made = ProfileEntry(**{part.name: values[part.name] for part in fields(ProfileEntry)})
    if made.flash is False and made.kv.startswith("Q"):
        raise InputError(f"entries[{name!r}]: field 'kv' is {made.kv}, which needs 'flash'")
    return made


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


# For each field of `ProfileEntry`: whether a value is one, and what one is.
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "threads": (
        lambda value: value is None or _whole(1, 512)(value),
        "null or a whole number above 0, at most 512",
    ),
    "batch": (_whole(1, 65536), "a whole number above 0"),
    "flash": (lambda value: value is None or isinstance(value, bool), "true, false or null"),
    "kv": (lambda value: isinstance(value, str) and value in KV_TYPES, f"of {' '.join(KV_TYPES)}"),
    "extra_buffers": (lambda value: isinstance(value, bool), "true or false"),
    "gpu_layers": (
        lambda value: value is None or _whole(-1, 4096)(value),
        "null, -1 or a number of layers",
    ),
    "engine": (lambda value: isinstance(value, str), "a string"),
    "tokens_per_second": (
        lambda value: type(value) in (int, float) and 0 <= value < float("inf"),
        "a number",
    ),
    "date": (lambda value: isinstance(value, str), "a string"),
}
