"""Glossary, scenarios, their split, and dialogues from templates."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tel_edge.eval.care import gates, templates
from tel_edge.eval.care.dialogues import plan
from tel_edge.eval.care.scenarios import Scenario, scenarios, slug, split
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.conversation import Message


@pytest.fixture(scope="module")
def every() -> tuple[Scenario, ...]:
    return scenarios()


def test_there_are_1560_different_scenarios(every: tuple[Scenario, ...]) -> None:
    assert len(every) == len({one.id for one in every}) == len({one.brief for one in every}) == 1560
    terms = {one.term.name: one.term for one in every}
    assert len(terms) == 52
    assert len({term.definition for term in terms.values()}) == 52
    assert len({term.family for term in terms.values()}) == 8
    assert len({one.cause for one in every}) == 10
    assert len({one.context for one in every}) == 3
    for one in every:
        for name in ("symptom", "check", "fix", "escalate"):
            words = getattr(one, name).split()
            assert 3 <= len(words) <= 16, (one.id, name)
    # Of two families or causes nothing is the same.
    for name in ("symptom", "check", "fix", "escalate"):
        assert len({getattr(one, name) for one in every}) == 80


@pytest.mark.parametrize("seed", [42, 1, 7])
def test_the_split_is_by_scenario(every: tuple[Scenario, ...], seed: int) -> None:
    parts = split(every, seed)
    sizes = {name: len(part) for name, part in parts.items()}
    assert sizes == {"train": 1152, "validation": 144, "test": 144, "unseen": 120}
    assert Counter(one.id for part in parts.values() for one in part).most_common(1)[0][1] == 1
    unseen = {one.term for one in parts["unseen"]}
    assert len(unseen) == len({term.family for term in unseen}) == 4
    assert not unseen & {one.term for name in sizes if name != "unseen" for one in parts[name]}
    for name in ("validation", "test"):
        assert {*Counter(one.cause for one in parts[name]).values()} <= {14, 15}
    assert split(every, seed) == parts
    assert split(every, seed + 1) != parts


GLOSSARY = "term\tfamily\tdefinition\n" + "".join(
    f"Word {at}\tvoice\tthe meaning of {at}\n" for at in range(6)
)


def test_a_glossary_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "glossary.tsv"
    file.write_text("\ufeff" + GLOSSARY)
    made = scenarios(file)
    assert len(made) == 6 * 10 * 3
    assert made[0].id == "word-0.coverage.home"
    assert {name: len(part) for name, part in split(made, 1).items()} == {
        "train": 48, "validation": 6, "test": 6, "unseen": 120,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("word\tmeaning\n", "line 1: term family definition"),
        (GLOSSARY + "Word 7\tvoice\n", "line 8: 3 texts"),
        (GLOSSARY + "Word 7\tcooking\tx\n", "line 8: family 'cooking' is none of radio"),
        (GLOSSARY + "word-1\tvoice\tx\n", "line 8: term 'word-1' reads like another"),
        ("term\tfamily\tdefinition\nA\tvoice\tx\n", "1 terms, more than 4"),
        (GLOSSARY + "漫游\tvoice\tx\n", "line 8: term '漫游' has no letter"),
        (GLOSSARY + "a\tvoice\t" + "x" * 140_000 + "\n", "field larger than"),
        ("", "line 1"),
    ],
)
def test_what_is_no_glossary(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "glossary.tsv"
    file.write_text(text)
    with pytest.raises(InputError, match=said):
        scenarios(file)
    with pytest.raises(InputError, match="nowhere"):
        scenarios(tmp_path / "nowhere")


def test_styles_and_lengths_are_dealt_evenly(every: tuple[Scenario, ...]) -> None:
    wanted = [*plan(every, 6, (1, 3), 42)]
    assert len({one.id for one in wanted}) == len(wanted) == 9360
    counts = Counter((one.style, one.length) for one in wanted)
    assert len(counts) == 24
    assert max(counts.values()) - min(counts.values()) <= 2
    assert {*Counter(one.turns for one in wanted)} == {1, 2, 3}
    assert [*plan(every[:9], 6, (1, 3), 42)] == wanted[:54]


def test_every_template_passes_the_gates(every: tuple[Scenario, ...]) -> None:
    judged = gates.gate([one.fix for one in every])
    seen = set()
    for at, one in enumerate(every):
        for turns in range(1, templates.MOST_TURNS + 1):
            style = templates.styles()[(at + turns) % 8]
            length = templates.LENGTHS[(at // 3 + turns) % 3]
            made = templates.write(one, style, length, turns, f"1 {one.id}")
            assert judged(one, made, turns) is None, made
            assert len(made) == 2 * turns
            assert not any("{" in message.content for message in made)
            assert one.escalate in made[-1].content or turns == 4 or length == "short"
            seen.add(made)
    assert len(seen) == 4 * 1560


SAID = "First, {check}. Then {fix}. That is about {term}."


def dialogue(
    one: Scenario, answer: str = SAID, asked: str = "It does not work here."
) -> list[Message]:
    text = answer.format(check=one.check, fix=one.fix, term=one.term.name)
    return [Message("user", asked), Message("assistant", text)]


@pytest.mark.parametrize(
    ("answer", "asked", "gate"),
    [
        (SAID, "It does not work here.", None),
        ("Then {fix}. That is about {term}.", "It does not work.", "check"),
        ("First, {check}. That is about {term}, my friend.", "It does not work.", "fix"),
        ("First, {check}. Then {fix}.", "It does not work here.", "term"),
        (SAID + " Write to jo@example.org.", "It does not work.", "personal data"),
        (SAID, "It does not work, call me on +49 170 123 4567.", "personal data"),
        (SAID + " Please send me your PIN.", "It does not work.", "secret"),
        (SAID + " What is your service password?", "It does not work.", "secret"),
        (SAID + " Write to bob (at) evil.example.", "It does not work.", "personal data"),
        (SAID, "It does not work, 0170.123.4567 is me.", "personal data"),
        (SAID + " As an A.I. I am not sure.", "It does not work.", "about itself"),
        (SAID + " \ud800", "It does not work.", "text"),
        (SAID + " As an AI I am not sure.", "It does not work.", "about itself"),
        (SAID + " Also register the new phone in the device list.", "It does not.", "other fix"),
        (SAID, "No.", "length"),
        (SAID + " so" * 400, "It does not work.", "length"),
    ],
)
def test_the_gates(every: tuple[Scenario, ...], answer: str, asked: str, gate: str | None) -> None:
    judged = gates.gate([one.fix for one in every])
    found = judged(every[0], dialogue(every[0], answer, asked), 1)
    assert (found.gate if found else None) == gate


@pytest.mark.parametrize("roles", ["assistant", "user", "user user", "assistant user", ""])
def test_roles_take_turns(every: tuple[Scenario, ...], roles: str) -> None:
    judged = gates.gate([])
    made = [Message(role, dialogue(every[0])[1].content) for role in roles.split()]
    found = judged(every[0], made, 1)
    assert found
    assert found.gate == "roles"
    assert judged(every[0], dialogue(every[0]), 1) is None
    assert judged(every[0], dialogue(every[0]), 2)
    # Whose text nobody looks at.
    assert judged(every[0], [Message("system", "jo@example.org"), *dialogue(every[0])], 1)


def test_a_fact_may_be_said_in_other_forms() -> None:
    fact = "turn on calls over Wi-Fi for the basement"
    assert gates.said("Turning on Wi-Fi calls in the basement helps.", fact) == 1
    assert gates.said("Turn the phone off.", fact) < 0.5
    assert slug("5G NR / x") == "5g-nr-x"
