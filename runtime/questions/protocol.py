"""Free generation, the second mode of answering: a prompt, and the answer read from a text.

The public leaderboard's harness lets a model write and reads its text with regular expressions
(https://github.com/gsma-labs/evals over https://github.com/UKGovernmentBEIS/inspect_ai). `parse`
follows its rules, so that scores can be compared. The prompt has words of its own.
"""

from __future__ import annotations

import hashlib
import re

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.prompt import LETTERS
from tel_edge.runtime.questions.question import Question

CHOICE_HEADER = (
    "Choose the right option. Give no reasons. "
    "Reply with one line: ANSWER: and the letter of the option.\n"
)
LABEL_HEADER = "Give no reasons. Reply with one line: ANSWER: and one of {labels}.\n"
FOOTER = "\nReply:"

# A line of its own, up to its end or a full stop, goes before an answer inside a line.
LINE = re.compile(r"^answer\s*:\s*([a-z\d ,]+)\s*(?:\.|$)", re.IGNORECASE | re.MULTILINE)
INSIDE = re.compile(r"answer\s*:\s*([a-z\d ,]+)(?:\W|$)", re.IGNORECASE)

# What is in the middle of a run of letters can never be the first match: without looking behind,
# a long run without digits is searched again from each of its letters.
GROUP = re.compile(r"(?<![a-z])[a-z]+\d+(?:-[a-z]+)?", re.IGNORECASE)


def beginning(question: Question) -> str:
    """Return what the prompts of all questions of this kind begin with."""
    if _labelled(question):
        category = CATEGORIES[question.category]
        return LABEL_HEADER.format(labels=", ".join(category.labels)) + category.stem + "\n"
    return CHOICE_HEADER


def render(question: Question) -> str:
    """Return the prompt after which the model writes its reply.

    It asks for the line `ANSWER: <letter>`, or, in a category with fixed labels, for the label
    itself. What all questions of a category share comes first, so an engine can keep its state.
    Raises `InputError` for a question with spelled answers, which `parse` has no rule for.
    """
    if question.spelled:
        raise InputError("labels of a request can be scored only, not read from a generated text")
    lines = [question.text]
    if not _labelled(question):
        lines += [f"{at}) {text}" for at, text in zip(LETTERS, question.choices, strict=False)]
    return beginning(question) + "\n".join(lines) + FOOTER


def digest() -> str:
    """Return the SHA-256 of what `render` makes of one question of each category.

    Any change of the prompt changes it, so records made with another one are noticed.
    """
    sha = hashlib.sha256()
    for row in CATEGORIES.values():
        choices = row.labels or ("first", "second")
        question = Question("probe", row.name, "text", tuple(choices), 0)
        sha.update(repr((row.name, render(question))).encode())
    return sha.hexdigest()


def parse(text: str, question: Question) -> int | None:
    """Return the index of the choice that a generated text names, or None if it names none.

    The rules are the harness's; upper and lower case are the same to all of them.

    A letter is what follows `ANSWER` and a colon in the last line that starts with it and holds
    nothing more, or has a full stop behind it. Only where there is no such line, the last
    `ANSWER` anywhere counts, up to the first character that is neither letter, digit, space nor
    comma. Whatever is not one letter of the choices, be it two letters, a word or a letter in
    Markdown, is no answer, even if an earlier line has one. Source: `multiple_choice` of
    inspect_ai since its pull request 3910, which made the last one count. Releases since its
    pull requests 4912 and 5170 forgive commas and Markdown around the letter, too.

    In a category with fixed labels it is the first run of letters followed by digits, and a dash
    and letters if they come next. Source: `src/evals/three_gpp/three_gpp.py` of gsma-labs/evals.
    `RAN_AH1` can never be given: the run is `AH1`. By this rule nobody can score more than
    93.55 % on ot-full; it stays as it is for the sake of comparison.
    """
    if _labelled(question):
        group = GROUP.search(text)
        wanted = group[0].lower() if group else None
        names = [choice.lower() for choice in question.choices]
        return names.index(wanted) if wanted in names else None
    # Runs of spaces match in as many ways as they can be cut in three; one space matches the same.
    text = re.sub(" +", " ", text)
    found = LINE.findall(text) or INSIDE.findall(text)
    letter = found[-1].strip().upper() if found else ""
    letters = LETTERS[: len(question.choices)]
    return letters.index(letter) if len(letter) == 1 and letter in letters else None


def _labelled(question: Question) -> bool:
    return bool(question.category) and bool(CATEGORIES[question.category].labels)
