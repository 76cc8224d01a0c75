"""The category of a request that names none: a linear model over hashed n-grams.

The file is safetensors, read here with numpy alone. Source of the format:
https://github.com/huggingface/safetensors, section "Format".
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.question import excerpt

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = "safetensors"
# Changes with everything that `features` does: weights fit the features they were trained on.
FEATURE_VERSION = "1"
GRAM = 4
# Where a hash starts: a word of the question and of a choice are different features.
QUESTION, CHOICE = 0, 1
WORD = re.compile(r"\w+|[^\w\s]")
# "1. ", "b) ": how a benchmark happens to number its choices tells the benchmark, not the subject.
NUMBERING = re.compile(r"\s*\(?(?:\d{1,2}|[A-Za-z])[.):]\s+")

# Type, and number of dimensions, of each tensor of a file.
TENSORS = {"weights": ("F16", 2), "bias": ("F32", 1)}
DTYPES = {"F16": "<f2", "F32": "<f4"}
# The row of what is of no category.
NONE = "none"
METADATA, SETTINGS, VERSION = "__metadata__", "settings", "feature_version"
# A logit that no temperature makes anything of, and finite, so that sums over it stay numbers.
IMPOSSIBLE = -1e9
MOST_HEADER = 1_000_000
MOST_BYTES = 64_000_000
MOST_BUCKETS = 2**22


@dataclass(frozen=True)
class Route:
    """Where a request goes: `category`, or None for the bare backbone.

    `probability` is that of the likeliest category that may be chosen, `probabilities` those of all
    and of none; they sum to 1.
    """

    category: str | None
    probability: float
    probabilities: Mapping[str, float] = field(hash=False)


@dataclass(frozen=True, eq=False)
class Router:
    """A linear model: `weights` [categories, buckets] in float16, `bias` [categories] in float32.

    The logits are divided by `temperature` before the softmax; below the probability `threshold`
    no category is chosen. `source` is the digest of what it was trained on. Only those of `among`
    are chosen, None being all: what is of another category is of none of these.
    """

    categories: tuple[str, ...]
    weights: NDArray[Any]
    bias: NDArray[Any]
    temperature: float
    threshold: float
    source: str
    among: tuple[str, ...] | None = None

    def logits(self, text: str, choices: Sequence[str] = ()) -> NDArray[Any]:
        """Return the scores before the temperature, float64 [categories].

        A request with choices of its own is of no category that puts its labels in their place.
        """
        import numpy as np

        indices, values = features(text, choices, self.weights.shape[1])
        scores: NDArray[Any] = self.weights[:, indices].astype(np.float64) @ values + self.bias
        if _own(choices):
            fixed = [name != NONE and bool(CATEGORIES[name].labels) for name in self.categories]
            scores[fixed] = IMPOSSIBLE
        return scores

    def route(self, text: str, choices: Sequence[str] = ()) -> Route:
        """Choose the likeliest category; of equally likely ones the first.

        A request in which there is nothing to go by (no word at all) has no category, and neither
        has one that is likelier of none, or of one that may not be chosen.
        """
        import numpy as np

        scaled = self.logits(text, choices) / self.temperature
        shares = np.exp(scaled - scaled.max())
        shares /= shares.sum()
        may = [
            name != NONE and (self.among is None or name in self.among) for name in self.categories
        ]
        best = int(np.where(may, shares, -1.0).argmax())
        sure = float(shares[best]) if may[best] else 0.0
        blank = next(_hashes(text, choices), None) is None
        return Route(
            category=None
            if blank or sure < max(self.threshold, shares.max())
            else self.categories[best],
            probability=sure,
            probabilities=dict(zip(self.categories, map(float, shares), strict=True)),
        )


def features(text: str, choices: Sequence[str], buckets: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the buckets that a request falls into, ascending, and their values, float64.

    A value is the square root of the bucket's share of all n-grams, so their squares sum to 1;
    without any word both arrays are empty. The hash is CRC-32, the same everywhere. The labels
    that a category puts to all its questions are left out of `choices`: a request for it has none.
    """
    import numpy as np

    hashes = np.fromiter(_hashes(text, choices), np.uint32) % np.uint32(buckets)
    indices, counts = np.unique(hashes, return_counts=True)
    # The root, unlike a logarithm, is rounded in the same way on every machine.
    return indices.astype(np.int64), np.sqrt(counts / max(1, hashes.size))


def _hashes(text: str, choices: Sequence[str]) -> Iterator[int]:
    yield from _grams(_excerpt(text), QUESTION)
    for choice in _own(choices):
        yield from _grams(choice, CHOICE)


def _excerpt(text: str) -> str:
    """Return what the reader leaves of a question that has some category's marker."""
    for row in CATEGORIES.values():
        if row.marker and row.marker in text:
            return excerpt(text, row)
    return text


def _own(choices: Sequence[str]) -> list[str]:
    """Return the choices without their numbering, none if all are labels of a category."""
    bare = [NUMBERING.sub("", choice, count=1).strip() for choice in choices]
    fixed = any(set(bare) <= set(row.labels) for row in CATEGORIES.values())
    return [] if fixed else bare


def _grams(text: str, start: int) -> Iterator[int]:
    words = WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    for word in words:
        yield from _pieces(word, start)
    for pair in pairwise(words):
        yield _hash("b" + " ".join(pair), start)


# Most words of a request are among few; the bound keeps a long-running device from growing.
@lru_cache(maxsize=4096)
def _pieces(word: str, start: int) -> tuple[int, ...]:
    padded = f" {word} "
    grams = (padded[at : at + GRAM] for at in range(len(padded) - GRAM + 1))
    return (_hash("w" + word, start), *(_hash("c" + gram, start) for gram in grams))


def _hash(piece: str, start: int) -> int:
    # Half a surrogate pair, which JSON can hold, is refused elsewhere.
    return crc32(piece.encode("utf-8", "surrogatepass"), start)


def load(path: Path) -> Router:
    """Read a router's file. Raises `InputError` with the file and the field that is wrong."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"file: more than the {MOST_BYTES:,} bytes of any router")
        return loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; run: tel-export --router") from None
    except InputError as error:
        raise InputError(f"{path}: {error}; make it again: tel-export --router") from None


def loads(data: bytes) -> Router:
    """Make a router of a file's bytes, nothing of which is trusted. Raises `InputError`."""
    import numpy as np

    header, body = _header(data)
    settings = _settings(header.pop(METADATA, None))
    if header.keys() != TENSORS.keys():
        raise InputError(f"header: other tensors than {' and '.join(TENSORS)}")
    spans = {name: _span(name, header[name], len(body)) for name in TENSORS}
    at = 0
    for begin, end, _ in sorted(spans.values()):
        if begin != at:
            raise InputError(f"data_offsets: a gap or an overlap at byte {at:,} of the data")
        at = end
    if at != len(body):
        raise InputError(f"data_offsets: the tensors end at {at:,}, the data at {len(body):,}")
    arrays: dict[str, Any] = {}
    for name, (begin, end, shape) in spans.items():
        array = np.frombuffer(body[begin:end], DTYPES[TENSORS[name][0]]).reshape(shape)
        if not np.isfinite(array).all():
            raise InputError(f"{name}: holds a value that is not finite")
        arrays[name] = array
    rows = len(settings["categories"])
    if arrays["weights"].shape[0] != rows or arrays["bias"].shape[0] != rows:
        raise InputError(f"weights: not as many rows as bias or as the {rows} categories")
    return Router(**arrays, **settings)


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    if len(data) < 8:
        raise InputError("header: the file ends inside its length")
    size = int.from_bytes(data[:8], "little")
    if size > min(MOST_HEADER, len(data) - 8):
        raise InputError(
            f"header: {size:,} bytes; the file has {len(data) - 8:,}, {MOST_HEADER:,} are read"
        )
    text = data[8 : 8 + size]
    header = _object("header", text)
    if text[:1] != b"{":
        raise InputError("header: does not begin with {")
    return header, data[8 + size :]


def _object(name: str, text: bytes | str) -> dict[str, Any]:
    try:
        # Decoded here, since json takes UTF-16 and UTF-32 too.
        text = text.decode() if isinstance(text, bytes) else text
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: not JSON as it has to be ({str(error)[:80]})") from None
    if not isinstance(value, dict):
        raise InputError(f"{name}: no JSON object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key is there twice")
    return made


def _finite(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _settings(metadata: Any) -> dict[str, Any]:
    if not isinstance(metadata, dict) or metadata.keys() != {VERSION, SETTINGS}:
        raise InputError(f"{METADATA}: has to hold {VERSION} and {SETTINGS}, nothing else")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{METADATA}: a value is no string")
    if metadata[VERSION] != FEATURE_VERSION:
        raise InputError(
            f"{VERSION}: {metadata[VERSION][:20]!r}, this version computes {FEATURE_VERSION!r}"
        )
    made = _object(SETTINGS, metadata[SETTINGS])
    if made.keys() != {"categories", "source", "temperature", "threshold"}:
        raise InputError(f"{SETTINGS}: other fields than a router's")
    names = made["categories"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError("categories: no list of strings")
    if not 2 <= len(names) == len(set(names)):
        raise InputError("categories: fewer than two, or one twice")
    if unknown := [name for name in names if name not in (*CATEGORIES, NONE)]:
        raise InputError(f"categories: this version has none called {unknown[0][:40]!r}")
    if not isinstance(made["source"], str) or not re.fullmatch("[0-9a-f]{64}", made["source"]):
        raise InputError("source: no SHA-256 digest")
    for name, low, high in (("temperature", 1e-3, 1e3), ("threshold", 0.0, 1.0)):
        value = made[name]
        if not isinstance(value, float) or not low <= value <= high:
            raise InputError(f"{name}: no number with a point from {low} to {high}")
    return {**made, "categories": tuple(names)}


def _span(name: str, entry: Any, size: int) -> tuple[int, int, tuple[int, ...]]:
    """Return where the tensor begins and ends in the `size` bytes of data, and its shape."""
    wanted, rank = TENSORS[name]
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"{name}: has to hold dtype, shape and data_offsets, nothing else")
    if entry["dtype"] != wanted:
        raise InputError(f"{name}: dtype {str(entry['dtype'])[:20]!r} instead of {wanted}")
    shape, offsets = _whole(entry["shape"], rank), _whole(entry["data_offsets"], 2)
    if shape is None or not all(1 <= length <= MOST_BUCKETS for length in shape):
        raise InputError(f"{name}: shape is not {rank} whole numbers from 1 to {MOST_BUCKETS:,}")
    if offsets is None or not 0 <= offsets[0] <= offsets[1] <= size:
        raise InputError(f"{name}: data_offsets do not lie in the {size:,} bytes of data")
    begin, end = offsets
    width = int(DTYPES[wanted][-1])
    if end - begin != math.prod(shape) * width:
        raise InputError(f"{name}: data_offsets span {end - begin:,} bytes, not what shape takes")
    return begin, end, shape


def _whole(value: Any, count: int) -> tuple[int, ...] | None:
    """Return a list of `count` whole numbers as a tuple; None if it is something else."""
    if not isinstance(value, list) or len(value) != count:
        return None
    # True is an int to Python, and to numpy a length.
    return tuple(value) if all(type(number) is int for number in value) else None
