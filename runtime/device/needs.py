"""How much memory answering with a bundle's file takes, from what the file says of itself.

What llama.cpp and onnxruntime take beside weights and cache was measured (docs/performance.md,
"Memory" and "ONNX beside GGUF"): for a 1B model the sum is within a tenth of what was.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tel_edge.runtime.bundles.formats import FORMATS
from tel_edge.runtime.bundles.manifest import BundleFile, Manifest
from tel_edge.runtime.engines.engine import EngineSettings
from tel_edge.runtime.engines.llama_native import kv_bytes
from tel_edge.runtime.engines.packed import OUTPUTS
from tel_edge.runtime.files import gguf_header, onnx_header
from tel_edge.runtime.files.gguf_model import TOKENS, Numbers

# Bytes of the interpreter with its libraries, of each token of a vocabulary, of a service's front.
INTERPRETER, TOKEN, FRONT = 40_000_000, 450, 60_000_000
# Cells of an ONNX cache, which grows with what is asked, and what its prefixes may keep besides.
CELLS, KEPT = 1024, 64_000_000


@dataclass(frozen=True)
class Need:
    """Bytes that answering with one backbone takes.

    `own` is memory that no other process has, `mapped` what is read from the file's pages: the
    system may drop those, and then reads them from the disk again.
    """

    format: str
    quant: str
    own: int
    mapped: int

    @property
    def all(self) -> int:
        """Return what is needed for nothing to be read twice."""
        return self.own + self.mapped


def need(folder: Path, made: Manifest, file: BundleFile, settings: EngineSettings) -> Need:
    """Return what a backbone's file needs with all adapters of its format, or `max_adapters`.

    Raises `InputError` for a damaged file.
    """
    sizes = sorted(
        (
            max(
                one.bytes
                for one in made.files
                if (one.kind, one.category, one.format) == ("adapter", name, file.format)
            )
            for name in made.adapters(file.format)
        ),
        reverse=True,
    )
    adapters = sum(sizes[: settings.max_adapters])
    batch = settings.batch or FORMATS[file.format].batch
    if file.format == "onnx":
        return _onnx(folder / file.path, made.disk(file), file, adapters)
    return _gguf(folder / file.path, file, adapters, batch, settings)


def _gguf(
    path: Path, file: BundleFile, adapters: int, batch: int, settings: EngineSettings
) -> Need:
    header = gguf_header.whole(path)
    own = INTERPRETER + adapters
    if isinstance(header.metadata.get("general.architecture"), str):
        of = Numbers(header)

        def number(name: str, otherwise: int = 0) -> int:
            return of.whole(name, 0) or otherwise

        heads, width = number("attention.head_count", 1), number("embedding_length")
        key = number("attention.key_length", width // heads)
        value = number("attention.value_length", key)
        shared = number("attention.head_count_kv", heads)
        cells = min(settings.context, number("context_length", settings.context))
        own += cells * kv_bytes(number("block_count"), shared, key, value, settings.kv)
        # Logits, twice: where they are computed, and where they are read.
        own += (TOKEN + 2 * 4 * OUTPUTS) * int(header.metadata.get(TOKENS) or 0)
        own += 4 * batch * 2 * (number("feed_forward_length") + width)
    copied = file.bytes if settings.extra_buffers else 0
    return Need(file.format, file.quant, own + copied, file.bytes)


def _onnx(path: Path, disk: int, file: BundleFile, adapters: int) -> Need:
    cell = 0
    for name, dims in onnx_header.check(path).inputs.items():
        if name.startswith("past_key_values.") and len(dims) == 4:
            heads, width = (dim if isinstance(dim, int) else 0 for dim in (dims[1], dims[3]))
            cell += 4 * heads * width
    # The library copies the weights into its own memory.
    own = INTERPRETER + disk + CELLS * cell + (KEPT if cell else 0) + adapters
    return Need(file.format, file.quant, own, 0)
