"""A GGUF backbone back in Hugging Face form, and adapters trained over it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import export_models as models
import fake_engine as fake
import pytest
from conftest import shown

from tel_edge.export.commands import export
from tel_edge.export.gguf import dequantize, gguf_layout
from tel_edge.runtime.bundles.formats import FORMATS
from tel_edge.runtime.engines.engine import EngineSettings, Item
from tel_edge.runtime.errors import InputError
from tel_edge.train.commands import train

torch = pytest.importorskip("torch")
Command = Callable[..., tuple[int, str, str]]
Exported = Callable[[str], tuple[Path, Path]]
KINDS = ("llama", "qwen3", "exaone4")
QUANTS = ("F16", "Q8_0")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The folder of a tiny model of a kind, and its bundle in F16 and Q8_0."""

    @cache
    def made(kind: str) -> tuple[Path, Path]:
        home = tmp_path_factory.mktemp(kind)
        small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
        base = models.backbone(home / "base", kind, dtype=torch.float32, **small)
        argv = ["--workspace", str(home), "--backbone", str(base), "--quant", ",".join(QUANTS)]
        args = export.parser().parse_args([*argv, "--no-verify", "--quiet"])
        export.work(args)
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


def file(bundle: Path, quant: str) -> Path:
    (found,) = bundle.glob(f"*{quant}.gguf")
    return found


def tensors(folder: Path) -> Mapping[str, Any]:
    from safetensors.torch import load_file

    read: Mapping[str, Any] = load_file(folder / "model.safetensors")
    return read


@pytest.mark.parametrize("kind", KINDS)
def test_f16_comes_back_exactly(exported: Exported, tmp_path: Path, kind: str) -> None:
    base, bundle = exported(kind)
    count = dequantize.dequantize(file(bundle, "F16"), base, tmp_path / "out")
    wanted, found = tensors(base), tensors(tmp_path / "out")
    assert set(found) == set(wanted)
    assert count == len(found)
    for name, values in wanted.items():
        # Vectors, the norms' weights, are stored as F32.
        kept = values if values.dim() == 1 else values.half().float()
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], kept), name


@pytest.mark.parametrize("kind", KINDS)
def test_q8_0_comes_back_within_its_step(exported: Exported, tmp_path: Path, kind: str) -> None:
    base, bundle = exported(kind)
    dequantize.dequantize(file(bundle, "Q8_0"), base, tmp_path / "out")
    found, differs = tensors(tmp_path / "out"), False
    for name, values in tensors(base).items():
        if values.dim() == 1:
            assert torch.equal(found[name], values)
            continue
        blocks = values.reshape(-1, 32)
        # Half a step of 1/127 of the block's largest; the scale itself is rounded to F16.
        step = blocks.abs().amax(1, keepdim=True) / 127
        apart = (found[name].reshape(-1, 32) - blocks).abs()
        assert bool((apart <= step * 0.51 + blocks.abs() * 2**-10).all()), name
        differs = differs or bool(apart.any())
    assert differs


@pytest.mark.parametrize(("heads", "rows"), [(4, 64), (1, 8), (0, 5)])
def test_the_permutation_is_undone(heads: int, rows: int) -> None:
    import numpy as np

    values = np.arange(rows * 3).reshape(rows, 3)
    there = gguf_layout.permuted(values, heads)
    assert np.array_equal(dequantize.unpermuted(there, heads), values)
    assert heads in (0,) or rows == 2 * heads or not np.array_equal(there, values)


def test_a_file_of_another_model_is_refused(
    exported: Exported, tmp_path: Path, run_command: Command
) -> None:
    (_, bundle), (other, _) = exported("llama"), exported("qwen3")
    with pytest.raises(InputError, match="not exported from"):
        dequantize.dequantize(file(bundle, "F16"), other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    argv = (str(file(bundle, "F16")), str(other), str(tmp_path / "out"))
    code, _, err = run_command(dequantize.parser(), dequantize.work, *argv)
    assert code == 2
    assert "not exported from" in err


def probabilities(path: Path, prompt: tuple[int, ...], labels: list[int]) -> list[float]:
    """Return what llama.cpp gives the labels."""
    engine = FORMATS["gguf"].engine(path, {}, EngineSettings(threads=1, context=128))
    item = Item(prompt, tuple((label,) for label in labels))
    ((_, score),) = engine.score([item], None)
    return list(score.logprobs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_computes_what_the_engine_computes(
    exported: Exported, tmp_path: Path, kind: str
) -> None:
    pytest.importorskip("llama_cpp")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, bundle = exported(kind)
    dequantize.dequantize(file(bundle, "Q8_0"), base, tmp_path / "out")
    prompt = tuple(
        AutoTokenizer.from_pretrained(tmp_path / "out")("Answer: which xApp?")["input_ids"]
    )
    labels = [40, 41, 42, 43]
    found = {}
    for folder in (tmp_path / "out", base):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            logits = model(torch.tensor([prompt])).logits[0, -1]
        found[folder] = torch.log_softmax(logits, -1)[labels]
    engine = torch.tensor(probabilities(file(bundle, "Q8_0"), prompt, labels))
    # Up to activations, which the engine quantizes as well.
    assert found[tmp_path / "out"].tolist() == pytest.approx(engine.tolist(), abs=0.05)
    assert found[tmp_path / "out"].tolist() != found[base].tolist()


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
