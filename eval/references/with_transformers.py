"""transformers as an engine: large models in a Hugging Face folder, for the evaluation only."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tel_edge.eval.folders import contents, loading
from tel_edge.eval.folders.files import json_object
from tel_edge.runtime.device import heap
from tel_edge.runtime.engines import packing
from tel_edge.runtime.engines.engine import Generation, Item, Sampling, Score
from tel_edge.runtime.engines.logits import drawn
from tel_edge.runtime.engines.packing import END
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.extras import check, need

# Tokens, padding counted in, of the prompts that are computed together.
BATCH = 8192
DTYPES = ("bfloat16", "float16", "float32")


def checked(folder: Path) -> Path:
    """Return `folder` if a model can be loaded from it without running or unpickling any of it.

    Raises `InputError` for what `contents.read` refuses, and for one that brings code of its own.
    """
    contents.read(folder)
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        if path.is_file() and "auto_map" in json_object(path):
            raise InputError(
                f"{path}: the model brings code of its own (auto_map), which is never "
                "run;\npass its GGUF file, or an endpoint that serves it"
            )
    return folder


def installed() -> str:
    """Return name and version without loading anything. Raises `InputError` where it is missing."""
    for module in ("torch", "transformers"):
        check(module, "train")
    from importlib.metadata import version

    return f"transformers {version('transformers')}"


class TransformersEngine:
    """The model of a folder, on the GPU where there is one. It has no adapters.

    `context` is the most tokens of a prompt, at most the model's own; `dtype` one of `DTYPES`.
    """

    version: str
    context: int

    def __init__(
        self,
        folder: Path,
        context: int = 4096,
        dtype: str = "bfloat16",
        threads: int | None = None,
    ) -> None:
        torch = need("torch", "train")
        heap.keep()
        # The tokenizer is not made for two threads.
        self._lock = threading.Lock()
        if threads:
            torch.set_num_threads(threads)
        self._tokenizer = loading.tokenizer(checked(folder))
        model = loading.model(folder, getattr(torch, dtype))
        self._torch = torch
        self._model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        config = model.config.get_text_config()
        self.context = min(context, int(getattr(config, "max_position_embeddings", context)))
        self.version = installed()
        stated = model.generation_config.eos_token_id
        ends = {*(stated if isinstance(stated, list) else [stated]), self._tokenizer.eos_token_id}
        self._ends = ends - {None}
        self.timing: dict[str, float] = {}
        self.kv_bytes_per_token: int | None = None

    def close(self) -> None:
        """Do nothing: the model goes with the last who knows it."""

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of a text; what looks like a special token inside it is text."""
        with self._lock:
            ids: list[int] = self._tokenizer(text, split_special_tokens=True)["input_ids"]
        return ids

    def score(self, items: Sequence[Item], adapter: str | None) -> Iterator[tuple[int, Score]]:
        """Yield (index of the item, its score), prompts of about one length together."""
        _bare(adapter)
        rows: list[tuple[int, int, list[int]]] = []
        tries = [packing.trie(item.labels) for item in items]
        for at, (item, trie) in enumerate(zip(items, tries, strict=True)):
            behind = _behind(trie)
            rows += [(at, node, [*item.prompt, *behind[node]]) for node in trie.reads()]
        rows.sort(key=lambda row: len(row[2]))
        waiting = {at: len(trie.reads()) for at, trie in enumerate(tries)}
        read: dict[tuple[int, int], dict[int, float]] = {}
        spent = dict.fromkeys(waiting, 0.0)
        for batch in _batches(rows):
            began = time.perf_counter()
            with self._lock:
                values = self._last([ids for _, _, ids in batch])
            for (at, node, _), row in zip(batch, values, strict=True):
                read[at, node] = {token: float(row[token]) for token in tries[at].reads()[node]}
            share = (time.perf_counter() - began) * 1000 / len(batch)
            for at, _, _ in batch:
                spent[at] += share
                waiting[at] -= 1
                if not waiting[at]:
                    logprobs = tries[at].logprobs(lambda node, token, at=at: read[at, node][token])  # type: ignore[misc]
                    tokens = len(items[at].prompt)
                    yield at, Score(logprobs, tokens, tokens, spent[at], len(batch))

    def _last(self, rows: Sequence[Sequence[int]]) -> Any:
        """Return the log-probabilities `[rows, vocabulary]` of what follows each row of ids.

        Rows are padded on the left, so that only the logits of the last column are computed.
        """
        torch, width = self._torch, max(map(len, rows))
        # Any id does where the mask is 0.
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for at, row in enumerate(rows):
            ids[at, width - len(row) :] = torch.tensor(row)
            mask[at, width - len(row) :] = 1
        given = {"input_ids": ids, "attention_mask": mask}
        given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.inference_mode():
            made = self._model(
                **{name: value.to(self._model.device) for name, value in given.items()},
                use_cache=False,
                logits_to_keep=1,
            )
            # Single floats lose nothing that half ones had, and some devices have no double ones.
            values = torch.log_softmax(made.logits[:, -1].float(), -1).cpu()
        if not bool(torch.isfinite(values.max(-1).values).all()):
            raise WorkError("the model gives logits that are not finite; pass another dtype")
        return values

    def generate(
        self, prompts: Sequence[tuple[Sequence[int], Sampling]], adapter: str | None
    ) -> Iterator[tuple[int, Generation]]:
        """Yield (index of the prompt, its texts), drawn as the other engines draw them."""
        _bare(adapter)
        for number, (ids, how) in enumerate(prompts):
            began = time.perf_counter()
            with self._lock:
                texts = self._texts(ids, how)
                made = tuple(
                    self._tokenizer.decode(
                        text, skip_special_tokens=True, clean_up_tokenization_spaces=False
                    )
                    for text in texts
                )
            spent = (time.perf_counter() - began) * 1000
            yield number, Generation(made, len(ids), len(ids), sum(map(len, texts)), spent)

    def _texts(self, ids: Sequence[int], how: Sampling) -> list[list[int]]:
        torch, count = self._torch, how.k + 1
        texts: list[list[int]] = [[] for _ in range(count)]
        chance = [random.Random(f"{how.seed} {turn}") for turn in range(count)]
        device, open_ = self._model.device, set(range(count))
        with torch.inference_mode():
            shown = torch.tensor([list(ids)], device=device)
            made = self._model(shown, use_cache=True, logits_to_keep=1)
            cache = made.past_key_values
            cache.batch_repeat_interleave(count)
            logits = made.logits[:, -1].float().cpu().numpy().repeat(count, 0)
            while True:
                for turn in sorted(open_):
                    token = drawn(logits[turn], how.temperature if turn else 0, chance[turn])
                    if token in self._ends:
                        open_.discard(turn)
                        continue
                    texts[turn].append(token)
                    if len(texts[turn]) == how.limit:
                        open_.discard(turn)
                if not open_:
                    return texts
                # What has ended is computed along: rows of a cache cannot come and go.
                following = [[text[-1] if text else 0] for text in texts]
                shown = torch.tensor(following, device=device)
                made = self._model(shown, past_key_values=cache, use_cache=True)
                logits = made.logits[:, -1].float().cpu().numpy()


def _bare(adapter: str | None) -> None:
    if adapter is not None:
        raise InputError(f"adapter {adapter}: a reference model has none")


def _behind(trie: packing.Trie) -> dict[int, list[int]]:
    """Return the tokens that stand between the prompt and the end of each node, it included."""
    found: dict[int, list[int]] = {END: []}
    for at, node in enumerate(trie.nodes):
        # Its parent is the latest node of its branches that is one token shorter.
        parent = max(
            (
                other
                for other, before in enumerate(trie.nodes[:at])
                if before.depth == node.depth - 1 and set(node.sequences) <= set(before.sequences)
            ),
            default=END,
        )
        found[at] = [*found[parent], node.token]
    return found


def _batches(
    rows: Sequence[tuple[int, int, list[int]]],
) -> Iterator[list[tuple[int, int, list[int]]]]:
    """Yield rows, the shorter first, in lists of at most `BATCH` tokens."""
    batch: list[tuple[int, int, list[int]]] = []
    for row in rows:
        if batch and (len(batch) + 1) * len(row[2]) > BATCH:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
