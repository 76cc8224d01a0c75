"""`tel-eval`: score every variant of a bundle on questions that training has not seen."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tel_edge.eval import benchmark
from tel_edge.eval.records import (
    Summary,
    Variant,
    line,
    measures,
    read_records,
    read_summary,
    write_summary,
)
from tel_edge.eval.scored import Settings, Task, in_child, score
from tel_edge.eval.split import Split, split
from tel_edge.eval.statistics import Share
from tel_edge.eval.variants import Types, adapters, types, variants
from tel_edge.runtime import (
    backbones,
    bundle,
    cli,
    digest,
    extras,
    profile,
    protocol,
)
from tel_edge.runtime.atomic import replacing
from tel_edge.runtime.categories import Category, categories
from tel_edge.runtime.engine import EngineSettings
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.formats import FORMATS
from tel_edge.runtime.manifest import BundleFile, Manifest

# Fields of `EngineSettings` that change no number: of all engines, and what a format's has not.
WITHOUT_EFFECT = {"threads", "max_adapters"}
UNKNOWN = {"gguf": {"providers"}, "onnx": {"flash", "kv", "extra_buffers", "gpu_layers"}}


@dataclass(frozen=True)
class Source:
    """One category's questions and where they come from."""

    category: Category
    dataset: str
    parts: Split
    rejected: int


def check_split(folder: Path, adapter: BundleFile, source: Source, allowed: bool) -> None:
    """Refuse an adapter trained with another split: its training questions may be in this test."""
    if adapter.split and adapter.split != source.parts.digest and not allowed:
        raise InputError(
            f"{folder / adapter.path}: trained on another split than {source.dataset} with seed "
            f"{source.parts.seed},\nso the test part may not be unseen: pass the --dataset and "
            "--seed of the training, or --other-split to score all the same"
        )


def evaluate(
    task: Task, source: Source, variant: Variant, opener: bundle.Opener, isolated: bool
) -> tuple[Summary, bool]:
    """Score what is missing of `task` and return (summary, whether all was there already).

    Records are appended as they come, so a killed run goes on behind the last whole line; records
    made of other files or settings are dropped.
    """
    if there := finished(task):
        return there, True
    wanted = {question.id for question in task.questions}
    kept = [record for record in read_records(task.out, task.run) if record.id in wanted]
    task.out.with_suffix(".json").unlink(missing_ok=True)
    with replacing(task.out) as partial:
        partial.write_text("".join(map(line, kept)), encoding="utf-8")
    done = {record.id for record in kept}
    rest = tuple(question for question in task.questions if question.id not in done)
    run = in_child if isolated else score
    too_long, used = run(replace(task, questions=rest), opener)
    summary = Summary(
        backbone=task.manifest.backbone.name,
        variant=variant,
        category=source.category.name,
        dataset=source.dataset,
        part=task.settings.part,
        split=source.parts.digest,
        run=task.run,
        made_with=made_with(task, source),
        rejected=source.rejected,
        k=task.settings.k,
        memory_anonymous=used.anonymous,
        memory_file=used.file,
        memory_peak=used.peak,
        **measures(
            list(read_records(task.out, task.run)),
            too_long,
            task.settings.k,
            task.settings.temperature,
        ),
    )
    write_summary(task.out, summary)
    return summary, False


def finished(task: Task) -> Summary | None:
    """Return the summary of an earlier run of this very task, or None."""
    try:
        there = read_summary(task.out.with_suffix(".json"))
    except (InputError, FileNotFoundError):
        return None
    return there if there.run == task.run and task.out.exists() else None


def made_with(task: Task, source: Source) -> dict[str, Any]:
    """Return everything that a record depends on; its digest is the record's `run`."""
    format = task.backbone.format
    passed = WITHOUT_EFFECT | UNKNOWN.get(format, set())
    engine = {name: value for name, value in asdict(task.engine).items() if name not in passed}
    engine["batch"] = engine["batch"] or FORMATS[format].batch
    # Left out where empty: the digests of GGUF results are older than the field.
    if not engine.get("providers"):
        engine.pop("providers", None)
    if task.settings.protocol != "letters":
        engine["protocol_prompt"] = protocol.digest()
    # An ONNX backbone's weights and tokenizer are files of their own.
    parts = task.manifest.parts(task.backbone)
    return {
        "backbone": task.backbone.sha256,
        **{f"backbone_{part.kind}": part.sha256 for part in parts if part != task.backbone},
        "adapter": task.adapter.sha256 if task.adapter else None,
        "weights": task.manifest.backbone.weights,
        "prompt": task.manifest.backbone.prompt,
        "engine": FORMATS[format].version(),
        "engine_settings": engine,
        "split": source.parts.digest,
        "settings": asdict(task.settings),
    }


def sources(args: argparse.Namespace) -> list[Source]:
    """Read the benchmark and split it, one source a category."""
    made = []
    for of in categories(args.category):
        read = benchmark.read(args.dataset, of, args.strict)
        parts = split(read.questions, args.seed)
        made.append(Source(of, read.dataset, parts, len(read.rejected)))
    return made


def tasks(
    args: argparse.Namespace, folder: Path, made: Manifest, all_of: Sequence[Source], of: Types
) -> list[tuple[Task, Source, Variant]]:
    """Return what is to be scored, after checking every adapter against its split."""
    settings = Settings(
        args.part, args.k, args.temperature, args.seed, args.protocol, args.max_tokens
    )
    found: list[tuple[Task, Source, Variant]] = []
    said: set[str] = set()
    for source in all_of:
        questions = source.parts.part(args.part)
        fitting = adapters(folder, made, source.category.name, of)
        for trained in fitting.values():
            check_split(folder, trained, source, args.other_split)
            if not trained.split:
                cli.say(args, f"warning: {trained.path} names no split; it may know the questions")
        for name in of if fitting else ():
            if name not in fitting:
                cli.say(args, f"{source.category.name}: no {name.upper()} adapter, not scored")
        for variant, backbone, adapter in variants(
            folder, made, source.category.name, of, args.protocol
        ):
            out = cli.workspace(args).results(
                made.backbone.name, variant.name, source.category.name
            )
            title = f"{source.category.name} {variant.name}"
            task = Task(
                folder, made, backbone, adapter, questions, out, "", settings,
                _engine(args, made, backbone, said), title, args.quiet,
            )  # fmt: skip
            run = digest.of_value(made_with(task, source))[:16]
            found.append((replace(task, run=run), source, variant))
    return found


def _engine(
    args: argparse.Namespace, made: Manifest, backbone: BundleFile, said: set[str]
) -> EngineSettings:
    """Return the engine's settings: those of the options, then of this machine's profile."""
    asked = cli.engine_settings(args)
    settings, note = profile.settings(asked, made.backbone.name, backbone.quant)
    if note and note not in said:
        said.add(note)
        cli.say(args, note)
    return settings


def work(
    args: argparse.Namespace, opener: bundle.Opener = bundle.native, isolated: bool = True
) -> dict[str, Any]:
    """Score everything that is not scored yet, and the trivial baselines if asked for."""
    cli.check_draws(args)
    if args.baselines:
        extras.check("sklearn", "report")
    backbone = backbones.find(args.backbone)
    folder = args.bundle or cli.workspace(args).bundle(backbone.name)
    made = bundle.read(folder)
    of = types(folder, made, args.format, args.quant, partial(cli.say, args))
    if args.category == "all":
        there = dict.fromkeys(category for name in of for category in made.adapters(name))
        args.category = ",".join(there) or "all"
    all_of = sources(args)
    summaries = []
    todo = tasks(args, folder, made, all_of, of)
    width = max([12, *(len(variant.name) for _, _, variant in todo)])
    # All files before the first question: a damaged one is refused with nothing written.
    fresh = [task for task, _, _ in todo if not finished(task)]
    files = [file for task in fresh for file in (task.backbone, task.adapter) if file]
    bundle.verify(folder, made, dict.fromkeys(files))
    for task, source, variant in todo:
        summary, reused = evaluate(task, source, variant, opener, isolated)
        summaries.append(summary)
        print(
            f"{source.category.name:<12} {variant.name:<{width}} "
            f"Pass@1 {_share(summary.pass1)}  Maj@{summary.k} {_share(summary.majority)}  "
            f"{summary.milliseconds_p50:.1f} ms" + ("  (scored before)" if reused else ""),
            flush=True,
        )
    if args.baselines:
        _baselines(args, all_of)
    return {"backbone": made.backbone.name, "summaries": [asdict(s) for s in summaries]}


def _share(of: Share) -> str:
    return f"{of.value:.3f} [{of.low:.3f}, {of.high:.3f}]"


def _baselines(args: argparse.Namespace, all_of: Sequence[Source]) -> None:
    from tel_edge.eval import baselines

    for source in all_of:
        cli.say(args, f"{source.category.name}: trivial baselines")
        made = baselines.measure(source.parts, source.category, source.dataset, args.part)
        baselines.write(cli.workspace(args), made)
        for baseline in made.baselines:
            print(f"{source.category.name:<12} {baseline.name:<18} {_share(baseline.share)}")


def parser() -> cli.Parser:
    """Return the command's options."""
    made = cli.parser(
        "tel-eval",
        "Score every variant of the bundle on the questions that training has not seen.",
        "backbone",
        "dataset",
        "category",
        "seed",
    )
    cli.engine_options(made)
    made.add_argument(
        "--quant",
        type=_names,
        metavar="TYPE,...",
        help="score these types only, such as Q4_K_M,int4 (all that are in the bundle)",
    )
    made.add_argument(
        "--part",
        choices=("test", "validation", "train"),
        default="test",
        help="which part of the split (%(default)s)",
    )
    cli.draw_options(made)
    made.add_argument(
        "--baselines", action="store_true", help="score trivial baselines on the same split too"
    )
    made.add_argument(
        "--other-split", action="store_true", help="allow adapters trained with another split"
    )
    return made


def _names(text: str) -> tuple[str, ...]:
    """Return the names of a list with commas, as the `type` of an option."""
    found = tuple(filter(None, map(str.strip, text.split(","))))
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing")
    return found


def main() -> None:
    """Run the command."""
    sys.exit(cli.run(parser(), work))
