"""Compares PEFT with an exported file: `python scripts/compare_care.py --dataset DIR`.

Greedy answers of both to the same tokens, and the divergence of their distributions along PEFT's
answers. PEFT is computed in float32 by transformers; the file by its engine, as tel-eval does.
Wanted: the same answers in 95 % of dialogues, and a mean divergence of at most 0.01 nats.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tel_edge.eval.care.answers import along, asked, evaluating
from tel_edge.eval.care.answers.cases import PARTS, Case, read
from tel_edge.eval.from_gguf import fetching
from tel_edge.eval.statistics import clustered_mean, clustered_share
from tel_edge.export import original
from tel_edge.runtime import cli
from tel_edge.runtime.bundles import backbones, bundle
from tel_edge.runtime.engines.engine import Sampling

SAME, KL = 0.95, 0.01


class Peft:
    """transformers and PEFT in float32; an adapter of None is the bare backbone."""

    def __init__(self, folder: Path, adapter: Path | None, threads: int | None) -> None:
        import torch

        if threads:
            torch.set_num_threads(threads)
        original.check()
        self._torch, self._model = torch, original.load(folder, adapter)

    def distributions(self, ids: Sequence[int], start: int) -> Any:
        """Return the log-probabilities `[positions, vocabulary]` of what follows each."""
        with self._torch.inference_mode():
            shown = self._torch.tensor([list(ids)], device=self._model.device)
            logits = self._model(shown, logits_to_keep=len(ids) - start).logits[0]
            return self._torch.log_softmax(logits.float(), -1).cpu().numpy()

    def answer(self, ids: Sequence[int], limit: int, ends: Any) -> list[int]:
        """Return the greedy tokens after a prompt, up to one of those that end a text."""
        found: list[int] = []
        with self._torch.inference_mode():
            shown, past = self._torch.tensor([list(ids)], device=self._model.device), None
            while len(found) < limit:
                made = self._model(shown, past_key_values=past, use_cache=True, logits_to_keep=1)
                past = made.past_key_values
                token = int(made.logits[0, -1].argmax())
                if ends(token):
                    break
                found.append(token)
                shown = self._torch.tensor([[token]], device=self._model.device)
        return found


def work(args: argparse.Namespace) -> Mapping[str, Any]:
    """Answer, compare and print both figures; exit code 1 where one of them is missed."""
    backbone = backbones.find(args.backbone)
    workspace, say = cli.workspace(args), partial(cli.say, args)
    folder = args.bundle or workspace.bundle(backbone.name)
    made = bundle.read(folder)
    file = bundle.backbone_file(folder, made, args.quant, args.format)
    adapter = peft_folder = None
    if not args.bare:
        adapter = bundle.adapter_file(folder, made, args.adapter, file.format)
        peft_folder = workspace.adapter(backbone.name, args.adapter)
    model = asked.Model(folder, made, file, adapter, cli.engine_settings(args))
    cases = read(Path(args.dataset), args.part, args.limit).cases
    peft = Peft(fetching.fetch(backbone, None, say).folder, peft_folder, args.threads)
    rows: dict[str, list[tuple[bool, list[float]]]] = {}
    with asked.Speaker(model, bundle.native) as speaker:
        for at, case in enumerate(cases, 1):
            parted, kls = one(case, speaker, peft, args.max_tokens)
            rows.setdefault(case.scenario, []).append((not parted, kls))
            say(f"{at}/{len(cases)} {case.id}: {parted or 'same'}, KL {sum(kls) / len(kls):.6f}")
    same_share = clustered_share([(sum(s for s, _ in of), len(of)) for of in rows.values()])
    mean = clustered_mean([[kl for _, kls in of for kl in kls] for of in rows.values()])
    named = "the bare backbone" if args.bare else args.adapter
    print(f"{file.path} and transformers with {named} in float32, {len(cases)} dialogues:")
    print(f"same greedy answer  {same_share.value:.1%} [{same_share.low:.1%}, "
          f"{same_share.high:.1%}]  (wanted: {SAME:.0%} or more)")  # fmt: skip
    ends = "" if mean.low is None else f" [{max(0.0, mean.low):.6f}, {mean.high:.6f}]"
    print(f"KL along PEFT's     {mean.value:.6f}{ends} nats  (wanted: {KL} or less)")
    good = same_share.value >= SAME and mean.value <= KL
    return {"same": same_share.value, "kl": mean.value, "exit_code": 0 if good else 1}


def one(case: Case, speaker: asked.Speaker, peft: Peft, limit: int) -> tuple[str, list[float]]:
    """Return where the first answers part, empty if nowhere, and the divergences along PEFT's."""
    engine = speaker.engine
    ids = speaker.prompt(case, [])
    mine: list[int] = []
    how = Sampling(0, 1.0, limit, "", goes_on=asked.keeping(mine))
    for _ in engine.generate([(ids, how)], speaker.adapter):
        pass
    theirs = peft.answer(ids, limit, engine.ends)
    whole = [*ids, *theirs]
    # The token that ended it is part of the answer, one that a limit cut off is its last.
    whole = whole if len(theirs) < limit else whole[:-1]
    reference = peft.distributions(whole, len(ids) - 1)
    own = along.distributions(speaker, whole, len(ids) - 1)
    kl, _, _ = along.compared(reference, own, [0] * len(reference))
    if mine == theirs:
        return "", kl.tolist()
    pairs = enumerate(zip(mine, theirs, strict=False))
    at = next((at for at, (a, b) in pairs if a != b), min(len(mine), len(theirs)))
    # By how little PEFT itself prefers its token: near 0 rounding decides.
    second, first = sorted(reference[min(at, len(reference) - 1)])[-2:]
    return f"parts at token {at}, PEFT's best two {first - second:.4f} nats apart", kl.tolist()


def parser() -> cli.Parser:
    """Return the options."""
    made = cli.parser("compare_care.py", "Compare PEFT with the exported file on dialogues.",
                      "backbone", "dataset")  # fmt: skip
    cli.engine_options(made)
    made.add_argument("--adapter", default="care", metavar="NAME", help="(%(default)s)")
    made.add_argument("--bare", action="store_true", help="the backbone without an adapter")
    made.add_argument("--quant", default="F16", metavar="TYPE", help="(%(default)s)")
    made.add_argument("--part", choices=PARTS, default="test", help="(%(default)s)")
    made.add_argument("--limit", type=cli.positive, default=40, metavar="N", help="(%(default)s)")
    made.add_argument(
        "--max-tokens", type=cli.positive, default=evaluating.MOST_TOKENS, metavar="N",
        help="of an answer (%(default)s)",
    )  # fmt: skip
    return made


if __name__ == "__main__":
    sys.exit(cli.run(parser(), work))
