"""The threads of a training are as many as have a core for themselves."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

import torch

from tel_edge.train import callbacks, sharing
from tel_edge.train.sharing import Reading, Share


class Cores:
    """Cores whose others' load of each half second is given, while this process has `own`."""

    def __init__(self, others: Iterable[float], own: float = 1.0) -> None:
        self.others, self.own = iter(others), own
        self.now = Reading(0.0, 0.0, 0.0)

    def read(self) -> Reading:
        before = self.now
        self.now = Reading(
            before.clock + 0.5,
            before.busy + 0.5 * (next(self.others) + self.own),
            before.own + 0.5 * self.own,
        )
        return before


def threads(most: int, cores: int, *others: float) -> list[int]:
    share = Share(most, cores, Cores([*others, 0.0]).read)
    return [share.look() for _ in others]


@pytest.mark.parametrize(
    ("most", "cores", "others", "wanted"),
    [
        # Alone, and beside what takes no core.
        (2, 2, [0.0, 0.1, 0.3, 0.3], [2, 2, 2, 2]),
        # Beside a busy process at once one, and two again after two looks that found it gone.
        (2, 2, [0.5, 1.0, 1.0, 0.0, 0.0, 0.0], [1, 1, 1, 1, 2, 2]),
        # One free look alone is none: what is busy may have waited for a disk.
        (2, 2, [0.5, 0.0, 1.0, 0.0, 0.0], [1, 1, 1, 1, 2]),
        # Between both bounds it stays as it is.
        (2, 2, [0.5, 0.3, 0.3, 0.3], [1, 1, 1, 1]),
        # Never less than one, and as many as are left where there are more cores.
        (2, 2, [2.0, 5.0], [1, 1]),
        (8, 8, [2.0, 3.1, 7.9], [6, 5, 1]),
        # Fewer threads than cores lose none to what has the other cores.
        (2, 8, [5.0, 6.0, 7.0], [2, 2, 1]),
    ],
)
def test_as_many_threads_as_have_a_core(
    most: int, cores: int, others: list[float], wanted: list[int]
) -> None:
    assert threads(most, cores, *others) == wanted


def test_a_look_too_soon_is_none() -> None:
    made = iter([Reading(0, 0, 0), Reading(0.4, 0.8, 0), Reading(0.5, 1.0, 0)])
    share = Share(2, 2, lambda: next(made))
    assert (share.look(), share.look()) == (2, 1)


def test_readings_grow_and_hold_this_process() -> None:
    before = sharing.reading()
    sum(range(3_000_000))
    after = sharing.reading()
    assert after.own > before.own
    assert after.clock > before.clock
    # The system counts in hundredths of a second.
    assert after.busy - before.busy > after.own - before.own - 0.05


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterable[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(callbacks, "cores", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_training_gives_way_says_so_once_and_takes_its_threads_back(
    two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [1.0, 0.0, 0.0, 1.0, 1.0]
    monkeypatch.setattr(sharing, "reading", Cores(others).read)
    monkeypatch.setattr(callbacks, "Share", lambda most, cores: Share(most, cores, sharing.reading))
    said: list[str] = []
    gives_way, found = callbacks.GivesWay(said.append), []
    for _ in range(4):
        gives_way.on_step_end(None, None, None)
        found.append(torch.get_num_threads())
    assert found == [1, 1, 2, 1]
    assert len(said) == 1
    assert "1 of 2 threads" in said[0]
    gives_way.on_train_end(None, None, None)
    assert torch.get_num_threads() == 2


def test_a_number_of_the_users_stays(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert callbacks.GivesWay().share is None
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert callbacks.GivesWay().share is not None


def test_a_resumed_run_counts_its_steps_for_their_threads(
    two_threads: None, tmp_path: Path
) -> None:
    begun = SimpleNamespace(max_steps=2, global_step=0)
    first = callbacks.Watch(tmp_path, "nano", quiet=True)
    first.on_train_begin(None, begun, None)
    first.on_step_end(None, None, None)
    first.on_save(None, None, None)
    second = callbacks.Watch(tmp_path, "nano", quiet=True)
    second.on_train_begin(None, begun, None)
    torch.set_num_threads(1)
    second.on_step_end(None, None, None)
    assert second.threads == {"2": 1, "1": 1}
