"""What the tests of run share."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest

from tel_edge.runtime.commands import run

Command = Callable[..., tuple[int, str, str]]
ASK = {"question": "gold 2", "choices": ["a", "b", "c", "d"]}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A workspace whose bundle has adapters for oranbench and 3gpp_tsg."""
    fake.bundle(tmp_path / "bundles" / "tel-nano", adapters=("oranbench", "3gpp_tsg"))
    return tmp_path


@pytest.fixture
def tel_run(
    home: Path, run_command: Command, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run the command with a fake engine; `lines` go to stdin."""

    def made(
        *argv: str, lines: Any = b"", opener: fake.FakeOpener | None = None
    ) -> tuple[int, str, str]:
        stdin = io.TextIOWrapper(io.BytesIO(lines)) if isinstance(lines, bytes) else lines
        monkeypatch.setattr("sys.stdin", stdin)
        work = partial(run.work, opener=opener or fake.FakeOpener())
        return run_command(run.parser(), work, "--workspace", str(home), *argv)

    return made


def records(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def jsonl(*rows: Any) -> bytes:
    return b"".join(
        (row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows
    )


MIXED = [
    {
        "question": f"gold {at % 3}" + " or so" * (at % 5),
        "category": "oranbench" if at % 3 else "3gpp_tsg",
        **({"choices": ["a", "b", "c"]} if at % 3 else {}),
    }
    for at in range(20)
]
