"""What scripts/on_gpu.sh does in Python: packs what a machine without network needs, and trains.

`pack` writes the questions of a data set as JSONL and SmolLM2's file in pieces. `train` trains an
adapter for every category by each recipe, then the ranks of the paper's Figure 3 on 3gpp_tsg, and
scores each in the benchmark's order and over all orders of the options: a JSON file each. What is
finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.from_gguf import fetching
from tel_edge.eval.statistics import share
from tel_edge.runtime import cli
from tel_edge.runtime.bundles import backbones
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files.atomic import write_text
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.orders import rotations

BACKBONE, MODEL = "smollm2-135m", "SmolLM2-135M-Instruct.Q4_1.gguf"
PIECE = 50_000_000
RANKS = (4, 8, 16, 32)


@dataclass(frozen=True)
class Run:
    """One adapter to train."""

    name: str
    category: str
    options: tuple[str, ...]


def runs(rehearse: bool) -> Iterator[Run]:
    """Yield the runs, what is missed most first."""
    tiny = ("--max-train", "24", "--epochs", "1") if rehearse else ()
    for recipe in ("robust", "paper"):
        for name in CATEGORIES:
            yield Run(f"{recipe}-{name}", name, ("--recipe", recipe, *tiny))
    for rank in RANKS:
        rate = ("--recipe", "paper", "--rank", str(rank), *tiny)
        yield Run(f"rank{rank}-3gpp_tsg", "3gpp_tsg", rate)


def pack(args: argparse.Namespace) -> Mapping[str, Any]:
    """Write the questions and the model's pieces."""
    rows = 0
    for name, row in CATEGORIES.items():
        out = args.out / "questions" / name / "test-00000-of-00001.jsonl"
        out.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(one.columns) for one in benchmark.rows(args.dataset, row)
                 if one.columns is not None]  # fmt: skip
        write_text(out, "\n".join(lines) + "\n")
        rows += len(lines)
    file = fetching.fetch(backbones.find(BACKBONE)).file
    if file is None:
        raise InputError(f"{BACKBONE} is here from the hub; pass its folder to tel-train instead")
    with file.open("rb") as stream:
        at = 0
        while part := stream.read(PIECE):
            (args.out / f"{MODEL}.{at}").write_bytes(part)
            at += 1
    print(f"{args.out}: {rows} rows, {at} pieces of {MODEL}")
    return {"rows": rows, "pieces": at}


def train(args: argparse.Namespace) -> Mapping[str, Any]:
    """Train and score what is not there yet."""
    home = args.out / "work" / "smol"
    file = "tel-nano" if args.rehearse else str(_joined(args.pack, home))
    dataset = str(args.pack / "questions") if (args.pack / "questions").is_dir() else "ot-mini"
    done = 0
    for run in runs(args.rehearse):
        out = args.out / f"{run.name}.json"
        if not out.is_file():
            write_text(out, json.dumps(_trained(run, file, dataset, home), indent=1) + "\n")
        done += 1
        print(f"{run.name}: done", flush=True)
    return {"done": done}


def _joined(pack: Path, home: Path) -> Path:
    pieces = sorted(pack.glob(f"{MODEL}.*"), key=lambda path: int(path.suffix[1:]))
    made = home / MODEL
    if not made.is_file():
        if not pieces:
            raise InputError(f"{pack}: no pieces of {MODEL}; run scripts/on_gpu.sh --pack first")
        home.mkdir(parents=True, exist_ok=True)
        with made.open("wb") as out:
            for piece in pieces:
                out.write(piece.read_bytes())
    return made


def _trained(run: Run, backbone: str, dataset: str, home: Path) -> dict[str, Any]:
    from tel_edge.train import job, training
    from tel_edge.train.commands import train as command

    given = ["--workspace", str(home / run.name), "--backbone", backbone, "--dataset", dataset]
    given += ["--category", run.category, "--quiet", *run.options]
    [of] = job.jobs(command.parser().parse_args(given))
    out = home / run.name / of.stem
    began = time.monotonic()
    record = training.train(of, out, True, True)
    spent = time.monotonic() - began
    return {
        "run": asdict(run),
        "recipe": record["config"],
        "rows": record["rows"],
        "curve": record["curve"],
        "seconds": round(spent, 1),
        "adapter_bytes": (out / job.WEIGHTS).stat().st_size,
        "scores": _scores(of, out),
    }


def _scores(of: Any, out: Path) -> dict[str, Any]:
    """Return Pass@1 in the benchmark's order and over all orders, of bare and adapted model."""
    import torch
    from peft import PeftModel
    from transformers import AutoConfig

    from tel_edge.eval.folders import loading
    from tel_edge.train.scoring import score

    cuda = torch.cuda.is_available()
    longest = int(AutoConfig.from_pretrained(of.folder).max_position_embeddings)
    model = loading.model(of.folder, torch.bfloat16 if cuda else torch.float32)
    model = model.to("cuda" if cuda else "cpu").eval()
    tokenizer = loading.tokenizer(of.folder)
    test = of.parts.test[: None if cuda else 24]
    turned = [] if CATEGORIES[of.name].labels else [r for one in test for r in rotations(one)]
    found = {}
    for name in ("bare", "adapted"):
        if name == "adapted":
            model = PeftModel.from_pretrained(model, out).eval()
        (plain,) = score(model, tokenizer, test, longest, of.seed, 64)
        found[name] = {"pass1": asdict(plain.pass1), "majority": asdict(plain.majority)}
        if turned:
            (moved,) = score(model, tokenizer, turned, longest, of.seed, 64)
            both = plain.pass1.right + moved.pass1.right, plain.pass1.of + moved.pass1.of
            # The interval is that of as many questions, though orders of one belong together.
            found[name]["all_orders"] = asdict(share(*both))
    return found


def parser() -> cli.Parser:
    """Return the options."""
    made = cli.Parser(prog="gpu_work.py", description=__doc__, allow_abbrev=False)
    made.add_argument("what", choices=("pack", "train"))
    made.add_argument("--dataset", default="ot-mini")
    made.add_argument("--pack", type=Path, default=Path("gpu-pack"))
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--rehearse", action="store_true")
    made.add_argument("--json", action="store_true")
    made.add_argument("--quiet", action="store_true")
    return made


def main() -> None:
    """Run what is named."""
    sys.exit(cli.run(parser(), lambda args: (pack if args.what == "pack" else train)(args)))


if __name__ == "__main__":
    main()
