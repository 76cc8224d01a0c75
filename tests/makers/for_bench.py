"""What the tests of bench share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest

from tel_edge.runtime.commands import bench
from tel_edge.runtime.engines.engine import (
    EngineSettings,
    Generation,
    Item,
    LoraFile,
    Sampling,
    Score,
)
from tel_edge.runtime.measuring import measurement, probe
from tel_edge.runtime.questions.categories import CATEGORIES

Command = Callable[..., tuple[int, str, str]]
SAFE = EngineSettings()
ONE = CATEGORIES["oranbench"]


class Clock:
    """Stands for the module `time` where the command measures: only engines make it go on."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


CLOCK = Clock()


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (probe, measurement):
        monkeypatch.setattr(module, "time", CLOCK)


class Engine:
    """Bytes are tokens; every call of `score` takes the seconds of `cost` for the settings."""

    version = "fake 1"
    kv_bytes_per_token = None

    def __init__(
        self, path: Path, adapters: Mapping[str, LoraFile], settings: EngineSettings
    ) -> None:
        CLOCK.now += 0.100
        self.path = path
        self.settings, self.adapters, self.context = settings, adapters, settings.context
        self.timing = {"load": 60.0, "context": 30.0}
        self.calls: list[tuple[Any, ...]] = []
        self.scored = 0

    def cost(self) -> float:
        return 0.002

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode())

    def score(self, items: Sequence[Item], adapter: str | None) -> Iterator[tuple[int, Score]]:
        self.calls.append(("score", len(items), adapter))
        CLOCK.now += self.cost()
        # Last first: decodes end in any order.
        for at, item in reversed(list(enumerate(items))):
            self.scored += 1
            size = len(item.labels)
            tokens = len(item.prompt)
            yield at, Score((math.log(1 / size),) * size, tokens, tokens - 10, 0.0)

    def generate(
        self, prompts: Sequence[tuple[Sequence[int], Sampling]], adapter: str | None
    ) -> Iterator[tuple[int, Generation]]:
        raise NotImplementedError

    def load_adapter(self, name: str) -> None:
        assert name in self.adapters
        CLOCK.now += 0.003
        self.calls.append(("load", name))

    def use(self, name: str | None) -> None:
        CLOCK.now += 0.0005
        self.calls.append(("use", name))

    def plain_rate(self, adapter: str | None, tokens: int = 512) -> float:
        self.calls.append(("plain", adapter, tokens))
        return 1e6

    def memory_split(self) -> dict[str, int]:
        return {"weights": 700, "kv": 50, "compute": 20, "output": 3}

    def close(self) -> None:
        self.calls.append(("close",))


class GetsSlower(Engine):
    """All are the same, and every engine is 1 % slower than the one before."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        SLOWER.append(0.002 * (1 + len(SLOWER) / 100))
        self.seconds = SLOWER[-1]

    def cost(self) -> float:
        return self.seconds


SLOWER: list[float] = []


class LikesSmallBatches(Engine):
    def cost(self) -> float:
        return {128: 0.004, 256: 0.001}.get(self.settings.batch, 0.008)


def engine(settings: EngineSettings = SAFE, kind: type[Engine] = Engine) -> Engine:
    return kind(Path("model"), {"oranbench": LoraFile(Path, "d")}, settings)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a bundle, and a place for a profile."""
    fake.bundle(tmp_path / "bundles" / "tel-nano", adapters=("oranbench", "3gpp_tsg"))
    monkeypatch.setenv("TEL_PROFILE", str(tmp_path / "profile.json"))
    return tmp_path


@pytest.fixture
def tel_bench(home: Path, run_command: Command) -> Command:
    def made(*argv: str, opener: Any = Engine) -> tuple[int, str, str]:
        work = partial(bench.work, opener=opener, isolated=False)
        return run_command(bench.parser(), work, "--workspace", str(home), *argv)

    return made
