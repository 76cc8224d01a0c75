"""`tel-bench`: what answering costs on this machine, and the settings that make it cheapest."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from tel_edge.runtime import backbones, bundle, cli, probe, profile, tune
from tel_edge.runtime.categories import CATEGORIES, category
from tel_edge.runtime.engine import EngineSettings
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.manifest import BundleFile, Manifest
from tel_edge.runtime.measurement import K, Measurement, measure
from tel_edge.runtime.packed import cores
from tel_edge.runtime.probe import Subject
from tel_edge.runtime.question import Question
from tel_edge.runtime.requests import Defaults, from_lines

# Fewer would mostly measure the one decode that they share.
FEWEST = 8
QUESTIONS, TUNING_QUESTIONS = 64, 24


def table(of: Measurement) -> str:
    """Return the measurement as aligned lines."""
    first, swap, used = of.first_answer, of.swap, of.memory
    rows = [
        ("questions/s", f"{of.questions_per_second:,.2f}"),
        (f"  with Maj@{K}", f"{of.maj_per_second:,.2f}"),
        ("tokens/s", f"{of.tokens_per_second:,.1f}"),
        ("  plain prefill", f"{of.plain_rate:,.1f}"),
        ("  share of it", f"{of.share:.2f}"),
        ("tokens a question", f"{of.tokens_per_question:,.1f}"),
        ("  computed", f"{of.computed_per_question:,.1f}"),
        ("first answer", _ms(first.total_ms)),
        ("  checks, library", _ms(first.checks_ms)),
        ("  load", _ms(first.load_ms)),
        ("  context", _ms(first.context_ms)),
        ("  adapter", _ms(first.adapter_ms)),
        ("  prefill", _ms(first.prefill_ms)),
    ]
    if swap:
        rows += [
            ("adapter swap", ""),
            ("  load, once", _ms(swap.load_ms)),
            ("  set", _ms(swap.set_ms)),
            ("  question after it", _ms(swap.prefill_ms)),
            ("  question without", _ms(swap.stay_ms)),
        ]
    rows += [
        ("memory, peak", _mib(used.peak)),
        ("  anonymous", _mib(used.anonymous)),
        ("  file-backed", _mib(used.file)),
        ("buffers", ""),
        ("  weights, mapped", _mib(used.weights)),
        ("  weights, copied", _mib(used.repacked)),
        ("  KV cache", _mib(used.kv)),
        ("  compute", _mib(used.compute)),
        ("  output", _mib(used.output)),
        ("  adapters", _mib(used.adapters)),
        ("  rest", _mib(used.rest)),
    ]
    wide = [max(len(row[at]) for row in rows) for at in range(2)]
    return "\n".join(f"{name:<{wide[0]}}  {value:>{wide[1]}}".rstrip() for name, value in rows)


def _ms(value: float) -> str:
    return f"{value:,.2f} ms"


def _mib(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**20:,.1f} MiB"


def subject(args: argparse.Namespace) -> Subject:
    """Return the files and questions that the arguments name."""
    folder = args.bundle or cli.workspace(args).bundle(backbones.find(args.backbone).name)
    made = bundle.read(folder)
    backbone = bundle.backbone_file(folder, made, args.quant, args.format)
    adapter = _adapter(args, folder, made, backbone.format)
    there = (adapter.category if adapter else None) or next(
        iter(made.adapters(backbone.format)), None
    )
    of = category(args.category or there or next(iter(CATEGORIES)))
    wanted = args.questions or (TUNING_QUESTIONS if args.tune else QUESTIONS)
    asked = from_file(args.jsonl, of.name, wanted) if args.jsonl else probe.questions(of, wanted)
    if len(asked) < FEWEST:
        raise InputError(f"{len(asked)} questions; {FEWEST} or more are needed to measure anything")
    return Subject(folder, made, backbone, adapter, asked)


def _adapter(
    args: argparse.Namespace, folder: Path, made: Manifest, format: str
) -> BundleFile | None:
    name = args.category or next(iter(made.adapters(format)), None)
    if args.no_adapter:
        return None
    if name is None:
        cli.say(args, "the bundle has no adapter: the bare backbone is measured")
        return None
    return bundle.adapter_file(folder, made, name, format)


def from_file(path: Path, name: str, most: int) -> tuple[Question, ...]:
    """Return the first questions of category `name`, at most so many, of a file for `tel-run`.

    Raises `InputError` with the line that is none.
    """
    found: list[Question] = []
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as stream:
            for request in from_lines(stream, Defaults(category(name))):
                if request.question is None:
                    raise InputError(f"{path}: line {request.line}: {request.error}")
                if request.question.category == name:
                    found.append(request.question)
                if len(found) == most:
                    break
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    return tuple(found)


def work(
    args: argparse.Namespace, opener: bundle.Opener = bundle.native, isolated: bool = True
) -> dict[str, Any]:
    """Measure, or tune; `isolated` tunes in processes of their own, which can crash alone."""
    what = subject(args)
    base = cli.engine_settings(args)
    title = f"{what.manifest.backbone.name} {what.backbone.quant}"
    cli.say(args, f"{title}, {what.category or 'no'} adapter, {len(what.questions)} questions")
    if args.tune:
        return _tune(args, what, base, opener, isolated)
    return _measure(args, what, base, opener)


def _measure(
    args: argparse.Namespace, what: Subject, base: EngineSettings, opener: bundle.Opener
) -> dict[str, Any]:
    settings, note = profile.settings(base, what.manifest.backbone.name, what.backbone.quant)
    cli.say(args, note or f"nothing tuned, so safe settings: {profile.described(settings)}")
    made = measure(
        lambda: probe.opened(what, settings, opener),
        what.questions,
        what.category,
        args.repeat,
        device_memory=bool(settings.gpu_layers),
    )
    print(table(made), flush=True)
    return {**_head(what), "settings": asdict(settings), **asdict(made)}


def _tune(
    args: argparse.Namespace,
    what: Subject,
    base: EngineSettings,
    opener: bundle.Opener,
    isolated: bool,
) -> dict[str, Any]:
    path = profile.location()
    profile.check_writable(path)
    bundle.verify(what.folder, what.manifest, [f for f in (what.backbone, what.adapter) if f])
    device = tune.device() if isolated else tune.Device(cores(), False)
    run: tune.Measure = (
        tune.InChild(what, opener)
        if isolated
        else lambda settings: tune.answered(what, settings, opener)
    )
    found = tune.tune(run, base, device, rounds=args.repeat, say=lambda text: cli.say(args, text))
    print(tune.table(found.findings))
    name = profile.key(what.manifest.backbone.name, what.backbone.quant)
    chosen = {part: getattr(found.settings, part) for part in profile.TUNED}
    entry = profile.Entry(
        **chosen,
        tokens_per_second=round(found.tokens_per_second, 1),
        date=date.today().isoformat(),
    )
    profile.write(profile.with_entry(_there(args, path), name, entry), path)
    print(f"saved in {path} for {name}: {profile.described(found.settings)}", flush=True)
    return {
        **_head(what),
        "profile": str(path),
        "settings": asdict(found.settings),
        "tokens_per_second": entry.tokens_per_second,
        "findings": [asdict(finding) for finding in found.findings],
    }


def _there(args: argparse.Namespace, path: Path) -> profile.Profile | None:
    try:
        return profile.read(path)
    except InputError as error:
        cli.say(args, f"warning: {error}\nit is replaced")
        return None


def _head(what: Subject) -> dict[str, Any]:
    return {
        "backbone": what.manifest.backbone.name,
        "quant": what.backbone.quant,
        "adapter": what.category,
        "machine": profile.machine(),
        "engine": profile.engine(),
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
    made.add_argument("--quant", metavar="TYPE", help="the variant to use (the smallest there is)")
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
        "--repeat", type=cli.positive, default=3, metavar="N", help="(median of %(default)s)"
    )
    made.add_argument(
        "--tune",
        action="store_true",
        help="find the fastest settings and save them for tel-run and tel-eval "
        "(env TEL_PROFILE, ~/.config/tel-edge/profile.json)",
    )
    return made


def main() -> None:
    """Run the command."""
    sys.exit(cli.run(parser(), work))
