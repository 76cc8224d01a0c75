"""What bench_train.py measures, each in a process of its own: a pass of training over examples."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tel_edge.runtime.device import memory
from tel_edge.train.data import Example, Rows, collate
from tel_edge.train.recipes import PROJECTIONS

RANK, ALPHA, SEED = 16, 32, 42
PLAIN, OURS, AGAIN = "plain Trainer", "tel-edge", "tel-edge, --checkpointing"
CONTENDERS = (PLAIN, OURS, AGAIN)
# Steps before those that are timed.
WARM = 2


@dataclass(frozen=True)
class Task:
    """What a process measures: `examples` is a JSON file of `Example`s, `model` a folder."""

    contender: str
    device: str
    model: str
    examples: str
    batch: int


def child(task: Task) -> dict[str, Any]:
    """Train one pass over the examples; return seconds and tokens of it, and the GPU's memory."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, set_seed
    from transformers.utils import logging

    from tel_edge.runtime.device import heap
    from tel_edge.train.callbacks import GivesWay
    from tel_edge.train.fused import fuse
    from tel_edge.train.trainer import AnswerTrainer, attention, bf16_is_fast

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    ours, cuda = task.contender != PLAIN, task.device == "cuda"
    made = [Example(tuple(i), t, (t,)) for i, t in json.loads(Path(task.examples).read_text())]
    longest = max(len(one.ids) for one in made)
    set_seed(SEED)
    if ours:
        torch.set_flush_denormal(True)
        heap.keep()
    model = AutoModelForCausalLM.from_pretrained(
        task.model,
        dtype=torch.bfloat16 if cuda else torch.float32,
        attn_implementation=attention(longest) if ours else "sdpa",
    )
    if task.contender == AGAIN:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    lora = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=list(PROJECTIONS), task_type="CAUSAL_LM"
    )
    peft, batches = get_peft_model(model, lora), []
    if ours and not cuda:
        fuse(peft, torch.bfloat16 if bf16_is_fast() else torch.float32)

    def batched(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        lengths = [len(row["input_ids"]) for row in rows]
        batches.append((sum(lengths), max(lengths) * len(rows)))
        return collate(rows) if ours else _whole(rows)

    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not marks:
                self.on_step_end(args, state, control)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            marks.append(time.perf_counter())

    before = memory.now().anonymous
    steps = len(made) // task.batch
    with tempfile.TemporaryDirectory() as passing:
        # First a few steps to warm up, with the longest: they claim the memory that all need.
        far = sorted(made, key=lambda one: -len(one.ids))[: task.batch * WARM]
        for part, count in ((far, WARM), (made, steps)):
            marks.clear()
            batches.clear()
            trainer = (AnswerTrainer if ours else Trainer)(
                model=peft,
                args=_settings(task, Path(passing), count),
                train_dataset=Rows(lambda _, part=part: part),  # type: ignore[misc]
                data_collator=batched,
                callbacks=[Clock(), *([GivesWay()] if ours else [])],
            )
            trainer.train()
    return {
        "steps": steps,
        "seconds": marks[-1] - marks[0],
        "each": [after - begun for begun, after in pairwise(marks)],
        "tokens": sum(real for real, _ in batches[:steps]),
        "computed": sum(padded for _, padded in batches[:steps]),
        "loaded": before,
        "cuda": torch.cuda.max_memory_allocated() if cuda else None,
        "bf16": trainer.args.bf16,
    }


def _settings(task: Task, passing: Path, steps: int) -> Any:
    import torch
    from transformers import TrainingArguments

    from tel_edge.train.trainer import bf16_is_fast

    return TrainingArguments(
        output_dir=str(passing),
        per_device_train_batch_size=task.batch,
        max_steps=steps,
        learning_rate=5e-4,
        train_sampling_strategy="random" if task.contender == PLAIN else "group_by_length",
        bf16=bf16_is_fast(),
        use_cpu=task.device == "cpu",
        seed=SEED,
        remove_unused_columns=False,
        label_names=["labels" if task.contender == PLAIN else "target"],
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _whole(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a batch as it is usual: prompt and answer padded on the right, labels -100 but one."""
    import torch

    width = max(len(row["input_ids"]) for row in rows) + 1
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    known, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for at, row in enumerate(rows):
        end = len(row["input_ids"])
        ids[at, : end + 1] = torch.tensor([*row["input_ids"], row["target"]])
        known[at, end], mask[at, : end + 1] = row["target"], 1
    return {"input_ids": ids, "attention_mask": mask, "labels": known}


if __name__ == "__main__":
    print(json.dumps(child(Task(**json.loads(sys.argv[1])))))
