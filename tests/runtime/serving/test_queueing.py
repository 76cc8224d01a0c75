"""Who is computed next: fair, bounded, never too late."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tel_edge.runtime.serving.queueing import Bounds, Flow, Job, Queue, Refused

DECODE = 100


def queue(rate: float = 1000.0, **of: float) -> Queue[None]:
    return Queue(Bounds(DECODE, **of), rate)  # type: ignore[arg-type]


def job(name: str, tokens: int = 10, key: str = "k", adapter: str | None = "a",
        until: float = math.inf) -> Job[None]:  # fmt: skip
    return Job(name, (key, adapter), tokens, None, until)


def names(turn: list[Job[None]]) -> str:
    return " ".join(job.name for job in turn)


def test_a_decode_is_filled_in_order() -> None:
    made = queue()
    for at in range(12):
        made.admit(job(str(at)), 0)
    assert names(made.turn()) == "0 1 2 3 4 5 6 7 8 9"
    assert names(made.turn()) == "10 11"
    assert (made.turn(), len(made), made.tokens) == ([], 0, 0)


def test_room_that_is_left_goes_to_what_is_short_enough() -> None:
    made = queue()
    for name, tokens in {"a": 60, "b": 60, "c": 30, "d": 45, "e": 10, "f": 70}.items():
        made.admit(job(name, tokens), 0)
    assert names(made.turn()) == "a c e"
    # Who was passed is the first of the next one.
    assert names(made.turn()) == "b"
    assert names(made.turn()) == "d"
    assert names(made.turn()) == "f"
    # And nobody is looked for far behind.
    for at in range(20):
        made.admit(job(str(at), 60), 0)
    made.admit(job("short"), 0)
    assert names(made.turn()) == "0"


def test_flows_take_turns_and_an_adapter_never_mixes() -> None:
    made = queue()
    for at in range(40):
        made.admit(job(f"a{at}"), 0)
    made.admit(job("b", adapter="b"), 0)
    made.admit(job("bare", adapter=None), 0)
    turns = [made.turn() for _ in range(3)]
    assert [len(turn) for turn in turns] == [10, 1, 1]
    assert [turn[0].flow[1] for turn in turns] == ["a", "b", None]


def test_room_is_given_to_others_of_the_same_adapter_who_pay_for_it() -> None:
    made = queue()
    made.admit(job("one", 40, key="x"), 0)
    for at in range(8):
        made.admit(job(f"y{at}", 30, key="y"), 0)
    assert names(made.turn()) == "one y0 y1"
    assert made.flows == 1
    made.admit(job("again", 40, key="x"), 0)
    # y has 60 tokens of its turn already, so its 40 are one more; x is a guest this time.
    assert names(made.turn()) == "y2 again"


def test_what_is_longer_than_a_decode_goes_alone() -> None:
    made = queue()
    made.admit(job("long", 350), 0)
    made.admit(job("short"), 0)
    made.admit(job("other", key="z", adapter="b"), 0)
    assert names(made.turn()) == "long"
    assert names(made.turn()) == "other"
    assert names(made.turn()) == "short"


def test_the_bound_counts_tokens_but_some_questions_always_wait() -> None:
    made = queue(rate=10.0, seconds=60.0, fewest=3)
    for at in range(3):
        made.admit(job(str(at), 1000), 0)
    with pytest.raises(Refused) as full:
        made.admit(job("more", 10), 0)
    assert full.value.reason == "full"
    assert full.value.after == pytest.approx((3010 - 600) / 10)
    assert len(made) == 3


def test_what_would_be_late_is_refused_at_once_and_what_is_late_goes() -> None:
    made = queue(rate=100.0)
    made.admit(job("first", 100, until=5.0), 0)
    with pytest.raises(Refused) as late:
        made.admit(job("second", 100, until=1.5), 0)
    assert (late.value.reason, late.value.after) == ("late", 1.0)
    # In a flow of its own it waits for one decode of the other.
    assert made.admit(job("third", 10, key="z", until=1.5), 0) == pytest.approx(1.1)
    assert [one.name for one in made.late(4.9)] == ["third"]
    assert [one.name for one in made.late(5.0)] == ["first"]
    assert (len(made), made.flows) == (0, 0)


def test_a_cancelled_job_is_never_computed() -> None:
    made = queue()
    for name in "abc":
        made.admit(job(name), 0)
    assert made.cancel("b")
    assert not made.cancel("b")
    assert names(made.turn()) == "a c"
    assert not made.cancel("a")


@settings(deadline=None, max_examples=60)
@given(
    some.lists(
        some.tuples(some.sampled_from("xyz"), some.sampled_from(["a", "b", None]),
                    some.integers(1, 2 * DECODE)),
        max_size=60,
    ),
    some.integers(1, DECODE),
)  # fmt: skip
def test_a_lone_request_waits_for_a_decode_of_every_other_flow(
    backlog: list[tuple[str, str | None, int]], own: int
) -> None:
    made = queue(rate=1e9)
    for at, (key, adapter, tokens) in enumerate(backlog):
        made.admit(job(str(at), tokens, key, adapter), 0)
    others = made.flows
    made.admit(job("lone", own, key="lone", adapter="lone"), 0)
    seen: list[str] = []
    waiting: dict[Flow, list[str]] = {}
    for at, (key, adapter, _) in enumerate(backlog):
        waiting.setdefault((key, adapter), []).append(str(at))
    waiting["lone", "lone"] = ["lone"]
    while turn := made.turn():
        assert len({one.flow[1] for one in turn}) == 1
        assert len(turn) == 1 or sum(one.tokens for one in turn) <= DECODE
        seen.append(names(turn))
        # Whoever is passed was in no turn of its own flow's, which the first always is.
        for flow in {one.flow for one in turn}:
            assert waiting[flow][0] in {one.name for one in turn}
        for one in turn:
            waiting[one.flow].remove(one.name)
    assert seen.index("lone") <= others
    assert not any(waiting.values())
    assert (len(made), made.tokens) == (0, 0)
