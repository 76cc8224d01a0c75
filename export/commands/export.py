"""`tel-export`: a backbone and its adapters become a bundle of GGUF or ONNX files."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tel_edge.export.exporters import EXPORTERS
from tel_edge.export.request import ADAPTER_TYPES, ExportRequest
from tel_edge.runtime import cli, extras
from tel_edge.runtime.bundles.formats import FIRST, FORMATS
from tel_edge.runtime.errors import InputError

if TYPE_CHECKING:
    from tel_edge.export.exporting import Exported
    from tel_edge.runtime.bundles.manifest import BundleFile

# Files of every format in one bundle.
BOTH = "both"
# Nats; an adapter of a single step that does something changes a hundred times as much.
LITTLE = 1e-3


def work(args: argparse.Namespace) -> Mapping[str, Any]:
    """Check everything, then make what is missing; see `parser` for the arguments."""
    if args.check:
        return _check(args)
    if args.serial and not args.deploy:
        raise InputError("--serial is for --deploy")
    given = {field.name: getattr(args, field.name) for field in fields(ExportRequest)}
    given["tensor_type"] = tuple(args.tensor_type)
    if args.deploy and not _asks(given):
        return _deploy(args)
    made = _export(args, given)
    return {**made, **_deploy(args)} if args.deploy and not args.dry_run else made


def _asks(given: Mapping[str, Any]) -> bool:
    """Return whether options name something to export, and not only where the bundle is."""
    usual = {field.name: field.default for field in fields(ExportRequest)}
    beside = ("workspace", "backbone", "out", "wait", "quiet", "dataset", "seed", "strict")
    return any(given[name] != usual[name] for name in given if name not in beside)


def _export(args: argparse.Namespace, given: dict[str, Any]) -> Mapping[str, Any]:
    from tel_edge.export.exporting import export

    if args.router:
        extras.check("sklearn", "report")
    requests = [ExportRequest(**one) for one in _halves(given)]
    if len(requests) > 1 and not args.dry_run:
        # What does not fit either format is told before anything is written.
        for request in requests:
            export(replace(request, dry_run=True))
    told = []
    for request in requests:
        made = export(request)
        told.append(_forecast(request, made) if request.dry_run else _report(request, made))
    lists = ("files", "dry_run")
    joined = {
        name: [one for part in told for one in part[name]] for name in lists if name in told[0]
    }
    return {**told[-1], **joined}


def _halves(given: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what each format is asked for: its types, and the options that mean something to it.

    The router is made once, after the last, and so is the bundle pushed.
    """
    if given["format"] != BOTH:
        return [given]
    usual = {field.name: field.default for field in fields(ExportRequest)}
    named = [name.strip() for name in (given["quant"] or "").split(",") if name.strip()]
    made = []
    for format, row in EXPORTERS.items():
        others = {name for other in EXPORTERS.values() if other != row for name in other.types}
        # A type that no table has is the backbone's own, which is a file of the first format.
        own = [n for n in named if n in row.types or (format == FIRST and n not in others)]
        part = {**given, "format": format, "quant": ",".join(own) or None}
        last = format == tuple(EXPORTERS)[-1]
        left = ("router", "push") if not last else ()
        part |= {name: usual[name] for name in (*left, *row.foreign)}
        made.append(part)
    return made


def _forecast(request: ExportRequest, made: Exported) -> Mapping[str, Any]:
    wide = max(8, *map(len, EXPORTERS[request.resolved().format].types))
    print(f"{'quant':<{wide}} {'MB':>9}")
    for name, size in made.forecast.items():
        print(f"{name:<{wide}} {size / 1e6:>9,.2f}")
    print(f"dry run: nothing was written; {made.parameters:,} weights")
    return {"dry_run": [{"quant": name, "bytes": size} for name, size in made.forecast.items()]}


def _report(request: ExportRequest, made: Exported) -> Mapping[str, Any]:
    from tel_edge.runtime.bundles.manifest import total_bytes

    listed = [(file, "written" if new else "reused") for file, new in made.files]
    wide = max(len(file.path) for file, _ in listed)
    types = max(len(file.quant) for file, _ in listed)
    print(f"{'file':<{wide}}  {'quant':<{types}}  {'MB':>9}  {'parity':<26}  state")
    for file, state in listed:
        mb = f"{made.manifest.disk(file) / 1e6:>9,.2f}"
        print(f"{file.path:<{wide}}  {file.quant:<{types}}  {mb}  {_figures(file):<26}  {state}")
    megabytes = total_bytes(made.manifest.files) / 1e6
    print(f"bundle: {made.bundle} ({len(made.manifest.files)} files, {megabytes:,.2f} MB)")
    _earlier(request, [file for file, _ in made.files])
    _idle(request, [file for file, _ in made.files])
    if made.pushed:
        print(f"pushed: {made.pushed}")
    files = [
        {**asdict(file), "state": state, "seconds": made.seconds.get(file.path)}
        for file, state in listed
    ]
    pushed = {"pushed": made.pushed} if made.pushed else {}
    return {"bundle": str(made.bundle), "files": files, **pushed}


def _figures(file: BundleFile) -> str:
    from tel_edge.runtime.bundles.manifest import NOT_MEASURED

    if file.kind in NOT_MEASURED:
        return ""
    if file.parity is None:
        return "not verified"
    if file.kind == "adapter" and "adapter" in file.parity:
        return f"change {file.parity['change']:.2g} off {file.parity['adapter']:.1e}"
    return f"KL {file.parity['kl']:.1e} picks {file.parity['picks']:.0%}"


def _idle(asked: cli.Quietable, files: Sequence[BundleFile]) -> None:
    """Name the adapters that were measured to change next to nothing."""
    for file in files:
        change = (file.parity or {}).get("change")
        if change is not None and change < LITTLE:
            cli.say(
                asked,
                f"warning: {file.path}: its adapter changes answers by {change:.1g} nats, next to "
                "nothing; was it trained?",
            )


def _earlier(asked: argparse.Namespace | cli.Quietable, files: Sequence[BundleFile]) -> None:
    """Name the files that an earlier version measured, which did not judge adapters alone."""
    found = [f.path for f in files if f.parity and not {"conversion", "adapter"} & set(f.parity)]
    if found:
        cli.say(
            asked,
            f"warning: {len(found)} files were measured by an earlier version, which let wrong "
            f"adapters pass over quantized types, such as {found[0]}; --force judges them anew",
        )


def _check(args: argparse.Namespace) -> Mapping[str, Any]:
    """Verify every file of a bundle against its manifest and its own header."""
    from tel_edge.runtime.bundles import bundle
    from tel_edge.runtime.bundles.manifest import NOT_MEASURED

    made = bundle.read(args.check)
    for file in made.files:
        bundle.verify(args.check, made, [file], again=True)
        print(f"{file.path}: {file.bytes:,} bytes, SHA-256 and header are right")
    unmeasured = [
        file.path for file in made.files if file.parity is None and file.kind not in NOT_MEASURED
    ]
    if unmeasured:
        cli.say(
            args,
            f"warning: {len(unmeasured)} of {len(made.files)} files were never measured against "
            f"PEFT, such as {unmeasured[0]}",
        )
    _earlier(args, made.files)
    print(f"{args.check}: {len(made.files)} files are whole")
    return {"bundle": str(args.check), "files": len(made.files), "not_verified": unmeasured}


def _deploy(args: argparse.Namespace) -> Mapping[str, Any]:
    """Make a version for devices of the bundle that is there."""
    from tel_edge.runtime.bundles import backbones
    from tel_edge.runtime.bundles.manifest import total_bytes
    from tel_edge.runtime.bundles.shipping import store
    from tel_edge.runtime.files import lock

    folder = args.out or cli.workspace(args).bundle(backbones.find(args.backbone).name)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such bundle; export one first, or name it with --out")
    if args.deploy.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"--deploy {args.deploy}: in the bundle itself; name another folder")
    store.check_home(args.deploy)
    say = partial(cli.say, args)
    with (
        lock.held(folder, args.wait, say, inside=True),
        lock.held(args.deploy, args.wait, say, inside=True),
    ):
        made = store.deploy(folder, args.deploy, args.serial)
    if made.manifest.deploy is None:
        say("no report decided what to deploy (tel-report --write), so all files are in it")
    state = f"{made.moved / 1e6:,.2f} MB of them new" if made.new else "there already"
    size = f"{len(made.manifest.files)} files, {total_bytes(made.manifest.files) / 1e6:,.2f} MB"
    print(f"deployed: {made.folder} (serial {made.manifest.serial}, {size}, {state})")
    about = {"folder": str(made.folder), "serial": made.manifest.serial, "new": made.new}
    return {"bundle": str(folder), "deployed": {**about, "moved": made.moved}}


def parser() -> cli.Parser:
    """Return the options of `tel-export`."""
    made = cli.parser(
        "tel-export",
        "Export a backbone and its adapters to a bundle of GGUF or ONNX files.",
        "backbone",
        "dataset",
        "seed",
        "wait",
    )
    # The bundle is free again soon, and what the other export makes need not be made again.
    made.set_defaults(wait=math.inf)
    made.add_argument(
        "--adapter",
        metavar="NAME|DIR|all",
        help="a category's adapter of the workspace, any PEFT folder, several with commas, or all "
        "finished ones (none: the backbone alone)",
    )
    made.add_argument(
        "--category",
        metavar="NAME|all",
        help="what an --adapter DIR is for that was trained for several, or has no training.json",
    )
    made.add_argument(
        "--quant",
        metavar="A,B",
        help="types of the backbone: "
        + "; ".join(
            f"{row.format}: {', '.join(row.types)} ({FORMATS[row.format].quant})"
            for row in EXPORTERS.values()
        ),
    )
    made.add_argument(
        "--adapter-quant",
        choices=ADAPTER_TYPES,
        help="(F16; ONNX adapters are float32)",
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
    made.add_argument(
        "--deploy",
        type=cli.folder,
        metavar="DIR",
        help="make a version for devices of the bundle, in a folder of DIR that is called by its "
        "digest; alone nothing is exported",
    )
    made.add_argument(
        "--serial",
        type=cli.whole(1, 2**53),
        metavar="N",
        help="of the version of --deploy; devices take no lower one (one above the highest in DIR)",
    )
    made.add_argument("--push", metavar="REPO", help="upload the bundle to the hub afterwards")
    made.add_argument(
        "--format",
        choices=(*EXPORTERS, BOTH),
        default=FIRST,
        help="(%(default)s); tel-bench --tune finds out which is faster on a device",
    )
    made.add_argument(
        "--from-onnx",
        type=Path,
        metavar="DIR",
        help="take the float32 decoder that optimum exported to DIR from --backbone, instead of "
        "exporting it here (implies --format onnx)",
    )
    made.add_argument(
        "--no-fuse",
        dest="fuse",
        action="store_false",
        help="leave norms and attention in ONNX's own operators, for execution providers that do "
        "not have onnxruntime's in float32, such as cuda",
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
