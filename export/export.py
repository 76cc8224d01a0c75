"""`tel-export`: a backbone and its adapters become a bundle of GGUF files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

from tel_edge.export import adapter, calibration, card, importance, push, router
from tel_edge.export.backbone import write_backbone
from tel_edge.export.importance import Importance
from tel_edge.export.output import Accept
from tel_edge.export.parity import CONTEXT, Gate
from tel_edge.export.plan import HALF, Job, Model, Plan, bar, plan
from tel_edge.export.quantize import QUANTS, Outcome, Quant, quantize, size
from tel_edge.runtime import bundle, cli, extras
from tel_edge.runtime.atomic import write_text
from tel_edge.runtime.engine import EngineSettings
from tel_edge.runtime.manifest import BundleFile, total_bytes


def work(args: argparse.Namespace) -> Mapping[str, Any]:
    """Check everything, then make what is missing; see `parser` for the arguments."""
    if args.check:
        return _check(args)
    if args.router:
        extras.check("sklearn", "report")
    made = plan(args)
    if args.dry_run:
        return _forecast(args, made)
    gate = _gate(args, made)
    made.output.begin()
    # One matrix may serve several models.
    matrix = cache(partial(_matrix, args, made))
    for model in made.models:
        _model(args, made, model, gate, matrix)
    for job in made.unfinished:
        _adapter(args, made, job, gate)
    routed = _router(args, made)
    _card(made.output.folder / card.NAME, card.render(made.output.manifest))
    document = _report(args, made, routed)
    if args.push:
        url = push.push(made.output.folder, made.output.manifest, args.push)
        print(f"pushed: {url}")
        document["pushed"] = url
    return document


def _card(path: Path, text: str) -> None:
    # The same card is left alone, so a run that has nothing to do changes no file.
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def _router(args: argparse.Namespace, made: Plan) -> tuple[BundleFile, bool] | None:
    """Return the bundle's router and whether it is new, or None without `--router`."""
    if not args.router:
        return None
    out = made.output
    routed = router.make(
        out.folder, out.manifest, cli.workspace(args), args.dataset, args.seed, args.strict,
        args.force, partial(cli.say, args),
    )  # fmt: skip
    out.add(routed[0])
    return routed


def _gate(args: argparse.Namespace, made: Plan) -> Gate | None:
    if not args.verify:
        return None
    folders = {job.category: job.adapter.folder for job in made.jobs}

    def opened(path: Path, adapters: Mapping[str, Path]) -> Any:
        # One prompt at a time: the figures are the file's, and no other prompt's.
        settings = EngineSettings(context=CONTEXT, exact=True)
        return bundle.native(path, bundle.loose_adapters(path, adapters), settings)

    return Gate(made.checkpoint.folder, folders, opened)


def _model(
    args: argparse.Namespace,
    made: Plan,
    model: Model,
    gate: Gate | None,
    matrix: Callable[[tuple[Job, ...]], Importance | None],
) -> None:
    def file(row: Quant) -> AbstractContextManager[Path]:
        name = f"{model.stem}-{row.name}.gguf"
        return made.output.file(name, _of(gate, model, row), **made.known(model, row))

    for row in model.missing:
        if row.plain:
            with file(row) as out:
                _plain(args, made, model, row, out)
            cli.say(args, f"{model.stem} {row.name} written")
    quantized = [row for row in model.missing if not row.plain]
    if not quantized:
        return
    alone = model.job if args.imatrix == "category" else None
    weights = matrix((alone,) if alone else made.jobs)
    with _source(args, made, model) as source:
        for row in quantized:
            with (
                file(row) as out,
                bar(args, len(made.checkpoint.tensors), row.name) as step,
            ):
                outcome = quantize(
                    source, out, row, step, overrides=made.overrides, importance=weights
                )
            cli.say(args, f"{model.stem} {row.name} written")
            _warn(args, row, outcome)


def _of(gate: Gate | None, model: Model, row: Quant) -> Accept | None:
    if gate is None:
        return None
    return partial(gate, row=row, category=model.category, merged=model.job is not None)


def _warn(args: argparse.Namespace, row: Quant, outcome: Outcome) -> None:
    for fallback in outcome.fallbacks:
        cli.say(
            args,
            f"warning: {row.name}: {fallback.tensor} is {fallback.got} instead of "
            f"{fallback.wanted}, for its rows are no multiple of that type's blocks",
        )


def _plain(
    args: argparse.Namespace, made: Plan, model: Model, row: Quant, out: Path, hollow: bool = False
) -> None:
    with bar(args, made.checkpoint.parameters, row.name) as step:
        write_backbone(
            made.checkpoint,
            made.vocabulary,
            out,
            info=made.info,
            quant=row,
            step=step,
            merged=model.job.adapter if model.job else None,
            hollow=hollow,
        )


@contextmanager
def _source(args: argparse.Namespace, made: Plan, model: Model) -> Iterator[Path]:
    """Give the F16 file to quantize: the bundle's own if it is there, else a passing one."""
    kept = made.output.intact(model.kind, HALF.name, model.category, model.source)
    if kept:
        yield made.output.folder / kept.path
        return
    with made.output.scratch(f"{model.stem}-{HALF.name}.gguf") as passing:
        _plain(args, made, model, HALF, passing)
        yield passing


def _matrix(args: argparse.Namespace, made: Plan, jobs: tuple[Job, ...]) -> Importance | None:
    """Return the importance matrix of `--imatrix` and keep what was computed in the workspace."""
    shape = made.checkpoint.shape
    if args.imatrix not in ("pooled", "category"):
        return made.given
    adapters = {job.category: job.adapter for job in jobs}
    with bar(args, calibration.total(list(adapters)), "imatrix") as step:
        found = calibration.calibrated(
            made.checkpoint.folder, shape, adapters, args.dataset, args.seed, step
        )
    name = "-".join(adapters) if args.imatrix == "category" else "pooled"
    out = cli.workspace(args).imatrix(made.info.name, name)
    out.parent.mkdir(parents=True, exist_ok=True)
    importance.write(found, out)
    cli.say(args, f"importance matrix written to {out}")
    return found


def _adapter(args: argparse.Namespace, made: Plan, job: Job, gate: Gate | None) -> None:
    loaded, kind = job.adapter, args.adapter_quant
    accept = None
    if gate is not None:
        # Measured over the largest backbone that is there: the adapter's own error shows best.
        largest = QUANTS[made.output.manifest.quants()[0]]
        file = made.output.manifest.find("backbone", largest.name)
        assert file is not None

        def accept(path: Path) -> Mapping[str, float]:
            backbone = made.output.folder / file.path
            return gate(backbone, largest, adapter=path, category=job.category)

    with made.output.file(
        f"{made.info.name}-{job.category}-r{loaded.rank}-{kind}-LoRA.gguf",
        accept,
        kind="adapter",
        quant=kind,
        category=job.category,
        source=loaded.source,
        backbone=made.info.weights,
        split=loaded.split,
        rank=loaded.rank,
    ) as out:
        adapter.write_adapter(loaded, out, made.info, job.category, kind)
    cli.say(args, f"{job.category} adapter written")


def _forecast(args: argparse.Namespace, made: Plan) -> Mapping[str, Any]:
    """Print the size that each file would have; nothing is left behind."""
    shapes = {tensor.name: tensor.shape for tensor, _ in made.checkpoint.tensors}
    made.output.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with made.output.scratch("dry-run") as hollow:
        model = made.models[0]
        _plain(args, made, model, HALF, hollow, hollow=True)
        names = dict.fromkeys(shapes, HALF.name)
        names |= {name: "F32" for name, shape in shapes.items() if len(shape) == 1}
        header = hollow.stat().st_size - size(Outcome(names, ()), shapes)
        for row in made.wanted:
            if row.plain:
                kinds = {name: "F32" if kind == "F32" else row.name for name, kind in names.items()}
                outcome = Outcome(kinds, ())
            else:
                outcome = quantize(
                    hollow, hollow, row, lambda _: None, overrides=made.overrides, dry=True
                )
                _warn(args, row, outcome)
            rows.append({"quant": row.name, "bytes": header + size(outcome, shapes)})
    print(f"{'quant':<8} {'MB':>9}")
    for line in rows:
        print(f"{line['quant']:<8} {line['bytes'] / 1e6:>9,.2f}")
    print(f"dry run: nothing was written; {made.checkpoint.parameters:,} weights")
    return {"dry_run": rows}


def _report(
    args: argparse.Namespace, made: Plan, routed: tuple[BundleFile, bool] | None
) -> dict[str, Any]:
    manifest, files = made.output.manifest, []
    for model in made.models if args.merge else made.models[:1]:
        for row in made.wanted:
            file = manifest.find(model.kind, row.name, model.category)
            files.append((file, row in model.missing))
    for job in () if args.merge else made.jobs:
        file = manifest.find("adapter", args.adapter_quant, job.category)
        files.append((file, job in made.unfinished))
    if routed:
        files.append(routed)
    listed = [(file, "written" if new else "reused") for file, new in files if file]
    width = max(len(file.path) for file, _ in listed)
    print(f"{'file':<{width}}  {'quant':<7} {'MB':>9}  {'parity':<22}  state")
    for file, state in listed:
        mb = f"{file.bytes / 1e6:>9,.2f}"
        print(f"{file.path:<{width}}  {file.quant:<7} {mb}  {_figures(file):<22}  {state}")
    megabytes = total_bytes(manifest.files) / 1e6
    print(f"bundle: {made.output.folder} ({len(manifest.files)} files, {megabytes:,.2f} MB)")
    return {
        "bundle": str(made.output.folder),
        "files": [{**asdict(file), "state": state} for file, state in listed],
    }


def _figures(file: BundleFile) -> str:
    if file.kind == "router":
        return ""
    if file.parity is None:
        return "not verified"
    return f"KL {file.parity['kl']:.1e} picks {file.parity['picks']:.0%}"


def _check(args: argparse.Namespace) -> Mapping[str, Any]:
    """Verify every file of a bundle against its manifest and its own header."""
    made = bundle.read(args.check)
    for file in made.files:
        bundle.verify(args.check, made, [file], again=True)
        print(f"{file.path}: {file.bytes:,} bytes, SHA-256 and header are right")
    unmeasured = [file.path for file in made.files if file.parity is None and file.kind != "router"]
    for path in unmeasured:
        cli.say(args, f"warning: {path} was never measured against PEFT")
    print(f"{args.check}: {len(made.files)} files are whole")
    return {"bundle": str(args.check), "files": len(made.files), "not_verified": unmeasured}


def parser() -> cli.Parser:
    """Return the options of `tel-export`."""
    made = cli.parser(
        "tel-export",
        "Export a backbone and its adapters to a bundle of GGUF files.",
        "backbone",
        "dataset",
        "seed",
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
        "--adapter-quant", choices=("F16", "F32", "Q8_0"), default="F16", help="(%(default)s)"
    )
    made.add_argument(
        "--tensor-type",
        action="append",
        default=[],
        metavar="PATTERN=TYPE",
        help="another type for tensors whose GGUF name the regular expression finds; repeatable",
    )
    made.add_argument(
        "--imatrix",
        default="none",
        metavar="none|pooled|category|FILE",
        help="importance matrix for the quantizer: from the training prompts of all adapters, of "
        "the one, or llama.cpp's file (%(default)s)",
    )
    made.add_argument(
        "--merge",
        action="store_true",
        help="instead of adapters write models with one adapter each merged in",
    )
    made.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="accept files without comparing their answers with PEFT's",
    )
    made.add_argument(
        "--router",
        action="store_true",
        help="add a router for requests without a category, trained on --dataset",
    )
    made.add_argument("--dry-run", action="store_true", help="print the sizes, write nothing")
    made.add_argument("--check", type=Path, metavar="BUNDLE", help="only verify a bundle's files")
    made.add_argument("--push", metavar="REPO", help="upload the bundle to the hub afterwards")
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
