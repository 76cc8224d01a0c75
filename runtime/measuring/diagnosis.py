"""What follows from what was seen of a machine: what works, what does not, and what to do."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tel_edge.runtime.bundles.formats import FORMATS
from tel_edge.runtime.device.needs import Need
from tel_edge.runtime.measuring.seen import Bundle, Machine, Seen
from tel_edge.runtime.measuring.trial import Tried

OK, WARN, FAIL = "OK", "WARN", "FAIL"
# Features without which quantized weights are multiplied several times slower.
WANTED = {"x86_64": "avx2", "aarch64": "asimddp"}
# What llama.cpp calls them in what it was compiled for.
BUILT = {"avx2": "AVX2", "asimddp": "DOTPROD"}
# Governors that hold a core at its lowest rate, but under drivers that decide by themselves.
SLOW, OWN = "powersave", ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")
# Less memory or disk than this is too little for anything; degrees below the trip, cores of others.
LEAST, CLOSE, BUSY = 300_000_000, 5.0, 0.5
# Characters of an error that are shown.
LONGEST = 160
# Clock rates that are held below this share of the highest are told.
HELD = 0.95
CUDA = "-DGGML_CUDA=ON -DGGML_NATIVE=OFF -DCMAKE_CUDA_ARCHITECTURES="


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, OK, WARN or FAIL, what was seen, and what to do about it."""

    name: str
    verdict: str
    said: str
    do: str = ""


def checks(seen: Seen) -> tuple[Check, ...]:
    """Return all lines, the machine's first."""
    machine = seen.machine
    return (*_machine(machine), *_engines(seen), _service(machine), _signatures(machine),
            *_bundle(seen))  # fmt: skip


def following(seen: Seen, made: Sequence[Check]) -> str:
    """Return the command to type next."""
    if wrong := next((check for check in made if check.verdict == FAIL and check.do), None):
        return wrong.do
    if seen.bundle is None:
        return "copy a bundle here (tel-export makes it), then: tel-doctor --bundle DIR"
    if not seen.bundle.tuned:
        return _tune(seen.bundle)
    folder = shlex.quote(seen.bundle.folder)
    return f"tel-run --bundle {folder} --choice TEXT --choice TEXT QUESTION"


def _tune(of: Bundle) -> str:
    return f"tel-bench --bundle {shlex.quote(of.folder)} --tune"


def _machine(of: Machine) -> Iterator[Check]:
    python, processor, heat = of.python, of.processor, of.heat
    if python.bits < 64:
        yield Check("python", FAIL, f"{python.version}, {python.bits} bits: models do not fit",
                    "install a 64-bit system")  # fmt: skip
    else:
        yield Check("python", OK, f"{python.version}, {python.bits} bits")
    yield Check("system", OK, ", ".join(filter(None, (of.system, of.board, of.jetpack))))
    yield _processor(of)
    if processor.quota is not None and processor.quota < processor.usable:
        yield Check(
            "cores", WARN,
            f"a limit lets {processor.quota:g} of {processor.usable} compute at a time: threads "
            "that are stopped hold up the others",
            f"pass --threads {max(1, int(processor.quota))}, or give the container more",
        )  # fmt: skip
    yield _power(of)
    if heat.undervoltage:
        yield Check("supply", WARN, "the voltage is too low, so the clock rates are",
                    "use the board's own power supply and cable")  # fmt: skip
    if heat.celsius is not None:
        hot = heat.celsius >= heat.trip - CLOSE
        said = f"{heat.celsius:.0f} degrees ({heat.zone}), slowed down at {heat.trip:.0f}"
        do = "cool it, or choose a lower power mode" if hot else ""
        yield Check("heat", WARN if hot else OK, said, do)
    yield _energy(of)
    yield _memory(of)
    if of.disk is not None:
        little = of.disk < LEAST
        yield Check("disk", WARN if little else OK, f"{_size(of.disk)} free",
                    "make room: bundles have hundreds of megabytes" if little else "")  # fmt: skip
    busy = sum(one.share for one in of.others)
    said = ", ".join(f"{one.name} takes {one.share:.1f} cores" for one in of.others[:3])
    mean = "" if of.load is None else f"; {of.load:.2f} on average"
    if busy >= BUSY:
        yield Check("load", WARN, said + mean, "end it before anything is measured or tuned")
    else:
        said = said or ("not known here" if of.load is None else "nothing else computes")
        yield Check("load", OK, said + mean)


def _processor(of: Machine) -> Check:
    processor = of.processor
    there = processor.online, processor.present
    cores = f"{processor.usable} cores"
    if None not in there and processor.usable != processor.present:
        cores += f" of {processor.present}, {processor.online} online"
    said = f"{processor.name}, {cores}; {' '.join(processor.features) or 'no features known'}"
    wanted = WANTED.get(of.system.split()[-1])
    if wanted and processor.features and wanted not in processor.features:
        return Check("processor", WARN, f"{said}: without {wanted} it is slow",
                     "choose a small backbone, such as smollm2-135m")  # fmt: skip
    return Check("processor", OK, said)


def _power(of: Machine) -> Check:
    power, capped = of.power, of.processor.capped
    known = [power.mode, power.governor]
    if power.online is not None and of.processor.present not in (None, power.online):
        known.append(f"{power.online} of {of.processor.present} cores online")
    if capped is not None and capped < HELD:
        known.append(f"clock rates up to {capped:.0%} of the highest")
    said = ", ".join(part for part in known if part)
    if of.chip and power.mode is None:
        return Check("power", WARN, f"{said or 'nothing is known'}; nvpmodel does not say the mode",
                     "on the host: nvpmodel -q; in a container settings cannot be kept "
                     "apart by mode")  # fmt: skip
    if power.governor and SLOW in power.governor.split("+") and of.driver not in OWN:
        return Check("power", WARN, f"{said}: cores stay at their lowest rate",
                     "echo schedutil | sudo tee "
                     "/sys/devices/system/cpu/cpufreq/policy*/scaling_governor")  # fmt: skip
    if capped is not None and capped < HELD and power.mode is None:
        return Check("power", WARN, said, "see who lowers scaling_max_freq: heat, or a power saver")
    return Check("power", OK, said or "nothing here says how it is set")


def _energy(of: Machine) -> Check:
    there, readable = of.rapl
    if of.rails:
        parts = ", ".join(f"{name} {power:.1f} W" for name, power in of.rails.items())
        return Check("energy", OK, f"read from the board's monitor: {parts}")
    if there and not readable:
        return Check("energy", OK, "a counter is there (RAPL), which root alone may read")
    known = [*(["RAPL"] if readable else []), *(["NVML"] if of.nvidia else [])]
    return Check("energy", OK, f"read from {' and '.join(known)}" if known else "no counter")


def _memory(of: Machine) -> Check:
    room = of.room
    if room.free is None:
        total = "" if room.total is None else f"{_size(room.total)}; "
        return Check("memory", WARN, f"{total}how much is free cannot be read here")
    said = f"{_size(room.free)} to be had"
    if room.total is not None:
        said += f" of {_size(room.total)}"
    if room.limit is not None:
        said += f"; a limit of {_size(room.limit)} holds here"
    if room.free < LEAST:
        do = "give the container more memory" if room.limit is not None else "end other programs"
        return Check("memory", FAIL, f"{said}: too little for any backbone", do)
    return Check("memory", OK, said)


def _short(text: str) -> str:
    """Return the end of a library's error, which is where the reason stands."""
    return text if len(text) <= LONGEST else f"...{text[-LONGEST:]}"


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def _engines(seen: Seen) -> Iterator[Check]:
    if seen.llama is None and seen.onnx is None:
        yield Check("engine", FAIL, "neither llama.cpp nor onnxruntime is installed",
                    _build(seen.machine, "'tel-edge[llama]'"))  # fmt: skip
        return
    if seen.llama is None:
        yield Check("llama.cpp", OK, "not installed; GGUF bundles need it ('tel-edge[llama]')")
    else:
        yield _llama(seen.machine, seen.llama)
        yield _gpu(seen.machine, seen.llama)
    if seen.onnx is None:
        yield Check("onnxruntime", OK, "not installed; ONNX bundles need it ('tel-edge[onnx]')")
    else:
        yield from _onnx(seen.onnx)


def _build(of: Machine, what: str, native: bool = False) -> str:
    """Return how llama.cpp is installed here, for the GPU of a Jetson."""
    cuda = CUDA.replace("-DGGML_NATIVE=OFF ", "") if native else CUDA
    flags = f'CMAKE_ARGS="{cuda}{of.chip[1]}" ' if of.chip else ""
    return f"{flags}pip install {what}"


def _again(of: Machine, tried: Tried, native: bool = False) -> str:
    found = re.search(r"llama.cpp.python (\S+)", tried.version)
    pinned = f"llama-cpp-python=={found[1]}" if found else "llama-cpp-python"
    return _build(
        of,
        f"--force-reinstall --no-deps --no-cache-dir --no-binary llama-cpp-python {pinned}",
        native,
    )


def _llama(of: Machine, tried: Tried) -> Check:
    if "SIGILL" in tried.error:
        return Check("llama.cpp", FAIL, f"{tried.version}: {tried.error}: it was compiled for "
                     "another processor than this one", _again(of, tried))  # fmt: skip
    if tried.error:
        return Check("llama.cpp", FAIL, f"{tried.version}: {tried.error}", _again(of, tried))
    if tried.missing:
        return Check("llama.cpp", FAIL, f"{tried.version} has no {', '.join(tried.missing[:3])}",
                     "pip install 'tel-edge[llama]'")  # fmt: skip
    said = f"{tried.version} answered in {tried.milliseconds:.0f} ms"
    for feature, name in BUILT.items():
        if tried.built and feature in of.processor.features and name not in tried.built:
            said += f"; it was compiled without {name}, which this processor has: it is slow"
            return Check("llama.cpp", WARN, said, _again(of, tried, native=True))
    return Check("llama.cpp", OK, said)


def _gpu(of: Machine, tried: Tried) -> Check:
    for name, wrong in tried.others.items():
        if wrong:
            return Check(
                "gpu", WARN,
                f"llama.cpp says that it can, but {name}: {_short(wrong)}; the CPU answers",
                "pass no --gpu-layers, and see that driver and CUDA are those it was built with",
            )  # fmt: skip
        return Check("gpu", OK, f"{name} computes what the CPU does; --gpu-layers -1 uses it")
    if tried.error or tried.missing or not (of.chip or of.nvidia):
        return Check("gpu", OK, "none that llama.cpp can use; the CPU answers")
    name = of.chip[0] if of.chip else "NVIDIA"
    flags = _again(of, tried) if of.chip else f'CMAKE_ARGS="-DGGML_CUDA=ON" {_again(of, tried)}'
    return Check("gpu", WARN, f"{name}'s is not used: llama.cpp was built without CUDA", flags)


def _onnx(tried: Tried) -> Iterator[Check]:
    if tried.error:
        yield Check("onnxruntime", FAIL, f"{tried.version}: {tried.error}",
                    "pip install --force-reinstall 'tel-edge[onnx]'")  # fmt: skip
        return
    if tried.missing:
        yield Check("onnxruntime", FAIL, f"{', '.join(tried.missing)} is not installed beside it",
                    "pip install 'tel-edge[onnx]'")  # fmt: skip
        return
    yield Check("onnxruntime", OK, f"{tried.version} computed in {tried.milliseconds:.0f} ms")
    for name, wrong in tried.others.items():
        short = name.removesuffix("ExecutionProvider")
        if wrong:
            said = f"{short} is listed and does not compute: {_short(wrong)}"
            do = f"pass no --provider {short.lower()}, or install what it asks for"
            yield Check("provider", WARN, said, do)
        else:
            yield Check("provider", OK, f"{short} computes; --provider {short.lower()} uses it")


def _service(of: Machine) -> Check:
    if of.system.startswith("Windows"):
        return Check("service", OK, "tel-serve needs Unix sockets; on Windows use WSL")
    if of.python.lacks:
        return Check("service", OK, "tel-serve lacks " + ", ".join(of.python.lacks)
                     + " ('tel-edge[serve]')")  # fmt: skip
    return Check("service", OK, "tel-serve has what it imports")


def _signatures(of: Machine) -> Check:
    if of.python.signs:
        return Check("signatures", OK, "of bundles can be checked")
    return Check("signatures", OK, "cannot be checked without cryptography ('tel-edge[sign]')")


def _bundle(seen: Seen) -> Iterator[Check]:
    of, free = seen.bundle, seen.machine.room.free
    if of is None:
        yield Check("bundle", WARN, "none named and none in the workspace",
                    "tel-doctor --bundle DIR")  # fmt: skip
        return
    if of.error:
        first, _, rest = of.error.partition("\n")
        do = rest or first.rpartition("; ")[2]
        command = re.search(r"tel-[a-z]+ .+$", do)
        yield Check("bundle", FAIL, first, command[0] if command else do)
        return
    yield Check(
        "bundle",
        OK,
        f"{of.name}: {of.chosen} answers, with "
        + (f"adapters for {' '.join(of.adapters)}" if of.adapters else "no adapter"),
    )
    if of.broken:
        yield Check("types", WARN, f"cannot be read: {', '.join(of.broken)}; no other is used",
                    "get the bundle again to use them")  # fmt: skip
    tried = seen.llama if of.format == "gguf" else seen.onnx
    if tried is None:
        extra = f"'tel-edge[{FORMATS[of.format].extra}]'"
        do = _build(seen.machine, extra) if of.format == "gguf" else f"pip install {extra}"
        yield Check("engine", FAIL, f"{of.chosen} needs {FORMATS[of.format].package[1]}", do)
    for need in of.needs:
        yield _fits(need, free, need.quant == of.quant and need.format == of.format)
    yield _settings(of)


def _fits(need: Need, free: int | None, chosen: bool) -> Check:
    name = f"fits {need.quant}"
    pages = f" and {_size(need.mapped)} of pages" if need.mapped else ""
    said = f"about {_size(need.own)}{pages}"
    if free is None or need.all <= free:
        return Check(name, OK, said)
    said += f", {_size(free)} are free"
    if need.own <= free:
        said += ": weights are read from the disk again and again"
        do = "take a smaller type, or a smaller --context" if chosen else ""
        return Check(name, WARN if chosen else OK, said, do)
    do = "take a smaller type, or pass --context 1024 and --max-adapters 1"
    return Check(name, FAIL if chosen else WARN, said, do)


def _settings(of: Bundle) -> Check:
    if of.tuned:
        return Check("settings", OK, f"tuned on this machine for {of.quant}")
    said = of.profile.removeprefix("warning: ").partition("\n")[0] or "nothing tuned, safe ones"
    return Check("settings", WARN, said, _tune(of))
