"""How torch's threads wait for each other in the commands that train."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tel_edge.train.sweeps import runners

pytest.importorskip("torch")
SHOW = (
    "import os, sys; from tel_edge.train.commands import {module} as command; "
    "before = 'torch' in sys.modules; "
    "command.work = lambda args: print(before, os.environ.get('GOMP_SPINCOUNT')); command.main()"
)
# The library that computes tells at its start, on stderr, what it has understood.
LOAD = (
    "import sys; from tel_edge.train.commands import train as command; "
    "command.work = lambda args: __import__('torch') and None; command.main()"
)


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**kept, **env},
    )


@pytest.mark.parametrize("module", ["train", "merge"])
def test_threads_spin_shortly_unless_the_user_says_otherwise(module: str) -> None:
    code = SHOW.format(module=module)
    assert run(code).stdout == "False 10000\n"
    assert run(code, GOMP_SPINCOUNT="5").stdout == "False 5\n"
    assert run(code, OMP_WAIT_POLICY="ACTIVE").stdout == "False None\n"


@pytest.mark.parametrize(("env", "spins"), [({}, "10000"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")])
def test_the_library_has_understood_it(env: dict[str, str], spins: str) -> None:
    said = run(LOAD, OMP_DISPLAY_ENV="VERBOSE", **env).stderr
    found = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", said)
    if not found:
        pytest.skip("another OpenMP than GNU's")
    assert set(found) == {spins}


def test_the_trainings_of_a_sweep_wait_so_too() -> None:
    # What watches the sweep would end a process without one.
    _, code = runners.TRAIN[-1].split("end_with_parent(); ")
    assert run(SHOW.format(module="train").removesuffix("command.main()") + code).stdout == (
        "False 10000\n"
    )
