"""The plan of the whole study, as it is printed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

from tel_edge.runtime.bundles.backbones import BACKBONES
from tel_edge.runtime.cli import Parser

SCRIPT = ROOT / "scripts" / "reproduce_care.sh"


def planned(*argv: str) -> list[str]:
    made = subprocess.run(
        ["bash", SCRIPT, "--dry-run", *argv], capture_output=True, text=True, check=True
    )
    return made.stdout.splitlines()


def test_the_plan_says_whose_licence_forbids_deploying() -> None:
    lines = planned()
    runs = [line for line in lines if "sixteen runs" in line]
    assert ["non-commercial" in line for line in runs] == [True, False, False, False]
    for line in runs:
        name = line.split(". ", 1)[1].split(" ")[0]
        assert ("non-commercial" in line) == (BACKBONES[name].licence == "qwen-research")
        assert "--preset care" in line


@pytest.mark.parametrize("argv", [(), ("--rehearse",), ("--backbone", "smollm2-135m")])
def test_what_the_plan_evaluates_are_options_that_there_are(argv: tuple[str, ...]) -> None:
    from tel_edge.eval.commands import evaluate, generate

    parsers: dict[str, Parser] = {"tel-eval": evaluate.parser(), "tel-generate": generate.parser()}
    seen = set()
    for line in planned(*argv, "some-workspace"):
        for name, parser in parsers.items():
            if f"/{name} " in line:
                seen.add(name)
                args = parser.parse_args(line.split(f"/{name} ")[1].split())
                place = args.out if name == "tel-generate" else Path(args.dataset)
                assert place == Path("some-workspace/care")
    assert seen == {*parsers}
