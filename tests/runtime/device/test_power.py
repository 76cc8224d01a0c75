"""How power is set: what the system says, a program that hangs, fails or changes its mind."""

from __future__ import annotations

import time
from pathlib import Path

import fake_machines as fakes
import pytest
from conftest import until

from tel_edge.runtime.device import power
from tel_edge.runtime.device.power import Power, Watch


class Clock:
    """Time that a test makes go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_jetson_says_its_mode_governor_and_cores(tmp_path: Path) -> None:
    found = power.now(fakes.machine("orin", tmp_path))
    assert found == Power("7W", "schedutil", 4)
    assert found.key == "7W, schedutil, 4 cores online"


def test_where_nothing_is_known_there_is_no_key(tmp_path: Path) -> None:
    system = fakes.bare(tmp_path)
    assert power.now(system) == Power()
    assert Power().key == ""
    # The machine's own name has its cores.
    assert Power(online=4).key == ""
    assert Power(governor="schedutil").key == "schedutil"


def test_groups_of_cores_may_have_several_governors(tmp_path: Path) -> None:
    place = "sys/devices/system/cpu/cpufreq/policy{}/scaling_governor"
    words = {0: "schedutil", 4: "performance", 6: "schedutil"}
    fakes.put(tmp_path, {place.format(at): name for at, name in words.items()})
    assert power.governor(fakes.bare(tmp_path)) == "performance+schedutil"


@pytest.mark.parametrize(
    ("text", "cores"),
    [("0-3", 4), ("0", 1), ("0-1,4,6-7", 5), ("", None), (None, None), ("x", None)],
)
def test_a_list_of_cores_is_counted(text: str | None, cores: int | None) -> None:
    assert power.count(text) == cores


# What nvpmodel writes, in the forms that its releases have, and the mode.
SAID = (
    ("NV Power Mode: MODE_15W\n2\n", "MODE_15W"),
    ("NV Power Mode: MAXN_SUPER\n2\n", "MAXN_SUPER"),
    ("NVPM WARN: fan mode is not set!\nNV Power Mode: 15W\n0\n", "15W"),
    (
        "NVPM VERB: Config file: /etc/nvpmodel.conf\n"
        "NVPM VERB: Current mode: NV Power Mode: 25W\n1\n",
        "25W",
    ),
    ("NV Fan Mode:quiet\nNV Power Mode: 30W\n3\n", "30W"),
    ("NVPM ERROR: failed to read PARAM GPU\n", None),
    ("NV Power Mode:\n", None),
    ("2\n", None),
    ("", None),
)


@pytest.mark.parametrize(("text", "mode"), SAID)
def test_the_mode_is_read_from_what_nvpmodel_says(
    text: str, mode: str | None, tmp_path: Path
) -> None:
    fakes.says(tmp_path, text)
    assert power.mode(fakes.bare(tmp_path)) == mode


@pytest.mark.parametrize("script", ["exit 1", "echo NV Power Mode: X; exit 1"])
def test_a_program_that_fails_says_no_mode(script: str, tmp_path: Path) -> None:
    fakes.program(tmp_path, "nvpmodel", script)
    assert power.mode(fakes.bare(tmp_path)) is None


def test_a_program_that_hangs_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "SECONDS", 0.2)
    fakes.program(tmp_path, "nvpmodel", "echo NV Power Mode: X; exec /bin/sleep 20")
    began = time.monotonic()
    assert power.mode(fakes.bare(tmp_path)) is None
    assert time.monotonic() - began < 5


def test_it_is_asked_seldom(tmp_path: Path) -> None:
    system, clock = fakes.machine("orin", tmp_path), Clock()
    watch = Watch(system, clock)
    assert watch.now().mode == "7W"
    fakes.says(tmp_path, "NV Power Mode: 15W\n0\n")
    clock.now += power.EVERY - 1
    assert watch.now().mode == "7W", "as of a moment ago"
    # What costs a file is read each time.
    fakes.put(tmp_path, {"sys/devices/system/cpu/online": "0-5\n"})
    assert watch.now().online == 6
    clock.now += 2
    assert watch.now().mode == "15W"


def test_one_that_hung_is_not_asked_for_a_while_and_what_it_said_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, clock = fakes.machine("orin", tmp_path), Clock()
    asked = []

    def slow(_: object) -> str | None:
        asked.append(clock.now)
        if len(asked) == 2:
            clock.now += power.SECONDS
            return None
        return "7W"

    monkeypatch.setattr(power, "mode", slow)
    watch = Watch(system, clock)
    assert watch.now().mode == "7W"
    clock.now += power.EVERY
    assert watch.now().mode == "7W"
    clock.now += power.EVERY * 2
    assert watch.now().mode == "7W"
    assert len(asked) == 2
    clock.now += power.LATER
    watch.now()
    assert len(asked) == 3


def test_a_change_is_said_once(tmp_path: Path) -> None:
    system, clock = fakes.machine("orin", tmp_path), Clock()
    watch = Watch(system, clock)
    assert watch.change() is None, "nothing was before"
    clock.now += power.EVERY
    assert watch.change() is None
    fakes.says(tmp_path, "NV Power Mode: 15W\n0\n")
    clock.now += power.EVERY
    assert watch.change() == (
        "warning: the device's power is now 15W, schedutil, 4 cores online, it was 7W, schedutil, "
        "4 cores online; settings stay those of before until the next start"
    )
    clock.now += power.EVERY
    assert watch.change() is None
    # A program that is gone, or fails, has not said that the mode is another.
    (tmp_path / "usr/bin/nvpmodel").unlink()
    clock.now += power.EVERY
    assert watch.change() is None


def test_changes_are_said_while_something_else_goes_on(tmp_path: Path) -> None:
    system, said = fakes.machine("orin", tmp_path), []
    with power.told(Watch(system), said.append, 0.01):
        time.sleep(0.1)
        fakes.put(tmp_path, {"sys/devices/system/cpu/online": "0-5\n"})
        until(lambda: said)
    fakes.put(tmp_path, {"sys/devices/system/cpu/online": "0-1\n"})
    time.sleep(0.1)
    assert len(said) == 1
    assert "6 cores online" in said[0]
