"""The training loop: transformers' Trainer with the loss on the answer alone."""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from tel_edge.eval.split import capped
from tel_edge.runtime.atomic import write_text
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.train.data import Example, Rows, collate, examples, varied

if TYPE_CHECKING:
    from tel_edge.train.train import Job


# Tokens up to which plain attention is the faster one on a CPU.
SHORT = 256


class AnswerTrainer(Trainer):
    """A `Trainer` whose loss is the cross-entropy of the one token after the prompt."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss, and the logits `[n, vocabulary]` if asked for."""
        target = inputs.pop("target")
        logits = model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].float()
        loss = F.cross_entropy(logits, target)
        inputs["target"] = target
        return (loss, {"logits": logits.argmax(-1)}) if return_outputs else loss


class Watch(TrainerCallback):
    """The progress bar on stderr, the loss curve, and the stop at a loss that is no number."""

    def __init__(self, work: Path, quiet: bool) -> None:
        from tqdm import tqdm

        self.bar: Any = tqdm(disable=quiet, file=sys.stderr, unit="step", leave=False)
        self.clock = work / "seconds"
        self.before = float(self.clock.read_text()) if self.clock.exists() else 0.0
        self.began = time.monotonic()

    def seconds(self) -> float:
        """Return the time spent so far, that of the runs before this one counted in."""
        return self.before + time.monotonic() - self.began

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the time with the checkpoint."""
        write_text(self.clock, f"{self.seconds():.1f}")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Set the bar to where a resumed run is."""
        self.bar.reset(total=state.max_steps)
        self.bar.update(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar."""
        self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Show the losses; raise `WorkError` when one is not finite."""
        for name in ("loss", "eval_loss"):
            if name in (logs or {}):
                if not math.isfinite(logs[name]):
                    raise WorkError(
                        f"{name} is {logs[name]} at step {state.global_step}; "
                        "try a smaller --learning-rate"
                    )
                self.bar.set_postfix_str(f"{name} {logs[name]:.3f}")

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


def attention(longest: int) -> str:
    """Return the attention to compute prompts of up to `longest` tokens with.

    On a CPU the fused kernel is a tenth slower at 80 tokens, and far lighter at many.
    """
    return "eager" if longest <= SHORT and not torch.cuda.is_available() else "sdpa"


def bf16_is_fast() -> bool:
    """Return whether this machine computes in bfloat16 natively."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    flag = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(flag and flag())


def fit(job: Job, work: Path, quiet: bool) -> dict[str, Any]:
    """Train inside `work`, leave the best adapter in `work/adapter`, return the measurements."""
    set_seed(job.seed)
    # Sharp attention leaves subnormal numbers behind, which slow a CPU step down several times.
    torch.set_flush_denormal(True)
    # The bars and notes of the library's own loading would hide the one bar that matters.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    tokenizer = AutoTokenizer.from_pretrained(job.folder)
    longest = int(AutoConfig.from_pretrained(job.folder).max_position_embeddings)
    questions = capped(job.parts.train, job.most, job.seed)
    train_long = examples(questions, tokenizer, longest)[1]
    valid, valid_long = examples(job.parts.validation, tokenizer, longest)
    if train_long == len(questions) or not valid:
        raise InputError(
            f"{job.category.name}: no question fits the backbone's {longest} tokens of context"
        )
    recipe = job.recipe
    model = AutoModelForCausalLM.from_pretrained(
        job.folder,
        dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
        use_safetensors=True,
        attn_implementation=attention(max(len(example.ids) for example in valid)),
    )
    peft = get_peft_model(
        model,
        LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=recipe.dropout,
            target_modules=list(recipe.targets),
            task_type="CAUSAL_LM",
        ),
    )

    def drawn(epoch: int) -> list[Example]:
        shown = varied(questions, recipe.orders, recipe.exchanged, f"{job.seed} {epoch}")
        return examples(shown, tokenizer, longest)[0]

    watch, rows = Watch(work, quiet), Rows(drawn)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    trainer = AnswerTrainer(
        model=peft,
        args=settings(job, work),
        train_dataset=rows,
        eval_dataset=Rows(lambda _: valid),
        data_collator=partial(collate, pad=pad),
        compute_metrics=right,
        callbacks=[watch, Turn(rows), EarlyStoppingCallback(recipe.patience)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(work))
    # The best checkpoint is loaded at the end, so this is what the early stopping chose.
    peft.save_pretrained(work / "adapter", safe_serialization=True)
    return measured(trainer, peft) | {
        "seconds": round(watch.seconds(), 1),
        "too_long": train_long + valid_long,
    }


def right(made: Any) -> dict[str, float]:
    """Return Pass@1 of the predictions of an evaluation."""
    return {"pass1": float((made.predictions == made.label_ids).mean())}


def settings(job: Job, work: Path) -> TrainingArguments:
    """Return the trainer's settings for a job."""
    recipe = job.recipe
    return TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=recipe.batch,
        per_device_eval_batch_size=recipe.batch * 2,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        bf16=bf16_is_fast(),
        use_cpu=not torch.cuda.is_available(),
        seed=job.seed,
        remove_unused_columns=False,
        label_names=["target"],
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_nan_inf_filter=False,
    )


def last_checkpoint(work: Path) -> str | None:
    """Return the newest whole checkpoint in `work`, or None.

    The trainer writes `trainer_state.json` last, so a checkpoint that was cut off by a kill lacks
    it or holds half of it.
    """
    found = sorted(work.glob("checkpoint-*"), key=lambda p: -int(p.name.rsplit("-", 1)[1]))
    for folder in found:
        try:
            json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return str(folder)
    return None


def measured(trainer: Any, peft: Any) -> dict[str, Any]:
    """Return the curve, the best evaluation, and what the run ran on."""
    history = trainer.state.log_history
    losses = {line["epoch"]: line["loss"] for line in history if "loss" in line}
    curve = [
        {
            "epoch": line["epoch"],
            "step": line["step"],
            "loss": losses.get(line["epoch"]),
            "validation_loss": line["eval_loss"],
            "validation_pass1": line["eval_pass1"],
        }
        for line in history
        if "eval_loss" in line
    ]
    trained = sum(p.numel() for p in peft.parameters() if p.requires_grad)
    return {
        "curve": curve,
        "best": min(curve, key=lambda line: line["validation_loss"]),
        "parameters": trained,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "precision": "bf16" if trainer.args.bf16 else "fp32",
    }
