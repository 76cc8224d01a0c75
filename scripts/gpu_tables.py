"""Makes the tables of what scripts/on_gpu.sh left: `python scripts/gpu_tables.py OUT`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench_tables import head, line


def table(out: Path) -> str:
    """Return one line for each adapter that was trained: its Pass@1 beside the bare model's."""
    rows = [*head("type", "bare", "adapted", "bare, all orders", "adapted, all orders",
                  "Maj@4", "adapter MB", "seconds")]  # fmt: skip
    for file in sorted(out.glob("*-*.json")):
        made = json.loads(file.read_text())
        bare, own = made["scores"]["bare"], made["scores"]["adapted"]
        rows.append(
            line(
                file.stem,
                _percent(bare["pass1"]),
                _percent(own["pass1"]),
                _percent(bare.get("all_orders")),
                _percent(own.get("all_orders")),
                _percent(own["majority"]),
                f"{made['adapter_bytes'] / 1e6:.1f}",
                f"{made['seconds']:.0f}",
            )
        )
    return "\n".join(rows) + "\n"


def _percent(share: Mapping[str, Any] | None) -> str:
    if share is None:
        return "-"
    low, high = 100 * share["low"], 100 * share["high"]
    return f"{100 * share['value']:.1f} [{low:.1f}-{high:.1f}]"


if __name__ == "__main__":
    print(table(Path(sys.argv[1])), end="")
