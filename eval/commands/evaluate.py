"""`tel-eval`: score every variant of a bundle on questions that training has not seen."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from tel_edge.eval.benchmarks.source import CategorySource, asked, sources
from tel_edge.eval.references import reference
from tel_edge.eval.scoring import trainings
from tel_edge.eval.scoring.provenance import evaluate, made_with
from tel_edge.eval.scoring.records import PARTS, Variant, baselines_path, duplicates_path
from tel_edge.eval.scoring.resumed import finished, shown, told, which
from tel_edge.eval.scoring.scored import ScoringTask, Settings
from tel_edge.eval.scoring.variants import Types, before_and_after, trained, types, variants
from tel_edge.eval.scoring.variants import categories as trained_categories
from tel_edge.runtime import cli, extras
from tel_edge.runtime.bundles import backbones, bundle
from tel_edge.runtime.bundles.manifest import BundleFile, Manifest
from tel_edge.runtime.device import profile
from tel_edge.runtime.device.energy import Meter
from tel_edge.runtime.engines.engine import EngineSettings
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import digest, lock, ownership
from tel_edge.runtime.questions.categories import SPOKEN


def check_split(folder: Path, file: BundleFile, source: CategorySource, allowed: bool) -> None:
    """Refuse what was trained with another split: its training questions may be in this test."""
    if file.split and file.split != source.parts.digest and not allowed:
        raise InputError(
            f"{folder / file.path}: trained on another split than {source.dataset} with seed "
            f"{source.parts.seed},\nso the test part may not be unseen: pass the --dataset and "
            "--seed of the training, or --other-split to score all the same"
        )


def tasks(
    args: argparse.Namespace,
    folder: Path,
    made: Manifest,
    all_of: Sequence[CategorySource],
    of: Types,
) -> list[tuple[ScoringTask, CategorySource, Variant]]:
    """Return what is to be scored, after checking every adapter against its split.

    The questions in other orders of their options come last, once all others are scored.
    """
    found: list[tuple[ScoringTask, CategorySource, Variant]] = []
    said: set[str] = set()
    for source in all_of:
        name = source.category.name
        there = variants(folder, made, name, of, _settings(args, "").suffix, args.ladder)
        if not args.bare:
            there = [files for files in there if files[2] or files[1].kind == "merged"]
        known = list(dict.fromkeys(filter(None, map(trained, there))))
        _check_trained(args, folder, source, known, of)
        for file in known:
            if warning := trainings.check_tokenizer(cli.workspace(args), made, file):
                cli.say(args, warning)
        decisive = {variant.name for variant, _, _ in before_and_after(there)}
        for of_part, (variant, model, adapter) in product(asked(args, source), there):
            part, rotated = of_part.part, of_part.rotated
            if rotated and args.rotations is None and variant.name not in decisive:
                continue
            settings = _settings(args, part)
            out = cli.workspace(args).results(made.backbone.name, variant.name, name, part, rotated)
            title = " ".join([name, variant.name, *which(part, rotated)])
            task = ScoringTask(
                folder, made, model, adapter, of_part.questions, out, "", settings,
                _engine(args, made, model, said), title, args.quiet, rotated, args.wait,
                of_part.left_out,
            )  # fmt: skip
            run = digest.of_value(made_with(task, source))[:16]
            found.append((replace(task, run=run), source, variant))
    if not (found or args.bare):
        raise InputError(f"{folder}: nothing but the bare backbone to score; leave --no-bare out")
    return sorted(found, key=lambda one: one[0].rotated)


def _settings(args: argparse.Namespace, part: str) -> Settings:
    return Settings(
        part,
        args.k,
        args.temperature,
        args.seed,
        args.protocol,
        args.max_tokens or cli.TEXT,
        args.orders,
    )


def _check_trained(
    args: argparse.Namespace,
    folder: Path,
    source: CategorySource,
    files: Sequence[BundleFile],
    of: Types,
) -> None:
    """Check the splits of adapters and merged models, and tell what is missing or not known."""
    for file in dict.fromkeys(files):
        check_split(folder, file, source, args.other_split)
    if unsplit := [file.path for file in dict.fromkeys(files) if not file.split]:
        others = f" (as {len(unsplit) - 1} other files)" if unsplit[1:] else ""
        cli.say(args, f"warning: {unsplit[0]} names no split{others}; it may know the questions")
    there = {file.format for file in files}
    for name in of if there else ():
        if name not in there:
            end = "" if args.ladder else ", not scored"
            cli.say(args, f"{source.category.name}: no {name.upper()} adapter{end}")


def _engine(
    args: argparse.Namespace, made: Manifest, backbone: BundleFile, said: set[str]
) -> EngineSettings:
    """Return the engine's settings: those of the options, then of this machine's profile."""
    asked = cli.engine_settings(args)
    settings, note = profile.settings(asked, made.backbone.name, backbone.quant, backbone.format)
    if note and note not in said:
        said.add(note)
        cli.say(args, note)
    return settings


def work(
    args: argparse.Namespace, opener: bundle.Opener = bundle.native, isolated: bool = True
) -> dict[str, Any]:
    """Score everything that is not scored yet, and the trivial baselines if asked for."""
    if args.category in SPOKEN:
        from tel_edge.eval.care.answers import evaluating

        return evaluating.work(args, parser().parse_args([]), opener, isolated)
    _check_questions(args)
    cli.check_draws(args)
    if args.reference:
        return reference.work(args, sources(args), opener, isolated)
    if args.baselines:
        extras.check("sklearn", "report")
    backbone = backbones.find(args.backbone)
    folder = cli.bundle_folder(args, backbone.name)
    made = bundle.read(folder)
    ownership.check_results(cli.workspace(args), made.backbone.name, made.backbone.weights)
    say = partial(cli.say, args)
    of = types(folder, made, args.format, args.quant, say, args.ladder)
    if args.category == "all":
        known = trained_categories(made, of, args.ladder)
        for name in SPOKEN.keys() & {*known}:
            say(f"{name}: not scored here; run: tel-eval --category {name} --dataset DIR")
        args.category = ",".join(name for name in known if name not in SPOKEN) or "all"
    all_of = sources(args)
    summaries, before = [], 0
    todo = tasks(args, folder, made, all_of, of)
    width = max([12, *(len(variant.name) for _, _, variant in todo)])
    # All files before the first question: a damaged one is refused with nothing written.
    fresh = [task for task, _, _ in todo if not finished(task)]
    files = [file for task in fresh for file in (task.backbone, task.adapter) if file]
    bundle.verify(folder, made, dict.fromkeys(files))
    if warning := bundle.unmeasured(files):
        say(warning)
    meter = Meter()
    if fresh:
        meter.begin()
    for task, source, variant in todo:
        summary, reused = evaluate(task, source, variant, opener, isolated, meter)
        summaries.append(summary)
        before += reused
        print(told(summary, width, reused), flush=True)
    _baselines(args, [source for source in all_of if _floorless(args, source)])
    print(f"results: {len(todo) - before} scored now, {before} before; tel-report shows them")
    return {"backbone": made.backbone.name, "summaries": [asdict(s) for s in summaries]}


def _check_questions(args: argparse.Namespace) -> None:
    """Refuse what is of answers in sentences alone."""
    if spoken := SPOKEN.keys() & set(args.category.split(",")):
        raise InputError(f"--category {args.category}: {min(spoken)} is evaluated by itself")
    if "unseen" in args.part:
        raise InputError("--part unseen: questions have none; it is for --category care")
    if not args.along:
        raise InputError("--no-along: means nothing without --category care")


def _floorless(args: argparse.Namespace, source: CategorySource) -> bool:
    """Return whether trivial baselines are to be made: asked for, or missing and to be had."""
    if args.baselines is not None:
        return bool(args.baselines)
    known = "test", source.dataset, source.parts.digest
    if "test" not in args.part or not source.parts.train or not extras.there("sklearn"):
        return False
    from tel_edge.eval.scoring import baselines

    try:
        made = baselines.read(baselines_path(cli.workspace(args), source.category.name))
    except (InputError, OSError):
        return True
    return (made.part, made.dataset, made.split) != known


def _baselines(args: argparse.Namespace, all_of: Sequence[CategorySource]) -> None:
    from tel_edge.eval.benchmarks import duplicates
    from tel_edge.eval.scoring import baselines

    # One file a category, which the report compares with the test part's results.
    part = "test" if "test" in args.part else args.part[0]
    for source in all_of:
        cli.say(args, f"{source.category.name}: trivial baselines")
        # The two files of a category belong together.
        place = baselines_path(cli.workspace(args), source.category.name)
        with lock.held(place, args.wait, partial(cli.say, args)):
            made = baselines.measure(source.parts, source.category, source.dataset, part)
            baselines.write(cli.workspace(args), made)
            alike = duplicates.measure(source.parts, source.category, source.dataset, part)
            duplicates.write(duplicates_path(cli.workspace(args), source.category.name), alike)
        for baseline in made.baselines:
            print(f"{source.category.name:<12} {baseline.name:<18} {shown(baseline.share)}")
        print(f"{source.category.name:<12} near-duplicates    {len(alike.pairs)} of {alike.of}")


def parser() -> cli.Parser:
    """Return the command's options."""
    made = cli.parser(
        "tel-eval",
        "Score every variant of the bundle on the questions that training has not seen.",
        "backbone",
        "dataset",
        "category",
        "spoken",
        "seed",
        "wait",
    )
    made.epilog = (
        "--category care has every variant answer customers and measures the answers; --dataset is "
        "then a folder that tel-generate made (docs/care.md)."
    )
    # What the other command scores is what this one wants.
    made.set_defaults(wait=math.inf)
    cli.engine_options(made)
    made.add_argument(
        "--quant",
        type=_names,
        metavar="TYPE,...",
        help="score these types only, such as Q4_K_M,int4 (all that are in the bundle)",
    )
    made.add_argument(
        "--part",
        type=_parts,
        metavar="PART,...",
        default="test",
        help="which part of the split: test, validation, train or (--category care) unseen, or "
        "several (%(default)s)",
    )
    made.add_argument(
        "--rotations",
        action=argparse.BooleanOptionalAction,
        help="ask with the options in every cyclic order too: every variant, or none (the bare "
        "backbone and its adapter, at the largest type, on the test part)",
    )
    made.add_argument(
        "--limit",
        type=cli.positive,
        metavar="N",
        help="of each category's questions (all); with more later, these are not asked again",
    )
    made.add_argument(
        "--bare",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="score the bare backbone too, as what the adapters change (yes)",
    )
    made.add_argument(
        "--ladder",
        action="store_true",
        help="score the bare backbone at every type, adapters of every type and merged models too",
    )
    cli.draw_options(made, "with --category care 256")
    made.add_argument(
        "--along",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="with --category care: how far each variant is from the largest along its answers "
        "(yes)",
    )
    made.add_argument(
        "--baselines",
        action=argparse.BooleanOptionalAction,
        help="score trivial baselines and near-duplicates anew, or not at all (where they are "
        "missing and scikit-learn is there)",
    )
    made.add_argument(
        "--other-split", action="store_true", help="allow adapters trained with another split"
    )
    reference.add_options(made)
    return made


def _names(text: str) -> tuple[str, ...]:
    """Return the names of a list with commas, as the `type` of an option."""
    found = tuple(filter(None, map(str.strip, text.split(","))))
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing")
    return found


def _parts(text: str) -> tuple[str, ...]:
    """Return the parts of a list with commas, as the `type` of an option."""
    found = tuple(dict.fromkeys(_names(text)))
    every = (*PARTS, "unseen")
    if wrong := next((part for part in found if part not in every), None):
        raise argparse.ArgumentTypeError(f"invalid choice: {wrong!r} (one of {', '.join(every)})")
    return found


def main() -> None:
    """Run the command."""
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
