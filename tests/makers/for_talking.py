"""What both engines have to do in a conversation; `new` opens an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tel_edge.runtime.engines.engine import Template
from tel_edge.runtime.questions.conversation import Message
from tel_edge.runtime.questions.talking import Talking, fitted, reply
from tel_edge.runtime.questions.writing import special

# The names of the tiny tokenizer's special tokens.
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
LINES = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def talker(new: Callable[..., Any], **settings: Any) -> Any:
    engine = new(**settings)
    engine.template = Template(LINES, BOS, EOS)
    return engine


def user(text: str) -> Message:
    return Message("user", text)


def check_marks(new: Callable[..., Any]) -> None:
    """A template's marks are tokens, and the same in a text are none."""
    engine = talker(new)
    ids = engine.marked(f"{BOS}a{EOS}")
    assert [engine.name(token) for token in (ids[0], ids[-1])] == [BOS, EOS]
    assert [special(engine, token) for token in ids] == [True, *[False] * (len(ids) - 2), True]
    assert len(engine.tokenize(EOS)) > 4
    assert engine.marked("plain") == engine.tokenize("plain")[len(engine.tokenize("")) :]


def check_turns(new: Callable[..., Any], exact: bool) -> None:
    """A conversation goes on where it was, and says the same as one that is new."""
    warm, cold = talker(new, exact=exact), talker(new, exact=exact)
    said = [Message("system", "Be brief, and say what the RIC hosts."), user("Which? " * 20)]
    how = Talking(most=8)
    for turn in range(3):
        told: list[str] = []
        made = reply(warm, "oranbench", said, how, lambda new, told=told: not told.append(new))
        cold.forget()
        other = reply(cold, "oranbench", said, how)
        assert (made.text, made.tokens) == (other.text, other.tokens)
        assert "".join(told) == made.text
        assert other.decoded == other.prompt_tokens == made.prompt_tokens
        assert made.decoded < (other.decoded if turn else other.decoded + 1)
        assert made.ended in ("stop", "length")
        said = [*made.heard, Message("assistant", made.text), user(f"And {turn}?")]


def check_full(new: Callable[..., Any]) -> None:
    """The oldest exchanges go, never the system message, and the end fits."""
    engine = talker(new, context=200)
    pairs = [
        (user(f"Question {at} of all"), Message("assistant", f"It is {at}")) for at in range(9)
    ]
    said = [Message("system", "S."), *(one for pair in pairs for one in pair), user("Last?")]
    ids, most, left, dropped = fitted(engine, said, 40)
    assert len(ids) + most <= 200
    assert 0 < dropped < 9
    assert left == [said[0], *said[1 + 2 * dropped :]]
    # One more would not have fitted.
    more = [said[0], *said[2 * dropped - 1 :]]
    assert fitted(engine, more, 40)[3] == 1
    made = reply(engine, None, said, Talking(most=40))
    assert (made.dropped, made.heard) == (dropped, tuple(left))
    # What was said last stays, with less room behind it: a long answer takes nobody's words away.
    ids, most, left, dropped = fitted(engine, said[-3:], 190)
    assert (len(left), dropped) == (3, 0)
    assert len(ids) + most == 200
    # Nor do rules go that were given later.
    rule = Message("system", "Be brief.")
    left = fitted(engine, [*said[:9], rule, *said[9:]], 40)[2]
    assert left[:2] == [said[0], rule]
