"""The training loop: transformers' Trainer with the loss on the answer alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from tel_edge.eval.folders import loading
from tel_edge.runtime.device import heap
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.train.callbacks import GivesWay, Turn, Watch
from tel_edge.train.data import Example, Rows, collate, examples, fitted, varied
from tel_edge.train.energy import recorded
from tel_edge.train.fused import fuse
from tel_edge.train.parts import MOST, again, parted
from tel_edge.train.scoring import document, score

if TYPE_CHECKING:
    from tel_edge.train.job import Job, TrainingJob


# What an evaluation says, of questions or of dialogues.
SAID = ("loss", "pass1", "perplexity")
# Tokens up to which plain attention is the faster one on a CPU.
SHORT = 256


class AnswerTrainer(Trainer):
    """A `Trainer` whose loss is the cross-entropy of the one token after the prompt.

    With `all_tokens` it is the mean over all tokens of prompt and answer. With `checkpointing`
    activations are computed again; on a CPU those of a row of more than `MOST` tokens are anyway.
    """

    all_tokens = False
    checkpointing = False

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Go forwards and backwards, on a CPU with a part of the batch after the other."""
        if torch.cuda.is_available():
            return super().training_step(model, inputs, num_items_in_batch)
        loss = torch.zeros(())
        for part in parted(inputs, MOST, self.all_tokens):
            # A row alone may be of thousands of tokens.
            again(model, self.checkpointing or part["input_ids"].numel() > MOST)
            loss = loss + super().training_step(model, part, num_items_in_batch)
        # Rows of all lengths leave memory in pieces, of which glibc would keep gigabytes.
        heap.give_back()
        return loss

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Any, Any, Any]:
        """Return loss, picks and right labels `[n]` of a batch; on a CPU in parts as above."""
        given = self._prepare_inputs(inputs)
        most = 1 << 40 if torch.cuda.is_available() else MOST
        loss, picks, right = torch.zeros((), device=self.args.device), [], []
        with torch.no_grad(), self.compute_loss_context_manager():
            for part in parted(given, most, self.all_tokens):
                own, made = self.compute_loss(model, part, return_outputs=True)
                loss = loss + own
                picks.append(made["logits"])
                right.append(part["target"])
        return loss, torch.cat(picks), torch.cat(right)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss, and the picked label's token `[n]` as `logits` if asked for."""
        shown = {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids")}
        target = inputs["target"]
        if self.all_tokens:
            whole = model(**shown, use_cache=False).logits.float()
            loss = over_all(whole, inputs["input_ids"], inputs["attention_mask"], target)
            logits = whole[:, -1]
        else:
            logits = model(**shown, use_cache=False, logits_to_keep=1).logits[:, -1].float()
            loss = F.cross_entropy(logits, target)
        loss = loss * inputs.get("weight", 1)
        return (loss, {"logits": picked(logits, inputs["choices"])}) if return_outputs else loss


def picked(logits: torch.Tensor, choices: torch.Tensor) -> torch.Tensor:
    """Return the likeliest of each row's choices `[n]`, as the device picks it.

    `logits` [n, vocabulary], `choices` [n, most] with -1 where a row has fewer.
    """
    found = logits.gather(1, choices.clamp(min=0)).masked_fill(choices < 0, -torch.inf)
    return choices.gather(1, found.argmax(1, keepdim=True)).squeeze(1)


def over_all(
    logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """Return the mean cross-entropy of every next token; padding on the left is no token.

    `logits` [n, width, vocabulary], `ids` and `mask` [n, width], `target` [n].
    """
    following = torch.cat([ids[:, 1:], target[:, None]], 1)
    return F.cross_entropy(logits[mask.bool()], following[mask.bool()])


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


@dataclass(frozen=True)
class Material:
    """What a training eats, and how: `longest` is the most tokens that are validated together.

    `too_long` rows were left out. `trainer` has the loss, `collate` makes batches and `metrics`
    what is said of an evaluation.
    """

    shown: Rows
    validated: Rows
    longest: int
    too_long: int
    trainer: type[AnswerTrainer]
    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
    metrics: Callable[[Any], dict[str, float]]


def fit(job: TrainingJob, work: Path, quiet: bool, weights: Path | None = None) -> dict[str, Any]:
    """Train inside `work`, leave the best adapter in `work/adapter`, return the measurements.

    `weights` is a folder whose weights are trained on instead of the backbone's own.
    """
    tokenizer = loading.tokenizer(job.folder)
    longest = int(AutoConfig.from_pretrained(job.folder).max_position_embeddings)
    recipe = job.recipe
    questions = job.shown
    train_long = examples(questions, tokenizer, longest)[1]
    valid, valid_long = examples(job.validated, tokenizer, longest)
    if train_long == len(questions) or not valid:
        raise InputError(f"{job.name}: no question fits the backbone's {longest} tokens of context")

    def drawn(epoch: int) -> list[Example]:
        shown = varied(
            questions, recipe.orders, recipe.exchanged, f"{job.seed} {epoch}", recipe.told
        )
        return fitted(shown, questions, tokenizer, longest)

    material = Material(
        Rows(drawn), Rows(lambda _: valid), max(len(example.ids) for example in valid),
        train_long + valid_long, AnswerTrainer, collate, right,
    )  # fmt: skip
    trainer, made = trained(job, material, work, quiet, weights)
    if job.scored and processes().is_main_process:
        peft = trainer.model.eval()
        scores = score(peft, tokenizer, job.parts.test, longest, job.seed, recipe.batch * 2, quiet)
        made["test"] = document(scores)
    return made


def trained(
    job: Job, material: Material, work: Path, quiet: bool, weights: Path | None
) -> tuple[Any, dict[str, Any]]:
    """Train inside `work`, leave the best adapter in `work/adapter`.

    Returns the trainer, which has that adapter, and the measurements.
    """
    set_seed(job.seed)
    # Sharp attention leaves subnormal numbers behind, which slow a CPU step down several times.
    torch.set_flush_denormal(True)
    heap.keep()
    recipe, rows = job.recipe, material.shown
    model = loading.model(
        weights or job.folder,
        torch.bfloat16 if torch.cuda.is_available() else torch.float32,
        attention(material.longest),
    )
    if job.checkpointing or not torch.cuda.is_available():
        model.activation_checkpointing_enable({"use_reentrant": False})
    peft = get_peft_model(
        model,
        LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=recipe.dropout,
            use_rslora=recipe.rslora,
            target_modules=list(recipe.targets),
            task_type="CAUSAL_LM",
        ),
    )
    if not torch.cuda.is_available():
        fuse(peft, torch.bfloat16 if bf16_is_fast() else torch.float32)
    quiet = quiet or not processes().is_main_process
    watch = Watch(work, job.name, quiet)
    gives_way = GivesWay(lambda text: None if quiet else watch.bar.write(text, file=sys.stderr))
    trainer = material.trainer(
        model=peft,
        args=settings(job, work),
        train_dataset=rows,
        eval_dataset=material.validated,
        data_collator=material.collate,
        compute_metrics=material.metrics,
        callbacks=[watch, gives_way, Turn(rows), EarlyStoppingCallback(recipe.patience)],
    )
    trainer.all_tokens, trainer.checkpointing = recipe.loss == "all", job.checkpointing
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(work))
    # The best checkpoint is loaded at the end, so this is what the early stopping chose.
    config = peft.peft_config["default"]
    # Dequantized weights have gone by then, and a set has another order in each process.
    config.base_model_name_or_path = str(job.folder)
    config.target_modules = sorted(recipe.targets)
    if processes().is_main_process:
        peft.save_pretrained(work / "adapter", safe_serialization=True)
    seconds, energy = watch.spent()
    shown = round(trainer.state.epoch * len(rows))
    made = measured(trainer, peft, recipe.select) | {
        "seconds": round(seconds, 1),
        "threads": dict(watch.threads),
        "energy": recorded(energy, seconds, shown, job.watts),
        "too_long": material.too_long,
    }
    return trainer, made


def processes() -> Any:
    """Return accelerate's view of the processes that train together, usually this one alone."""
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def tested(job: TrainingJob, folder: Path, weights: Path, quiet: bool) -> dict[str, Any]:
    """Return the scores of the adapter in `folder` over `weights` on the job's `test` part."""
    from peft import PeftModel

    tokenizer = loading.tokenizer(job.folder)
    longest = int(AutoConfig.from_pretrained(job.folder).max_position_embeddings)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model = loading.model(weights, dtype).to("cuda" if torch.cuda.is_available() else "cpu")
    peft = PeftModel.from_pretrained(model, folder).eval()
    batch = job.recipe.batch * 2
    scores = score(peft, tokenizer, job.parts.test, longest, job.seed, batch, quiet)
    return {"test": document(scores)}


@contextmanager
def enough_memory() -> Iterator[None]:
    """Turn the errors of a machine without enough memory into one that says what lowers it."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        text = str(error).lower()
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not (known or "out of memory" in text or "can't allocate memory" in text):
            raise
        raise WorkError(
            "out of memory; what lowers it: a smaller --batch, --checkpointing, a smaller --rank, "
            "--loss answer\nwhat was finished is kept"
        ) from error


def right(made: Any) -> dict[str, float]:
    """Return Pass@1 of the predictions of an evaluation."""
    return {"pass1": float((made.predictions == made.label_ids).mean())}


def settings(job: Job, work: Path) -> TrainingArguments:
    """Return the trainer's settings for a job."""
    recipe = job.recipe
    # The recipe's batch is that of all processes together.
    each = max(1, recipe.batch // processes().num_processes)
    return TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=each,
        per_device_eval_batch_size=each * 2,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        # The best and the last one, from which a run that was killed goes on.
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{recipe.select}",
        greater_is_better=recipe.select != "loss",
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


def best(curve: Sequence[Mapping[str, Any]], select: str) -> Mapping[str, Any]:
    """Return the evaluation that was kept: the first that no other is better than."""
    sign = 1 if select == "loss" else -1
    return min(curve, key=lambda line: sign * line[f"validation_{select}"])


def measured(trainer: Any, peft: Any, select: str) -> dict[str, Any]:
    """Return the curve, the best evaluation, and what the run ran on."""
    history = trainer.state.log_history
    losses = {line["epoch"]: line["loss"] for line in history if "loss" in line}
    curve = [
        {
            "epoch": line["epoch"],
            "step": line["step"],
            "loss": losses.get(line["epoch"]),
            **{
                f"validation_{name}": line[f"eval_{name}"]
                for name in SAID
                if f"eval_{name}" in line
            },
        }
        for line in history
        if "eval_loss" in line
    ]
    trained = sum(p.numel() for p in peft.parameters() if p.requires_grad)
    return {
        "curve": curve,
        "best": best(curve, select),
        "parameters": trained,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "precision": "bf16" if trainer.args.bf16 else "fp32",
    }
