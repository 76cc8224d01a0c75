"""`tel-export`: a backbone and its adapters become a bundle of GGUF files."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tel_edge.export import adapter, selection, tokenizer
from tel_edge.export import checkpoint as checkpoints
from tel_edge.export.adapter import Adapter
from tel_edge.export.backbone import write_backbone
from tel_edge.export.checkpoint import Checkpoint
from tel_edge.export.container import Step
from tel_edge.export.output import Output
from tel_edge.export.quantize import BLOCK, QUANTS, Quant, quantize, rows
from tel_edge.export.tokenizer import Vocabulary
from tel_edge.runtime import backbones, cli, digest, prompt
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.extras import need
from tel_edge.runtime.manifest import BackboneInfo, total_bytes

HALF = QUANTS["F16"]
# Small models take more than the table's bits, since their embedding weighs more.
MARGIN = 1.3


@dataclass(frozen=True)
class Job:
    """One adapter to be exported for one category."""

    category: str
    adapter: Adapter


@dataclass(frozen=True)
class Plan:
    """All that is to be in the bundle, checked, and the backbone types still to be made."""

    checkpoint: Checkpoint
    vocabulary: Vocabulary
    info: BackboneInfo
    wanted: tuple[Quant, ...]
    missing: tuple[Quant, ...]
    jobs: tuple[Job, ...]
    unfinished: tuple[Job, ...]
    output: Output


def work(args: argparse.Namespace) -> Mapping[str, Any]:
    """Check everything, then make what is missing; see `parser` for the arguments."""
    plan = _plan(args)
    plan.output.begin()
    _backbones(args, plan)
    for job in plan.unfinished:
        _adapter(args, plan, job)
    return _report(args, plan)


def _plan(args: argparse.Namespace) -> Plan:
    wanted = rows(args.quant)
    if args.format != "gguf":
        raise InputError(f"--format {args.format} is not in this version; gguf is")
    backbone = backbones.find(args.backbone)
    home = cli.workspace(args)
    chosen = selection.chosen(args.adapter, args.category, home, backbone.name)
    need("gguf", "export")
    folder = backbones.fetch(backbone)
    opened = checkpoints.load(folder)
    vocabulary = tokenizer.load(folder, opened.shape.vocabulary)
    info = BackboneInfo(
        name=backbone.name,
        architecture=opened.shape.architecture.gguf,
        weights=digest.of_weights(folder),
        tokenizer=digest.of_tokenizer(folder),
        prompt=prompt.digest(),
        licence=backbone.licence,
    )
    jobs = _jobs(args, chosen, opened, info)
    output = Output(args.out or home.bundle(info.name), info, args.force)
    missing = tuple(
        row for row in wanted
        if args.force or not output.intact("backbone", row.name, None, info.weights)
    )  # fmt: skip
    unfinished = tuple(job for job in jobs if args.force or not _done(args, output, job))
    plan = Plan(opened, vocabulary, info, wanted, missing, jobs, unfinished, output)
    _check_backbone(args, plan)
    _check_space(plan)
    return plan


def _jobs(
    args: argparse.Namespace,
    chosen: list[selection.Chosen],
    opened: Checkpoint,
    info: BackboneInfo,
) -> tuple[Job, ...]:
    jobs: dict[str, Job] = {}
    for one in chosen:
        loaded = adapter.load(one.folder, opened.shape, info, args.adapter_quant == "F16")
        category = selection.agreed(one, loaded.category)
        if category in jobs:
            raise InputError(
                f"two adapters for {category}: {jobs[category].adapter.folder} and {one.folder}; "
                "export one of them"
            )
        if not loaded.bound:
            cli.say(
                args,
                f"warning: {one.folder}: no {adapter.TRAINING}; only shapes bind it to "
                f"{info.name}, it names {loaded.base} as its base",
            )
        jobs[category] = Job(category, loaded)
    return tuple(jobs.values())


def _done(args: argparse.Namespace, output: Output, job: Job) -> bool:
    made = job.adapter
    file = output.intact("adapter", args.adapter_quant, job.category, made.source)
    return file is not None and (file.split, file.rank) == (made.split, made.rank)


def _check_backbone(args: argparse.Namespace, plan: Plan) -> None:
    quantized = [row for row in plan.missing if not row.plain]
    if quantized:
        need("llama_cpp", "export")
    narrow = {t.shape[1] for t, _ in plan.checkpoint.tensors if len(t.shape) > 1}
    narrow = {width for width in narrow if width % BLOCK}
    blocky = [row.name for row in quantized if row.name not in ("Q8_0", "Q4_0")]
    if narrow and blocky:
        cli.say(
            args,
            f"warning: rows of {min(narrow)} are no multiple of {BLOCK}: in "
            f"{' '.join(blocky)} those tensors get another type",
        )
    if plan.missing:
        half = bool(quantized) or HALF in plan.missing
        with _bar(args, plan.checkpoint.parameters, "checking") as step:
            checkpoints.check_values(plan.checkpoint, half, step)


def _check_space(plan: Plan) -> None:
    weights = plan.checkpoint.parameters
    needed = sum(weights * row.bits / 8 * (1 if row.plain else MARGIN) for row in plan.missing)
    if any(not row.plain for row in plan.missing) and HALF not in plan.missing:
        needed += weights * HALF.bits / 8
    needed += (
        sum(pair.a.size + pair.b.size for job in plan.unfinished for pair in job.adapter.pairs) * 4
    )
    place = plan.output.folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise WorkError(
            f"{place}: {free / 1e6:,.0f} MB free, about {needed / 1e6:,.0f} MB needed; "
            "make room, or pass --out on another disk"
        )


def _backbones(args: argparse.Namespace, plan: Plan) -> None:
    for row in plan.missing:
        if row.plain:
            with plan.output.file(
                f"{plan.info.name}-{row.name}.gguf", **_known(plan, row)
            ) as partial:
                _plain(args, plan, row, partial)
            cli.say(args, f"{row.name} backbone written")
    quantized = [row for row in plan.missing if not row.plain]
    if not quantized:
        return
    with _source(args, plan) as source:
        for row in quantized:
            name = f"{plan.info.name}-{row.name}.gguf"
            with (
                plan.output.file(name, **_known(plan, row)) as partial,
                _bar(args, len(plan.checkpoint.tensors), row.name) as step,
            ):
                quantize(source, partial, row, step)
            cli.say(args, f"{row.name} backbone written")


def _known(plan: Plan, row: Quant) -> dict[str, str]:
    return {"kind": "backbone", "quant": row.name, "source": plan.info.weights}


def _plain(args: argparse.Namespace, plan: Plan, row: Quant, out: Path) -> None:
    with _bar(args, plan.checkpoint.parameters, row.name) as step:
        write_backbone(plan.checkpoint, plan.vocabulary, out, info=plan.info, quant=row, step=step)


@contextmanager
def _source(args: argparse.Namespace, plan: Plan) -> Iterator[Path]:
    """Give the F16 file to quantize: the bundle's own if it is there, else a passing one."""
    kept = plan.output.intact("backbone", HALF.name, None, plan.info.weights)
    if kept:
        yield plan.output.folder / kept.path
        return
    with plan.output.scratch(f"{plan.info.name}-{HALF.name}.gguf") as passing:
        _plain(args, plan, HALF, passing)
        yield passing


def _adapter(args: argparse.Namespace, plan: Plan, job: Job) -> None:
    made, kind = job.adapter, args.adapter_quant
    with plan.output.file(
        f"{plan.info.name}-{job.category}-r{made.rank}-{kind}-LoRA.gguf",
        kind="adapter",
        quant=kind,
        category=job.category,
        source=made.source,
        backbone=plan.info.weights,
        split=made.split,
        rank=made.rank,
    ) as partial:
        adapter.write_adapter(made, partial, plan.info, job.category, kind)
    cli.say(args, f"{job.category} adapter written")


@contextmanager
def _bar(args: argparse.Namespace, total: int, label: str) -> Iterator[Step]:
    from tqdm import tqdm

    # None: no bar where stderr is no terminal.
    off = True if args.quiet else None
    with tqdm(total=total, desc=label, disable=off, leave=False, unit_scale=True) as bar:
        yield bar.update


def _report(args: argparse.Namespace, plan: Plan) -> Mapping[str, Any]:
    made = {row.name for row in plan.missing}
    renewed = {job.category for job in plan.unfinished}
    bundle, files = plan.output.manifest, []
    for row in plan.wanted:
        file = bundle.find("backbone", row.name)
        files.append((file, row.name in made))
    for job in plan.jobs:
        files.append(
            (bundle.find("adapter", args.adapter_quant, job.category), job.category in renewed)
        )
    listed = [(file, "written" if new else "reused") for file, new in files if file]
    width = max(len(file.path) for file, _ in listed)
    print(f"{'file':<{width}}  {'quant':<7} {'MB':>9}  state")
    for file, state in listed:
        print(f"{file.path:<{width}}  {file.quant:<7} {file.bytes / 1e6:>9,.2f}  {state}")
    size = total_bytes(bundle.files) / 1e6
    print(f"bundle: {plan.output.folder} ({len(bundle.files)} files, {size:,.2f} MB)")
    return {
        "bundle": str(plan.output.folder),
        "files": [{**asdict(file), "state": state} for file, state in listed],
    }


def parser() -> cli.Parser:
    """Return the options of `tel-export`."""
    made = cli.parser(
        "tel-export", "Export a backbone and its adapters to a bundle of GGUF files.", "backbone"
    )
    made.add_argument(
        "--adapter",
        metavar="NAME|DIR|all",
        help="a category's adapter of the workspace, any PEFT folder, several with commas, or all "
        "finished ones (none: the backbone alone)",
    )
    made.add_argument(
        "--category", metavar="NAME", help="category of an --adapter DIR without training.json"
    )
    made.add_argument(
        "--quant",
        metavar="A,B",
        default="Q4_K_M",
        help=f"types of the backbone: {', '.join(QUANTS)} (%(default)s)",
    )
    made.add_argument(
        "--adapter-quant", choices=("F16", "F32"), default="F16", help="(%(default)s)"
    )
    made.add_argument(
        "--format", choices=("gguf", "onnx"), default="gguf", help="only gguf so far (%(default)s)"
    )
    made.add_argument(
        "--out", type=Path, metavar="DIR", help="the bundle (bundles/BACKBONE of the workspace)"
    )
    made.add_argument(
        "--force",
        action="store_true",
        help="export again what is there, and replace a bundle of another backbone",
    )
    return made


def main() -> None:
    """Run `tel-export`."""
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
