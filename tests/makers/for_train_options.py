"""What the tests of train options share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import export_models as models
import fake_engine as fake
import pytest

torch = pytest.importorskip("torch")

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the backbone `base` and the data set `data` of two categories."""
    root = tmp_path_factory.mktemp("options")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    models.backbone(root / "base", "llama", dtype=torch.float32, **small)
    for name in ("oranbench", "teleqna"):
        fake.dataset(root / "data", name, fake.rows(30))
    return root


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute with one thread: a child can do the same, and a busy machine slows two down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
