"""What is read of a machine where its files are other than on the five whole ones."""

from __future__ import annotations

from pathlib import Path

import fake_machines as fakes
import pytest
from fake_machines import bare, put

from tel_edge.runtime.device import facts
from tel_edge.runtime.device.facts import Room
from tel_edge.runtime.device.system import System

GB = 1_000_000_000


def room(root: Path, **files: str) -> Room:
    put(root, {"proc/meminfo": fakes.meminfo(8_000_000, 6_000_000)})
    put(root, {name.replace("__", "/"): text for name, text in files.items()})
    return facts.memory(bare(root))


def test_without_a_limit_what_is_available_is_free(tmp_path: Path) -> None:
    found = room(tmp_path)
    assert found == Room(8_192_000_000, 6_144_000_000, None, None)
    assert found.free == 6_144_000_000


def test_the_tightest_group_counts(tmp_path: Path) -> None:
    put(tmp_path, {
        "proc/self/cgroup": "0::/system.slice/tel-serve.service\n",
        "sys/fs/cgroup/system.slice/memory.max": f"{4 * GB}\n",
        "sys/fs/cgroup/system.slice/memory.current": f"{3 * GB}\n",
        "sys/fs/cgroup/system.slice/tel-serve.service/memory.max": f"{2 * GB}\n",
        "sys/fs/cgroup/system.slice/tel-serve.service/memory.current": "100000000\n",
    })  # fmt: skip
    found = room(tmp_path)
    assert (found.limit, found.left, found.free) == (4 * GB, GB, GB)


def test_version_1_has_other_names_and_no_limit_is_a_large_one(tmp_path: Path) -> None:
    place = "sys/fs/cgroup/memory"
    put(tmp_path, {
        # The folder is the host's, which a container does not see.
        "proc/self/cgroup": "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n",
        f"{place}/memory.limit_in_bytes": "9223372036854771712\n",
        f"{place}/memory.usage_in_bytes": "300000000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    })  # fmt: skip
    assert room(tmp_path).limit is None
    assert facts.processor(bare(tmp_path)).quota is None
    put(tmp_path, {
        f"{place}/memory.limit_in_bytes": f"{GB}\n",
        f"{place}/memory.stat": "inactive_file 1\ntotal_inactive_file 100000000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
    })  # fmt: skip
    found = room(tmp_path)
    assert (found.limit, found.left) == (GB, 800_000_000)
    assert facts.processor(bare(tmp_path)).quota == 0.5


def test_a_limit_above_the_machines_memory_is_none(tmp_path: Path) -> None:
    put(tmp_path, {
        "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{99 * GB}\n",
        "sys/fs/cgroup/memory.current": "5\n",
    })  # fmt: skip
    assert room(tmp_path).limit is None


def test_where_nothing_can_be_read_nothing_is_known(tmp_path: Path) -> None:
    system = bare(tmp_path)
    assert facts.board(system) is None
    assert facts.jetson(system) is None
    assert facts.jetpack(system) is None
    assert facts.load(system) is None
    assert facts.others(system, lambda _: None) == ()
    found = facts.processor(system)
    assert (found.name, found.features, found.online, found.capped) == ("aarch64", (), None, None)
    heat = facts.heat(system)
    assert (heat.celsius, heat.trip, heat.undervoltage) == (None, facts.USUAL_TRIP, False)
    assert facts.memory(system).available is None


def test_sensors_that_are_off_are_left_out(tmp_path: Path) -> None:
    zones = {0: "-256000", 1: "0", 2: "43000", 3: "1000000", 4: ""}
    for at, text in zones.items():
        place = f"sys/class/thermal/thermal_zone{at}"
        put(tmp_path, {f"{place}/temp": text, f"{place}/type": f"zone-{at}\n"})
    found = facts.heat(bare(tmp_path))
    assert (found.zone, found.celsius) == ("zone-2", 43.0)


def test_cores_of_several_kinds_and_of_none_that_is_known(tmp_path: Path) -> None:
    text = "CPU part\t: 0xd05\n\nCPU part\t: 0xd0b\n\nCPU part\t: 0xfff\n"
    put(tmp_path, {"proc/cpuinfo": text})
    found = facts.processor(bare(tmp_path))
    assert found.name == "Cortex-A55 and Cortex-A76 and ARM core 0xfff"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# R35 (release), REVISION: 6.0, X", "JetPack 5, Jetson Linux 35.6.0"),
        ("# R39 (release), REVISION: 1.0, X", "JetPack 7, Jetson Linux 39.1.0"),
        ("# R99 (release), REVISION: 1, X", "JetPack ?, Jetson Linux 99.1"),
        ("something else", None),
    ],
)
def test_jetpacks_by_the_release_of_jetson_linux(
    text: str, said: str | None, tmp_path: Path
) -> None:
    put(tmp_path, {"etc/nv_tegra_release": text})
    assert facts.jetpack(bare(tmp_path)) == said


def test_a_mac_says_its_processor_by_a_program(tmp_path: Path) -> None:
    fakes.program(tmp_path, "sysctl", '[ "$2" = machdep.cpu.brand_string ] && echo "Apple M9"')
    system = System(tmp_path, str(tmp_path / "usr/bin"), "Darwin", "arm64")
    assert facts.processor(system).name == "Apple M9"


def test_a_file_that_is_no_text_or_no_number_is_none(tmp_path: Path) -> None:
    put(tmp_path, {"number": "12a\n", "folder/x": ""})
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\0")
    system = bare(tmp_path)
    assert system.number("number") is None
    assert system.text("folder") is None
    assert system.text("bytes") == "��"
    assert system.said("no-such-program", seconds=1) is None
