"""The types a backbone can be exported in, one row each, and llama.cpp's quantizer."""

from __future__ import annotations

import ctypes
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tel_edge.export.gguf.container import ALIGNMENT
from tel_edge.export.gguf.importance import Importance
from tel_edge.export.progress import Step
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.extras import need
from tel_edge.runtime.files import gguf_header
from tel_edge.runtime.processors import cores

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class Quant:
    """One row: `ftype` is llama.cpp's `llama_ftype` number, `bits` about what a weight takes.

    `apart` is the largest `parity.Parity.error` with which a file of that type is accepted, beside
    the unquantized one; F32, which that is, beside transformers. `file` is that of a backbone which
    is of the type already, and is taken as it is.
    """

    name: str
    ftype: int
    bits: float
    apart: float
    use: str
    file: Path | None = None

    @property
    def fixed(self) -> bool:
        """Return whether no option of the quantizer changes what is in a file of the type."""
        return self.plain or self.file is not None

    @property
    def plain(self) -> bool:
        """Return whether the type is written as it is, without the quantizer."""
        return self.bits >= 16


# Bits as llama.cpp's quantize tool states them for 8B models; small ones, in which the embedding
# weighs more, take up to a fifth more.
QUANTS: dict[str, Quant] = {
    row.name: row
    for row in (
        Quant("F32", 0, 32.0, 0.0002, "what the others are judged beside; no device needs it"),
        Quant("F16", 1, 16.0, 0.05, "the unquantized baseline; source of the types below"),
        Quant("BF16", 32, 16.0, 0.2, "the checkpoint's own values where F16's range is too small"),
        Quant("Q8_0", 7, 8.5, 0.2, "almost no loss; any row width"),
        Quant("Q6_K", 18, 6.56, 0.4, "hardly any loss"),
        Quant("Q5_K_M", 17, 5.7, 0.6, "small loss"),
        Quant("Q4_K_M", 15, 4.89, 0.9, "the usual balance of size and accuracy"),
        Quant("IQ4_XS", 30, 4.46, 0.9, "smaller than Q4_K_M, about as good, slower to decode"),
        Quant("Q4_0", 2, 4.66, 0.9, "simple blocks, fast on ARM with dot-product instructions"),
        Quant("Q3_K_M", 12, 4.0, 1.0, "clear loss; for very little memory"),
        Quant("Q2_K", 10, 3.16, 1.2, "large loss; to see where it breaks"),
    )
}

# GGML_LOG_LEVEL_ERROR of ggml.h; the comment in llama-cpp-python's _logger.py is older.
ERROR = 4

# What llama.cpp 0.3.36's src/llama-quant.cpp logs for a tensor: its head, after which other lines
# may come, the type it gets (a real run, a dry run), and the type that its row did not allow.
HEAD = re.compile(r"^\[ *\d+/ *(\d+)\] (\S+) +- \[[\d, ]+\], type = +(\w+), ", re.M)
MADE = re.compile(r"converting to (\w+) \.\. |MiB -> +[\d.]+ MiB \((\w+)\)$", re.M)
FELL = re.compile(
    r"^warning: (\S+) +- ncols .*\(required for type +(\w+)\) .*-> falling back to +(\w+)$", re.M
)


@dataclass(frozen=True)
class Override:
    """The ggml type `kind` for the tensors in whose GGUF name `pattern` is found."""

    pattern: str
    kind: str


@dataclass(frozen=True)
class Fallback:
    """A tensor whose rows are no multiple of the wanted type's blocks, and the type it got."""

    tensor: str
    wanted: str
    got: str


@dataclass(frozen=True)
class QuantizeOutcome:
    """The ggml type of every tensor by its GGUF name, and those that are not what was wanted."""

    tensors: Mapping[str, str]
    fallbacks: tuple[Fallback, ...]


@dataclass(frozen=True)
class _Log:
    """What llama.cpp said: all its pieces, and the first line of each error."""

    pieces: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def rows(text: str, own: Quant | None = None) -> tuple[Quant, ...]:
    """Return the rows that `--quant A,B` names; `own` is that of a backbone's file.

    Raises `InputError` with the names there are.
    """
    known = {**QUANTS, own.name: own} if own else QUANTS
    names = dict.fromkeys(part.strip() for part in text.split(",") if part.strip())
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise InputError(f"--quant: no type {(unknown or [''])[0]!r}; there are: {' '.join(known)}")
    return tuple(known[name] for name in names)


def of_file(file: Path, parameters: int) -> Quant:
    """Return the row of a GGUF file with so many weights; what has none is judged as its like."""
    metadata = gguf_header.check(file).metadata
    name, bits = gguf_header.file_type(metadata), 8 * file.stat().st_size / parameters
    like = min(QUANTS.values(), key=lambda row: abs(row.bits - bits))
    row = Quant(name, metadata.get("general.file_type", 0), bits, like.apart, "the file itself")
    return replace(QUANTS.get(name, row), file=file)


def overrides(texts: Sequence[str], names: Sequence[str]) -> tuple[Override, ...]:
    """Return what the values PATTERN=TYPE of `--tensor-type` mean; the first match counts.

    `names` are the GGUF names of the tensors that can be quantized. Raises `InputError` for a type
    that there is not, a pattern that is no regular expression, and one that changes no tensor.
    """
    made: list[Override] = []
    left = set(names)
    for text in texts:
        # A type has no equals sign, a pattern may.
        pattern, _, kind = text.rpartition("=")
        if not pattern:
            raise InputError(f"--tensor-type: {text!r} is no PATTERN=TYPE, such as ffn_down=Q6_K")
        if kind.upper() not in _kinds():
            raise InputError(
                f"--tensor-type: no type {kind!r} in {text!r}; there are: {' '.join(_kinds())}"
            )
        try:
            found = {name for name in names if re.search(pattern, name)}
        except re.error as error:
            raise InputError(
                f"--tensor-type: {pattern!r} is no regular expression ({error})"
            ) from None
        if not found & left:
            reason = (
                "is found only in tensors that an earlier --tensor-type has"
                if found
                else f"is in no tensor's name; names are such as {min(names, default='')}"
            )
            raise InputError(f"--tensor-type: {pattern!r} {reason}")
        left -= found
        made.append(Override(pattern, kind.upper()))
    return tuple(made)


@cache
def _kinds() -> tuple[str, ...]:
    """Return the ggml types that files may have; none of them needs an importance matrix."""
    kinds = need("gguf", "export").GGMLQuantizationType
    return tuple(kinds(number).name for number in gguf_header.BLOCKS)


def quantize(
    source: Path,
    out: Path,
    row: Quant,
    step: Step,
    *,
    overrides: Sequence[Override] = (),
    importance: Importance | None = None,
    dry: bool = False,
) -> QuantizeOutcome:
    """Quantize the GGUF file `source` (F16) to `out`; `step` is called with 1 for each tensor.

    With `dry` nothing is written and of `source` only the header is read. Raises `WorkError` with
    the last error that llama.cpp logged.
    """
    llama = need("llama_cpp.llama_cpp", "export")
    params = llama.llama_model_quantize_default_params()
    params.ftype = row.ftype
    params.nthread = cores()
    params.dry_run = dry
    if overrides:
        params.tt_overrides = _overriding(llama, source, overrides)
    # Native code reads these arrays in place, so they have a name until it is done.
    means = {name: importance.mean(name) for name in importance.sums} if importance else {}
    if means:
        params.imatrix = _weighting(llama, means)
    with _listening(llama, step) as log:
        code = llama.llama_model_quantize(
            os.fsencode(source), os.fsencode(out), ctypes.byref(params)
        )
    if code != 0:
        reason = log.errors[-1] if log.errors else "it gives no reason"
        raise WorkError(f"llama.cpp cannot make {row.name} of {source.name} ({reason})")
    return parsed("".join(log.pieces))


def _overriding(llama: Any, source: Path, overrides: Sequence[Override]) -> Any:
    """Return the array that llama.cpp reads up to a pattern of NULL, one entry a tensor.

    C++ reads a regular expression in another way than Python, so whole names are given to it.
    """
    kinds = need("gguf", "export").GGMLQuantizationType
    entries = []
    for name in gguf_header.check(source).tensors:
        wanted = next((one for one in overrides if re.search(one.pattern, name)), None)
        if wanted:
            whole = f"^{re.escape(name)}$".encode()
            entries.append(llama.llama_model_tensor_override(whole, int(kinds[wanted.kind])))
    return (llama.llama_model_tensor_override * (len(entries) + 1))(*entries)


def _weighting(llama: Any, means: Mapping[str, npt.NDArray[np.float32]]) -> Any:
    """Return the array that llama.cpp reads up to a name of NULL; it points into `means`."""
    entries = [
        llama.llama_model_imatrix_data(
            name.encode(), values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), values.size
        )
        for name, values in means.items()
    ]
    return (llama.llama_model_imatrix_data * (len(entries) + 1))(*entries)


def parsed(text: str) -> QuantizeOutcome:
    """Read the types of all tensors from llama.cpp's log of one quantization.

    Raises `WorkError` if the log is not that of the llama.cpp this is written for.
    """
    heads = list(HEAD.finditer(text))
    tensors = {}
    for head, following in zip_longest(heads, heads[1:]):
        made = MADE.search(text, head.end(), following.start() if following else len(text))
        tensors[head[2]] = (made[1] or made[2] if made else head[3]).upper()
    if not heads or len(tensors) != int(heads[0][1]):
        raise WorkError(
            f"llama.cpp's log tells the types of {len(tensors)} tensors, not of all; "
            "run: pip install 'tel-edge[export]'"
        )
    return QuantizeOutcome(
        tensors,
        tuple(Fallback(one[1], one[2].upper(), one[3].upper()) for one in FELL.finditer(text)),
    )


def fallen(outcome: QuantizeOutcome, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return how many tensors are not of the type wanted and what that costs, in one line.

    None where all are. `shapes` are those that `size` takes.
    """
    if not outcome.fallbacks:
        return None
    first = outcome.fallbacks[0]
    more = sum(
        math.prod(shapes[one.tensor]) * (_bytes(one.got) - _bytes(one.wanted))
        for one in outcome.fallbacks
    )
    return (
        f"{len(outcome.fallbacks)} of {len(outcome.tensors)} tensors have rows that are no "
        f"multiple of their type's blocks, such as {first.tensor}, which gets {first.got} instead "
        f"of {first.wanted}: {more / 1e6:+,.2f} MB, {more / (size(outcome, shapes) - more):+.0%}"
    )


def _bytes(kind: str) -> float:
    """Return the bytes of one weight of a ggml type."""
    gguf = need("gguf", "export")
    block, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return float(width / block)


def size(outcome: QuantizeOutcome, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the bytes that the tensors in `shapes` ([rows, columns] or [length]) take in a file.

    Each is padded to `ALIGNMENT`; tensors of the outcome that have no shape here are left out.
    """
    gguf = need("gguf", "export")
    total = 0
    for name, shape in shapes.items():
        kind = gguf.GGMLQuantizationType[outcome.tensors[name]]
        block, width = gguf.GGML_QUANT_SIZES[kind]
        total += -(-(math.prod(shape) // block * width) // ALIGNMENT) * ALIGNMENT
    return total


@contextmanager
def _listening(llama: Any, step: Step) -> Iterator[_Log]:
    """Take llama.cpp's log: all of it is kept, its tensor counter drives the bar."""
    log = _Log()
    raised: list[BaseException] = []

    def keep(level: int, text: bytes, _: Any) -> None:
        # An exception cannot pass through native code: an interrupt waits for its end.
        try:
            piece = text.decode("utf-8", "replace")
            log.pieces.append(piece)
            line = piece.strip()
            if level == ERROR and line:
                log.errors.append(line.splitlines()[0])
            if re.match(r"\[ *\d+/ *\d+\]", line):
                step(1)
        except BaseException as error:
            raised.append(error)

    callback = llama.llama_log_callback(keep)
    llama.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        yield log
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
