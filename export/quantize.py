"""The types a backbone can be exported in, one row each, and llama.cpp's quantizer."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tel_edge.export.container import Step
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.extras import need


@dataclass(frozen=True)
class Quant:
    """One row: `ftype` is llama.cpp's `llama_ftype` number, `bits` about what a weight takes."""

    name: str
    ftype: int
    bits: float
    use: str

    @property
    def plain(self) -> bool:
        """Return whether the type is written as it is, without the quantizer."""
        return self.bits >= 16


# Bits as llama.cpp's quantize tool states them for 8B models; small ones, in which the embedding
# weighs more, take up to a fifth more.
QUANTS: dict[str, Quant] = {
    row.name: row
    for row in (
        Quant("F32", 0, 32.0, "reference for comparisons; no device needs it"),
        Quant("F16", 1, 16.0, "the unquantized baseline; source of the types below"),
        Quant("BF16", 32, 16.0, "the checkpoint's own values where F16's range is too small"),
        Quant("Q8_0", 7, 8.5, "almost no loss; any row width"),
        Quant("Q6_K", 18, 6.56, "hardly any loss"),
        Quant("Q5_K_M", 17, 5.7, "small loss"),
        Quant("Q4_K_M", 15, 4.89, "the usual balance of size and accuracy"),
        Quant("IQ4_XS", 30, 4.46, "smaller than Q4_K_M at about its accuracy, slower to decode"),
        Quant("Q4_0", 2, 4.66, "simple blocks, fast on ARM with dot-product instructions"),
        Quant("Q3_K_M", 12, 4.0, "clear loss; for very little memory"),
        Quant("Q2_K", 10, 3.16, "large loss; to see where it breaks"),
    )
}

# GGML_LOG_LEVEL_ERROR of ggml.h; the comment in llama-cpp-python's _logger.py is older.
ERROR = 4
# The widest block of a K-quant; a narrower row gets another type from the quantizer.
BLOCK = 256


def rows(text: str) -> tuple[Quant, ...]:
    """Return the rows that `--quant A,B` names. Raises `InputError` with the names there are."""
    names = dict.fromkeys(part.strip() for part in text.split(",") if part.strip())
    unknown = [name for name in names if name not in QUANTS]
    if unknown or not names:
        raise InputError(
            f"--quant: no type {(unknown or [''])[0]!r}; there are: {' '.join(QUANTS)}"
        )
    return tuple(QUANTS[name] for name in names)


def quantize(source: Path, out: Path, row: Quant, step: Step) -> None:
    """Quantize the GGUF file `source` (F16) to `out`; `step` is called with 1 for each tensor.

    Raises `WorkError` with the last error that llama.cpp logged.
    """
    llama = need("llama_cpp.llama_cpp", "export")
    params = llama.llama_model_quantize_default_params()
    params.ftype = row.ftype
    params.nthread = len(os.sched_getaffinity(0))
    with _listening(llama, step) as errors:
        code = llama.llama_model_quantize(
            os.fsencode(source), os.fsencode(out), ctypes.byref(params)
        )
    if code != 0:
        reason = errors[-1] if errors else "it gives no reason"
        raise WorkError(f"llama.cpp cannot make {row.name} of {source.name} ({reason})")


@contextmanager
def _listening(llama: Any, step: Step) -> Iterator[list[str]]:
    """Take llama.cpp's log: its errors are kept, its tensor counter drives the bar."""
    errors: list[str] = []
    raised: list[BaseException] = []

    def keep(level: int, text: bytes, _: Any) -> None:
        # An exception cannot pass through native code: an interrupt waits for its end.
        try:
            line = text.decode("utf-8", "replace").strip()
            if level == ERROR and line:
                errors.append(line.splitlines()[0])
            if re.match(r"\[ *\d+/ *\d+\]", line):
                step(1)
        except BaseException as error:
            raised.append(error)

    callback = llama.llama_log_callback(keep)
    llama.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        yield errors
    finally:
        # Ours is about to be freed, and the package's own prints everything.
        llama.llama_log_set(silence(), ctypes.c_void_p(0))
    if raised:
        raise raised[0]


@cache
def silence() -> Any:
    """Return a log callback that drops every line and lives as long as the process.

    llama.cpp may log at any time, so the callback it holds must never be freed.
    """
    return need("llama_cpp.llama_cpp", "export").llama_log_callback(lambda *_: None)
