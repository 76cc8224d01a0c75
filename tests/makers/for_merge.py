"""What the tests of merge share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import export_models as models
import fake_engine as fake
import pytest

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.benchmarks.split import split
from tel_edge.runtime.questions.categories import category

torch = pytest.importorskip("torch")

# In the order of the table of categories.
NAMES = ("teleqna", "oranbench")
TARGETS = ["q_proj", "down_proj"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the backbone `base` and the data set `data` of two categories."""
    made = tmp_path_factory.mktemp("merge")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    models.backbone(made / "base", "llama", dtype=torch.float32, **small)
    for name in NAMES:
        fake.dataset(made / "data", name, fake.rows(20))
    return made


@pytest.fixture
def home(root: Path, tmp_path: Path) -> Path:
    """A workspace with an adapter of rank 4 a category."""
    for seed, name in enumerate(NAMES):
        put(root, tmp_path, name, seed + 1)
    return tmp_path


def put(root: Path, home: Path, name: str, seed: int = 1, **options: Any) -> Path:
    settings = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, **options}
    folder = models.adapter(home / "adapters" / "base" / name, root / "base", seed=seed, **settings)
    parts = split(benchmark.read(str(root / "data"), category(name)).questions, 42)
    models.bind(
        folder, root / "base", category=name, split=parts.digest, splits={name: parts.digest},
        seed=42, dataset="data", over=None, config={"batch": 4},
    )  # fmt: skip
    return folder


def placed(home: Path, name: str) -> Path:
    return home / "adapters" / "base" / name


def record(home: Path, name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((placed(home, name) / "training.json").read_text())
    return read


def scored(home: Path, name: str, splits: dict[str, str], **right: int) -> None:
    """Write a record with scores; 10 questions a category."""
    from dataclasses import asdict

    from tel_edge.eval.statistics import share

    folder = placed(home, name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(bytes(2_000_000))
    rows = [
        {
            "category": of, "questions": 10, "too_long": 0,
            "pass1": asdict(share(count, 10)), "majority": asdict(share(count, 10)),
        }
        for of, count in right.items()
    ]  # fmt: skip
    kind = {"merged": {"method": name}} if name.startswith("merged") else {}
    document = {"category": name, "splits": splits, "split": "x", "test": rows, **kind}
    (folder / "training.json").write_text(json.dumps(document))
