"""A model folder loaded by transformers: never pickles, never code of its own.

The folder has been checked before; see `contents.read` and `checkpoint.load`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.extras import need


def model(folder: Path, dtype: Any, attention: str | None = None) -> Any:
    """Return the causal language model of `folder` in `dtype`, a torch type, on the CPU.

    `attention` is transformers' implementation of it, None leaving that to the library. Raises
    `InputError` where the library refuses the folder.
    """
    library = need("transformers", "train")
    with _refused(folder):
        return library.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=attention,
        )


def tokenizer(folder: Path) -> Any:
    """Return the tokenizer of `folder`. Raises `InputError` where the library refuses it.

    Its class is the one that takes tokenizer.json as it is: for some models, as qwen2, the library
    would put its own normalizer and rules in the place of those of the file.
    """
    library = need("transformers", "train")
    with _refused(folder):
        return library.PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)


@contextmanager
def _refused(folder: Path) -> Iterator[None]:
    # The library's own loading bar and notes would come between the caller's.
    need("transformers.utils.logging", "train").disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        yield
    except Exception as error:
        # It raises a dozen kinds; what a machine lacks is for the caller to tell.
        if isinstance(error, MemoryError) or "memory" in str(error).lower():
            raise
        reason = (str(error).strip() or repr(error)).split("\n")[0][:200]
        raise InputError(f"{folder}: transformers cannot load it ({reason})") from None
