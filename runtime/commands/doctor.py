"""`tel-doctor`: what is here, what of it works, whether a bundle fits, and what to type next."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from tel_edge.runtime import cli
from tel_edge.runtime.bundles import backbones, manifest
from tel_edge.runtime.device.system import System
from tel_edge.runtime.engines.engine import EngineSettings
from tel_edge.runtime.measuring import seen, trial
from tel_edge.runtime.measuring.diagnosis import FAIL, Check, checks, following
from tel_edge.runtime.measuring.trial import Tried

Try = Callable[[], Tried | None]


def work(
    args: argparse.Namespace,
    system: System | None = None,
    llama: Try = trial.llama,
    onnx: Try = trial.onnx,
    pause: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Look at everything and say it; the exit code is 1 if something does not work."""
    folder = cli.bundle_folder(args, backbones.find(args.backbone).name)
    settings = EngineSettings(context=args.context)
    # Who named no bundle and has none is not at fault.
    known = args.bundle is not None or (folder / manifest.NAME).is_file()
    # The machine first, so that what is tried is no load of others.
    machine = seen.machine(system or System(), folder, pause)
    found = seen.Seen(machine, llama(), onnx(), seen.of_bundle(folder, settings) if known else None)
    made = checks(found)
    print(table(made))
    after = following(found, made)
    print(f"next: {after}", flush=True)
    return {
        "checks": [asdict(check) for check in made],
        "next": after,
        **asdict(found),
        "exit_code": int(any(check.verdict == FAIL for check in made)),
    }


def table(made: tuple[Check, ...]) -> str:
    """Return a line for each check, and under it what to do, if anything."""
    wide = max(len(check.name) for check in made)
    lines = []
    for check in made:
        lines.append(f"{check.verdict:<4}  {check.name:<{wide}}  {check.said}")
        if check.do:
            lines.append(f"{'':<{wide + 8}}-> {check.do}")
    return "\n".join(lines)


def parser() -> cli.Parser:
    """Return the command's options."""
    made = cli.parser(
        "tel-doctor",
        "Say what this machine has, what of it works, whether a bundle fits, and what to do next.",
        "backbone",
    )
    cli.bundle_options(made)
    return made


def main() -> None:
    """Run the command."""
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
