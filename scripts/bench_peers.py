"""Compares tel-edge with other engines: `python scripts/bench_peers.py --peers DIR --shared DIR`.

The same test questions, once each (Pass@1) and with four votes (Maj@4), are answered by tel-edge's
two formats with an adapter on, and by engines that one might pick instead: llama.cpp through
llama-cpp-python's `Llama`, llama-server and llama-perplexity, OpenVINO GenAI, onnxruntime-genai and
CTranslate2 (`install_peers.sh`). All picks are compared with those of the merged model in float32.
Every measurement is a process of its own, and all take turns, every second round backwards. What is
finished is kept in the work folder as one JSON line each, so a killed run goes on. Who is missing
or fails is named with the reason, and the others go on.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import bench_runtime
import peer_contenders
import peer_engines
from bench_tables import common_options, keep, machine, turn_options
from contender_tasks import WARM
from peer_contenders import PeerTask, said
from peer_tables import GGUF, MERGED, ON, ONNX, REFERENCE, Contender, tables
from real_size import ROWS, built, check_space, exported, peft
from runtime_tables import Log

import tel_edge
from tel_edge.eval.from_gguf import fetching
from tel_edge.runtime import cli
from tel_edge.runtime.bundles import backbones, manifest
from tel_edge.runtime.device.child import ending, in_child
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.files import digest
from tel_edge.runtime.files.atomic import write_text
from tel_edge.runtime.questions import prompt
from tel_edge.runtime.workspace import Workspace

RANK = 16
SHAPES = {row.name.lower(): row for row in ROWS.values()}
FILES = {GGUF: ("gguf", "Q4_K_M"), ONNX: ("onnx", "dynamic-int8")}
# The peers with an environment of their own, and the precisions that each is asked for.
ENGINES = {
    "OpenVINO GenAI": ("openvino", ("int8", "int4")),
    "onnxruntime-genai": ("ort-genai", ("int8", "int4")),
    "CTranslate2": ("ctranslate2", ("int8",)),
}
# llama.cpp's extra buffers are its default; on some processors it is faster without.
BUFFERS = {"": True, ", no repack": False}
# Its library and programs, and how many questions one works on at a time.
LIBRARY = "llama-cpp-python"
PROGRAMS = (
    (LIBRARY, "", peer_contenders.high_level, 1),
    ("llama-server", "", peer_contenders.server, 1),
    ("llama-server", ", 4 slots", peer_contenders.server, 4),
    ("llama-perplexity", "", peer_contenders.perplexity, 1),
)
# Bytes on the disk: folders in bfloat16 and, merged, in float32, the bundle, each peer's format.
NEEDED = {False: 20_000_000_000, True: 200_000_000}
ROUNDS, QUESTIONS = {False: 3, True: 1}, {False: 32, True: 4}


@dataclass(frozen=True)
class Subject:
    """A backbone's Hugging Face folder, a PEFT folder, and a bundle with both of `FILES`."""

    name: str
    model: Path
    adapter: Path
    bundle: Path

    def tasks(self, category: str) -> dict[str, PeerTask]:
        """Return what is there of `FILES`, each with the adapter of its format."""
        found = {}
        made = manifest.read(self.bundle) if (self.bundle / manifest.NAME).is_file() else None
        for name, (format, quant) in FILES.items() if made else ():
            file = made.find("backbone", quant, format=format)
            lora = made.find("adapter", None, category, format)
            if file and lora:
                adapters = {category: (str(self.bundle / lora.path), lora.sha256)}
                found[name] = PeerTask(name, str(self.bundle / file.path), adapters, "")
        return found


def work(args: argparse.Namespace) -> Mapping[str, Any]:
    """Measure what is not measured yet and print the tables; see `parser` for the arguments."""
    name = args.backbone or args.shape
    home = (args.work / (f"small-{name}" if args.small else name)).absolute()
    home.mkdir(parents=True, exist_ok=True)
    check_space(home, 0 if (home / "merged").is_dir() else NEEDED[args.small], "--work")
    dataset = args.dataset or bench_runtime.dataset(args)[1]
    most = (args.questions or QUESTIONS[args.small]) + WARM
    asked = bench_runtime.questions(dataset, most, home / "questions.jsonl", args.category)
    subject = _prepared(args, home)
    if args.threads:
        # Whatever is started from here on counts the cores that it may use.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    count = f"{len(asked) - WARM} questions ({Path(dataset).name}, {args.category})"
    threads = f"{len(os.sched_getaffinity(0))} threads"
    made = f"{subject.name}, {count}, {threads}, prompt {prompt.digest()[:8]}"
    log = Log(home / "measurements.jsonl", made, args.fresh)
    if not log.has(REFERENCE, 0):
        cli.say(args, "answering in float32")
        given = PeerTask(REFERENCE, "", {}, str(home / "questions.jsonl"))
        log.add(REFERENCE, 0, in_child(None, peer_contenders.float32, str(home / "merged"), given))
    write_text(home / "prompts.json", json.dumps(log.of(REFERENCE)[0]))
    contenders = list(_contenders(args, subject, home))
    missing = measured(args, contenders, log)
    onnx = f"onnxruntime {importlib.metadata.version('onnxruntime')}"
    text = tables(contenders, log, missing, f"{machine()}, {onnx}")
    if args.small:
        text += "\na tiny model with made-up labels: the figures say nothing\n"
    print(text, end="")
    raw = [asdict(one) for one in log.mine]
    document = {"machine": f"{machine()}, {onnx}", "left_out": missing, "measurements": raw}
    keep(args.out, text, document)
    return document


def measured(args: argparse.Namespace, contenders: Sequence[Contender], log: Log) -> dict[str, str]:
    """Add what is not in the log yet; return who failed, and why in a line."""
    missing: dict[str, str] = {}
    for turn in range(args.rounds or ROUNDS[args.small]):
        # Backwards in every second round: what drifts in one direction then cancels out.
        for one in contenders[:: -1 if turn % 2 else 1]:
            if one.name in missing or log.has(one.name, turn):
                continue
            began = time.perf_counter()
            try:
                log.add(one.name, turn, one.measure())
            except (InputError, WorkError) as error:
                missing[one.name] = " ".join(str(error).split())[:300]
                cli.say(args, f"{one.name} is left out: {missing[one.name]}")
                continue
            spent = time.perf_counter() - began
            cli.say(args, f"round {turn + 1}: {one.name}: {spent:.1f} s")
    return missing


def _prepared(args: argparse.Namespace, home: Path) -> Subject:
    """Return the subject after making what is missing of it, the merged folder included."""
    place = home / f"prompt-{prompt.digest()[:8]}"
    if args.backbone:
        row = backbones.find(args.backbone)
        model = fetching.fetch(row, say=lambda text: cli.say(args, text)).folder
        folders = Workspace(args.workspace.absolute())
        adapter = folders.adapter(row.name, args.category)
        if not (adapter / "training.json").is_file():
            raise InputError(f"no adapter in {adapter}; train one, or pass its --workspace")
        subject, given = Subject(row.name, model, adapter, folders.bundle(row.name)), args.backbone
    else:
        shape = SHAPES[args.shape].small() if args.small else SHAPES[args.shape]
        model, adapter = home / shape.name, place / "adapter"
        if not model.is_dir():
            cli.say(args, f"building {shape.name}")
            built(shape, args.shared, model)
        if not (adapter / "training.json").is_file():
            peft(model, adapter, RANK, args.category, digest.of_weights(model))
        subject, given = Subject(shape.name, model, adapter, place / "bundle"), str(model)
    if len(subject.tasks(args.category)) < len(FILES):
        # What a workspace has is only read.
        subject = replace(subject, bundle=place / "bundle")
    for name, (format, quant) in FILES.items():
        if name not in subject.tasks(args.category):
            cli.say(args, f"exporting {format} {quant}")
            options = ("--format", format, "--quant", quant, "--adapter", str(adapter))
            exported(Path(given), subject.bundle, *options)
    if not (home / "merged").is_dir():
        cli.say(args, "merging the adapter")
        folders_ = (str(model), str(adapter), str(home / "merged"))
        in_child(None, peer_contenders.merged, *folders_)
    return subject


def _contenders(args: argparse.Namespace, subject: Subject, home: Path) -> Iterator[Contender]:
    """Yield those that are asked for, tel-edge always: the others are compared with it."""
    files = {"questions": str(home / "questions.jsonl"), "prompts": str(home / "prompts.json")}
    tasks = {name: replace(task, **files) for name, task in subject.tasks(args.category).items()}
    quant, gguf = FILES[GGUF][1], tasks[GGUF]
    made = [
        Contender(name, FILES[name][1], ON, partial(in_child, None, peer_contenders.tel_edge, task))
        for name, task in tasks.items()
    ]
    for (program, middle, work, slots), (end, buffers) in product(PROGRAMS, BUFFERS.items()):
        task = replace(gguf, slots=slots, buffers=buffers)
        measure = partial(in_child, None, work, task)
        if program != LIBRARY:
            given = getattr(args, program.replace("-", "_"))
            measure = partial(by_program, given, program, work, task)
        made.append(Contender(f"{program}{middle}{end}", quant, ON, measure))
    for title, (engine, precisions) in ENGINES.items():
        for precision in precisions:
            task = PeerTask(engine, str(home / f"{engine}-{precision}"), {}, **files)
            measure = partial(
                apart, args.peers, home / "merged", replace(task, precision=precision)
            )
            made.append(Contender(f"{title}, {precision}", precision, MERGED, measure))
    wanted = [word.strip().lower() for word in (args.only or "").split(",")]
    for word in wanted:
        if not any(word in one.name.lower() for one in made):
            names = "; ".join(one.name for one in made)
            raise InputError(f"--only {word}: no contender is called so; there are: {names}")
    for one in made:
        if one.name in FILES or any(word in one.name.lower() for word in wanted):
            yield one


def by_program(
    given: Path | None, name: str, work: Callable[[PeerTask], dict[str, Any]], task: PeerTask
) -> dict[str, Any]:
    """Measure with a program of llama.cpp."""
    program = shutil.which(given or name)
    if program is None:
        raise InputError(f"no {given or f'{name} on PATH'}; pass --{name} FILE")
    return in_child(None, work, replace(task, program=program))


def apart(peers: Path | None, source: Path, task: PeerTask) -> dict[str, Any]:
    """Measure with an engine in its own environment, after converting the model if need be."""
    engine, model = task.contender, Path(task.model)
    python = (peers or Path()).absolute() / engine / "bin" / "python"
    if not peers or not python.is_file():
        raise InputError(f"not installed; scripts/install_peers.sh DIR {engine}, then --peers DIR")
    if not model.is_dir():
        partial_ = model.with_name(f".{model.name}.partial")
        shutil.rmtree(partial_, ignore_errors=True)
        _python(python, engine, "convert", str(source), str(partial_), task.precision)
        partial_.rename(model)
    made: dict[str, Any] = json.loads(_python(python, engine, "answer", json.dumps(asdict(task))))
    return made


def _python(python: Path, *given: str) -> str:
    """Run `peer_engines.py` with another Python, offline; return the last line that it prints."""
    # Its own threads only: tel-edge's settings of other libraries stay at home.
    sources = str(Path(tel_edge.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": sources, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, peer_engines.__file__, *given],
        capture_output=True, text=True, errors="replace", env=env, check=False,
    )  # fmt: skip
    if done.returncode:
        raise WorkError(f"{ending(done.returncode)}: {said(done.stderr)}")
    return done.stdout.splitlines()[-1] if done.stdout.strip() else ""


def parser() -> cli.Parser:
    """Return the options."""
    made = cli.Parser(
        prog="bench_peers.py",
        description="Compare tel-edge with other engines that answer the same questions.",
        allow_abbrev=False,
    )
    which = made.add_mutually_exclusive_group()
    which.add_argument(
        "--shape",
        choices=tuple(SHAPES),
        default="qwen3-0.6b",
        help="random weights of that shape (%(default)s)",
    )
    which.add_argument("--backbone", metavar="NAME|DIR", help="a real one, with --workspace")
    made.add_argument(
        "--workspace",
        type=Path,
        metavar="DIR",
        default=Path("tel-workspace"),
        help="where the backbone's trained adapter is; nothing is written there (%(default)s)",
    )
    made.add_argument("--category", default=bench_runtime.CATEGORY, help="(%(default)s)")
    made.add_argument("--dataset", metavar="NAME|DIR", help="(ot-full of --shared, else ot-mini)")
    made.add_argument(
        "--peers", type=Path, metavar="DIR", help="environments of scripts/install_peers.sh DIR"
    )
    for program in ("llama-server", "llama-perplexity"):
        made.add_argument(f"--{program}", type=Path, metavar="FILE", help="(the one on PATH)")
    made.add_argument(
        "--only", metavar="A,B", help="only those in whose names a part of this list stands"
    )
    made.add_argument(
        "--threads", type=cli.positive, metavar="N", help="cores for everybody (all; Linux only)"
    )
    made.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        default=Path(tempfile.gettempdir()) / "tel-edge-bench-peers",
        help="where models are built and measurements are kept; 20 GB (%(default)s)",
    )
    turn_options(made, "32; 4 with --small")
    common_options(made, "tokenizers and ot-full")
    return made


def main() -> None:
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
