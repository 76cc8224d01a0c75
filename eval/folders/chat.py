"""A dialogue as a model sees it by its own chat template: tokens, and which of them are answers.

The device shows a conversation, lets the model answer and shows the answer in front of the next
question. So an answer stands here behind the very prompt that the device would make, and ends with
the token at which the engine stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tel_edge.eval.folders import loading, special
from tel_edge.eval.folders.files import json_object
from tel_edge.runtime.engines.engine import Template
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.extras import need
from tel_edge.runtime.questions.conversation import Message, templated

# Tokens that end a turn, at which llama.cpp stops whatever the files say. Source: llama-vocab.cpp.
ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")
PROBE = (Message("user", "Hello"), Message("assistant", "probe-of-an-answer"))


@dataclass(frozen=True)
class Spoken:
    """A text with answers in it, as token ids.

    `spans` has (first token, the one behind the last) of each answer, its end token included.
    """

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    def row(self) -> dict[str, Any]:
        """Return it as the trainer's collator takes it; `spoken` is 1 at the tokens of answers."""
        spoken = [0] * len(self.ids)
        for first, last in self.spans:
            spoken[first:last] = [1] * (last - first)
        return {"input_ids": list(self.ids), "spoken": spoken}


def template(folder: Path) -> Template | None:
    """Return the chat template of a model folder as the engines have it, None without one."""
    stated = special.settings(folder)
    if not (text := special.template(folder, stated)):
        return None
    document = json_object(folder / "tokenizer.json")
    try:
        first, last = special.around(document.get("post_processor"))
    except InputError:
        # Of a form that GGUF has no room for.
        first, last = "", ""
    made = need("tokenizers", "train").Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids: dict[str, int] = made.get_vocab()

    def name(kind: str) -> str:
        at = special.named(stated, kind, ids, max(ids.values()) + 1)
        return "" if at is None else str(made.id_to_token(at) or "")

    return Template(text, first or name("bos"), last or name("eos"))


def digest(folder: Path) -> str | None:
    """Return the digest of a model folder's chat template (`Template.digest`), None without one."""
    text = special.template(folder, special.settings(folder))
    return Template(text, "", "").digest if text else None


class Chat:
    """The chat template of a model folder, with the tokenizer that reads what it makes.

    Raises `InputError` for a folder without one, and for a template that does not end an answer
    with a token at which engines stop.
    """

    def __init__(self, folder: Path) -> None:
        made = template(folder)
        if made is None:
            raise InputError(
                f"{folder}: no chat template, by which dialogues are shown; pass a backbone that "
                "was trained to converse, or put its chat_template.jinja there"
            )
        self.folder, self.template = folder, made
        self.tokenizer = loading.tokenizer(folder)

    def marked(self, text: str) -> list[int]:
        """Return the ids of what the template made, in which special tokens are what they say."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    @cached_property
    def ends(self) -> dict[int, str]:
        """Return the tokens at which a generated text ends, by id."""
        found: set[Any] = set()
        for name in ("config.json", "generation_config.json"):
            if (self.folder / name).is_file():
                given = json_object(self.folder / name).get("eos_token_id")
                found |= {*given} if isinstance(given, list) else {given}
        names = (self.template.end, *ENDS)
        found |= {at for name, at in self.tokenizer.get_vocab().items() if name in names}
        made = {at: self.tokenizer.convert_ids_to_tokens(at) for at in found if isinstance(at, int)}
        return {at: name for at, name in made.items() if name}

    @cached_property
    def tail(self) -> str:
        """Return what the template puts behind an answer; an end token is first."""
        whole = templated(self.template, PROBE, asked=False)
        _, found, tail = whole.rpartition(PROBE[-1].content)
        if not found:
            raise InputError(f"{self.folder}: the chat template does not show what was answered")
        first = next(iter(self.marked(tail)), None)
        if first not in self.ends or not tail.startswith(self.ends[first]):
            raise InputError(
                f"{self.folder}: the chat template ends an answer with {tail[:40]!r}, and the "
                f"engine stops at {' '.join(sorted(self.ends.values())) or 'no token'}: a model "
                "trained so would never stop\nput the token into eos_token_id of "
                "generation_config.json, or take the template of another version"
            )
        return tail

    @property
    def end(self) -> str:
        """Return the token that ends an answer."""
        return self.ends[self.marked(self.tail)[0]]

    def shown(self, messages: Sequence[Message]) -> list[Spoken]:
        """Return a dialogue as the device has it while it goes on, with every answer in it.

        It is one text where the device shows what was said in the same way later on. A template
        that shows earlier turns otherwise gives a text for each answer. Raises `InputError` for a
        message with a special token in it, an answer that the template changes, and no answer.
        """
        self._plain(messages)
        made: list[Spoken] = []
        for at, message in enumerate(messages):
            if message.role != "assistant":
                continue
            text = templated(self.template, messages[:at])
            prompt, answer = self.marked(text), self._answer(messages[: at + 1])
            ids = self.marked(text + answer)
            if ids[: len(prompt)] != prompt:
                # Their border would be inside a token, and the prompt's tokens are the device's.
                ids = prompt + self.marked(answer)
            spans: tuple[tuple[int, int], ...] = ((len(prompt), len(ids)),)
            if made and tuple(ids[: len(made[-1].ids)]) == made[-1].ids:
                spans = (*made.pop().spans, *spans)
            made.append(Spoken(tuple(ids), spans))
        if not made:
            raise InputError("nobody answers in it, so there is nothing to learn")
        return made

    def _plain(self, messages: Sequence[Message]) -> None:
        contents = [message.content for message in messages]
        read = self.tokenizer(contents, add_special_tokens=False)["input_ids"]
        plain = self.tokenizer(contents, add_special_tokens=False, split_special_tokens=True)
        for at, (one, other) in enumerate(zip(read, plain["input_ids"], strict=True)):
            if one != other:
                raise InputError(
                    f"messages[{at}].content has what is a special token: {contents[at][:80]!r}"
                )

    def _answer(self, messages: Sequence[Message]) -> str:
        """Return the last message as the template shows it, with the end token."""
        whole, given = templated(self.template, messages, asked=False), messages[-1].content
        for content in (given, given.strip()):
            if whole.endswith(content + self.tail):
                return content + self.end
        raise InputError(
            f"messages[{len(messages) - 1}].content: the chat template shows another text than "
            f"{given[:80]!r}"
        )
