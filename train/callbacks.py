"""What looks on while transformers' Trainer trains: progress, epochs, and the others' load."""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from tel_edge.runtime import progress
from tel_edge.runtime.device.energy import Energy, Meter
from tel_edge.runtime.errors import WorkError
from tel_edge.runtime.files.atomic import write_text
from tel_edge.runtime.processors import cores
from tel_edge.train.data import Rows
from tel_edge.train.energy import restored
from tel_edge.train.sharing import Share

# What the log calls the losses, and what they are called beside the bar.
LOSSES = {"loss": "loss", "eval_loss": "validation loss"}


class Watch(TrainerCallback):
    """How far a training is, the loss curve, and the stop at a loss that is no number."""

    def __init__(self, work: Path, title: str, quiet: bool) -> None:
        self.title, self.quiet = title, quiet
        self.bar: Any = None
        self.measuring: Any = None
        self.losses: dict[str, str] = {}
        self.kept = work / "spent.json"
        known = json.loads(self.kept.read_text()) if self.kept.exists() else {}
        self.before = float(known.get("seconds", 0))
        self.energy = restored(known["energy"]) if known else None
        self.threads = Counter[str](known.get("threads", {}))
        self.began = time.monotonic()
        self.meter = Meter()
        self.meter.begin()

    def spent(self) -> tuple[float, Energy]:
        """Return seconds and energy so far, those of the runs before this one counted in."""
        read = self.meter.read()
        self.energy = self.energy + read if self.energy else read
        return self.before + time.monotonic() - self.began, self.energy

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep time and energy with the checkpoint."""
        seconds, energy = self.spent()
        known = {"seconds": round(seconds, 1), "energy": asdict(energy), "threads": self.threads}
        write_text(self.kept, json.dumps(known))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin the bar where a resumed run is."""
        self.bar = progress.bar(
            self.title, "step", state.max_steps, self.quiet, initial=state.global_step
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar, and count the step for the threads that it was computed with."""
        self.bar.update(1)
        self.threads[str(torch.get_num_threads())] += 1

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **_: Any
    ) -> None:
        """Move a bar of its own, which begins with a part that is measured."""
        if self.measuring is None:
            self.measuring = progress.bar(
                f"{self.title}, losses", "batch", len(eval_dataloader), self.quiet
            )
        self.measuring.update(1)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close that bar."""
        if self.measuring is not None:
            self.measuring.close()
            self.measuring = None

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **_: Any) -> None:
        """Close that bar."""
        self.on_evaluate(args, state, control)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Show the losses; raise `WorkError` when one is not finite."""
        for name, title in LOSSES.items():
            if name in (logs or {}):
                if not math.isfinite(logs[name]):
                    raise WorkError(
                        f"{name} is {logs[name]} at step {state.global_step}; "
                        "try a smaller --learning-rate"
                    )
                self.losses[title] = f"{logs[name]:.3f}"
        self.bar.set_postfix(self.losses, refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        self.bar.close()


class Turn(TrainerCallback):
    """Gives each epoch its own examples, a resumed one those it would have had."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Draw the examples of the epoch that begins."""
        self.rows.turn(round(state.epoch or 0))


class GivesWay(TrainerCallback):
    """Takes fewer threads as long as other processes want the cores, see `Share`.

    The number is the caller's where there is one thread, a GPU, or `OMP_NUM_THREADS`; at the end
    it is what it was. `say` is told of the first change.
    """

    def __init__(self, say: Callable[[str], None] = lambda _: None) -> None:
        self.most, self.say = torch.get_num_threads(), say
        fixed = self.most == 1 or torch.cuda.is_available() or "OMP_NUM_THREADS" in os.environ
        self.share = None if fixed else Share(self.most, cores())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look, and change the number of threads if that has changed."""
        if self.share is None or (threads := self.share.look()) == torch.get_num_threads():
            return
        torch.set_num_threads(threads)
        self.say(
            f"other processes want the cores: {threads} of {self.most} threads until they are "
            "free again (OMP_NUM_THREADS=N fixes the number)"
        )
        self.say = lambda _: None

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look, as after a step."""
        self.on_step_end(args, state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Give the process the threads that it had."""
        torch.set_num_threads(self.most)
