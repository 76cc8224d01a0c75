"""`tel-doctor` on five machines that are folders, and on this one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import fake_machines as fakes
import pytest

from tel_edge.runtime.bundles import manifest
from tel_edge.runtime.commands import doctor
from tel_edge.runtime.device import facts, power, profile
from tel_edge.runtime.device.power import Power
from tel_edge.runtime.device.profile import ProfileEntry
from tel_edge.runtime.device.system import System
from tel_edge.runtime.measuring.trial import Tried

Command = Callable[..., tuple[int, str, str]]
WORKS = Tried("llama-cpp-python 0.3.36", milliseconds=12.0)
CUDA = Tried("llama-cpp-python 0.3.36", milliseconds=12.0, others={"CUDA0": ""})
ORT = Tried("onnxruntime 1.32.0", milliseconds=3.0)
# How many cores a process may use on each.
USABLE = {"laptop": 8, "pi5": 4, "orin": 4, "thor": 14, "container": 64}


class Doctor:
    """The command on a machine; `said` are the lines by what they are of."""

    def __init__(self, run: Command, home: Path) -> None:
        self._run, self._home = run, home
        self.code = -1
        self.said: dict[str, str] = {}
        self.next = ""
        self.document: dict[str, Any] = {}

    def on(self, system: System, *argv: str, pause: Any = lambda _: None, **tried: Any) -> None:
        engines = {"llama": WORKS, "onnx": None, **tried}
        made = {name: (lambda found=found: found) for name, found in engines.items()}
        work = partial(doctor.work, system=system, pause=pause, **made)
        argv = ("--workspace", str(self._home), "--json", *argv)
        self.code, out, err = self._run(doctor.parser(), work, *argv)
        assert err == ""
        *lines, after, document = out.splitlines()
        self.document, self.next = json.loads(document), after.removeprefix("next: ")
        self.said, name = {}, ""
        for line in lines:
            if line.lstrip().startswith("->"):
                self.said[name] += " " + line.strip()
            else:
                verdict, name = line.split()[:2]
                self.said[name] = verdict + " " + line.split(name, 1)[1].strip()


@pytest.fixture
def of(
    tmp_path: Path, run_command: Command, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Doctor]:
    """Run the command on one of the machines."""

    def made(name: str, *argv: str, **more: Any) -> Doctor:
        monkeypatch.setattr(facts, "cores", lambda: USABLE[name])
        found = Doctor(run_command, tmp_path / "home")
        found.on(fakes.machine(name, tmp_path / name), *argv, **more)
        return found

    return made


def test_a_laptop_without_a_gpu(of: Callable[..., Doctor]) -> None:
    found = of("laptop", onnx=ORT)
    assert found.code == 0
    assert found.said["system"] == "OK Linux x86_64, Laptop 14"
    assert found.said["processor"] == "OK Fast 9 Mobile, 8 cores; avx2 fma f16c avx_vnni"
    # Under intel_pstate this governor holds nothing down.
    assert found.said["power"] == "OK powersave"
    assert found.said["heat"] == "OK 55 degrees (x86_pkg_temp), slowed down at 95"
    assert found.said["memory"] == "OK 9.2 GB to be had of 16.4 GB"
    assert found.said["energy"] == "OK a counter is there (RAPL), which root alone may read"
    assert found.said["llama.cpp"] == "OK llama-cpp-python 0.3.36 answered in 12 ms"
    assert found.said["gpu"] == "OK none that llama.cpp can use; the CPU answers"
    assert found.said["onnxruntime"] == "OK onnxruntime 1.32.0 computed in 3 ms"
    assert found.said["load"] == "OK nothing else computes; 0.42 on average"
    assert found.said["bundle"].startswith("WARN none named")
    assert found.next == "copy a bundle here (tel-export makes it), then: tel-doctor --bundle DIR"


def test_a_raspberry_pi_5_that_is_hot_and_short_of_power(of: Callable[..., Doctor]) -> None:
    found = of("pi5")
    assert found.code == 0
    assert found.said["system"] == "OK Linux aarch64, Raspberry Pi 5 Model B Rev 1.0"
    assert found.said["processor"] == "OK Cortex-A76, 4 cores; asimd asimddp"
    assert found.said["supply"].startswith("WARN the voltage is too low")
    assert found.said["heat"].startswith("WARN 82 degrees (cpu-thermal), slowed down at 85")
    assert found.said["energy"] == "OK no counter"
    assert found.said["gpu"] == "OK none that llama.cpp can use; the CPU answers"
    assert found.document["machine"]["chip"] is None


def test_a_jetson_orin_nano_whose_gpu_lies_idle(of: Callable[..., Doctor], tmp_path: Path) -> None:
    stat = tmp_path / "orin/proc/77/stat"

    def pause(_: float) -> None:
        stat.write_text(stat.read_text().replace(" 100 20 ", " 150 30 "))

    found = of("orin", pause=pause)
    assert found.code == 0
    assert found.said["system"] == (
        "OK Linux aarch64, NVIDIA Jetson Orin Nano Developer Kit, JetPack 6, Jetson Linux 36.4.3"
    )
    assert found.said["processor"] == "OK Cortex-A78AE, 4 cores of 6, 4 online; asimd asimddp"
    # What the mode allows is no fault.
    assert found.said["power"] == (
        "OK 7W, schedutil, 4 of 6 cores online, clock rates up to 48% of the highest"
    )
    assert found.said["energy"] == (
        "OK read from the board's monitor: VDD_IN 4.1 W, VDD_CPU_GPU_CV 0.5 W, VDD_SOC 1.3 W"
    )
    assert found.said["load"].startswith("WARN a (camera) app takes 1.2 cores; 1.90 on average")
    assert found.said["gpu"] == (
        "WARN Orin's is not used: llama.cpp was built without CUDA -> "
        'CMAKE_ARGS="-DGGML_CUDA=ON -DGGML_NATIVE=OFF -DCMAKE_CUDA_ARCHITECTURES=87" pip install '
        "--force-reinstall --no-deps --no-cache-dir --no-binary llama-cpp-python "
        "llama-cpp-python==0.3.36"
    )


def test_a_jetson_thor_whose_gpu_computes(of: Callable[..., Doctor]) -> None:
    found = of("thor", llama=CUDA)
    assert found.code == 0
    assert found.said["system"].endswith("Thor Developer Kit, JetPack 7, Jetson Linux 38.2.0")
    assert found.said["processor"].startswith("OK Neoverse-V3AE, 14 cores; asimd asimddp i8mm")
    assert found.said["power"] == "OK 120W, schedutil"
    assert found.said["gpu"] == "OK CUDA0 computes what the CPU does; --gpu-layers -1 uses it"
    assert "VIN 26.8 W" in found.said["energy"]
    assert found.document["machine"]["chip"] == ["Thor", "110"]


def test_a_thor_without_an_engine_is_told_how_to_build_it(of: Callable[..., Doctor]) -> None:
    found = of("thor", llama=None)
    assert found.code == 1
    assert found.next == (
        'CMAKE_ARGS="-DGGML_CUDA=ON -DGGML_NATIVE=OFF -DCMAKE_CUDA_ARCHITECTURES=110" '
        "pip install 'tel-edge[llama]'"
    )


def test_a_container_of_a_gigabyte(of: Callable[..., Doctor], tmp_path: Path) -> None:
    fakes.large_bundle(tmp_path / "bundle")
    found = of("container", "--bundle", str(tmp_path / "bundle"))
    assert found.code == 0, found.said
    assert found.said["memory"] == ("OK 850 MB to be had of 65.5 GB; a limit of 1.0 GB holds here")
    assert found.said["cores"].startswith("WARN a limit lets 1.5 of 64 compute at a time")
    assert "-> pass --threads 1" in found.said["cores"]
    assert found.said["bundle"] == (
        "OK tel-nano: nano-Q4_K_M.gguf answers, with adapters for oranbench"
    )
    assert "free" not in found.said["fits"]
    # Ten times the context does not fit.
    found = of("container", "--bundle", str(tmp_path / "bundle"), "--context", "32768")
    assert found.code == 1
    assert found.said["fits"].startswith("FAIL Q4_K_M  about 1.3 GB")
    assert found.next.startswith("take a smaller type, or pass --context 1024")


def test_what_a_bundle_needs_and_is_not_installed(
    of: Callable[..., Doctor], tmp_path: Path
) -> None:
    fakes.large_bundle(tmp_path / "a bundle")
    found = of("orin", "--bundle", str(tmp_path / "a bundle"), llama=None, onnx=ORT)
    assert found.code == 1
    assert found.said["engine"].startswith("FAIL nano-Q4_K_M.gguf needs llama-cpp-python")
    assert "CMAKE_CUDA_ARCHITECTURES=87" in found.next


def test_the_next_command_is_to_tune_then_to_ask(
    of: Callable[..., Doctor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEL_PROFILE", str(tmp_path / "profile.json"))
    folder = tmp_path / "a bundle"
    fakes.large_bundle(folder)
    found = of("thor", "--bundle", str(folder), llama=CUDA)
    assert found.said["settings"].startswith("WARN nothing tuned, safe ones")
    assert found.next == f"tel-bench --bundle '{folder}' --tune"
    entry = ProfileEntry(
        threads=2, batch=256, engine=profile.engine("gguf"), tokens_per_second=1.0, date="2026-01"
    )
    profile.write(profile.with_entry(None, "tel-nano/Q4_K_M at 30W", entry), profile.location())
    monkeypatch.setattr(power, "now", lambda _=None: Power("120W"))
    found = of("thor", "--bundle", str(folder), llama=CUDA)
    assert "tuned under another power (30W; this is 120W)" in found.said["settings"]
    monkeypatch.setattr(power, "now", lambda _=None: Power("30W"))
    found = of("thor", "--bundle", str(folder), llama=CUDA)
    assert found.said["settings"] == "OK tuned on this machine for Q4_K_M"
    assert found.next.startswith(f"tel-run --bundle '{folder}' --choice")


BROKEN: tuple[tuple[Tried, str, str], ...] = (
    (
        Tried("llama-cpp-python 0.3.36", "crashed (SIGILL)"),
        "FAIL llama-cpp-python 0.3.36: crashed (SIGILL): it was compiled for another processor",
        "--force-reinstall",
    ),
    (
        Tried("llama-cpp-python 0.2.9", missing=("llama_set_adapters_lora",)),
        "FAIL llama-cpp-python 0.2.9 has no llama_set_adapters_lora",
        "pip install 'tel-edge[llama]'",
    ),
    (
        Tried("llama-cpp-python 0.3.36", "RuntimeError: libgomp.so.1: cannot open"),
        "FAIL llama-cpp-python 0.3.36: RuntimeError: libgomp.so.1",
        "--no-binary llama-cpp-python llama-cpp-python==0.3.36",
    ),
)


@pytest.mark.parametrize(("tried", "said", "after"), BROKEN)
def test_a_broken_engine_is_named_with_what_to_do(
    tried: Tried, said: str, after: str, of: Callable[..., Doctor]
) -> None:
    found = of("laptop", llama=tried)
    assert found.code == 1
    assert found.said["llama.cpp"].startswith(said)
    assert after in found.next


def test_a_gpu_that_is_claimed_and_does_not_compute(of: Callable[..., Doctor]) -> None:
    stays = Tried("llama-cpp-python 0.3.36", others={"GPU": "all layers stayed on the CPU"})
    listed = Tried("onnxruntime-gpu 1.32.0", others={"CUDAExecutionProvider": "no libcudnn.so.9"})
    found = of("thor", llama=stays, onnx=listed)
    # Answers come, from the CPU.
    assert found.code == 0
    assert found.said["gpu"].startswith("WARN llama.cpp says that it can, but GPU: all layers")
    assert found.said["provider"].startswith("WARN CUDA is listed and does not compute: no libcud")


def test_a_governor_that_holds_the_cores_down(of: Callable[..., Doctor], tmp_path: Path) -> None:
    place = "sys/devices/system/cpu/cpufreq/policy0/scaling_driver"
    found = of("laptop")
    fakes.put(tmp_path / "laptop", {place: "acpi-cpufreq\n"})
    found.on(fakes.bare(tmp_path / "laptop", "x86_64"))
    assert found.said["power"].startswith("WARN powersave: cores stay at their lowest rate -> echo")


def test_a_bundle_that_is_none_or_damaged(of: Callable[..., Doctor], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    found = of("laptop", "--bundle", str(tmp_path / "empty"))
    assert found.code == 1
    assert found.next == "make one with tel-export"
    fakes.large_bundle(tmp_path / "bundle")
    (tmp_path / "bundle/nano-Q4_K_M.gguf").write_bytes(b"GGUF")
    found = of("laptop", "--bundle", str(tmp_path / "bundle"))
    assert found.code == 1
    assert "4 bytes, manifest.json says" in found.said["bundle"]


def test_a_damaged_adapter_is_told(of: Callable[..., Doctor], tmp_path: Path) -> None:
    made = fakes.large_bundle(tmp_path / "bundle")
    [adapter] = [file for file in made.files if file.kind == "adapter"]
    (tmp_path / "bundle" / adapter.path).write_bytes(b"GGUF")
    found = of("laptop", "--bundle", str(tmp_path / "bundle"))
    assert found.code == 1
    assert f"{adapter.path}: 4 bytes, manifest.json says" in found.said["bundle"]
    # What is to be typed, and nothing else.
    assert found.next == "tel-export --quant F16 --adapter oranbench"


def test_a_type_that_is_not_used_and_not_there_is_a_warning(
    of: Callable[..., Doctor], tmp_path: Path
) -> None:
    made = fakes.large_bundle(tmp_path / "bundle")
    [backbone] = [file for file in made.files if file.kind == "backbone"]
    other = replace(backbone, path="nano-Q8_0.gguf", quant="Q8_0", bytes=2 * backbone.bytes)
    manifest.write(replace(made, files=(*made.files, other)), tmp_path / "bundle")
    found = of("laptop", "--bundle", str(tmp_path / "bundle"))
    assert found.code == 0
    assert found.said["types"].startswith("WARN cannot be read: nano-Q8_0.gguf; no other is used")
    assert found.said["bundle"].startswith("OK")


def test_this_machine_with_its_real_engines(tmp_path: Path, run_command: Command) -> None:
    for module in ("llama_cpp", "onnxruntime"):
        pytest.importorskip(module)
    code, out, _ = run_command(doctor.parser(), doctor.work, "--workspace", str(tmp_path), "--json")
    *_, document = out.splitlines()
    made = json.loads(document)
    of = {check["name"]: check for check in made["checks"]}
    for name in ("llama.cpp", "onnxruntime"):
        assert of[name]["verdict"] == "OK", of[name]
    assert made["llama"]["missing"] == []
    assert code in (0, 1)
    assert shutil.disk_usage(tmp_path).free > 0


def test_a_build_without_what_the_processor_has_is_told(of: Callable[..., Doctor]) -> None:
    plain = Tried("llama-cpp-python 0.3.36", milliseconds=9.0, built=("NEON", "REPACK"))
    found = of("orin", llama=plain)
    assert found.code == 0
    assert "compiled without DOTPROD, which this processor has" in found.said["llama.cpp"]
    assert 'CMAKE_ARGS="-DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=87"' in found.said["llama.cpp"]
    whole = Tried("llama-cpp-python 0.3.36", milliseconds=9.0, built=("NEON", "DOTPROD"))
    assert of("orin", llama=whole).said["llama.cpp"].startswith("OK")


def test_a_system_without_proc_is_told_what_is_not_known(
    run_command: Command, tmp_path: Path
) -> None:
    found = Doctor(run_command, tmp_path / "home")
    bare = fakes.bare(tmp_path / "windows")
    found.on(System(bare.root, bare.path, "Windows", "AMD64"))
    assert found.code == 0
    assert found.said["system"] == "OK Windows AMD64"
    assert found.said["processor"].startswith("OK AMD64, ")
    assert found.said["power"] == "OK nothing here says how it is set"
    assert found.said["load"] == "OK not known here"
    assert found.said["memory"].startswith("WARN ")
    assert found.said["memory"].endswith("how much is free cannot be read here")
    assert found.said["service"] == "OK tel-serve needs Unix sockets; on Windows use WSL"
