"""The onnxruntime engine: the device needs onnxruntime, numpy and tokenizers, and no compiler.

Many questions share one row of the graph. The attention bias, an input that `tel-export` adds,
keeps them apart: minus infinity wherever a token must not look. So nothing is padded, what
questions begin with is computed once, and every weight is read once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tel_edge.runtime.engines import packing
from tel_edge.runtime.engines.engine import EngineSettings, LoraFile, Template
from tel_edge.runtime.engines.onnx_cache import OnnxCache
from tel_edge.runtime.engines.packed import OUTPUTS, PackedEngine
from tel_edge.runtime.engines.packing import PackedEntry
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.extras import need
from tel_edge.runtime.files import onnx_adapter, onnx_header
from tel_edge.runtime.files.onnx_header import TOKENIZER
from tel_edge.runtime.processors import cores

# Inputs of every decoder that can be run, beside its past.
IDS, MASK, POSITIONS, BIAS, LOGITS = (
    *("input_ids", "attention_mask", "position_ids"),
    *("attention_bias", "logits_idx"),
)
# Only what ends the process: the library writes a line a slot, and its errors are exceptions too.
FATAL = 4

# Whether threads of a session spin while they wait; see docs/performance.md. Source of the key:
# onnxruntime_session_options_config_keys.h.
SPIN_KEY = "session.intra_op.allow_spinning"
SPINNING = False


class OnnxEngine(PackedEngine):
    """One ONNX backbone and its LoRA adapters in memory; the tokenizer lies beside the backbone.

    The file is checked here before the library opens it. Raises `InputError` for a graph that
    `tel-export` did not make.
    """

    def __init__(
        self,
        path: Path,
        adapters: Mapping[str, LoraFile] | None = None,
        settings: EngineSettings | None = None,
    ) -> None:
        super().__init__(adapters, settings)
        self._library = need("onnxruntime", "onnx")
        if not hasattr(self._library, "LoraAdapter"):
            raise InputError(
                f"onnxruntime {self._library.__version__} has no adapters; 1.23.2 or newer is "
                "needed: pip install 'tel-edge[onnx]'"
            )
        self._path, self._header = path, onnx_header.check(path)
        self._past = [name for name in self._header.inputs if name.startswith("past_key_values.")]
        self._present = [name.replace("past_key_values", "present") for name in self._past]
        self._check_graph()
        self._session: Any = None
        try:
            self.timed("load", self._load)
            self.timed("context", self._open)
        except BaseException:
            self.close()
            raise

    def _check_graph(self) -> None:
        there = {*self._header.inputs, *self._header.outputs}
        for name in (IDS, MASK, POSITIONS, BIAS, LOGITS, "logits", *self._present):
            if name not in there:
                raise InputError(
                    f"{self._path}: no {name}, so no backbone of tel-edge; export it with "
                    "tel-export --format onnx, or --from-onnx for a decoder that is ONNX already"
                )
        if not self._past:
            raise InputError(f"{self._path}: no past_key_values, so prefixes cannot be kept")

    def _load(self) -> None:
        options = self._library.SessionOptions()
        options.log_severity_level = FATAL
        options.intra_op_num_threads = self.settings.threads or cores()
        options.inter_op_num_threads = 1
        options.add_session_config_entry(SPIN_KEY, str(int(SPINNING)))
        try:
            self._session = self._library.InferenceSession(
                self._path, options, providers=self._providers()
            )
        except Exception as error:
            # The library's own errors have no common kind.
            raise InputError(
                f"{self._path}: onnxruntime cannot load it ({_first(error)})"
            ) from None
        self.vocabulary = int(self._session.get_outputs()[0].shape[-1])

    def _providers(self) -> list[str]:
        there = self._library.get_available_providers()
        named = {name.lower().removesuffix("executionprovider"): name for name in there}
        found = []
        for wanted in self.settings.providers:
            name = named.get(wanted.lower().removesuffix("executionprovider"))
            if name is None:
                raise InputError(
                    f"--provider {wanted}: this onnxruntime has {' '.join(named)}; "
                    "others come with other builds of it"
                )
            found.append(name)
        return found or ["CPUExecutionProvider"]

    def _open(self) -> None:
        import numpy as np

        tokenizers = need("tokenizers", "onnx")
        file = self._path.parent / TOKENIZER
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:
            raise InputError(f"{file}: no tokenizer ({_first(error)}); export it again") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # What looks like a special token inside a text is text.
        self._tokenizer.encode_special_tokens = True
        known = self._header.metadata
        self._ends = {int(end) for end in known.get("tel_edge.eos", "").split(",") if end}
        if made := known.get("tel_edge.chat_template"):
            texts = (known.get(f"tel_edge.chat_{name}", "") for name in ("start", "end"))
            self.template = Template(made, *texts)
        self._window = int(known.get("tel_edge.window") or 0)
        self.context = min(self.settings.context, int(known.get("tel_edge.context") or 2**31))
        self.most = min(self.settings.batch or self.context, self.context)
        self.span = min(self._window or self.context, self.context)
        empty, self.kv_bytes_per_token = [], 0
        for name in self._past:
            dims = self._header.inputs[name]
            if len(dims) != 4 or not all(isinstance(dims[at], int) for at in (1, 3)):
                raise InputError(
                    f"{self._path}: {name} is {list(dims)}, which is no decoder's past"
                )
            cell: Any = np.zeros((1, dims[1], 1, dims[3]), np.float32)
            self.kv_bytes_per_token += cell.nbytes
            empty.append(self._value(np.ascontiguousarray(cell[:, :, :0])))
        self.cache: OnnxCache = OnnxCache(empty)
        self.activate(None, 1.0)

    def _value(self, array: Any) -> Any:
        return self._library.OrtValue.ortvalue_from_numpy(array)

    @property
    def version(self) -> str:
        """Return the package's name and version."""
        return f"onnxruntime {self._library.__version__}"

    def memory_split(self) -> dict[str, int]:
        """Return the bytes of kept prefixes and adapters; the library does not tell the rest."""
        held = sum(handle[1] for handle in self._loaded.values())
        return {"kv": self.cache.kept_bytes(), "adapters": held}

    def ids(self, text: str) -> list[int]:
        """Return the ids of `text`, with BOS where the tokenizer puts one."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def marked(self, text: str) -> list[int]:
        """Return the ids of what a chat template made."""
        with self._reading:
            self._tokenizer.encode_special_tokens = False
            try:
                ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
            finally:
                self._tokenizer.encode_special_tokens = True
            return ids

    # What `PackedEngine` asks for

    def open_adapter(self, file: Path) -> Any:
        """Load an `.onnx_adapter` file; the handle is (adapter, bytes)."""
        header = onnx_adapter.read(file)
        onnx_adapter.check_fit(file, header, self._header, self._path.name)
        made = self._library.LoraAdapter()
        try:
            made.Load(str(file))
        except Exception as error:
            raise InputError(f"{file}: onnxruntime cannot load it ({_first(error)})") from None
        return made, file.stat().st_size

    def free_adapter(self, handle: Any) -> None:
        """Free an adapter, which the last reference to it does."""

    def activate(self, handle: Any | None, scale: float) -> None:
        """Set the one adapter of all runs, or none.

        Of two the library would silently use the first, so options are made anew each time.
        """
        if scale != 1:
            raise InputError(f"an ONNX adapter has its scale inside; {scale} cannot be put on it")
        self._options = self._library.RunOptions()
        if handle is not None:
            self._options.add_active_adapter(handle[0])

    def ends(self, token: int) -> bool:
        """Return whether a generated text ends with that token."""
        return token in self._ends

    def end(self) -> tuple[int, str]:
        """Return the token that ends a text, and its name."""
        if not self._ends:
            raise InputError(f"{self._path}: names no token that ends a text")
        token = min(self._ends)
        return token, self.name(token)

    def name(self, token: int) -> str:
        """Return what the vocabulary calls a token."""
        return str(self._tokenizer.id_to_token(token))

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of generated tokens."""
        made: str = self._tokenizer.decode(list(tokens), skip_special_tokens=False)
        return made

    def decode(self, entries: Sequence[PackedEntry]) -> Iterator[tuple[tuple[int, int], Any]]:
        """Compute and yield (what is read, its logits)."""
        try:
            for part in packing.pieces(entries, self.most, OUTPUTS):
                rows = iter(self._run(part))
                for entry in part:
                    if entry.read is not None:
                        yield entry.read, next(rows)
        except BaseException:
            # Half a decode is in the cells.
            self.forget()
            raise

    def _run(self, part: Sequence[PackedEntry]) -> Any:
        """Compute a part into the cells and return the logits [reads, vocabulary]."""
        import numpy as np

        cells, count = self.cache.marks, len(part)
        marks = np.array([sum(1 << one for one in e.sequences) for e in part], np.uint64)
        # One of a token's sequences is enough: what comes before it is in all of them.
        own = np.array([1 << entry.sequences[0] for entry in part], np.uint64)
        hidden = (np.concatenate([cells, marks])[None] & own[:, None]) == 0
        total = len(cells) + count
        if self._window and total > self._window and np.tril(hidden, len(cells)).any():
            # The graph counts the window in cells, of which other branches take some.
            raise InputError(
                f"{total} tokens side by side, the model's window has {self._window}; "
                "behind so long a prompt answers have to be of one token"
            )
        bias = np.where(hidden, np.float32(-np.inf), np.float32(0))
        reads = [at for at, entry in enumerate(part) if entry.read is not None]
        feeds = {
            IDS: np.array([[entry.token for entry in part]], np.int64),
            MASK: np.ones((1, total), np.int64),
            POSITIONS: np.array([[entry.position for entry in part]], np.int64),
            BIAS: bias[None, None],
            # An empty list would ask for all.
            LOGITS: np.array(reads or [0], np.int64),
        }
        given = {name: self._value(value) for name, value in feeds.items()}
        given |= dict(zip(self._past, self.cache.past, strict=True))
        try:
            # Not through an IO binding, which silently leaves the adapter out.
            logits, *present = self._session.run_with_ort_values(
                ["logits", *self._present], given, self._options
            )
        except Exception as error:
            raise WorkError(f"onnxruntime failed: {_first(error)}") from None
        self.cache.extend(present, marks)
        return logits.numpy()[0]

    def free(self) -> None:
        """Let go of what the library holds, which frees it."""
        self._session = self._options = None
        if hasattr(self, "cache"):
            self.cache.forget()


def _first(error: Exception) -> str:
    # The reason stands last, behind a path of any length.
    return str(error).strip().split("\n")[0][-200:]
