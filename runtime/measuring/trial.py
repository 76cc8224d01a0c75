"""Whether this machine's engines work: each is tried with a tiny model, in a process of its own.

What a library says of itself is what it was compiled with. llama.cpp takes layers for a GPU and
leaves them on the CPU where there is none, and onnxruntime does so with a whole graph; so what
computed is read from what came of it.
"""

from __future__ import annotations

import math
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tel_edge.runtime.bundles.formats import FORMATS
from tel_edge.runtime.device.child import in_child
from tel_edge.runtime.engines.engine import EngineSettings, Item
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.extras import need, there
from tel_edge.runtime.measuring import tiny

# What the engine calls of llama.cpp (a test compares).
SYMBOLS = (
    "LLAMA_LOAD_MODE_MMAP", "LLAMA_VOCAB_TYPE_BPE", "llama_adapter_lora_free",
    "llama_adapter_lora_init", "llama_adapter_lora_p_ctypes", "llama_backend_init", "llama_batch",
    "llama_context_default_params", "llama_decode", "llama_free", "llama_get_logits_ith",
    "llama_get_memory", "llama_init_from_model", "llama_log_callback", "llama_log_set",
    "llama_memory_clear", "llama_memory_seq_cp", "llama_memory_seq_rm", "llama_model_chat_template",
    "llama_model_default_params", "llama_model_free", "llama_model_get_vocab",
    "llama_model_load_from_file", "llama_model_meta_val_str", "llama_model_n_ctx_train",
    "llama_model_n_embd", "llama_model_n_head", "llama_model_n_head_kv", "llama_model_n_layer",
    "llama_pos", "llama_print_system_info", "llama_seq_id",
    "llama_set_adapters_lora", "llama_state_seq_get_data", "llama_state_seq_get_size",
    "llama_state_seq_set_data", "llama_supports_gpu_offload",
    "llama_token", "llama_token_to_piece", "llama_tokenize", "llama_vocab_bos", "llama_vocab_eos",
    "llama_vocab_get_text", "llama_vocab_is_eog", "llama_vocab_n_tokens", "llama_vocab_type",
)  # fmt: skip
# Seconds for a try: a driver's first start compiles kernels.
LIMIT = 120.0
# How far a GPU's log-probabilities may be from the CPU's, in nats; wrong ones are further.
FAR = 0.3
# Listed by every build, and no provider that computes here.
ELSEWHERE = ("CPUExecutionProvider", "AzureExecutionProvider")
NO_FALLBACK = "session.disable_cpu_ep_fallback"
Run = Callable[..., Any]


@dataclass(frozen=True)
class Tried:
    """How an engine did: `error` is what failed on the CPU, `missing` the names that it lacks.

    `others` are the GPUs or providers that it says it has, each with what failed there, "" if it
    computed what the CPU did. `built` are the processor's features that llama.cpp was compiled for.
    """

    version: str = ""
    error: str = ""
    missing: tuple[str, ...] = ()
    milliseconds: float = 0.0
    others: Mapping[str, str] = field(default_factory=dict)
    built: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Llama:
    missing: tuple[str, ...] = ()
    gpu: bool = False
    devices: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()
    milliseconds: float = 0.0
    built: tuple[str, ...] = ()


def llama(run: Run = in_child) -> Tried | None:
    """Try llama.cpp, None where it is not installed; `run` is how a process of its own is had."""
    if not there("llama_cpp"):
        return None
    version = FORMATS["gguf"].version()
    try:
        made: _Llama = run(LIMIT, _llama, 0)
    except (InputError, WorkError) as error:
        return Tried(version, str(error))
    found = Tried(version, "", made.missing, made.milliseconds, {}, made.built)
    if not made.gpu or made.missing:
        return found
    try:
        there_too: _Llama = run(LIMIT, _llama, -1)
    except (InputError, WorkError) as error:
        return replace(found, others={"GPU": str(error)})
    far = max(abs(a - b) for a, b in zip(made.logprobs, there_too.logprobs, strict=True))
    said = "" if far <= FAR else f"its log-probabilities are {far:.2f} nats from the CPU's"
    names = there_too.devices
    others = dict.fromkeys(names, said) or {"GPU": "all layers stayed on the CPU"}
    return replace(found, others=others)


def _llama(layers: int) -> _Llama:
    """Answer with a tiny model, so many layers of it on the GPU."""
    library = need("llama_cpp.llama_cpp", "llama")
    if missing := tuple(name for name in SYMBOLS if not hasattr(library, name)):
        return _Llama(missing)
    from tel_edge.runtime.engines.llama_native import BUFFER, BUFFERS

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        tiny.gguf(path)
        settings = EngineSettings(context=tiny.CONTEXT, gpu_layers=layers)
        began = time.perf_counter()
        engine = FORMATS["gguf"].open(path, {}, settings)
        try:
            labels = tuple((token,) for token in range(4))
            asked = [Item(engine.tokenize(text * 9), labels) for text in ("Which? ", "Why? ")]
            scores = sorted(engine.score(asked, None))
        finally:
            engine.close()
        spent = (time.perf_counter() - began) * 1000
    logprobs = tuple(value for _, score in scores for value in score.logprobs)
    if len(logprobs) != 8 or not all(map(math.isfinite, logprobs)):
        raise WorkError(f"it computes no probabilities: {logprobs[:4]}")
    places = {found[1] for text in BUFFERS if (found := BUFFER.search(text))}
    devices = tuple(sorted(name for name in places if "CPU" not in name and "Host" not in name))
    gpu = bool(library.llama_supports_gpu_offload())
    said = library.llama_print_system_info().decode("utf-8", "replace")
    built = tuple(re.findall(r"(\w+) = 1", said))
    return _Llama((), gpu, devices, logprobs, round(spent, 1), built)


def onnx(run: Run = in_child) -> Tried | None:
    """Try onnxruntime, None where it is not installed."""
    if not there("onnxruntime"):
        return None
    version = FORMATS["onnx"].version()
    try:
        milliseconds, names = run(LIMIT, _onnx, "CPUExecutionProvider")
    except (InputError, WorkError) as error:
        return Tried(version, str(error))
    others: dict[str, str] = {}
    for name in names:
        if name in ELSEWHERE:
            continue
        try:
            run(LIMIT, _onnx, name)
        except (InputError, WorkError) as error:
            others[name] = str(error)
        else:
            others[name] = ""
    missing = () if there("tokenizers") else ("tokenizers",)
    return Tried(version, "", missing, milliseconds, others)


def _onnx(provider: str) -> tuple[float, tuple[str, ...]]:
    """Multiply on a provider and nowhere else; return the milliseconds and all that are listed."""
    import numpy as np

    library = need("onnxruntime", "onnx")
    if not hasattr(library, "LoraAdapter"):
        raise InputError("it has no adapters; 1.23.2 or newer is needed")
    model, given, wanted = tiny.onnx()
    options = library.SessionOptions()
    options.log_severity_level = 4
    if provider not in ELSEWHERE:
        options.add_session_config_entry(NO_FALLBACK, "1")
    began = time.perf_counter()
    session = library.InferenceSession(model, options, providers=[provider])
    if provider not in session.get_providers():
        raise WorkError(f"listed, but not there: it would be {session.get_providers()[0]}")
    [made] = session.run(None, {"x": np.array(given, np.float32)})
    if not np.allclose(made, np.array(wanted), rtol=0.02, atol=0.05):
        raise WorkError("it computes something else than the CPU")
    spent = (time.perf_counter() - began) * 1000
    return round(spent, 1), tuple(library.get_available_providers())
