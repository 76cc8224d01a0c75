"""`tel-bundle`: versions of a bundle on a device: where from, whose, which one is active."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tel_edge.runtime import cli
from tel_edge.runtime.errors import InputError

Action = Callable[[argparse.Namespace], dict[str, Any]]


def work(args: argparse.Namespace) -> dict[str, Any]:
    """Do what the action says; see `parser`."""
    action: Action | None = getattr(args, "does", None)
    if action is None:
        raise InputError("say what to do, such as verify or pull; see tel-bundle --help")
    return action(args)


def _bundle(args: argparse.Namespace, given: Path) -> Path:
    """Return a bundle's folder, or that of the workspace's bundle of this name."""
    there = cli.workspace(args).bundle(given.name)
    return there if not given.exists() and there.is_dir() else given


def _verify(args: argparse.Namespace) -> dict[str, Any]:
    from tel_edge.runtime.bundles import manifest
    from tel_edge.runtime.bundles.shipping import checking

    folder = _bundle(args, args.bundle)
    made = checking.check(folder, args.key)
    _doubt(args)
    by = f", signed by the key of {args.key}" if args.key else ""
    print(f"{folder}: {len(made.files)} files are whole{by}")
    name = manifest.of_folder(folder)
    return {"digest": name, "serial": made.serial, "files": len(made.files), "signed": bool(by)}


def _sign(args: argparse.Namespace) -> dict[str, Any]:
    from tel_edge.runtime.bundles.shipping import store

    place = store.sign(_bundle(args, args.bundle), args.key)
    print(place)
    return {"signature": str(place)}


def _diff(args: argparse.Namespace) -> dict[str, Any]:
    from tel_edge.runtime.bundles import manifest
    from tel_edge.runtime.bundles.shipping import differing

    old, new = (manifest.read(_bundle(args, one)) for one in (args.old, args.new))
    found = differing.differences(old, new)
    print(*differing.told(found), sep="\n")
    return found


def _pull(args: argparse.Namespace) -> dict[str, Any]:
    from tel_edge.runtime.bundles.shipping import sources

    return _pulled(args, *sources.opened(args.source))


def _pulled(args: argparse.Namespace, source: Any, wanted: str | None) -> dict[str, Any]:
    from tel_edge.runtime.bundles.shipping import pulling

    say = partial(cli.say, args)
    made = pulling.pull(source, wanted, args.home, args.key, args.older, args.wait, say)
    _doubt(args)
    name, moved = made.folder.name, f"{made.moved / 1e6:,.2f} MB came"
    say(f"serial {made.manifest.serial or 'none'}: " + (moved if made.new else "there already"))
    print(name)
    return {"digest": name, "serial": made.manifest.serial, "new": made.new, "moved": made.moved}


def _activate(args: argparse.Namespace) -> dict[str, Any]:
    from tel_edge.runtime.bundles.shipping import active

    with _held(args):
        name = active.activate(args.home, args.digest, args.key, args.older)
    _doubt(args)
    return _active(args, name)


def _rollback(args: argparse.Namespace) -> dict[str, Any]:
    from tel_edge.runtime.bundles.shipping import active

    with _held(args):
        name = active.rollback(args.home, args.key)
    _doubt(args)
    return _active(args, name)


def _active(args: argparse.Namespace, name: str) -> dict[str, Any]:
    from tel_edge.runtime.bundles.shipping import active

    print(f"{args.home / active.CURRENT} -> {name}")
    cli.say(args, "a tel-serve that runs stays with its version until it is reloaded or restarted")
    return {"digest": name}


def _list(args: argparse.Namespace) -> dict[str, Any]:
    from tel_edge.runtime.bundles.manifest import total_bytes
    from tel_edge.runtime.bundles.shipping import active, store

    now, rows = active.current(args.home), []
    versions, damaged = store.looked(args.home)
    for name, made in versions.items():
        row = {"digest": name, "serial": made.serial, "backbone": made.backbone.name}
        rows.append({**row, "bytes": total_bytes(made.files), "active": name == now})
        size = f"{total_bytes(made.files) / 1e6:>9,.2f} MB"
        star = "*" if name == now else " "
        print(f"{star} {name[:12]}  serial {made.serial or '-':>3}  {size}  {made.backbone.name}")
    for name, wrong in damaged.items():
        star = "*" if name == now else " "
        print(f"{star} {name[:12]}  damaged: {wrong}; tel-bundle pull of the same version mends it")
    if not rows and not damaged:
        raise InputError(f"{args.home}: no versions; run: tel-bundle pull SOURCE {args.home}")
    return {"versions": rows, "damaged": damaged}


def _prune(args: argparse.Namespace) -> dict[str, Any]:
    from tel_edge.runtime.bundles.shipping import active

    with _held(args):
        gone = list(active.prune(args.home, args.keep))
    print(f"{len(gone)} versions removed", *gone, sep="\n")
    return {"removed": gone}


def _oci(args: argparse.Namespace) -> dict[str, Any]:
    from tel_edge.runtime.bundles.shipping import oci

    if args.way == "import":
        args.home = args.to
        return _pulled(args, *oci.opened(args.given))
    if args.older:
        raise InputError("--older is for oci import")
    made = oci.write(_bundle(args, args.given), args.to, args.key)
    print(f"{args.to}: {made['digest']}")
    return made


def _held(args: argparse.Namespace) -> Any:
    from tel_edge.runtime.files import lock

    if not args.home.is_dir():
        raise InputError(f"{args.home}: no such folder; run: tel-bundle pull SOURCE {args.home}")
    return lock.held(args.home, args.wait, partial(cli.say, args), inside=True)


def _doubt(args: argparse.Namespace) -> None:
    """Say that nobody was asked who made a bundle; files may be whole and a stranger's."""
    if args.key is None:
        cli.say(args, "warning: not checked who made it; --key does (env TEL_BUNDLE_KEY)")


def parser() -> cli.Parser:
    """Return the actions of `tel-bundle` and their options."""
    made = cli.parser("tel-bundle", "Check, sign, fetch and activate bundles. See ACTION --help.")
    actions = made.add_subparsers(metavar="ACTION", dest="action", parser_class=cli.Parser)

    def add(name: str, does: Action, says: str, *options: str, **places: str) -> cli.Parser:
        one: cli.Parser = actions.add_parser(
            name, help=says, description=f"{says[0].upper()}{says[1:]}.", allow_abbrev=False
        )
        one.set_defaults(does=does)
        for place, help in places.items():
            kind = str if place in ("source", "digest") else Path
            one.add_argument(place, type=kind, metavar=place.upper(), help=help)
        for option in options:
            _option(one, option)
        # After the action as well as before it.
        for option in ("--json", "--quiet"):
            one.add_argument(
                option, action="store_true", default=argparse.SUPPRESS, help="as in all commands"
            )
        return one

    bundle = "a bundle's folder, or its name in the workspace"
    home = "the device's folder of versions"
    add("verify", _verify, "check that a bundle is whole, and with --key who signed it", "key",
        bundle=bundle)  # fmt: skip
    signed = add("sign", _sign, "sign a bundle (OpenSSF model signing)", bundle=bundle)
    signed.add_argument(
        "--key", type=Path, metavar="FILE", required=True, help="the private key, PEM"
    )
    add("diff", _diff, "say what is different, and what has to travel", old=bundle, new=bundle)
    add("pull", _pull, "fetch a version, without the files that are here; prints its digest",
        "key", "older", "wait",
        source="what tel-export --deploy made, or a version in it: a folder or an http(s) URL",
        home=home)  # fmt: skip
    add("activate", _activate, "check a version and let HOME/current lead to it", "key", "older",
        "wait", home=home, digest="of the version; its beginning is enough")  # fmt: skip
    add("rollback", _rollback, "let HOME/current lead to the version before", "key", "wait",
        home=home)  # fmt: skip
    add("list", _list, "list the versions that are here; * is active", home=home)
    pruned = add("prune", _prune, "remove old versions; the active one and the one before stay",
                 "wait", home=home)  # fmt: skip
    pruned.add_argument(
        "--keep", type=cli.whole(0, 10_000), default=3, metavar="N",
        help="of the highest serials (%(default)s)",
    )  # fmt: skip
    oci = add("oci", _oci, "a bundle to an OCI image layout and back, for registries", "key",
              "older", "wait")  # fmt: skip
    oci.add_argument("way", choices=("export", "import"))
    oci.add_argument("given", type=Path, metavar="FROM", help="the bundle, or the layout to import")
    oci.add_argument("to", type=Path, metavar="TO", help="the layout, or the device's folder")
    return made


def _option(made: cli.Parser, name: str) -> None:
    if name == "key":
        made.add_argument(
            "--key",
            type=Path,
            metavar="FILE",
            default=os.environ.get("TEL_BUNDLE_KEY") or None,
            help="the public key, PEM, of who has to have signed it (env TEL_BUNDLE_KEY)",
        )
    elif name == "older":
        made.add_argument("--older", action="store_true", help="take a lower serial than is active")
    else:
        cli.wait_option(made)


def main() -> None:
    """Run `tel-bundle`."""
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
