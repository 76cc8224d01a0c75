"""How far answers in sentences are apart: an engine's and PEFT's, token by token.

The dialogues are the embedded templates' (`tel_edge.eval.care`), of scenarios to train on. Along
each answer's own tokens the log-probabilities of those are compared that are likely there, so what
`parity` says of labels holds for them: `picks` is the share of positions with the same likeliest
token, `kl` the divergence among the likely ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tel_edge.eval.care import scenarios, templates
from tel_edge.eval.folders.chat import Chat
from tel_edge.export import original
from tel_edge.export.gate import differing
from tel_edge.export.gate.parity import PROMPTS, SEED, Answers
from tel_edge.export.progress import Step, silent
from tel_edge.runtime.engines.likelihood import read_along
from tel_edge.runtime.engines.logits import log_sum
from tel_edge.runtime.errors import WorkError
from tel_edge.runtime.questions.conversation import Message, templated

if TYPE_CHECKING:
    from tel_edge.runtime.engines.packed import PackedEngine

# Of PEFT's likeliest tokens at a position those that are compared, of each of its two models.
LIKELY = 8


@dataclass(frozen=True)
class Along:
    """A dialogue as transformers reads it: its text up to the answer, and the ids of all of it.

    The answer begins at `start` and ends with the end token. `tokens` are those that are compared
    at each of its positions.
    """

    id: str
    text: str
    ids: tuple[int, ...]
    start: int
    tokens: tuple[tuple[int, ...], ...]


def dialogues() -> dict[str, tuple[Message, ...]]:
    """Return dialogues of one exchange by the id of their scenario, of all causes and styles."""
    every = scenarios.split(scenarios.scenarios(), SEED)["train"]
    styles, lengths = templates.styles(), templates.LENGTHS
    chosen = every[:: len(every) // PROMPTS][:PROMPTS]
    return {
        one.id: templates.write(
            one, styles[at % len(styles)], lengths[at % len(lengths)], 1, f"{SEED} gate {one.id}"
        )
        for at, one in enumerate(chosen)
    }


def readings() -> int:
    """Return how often the original reads: all dialogues bare, adapted, and bare along tokens."""
    return 3 * PROMPTS


def reference(
    folder: Path, adapter: Path, step: Step = silent
) -> tuple[tuple[Along, ...], Answers, Answers]:
    """Return what is asked, and what transformers and PEFT answer: (asked, bare, adapted).

    `step` is called with 1 after each of `readings`.
    """
    import torch
    from peft import PeftModel

    chat = Chat(folder)
    shown = {name: (said, chat.shown(said)[-1]) for name, said in dialogues().items()}
    model = original.mapped(folder)

    def after(ids: Sequence[int], start: int) -> Any:
        """Return the log-probabilities [answer, vocabulary] of the tokens from `start` on."""
        given = torch.tensor([ids[:-1]], device=model.device)
        with torch.no_grad():
            logits = model(given, logits_to_keep=len(ids) - start).logits[0].double()
        step(1)
        return torch.log_softmax(logits, -1)

    places = {name: (text.ids, text.spans[-1][0]) for name, (_, text) in shown.items()}
    # The likely ones and what is there are all that is kept of a vocabulary.
    likely = {name: after(*at).topk(LIKELY).indices.tolist() for name, at in places.items()}
    model = PeftModel.from_pretrained(model, adapter).eval()
    asked, adapted = [], []
    for name, (ids, start) in places.items():
        found = after(ids, start)
        ours = found.topk(LIKELY).indices.tolist()
        tokens = tuple(
            tuple(dict.fromkeys((ids[start + at], *ours[at], *likely[name][at])))
            for at in range(len(ours))
        )
        said = shown[name][0]
        asked.append(Along(name, templated(chat.template, said[:-1]), ids, start, tokens))
        adapted += _rows(found, tokens)
    model = model.unload()
    bare = [row for one in asked for row in _rows(after(one.ids, one.start), one.tokens)]
    return tuple(asked), bare, adapted


def _rows(found: Any, tokens: Sequence[Sequence[int]]) -> list[list[float]]:
    return [found[at, list(own)].tolist() for at, own in enumerate(tokens)]


def answers(
    engine: PackedEngine,
    asked: Sequence[Along],
    adapter: str | None,
    step: Step = silent,
) -> Answers:
    """Return the engine's answers, a row for each position, finite numbers.

    `step` is called with 1 after each of `asked`.

    Raises `WorkError` where the engine makes other tokens of a prompt, does not stop at the end
    token, or gives numbers that are none.
    """
    made: list[list[float]] = []
    for one in asked:
        ids = tuple(engine.marked(one.text))
        if ids != one.ids[: one.start]:
            raise WorkError(
                f"the exported tokenizer reads the dialogue {one.id} as other tokens than "
                f"transformers does; the file is not accepted\n"
                f"{differing.told(one.ids[: one.start], ids)}"
            )
        if not engine.ends(one.ids[-1]):
            raise WorkError(
                f"the engine does not stop at {engine.name(one.ids[-1])}, with which the chat "
                "template ends an answer; the file is not accepted\nput its id into eos_token_id "
                "of the backbone's generation_config.json"
            )

        def read(at: int, logits: Any, one: Along = one) -> list[float]:
            total = log_sum(logits)
            return [float(logits[token]) - total for token in one.tokens[at + 1 - one.start]]

        made += read_along(engine, one.ids[:-1], adapter, read, one.start - 1)
        step(1)
    if not all(map(math.isfinite, (value for row in made for value in row))):
        raise WorkError("the engine's answers are no finite numbers; the file is not accepted")
    return made
