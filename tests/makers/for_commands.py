"""What the tests of commands share."""

from __future__ import annotations

import tomllib

from conftest import ROOT

SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def entry(name: str) -> str:
    module, function = SCRIPTS[name].split(":")
    return f"import sys; sys.argv[0] = {name!r}; from {module} import {function} as f; f()"
