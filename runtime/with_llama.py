"""The llama.cpp engine, through llama-cpp-python's low-level API.

Why not the high-level `Llama`: it takes one adapter at load, turns memory mapping off for it and
keeps logits of every position. Here the weights are mapped once, adapters are swapped in
microseconds, and logits are computed for the last position alone.
"""

from __future__ import annotations

import ctypes
import os
import time
import unicodedata
from collections import deque
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tel_edge.runtime.engine import Score
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.extras import need

BATCH = 512

# The log belongs to the process, not to an engine: llama.cpp has one callback for all.
MESSAGES: deque[str] = deque(maxlen=10)


@cache
def listener() -> Any:
    """Return the log callback that keeps warnings and errors, to explain a failure with.

    The library may log after an engine is gone, so there is one for the life of the process.
    """

    # Levels as the library sends them: 3 is a warning, 4 an error.
    def keep(level: int, text: bytes, _: Any) -> None:
        if level in (3, 4):
            MESSAGES.append(text.decode("utf-8", "replace").strip())

    return need("llama_cpp.llama_cpp", "llama").llama_log_callback(keep)


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class LlamaEngine:
    """One GGUF backbone and its LoRA adapters in memory.

    `adapters` maps names to LoRA GGUF files; `context` is the number of tokens of the KV cache.
    Files must have been checked before: the native loader trusts them.
    """

    def __init__(
        self,
        path: Path,
        adapters: Mapping[str, Path] | None = None,
        threads: int | None = None,
        context: int = 4096,
    ) -> None:
        self._llama = need("llama_cpp.llama_cpp", "llama")
        self._model: Any = None
        self._context: Any = None
        self._adapters: dict[str, Any] = {}
        self._listen()
        self._load(path)
        for name, file in (adapters or {}).items():
            self._add(name, file)
        self._open(threads or cores(), context)
        # What the cache holds: the adapter under which it was computed, and its tokens. A prefix
        # computed under another adapter gives that adapter's answers, silently.
        self._cached: tuple[str | None, list[int]] = (None, [])
        self._batch = self._llama.llama_batch_init(BATCH, 0, 1)

    def _listen(self) -> None:
        self._llama.llama_log_set(listener(), ctypes.c_void_p(0))
        self._llama.llama_backend_init()

    def _load(self, path: Path) -> None:
        params = self._llama.llama_model_default_params()
        # Repacked and AMX buffers copy the weights, and crash in engines that GCC 12 compiled for
        # a CPU with AMX. The engine may be any build, so they stay off.
        params.use_extra_bufts = False
        params.n_gpu_layers = 0
        params.load_mode = self._llama.LLAMA_LOAD_MODE_MMAP
        self._model = self._llama.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise InputError(f"{path}: llama.cpp cannot load it ({self._reason()})")
        self._vocab = self._llama.llama_model_get_vocab(self._model)
        self._vocabulary = self._llama.llama_vocab_n_tokens(self._vocab)
        # llama.cpp applies no Unicode normalization; the exporter notes the tokenizer's.
        self._normal_form: Any = self._metadata("tel_edge.tokenizer.normalizer")

    def _metadata(self, key: str) -> str:
        value = ctypes.create_string_buffer(64)
        found = self._llama.llama_model_meta_val_str(self._model, key.encode(), value, len(value))
        return value.value.decode() if found > 0 else ""

    def _add(self, name: str, file: Path) -> None:
        adapter = self._llama.llama_adapter_lora_init(self._model, os.fsencode(file))
        if not adapter:
            raise InputError(f"{file}: no adapter for this backbone ({self._reason()})")
        self._adapters[name] = adapter

    def _open(self, threads: int, context: int) -> None:
        params = self._llama.llama_context_default_params()
        trained = int(self._llama.llama_model_n_ctx_train(self._model))
        self.context = min(context, trained)
        params.n_ctx = self.context
        params.n_batch = params.n_ubatch = BATCH
        params.n_seq_max = 1
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        self._context = self._llama.llama_init_from_model(self._model, params)
        if not self._context:
            raise WorkError(
                f"no room for a context of {self.context} tokens ({self._reason()}); "
                "pass a smaller --context"
            )
        self._memory = self._llama.llama_get_memory(self._context)

    def _reason(self) -> str:
        return MESSAGES[-1] if MESSAGES else "it gives no reason"

    @property
    def version(self) -> str:
        """Return the package's name and version."""
        return f"llama-cpp-python {need('llama_cpp', 'llama').__version__}"

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of `text`, with BOS where the vocabulary asks for it."""
        if self._normal_form:
            text = unicodedata.normalize(self._normal_form, text)
        data = text.encode("utf-8")
        room = len(data) + 2
        ids = (self._llama.llama_token * room)()
        # The last two: add special tokens, and do not parse them out of the text.
        count = self._llama.llama_tokenize(self._vocab, data, len(data), ids, room, True, False)
        if count < 0:
            raise WorkError(f"llama.cpp cannot tokenize a text of {len(data)} bytes")
        return list(ids[:count])

    def score(self, prompt: Sequence[int], labels: Sequence[int], adapter: str | None) -> Score:
        """Return the labels' log-probabilities after `prompt`; see `Engine.score`."""
        began = time.perf_counter()
        self._use(adapter)
        kept = self._keep(adapter, prompt)
        self._decode(prompt, kept)
        self._cached = (adapter, list(prompt))
        values = self._logprobs(labels)
        return Score(values, len(prompt), len(prompt) - kept, (time.perf_counter() - began) * 1000)

    def _use(self, adapter: str | None) -> None:
        if adapter is not None and adapter not in self._adapters:
            raise InputError(f"no adapter {adapter!r} is loaded")
        chosen = [] if adapter is None else [self._adapters[adapter]]
        handles = (self._llama.llama_adapter_lora_p_ctypes * len(chosen))(*chosen)
        scales = (ctypes.c_float * len(chosen))(*[1.0] * len(chosen))
        code = self._llama.llama_set_adapters_lora(self._context, handles, len(chosen), scales)
        if code != 0:
            raise WorkError(f"llama.cpp cannot set adapter {adapter!r} (code {code})")

    def _keep(self, adapter: str | None, prompt: Sequence[int]) -> int:
        """Trim the cache to what it shares with `prompt` and return how many tokens that is."""
        owner, cached = self._cached
        shared = 0
        if owner == adapter:
            # The last token is always decoded, since its logits are wanted.
            for have, wanted in zip(cached, prompt[:-1], strict=False):
                if have != wanted:
                    break
                shared += 1
        if not self._llama.llama_memory_seq_rm(self._memory, 0, shared, -1):
            self._llama.llama_memory_clear(self._memory, True)
            shared = 0
        self._cached = (adapter, [])
        return shared

    def _decode(self, prompt: Sequence[int], done: int) -> None:
        batch = self._batch
        for at in range(done, len(prompt), BATCH):
            part = prompt[at : at + BATCH]
            batch.n_tokens = len(part)
            for i, token in enumerate(part):
                batch.token[i] = token
                batch.pos[i] = at + i
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = at + i == len(prompt) - 1
            code = self._llama.llama_decode(self._context, batch)
            if code != 0:
                self._llama.llama_memory_clear(self._memory, True)
                raise WorkError(f"llama_decode failed with code {code} ({self._reason()})")

    def _logprobs(self, labels: Sequence[int]) -> tuple[float, ...]:
        import numpy as np

        row = self._llama.llama_get_logits_ith(self._context, -1)
        logits = np.ctypeslib.as_array(row, shape=(self._vocabulary,)).astype(np.float64)
        if not np.isfinite(logits).all():
            raise WorkError("the model gives logits that are not finite; its weights are damaged")
        top = logits.max()
        total = top + np.log(np.exp(logits - top).sum())
        return tuple(float(logits[label] - total) for label in labels)

    def close(self) -> None:
        """Free the native memory; the engine is not usable after it."""
        if self._context:
            self._llama.llama_batch_free(self._batch)
            self._llama.llama_free(self._context)
        if self._model:
            # The model frees its adapters with it.
            self._llama.llama_model_free(self._model)
        self._context = self._model = None
        self._adapters = {}
