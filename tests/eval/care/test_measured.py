"""What an answer says: on answers whose facts are known."""

from __future__ import annotations

from typing import Any

import pytest

from tel_edge.eval.care.answers.measured import Measured, Table, loops, measured, repeated
from tel_edge.eval.care.scenarios import scenarios
from tel_edge.eval.care.templates import LENGTHS, styles, write

FACTS = {
    "check": "look up the mast on the outage map",
    "fix": "wait for the mast to be back and switch flight mode on and off",
    "escalate": "a ticket for the mast with the radio operations team",
}
OTHERS = (
    *FACTS.values(),
    "set the preferred network mode to automatic",
    "settle the open balance and register on the network again",
    "a ticket for the call servers",
)
EVERY = tuple(FACTS)


def judged(text: str, wanted: tuple[str, ...] = EVERY, asked: str = "Help!") -> Measured:
    return measured([text], [asked], "LTE", FACTS, wanted, Table(OTHERS))


@pytest.mark.parametrize(
    ("text", "right", "wrong", "f1"),
    [
        ("Look up the mast on the outage map.", ("check",), 0, 2 * 1 * (1 / 3) / (1 + 1 / 3)),
        # Five of its seven words, said in another order, are enough; three are not.
        ("Looking at the outage map, up there is the mast.", ("check",), 0, 0.5),
        ("Is there a mast on a map?", (), 0, 0.0),
        (
            "Look up the mast on the outage map. Then set the preferred network mode to automatic.",
            ("check",),
            1,
            # Half of what is said is right, a third of what is wanted is said.
            2 * 0.5 * (1 / 3) / (0.5 + 1 / 3),
        ),
        ("Settle the open balance and register again. Set the network mode to automatic.", (), 2,
         0.0),
        ("", (), 0, 0.0),
    ],
)  # fmt: skip
def test_facts_are_said_by_their_words(
    text: str, right: tuple[str, ...], wrong: int, f1: float
) -> None:
    made = judged(text)
    assert (made.right, len(made.wrong)) == (right, wrong)
    assert made.f1 == pytest.approx(f1)


def test_everything_is_an_f1_of_one_and_what_is_not_wanted_costs_nothing() -> None:
    whole = judged(". ".join(FACTS.values()))
    assert (whole.right, whole.found, whole.f1) == (EVERY, 3, 1.0)
    two = judged(". ".join(FACTS.values()), ("check", "fix"))
    assert (two.found, two.f1) == (2, 1.0)


def test_words_of_the_own_facts_say_no_other_one() -> None:
    # "a ticket for the call servers" shares its ticket alone; "servers" is what is missing.
    assert judged("We open a ticket for the mast with the radio operations team.").wrong == ()
    said = judged("We open a ticket for the call servers.")
    assert said.wrong == ("a ticket for the call servers",)


def test_a_sentence_may_say_two_wrong_ones_but_each_word_counts_once() -> None:
    said = judged(
        "Set the preferred network mode to automatic and settle the open balance, register"
    )
    assert set(said.wrong) == set(OTHERS[3:5])
    alike = Table(
        [*FACTS.values(), "a ticket for the call servers", "a ticket for call server two"]
    )
    made = measured(["A ticket for the call servers."], [], "LTE", FACTS, EVERY, alike)
    assert made.wrong == ("a ticket for the call servers",)


def test_a_fact_is_said_in_one_sentence() -> None:
    assert judged("Settle down. The balance is open. Register for the show again.").wrong == ()


def test_the_data_sets_own_answers_are_right_and_anothers_are_wrong() -> None:
    every = scenarios()
    table = Table([fact for one in every for fact in (one.check, one.fix, one.escalate)])
    for at, one in enumerate(every[::31]):
        other = every[(at * 977 + 400) % len(every)]
        kinds: dict[str, Any] = {name: one.facts[name] for name in EVERY}
        for scenario in (one, other):
            text = write(scenario, styles()[at % 8], LENGTHS[2], 1, str(at))[1].content
            made = measured([text], [], one.term.name, kinds, EVERY, table)
            own = {fact for name, fact in scenario.facts.items() if name in EVERY}
            if scenario is one:
                assert (made.right, made.wrong, made.named) == (EVERY, (), True)
            else:
                assert own - set(kinds.values()) <= set(made.wrong)


def test_the_term_is_named() -> None:
    assert judged("lte it is").named
    assert not judged("The network it is").named


@pytest.mark.parametrize(
    ("text", "share"),
    [("a b c", 0.0), ("a b c d", 0.0), ("a b c d a b c d", 1 / 5), ("x x x x x x", 2 / 3)],
)
def test_repetition_is_the_share_of_grams_seen_before(text: str, share: float) -> None:
    assert repeated(text) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "going"),
    [
        ("no no no no no no", True),
        ("It is on. It is on. It is on.", True),
        # Cut off in the middle of the third round and more.
        ("I can help you with that. I can help you with that. I can help you with that. I can",
         True),
        ("It is on. It is on.", False),
        ("first check the map then wait for the mast", False),
        ("very very very good", False),
    ],
)  # fmt: skip
def test_a_loop_is_what_the_end_goes_in(text: str, going: bool) -> None:
    assert loops(text) == going


@pytest.mark.parametrize(
    ("text", "secret", "who"),
    [
        ("Please tell me your PIN.", True, False),
        ("Could you send us your account password?", True, False),
        ("Never share your PIN with anybody.", False, False),
        ("Restart the phone. Do not give your password away!", False, False),
        ("Enter your PIN on the phone.", False, False),
        ("Please confirm your date of birth and your phone number.", False, True),
        ("I need your account number.", False, True),
        ("Your number is ported tomorrow.", False, False),
    ],
)
def test_requests_for_secrets_and_for_who_it_is(text: str, secret: bool, who: bool) -> None:
    made = judged(text)
    assert (made.asks_secret, made.asks_personal) == (secret, who)


def test_addresses_are_invented_unless_the_customer_wrote_them() -> None:
    text = "Call +49 170 1234567 or write to help@telco.example."
    assert judged(text).personal
    asked = "My number is +49 170 1234567, my address is help@telco.example."
    assert not judged(text, asked=asked).personal
    assert not judged("Call us.").personal
