"""Folders that look like machines: what their kernels and programs say, in the documented forms."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import fake_engine as fake
from gguf_files import File

from tel_edge.runtime.bundles import manifest as manifests
from tel_edge.runtime.bundles.manifest import Manifest, describe
from tel_edge.runtime.device.system import System
from tel_edge.runtime.files.gguf_header import ARRAY, STRING
from tel_edge.runtime.files.gguf_model import TOKENS

CPU = "sys/devices/system/cpu"
ARM = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop"
GROUP = "0::/\n"


def cpuinfo(cores: int, **fields: str) -> str:
    rows = "".join(f"{name.replace('_', ' ')}\t: {value}\n" for name, value in fields.items())
    return "".join(f"processor\t: {at}\n{rows}\n" for at in range(cores))


def meminfo(total: int, available: int) -> str:
    """In kilobytes, as the kernel has it."""
    return (
        f"MemTotal:       {total} kB\nMemFree:          90000 kB\nMemAvailable:   {available} kB\n"
    )


def rails(number: int, kind: str, **channels: tuple[int, int]) -> dict[str, str]:
    """A monitor: millivolts and milliamperes by label."""
    place = f"sys/class/hwmon/hwmon{number}"
    found = {f"{place}/name": f"{kind}\n"}
    for at, (label, (volts, amperes)) in enumerate(channels.items(), 1):
        found |= {
            f"{place}/in{at}_label": f"{label}\n", f"{place}/in{at}_input": f"{volts}\n",
            f"{place}/curr{at}_input": f"{amperes}\n",
        }  # fmt: skip
    return found


def cores(online: str, present: str, governor: str, allowed: int, most: int) -> dict[str, str]:
    policy = f"{CPU}/cpufreq/policy0"
    return {
        f"{CPU}/online": f"{online}\n", f"{CPU}/present": f"{present}\n",
        f"{policy}/scaling_governor": f"{governor}\n", f"{policy}/scaling_driver": "driver\n",
        f"{policy}/scaling_max_freq": f"{allowed}\n", f"{policy}/cpuinfo_max_freq": f"{most}\n",
    }  # fmt: skip


# The same moment in the form of tegrastats, whose rails are in milliwatts, now and on average.
ORIN_TEGRASTATS = (
    "12-01-2025 09:41:07 RAM 2437/7620MB (lfb 2x4MB) SWAP 0/3810MB (cached 0MB) "
    "CPU [1%@729,0%@729,0%@729,2%@729,off,off] GR3D_FREQ 0% cpu@45.531C soc2@44.656C "
    "soc0@44.625C gpu@45.062C tj@45.531C soc1@44.437C VDD_IN 4130mW/4130mW "
    "VDD_CPU_GPU_CV 486mW/486mW VDD_SOC 1293mW/1293mW"
)
THOR_TEGRASTATS = (
    "12-01-2025 09:41:07 RAM 4211/125772MB (lfb 20x4MB) CPU [0%@972,0%@972] "
    "cpu@41.8C tj@43.1C soc012@41.9C soc345@43.1C VDD_GPU 2370mW/2370mW "
    "VDD_CPU_SOC_MSS 3556mW/3556mW VIN_SYS_5V0 3750mW/3750mW VIN 26784mW/26784mW"
)
AGX_TEGRASTATS = (
    "12-01-2025 09:41:07 RAM 13983/62780MB (lfb 424x4MB) CPU [90%@2201,100%@2201] "
    "tj@77.281C VDD_GPU_SOC 3150mW/2971mW VDD_CPU_CV 14312mW/12415mW VIN_SYS_5V0 4968mW/5048mW "
    "VDDQ_VDD2_1V8AO 1091mW/1091mW"
)
AGX = {
    **rails(3, "ina3221", VDD_GPU_SOC=(15000, 210), VDD_CPU_CV=(15000, 954),
            VIN_SYS_5V0=(4968, 1000)),
    **rails(4, "ina3221", NC=(0, 0), VDDQ_VDD2_1V8AO=(1091, 1000)),
}  # fmt: skip

FILES: dict[str, dict[str, str]] = {
    "laptop": {
        "proc/cpuinfo": cpuinfo(
            8, model_name="Fast 9 Mobile", flags="fpu sse2 avx avx2 fma f16c avx_vnni"
        ),
        "proc/meminfo": meminfo(16_000_000, 9_000_000),
        "proc/loadavg": "0.42 0.30 0.20 1/600 4242\n",
        "proc/self/cgroup": "0::/user.slice/user-1000.slice/session-2.scope\n",
        "sys/fs/cgroup/user.slice/memory.max": "max\n",
        "sys/class/dmi/id/product_name": "Laptop 14\n",
        **cores("0-7", "0-7", "powersave", 4_700_000, 4_700_000),
        f"{CPU}/cpufreq/policy0/scaling_driver": "intel_pstate\n",
        "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp\n",
        "sys/class/thermal/thermal_zone0/temp": "55000\n",
        "sys/class/thermal/thermal_zone0/trip_point_0_type": "passive\n",
        "sys/class/thermal/thermal_zone0/trip_point_0_temp": "95000\n",
        "sys/class/powercap/intel-rapl:0/name": "package-0\n",
        # A folder, which cannot be read whoever asks: the kernel gives the file to root alone.
        "sys/class/powercap/intel-rapl:0/energy_uj/x": "",
    },
    "pi5": {
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0",
        "proc/cpuinfo": cpuinfo(4, Features=f"{ARM} asimddp", CPU_implementer="0x41",
                                CPU_part="0xd0b") + "Model\t\t: Raspberry Pi 5 Model B Rev 1.0\n",
        "proc/meminfo": meminfo(8_256_000, 6_900_000),
        "proc/loadavg": "0.10 0.08 0.05 1/210 1700\n",
        "proc/self/cgroup": "0::/user.slice\n",
        **cores("0-3", "0-3", "ondemand", 2_400_000, 2_400_000),
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "82300\n",
        "sys/class/thermal/thermal_zone0/trip_point_0_type": "critical\n",
        "sys/class/thermal/thermal_zone0/trip_point_0_temp": "110000\n",
        "sys/class/thermal/thermal_zone0/trip_point_1_type": "active\n",
        "sys/class/thermal/thermal_zone0/trip_point_1_temp": "50000\n",
        "sys/class/hwmon/hwmon2/name": "rpi_volt\n",
        "sys/class/hwmon/hwmon2/in0_lcrit_alarm": "1\n",
    },
    "orin": {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "proc/device-tree/compatible":
            "nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, "
            "EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\n",
        "proc/cpuinfo": cpuinfo(4, Features=f"{ARM} asimddp", CPU_implementer="0x41",
                                CPU_part="0xd42"),
        "proc/meminfo": meminfo(7_802_000, 4_900_000),
        "proc/loadavg": "1.90 1.20 0.80 3/410 2200\n",
        "proc/self/cgroup": GROUP,
        "proc/77/stat": "77 (a (camera) app) R 1 1 1 0 -1 0 0 0 0 0 100 20 0 0 20 0 1 0 9\n",
        **cores("0-3", "0-5", "schedutil", 729_600, 1_510_400),
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "45531\n",
        "sys/class/thermal/thermal_zone0/trip_point_0_type": "passive\n",
        "sys/class/thermal/thermal_zone0/trip_point_0_temp": "99000\n",
        **rails(1, "ina3221", VDD_IN=(5080, 813), VDD_CPU_GPU_CV=(5072, 96), VDD_SOC=(5072, 255)),
    },
    "thor": {
        "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
        "proc/device-tree/compatible": "nvidia,p4071-0000+p3834-0008\0nvidia,tegra264\0",
        "etc/nv_tegra_release": "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, "
            "EABI: aarch64, DATE: Fri Aug 22 00:55:42 UTC 2025\n",
        "proc/cpuinfo": cpuinfo(14, Features=f"{ARM} asimddp sve sve2 i8mm bf16",
                                CPU_implementer="0x41", CPU_part="0xd83"),
        "proc/meminfo": meminfo(128_790_000, 120_000_000),
        "proc/loadavg": "0.05 0.05 0.05 1/500 9000\n",
        "proc/self/cgroup": GROUP,
        **cores("0-13", "0-13", "schedutil", 2_601_000, 2_601_000),
        "sys/class/hwmon/hwmon3/name": "ina238\n",
        "sys/class/hwmon/hwmon3/power1_input": "26784000\n",
        **rails(4, "ina3221", VDD_GPU=(11850, 200), VDD_CPU_SOC_MSS=(11853, 300),
                VIN_SYS_5V0=(5000, 750)),
    },
    "container": {
        "proc/cpuinfo": cpuinfo(
            64, model_name="Server 1", flags="fpu avx2 fma f16c avx512f avx512_vnni"
        ),
        "proc/meminfo": meminfo(64_000_000, 50_000_000),
        "proc/loadavg": "3.00 3.00 3.00 1/2 7\n",
        "proc/self/cgroup": GROUP,
        "sys/fs/cgroup/memory.max": "1000000000\n",
        "sys/fs/cgroup/memory.current": "200000000\n",
        "sys/fs/cgroup/memory.stat": "anon 100000000\nfile 90000000\ninactive_file 50000000\n",
        "sys/fs/cgroup/cpu.max": "150000 100000\n",
    },
}  # fmt: skip
MODES = {"orin": "NV Power Mode: 7W\n1\n", "thor": "NV Power Mode: 120W\n1\n"}
MACHINES = {"laptop": "x86_64", "container": "x86_64"}


def put(root: Path, files: Mapping[str, str]) -> None:
    """Write files below a root; of sysfs' colons file systems take all."""
    for place, text in files.items():
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def program(root: Path, name: str, script: str) -> None:
    """Put a program into the machine's path."""
    path = root / "usr/bin" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def says(root: Path, text: str) -> None:
    """Let `nvpmodel -q` write a text."""
    (root / "mode").write_text(text)
    program(root, "nvpmodel", f'[ "$*" = -q ] || exit 9\nwhile read -r l; do echo "$l"; done '
                              f'< "{root}/mode"')  # fmt: skip


def bare(root: Path, machine: str = "aarch64") -> System:
    """A machine of which nothing is known."""
    (root / "usr/bin").mkdir(parents=True, exist_ok=True)
    return System(root, str(root / "usr/bin"), "Linux", machine)


def machine(name: str, root: Path) -> System:
    """One of `FILES` below a root."""
    put(root, FILES[name])
    if name in MODES:
        says(root, MODES[name])
    return bare(root, MACHINES.get(name, "aarch64"))


def header_of_a_1b(blocks: int = 16) -> bytes:
    """The header of a Llama-3.2-1B, under an architecture whose tensors nobody compares."""
    tokens = b"".join(struct.pack("<Q", 6) + b"%06d" % at for at in range(128_256))
    made = File().put("general.architecture", "phi3").put("general.name", "large")
    for name, value in {
        "block_count": blocks, "context_length": 131_072, "embedding_length": 2048,
        "feed_forward_length": 8192, "attention.head_count": 32, "attention.head_count_kv": 8,
    }.items():  # fmt: skip
        made.put(f"phi3.{name}", value)
    made.keys[TOKENS] = ARRAY, struct.pack("<IQ", STRING, 128_256) + tokens
    return made.bytes()


def large_bundle(folder: Path, adapters: tuple[str, ...] = ("oranbench",)) -> Manifest:
    """A bundle whose backbone's header is that of a 1B model, and that holds no model."""
    made = fake.bundle(folder, adapters, quants=("Q4_K_M",))
    [old] = [file for file in made.files if file.kind == "backbone"]
    path = folder / old.path
    path.write_bytes(header_of_a_1b())
    new = describe(folder, path, kind="backbone", format="gguf", quant="Q4_K_M",
                   source=fake.WEIGHTS, parity=fake.PARITY)  # fmt: skip
    made = replace(made, files=tuple(new if one is old else one for one in made.files))
    manifests.write(made, folder)
    return made
