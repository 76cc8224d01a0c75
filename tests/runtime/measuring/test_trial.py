"""The engines' trials: what a real one says, and what is made of one that fails."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from tel_edge.runtime.device.child import in_child
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.files import gguf_header, onnx_header
from tel_edge.runtime.measuring import tiny, trial
from tel_edge.runtime.measuring.trial import Tried


def test_the_names_that_are_looked_for_are_those_that_the_engine_calls() -> None:
    text = "".join(
        (ROOT / "runtime" / "engines" / name).read_text()
        for name in ("llama_native.py", "llama_cache.py", "with_llama.py")
    )
    called = set(re.findall(r"(?:_llama|\bllama)\.((?:llama|LLAMA)_\w+)", text))
    called |= set(re.findall(r'"llama"\)\.(llama_\w+)', text))
    called |= {"llama_supports_gpu_offload", "llama_print_system_info"}
    assert set(trial.SYMBOLS) == called


def test_tiny_models_pass_the_checks_of_bundles(tmp_path: Path) -> None:
    tiny.gguf(tmp_path / "tiny.gguf")
    header = gguf_header.whole(tmp_path / "tiny.gguf")
    assert {*header.types.values()} == {tiny.F32, tiny.Q8_0, tiny.Q4_K, tiny.Q6_K}
    assert (tmp_path / "tiny.gguf").stat().st_size < 1_000_000
    model, given, _ = tiny.onnx()
    (tmp_path / "tiny.onnx").write_bytes(model)
    assert onnx_header.check(tmp_path / "tiny.onnx").inputs == {"x": (2, tiny.SIDE)}
    assert len(given) == 2


def test_onnx_says_what_numpy_does() -> None:
    library = pytest.importorskip("onnxruntime")
    numpy = pytest.importorskip("numpy")
    model, given, wanted = tiny.onnx()
    session = library.InferenceSession(model, providers=["CPUExecutionProvider"])
    [made] = session.run(None, {"x": numpy.array(given, numpy.float32)})
    assert numpy.allclose(made, wanted, atol=1e-4)


def test_the_real_engines_work_here() -> None:
    pytest.importorskip("llama_cpp")
    pytest.importorskip("onnxruntime")
    for made in (trial.llama(), trial.onnx()):
        assert made
        assert (made.error, made.missing) == ("", ())
        assert made.milliseconds > 0


def dies(*_: Any) -> None:
    """Die as native code does that was compiled for another processor."""
    os.kill(os.getpid(), signal.SIGILL)


@pytest.mark.skipif(os.name == "nt", reason="no signals")
def test_a_crash_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "there", lambda _: True)

    def run(limit: float, work: Callable[..., Any], *given: Any) -> Any:
        return in_child(limit, dies)

    for made in (trial.llama(run), trial.onnx(run)):
        assert made
        assert made.error == "crashed (SIGILL)"


def test_an_engine_that_is_not_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "there", lambda _: False)
    assert trial.llama() is None
    assert trial.onnx() is None


CPU = trial._Llama((), True, (), (-1.0, -2.0), 5.0)


def llama(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> Tried:
    """A trial of a build that says it can use a GPU, and there does `gpu`."""
    monkeypatch.setattr(trial, "there", lambda _: True)

    def run(limit: float, work: Any, layers: int) -> Any:
        if layers == 0:
            return CPU
        if isinstance(gpu, Exception):
            raise gpu
        return gpu

    made = trial.llama(run)
    assert made
    return made


def on(*devices: str, logprobs: tuple[float, ...] = (-1.01, -2.0)) -> Any:
    return trial._Llama((), True, devices, logprobs, 5.0)


@pytest.mark.parametrize(
    ("gpu", "others"),
    [
        (on("CUDA0"), {"CUDA0": ""}),
        (on(), {"GPU": "all layers stayed on the CPU"}),
        (
            on("CUDA0", logprobs=(-3.0, -2.0)),
            {"CUDA0": "its log-probabilities are 2.00 nats from the CPU's"},
        ),
        (WorkError("crashed (SIGSEGV)"), {"GPU": "crashed (SIGSEGV)"}),
        (WorkError("took longer than 120 s"), {"GPU": "took longer than 120 s"}),
    ],
)
def test_a_gpu_has_to_compute_what_the_cpu_does(
    gpu: Any, others: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = llama(gpu, monkeypatch)
    assert made.error == ""
    assert made.others == others


def test_each_provider_that_is_listed_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "there", lambda _: True)
    tried: list[str] = []

    def run(limit: float, work: Any, provider: str) -> Any:
        tried.append(provider)
        if provider.startswith("Tensor"):
            raise InputError("libnvinfer.so.10: cannot open shared object file")
        return 1.5, ("TensorrtExecutionProvider", "CUDAExecutionProvider", *trial.ELSEWHERE)

    made = trial.onnx(run)
    assert made
    assert made.others == {
        "TensorrtExecutionProvider": "libnvinfer.so.10: cannot open shared object file",
        "CUDAExecutionProvider": "",
    }
    assert tried == [
        "CPUExecutionProvider", "TensorrtExecutionProvider", "CUDAExecutionProvider"
    ]  # fmt: skip


def test_a_provider_that_is_not_there_fails() -> None:
    """It would warn and compute on the CPU; with the way back shut it cannot."""
    pytest.importorskip("onnxruntime")
    with pytest.raises(WorkError, match="fallback to CPU EP"):
        in_child(60, trial._onnx, "CUDAExecutionProvider")
