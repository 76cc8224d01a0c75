"""The trainer of dialogues: the loss on all that the assistant says, and what is measured of it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from transformers import AutoConfig

from tel_edge.eval.folders import loading
from tel_edge.eval.folders.chat import Chat, Spoken
from tel_edge.runtime.errors import InputError
from tel_edge.train.data import Rows, padded, tokens
from tel_edge.train.dialogues.reading import PARTS, Dialogue
from tel_edge.train.dialogues.stopping import stop_rate
from tel_edge.train.job import WEIGHTS
from tel_edge.train.parts import MOST, parted
from tel_edge.train.trainer import AnswerTrainer, Material, last_checkpoint, processes, trained

if TYPE_CHECKING:
    from tel_edge.train.dialogues.job import DialogueJob

# What is measured on, of the parts that are there.
MEASURED = PARTS[1:]


class DialogueTrainer(AnswerTrainer):
    """An `AnswerTrainer` whose loss is the mean over the tokens that are `spoken` in a batch.

    Logits are computed where one of those follows, and nowhere else.
    """

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss of a batch, or its share of a batch that has a `weight`."""
        loss = surprises(model, inputs)[0].mean() * inputs.get("weight", 1)
        return (loss, None) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Any, Any, Any]:
        """Return for each row the sum of its losses and the number of its spoken tokens `[n]`."""
        given = self._prepare_inputs(inputs)
        most = 1 << 40 if torch.cuda.is_available() else MOST
        sums, counts = [], []
        with torch.no_grad(), self.compute_loss_context_manager():
            for part in parted(given, most, True):
                values, rows = surprises(model, part)
                size = len(part["input_ids"])
                sums.append(values.double().new_zeros(size).index_add_(0, rows, values.double()))
                counts.append(torch.bincount(rows, minlength=size))
        return None, torch.cat(sums), torch.cat(counts)


def surprises(model: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross-entropy of each spoken token in nats, and the row that it is in `[m]`."""
    shown = {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids")}
    # The logits that tell a token are those of the one before it.
    asked = F.pad(inputs["spoken"][:, 1:], (0, 1)).bool()
    if not bool(asked.any()):
        raise InputError("a batch in which nobody answers: nothing would be learned of it")
    following = F.pad(inputs["input_ids"][:, 1:], (0, 1))[asked]
    with only(model, asked):
        logits = model(**shown, use_cache=False).logits
    return F.cross_entropy(logits.float(), following, reduction="none"), asked.nonzero()[:, 0]


@contextmanager
def only(model: Any, asked: torch.Tensor) -> Iterator[None]:
    """Let the head of a model compute the logits of the positions `asked` `[n, width]` alone.

    For the while they are `[m, vocabulary]`. Of 150,000 tokens they are most of what a step keeps.
    """
    bare = getattr(model, "module", model)
    hook = bare.get_output_embeddings().register_forward_pre_hook(
        lambda _, given: (given[0][asked], *given[1:])
    )
    try:
        yield
    finally:
        hook.remove()


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a left-padded batch of dialogues; `spoken` `[n, width]` is 1 at answers' tokens."""
    return tokens(rows) | {"spoken": padded([row["spoken"] for row in rows])}


def metrics(made: Any) -> dict[str, float]:
    """Return the loss over all tokens of an evaluation, in nats, and the perplexity."""
    loss = float(made.predictions.sum() / made.label_ids.sum())
    return {"loss": loss, "perplexity": perplexity(loss)}


def perplexity(loss: float) -> float:
    """Return e to the loss, the largest number where that is beyond it."""
    return math.exp(min(loss, 700.0))


def shown(
    chat: Chat, dialogues: Sequence[Dialogue], longest: int
) -> tuple[list[list[Spoken]], int]:
    """Return the texts of each dialogue, and how many are left out, with a text beyond `longest`.

    Raises `InputError` with the line of a dialogue that the template cannot show.
    """
    made = []
    for one in dialogues:
        try:
            made.append(chat.shown(one.messages))
        except InputError as error:
            raise InputError(f"{one.where}: {error}") from None
    kept = [texts for texts in made if max(len(text.ids) for text in texts) <= longest]
    return kept, len(made) - len(kept)


def fit(job: DialogueJob, work: Path, quiet: bool, weights: Path | None = None) -> dict[str, Any]:
    """Train inside `work`, leave the best adapter in `work/adapter` and the last in `work/last`.

    Returns the measurements; `last` among them are those of the last epoch's adapter that differ.
    """
    chat = Chat(job.folder)
    longest = int(AutoConfig.from_pretrained(job.folder).max_position_embeddings)
    parts, too_long = {}, 0
    for name in PARTS:
        texts, left = shown(chat, job.part(name), longest)
        parts[name], too_long = [text for of in texts for text in of], too_long + left
    train, valid = parts["train"], parts["validation"]
    if not train or not valid:
        raise InputError(f"{job.name}: no dialogue fits the backbone's {longest} tokens of context")
    material = Material(
        Rows(lambda _: train), Rows(lambda _: valid), max(len(text.ids) for text in valid),
        too_long, DialogueTrainer, collate, metrics,
    )  # fmt: skip
    trainer, made = trained(job, material, work, quiet, weights)
    trainer.model.eval()

    def measured(line: Mapping[str, Any]) -> dict[str, Any]:
        found = {"losses": losses(trainer, parts, line["validation_loss"])}
        if job.stops and processes().is_main_process:
            found["stop_rate"] = stopped(job, chat, trainer.model, longest, quiet)
        return found

    made |= {"kept": "best", **measured(made["best"])}
    final = made["curve"][-1]
    if processes().is_main_process:
        shutil.rmtree(work / "last", ignore_errors=True)
        shutil.copytree(work / "adapter", work / "last")
    made["last"] = {"kept": "last", "best": final}
    if final != made["best"]:
        checkpoint = last_checkpoint(work)
        assert checkpoint, "the trainer keeps the last one"
        _load(trainer.model, Path(checkpoint) / WEIGHTS)
        if processes().is_main_process:
            shutil.copyfile(Path(checkpoint) / WEIGHTS, work / "last" / WEIGHTS)
        made["last"] |= measured(final)
    return made


def _load(peft: Any, file: Path) -> None:
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(peft, load_file(file))


def losses(
    trainer: Any, parts: Mapping[str, Sequence[Spoken]], validation: float
) -> dict[str, Any]:
    """Return loss in nats and perplexity on every part that is there; `validation` is known."""
    found = {}
    for name in MEASURED:
        if rows := parts[name]:
            loss = validation
            if name != "validation":
                made = trainer.predict(Rows(lambda _, rows=rows: rows), metric_key_prefix=name)  # type: ignore[misc]
                loss = made.metrics[f"{name}_loss"]
            count = sum(last - first for text in rows for first, last in text.spans)
            found[name] = {"loss": loss, "perplexity": perplexity(loss), "tokens": count}
    return found


def stopped(job: DialogueJob, chat: Chat, model: Any, longest: int, quiet: bool) -> dict[str, Any]:
    """Return how many of `job.stops` answers of the test part end by themselves."""
    texts, _ = shown(chat, job.part("test"), longest)
    prompts = [of[-1].ids[: of[-1].spans[-1][0]] for of in texts]
    made = stop_rate(model, prompts[: job.stops], set(chat.ends), longest, quiet=quiet)
    return {"asked": job.stops, **made}


def stopped_again(job: DialogueJob, folder: Path, weights: Path, quiet: bool) -> dict[str, Any]:
    """Return the same of the adapter in `folder`, which is finished, over `weights`."""
    from peft import PeftModel

    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model = loading.model(weights, dtype).to("cuda" if torch.cuda.is_available() else "cpu")
    longest = int(AutoConfig.from_pretrained(job.folder).max_position_embeddings)
    peft = PeftModel.from_pretrained(model, folder).eval()
    return {"stop_rate": stopped(job, Chat(job.folder), peft, longest, quiet)}
