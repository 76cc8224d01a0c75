"""Engines of bench_peers.py that have an environment of their own (`install_peers.sh`).

`python peer_engines.py ENGINE convert SOURCE OUT PRECISION` turns a Hugging Face folder into the
engine's format; `python peer_engines.py ENGINE answer TASK` answers, TASK being a `PeerTask` as
JSON, and ends stdout with what was measured. Both run in the engine's environment with tel-edge's
sources on PYTHONPATH, of which nothing that needs a package is imported.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from contender_tasks import BATCH, CORES, SEED, TEMPERATURE, WARM, Answered, K, both
from peer_contenders import PeerTask

from tel_edge.runtime.questions.prompt import LETTERS, render
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.votes import draws, majority, pick

# Ids of prompts to the logits [questions, vocabulary] of what follows each.
Logits = Callable[[Sequence[Sequence[int]]], Sequence[Any]]


def by_logits(task: PeerTask, logits: Logits) -> dict[str, Any]:
    """Answer with an engine that gives logits: as tel-edge does, votes are drawn from them."""
    import numpy as np

    prompts = task.read()
    rows = zip(task.asked(), prompts.ids, prompts.labels, strict=True)
    known = {question.id: (ids, labels) for question, ids, labels in rows}

    def way(questions: Sequence[Question], votes: int) -> Answered:
        began = time.perf_counter()
        asked = [known[question.id] for question in questions]
        found, picks = [], []
        rows = logits([ids for ids, _ in asked])
        for question, (_, labels), row in zip(questions, asked, rows, strict=True):
            values = np.asarray(row, np.float64)
            top = values.max()
            own = values[labels] - top - np.log(np.exp(values - top).sum())
            found.append(tuple(own.tolist()))
            drawn = (pick(found[-1]),)
            if votes > 1:
                drawn = draws(found[-1], votes, TEMPERATURE, SEED, question.id)
            picks.append(majority(drawn))
        seconds = time.perf_counter() - began
        tokens = sum(len(ids) for ids, _ in asked)
        return Answered(seconds, tokens, tokens, tuple(picks), tuple(found) if votes == 1 else ())

    return both(task, way)


def ctranslate2(task: PeerTask) -> dict[str, Any]:
    """Answer with `Generator.generate_batch`, one prompt at a time.

    Of prompts of different lengths in a batch it computes but the shortest at once, and the rest
    token by token.
    """
    import ctranslate2 as engine
    import numpy as np
    from tokenizers import Tokenizer

    generator = engine.Generator(
        task.model, device="cpu", compute_type=task.precision, inter_threads=1, intra_threads=CORES
    )
    tokenizer = Tokenizer.from_file(str(Path(task.model) / "tokenizer.json"))

    def logits(asked: Sequence[Sequence[int]]) -> Sequence[Any]:
        made = generator.generate_batch(
            [[tokenizer.id_to_token(token) for token in ids] for ids in asked],
            max_length=1,
            max_batch_size=1,
            include_prompt_in_result=False,
            return_logits_vocab=True,
        )
        return [np.array(one.logits[0]).reshape(-1) for one in made]

    return by_logits(task, logits)


def ort_genai(task: PeerTask) -> dict[str, Any]:
    """Answer with one `Generator`, which keeps what a prompt shares with the one before it."""
    import onnxruntime_genai as engine

    engine.disable_telemetry_events()
    config = engine.Config(task.model)
    threads = {"intra_op_num_threads": CORES}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": threads}}}))
    model = engine.Model(config)
    params = engine.GeneratorParams(model)
    params.set_search_options(max_length=max(map(len, task.read().ids)) + 1, batch_size=1)
    generator, before = engine.Generator(model, params), []

    def one(ids: Sequence[int]) -> Any:
        nonlocal before
        pairs = zip(before, ids[:-1], strict=False)
        same = next(
            (at for at, (a, b) in enumerate(pairs) if a != b), min(len(before), len(ids) - 1)
        )
        if before:
            generator.rewind_to(same)
        generator.append_tokens(list(ids[same:]))
        before = list(ids)
        return generator.get_logits().reshape(-1)

    return by_logits(task, lambda asked: [one(ids).copy() for ids in asked])


def openvino(task: PeerTask) -> dict[str, Any]:
    """Answer with `ContinuousBatchingPipeline`, all questions at once, under an expression.

    Votes are samples of one prompt. It is opened anew before the votes, since it keeps whole
    prompts.
    """
    import openvino_genai as engine

    prompts, open_ = task.read(), []

    def settings(expression: str, votes: int = 1, logprobs: int = 0) -> Any:
        made = engine.GenerationConfig()
        made.max_new_tokens, made.apply_chat_template, made.logprobs = 1, False, logprobs
        made.structured_output_config = engine.StructuredOutputConfig(regex=expression)
        if votes > 1:
            made.do_sample, made.num_return_sequences = True, votes
            made.temperature, made.rng_seed = TEMPERATURE, SEED
        return made

    def answered(questions: Sequence[Question], votes: int) -> Answered:
        began = time.perf_counter()
        letters = [LETTERS[: len(question.choices)] for question in questions]
        how = [settings(f" [{own}]", votes) for own in letters]
        made = open_[0].generate([render(question) for question in questions], how)
        picks = tuple(
            majority([own.find(text.strip() or "-") for text in one.m_generation_ids])
            for own, one in zip(letters, made, strict=True)
        )
        seconds = time.perf_counter() - began
        tokens = sum(map(len, prompts.ids[WARM:]))
        return Answered(seconds, tokens, tokens, picks)

    def anew() -> None:
        scheduler = engine.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.max_num_batched_tokens = BATCH
        scheduler.cache_size = 1
        threads = {"INFERENCE_NUM_THREADS": CORES}
        open_[:] = [engine.ContinuousBatchingPipeline(task.model, scheduler, "CPU", threads)]
        for votes in (1, K):
            answered(task.asked()[:WARM], votes)

    anew()
    made = both(task, answered, anew)
    # Not timed: what it says of each letter alone, before the expression hides the others.
    made["pass"]["logprobs"] = [
        [
            open_[0].generate([render(question)], [settings(f" {one}", logprobs=1)])[0].m_scores[0]
            for one in LETTERS[: len(question.choices)]
        ]
        for question in task.asked()[WARM:]
    ]
    return made


def tool(name: str) -> str:
    """Return the path of a program of this environment."""
    return str(Path(sys.executable).with_name(name))


def convert_openvino(source: str, out: str, precision: str) -> list[str]:
    """Return the command that writes the folder `out`."""
    command = [tool("optimum-cli"), "export", "openvino", "--model", source]
    command += ["--task", "text-generation-with-past", "--weight-format", precision]
    config = json.loads((Path(source) / "config.json").read_text())
    if precision == "int4" and config["hidden_size"] % 128:
        # Rows are whole groups, of 128 unless told.
        command += ["--group-size", "64"]
    return [*command, out]


def convert_ort_genai(source: str, out: str, precision: str) -> list[str]:
    """Return the command that writes the folder `out`, its head for the last token alone."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", out]
    command += ["-p", precision, "-e", "cpu", "-c", f"{out}-cache"]
    # Its default for 4 bits rounds all matrices alike; this one is what llama.cpp's Q4_K_M does.
    mixed = ["algo_config=k_quant_mixed"] if precision == "int4" else []
    return [*command, "--extra_options", "prune_lm_head=true", *mixed]


def convert_ctranslate2(source: str, out: str, precision: str) -> list[str]:
    """Return the command that writes the folder `out`."""
    command = [tool("ct2-transformers-converter"), "--model", source, "--output_dir", out]
    return [*command, "--quantization", precision, "--copy_files", "tokenizer.json"]


Answering = Callable[[PeerTask], dict[str, Any]]
Converting = Callable[[str, str, str], list[str]]
# By environment: what answers, the command that converts, the package.
ENGINES: dict[str, tuple[Answering, Converting, str]] = {
    "openvino": (openvino, convert_openvino, "openvino-genai"),
    "ort-genai": (ort_genai, convert_ort_genai, "onnxruntime-genai"),
    "ctranslate2": (ctranslate2, convert_ctranslate2, "ctranslate2"),
}


def main(engine: str, verb: str, *given: str) -> None:
    answer, convert, package = ENGINES[engine]
    if verb == "convert":
        command = convert(*given)
        os.execv(command[0], command)
    made = answer(PeerTask(**json.loads(given[0])))
    print(json.dumps({**made, "version": f"{package} {importlib.metadata.version(package)}"}))


if __name__ == "__main__":
    main(*sys.argv[1:])
