"""The native side of `with_llama`: the library's log, its vocabulary and its batches."""

from __future__ import annotations

import ctypes
import re
import unicodedata
from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import Any

from tel_edge.runtime.engines.packing import PackedEntry
from tel_edge.runtime.engines.readable import CASED, Readable, text_letters
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.extras import need
from tel_edge.runtime.files.onnx_adapter import WEIGHTS

# The log belongs to the process, not to an engine: llama.cpp has one callback for all. Who asks the
# library for something empties the errors first: what it says first is the cause.
ERRORS: list[str] = []
MOST_ERRORS = 2
BUFFERS: deque[str] = deque(maxlen=200)
# Bytes of a cached value by the engine's `KV_TYPES`; Q8_0 has a two-byte scale for each 32 values.
KV_BYTES = {"F32": 4.0, "F16": 2.0, "Q8_0": 34 / 32}
BUFFER = re.compile(r"(\S+)\s+(model|KV|compute|output|LoRA) buffer size\s*=\s*([\d.]+) MiB")


@cache
def listener() -> Any:
    """Return the log callback: it keeps the first errors to explain a failure with, and sizes.

    The library may log after an engine is gone, so there is one for the life of the process.
    """

    # Levels as the library sends them: 2 is information, 4 an error.
    def keep(level: int, text: bytes, _: Any) -> None:
        if level == 4:
            said = text.decode("utf-8", "replace").strip()
            if said and len(ERRORS) < MOST_ERRORS:
                ERRORS.append(said)
        elif level == 2 and b"buffer size" in text:
            BUFFERS.append(text.decode("utf-8", "replace"))

    return need("llama_cpp.llama_cpp", "llama").llama_log_callback(keep)


def reason() -> str:
    """Return the first errors of the library since `ERRORS` was emptied, on one line."""
    return " ".join("; ".join(ERRORS).split()) or "it gives no reason"


def buffers() -> dict[str, int]:
    """Return the sizes in bytes that the library has told since `BUFFERS` was cleared.

    Keys are `weights` (mapped from the file), `repacked` (weights in memory of their own), `kv`,
    `compute`, `output` and `adapters`; those it told nothing about are missing.
    """
    names = {"KV": "kv", "compute": "compute", "output": "output", "LoRA": "adapters"}
    sizes: dict[tuple[str, str], int] = {}
    for text in BUFFERS:
        if match := BUFFER.search(text):
            where, kind, size = match.groups()
            name = names.get(kind) or ("weights" if "Mapped" in where else "repacked")
            # Buffers for computing are told again whenever they are planned again.
            before = sizes.get((name, where), 0) if kind in ("model", "LoRA") else 0
            sizes[name, where] = before + round(float(size) * 2**20)
    found: dict[str, int] = {}
    for (name, _), total in sizes.items():
        found[name] = found.get(name, 0) + total
    return found


def metadata(model: Any, key: str) -> str:
    """Return a model's metadata as text, of at most 1,023 bytes; empty where there is no key."""
    value = ctypes.create_string_buffer(1024)
    llama = need("llama_cpp.llama_cpp", "llama")
    found = llama.llama_model_meta_val_str(model, key.encode(), value, len(value))
    return value.value.decode() if found > 0 else ""


def kv_bytes(layers: int, heads: int, keys: int, values: int, kv: str) -> int:
    """Return the bytes of keys and values of one token.

    `heads` are those of keys and values in each layer, `keys` and `values` the widths of one head,
    `kv` one of `KV_TYPES`.
    """
    return round(layers * heads * (keys + values) * KV_BYTES[kv])


def model_kv_bytes(model: Any, kv: str) -> int:
    """Return what a loaded model keeps of one token, in bytes, by its own metadata."""
    llama = need("llama_cpp.llama_cpp", "llama")
    width = llama.llama_model_n_embd(model) // llama.llama_model_n_head(model)
    prefix = f"{metadata(model, 'general.architecture')}.attention"
    keys, values = (metadata(model, f"{prefix}.{one}_length") for one in ("key", "value"))
    layers, heads = llama.llama_model_n_layer(model), llama.llama_model_n_head_kv(model)
    return kv_bytes(layers, heads, int(keys or width), int(values or width), kv)


class NativeVocabulary:
    """Texts to ids and back, as the model file says."""

    def __init__(self, model: Any) -> None:
        self._llama = need("llama_cpp.llama_cpp", "llama")
        self._vocab = self._llama.llama_model_get_vocab(model)
        self.size = int(self._llama.llama_vocab_n_tokens(self._vocab))
        # llama.cpp applies no Unicode normalization; the exporter notes the tokenizer's.
        self._normal_form: Any = metadata(model, "tel_edge.tokenizer.normalizer")
        missing = bytes.fromhex(metadata(model, "tel_edge.tokenizer.missing_bytes"))
        if not metadata(model, WEIGHTS):
            missing = self._missing()
        cased = metadata(model, "tokenizer.ggml.pre") in CASED
        self._readable = Readable(frozenset(missing), cased)

    def _missing(self) -> bytes:
        """Return the bytes of texts that a byte-level vocabulary has no token for."""
        if self._llama.llama_vocab_type(self._vocab) != self._llama.LLAMA_VOCAB_TYPE_BPE:
            return b""
        left = {letter.encode(): byte for letter, byte in text_letters().items()}
        for at in range(self.size):
            left.pop(self._llama.llama_vocab_get_text(self._vocab, at), None)
            if not left:
                break
        return bytes(left.values())

    def tokenize(self, text: str, marked: bool = False) -> list[int]:
        """Return the ids of `text`, with BOS where the vocabulary asks for it.

        A text that is `marked` brings its special tokens along, BOS too.
        Raises `InputError` for a text that llama.cpp may read otherwise than the tokenizer that
        the file was exported from.
        """
        if self._normal_form:
            text = unicodedata.normalize(self._normal_form, text)
        if fault := self._readable.fault(text):
            raise InputError(f"the text has {fault}: leave it out, or use an ONNX bundle")
        data = text.encode("utf-8")
        room = len(data) + 2
        ids = (self._llama.llama_token * room)()
        # The last two: add special tokens, and parse them out of the text.
        count = self._llama.llama_tokenize(
            self._vocab, data, len(data), ids, room, not marked, marked
        )
        if count < 0:
            raise WorkError(f"llama.cpp cannot tokenize a text of {len(data)} bytes")
        return list(ids[:count])

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens left out."""
        return b"".join(map(self._piece, ids)).decode("utf-8", "replace")

    def _piece(self, token: int) -> bytes:
        room = 64
        while True:
            data = ctypes.create_string_buffer(room)
            count = self._llama.llama_token_to_piece(self._vocab, token, data, room, 0, False)
            if count >= 0:
                return data.raw[:count]
            room = -count

    def ends(self, token: int) -> bool:
        """Return whether a generation is over at `token`."""
        return bool(self._llama.llama_vocab_is_eog(self._vocab, token))

    def end(self) -> tuple[int, str]:
        """Return the token that ends a text, and its name."""
        token = int(self._llama.llama_vocab_eos(self._vocab))
        if token < 0:
            raise InputError("the vocabulary names no token that ends a text")
        return token, self.name(token)

    def name(self, token: int) -> str:
        """Return what the vocabulary calls a token."""
        return str(self._llama.llama_vocab_get_text(self._vocab, token).decode())

    def borders(self) -> tuple[str, str]:
        """Return the texts of the tokens that begin and end a text, empty where there is none."""
        llama, vocab = self._llama, self._vocab
        ids = llama.llama_vocab_bos(vocab), llama.llama_vocab_eos(vocab)
        start, end = (
            llama.llama_vocab_get_text(vocab, token).decode() if token >= 0 else "" for token in ids
        )
        return start, end


class Batch:
    """A `llama_batch` over arrays of numpy, so that filling it costs no call for each token."""

    def __init__(self, tokens: int, sequences: int) -> None:
        import numpy as np

        self._llama = need("llama_cpp.llama_cpp", "llama")
        self._token = np.zeros(tokens, np.int32)
        self._position = np.zeros(tokens, np.int32)
        self._count = np.zeros(tokens, np.int32)
        self._logits = np.zeros(tokens, np.int8)
        self._sequence = np.zeros((tokens, sequences), np.int32)
        # One pointer a token, to its row.
        rows = self._sequence.ctypes.data + np.arange(tokens) * self._sequence.strides[0]
        self._rows = rows.astype(np.uintp)
        made = self._llama.llama_batch()
        made.token = self._pointer(self._token, self._llama.llama_token)
        made.pos = self._pointer(self._position, self._llama.llama_pos)
        made.n_seq_id = self._pointer(self._count, ctypes.c_int32)
        made.seq_id = self._pointer(self._rows, ctypes.POINTER(self._llama.llama_seq_id))
        made.logits = self._pointer(self._logits, ctypes.c_int8)
        self.native = made

    @staticmethod
    def _pointer(array: Any, kind: Any) -> Any:
        return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))

    def fill(self, entries: Sequence[PackedEntry]) -> Any:
        """Put `entries` in and return the native batch."""
        n = len(entries)
        self._token[:n] = [entry.token for entry in entries]
        self._position[:n] = [entry.position for entry in entries]
        self._count[:n] = [len(entry.sequences) for entry in entries]
        self._logits[:n] = [entry.read is not None for entry in entries]
        for at, entry in enumerate(entries):
            self._sequence[at, : len(entry.sequences)] = entry.sequences
        self.native.n_tokens = n
        return self.native
