"""What bench_runtime.py compares, each in a process of its own: `runtime_contenders.py TASK`.

TASK is a `contender_tasks.Task` as JSON. The last line of stdout is what was measured, as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from contender_tasks import (
    BATCH,
    CONTEXT,
    CORES,
    SEED,
    TEMPERATURE,
    WARM,
    Answered,
    Task,
    Way,
    both,
    clock,
    one_by_one,
    prompted,
)

from tel_edge.runtime.engines import packing
from tel_edge.runtime.engines.engine import EngineSettings, Item, LoraFile, Score
from tel_edge.runtime.engines.with_llama import LlamaEngine
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.questions.prompt import LETTERS
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.scoring import Scorer
from tel_edge.runtime.questions.votes import draws, majority, pick

# Plain decodes before and after the questions, questions of the swap test, swaps in a row.
PLAIN, SWAPPED, SWAPS = 2, 8, 200


def opened(task: Task, exact: bool) -> LlamaEngine:
    """Return tel-edge's engine; nothing but `exact` is changed in its settings."""
    adapters = {
        name: LoraFile(lambda file=file: Path(file), digest)
        for name, (file, digest) in task.adapters.items()
    }
    return LlamaEngine(Path(task.model), adapters, EngineSettings(exact=exact))


def scores(scorer: Scorer, questions: Sequence[Question], name: str) -> list[Score]:
    """Return the scores of the questions in their order."""
    found: dict[int, Score] = {}
    for at, score in scorer.many([(question, name) for question in questions]):
        if isinstance(score, InputError):
            raise score
        found[at] = score
    return [found[at] for at in range(len(questions))]


def scored(scorer: Scorer, name: str) -> Way:
    """Return tel-edge's way with the adapter of that name."""

    def way(questions: Sequence[Question], votes: int) -> Answered:
        began = time.perf_counter()
        made = scores(scorer, questions, name)
        if votes == 1:
            picks = [pick(score.logprobs) for score in made]
        else:
            picks = [
                majority(draws(score.logprobs, votes, TEMPERATURE, SEED, question.id))
                for score, question in zip(made, questions, strict=True)
            ]
        seconds = time.perf_counter() - began
        tokens, decoded = (sum(getattr(s, name) for s in made) for name in ("tokens", "decoded"))
        logprobs = tuple(score.logprobs for score in made) if votes == 1 else ()
        return Answered(seconds, tokens, decoded, tuple(picks), logprobs)

    return way


def tel_edge(task: Task) -> dict[str, Any]:
    """Answer with tel-edge; the packed one also measures the engine's own rate around it."""
    engine, plain = opened(task, task.exact), []

    def between() -> None:
        if not task.exact:
            plain.extend(engine.plain_rate(task.adapter, BATCH) for _ in range(PLAIN))

    made = both(task, scored(Scorer(engine), task.adapter), between)
    size = Path(task.model).stat().st_size
    return {**made, "plain": plain, "split": engine.memory_split(), "file": size}


def high_level(task: Task) -> dict[str, Any]:
    """Answer with llama-cpp-python's `Llama` and a grammar, which reuses prompts by itself."""
    from llama_cpp import Llama, LlamaGrammar

    class Counting(Llama):
        decoded = 0

        def eval(self, tokens: Sequence[int]) -> None:
            self.decoded += len(tokens)
            super().eval(tokens)

    llama = Counting(
        model_path=task.model,
        lora_path=task.adapters[task.adapter][0],
        n_ctx=CONTEXT,
        n_batch=BATCH,
        n_threads=CORES,
        n_threads_batch=CORES,
        flash_attn=task.flash,
        verbose=False,
    )

    def ask(question: Question, votes: int) -> tuple[int, int, int]:
        text, before, found = prompted(task, question), llama.decoded, []
        letters = LETTERS[: len(question.choices)]
        grammar = LlamaGrammar.from_string(f'root ::= " " [{letters}]', verbose=False)
        for seed in range(votes):
            made = llama.create_completion(
                text,
                max_tokens=1,
                temperature=0.0 if votes == 1 else TEMPERATURE,
                seed=seed,
                grammar=grammar,
            )
            said = made["choices"][0]["text"].strip()
            # The grammar lets the space through as a token of its own, and that is the one token.
            found.append(letters.index(said) if said else -1)
        return majority(found), made["usage"]["prompt_tokens"], llama.decoded - before

    return both(task, one_by_one(ask))


class Raw:
    """A model with one adapter and one sequence, through llama.cpp's own functions."""

    def __init__(self, task: Task) -> None:
        import llama_cpp.llama_cpp as native

        self.native = native
        native.llama_backend_init()
        model = native.llama_model_default_params()
        model.use_extra_bufts = task.buffers
        self.model = native.llama_model_load_from_file(os.fsencode(task.model), model)
        context = native.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch = CONTEXT, BATCH, BATCH
        context.n_threads = context.n_threads_batch = CORES
        context.flash_attn_type = native.LLAMA_FLASH_ATTN_TYPE_AUTO
        self.context = native.llama_init_from_model(self.model, context)
        file = task.adapters[task.adapter][0]
        adapter = native.llama_adapter_lora_init(self.model, os.fsencode(file))
        if not (self.model and self.context and adapter):
            raise WorkError(f"llama.cpp cannot load {task.model} with {file}")
        adapters = (native.llama_adapter_lora_p_ctypes * 1)(adapter)
        if native.llama_set_adapters_lora(self.context, adapters, 1, (ctypes.c_float * 1)(1.0)):
            raise WorkError(f"llama.cpp cannot set {file}")
        self.memory = native.llama_get_memory(self.context)
        self.vocabulary = native.llama_model_get_vocab(self.model)
        self.size = native.llama_vocab_n_tokens(self.vocabulary)

    def tokenize(self, text: str) -> list[int]:
        data = text.encode()
        ids = (self.native.llama_token * (len(data) + 2))()
        count = self.native.llama_tokenize(
            self.vocabulary, data, len(data), ids, len(ids), True, False
        )
        return ids[:count]

    def back(self, to: int) -> None:
        """Forget everything from that position on."""
        self.native.llama_memory_seq_rm(self.memory, 0, to, -1)

    def decode(self, ids: Sequence[int]) -> Any:
        """Decode behind what is there and return the last token's logits."""
        import numpy as np

        for at in range(0, len(ids), BATCH):
            part = ids[at : at + BATCH]
            tokens = (self.native.llama_token * len(part))(*part)
            batch = self.native.llama_batch_get_one(tokens, len(part))
            if code := self.native.llama_decode(self.context, batch):
                raise WorkError(f"llama_decode failed with code {code}")
        row = self.native.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(row, (self.size,))


def low_level(task: Task) -> dict[str, Any]:
    """Answer with llama.cpp's functions by hand: one prompt a decode, nothing is kept."""
    raw = Raw(task)
    # One token for a letter in real vocabularies. In a made-up one a letter's last token stands
    # in for it, which changes the picks and not the work.
    answers = [raw.tokenize(f"Answer: {letter}")[-1] for letter in LETTERS]

    def ask(question: Question, votes: int) -> tuple[int, int, int]:
        ids = raw.tokenize(prompted(task, question))
        raw.back(0)
        logits = raw.decode(ids)
        found = [float(logits[token]) for token in answers[: len(question.choices)]]
        if votes == 1:
            return pick(found), len(ids), len(ids)
        drawn = draws(found, votes, TEMPERATURE, SEED, question.id)
        for at in drawn:
            # The end is a token to sample as well; the text is over only then.
            raw.decode([answers[at]]).argmax()
            raw.back(len(ids))
        return majority(drawn), len(ids), len(ids) + votes

    return both(task, one_by_one(ask))


def swap(task: Task) -> dict[str, Any]:
    """Measure, in milliseconds, what changing the adapter costs, and what it changes.

    A question is asked twice, once under the adapter of the question before it and once under the
    other one, so that `stay` and `change` are about the same questions.
    """
    names, questions = list(task.adapters), task.asked()[: 2 * SWAPPED]
    engine = opened(task, exact=False)
    load = [clock(engine.load_adapter, name) for name in names]
    scorer = Scorer(engine)
    for name in names:
        scores(scorer, questions[:WARM], name)
    use = [clock(engine.use, name) for _ in range(SWAPS) for name in names]
    asked = [scorer.item(question) for question in questions]
    (unit,) = packing.units([item.prompt for item in asked], min(item.known for item in asked))
    # Which label is read costs the same.
    item = Item(unit, ((0,),))
    refill = []
    for _ in range(5):
        engine.forget()
        refill.append(clock(lambda: list(engine.score([item], names[0]))))
    times: dict[bool, list[float]] = {False: [], True: []}
    for shift in (0, 1):
        before = None
        for at, question in enumerate(questions):
            name = names[(at + shift) // 2 % 2]
            spent = clock(scores, scorer, [question], name)
            if before is not None:
                times[name != before].append(spent)
            before = name
    engine.close()
    made = {"load": load, "refill": refill, "stay": times[False], "change": times[True]}
    return {
        "milliseconds": {
            "use": statistics.median(use),
            **{name: statistics.median(found) for name, found in made.items()},
        },
        "prefix": len(item.prompt),
        "warm": {name: warm(task, name == "exact") for name in ("exact", "packed")},
    }


def warm(task: Task, exact: bool) -> dict[str, Any]:
    """Compare answers after swaps there and back with those of engines that never swapped.

    `apart` is the largest difference of log-probabilities, `adapters` that between the two
    adapters, which says whether a swap that did nothing would have been seen.
    """
    one, other = task.adapters
    questions = task.asked()[:SWAPPED]

    def answers(*names: str) -> list[list[Score]]:
        engine = opened(task, exact)
        made = [scores(Scorer(engine), questions, name) for name in names]
        engine.close()
        return made

    (first,), (second,) = answers(one), answers(other)
    swapped = answers(one, other, one)
    pairs = [
        compared(found, cold) for found, cold in zip(swapped, (first, second, first), strict=True)
    ]
    return {
        "answers": len(swapped) * len(questions),
        "differing": sum(differing for differing, _ in pairs),
        "apart": max(apart for _, apart in pairs),
        "adapters": compared(first, second)[1],
    }


def compared(some: Sequence[Score], others: Sequence[Score]) -> tuple[int, float]:
    """Return how many picks differ, and the largest difference of log-probabilities."""
    pairs = [(a.logprobs, b.logprobs) for a, b in zip(some, others, strict=True)]
    differing = sum(pick(a) != pick(b) for a, b in pairs)
    return differing, max(abs(x - y) for a, b in pairs for x, y in zip(a, b, strict=True))


def effects(task: Task) -> dict[str, Any]:
    """Compare questions that share decodes with the same ones alone."""
    questions, made = task.asked(), []
    for exact in (True, False):
        engine = opened(task, exact)
        made.append(scores(Scorer(engine), questions, task.adapter))
        engine.close()
    differing, apart = compared(*made)
    most = max(score.packed for score in made[1])
    return {"questions": len(questions), "differing": differing, "apart": apart, "packed": most}


CONTENDERS: dict[str, Callable[[Task], dict[str, Any]]] = {
    "tel-edge": tel_edge,
    "high-level": high_level,
    "low-level": low_level,
    "swap": swap,
    "effects": effects,
}


def main() -> None:
    task = Task(**json.loads(sys.argv[1]))
    print(json.dumps(CONTENDERS[task.contender](task)))


if __name__ == "__main__":
    main()
