"""Adapters trained over the quantized file that a bundle ships."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import export_models as models
import fake_engine as fake
import pytest
from conftest import shown

from tel_edge.export import ExportRequest
from tel_edge.export.exporting import export
from tel_edge.train.commands import train

torch = pytest.importorskip("torch")
Command = Callable[..., tuple[int, str, str]]
Exported = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The folder of a tiny model of a kind, and its bundle in F16 and Q8_0."""

    @cache
    def made(kind: str) -> tuple[Path, Path]:
        home = tmp_path_factory.mktemp(kind)
        small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
        base = models.backbone(home / "base", kind, dtype=torch.float32, **small)
        export(
            ExportRequest(
                workspace=home, backbone=str(base), quant="F16,Q8_0", verify=False, quiet=True
            )
        )
        return base, home / "bundles" / "base"

    return made


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Train with one thread, which a busy machine does not slow down; undo what it sets."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("one_thread")
def test_an_adapter_is_trained_over_the_file_that_ships(
    exported: Exported, tmp_path: Path, run_command: Command
) -> None:
    base, bundle = exported("llama")
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "base").symlink_to(bundle)
    data = fake.dataset(tmp_path / "data", "oranbench", fake.rows(30))
    argv = ["--workspace", str(tmp_path), "--backbone", str(base), "--dataset", str(data)]
    argv += ["--category", "oranbench", "--rank", "2", "--epochs", "1", "--quiet"]
    done = run_command(train.parser(), train.work, *argv, "--over-quant", "Q8_0")
    assert run_command(train.parser(), train.work, *argv)[0] == 0
    assert done[0] == 0
    assert done[1].startswith("oranbench-over-Q8_0 ")
    folder = tmp_path / "adapters" / "base"
    assert set(shown(folder)) == {"oranbench", "oranbench-over-Q8_0"}
    over, plain = (
        json.loads((folder / name / "training.json").read_text())
        for name in ("oranbench-over-Q8_0", "oranbench")
    )
    assert (over["over"]["quant"], plain["over"]) == ("Q8_0", None)
    assert len(over["over"]["sha256"]) == 64
    assert over["digest"] != plain["digest"]
    assert over["backbone"] == plain["backbone"]
    assert over["curve"] != plain["curve"], "other weights, other losses"
    # Nothing names the folder with the weights, which is gone.
    configs = [
        json.loads((folder / name / "adapter_config.json").read_text())
        for name in ("oranbench-over-Q8_0", "oranbench")
    ]
    assert configs[0] == configs[1]


def test_another_backbone_s_bundle_is_refused(
    exported: Exported, tmp_path: Path, run_command: Command
) -> None:
    (_, bundle), (other, _) = exported("llama"), exported("qwen3")
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "base").symlink_to(bundle)
    data = fake.dataset(tmp_path / "data", "oranbench", fake.rows(30))
    argv = ["--workspace", str(tmp_path), "--backbone", str(other), "--dataset", str(data)]
    code, _, err = run_command(
        train.parser(), train.work, *argv, "--category", "oranbench", "--over-quant", "Q8_0"
    )
    assert code == 2
    assert "a bundle of another base" in err
