"""What bench_peers.py measures in tel-edge's own environment, each in a process of its own.

tel-edge itself, llama.cpp's programs as they come, and the float32 model that all are compared
with. Engines with environments of their own are in `peer_engines.py`.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import runtime_contenders
from contender_tasks import BATCH, CONTEXT, CORES, TEMPERATURE, WARM, Answered, Task, both
from runtime_contenders import scored, scores

from tel_edge.runtime.bundles import formats
from tel_edge.runtime.device.child import ending
from tel_edge.runtime.engines.engine import EngineSettings, LoraFile
from tel_edge.runtime.errors import WorkError
from tel_edge.runtime.questions.prompt import LETTERS, render
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.scoring import Scorer
from tel_edge.runtime.questions.votes import majority, pick

# Seconds that a server may take until it answers.
LOADING = 300
# Added to the labels' logits, so that nothing else is left; the same for all changes no ratio.
BIAS = 100
# Sequences of a batch of llama-perplexity, four a question, and the least tokens it has room for.
SEQUENCES, ROOM = 32, 1024


@dataclass(frozen=True)
class PeerTask(Task):
    """A task of a peer; `adapters` are empty where `model` has the adapter merged in.

    `prompts` is a file of `Prompts` as JSON, `program` that of llama.cpp and `slots` how many
    questions its server answers at a time. `buffers` are the extra buffers of llama.cpp, which its
    programs use unless told not to. `precision` is that of an engine of `peer_engines.py`.
    """

    prompts: str = ""
    program: str = ""
    slots: int = 1
    precision: str = ""

    def read(self) -> Prompts:
        """Read the prompts."""
        return Prompts(**json.loads(Path(self.prompts).read_text()))


class Prompts(NamedTuple):
    """By question: ids of the prompt and the last of each label, log-probabilities in float32.

    The labels of a real vocabulary are one token; in a made-up one the last token stands in, which
    changes the picks and not the work.
    """

    ids: list[list[int]]
    labels: list[list[int]]
    logprobs: list[list[float]]


def tel_edge(task: PeerTask) -> dict[str, Any]:
    """Answer with tel-edge's engine for the file, with its default settings."""
    adapters = {
        name: LoraFile(lambda file=file: Path(file), digest)  # type: ignore[misc]
        for name, (file, digest) in task.adapters.items()
    }
    model = Path(task.model)
    engine = formats.of_file(model).open(model, adapters, EngineSettings())
    return both(task, scored(Scorer(engine), task.adapter))


def high_level(task: PeerTask) -> dict[str, Any]:
    """Answer with llama-cpp-python's `Llama`, which has no option for the extra buffers."""
    import llama_cpp.llama_cpp as native

    defaults = native.llama_model_default_params

    def parameters() -> Any:
        made = defaults()
        made.use_extra_bufts = task.buffers
        return made

    native.llama_model_default_params = parameters
    return runtime_contenders.high_level(task)


def merged(model: str, adapter: str, out: str) -> None:
    """Write the Hugging Face folder of a model with a PEFT adapter merged in, in float32."""
    from tel_edge.export import original

    folder = Path(out)
    partial = folder.with_name(f".{folder.name}.partial")
    original.load(Path(model), Path(adapter)).merge_and_unload().save_pretrained(partial)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(Path(model) / name, partial / name)
    # As transformers 4 has it too, which some converters pin.
    config = json.loads((partial / "config.json").read_text())
    rope = config.get("rope_parameters") or {}
    scaling = rope if rope.get("rope_type", "default") != "default" else None
    config |= {"rope_theta": rope.get("rope_theta", 10000.0), "rope_scaling": scaling}
    (partial / "config.json").write_text(json.dumps({**config, "torch_dtype": "float32"}))
    tokenizer = json.loads((partial / "tokenizer_config.json").read_text())
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    # CTranslate2 writes a null otherwise that it cannot read.
    tokenizer.setdefault("pad_token", tokenizer["eos_token"])
    (partial / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    os.replace(partial, folder)


def float32(folder: str, task: PeerTask) -> dict[str, Any]:
    """Return `Prompts` of the questions by transformers, from a folder of `merged`."""
    from tel_edge.eval.references.with_transformers import TransformersEngine

    questions = task.asked()
    scorer = Scorer(TransformersEngine(Path(folder), CONTEXT, "float32", CORES))
    asked = [scorer.item(question) for question in questions]
    return Prompts(
        [list(item.prompt) for item in asked],
        [[label[-1] for label in item.labels] for item in asked],
        [list(score.logprobs) for score in scores(scorer, questions, None)],
    )._asdict()


def llama_options(task: PeerTask) -> list[str]:
    """Return the options that llama.cpp's programs have in common."""
    made = ["-m", task.model, "--lora", task.adapters[task.adapter][0]]
    made += ["-t", str(CORES), "-tb", str(CORES), "-b", str(BATCH), "-ub", str(BATCH)]
    return made if task.buffers else [*made, "--no-repack"]


def server(task: PeerTask) -> dict[str, Any]:
    """Answer with llama-server over HTTP: a letter under a grammar, `slots` questions at a time."""
    asked, prompts = task.asked(), task.read()
    ids = dict(zip((question.id for question in asked), prompts.ids, strict=True))
    labels = dict(zip((question.id for question in asked), prompts.labels, strict=True))
    with _served(task) as port, ThreadPoolExecutor(task.slots) as pool:

        def letter(question: Question, seed: int, votes: int) -> int:
            letters = LETTERS[: len(question.choices)]
            made = _post(
                port,
                prompt=ids[question.id],
                n_predict=1,
                grammar=f'root ::= " " [{letters}]',
                temperature=0.0 if votes == 1 else TEMPERATURE,
                samplers=["temperature"],
                seed=seed,
            )
            said = made["content"].strip()
            return letters.index(said) if said else -1

        def ask(question: Question, votes: int) -> int:
            return majority([letter(question, seed, votes) for seed in range(votes)])

        def way(questions: Sequence[Question], votes: int) -> Answered:
            began = time.perf_counter()
            picks = tuple(pool.map(lambda question: ask(question, votes), questions))
            seconds = time.perf_counter() - began
            tokens = sum(len(ids[question.id]) for question in questions)
            return Answered(seconds, tokens, tokens, picks)

        def known(question: Question) -> list[float]:
            own = labels[question.id]
            made = _post(
                port,
                prompt=ids[question.id],
                n_predict=1,
                logit_bias=[[token, BIAS] for token in own],
                samplers=["temperature"],
                temperature=1.0,
                n_probs=len(own),
                post_sampling_probs=True,
            )
            top = made["completion_probabilities"][0]["top_probs"]
            found = {one["id"]: one["prob"] for one in top}
            return [math.log(max(found.get(token, 0.0), 1e-30)) for token in own]

        made = both(task, way)
        # Not timed: the request of a user who wants the letter does not ask for them.
        made["pass"]["logprobs"] = [known(question) for question in asked[WARM:]]
    return made


@contextmanager
def _served(task: PeerTask) -> Iterator[int]:
    """Yield the port of a server that is ready; it ends with the context."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [task.program, *llama_options(task), "--host", "127.0.0.1", "--port", str(port)]
    command += ["-c", str(CONTEXT), "-np", str(task.slots), "--kv-unified", "--no-webui"]
    # No prompts of earlier passes out of memory.
    command += ["--cache-ram", "0"]
    with tempfile.TemporaryFile() as log:
        run = subprocess.Popen(
            [*tied(), *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            until = time.monotonic() + LOADING
            while not _ready(port):
                if (code := run.poll()) is not None or time.monotonic() > until:
                    log.seek(0)
                    how = "not ready in time" if code is None else ending(code)
                    text = said(log.read().decode(errors="replace"))
                    raise WorkError(f"llama-server: {how}: {text}")
                time.sleep(0.1)
            yield port
        finally:
            run.terminate()
            run.wait()


def tied() -> list[str]:
    """Return what starts a program, not Python, so that it ends with this process (util-linux)."""
    found = shutil.which("setpriv")
    return [found, "--pdeathsig", "TERM"] if found else []


def said(text: str) -> str:
    """Return the last line of a program's output, of those that name an error if there are any."""
    lines = [one.strip() for one in text.splitlines() if one.strip()] or ["it says nothing"]
    return ([one for one in lines if "error" in one.lower()] or lines)[-1][:200]


def _ready(port: int) -> bool:
    try:
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        link.request("GET", "/health")
        return link.getresponse().status == 200
    except OSError:
        return False


def _post(port: int, **body: Any) -> dict[str, Any]:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=LOADING)
    link.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
    reply = link.getresponse()
    made: dict[str, Any] = json.loads(reply.read())
    link.close()
    if reply.status != 200:
        raise WorkError(f"llama-server: {made.get('error', made)}")
    return made


@dataclass(frozen=True)
class Choice:
    """A task of llama-perplexity: `right` is the index of the answer that is counted."""

    question: str
    answers: tuple[str, ...]
    right: int


def packed_choices(choices: Sequence[Choice]) -> bytes:
    """Return a file of llama-perplexity's --multiple-choice, little endian throughout.

    Source: `multiple_choice_score` in tools/perplexity/perplexity.cpp. The number of tasks, the
    place of each from the start of the file, then the tasks: the question, its answers with one
    right one, and those with several, which the program does not read further.
    """

    def text(value: str) -> bytes:
        data = value.encode()
        return struct.pack("<I", len(data)) + data

    bodies = [
        text(one.question)
        + struct.pack("<I", len(one.answers))
        + b"".join(map(text, one.answers))
        + struct.pack(f"<{len(one.answers)}i", *(at == one.right for at in range(len(one.answers))))
        + struct.pack("<I", 0)
        for one in choices
    ]
    places, at = [], 4 + 4 * len(bodies)
    for body in bodies:
        places.append(at)
        at += len(body)
    return struct.pack(f"<{1 + len(places)}I", len(places), *places) + b"".join(bodies)


def unpacked_choices(data: bytes) -> list[Choice]:
    """Return what `packed_choices` was given, read by the places in the file."""

    def number(file: BytesIO) -> int:
        return int(struct.unpack("<I", file.read(4))[0])

    def text(file: BytesIO) -> str:
        return file.read(number(file)).decode()

    file, made = BytesIO(data), []
    places = [number(file) for _ in range(number(file))]
    for place in places:
        file.seek(place)
        question = text(file)
        answers = tuple(text(file) for _ in range(number(file)))
        labels = struct.unpack(f"<{len(answers)}i", file.read(4 * len(answers)))
        made.append(Choice(question, answers, labels.index(1)))
    return made


def each_right(lines: Sequence[str]) -> list[bool]:
    """Return whether each answer was right, of lines of (number, percentage right so far)."""
    rows = [line.split() for line in lines]
    counts = [0, *(round(int(count) * float(share) / 100) for count, share in rows)]
    return [after > before for before, after in pairwise(counts)]


def perplexity(task: PeerTask) -> dict[str, Any]:
    """Score with llama-perplexity, which packs questions too; it says but what was right.

    What float32 picks is called right, so that each line says whether the pick is the same; it has
    no votes. The clock runs from the reading of the file to the last question's line.
    """
    asked, prompts = task.asked()[WARM:], task.read()
    expected = [pick(logprobs) for logprobs in prompts.logprobs[WARM:]]
    choices = [
        Choice(render(question), tuple(LETTERS[: len(question.choices)]), at)
        for question, at in zip(asked, expected, strict=True)
    ]
    room = max(ROOM, max(map(len, prompts.ids)) + len(LETTERS))
    with tempfile.NamedTemporaryFile() as file:
        file.write(packed_choices(choices))
        file.flush()
        command = [task.program, *llama_options(task), "--multiple-choice", "-bf", file.name]
        command += ["-c", str(-(-room // SEQUENCES)), "-np", str(SEQUENCES)]
        came = []
        with subprocess.Popen(
            [*tied(), *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace",
        ) as run:  # fmt: skip
            assert run.stdout is not None
            for line in run.stdout:
                came.append((time.perf_counter(), line.rstrip("\n")))
    began = [when for when, line in came if "tasks in prompt" in line]
    rows = [(when, line) for when, line in came if re.fullmatch(r"\d+\t\d+\.\d+", line)]
    if run.returncode or not began or len(rows) != len(asked):
        reason = said("\n".join(line for _, line in came))
        raise WorkError(f"llama-perplexity: {ending(run.returncode)}: {reason}")
    right = each_right([line for _, line in rows])
    picks = [at if same else -1 for at, same in zip(expected, right, strict=True)]
    tokens = sum(map(len, prompts.ids[WARM:]))
    return {"pass": {"seconds": rows[-1][0] - began[0], "tokens": tokens, "picks": picks}}
