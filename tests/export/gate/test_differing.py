"""Where the exported tokenizer and transformers part is said with the setting behind it."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tel_edge.export.gate import parity
from tel_edge.export.gate.parity import Asked
from tel_edge.runtime.engines.engine import Engine
from tel_edge.runtime.errors import WorkError
from tel_edge.runtime.questions.question import Question

QUESTION = Question("oranbench/7", "oranbench", "Which?", ("a", "b"), 0)


class Spelling:
    """An engine whose tokens are the bytes of a text, with `first` and `last` around them."""

    context = 4096

    def __init__(self, first: tuple[int, ...] = (), last: tuple[int, ...] = ()) -> None:
        self.first, self.last = first, last

    def tokenize(self, text: str) -> list[int]:
        return [*self.first, *text.encode(), *self.last]


def said(prompt: tuple[int, ...], engine: Any) -> str:
    wanted = Asked(QUESTION, prompt, ((32, 65), (32, 66)))
    with pytest.raises(WorkError) as caught:
        parity.answers(cast(Engine, engine), [wanted], None)
    return str(caught.value)


def ids() -> tuple[int, ...]:
    from tel_edge.runtime.questions.prompt import render

    return tuple(render(QUESTION).encode())


def test_a_token_in_front_is_named() -> None:
    text = said((1, *ids()), Spelling())
    assert "oranbench/7" in text
    assert f"token 0 is {ids()[0]} instead of 1; " in text
    assert "post_processor" in text
    assert "add_bos_token" in text
    assert len(text.splitlines()) == 2


def test_another_token_inside_is_named() -> None:
    text = said((*ids()[:5], 999, *ids()[6:]), Spelling())
    assert f"token 5 is {ids()[5]} instead of 999; look at pre_tokenizer" in text
    assert "tokenizer_class" in text
