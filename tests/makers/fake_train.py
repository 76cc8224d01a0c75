"""Run as tel-train by the tests of the sweep: trains nothing, leaves what a training would.

What it does is in `behaviour.json` in the folder that is its `--dataset`, where it also notes each
call in `calls.txt`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tel_edge.eval.statistics import share
from tel_edge.runtime.device.child import end_with_parent
from tel_edge.runtime.errors import WorkError
from tel_edge.train.commands import train


def record(args: Any, behaviour: dict[str, Any]) -> dict[str, Any]:
    rank = args.rank or 16
    joules = behaviour.get("joules", {}).get(str(rank))
    test = {"category": args.category, "questions": 100, "too_long": 0}
    right, voted = behaviour.get("right", {}).get(str(rank), (50, 50))
    test |= {"pass1": vars(share(right, 100)), "majority": vars(share(voted, 100))}
    loss = behaviour.get("loss", {}).get(str(rank), 1.0)
    return {
        "best": {"epoch": 1.0, "validation_loss": loss, "validation_pass1": right / 100},
        "test": [test],
        "seconds": 10.0,
        "energy": {
            "joules": joules,
            "stated_joules": None if args.watts is None else args.watts * 10,
        },
        "parameters": rank * 1000,
        "peak_memory": 1,
        "too_long": 0,
        "config": {"rank": rank, "loss": args.loss or "answer"},
        "pid": os.getpid(),
    }


def spoken(args: Any, made: dict[str, Any]) -> dict[str, Any]:
    """What a training on dialogues records, whose losses get worse the later they are measured."""
    loss = 2 - args.rank / 100 - args.learning_rate * 1000
    losses = {"validation": loss, "test": loss + 0.1, "unseen": 1 / loss}
    found = {name: {"loss": of, "perplexity": 2.7**of} for name, of in losses.items()}
    more = {"stop_rate": {"asked": 2, "limit": 9, "stopped": vars(share(1, 2))}}
    return {
        **{name: value for name, value in made.items() if name != "test"},
        **{"category": "care", "losses": found, "best": {"epoch": 1.0, "validation_loss": loss}},
        **(more if args.stop_rate else {}),
    }


def main() -> None:
    end_with_parent()
    args = train.parser().parse_args()
    data = Path(args.dataset)
    behaviour = json.loads((data / "behaviour.json").read_text())
    with (data / "calls.txt").open("a") as calls:
        calls.write(f"{Path(args.workspace).name} {os.getpid()}\n")
    if str(args.rank) in behaviour.get("kill", []):
        os.kill(os.getpid(), 9)
    if str(args.rank) in behaviour.get("fail", []):
        print("a log line\ntel-train: out of memory", file=sys.stderr)
        sys.exit(1)
    time.sleep(behaviour.get("seconds", {}).get(str(args.rank), 0))
    folder = Path(args.workspace) / "adapters" / "fake" / args.category
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(bytes((args.rank or 16) * 1000))
    made = record(args, behaviour)
    made = spoken(args, made) if args.category == "care" else made
    (folder / "training.json").write_text(json.dumps(made))
    if args.score is (args.category == "care") or args.quiet is not True:
        raise WorkError("a sweep scores its runs, quietly")
    print("a line for people")
    print(json.dumps({"backbone": "fake", "adapters": [{"path": str(folder)}]}))


if __name__ == "__main__":
    main()
