"""What the C library does with large blocks that are freed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tel_edge.runtime.device import facts, heap

LINUX = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="glibc's allocator")
# Pages that are new to the process while it makes and frees blocks of 64 MB, after the first.
PROGRAM = """
import resource, numpy
from tel_edge.runtime.device import heap
{call}
numpy.ones(8_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    numpy.ones(8_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call: str, **more: str) -> int:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    env.pop("GLIBC_TUNABLES", None)
    return int(
        subprocess.run(
            [sys.executable, "-c", PROGRAM.format(call=call)], check=True, capture_output=True,
            env={**env, "NUMPY_MADVISE_HUGEPAGE": "0", **more},
        ).stdout
    )  # fmt: skip


@LINUX
def test_large_blocks_are_kept_for_the_next() -> None:
    if heap._function("mallopt") is None:
        pytest.skip("another C library than glibc")
    assert faults("") > 50_000
    assert faults("heap.keep()") < 5_000
    # Who has chosen already is not overruled.
    assert faults("heap.keep()", MALLOC_MMAP_THRESHOLD_="131072") > 50_000


@pytest.mark.parametrize(
    ("held", "free", "given"),
    [(1 << 40, 0, []), (0, 1 << 40, []), (0, 1, [0]), (0, None, [0])],
    ids=["little held", "others have more", "others have less", "nobody knows"],
)
def test_free_memory_goes_back_where_much_is_held_and_others_have_less(
    monkeypatch: pytest.MonkeyPatch, held: int, free: int | None, given: list[int]
) -> None:
    called: list[int] = []
    monkeypatch.setattr(heap, "_function", lambda _: called.append)
    monkeypatch.setattr(heap, "HELD", held)
    monkeypatch.setattr(heap.facts, "memory", lambda _: facts.Room(None, free, None, None))
    heap.give_back()
    assert called == (given if os.path.exists("/proc/self/statm") else [])
