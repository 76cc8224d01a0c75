"""Wrong conversions and wrong adapters are refused at the default types, and the right ones pass.

What is exported is changed, what it is judged by is not: a folder beside the backbone's with one
thing wrong, an adapter's folder with other numbers in it. The adapters are those of one epoch over
a few questions, which hardly change an answer.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import export_models as models
import pytest

from tel_edge.export.commands import export
from tel_edge.export.gate import gate
from tel_edge.export.onnx import trace
from tel_edge.runtime import cli
from tel_edge.runtime.bundles import backbones, manifest
from tel_edge.train.commands import train

FORMATS = {"gguf": "Q4_K_M", "onnx": "int4"}
TRAINED, OTHER = "oranbench", "teleqna"
# Q and K have rows, V and O too; what is left out of an adapter is left out of all layers.
MLP, QK = ("gate_proj", "up_proj", "down_proj"), ("q_proj", "k_proj")
Tensors = Mapping[str, Any]


@dataclass(frozen=True)
class Trained:
    """A backbone with scaled frequencies and two adapters of one epoch; `folder` has them all.

    It is the first two layers of tel-nano, of which a graph is traced in half the time.
    """

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    def adapter(self, category: str) -> Path:
        return self.folder / "adapters" / "base" / category


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    made = Trained(tmp_path_factory.mktemp("trained"))
    shutil.copytree(backbones.embedded(), made.base)
    models.edit(made.base / "config.json", rope_parameters=models.LLAMA_3, num_hidden_layers=2)
    models.retensor(
        made.base / "model.safetensors",
        lambda tensors: {n: t for n, t in tensors.items() if not re.search(r"layers\.[23]\.", n)},
    )
    for category in (TRAINED, OTHER):
        argv = ["--workspace", str(made.folder), "--backbone", str(made.base), "--quiet"]
        argv += ["--recipe", "nano", "--epochs", "1", "--max-train", "8", "--category", category]
        assert cli.run(train.parser(), train.work, argv) == 0
    return made


@pytest.fixture(scope="module")
def right(trained: Trained) -> gate.Expected:
    """What PEFT answers with the backbone and the adapters as they are."""
    folders = {category: trained.adapter(category) for category in (TRAINED, OTHER)}
    return gate.reference(trained.base, folders)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, Path], None]:
    """Tracing, which is done once for each folder."""
    real, home = trace.trace, tmp_path_factory.mktemp("traced")

    @cache
    def plain(folder: Path) -> Path:
        made = home / str(len(list(home.iterdir())))
        made.mkdir()
        real(folder, made / "plain.onnx")
        return made

    def trace_once(folder: Path, out: Path) -> None:
        for path in plain(folder).iterdir():
            shutil.copyfile(path, out.with_name(path.name))

    return trace_once


Tel = Callable[..., int]


@pytest.fixture(params=FORMATS)
def tel_export(
    request: Any, right: Any, traced: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Tel:
    """`tel-export` at the default type of a format, judging by what is right."""
    monkeypatch.setattr(gate, "reference", lambda *_, **__: right)
    monkeypatch.setattr(trace, "trace", traced)
    # The answers alone have to tell.
    monkeypatch.setattr(gate, "check_numbers", lambda *_: None)

    def run(base: Path, *argv: str) -> int:
        common = ["--backbone", str(base), "--out", str(tmp_path / "bundle"), "--quiet"]
        common += ["--format", request.param, "--quant", FORMATS[request.param]]
        return cli.run(export.parser(), export.work, [*common, *argv])

    return run


def test_the_untouched_are_accepted(tel_export: Tel, trained: Trained, tmp_path: Path) -> None:
    both = ",".join(str(trained.adapter(category)) for category in (TRAINED, OTHER))
    assert tel_export(trained.base, "--adapter", both) == 0
    made = manifest.read(tmp_path / "bundle")
    # The file that they were judged over was not asked for.
    assert [f.quant for f in made.files if f.kind == "backbone"] in ([quant] for quant in
                                                                      FORMATS.values())  # fmt: skip
    figures = {f.category: f.parity for f in made.files if f.kind in ("backbone", "adapter")}
    backbone = figures.pop(None)
    assert backbone
    assert backbone["conversion"] < 1e-4
    assert 0.01 < backbone["quantization"] < 0.3
    for figure in figures.values():
        assert figure
        # Far below what the type costs, and measured all the same.
        assert figure["change"] < 0.2
        assert figure["adapter"] < 1e-3


def scaled(by: float) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {n: t * by if "lora_B" in n else t for n, t in tensors.items()}


def without(*modules: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {
        n: t * 0 if "lora_B" in n and any(one in n for one in modules) else t
        for n, t in tensors.items()
    }


def transposed_heads(tensors: Tensors) -> Tensors:
    """The rows of q and k in the order of the other engine's rotation."""
    return {
        n: t.unflatten(0, (-1, 2, 32)).transpose(1, 2).flatten(0, 2)
        if "lora_B" in n and any(one in n for one in QK)
        else t
        for n, t in tensors.items()
    }


WRONG_ADAPTERS: dict[str, Callable[[Tensors], Tensors]] = {
    "half the scale": scaled(0.5),
    "0.7 of the scale": scaled(0.7),
    "1.5 times the scale": scaled(1.5),
    "twice the scale": scaled(2.0),
    "no adapter": scaled(0.0),
    "negated": scaled(-1.0),
    "without the MLP's part": without(*MLP),
    "without q and k": without(*QK),
    "q and k not permuted": transposed_heads,
}


@pytest.mark.parametrize("name", [*WRONG_ADAPTERS, "another category's"])
def test_a_wrong_adapter_is_refused(
    name: str, tel_export: Tel, trained: Trained, tmp_path: Path, capsys: Any
) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(trained.adapter(TRAINED), wrong)
    weights = "adapter_model.safetensors"
    if name in WRONG_ADAPTERS:
        models.retensor(wrong / weights, WRONG_ADAPTERS[name])
    else:
        shutil.copyfile(trained.adapter(OTHER) / weights, wrong / weights)
    assert tel_export(trained.base, "--adapter", str(wrong)) == 1
    said = capsys.readouterr().err
    assert "the error of its adapter is" in said
    made = manifest.read(tmp_path / "bundle")
    assert not made.adapters()
    assert not made.adapters("onnx")
    # The cause comes before the way round.
    assert said.index("likely: an adapter_config.json") < said.index("--no-verify")
    print(said)


def config(**changed: Any) -> Callable[[Path], None]:
    return lambda base: models.edit(base / "config.json", **changed)


def weights(change: Callable[[Tensors], Tensors]) -> Callable[[Path], None]:
    return lambda base: models.retensor(base / "model.safetensors", change)


def exchanged(tensors: Tensors) -> Tensors:
    """The two layers in each other's place."""
    places = {"layers.0.": "layers.1.", "layers.1.": "layers.0."}
    swapped = {}
    for name, tensor in tensors.items():
        old = next((one for one in places if one in name), "")
        swapped[name.replace(old, places[old]) if old else name] = tensor
    return swapped


def permuted(tensors: Tensors) -> Tensors:
    return {
        n: t.unflatten(0, (-1, 2, 32)).transpose(1, 2).flatten(0, 2)
        if any(f"{one}.weight" in n for one in QK)
        else t
        for n, t in tensors.items()
    }


ROPE = models.LLAMA_3
WRONG_BACKBONES: dict[str, Callable[[Path], None]] = {
    "q and k not permuted": weights(permuted),
    "rope base x1.2": config(rope_parameters={**ROPE, "rope_theta": 1.2 * ROPE["rope_theta"]}),
    "rope scaling dropped": config(
        rope_parameters={"rope_type": "default", "rope_theta": ROPE["rope_theta"]}
    ),
    "a layer exchanged": weights(exchanged),
    "norm epsilon wrong": config(rms_norm_eps=1e-3),
}
# Each is a graph to be traced; these two are the nearest and the farthest.
QUICK = ("norm epsilon wrong", "rope scaling dropped")


@pytest.mark.parametrize(
    ("tel_export", "name"),
    [
        pytest.param(form, name, marks=pytest.mark.slow if form == "onnx" else ())
        if name not in QUICK
        else (form, name)
        for form in FORMATS
        for name in WRONG_BACKBONES
    ],
    indirect=["tel_export"],
)
def test_a_wrong_conversion_is_refused(
    name: str, tel_export: Tel, trained: Trained, tmp_path: Path, capsys: Any
) -> None:
    wrong = tmp_path / "base"
    shutil.copytree(trained.base, wrong)
    WRONG_BACKBONES[name](wrong)
    assert tel_export(wrong) == 1
    said = capsys.readouterr().err
    print(said)
    assert "the error of its conversion is" in said
    assert said.index("likely: files of the backbone's folder") < said.index("--no-verify")
    folder = tmp_path / "bundle"
    assert not [*folder.glob("*.gguf"), *folder.glob("*.onnx")]
    assert not (folder / manifest.NAME).exists() or not manifest.read(folder).quants()


def test_an_epsilon_that_hardly_shows_is_refused(
    right: gate.Expected, trained: Trained, tmp_path: Path, capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A tenth of it moves no answer by more than 1e-5; a GGUF file states it."""
    monkeypatch.setattr(gate, "reference", lambda *_, **__: right)
    wrong = tmp_path / "base"
    shutil.copytree(trained.base, wrong)
    models.edit(wrong / "config.json", rms_norm_eps=1e-6)
    argv = ["--backbone", str(wrong), "--out", str(tmp_path / "bundle"), "--quiet"]
    assert cli.run(export.parser(), export.work, argv) == 1
    assert "layer_norm_rms_epsilon is 1e-06, transformers reads 1e-05" in capsys.readouterr().err
