"""`tel-eval --category care`: every variant of a bundle answers, and is measured and compared."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tel_edge.eval.care.answers import along, asked, tables
from tel_edge.eval.care.answers.against import Against, against, paired
from tel_edge.eval.care.answers.cases import PARTS, Case, Cases, read
from tel_edge.eval.care.answers.measured import Table, measured
from tel_edge.eval.care.answers.records import (
    Along,
    Record,
    Summary,
    along_place,
    figures,
    measured_before,
    milliseconds,
    place,
    put_away,
    read_along,
    write,
    write_summary,
)
from tel_edge.eval.care.answers.records import read as read_records
from tel_edge.eval.scoring.provenance import files_behind
from tel_edge.eval.scoring.records import Variant
from tel_edge.eval.scoring.resumed import measured_where
from tel_edge.eval.scoring.variants import Files, Types, categories, types, variant_of, variants
from tel_edge.runtime import cli, extras
from tel_edge.runtime.bundles import backbones, bundle
from tel_edge.runtime.bundles.manifest import Manifest
from tel_edge.runtime.device import profile
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.files import digest, lock, ownership

# Options of `tel-eval` that are about questions with options to choose from.
MEANINGLESS = (
    *("rotations", "baselines", "strict", "reference", "protocol", "orders"),
    *("k", "temperature", "seed"),
)
MOST_TOKENS = 256


@dataclass(frozen=True)
class Answered:
    """A variant, what answers, its records by dialogue, and where they are."""

    variant: Variant
    model: asked.Model
    run: str
    out: Path
    records: dict[str, Record]
    summary: Summary


def work(
    args: argparse.Namespace,
    usual: argparse.Namespace,
    opener: bundle.Opener = bundle.native,
    isolated: bool = True,
) -> dict[str, Any]:
    """Answer what is not answered yet, compare, print the tables and write the report.

    `usual` has the options' defaults. Raises `InputError` for options that mean nothing here.
    """
    check(args, usual)
    args.max_tokens = args.max_tokens or MOST_TOKENS
    extras.check("jinja2", "llama")
    name = backbones.find(args.backbone).name
    folder = cli.bundle_folder(args, name)
    made = bundle.read(folder)
    workspace = cli.workspace(args)
    ownership.check_results(workspace, made.backbone.name, made.backbone.weights)
    say = partial(cli.say, args)
    of = types(folder, made, args.format, args.quant, say, args.ladder)
    there = _variants(args, folder, made, of)
    documents = []
    for part in args.part:
        cases = read(Path(args.dataset), part, args.limit)
        _check_trained(args, folder, there, cases)
        # All files before the first answer: a damaged one is refused with nothing written.
        files = dict.fromkeys(file for _, *both in there for file in both if file)
        bundle.verify(folder, made, files)
        models = [_model(args, folder, made, files) for files in there]
        found = []
        for (variant, _, _), model in zip(there, models, strict=True):
            found.append(_answered(args, variant, model, cases, opener, isolated))
            print(tables.told(found[-1].summary), flush=True)
        beside = _beside(args, found, cases, opener, isolated)
        document = tables.document(
            made.backbone.name, cases, [one.summary for one in found], beside, _references(cases)
        )
        out = place(workspace, made.backbone.name, "x", part).parents[1]
        tables.write(out, part, document)
        print("\n" + tables.text(document))
        print(f"report: {out / tables.name(part)}.md")
        documents.append(document)
    return {"backbone": made.backbone.name, "care": documents}


def check(args: argparse.Namespace, usual: argparse.Namespace) -> None:
    """Refuse what means nothing where answers are sentences."""
    for name in MEANINGLESS:
        if getattr(args, name) != getattr(usual, name):
            option = "-k" if name == "k" else f"--{name.replace('_', '-')}"
            raise InputError(f"{option}: means nothing with --category care")
    if not Path(args.dataset).is_dir():
        raise InputError(
            f"--category care: --dataset {args.dataset} is no folder; make one with tel-generate "
            "--out DIR, and pass it"
        )
    if wrong := [part for part in args.part if part not in PARTS]:
        raise InputError(f"--part {wrong[0]}: one of {', '.join(PARTS)}")


def _variants(args: argparse.Namespace, folder: Path, made: Manifest, of: Types) -> list[Files]:
    """Return the bare backbone and the adapter at every type; with `--ladder` merged models too.

    A bundle without an adapter for it has its bare backbone measured.
    """
    if "care" in categories(made, of, ladder=True):
        found = variants(folder, made, "care", of, "", ladder=True)
        if not args.ladder:
            # Of a backbone's adapters the first is the one that every command uses.
            first = {(v[1], v[2] is None): v for v in reversed(found) if v[1].kind != "merged"}
            found = [v for v in found if v in first.values()]
    else:
        found = [
            (variant_of(made, file, None), file, None)
            for format_, quants in of.items()
            for quant in quants
            if (file := made.find("backbone", quant, format=format_))
        ]
        if args.bare:
            cli.say(args, f"{folder}: no adapter for care, so only the bare backbone is measured")
    found = [one for one in found if args.bare or one[0].adapter]
    if not found:
        raise InputError(f"{folder}: no adapter for care; leave --no-bare out, or train and export")
    return found


def _check_trained(
    args: argparse.Namespace, folder: Path, there: Sequence[Files], cases: Cases
) -> None:
    """Refuse an adapter of another data set: it may have been trained on these dialogues."""
    for _, model, adapter in there:
        file = adapter or model
        if file.split not in (None, cases.digest) and not args.other_split:
            raise InputError(
                f"{folder / file.path}: trained on another data set than {cases.dataset}, so its "
                f"{cases.part} part may not\nbe unseen: pass the --dataset of the training, or "
                "--other-split to evaluate all the same"
            )


def _model(args: argparse.Namespace, folder: Path, made: Manifest, files: Files) -> asked.Model:
    _, backbone, adapter = files
    wanted = cli.engine_settings(args)
    settings, _ = profile.settings(wanted, made.backbone.name, backbone.quant, backbone.format)
    return asked.Model(folder, made, backbone, adapter, settings)


def _answered(
    args: argparse.Namespace,
    variant: Variant,
    model: asked.Model,
    cases: Cases,
    opener: bundle.Opener,
    isolated: bool,
) -> Answered:
    """Return a variant's answers, of which only those are written that are missing."""
    made, backbone = model.manifest, model.manifest.backbone
    behind = {
        **files_behind(made, model.backbone, model.adapter, model.engine),
        "max_tokens": args.max_tokens,
    }
    run = digest.of_value(behind)[:16]
    out = place(cli.workspace(args), backbone.name, variant.name, cases.part)
    say = partial(cli.say, args)
    with lock.held(out, args.wait, say):
        put_away(out, run)
        table = Table(cases.others)
        wanted = {case.id: case for case in cases.cases}
        there = {record.id: record for record in read_records(out, run)}
        # Others of the part that were asked stay, for who wants more of them later.
        others = [one for id_, one in there.items() if id_ not in wanted]
        kept = {
            id_: asked.again(one, case, table)
            for id_, case in wanted.items()
            if (one := there.get(id_)) and one.asked == case.asked
        }
        rest = tuple(case for id_, case in wanted.items() if id_ not in kept)
        write(out, [*kept.values(), *others])
        title = f"care {variant.name}"
        task = asked.Task(model, rest, cases.others, out, run, args.max_tokens, title, args.quiet)
        peak = (asked.in_child if isolated else asked.append)(task, opener) if rest else None
        found = {one.id: one for one in read_records(out, run) if one.id in wanted}
        if found.keys() != wanted.keys():
            raise WorkError(f"{out}: {len(found)} answers for {len(wanted)} dialogues; run again")
        records = {id_: found[id_] for id_ in wanted}
        known = measured_before(out, run) if not rest else {}
        write(out, [*records.values(), *others])
        summary = Summary(
            backbone=backbone.name,
            variant=variant,
            dataset=cases.dataset,
            part=cases.part,
            run=run,
            made_with=behind,
            dialogues=len(records),
            scenarios=len({one.scenario for one in records.values()}),
            left_out=cases.left_out,
            figures=figures([*records.values()]),
            milliseconds_p50=milliseconds([*records.values()]),
            memory_peak=known.get("memory_peak", peak),
            measured=known.get("measured") or measured_where(model.engine.threads),
        )
        write_summary(out, summary)
    return Answered(variant, model, run, out, records, summary)


def _beside(
    args: argparse.Namespace,
    found: Sequence[Answered],
    cases: Cases,
    opener: bundle.Opener,
    isolated: bool,
) -> list[Against]:
    """Return every variant against the largest of its kind, which comes first."""
    made = []
    for kind in dict.fromkeys(one.variant.kind for one in found):
        first, *rest = [one for one in found if one.variant.kind == kind]
        for other in rest:
            measure = args.along
            divergences = _along(args, first, other, cases, opener, isolated) if measure else []
            pairs = paired(first.records, other.records)
            made.append(against(other.variant.name, first.variant.name, pairs, divergences))
    return made


def _along(
    args: argparse.Namespace,
    first: Answered,
    other: Answered,
    cases: Cases,
    opener: bundle.Opener,
    isolated: bool,
) -> list[Along]:
    """Return the divergences along the reference's answers, measured where they are missing."""
    run = digest.of_value([first.run, other.run])[:16]
    out = along_place(other.out)
    by_id = {case.id: case for case in cases.cases if not first.records[case.id].fault}

    def fresh(one: Along) -> bool:
        case = by_id.get(one.id)
        return case is not None and one.asked == along.asked(case, first.records[one.id])

    with lock.held(out, args.wait, partial(cli.say, args)):
        kept = {one.id: one for one in read_along(out, run) if fresh(one)}
        write(out, kept.values())
        if rest := tuple(case for id_, case in by_id.items() if id_ not in kept):
            task = along.Task(
                first.model, other.model, rest, first.records, out, run,
                f"care {other.variant.name} along {first.variant.name}", args.quiet,
            )  # fmt: skip
            (along.in_child if isolated else along.append)(task, opener)
        return [one for one in read_along(out, run) if one.id in by_id]


def _references(cases: Cases) -> dict[str, Any]:
    """Return the figures of the data set's own answers, which bound what can be measured."""
    table = Table(cases.others)

    def record(case: Case) -> Record:
        texts = case.references
        said = [one.content for one in case.messages if one.role != "assistant"]
        own = measured(texts, said, case.term, case.facts, case.wanted, table)
        return Record("", case.id, case.scenario, "", texts, (), (), 0, 0.0, own)

    made = figures([record(case) for case in cases.cases])
    # What only a model that writes has.
    return {k: asdict(v) for k, v in made.items() if k not in ("stopped", "tokens", "too_long")}
