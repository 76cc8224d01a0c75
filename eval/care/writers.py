"""Who writes dialogues: the embedded templates, a server, or a model file on this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from tel_edge.eval.care import templates
from tel_edge.eval.care.dialogues import Source, Wanted
from tel_edge.eval.references.client import Client
from tel_edge.eval.references.endpoint import in_threads, text_of, used
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import checked, digest
from tel_edge.runtime.questions.conversation import Message

SYSTEM = (
    "You write training data: conversations of customers of a telephone company with its support. "
    "You answer with JSON alone."
)
ASK = """Write one conversation of {turns} exchange(s) between a customer and the support.
{brief}
The customer is {style} and the answers are {length}. The support names {term}, asks for the check \
and gives the fix in words close to these. Use no names, numbers, addresses or e-mails of people, \
and never ask for a PIN or a password.
Answer with: {{"messages": [{{"role": "user", "content": "..."}}, \
{{"role": "assistant", "content": "..."}}]}}"""
# Tokens of a reply for each exchange.
MOST = 400


class Writer(Protocol):
    """What writes: `source` says who, `parallel` how many at a time."""

    parallel: int

    @property
    def source(self) -> Source:
        """Return who it is."""
        ...

    def write(self, wanted: Sequence[tuple[Wanted, int]]) -> Iterator[tuple[int, Any]]:
        """Yield (index, (messages or a text that holds none, tokens read, tokens written)).

        A dialogue is wanted for the `int`-th time. Raises `WorkError` where nothing can be had.
        """
        ...


class Templates:
    """The embedded writer."""

    parallel = 1

    def __init__(self) -> None:
        self.source = Source("template", "tel-edge", digest.of_value(templates.phrases())[:16])

    def write(self, wanted: Sequence[tuple[Wanted, int]]) -> Iterator[tuple[int, Any]]:
        """Yield dialogues, the same for a seed."""
        for at, (one, tries) in enumerate(wanted):
            seed = f"{one.seed} {one.id} {tries}"
            made = templates.write(one.scenario, one.style, one.length, one.turns, seed)
            yield at, (made, 0, 0)


class Endpoint:
    """A server with OpenAI's interface, asked by several threads."""

    def __init__(self, client: Client, model: str, parallel: int) -> None:
        self.client, self.parallel = client, parallel
        self.source = Source("endpoint", model, digest.of_value([SYSTEM, ASK])[:16])

    def write(self, wanted: Sequence[tuple[Wanted, int]]) -> Iterator[tuple[int, Any]]:
        """Yield what the server writes."""

        def one(at: int) -> tuple[Any, int, int]:
            of, tries = wanted[at]
            body = {
                "model": self.source.model,
                "messages": [
                    {"role": "system", "content": SYSTEM},
                    {"role": "user", "content": asked(of)},
                ],
                "temperature": 0.9,
                "max_tokens": MOST * of.turns,
                "seed": seed(of, tries),
            }
            reply = self.client.request("/chat/completions", body)
            choices = reply.get("choices")
            choice = choices[0] if isinstance(choices, list) and choices else None
            text = text_of(choice) if isinstance(choice, dict) else ""
            return parsed(text), used(reply, "prompt_tokens"), used(reply, "completion_tokens")

        yield from in_threads(one, range(len(wanted)), self.parallel)


class Model:
    """A GGUF file on this machine, asked by its own chat template; `close` it.

    What it wrote is its own by name and SHA-256: another file may have the same name.
    """

    parallel = 1

    def __init__(self, file: Path, threads: int | None) -> None:
        from tel_edge.runtime.bundles import bundle
        from tel_edge.runtime.engines.engine import EngineSettings

        engine: Any = bundle.native(file, {}, EngineSettings(threads=threads))
        if engine.template is None:
            engine.close()
            raise InputError(
                f"{file}: the model has no chat template; use an instruction-tuned one"
            )
        self.engine = engine
        name = f"{file.name}@{checked.sha256(file)[:12]}"
        self.source = Source("gguf", name, digest.of_value([SYSTEM, ASK])[:16])

    def write(self, wanted: Sequence[tuple[Wanted, int]]) -> Iterator[tuple[int, Any]]:
        """Yield what the model writes, as it ends: the engine writes several at a time."""
        from tel_edge.runtime.engines.engine import Sampling, Unanswered
        from tel_edge.runtime.questions.conversation import templated

        prompts = []
        for of, tries in wanted:
            said = [Message("system", SYSTEM), Message("user", asked(of))]
            ids = self.engine.marked(templated(self.engine.template, said))
            how = Sampling(1, 0.9, MOST * of.turns, str(seed(of, tries)), goes_on=_sampled)
            prompts.append((ids, how))
        try:
            for at, made in self.engine.generate(prompts, None):
                yield at, (parsed(made.texts[1]), len(prompts[at][0]), made.generated)
        except Unanswered as refused:
            for at, reason in refused.reasons.items():
                yield at, (str(reason), 0, 0)

    def close(self) -> None:
        """Free the model."""
        self.engine.close()


def _sampled(turn: int, _: Sequence[int]) -> bool:
    # The likeliest text is the same for every try.
    return turn == 1


def seed(of: Wanted, tries: int) -> int:
    """Return the seed of a try, of 31 bits."""
    return int(digest.of_value([of.seed, of.id, tries])[:8], 16) >> 1


def asked(of: Wanted) -> str:
    """Return what a model is asked for."""
    return ASK.format(
        turns=of.turns, brief=of.scenario.brief, style=of.style, length=of.length,
        term=of.scenario.term.name,
    )  # fmt: skip


def parsed(text: str) -> tuple[Message, ...] | str:
    """Return the messages of a reply, or the text where there are none in it."""
    found = re.search(r"\{.*\}", text, re.DOTALL)
    try:
        rows = json.loads(found[0])["messages"] if found else ()
        made = tuple(Message(str(row["role"]), str(row["content"]).strip()) for row in rows)
        return made or text
    except (ValueError, KeyError, TypeError, RecursionError):
        return text
