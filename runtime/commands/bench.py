"""`tel-bench`: what answering costs on this machine, and the settings that make it cheapest.

Several variants are measured in two rounds, A B and B A, with half of the repeats in each: a
machine that gets slower or faster meanwhile does so for all of them alike.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from tel_edge.runtime import cli
from tel_edge.runtime.bundles import backbones, bundle
from tel_edge.runtime.bundles.formats import FORMATS
from tel_edge.runtime.bundles.manifest import BundleFile, Manifest
from tel_edge.runtime.device import power, profile
from tel_edge.runtime.device.child import in_child
from tel_edge.runtime.engines.engine import EngineSettings
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.measuring import comparison, probe, tune
from tel_edge.runtime.measuring.measurement import Measurement, averaged, measure
from tel_edge.runtime.measuring.probe import Subject
from tel_edge.runtime.processors import cores
from tel_edge.runtime.questions.categories import CATEGORIES, SPOKEN, category
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.requests import Defaults, from_lines

# Fewer would mostly measure the one decode that they share.
FEWEST = 8
QUESTIONS, TUNING_QUESTIONS = 64, 24


def subjects(args: argparse.Namespace) -> tuple[Subject, ...]:
    """Return the files that the arguments name, once for each variant, and the same questions."""
    folder = cli.bundle_folder(args, backbones.find(args.backbone).name)
    made = bundle.read(folder)
    variants = _variants(args, folder, made)
    # Only under the same adapter do two variants do the same work.
    common = [
        name
        for name in made.adapters(variants[0].format)
        if name not in SPOKEN and all(name in made.adapters(one.format) for one in variants)
    ]
    name = None if args.no_adapter else args.category or next(iter(common), None)
    if name is None and not args.no_adapter:
        one = "the bundle has no adapter: the bare backbone is measured"
        several = "no adapter is there in every format: the bare backbones are measured"
        cli.say(args, one if len(variants) == 1 else several)
    adapters = [
        bundle.adapter_file(folder, made, name, one.format) if name else None for one in variants
    ]
    of = category(args.category or next(iter(common), None) or next(iter(CATEGORIES)))
    wanted = args.questions or (TUNING_QUESTIONS if args.tune else QUESTIONS)
    asked = from_file(args.jsonl, of.name, wanted) if args.jsonl else probe.questions(of, wanted)
    if len(asked) < FEWEST:
        raise InputError(f"{len(asked)} questions; {FEWEST} or more are needed to measure anything")
    return tuple(
        Subject(folder, made, one, adapter, asked)
        for one, adapter in zip(variants, adapters, strict=True)
    )


def _variants(args: argparse.Namespace, folder: Path, made: Manifest) -> list[BundleFile]:
    """Return the backbones to measure; if nothing says which, of each format that can run one."""
    there = made.formats()
    names = [name for name, row in FORMATS.items() if name in there and row.installed()]
    if len(names) > 1 and not (args.quant or args.format):
        return [bundle.backbone_file(folder, made, None, name) for name in names]
    quants: tuple[str | None, ...] = args.quant or (None,)
    return [bundle.backbone_file(folder, made, quant, args.format) for quant in quants]


def from_file(path: Path, name: str, most: int) -> tuple[Question, ...]:
    """Return the first questions of category `name`, at most so many, of a file for `tel-run`.

    Raises `InputError` with the line that is none.
    """
    found: list[Question] = []
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as stream:
            for request in from_lines(stream, Defaults(category(name))):
                if request.question is None:
                    raise InputError(f"line {request.line}: {request.error}")
                if request.question.category == name:
                    found.append(request.question)
                if len(found) == most:
                    break
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    return tuple(found)


def work(
    args: argparse.Namespace, opener: bundle.Opener = bundle.native, isolated: bool = True
) -> dict[str, Any]:
    """Measure, or tune; `isolated` tunes and compares in processes of their own."""
    whats = subjects(args)
    what, base = whats[0], cli.engine_settings(args)
    title = f"{what.manifest.backbone.name} {' and '.join(one.backbone.quant for one in whats)}"
    cli.say(args, f"{title}, {what.category or 'no'} adapter, {len(what.questions)} questions")
    if warning := bundle.unmeasured(f for one in whats for f in (one.backbone, one.adapter) if f):
        cli.say(args, warning)
    if opener is bundle.native:
        for one in whats:
            probe.check_engine(one.backbone.format)
    if args.tune:
        return _tuned(args, whats, base, opener, isolated)
    if len(whats) > 1:
        return _compare(args, whats, base, opener, isolated)
    settings = _settings(args, what, base)
    made = _measured(args, what, settings, opener, args.repeat, False)
    print(comparison.table([(what, made)]), flush=True)
    return _document(what, settings, made)


def _settings(
    args: argparse.Namespace, what: Subject, base: EngineSettings, title: str = ""
) -> EngineSettings:
    backbone = what.backbone
    settings, note = profile.settings(
        base, what.manifest.backbone.name, backbone.quant, backbone.format
    )
    safe = f"nothing tuned, so safe settings: {profile.described(settings, backbone.format)}"
    cli.say(args, title + (note or safe))
    return settings


def _measured(
    args: argparse.Namespace,
    what: Subject,
    settings: EngineSettings,
    opener: bundle.Opener,
    repeat: int,
    isolated: bool,
) -> Measurement:
    opened = partial(probe.opened, what, settings, opener)
    given = (opened, what.questions, what.category, repeat, bool(settings.gpu_layers))
    title = None if args.quiet else what.title
    if not isolated:
        return measure(*given, title)
    try:
        return in_child(None, measure, *given, title, shown=not args.quiet)
    except (InputError, WorkError) as error:
        raise type(error)(f"{what.title}: {error}") from None


def _compare(
    args: argparse.Namespace,
    whats: Sequence[Subject],
    base: EngineSettings,
    opener: bundle.Opener,
    isolated: bool,
) -> dict[str, Any]:
    """Measure several variants; in new processes if `isolated`, so that memory is their own."""
    for one in whats:
        # Before anything is timed: a damaged file ends it, and no round has to read all of a file.
        bundle.verify(one.folder, one.manifest, [f for f in (one.backbone, one.adapter) if f])
    settings = [_settings(args, one, base, f"{one.title}: ") for one in whats]
    forth = list(range(len(whats)))
    runs: list[list[Measurement]] = [[] for _ in whats]
    for at in forth + (forth[::-1] if args.repeat > 1 else []):
        made = _measured(args, whats[at], settings[at], opener, (args.repeat + 1) // 2, isolated)
        cli.say(args, f"{whats[at].title}: {made.questions_per_second:,.2f} questions/s")
        runs[at].append(made)
    found = [averaged(these) for these in runs]
    print(comparison.table(list(zip(whats, found, strict=True))))
    rates = [[one.questions_per_second for one in these] for these in runs]
    titles = (one.title for one in whats)
    print(comparison.verdict(dict(zip(titles, rates, strict=True))), flush=True)
    chosen = comparison.chosen(whats, rates)
    fastest = max(forth, key=lambda at: found[at].questions_per_second)
    if warning := comparison.warning(whats, chosen):
        cli.say(args, warning)
    return {
        "variants": [_document(*variant) for variant in zip(whats, settings, found, strict=True)],
        "fastest": whats[fastest].backbone.quant,
        "chosen": whats[chosen].backbone.quant,
    }


def _tuned(
    args: argparse.Namespace,
    whats: Sequence[Subject],
    base: EngineSettings,
    opener: bundle.Opener,
    isolated: bool,
) -> dict[str, Any]:
    """Tune each variant; of several keep in the profile which one is to answer as tuned."""
    if args.repeat == 1:
        cli.say(args, "warning: one round cannot tell what is faster from noise; --repeat 3 can")
    if len(whats) == 1:
        return _tune(args, whats[0], base, opener, isolated)
    made = []
    for one in whats:
        print(one.title, flush=True)
        made.append(_tune(args, one, base, opener, isolated))
    compared = _compare(args, whats, base, opener, isolated)
    rates = {
        one.backbone.quant: round(of["questions_per_second"], 2)
        for one, of in zip(whats, compared["variants"], strict=True)
    }
    [first] = [one for one in whats if one.backbone.quant == compared["chosen"]]
    found = profile.Choice(
        first.backbone.format, first.backbone.quant, rates, date.today().isoformat()
    )
    name, say = first.manifest.backbone.name, partial(cli.say, args)
    of = profile.chosen_key(name, power.now())
    before = profile.choice(name)
    path = profile.kept(lambda there: profile.with_choice(there, of, found), say)
    said = f"saved in {path}: {name} answers with {found.quant} ({found.format})"
    if before and before.quant not in rates:
        said += f", no longer with {before.quant} ({before.format}), which was not measured now"
    print(said, flush=True)
    return {**compared, "tuned": made, "chosen": asdict(found)}


def _tune(
    args: argparse.Namespace,
    what: Subject,
    base: EngineSettings,
    opener: bundle.Opener,
    isolated: bool,
) -> dict[str, Any]:
    path, under = profile.location(), power.now()
    profile.check_writable(path)
    bundle.verify(what.folder, what.manifest, [f for f in (what.backbone, what.adapter) if f])
    format = what.backbone.format
    device = tune.device(format) if isolated else tune.Device(cores(), False)
    run: tune.Measure = (
        tune.InChild(what, opener)
        if isolated
        else lambda settings: tune.answered(what, settings, opener)
    )
    found = tune.tune(
        run, base, device, format, rounds=args.repeat, say=lambda text: cli.say(args, text)
    )
    print(tune.table(found.findings))
    if under != (now := power.now()):
        raise WorkError(f"nothing is saved: the power was {under.key}, and is {now.key} now")
    name = profile.key(what.manifest.backbone.name, what.backbone.quant, under)
    chosen = {part: getattr(found.settings, part) for part in FORMATS[format].tuned}
    entry = profile.ProfileEntry(
        **chosen,
        engine=profile.engine(format),
        tokens_per_second=round(found.tokens_per_second, 1),
        date=date.today().isoformat(),
    )
    profile.kept(lambda there: profile.with_entry(there, name, entry), partial(cli.say, args))
    print(f"saved in {path} for {name}: {profile.described(found.settings, format)}", flush=True)
    return {
        **_head(what),
        "profile": str(path),
        "settings": asdict(found.settings),
        "tokens_per_second": entry.tokens_per_second,
        "findings": [asdict(finding) for finding in found.findings],
    }


def _document(what: Subject, settings: EngineSettings, made: Measurement) -> dict[str, Any]:
    return {**_head(what), "settings": asdict(settings), **asdict(made)}


def _head(what: Subject) -> dict[str, Any]:
    return {
        "backbone": what.manifest.backbone.name,
        "quant": what.backbone.quant,
        "sha256": what.backbone.sha256,
        "parity": what.backbone.parity and dict(what.backbone.parity),
        "date": date.today().isoformat(),
        "adapter": what.category,
        "machine": profile.machine(),
        "power": power.now().key or None,
        "engine": profile.engine(what.backbone.format),
    }


def parser() -> cli.Parser:
    """Return the command's options."""
    made = cli.parser(
        "tel-bench",
        "Measure what answering costs on this machine, or tune the engine to it.",
        "backbone",
    )
    made.add_argument("--category", metavar="NAME", help="whose adapter (the bundle's first)")
    cli.engine_options(made)
    made.add_argument(
        "--quant",
        type=_names,
        metavar="TYPE,...",
        help="the variants to measure; of several, such as Q4_K_M,int4, the fastest is named (the "
        "smallest of each format whose engine is installed; with --tune the smallest of one)",
    )
    made.add_argument("--no-adapter", action="store_true", help="measure the bare backbone")
    made.add_argument(
        "--questions",
        type=cli.positive,
        metavar="N",
        help=f"how many ({QUESTIONS}; {TUNING_QUESTIONS} with --tune)",
    )
    made.add_argument(
        "--jsonl", type=Path, metavar="FILE", help="questions as for tel-run (made-up ones)"
    )
    made.add_argument(
        "--repeat",
        type=cli.positive,
        default=3,
        metavar="N",
        help="(median of %(default)s; of several variants means of half of them forth, half back)",
    )
    made.add_argument(
        "--tune",
        action="store_true",
        help="find the fastest settings and save them for tel-run and tel-eval "
        "(env TEL_PROFILE, ~/.config/tel-edge/profile.json)",
    )
    return made


def _names(text: str) -> tuple[str, ...]:
    """Return names with commas between them, each once, as the `type` of an option."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name")
    return names


def main() -> None:
    """Run the command."""
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
