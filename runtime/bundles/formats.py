"""The formats of a bundle, one row each: how a file is checked and which engine opens it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tel_edge.runtime import versions
from tel_edge.runtime.engines.engine import Engine, EngineSettings, LoraFile
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import gguf_header, onnx_adapter, onnx_header
from tel_edge.runtime.files.onnx_adapter import WEIGHTS
from tel_edge.runtime.questions import prompt

# Metadata of the files that tel-export makes.
PROMPT, CATEGORY = "tel_edge.prompt", "tel_edge.category"
# Of an adapter for dialogues: the digest of the chat template that it was trained by.
TEMPLATE = "tel_edge.template"


@dataclass(frozen=True)
class Format:
    """One row: all that depends on a format but how a file of it is made.

    `package` is the engine's import package and the distribution it usually is from, `extra` what
    to install of tel-edge for it, `quant` the type of backbones and `usual` that of adapters that
    tel-export makes where nobody asks for another. `parts` are the kinds of files that a backbone
    has beside it. Of `EngineSettings` `tuned` are the fields that tel-bench chooses, and `ignored`
    those that mean nothing to the engine.

    `batch` tokens are computed in one go where nothing else is asked for: ONNX attention looks at
    all cells of a row, so its rows are shorter. `weights` checks a backbone's file and returns the
    digest in it, None where there is none; `beside` names the other files that the engine opens
    for it, in its folder; `adapter` checks an adapter's file against the backbone's digest and
    name, and against the category that it is to answer (path, digest, name, category). Both refuse
    a file that was made for another prompt than this version's.
    """

    name: str
    suffix: str
    batch: int
    package: tuple[str, str]
    extra: str
    engine: Callable[[Path, Mapping[str, LoraFile], EngineSettings], Engine]
    weights: Callable[[Path], str | None]
    beside: Callable[[Path], tuple[str, ...]]
    adapter: Callable[..., None]
    quant: str
    usual: str
    tuned: tuple[str, ...]
    ignored: frozenset[str]
    parts: tuple[str, ...] = ()

    def open(
        self, path: Path, adapters: Mapping[str, LoraFile], settings: EngineSettings
    ) -> Engine:
        """Open the engine, its usual batch where the settings name none."""
        return self.engine(path, adapters, replace(settings, batch=settings.batch or self.batch))

    def installed(self) -> bool:
        """Return whether the engine can be imported, without importing it."""
        return importlib.util.find_spec(self.package[0]) is not None

    def version(self) -> str:
        """Return the engine's distribution and version without loading it, or "unknown"."""
        return versions.version(*self.package) or "unknown"


def _llama(path: Path, adapters: Mapping[str, LoraFile], settings: EngineSettings) -> Engine:
    from tel_edge.runtime.engines.with_llama import LlamaEngine

    return LlamaEngine(path, adapters, settings)


def _onnx(path: Path, adapters: Mapping[str, LoraFile], settings: EngineSettings) -> Engine:
    from tel_edge.runtime.engines.with_onnx import OnnxEngine

    return OnnxEngine(path, adapters, settings)


def _gguf_weights(path: Path) -> str | None:
    return _weights(path, gguf_header.whole(path).metadata)


def _onnx_weights(path: Path) -> str | None:
    return _weights(path, onnx_header.check(path).metadata)


def _gguf_beside(path: Path) -> tuple[str, ...]:
    return ()


def _onnx_beside(path: Path) -> tuple[str, ...]:
    return (*onnx_header.check(path).data, onnx_header.TOKENIZER)


def _weights(path: Path, metadata: Mapping[str, object]) -> str | None:
    _check_prompt(path, metadata)
    value = metadata.get(WEIGHTS)
    return value if isinstance(value, str) else None


def _check_prompt(path: Path, metadata: Mapping[str, object]) -> None:
    if (metadata.get(PROMPT) or prompt.digest()) != prompt.digest():
        raise InputError(
            f"{path}: made for another prompt than this version's; "
            "train and export again, or use the version that made it"
        )


def _gguf_adapter(
    path: Path, weights: str | None, backbone: str, category: str | None = None
) -> None:
    metadata = gguf_header.check(path).metadata
    if metadata.get("general.type") != "adapter":
        raise InputError(f"{path}: no LoRA adapter (general.type); export it again")
    bound = metadata.get(WEIGHTS)
    if None not in (bound, weights) and bound != weights:
        raise _foreign(path, backbone)
    _check_prompt(path, metadata)
    trained = metadata.get(CATEGORY, category)
    if category is not None and trained != category:
        raise InputError(f"{path}: made for {trained}, not for {category}; name the right file")


def _onnx_adapter(
    path: Path, weights: str | None, backbone: str, category: str | None = None
) -> None:
    # Its tensors are compared with the graph's slots when the engine loads it; it has no room for
    # a category.
    header = onnx_adapter.read(path)
    if weights is not None and header.model_version != onnx_adapter.stamp(weights):
        raise _foreign(path, backbone)


def _foreign(path: Path, backbone: str) -> InputError:
    return InputError(f"{path}: made for another backbone than {backbone}; export it again")


# In the order in which one is chosen where a bundle has several.
FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        Format(
            name="gguf",
            suffix=".gguf",
            batch=512,
            package=("llama_cpp", "llama-cpp-python"),
            extra="llama",
            engine=_llama,
            weights=_gguf_weights,
            beside=_gguf_beside,
            adapter=_gguf_adapter,
            quant="Q4_K_M",
            usual="F16",
            tuned=("threads", "batch", "flash", "kv", "extra_buffers", "gpu_layers"),
            ignored=frozenset({"providers"}),
        ),
        Format(
            name="onnx",
            suffix=".onnx",
            batch=192,
            package=("onnxruntime", "onnxruntime"),
            extra="onnx",
            engine=_onnx,
            weights=_onnx_weights,
            beside=_onnx_beside,
            adapter=_onnx_adapter,
            quant="int4",
            usual="F32",
            tuned=("threads", "batch"),
            ignored=frozenset({"flash", "kv", "extra_buffers", "gpu_layers"}),
            parts=("data", "tokenizer"),
        ),
    )
}
# What a command makes or takes where no format is named.
FIRST = "gguf"


def option(format: str) -> str:
    """Return what a command line needs for that format, " --format NAME" or nothing."""
    return "" if format == FIRST else f" --format {format}"


def of_file(path: Path) -> Format:
    """Return the format of a loose backbone file, by its name; GGUF unless it says otherwise."""
    return next((row for row in FORMATS.values() if path.suffix == row.suffix), FORMATS[FIRST])
