"""Pretrain tel-nano, the embedded backbone: `python scripts/pretrain_tel_nano.py --out DIR`.

A Llama of 3.7M parameters with a byte-level BPE of 2,048 tokens. Phase one shows questions whose
statement stands in the prompt, a fresh invented fact each time, until matching a statement to an
option's letter is learned; phase two mixes them with closed-book questions over a fixed set of
invented facts, which gives the model a memory that an adapter can write to.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import re
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from invented_facts import (
    ADJECTIVES,
    NOUNS,
    QUESTIONS,
    RELATIONS,
    VERBS,
    Example,
    Window,
    fresh,
    statement,
)
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tel_edge.eval.benchmarks.ot_mini import glossary
from tel_edge.runtime.questions.prompt import HEADER, LETTERS

VOCABULARY = 2048
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"

# The pre-tokenizer of Llama 3, under which llama.cpp knows this vocabulary as "llama-bpe".
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


OPTION = re.compile(r"^(?P<letter>[A-P])\) [^\n]*\n", re.M)


def tokenizer() -> PreTrainedTokenizerFast:
    """Train the byte-level BPE on the lexicon, the ways to ask, and the benchmark's glossary."""
    rng = random.Random(0)
    words = [*ADJECTIVES, *NOUNS, *RELATIONS, *VERBS]
    corpus = [f" {rng.choice(words)} {rng.choice(words)}" for _ in range(20_000)]
    corpus += [e.prompt + e.label for e in itertools.islice(fresh(rng), 3_000)]
    corpus += [HEADER, *(f"\n{letter}) Answer: {letter}" for letter in LETTERS)] * 200
    corpus += [*QUESTIONS, *glossary()] * 12
    made = Tokenizer(models.BPE(ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[BOS, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    made.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, made.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=BOS, eos_token=EOS, pad_token=EOS
    )


def config() -> LlamaConfig:
    """Return the shape: every row a multiple of 256, so that K-quants apply to each tensor."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        initializer_range=0.06,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def new_model() -> LlamaForCausalLM:
    """Return the model with random weights, its attention started near the identity.

    Queries equal keys and outputs undo values, so that a head begins by finding tokens like its own
    and moving them as they are. Source: A. Trockman, J. Z. Kolter, "Mimetic Initialization of
    Self-Attention Layers", ICML 2023.
    """
    # Eager attention: at 70 tokens the fused CPU kernel is a third slower.
    model = LlamaForCausalLM._from_config(config(), attn_implementation="eager")
    size = model.config.head_dim
    groups = model.config.num_attention_heads // model.config.num_key_value_heads
    with torch.no_grad():
        # Tokens start as large as what layers add to them, or nothing of them is left to match by;
        # the final norm takes the scale out again before the tied head.
        model.model.embed_tokens.weight.mul_(1 / model.config.initializer_range)
        model.model.norm.weight.fill_(1 / 16)
        for at, layer in enumerate(model.model.layers):
            # Small at first, or their noise drowns the tokens themselves.
            layer.mlp.down_proj.weight.mul_(0.1)
            attention = layer.self_attn
            if at == 0:
                attention.o_proj.weight.mul_(0.1)
                continue
            keys = attention.k_proj.weight.view(-1, size, attention.k_proj.in_features)
            values = attention.v_proj.weight.view(-1, size, attention.v_proj.in_features)
            attention.q_proj.weight.copy_(
                0.5 * keys.repeat_interleave(groups, 0).reshape(-1, keys.shape[-1])
            )
            undone = values.repeat_interleave(groups, 0).reshape(-1, values.shape[-1])
            attention.o_proj.weight.copy_(undone.T)
    return model


@dataclass(frozen=True)
class Batch:
    """`ids` and `mask` `[n, width]`, padded on the right; the label is each row's last token.

    `own` `[n, width]` gives, for a token of an option, the position of its letter, else -1.
    `clue` and `gold` `[n, width]` mark the words that say the answer and the right option, `closed`
    `[n]` the questions to be answered by heart.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    own: torch.Tensor
    clue: torch.Tensor
    gold: torch.Tensor
    closed: torch.Tensor

    def to(self, device: str) -> Batch:
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


def batches(
    examples: Iterator[Example], tok: PreTrainedTokenizerFast, size: int
) -> Iterator[Batch]:
    """Yield batches; eight are drawn together and sorted by length, so padding stays small."""
    while True:
        drawn = sorted(itertools.islice(examples, size * 8), key=lambda e: len(e.prompt))
        parts = [drawn[at : at + size] for at in range(0, len(drawn), size)]
        random.shuffle(parts)
        for part in parts:
            yield batch(part, tok)


def batch(part: list[Example], tok: PreTrainedTokenizerFast) -> Batch:
    """Return the examples as tensors, with where their options and clues are."""
    coded = tok([e.prompt + e.label for e in part], return_offsets_mapping=True)
    width = max(map(len, coded["input_ids"]))
    ids = torch.full((len(part), width), tok.pad_token_id)
    mask = torch.zeros(len(part), width, dtype=torch.long)
    own = torch.full((len(part), width), -1)
    clue, gold = torch.zeros_like(mask, dtype=torch.bool), torch.zeros_like(mask, dtype=torch.bool)
    for row, (made, line, spans) in enumerate(
        zip(part, coded["input_ids"], coded["offset_mapping"], strict=True)
    ):
        ids[row, : len(line)] = torch.tensor(line)
        mask[row, : len(line)] = 1
        starts = [start for start, _ in spans]
        for found in OPTION.finditer(made.prompt):
            first = bisect_right(starts, found.start("letter")) - 1
            last = bisect_right(starts, found.end() - 1)
            own[row, first + 1 : last] = first
            gold[row, first + 2 : last - 1] = f" {found['letter']}" == made.label
        if made.clue:
            at = made.prompt.lower().index(made.clue.lower())
            clue[
                row, bisect_right(starts, at) - 1 : bisect_right(starts, at + len(made.clue) - 1)
            ] = 1
    return Batch(ids, mask, own, clue, gold, torch.tensor([made.closed for made in part]))


def guidance(attentions: tuple[torch.Tensor, ...], made: Batch) -> torch.Tensor:
    """Return the loss that shows three kinds of attention heads where to look.

    Every token of an option looks back at its letter; in the right option also at the same words
    of the clue, in the wrong ones at the start of the text, which marks the right one; and the
    end looks at the option so marked. Each step pays off only when the others are there, so a
    model of this size finds them late or never by itself.
    """
    rows, end = torch.arange(len(made.ids), device=made.ids.device), made.mask.sum(1) - 2
    option, known = made.own >= 0, made.clue.any(1)
    inside = option.nonzero(as_tuple=True)
    shown = [attentions[1][:, 0][(*inside, made.own[inside])]]
    if known.any():
        same = attentions[1][:, 2]
        shown.append((same * made.clue[:, None, :]).sum(2)[made.gold & known[:, None]])
        shown.append(same[:, :, 0][option & ~made.gold & known[:, None]])
        for layer in (2, 3):
            shown.append((attentions[layer][rows, 0, end] * made.gold).sum(1)[known])
    return torch.stack([-(mass.float() + 1e-6).log().mean() for mass in shown]).sum()


def loss_of(
    model: LlamaForCausalLM, made: Batch, guide: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (loss, share of right answers).

    The loss is that of the answer plus half the language-model loss, plus `guide` times that of
    attention (`guidance`).
    """
    device = made.ids.device.type
    with torch.autocast(device, dtype=torch.bfloat16):
        out = model(input_ids=made.ids, attention_mask=made.mask, output_attentions=guide > 0)
    logits, following = out.logits[:, :-1], made.ids[:, 1:]
    rows, end = torch.arange(len(made.ids), device=made.ids.device), made.mask.sum(1) - 2
    other = made.mask[:, 1:].bool()
    other[rows, end] = False
    answers, gold = logits[rows, end].float(), following[rows, end]
    loss = F.cross_entropy(answers, gold)
    loss = loss + 0.5 * F.cross_entropy(logits[other].float(), following[other])
    if guide > 0:
        loss = loss + guide * guidance(out.attentions, made)
    return loss, answers.argmax(-1) == gold


def mixture(window: Window, rng: random.Random, share: float) -> Iterator[Example]:
    """Yield phase two: `share` closed-book questions, a tenth statements, the rest open-book."""
    opened = fresh(rng)
    while True:
        kind = rng.random()
        if kind < share:
            yield window.example()
        elif kind < share + 0.1:
            said = [statement(window.fact(), rng) for _ in range(3)]
            yield Example("\n".join(said) + "\nAnswer", ":")
        else:
            yield next(opened)


def train(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run both phases, write the model folder and return the log."""
    # Sharp attention leaves subnormal numbers behind, which slow a step down four times.
    torch.set_flush_denormal(True)
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.start:
        tok = PreTrainedTokenizerFast.from_pretrained(args.start)
        model = LlamaForCausalLM.from_pretrained(
            args.start, dtype=torch.float32, attn_implementation="eager"
        ).to(device)
    else:
        tok, model = tokenizer(), new_model().to(device)
    rng = random.Random(args.seed)
    window = Window(args.facts, args.views, rng)
    phases = (
        (args.steps_open, batches(fresh(rng), tok, args.batch)),
        (args.steps_memory, batches(mixture(window, rng, args.closed), tok, args.batch)),
    )
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.05
    )
    total, step, began = sum(steps for steps, _ in phases), 0, time.monotonic()
    log: list[dict[str, Any]] = []
    for phase, (steps, source) in enumerate(phases, start=1):
        recent: list[torch.Tensor] = []
        by_heart: list[torch.Tensor] = []
        for made in itertools.islice(source, steps):
            # Warm up, stay, and decay over the last fifth, not so far that new facts come too late.
            rate = min(1.0, (step + 1) / 100) * (0.3 + 0.7 * min(1.0, 5 * (1 - step / total)))
            for group in optimiser.param_groups:
                group["lr"] = args.lr * rate
            guide = 1.0 * (step < args.steps_guided)
            loss, hits = loss_of(model, made.to(device), guide)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            step += 1
            recent.append(hits[~made.closed])
            by_heart.append(hits[made.closed])
            if step % args.every == 0 or step in (total, args.stop):
                line = {
                    "step": step,
                    "phase": phase,
                    "loss": round(loss.item(), 4),
                    "right": share(recent),
                    "closed": share(by_heart),
                    "seconds": round(time.monotonic() - began, 1),
                }
                log.append(line)
                print(json.dumps(line), flush=True)
                recent, by_heart = [], []
                if math.isnan(loss.item()):
                    raise SystemExit(f"loss is not a number at step {step}")
            if step % 500 == 0 or step == args.stop:
                save(model, tok, args, log)
            if step == args.stop:
                return log
    save(model, tok, args, log)
    return log


def share(hits: list[torch.Tensor]) -> float:
    """Return the share of right answers, nought where there were none."""
    flat = torch.cat(hits).float()
    return round(flat.mean().item(), 4) if len(flat) else 0.0


def save(model: Any, tok: Any, args: argparse.Namespace, log: list[dict[str, Any]]) -> None:
    """Write config, tokenizer and float16 weights, and the log beside them."""
    out = Path(args.out)
    half = LlamaForCausalLM(config()).half()
    half.load_state_dict({name: tensor.half() for name, tensor in model.state_dict().items()})
    half.save_pretrained(out)
    tok.save_pretrained(out)
    kept = {"settings": {k: v for k, v in vars(args).items() if k != "out"}, "log": log}
    (out / "pretraining.json").write_text(json.dumps(kept, indent=1) + "\n")


def parser() -> argparse.ArgumentParser:
    """Return the options; the defaults made the weights in the repository."""
    made = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    made.add_argument("--out", required=True)
    made.add_argument("--start", help="go on from the folder of an earlier run")
    made.add_argument("--seed", type=int, default=42)
    made.add_argument("--facts", type=int, default=400, help="facts known at a time")
    made.add_argument("--views", type=int, default=80, help="questions a fact before it goes")
    made.add_argument("--closed", type=float, default=0.7, help="share of closed-book questions")
    made.add_argument("--steps-guided", type=int, default=500)
    made.add_argument("--steps-open", type=int, default=600)
    made.add_argument("--steps-memory", type=int, default=11000)
    made.add_argument("--stop", type=int, default=8000, help="end here, before the rate decays")
    made.add_argument("--batch", type=int, default=32)
    made.add_argument("--lr", type=float, default=1e-3)
    made.add_argument("--every", type=int, default=100)
    return made


def main() -> None:
    train(parser().parse_args())


if __name__ == "__main__":
    main()
