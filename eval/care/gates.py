"""What a dialogue has to be before anybody learns from it, whoever wrote it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tel_edge.eval.care.scenarios import Scenario
from tel_edge.runtime.questions.conversation import Message

# Words of a message of the customer, and of the answers together.
ASKED, ANSWERED = (3, 150), (8, 400)
# How much of a fact's own words a text has to say.
SAID = 0.7

COMMON = frozenset(
    "a an and are as at be been by do for from has have if in into is it its of off on or out "
    "over so than that the their them then there these they this to up was were which will with "
    "you your once again one no not".split()
)
PERSONAL: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("an e-mail address", re.compile(r"\b[\w.+-]+@[\w-]+\.\w{2,}\b")),
    ("an e-mail address", re.compile(r"\b[\w.+-]+ ?[(\[]at[)\]] ?[\w-]+\.\w{2,}\b", re.IGNORECASE)),
    ("a number of a person, a card or a device", re.compile(r"(?<!\w)\+?\d(?:[ \-/.]?\d){6,}\b")),
    ("an account number", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,}\b")),
)
SECRET = re.compile(
    r"\byour (?:\w+ ){0,2}(?:pin|password|passcode|cvv|security code|tan)\b", re.IGNORECASE
)
HIMSELF = re.compile(
    r"\b(?:as an a\.?i\b|language model|i am an a\.?i\b|i'm an a\.?i\b|i cannot (?:help|assist)|"
    r"i can't (?:help|assist)|i am unable to|as a chatbot)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Fault:
    """Why a dialogue is not taken: the gate, and what it found."""

    gate: str
    text: str


@lru_cache(maxsize=4096)
def stems(text: str) -> frozenset[str]:
    """Return the words that a text is about, without their commonest endings."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return frozenset(
        re.sub(r"(?:ing|ed|es|s|e)$", "", word) if len(word) > 3 else word
        for word in words
        if word not in COMMON
    )


def said(text: str, fact: str) -> float:
    """Return the share of a fact's words that a text has."""
    words = stems(fact)
    return len(words & stems(text)) / len(words) if words else 0.0


def gate(others: Sequence[str]) -> Callable[[Scenario, Sequence[Message], int], Fault | None]:
    """Return what judges a dialogue of so many exchanges; `others` are all scenarios' fixes."""
    fixes = tuple(dict.fromkeys(other.lower() for other in others))

    def judged(scenario: Scenario, messages: Sequence[Message], turns: int) -> Fault | None:
        for name, found in _faults(scenario, messages, turns, fixes):
            if found:
                return Fault(name, found)
        return None

    return judged


def _faults(
    scenario: Scenario, messages: Sequence[Message], turns: int, fixes: Sequence[str]
) -> Iterator[tuple[str, str]]:
    roles = [message.role for message in messages]
    even = roles == ["user", "assistant"] * turns
    yield "roles", "" if even else f"roles are {' '.join(roles)[:80] or 'none'}"
    whole = " ".join(message.content for message in messages)
    # Half a surrogate pair, which JSON can hold and no file.
    broken = not whole.isprintable() and bool(re.search("[\ud800-\udfff\0]", whole))
    yield "text", "characters that no text has" if broken else ""
    asked = [message.content for message in messages if message.role == "user"]
    answers = [message.content for message in messages if message.role == "assistant"]
    answer = " ".join(answers)
    for name, texts, (least, most) in (("asked", asked, ASKED), ("answered", [answer], ANSWERED)):
        for count in (len(text.split()) for text in texts):
            low = 1 if name == "asked" and len(texts) > 1 else least
            yield "length", "" if low <= count <= most else f"{name}: {count} words"
    named = scenario.term.name.lower() in whole.lower()
    yield "term", "" if named else f"{scenario.term.name} is not named"
    for name, fact in (("check", scenario.check), ("fix", scenario.fix)):
        yield name, "" if said(answer, fact) >= SAID else f"nothing of: {fact}"
    wrong = [other for other in fixes if other != scenario.fix.lower() and other in answer.lower()]
    yield "other fix", ", ".join(wrong)
    for what, pattern in PERSONAL:
        found = pattern.search(whole)
        yield "personal data", f"{what}: {found[0]}" if found else ""
    for name, pattern in (("secret", SECRET), ("about itself", HIMSELF)):
        found = pattern.search(answer)
        yield name, found[0] if found else ""
