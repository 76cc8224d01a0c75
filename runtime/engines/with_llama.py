"""The llama.cpp engine, through llama-cpp-python's low-level API.

Why not the high-level `Llama`: it takes one adapter at load, turns memory mapping off for it, keeps
logits of every position and answers one prompt at a time. Here the weights are mapped once,
adapters are swapped in microseconds, many prompts share a decode, and logits are computed where
they are read.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tel_edge.runtime.engines import llama_native, packing
from tel_edge.runtime.engines.engine import EngineSettings, LoraFile, Template
from tel_edge.runtime.engines.llama_cache import PrefixCache
from tel_edge.runtime.engines.packed import OUTPUTS, SEQUENCES, PackedEngine
from tel_edge.runtime.engines.packing import PackedEntry
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.extras import need
from tel_edge.runtime.processors import cores

# `ggml_type` of each of the engine's `KV_TYPES`.
GGML_TYPES = {"F32": 0, "F16": 1, "Q8_0": 8}


class LlamaEngine(PackedEngine):
    """One GGUF backbone and its LoRA adapters in memory.

    The backbone's file must have been checked before: the native loader trusts it.
    """

    def __init__(
        self,
        path: Path,
        adapters: Mapping[str, LoraFile] | None = None,
        settings: EngineSettings | None = None,
    ) -> None:
        self._llama = need("llama_cpp.llama_cpp", "llama")
        super().__init__(adapters, settings)
        self._model: Any = None
        self._context: Any = None
        self._kv = _kv_type(self.settings.kv)
        self._llama.llama_log_set(llama_native.listener(), ctypes.c_void_p(0))
        self._llama.llama_backend_init()
        llama_native.BUFFERS.clear()
        try:
            self.timed("load", self._load, path)
            self.timed("context", self._open)
            self._batch = llama_native.Batch(self.most, SEQUENCES)
        except BaseException:
            self.close()
            raise

    def _load(self, path: Path) -> None:
        params = self._llama.llama_model_default_params()
        # Repacked and AMX buffers copy the weights, and crash in engines that GCC 12 compiled for
        # a CPU with AMX. The engine may be any build, so they are off unless asked for.
        params.use_extra_bufts = self.settings.extra_buffers
        params.n_gpu_layers = self.settings.gpu_layers or 0
        params.load_mode = self._llama.LLAMA_LOAD_MODE_MMAP
        llama_native.ERRORS.clear()
        self._model = self._llama.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise InputError(f"{path}: llama.cpp cannot load it ({llama_native.reason()})")
        self._vocabulary = llama_native.NativeVocabulary(self._model)
        self.vocabulary = self._vocabulary.size
        if made := self._llama.llama_model_chat_template(self._model, None):
            start, end = self._vocabulary.borders()
            self.template = Template(made.decode("utf-8", "replace"), start, end)

    def _open(self) -> None:
        wanted, params = self.settings, self._llama.llama_context_default_params()
        trained = int(self._llama.llama_model_n_ctx_train(self._model))
        self.context = self.span = min(wanted.context, trained)
        params.n_ctx = self.context
        self.most = min(wanted.batch or self.context, self.context)
        params.n_batch = params.n_ubatch = self.most
        params.n_seq_max = SEQUENCES
        # One cache for all sequences: a prefix is shared by marking its cells, not by copying.
        params.kv_unified = True
        # A sliding-window cache would drop cells of a prefix that another prompt still needs.
        params.swa_full = True
        params.n_outputs_max, params.n_outputs_max_per_seq = OUTPUTS, 0
        params.n_threads = params.n_threads_batch = wanted.threads or cores()
        params.flash_attn_type = -1 if wanted.flash is None else int(wanted.flash)
        params.type_k = params.type_v = self._kv
        params.no_perf = True
        llama_native.ERRORS.clear()
        self._context = self._llama.llama_init_from_model(self._model, params)
        if not self._context:
            raise WorkError(
                f"no room for a context of {self.context} tokens ({llama_native.reason()}); "
                "pass a smaller --context"
            )
        self.cache = PrefixCache(self._context)
        self.kv_bytes_per_token = llama_native.model_kv_bytes(self._model, wanted.kv)

    @property
    def version(self) -> str:
        """Return the package's name and version."""
        return f"llama-cpp-python {need('llama_cpp', 'llama').__version__}"

    def memory_split(self) -> dict[str, int]:
        """Return the bytes of weights, kv, compute, output and adapters, where they are known."""
        return llama_native.buffers()

    def ids(self, text: str) -> list[int]:
        """Return the ids of `text`, with BOS where the vocabulary asks for it."""
        return self._vocabulary.tokenize(text)

    def marked(self, text: str) -> list[int]:
        """Return the ids of what a chat template made."""
        with self._reading:
            return self._vocabulary.tokenize(text, marked=True)

    # What `PackedEngine` asks for

    def open_adapter(self, file: Path) -> Any:
        """Load a LoRA GGUF file."""
        llama_native.ERRORS.clear()
        made = self._llama.llama_adapter_lora_init(self._model, os.fsencode(file))
        if not made:
            raise InputError(f"{file}: no adapter for this backbone ({llama_native.reason()})")
        return made

    def free_adapter(self, handle: Any) -> None:
        """Free an adapter."""
        self._llama.llama_adapter_lora_free(handle)

    def activate(self, handle: Any | None, scale: float) -> None:
        """Set the context's one adapter, or none."""
        chosen = [] if handle is None else [handle]
        handles = (self._llama.llama_adapter_lora_p_ctypes * len(chosen))(*chosen)
        scales = (ctypes.c_float * len(chosen))(*[scale] * len(chosen))
        code = self._llama.llama_set_adapters_lora(self._context, handles, len(chosen), scales)
        if code != 0:
            raise WorkError(f"llama.cpp cannot set an adapter (code {code})")

    def ends(self, token: int) -> bool:
        """Return whether the vocabulary has that token as the end of a text."""
        return self._vocabulary.ends(token)

    def end(self) -> tuple[int, str]:
        """Return the token that ends a text, and its name."""
        return self._vocabulary.end()

    def name(self, token: int) -> str:
        """Return what the vocabulary calls a token."""
        return self._vocabulary.name(token)

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of generated tokens."""
        return self._vocabulary.text(tokens)

    def decode(self, entries: Sequence[PackedEntry]) -> Iterator[tuple[tuple[int, int], Any]]:
        """Decode and yield (what is read, its logits)."""
        import numpy as np

        try:
            for part in packing.pieces(entries, self.most, OUTPUTS):
                llama_native.ERRORS.clear()
                code = self._llama.llama_decode(self._context, self._batch.fill(part))
                if code != 0:
                    raise WorkError(
                        f"llama_decode failed with code {code} ({llama_native.reason()})"
                    )
                for at, entry in enumerate(part):
                    if entry.read is not None:
                        row = self._llama.llama_get_logits_ith(self._context, at)
                        yield entry.read, np.ctypeslib.as_array(row, (self.vocabulary,))
        except BaseException:
            # Half a decode is in the cache.
            self.forget()
            raise

    def free(self) -> None:
        """Free the context and the model, which frees its adapters with it."""
        if self._context:
            self._llama.llama_free(self._context)
        if self._model:
            self._llama.llama_model_free(self._model)
        self._context = self._model = None


def _kv_type(name: str) -> int:
    if name not in GGML_TYPES:
        raise InputError(f"no KV type {name!r}; there are: {' '.join(GGML_TYPES)}")
    return GGML_TYPES[name]
