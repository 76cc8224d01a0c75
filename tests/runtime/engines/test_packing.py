"""What goes into a decode: tries against a model computed naively, bins, pieces and units."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tel_edge.runtime.engines import packing
from tel_edge.runtime.engines.packing import END, Cost, PackedEntry, Trie

VOCABULARY = 5
# Few tokens and short labels, so that many share beginnings and some begin others.
LABEL = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=5).map(tuple)
LABELS = st.lists(LABEL, min_size=1, max_size=12, unique=True).map(tuple)


def chances(seed: int, before: tuple[int, ...]) -> list[float]:
    """Return a random model's probabilities of all tokens after `before`; they sum to 1."""
    rng = random.Random(f"{seed} {before}")
    weights = [rng.random() + 1e-6 for _ in range(VOCABULARY)]
    return [weight / sum(weights) for weight in weights]


def naive(seed: int, label: tuple[int, ...], labels: Sequence[tuple[int, ...]]) -> float:
    """Return the probability that `label` comes and no longer label goes on behind it."""
    value = math.prod(chances(seed, label[:at])[token] for at, token in enumerate(label))
    onward = {other[len(label)] for other in labels if other[: len(label)] == label != other}
    return value * (1 - sum(chances(seed, label)[token] for token in onward))


def texts(made: Trie) -> list[tuple[int, ...]]:
    """Return the tokens from the prompt's end to each node, found by its branches and depth."""
    found = []
    for node in made.nodes:
        above = [
            other
            for other in made.nodes
            if other.depth <= node.depth and set(other.sequences) >= set(node.sequences)
        ]
        above.sort(key=lambda other: other.depth)
        assert [other.depth for other in above] == list(range(1, node.depth + 1))
        found.append(tuple(other.token for other in above))
    return found


@given(LABELS, st.integers(0, 1000))
def test_probabilities_are_those_of_the_whole_sequences(
    labels: tuple[tuple[int, ...], ...], seed: int
) -> None:
    made = packing.trie(labels)
    befores = texts(made)

    def read(node: int, token: int) -> float:
        return math.log(chances(seed, () if node == END else befores[node])[token])

    got = [math.exp(value) for value in made.logprobs(read)]
    # What is left of 1 after all next tokens is rounded.
    assert got == pytest.approx([naive(seed, label, labels) for label in labels], abs=1e-12)
    assert math.fsum(got) <= 1 + 1e-12


@given(LABELS)
def test_a_trie_is_a_tree_of_what_is_inside_labels(labels: tuple[tuple[int, ...], ...]) -> None:
    made = packing.trie(labels)
    inside = {label[:at] for label in labels for at in range(1, len(label))}
    befores = texts(made)
    assert len(befores) == len(set(befores))
    assert set(befores) == inside
    # Parents first, since a token is decoded after those that it sees.
    for at, before in enumerate(befores):
        assert len(before) == 1 or before[:-1] in befores[:at]
    leaves = [before for before in inside if not any(o[:-1] == before for o in inside)]
    assert made.branches == max(1, len(leaves))
    used = {sequence for node in made.nodes for sequence in node.sequences}
    assert used == set(range(len(leaves)))
    for node, before in zip(made.nodes, befores, strict=True):
        below = sum(leaf[: len(before)] == before for leaf in leaves)
        assert len(node.sequences) == len(set(node.sequences)) == below
    # Every token that is needed is read, and at the right node.
    reads = made.reads()
    for label, path in zip(labels, made.paths, strict=True):
        assert [token for _, token in path] == list(label)
        for at, (node, token) in enumerate(path):
            assert (() if node == END else befores[node]) == label[:at]
            assert token in reads[node]


def test_letters_need_no_tokens_and_one_branch() -> None:
    made = packing.trie(((7,), (8,), (9,)))
    assert (made.nodes, made.branches, made.reads()) == ((), 1, {END: (7, 8, 9)})
    assert made.ends == (None, None, None)


def test_a_label_that_others_begin_with_ends_where_they_do_not_go_on() -> None:
    """P(yes) is half; P(yes and no) is half of that; P(yes but) a tenth."""
    made = packing.trie(((1,), (1, 2, 3), (1, 4)))
    values = {(END, 1): 0.5, (0, 2): 0.5, (0, 4): 0.2, (1, 3): 1.0}
    got = made.logprobs(lambda node, token: math.log(values[node, token]))
    assert [math.exp(value) for value in got] == pytest.approx([0.5 * 0.3, 0.25, 0.1])


def test_a_label_that_cannot_end_is_next_to_impossible_and_finite() -> None:
    made = packing.trie(((1,), (1, 2)))
    # A little above 1, as sums of rounded numbers are.
    short, long = made.logprobs(lambda node, token: 1e-16 if node == 0 else -1.0)
    assert -1000 < short < -600
    assert long == pytest.approx(-1)


def test_long_labels_take_neither_depth_nor_squares() -> None:
    labels = tuple((*range(20_000), last) for last in range(50))
    began = time.process_time()
    made = packing.trie(labels)
    assert (len(made.nodes), made.branches) == (20_000, 1)
    assert time.process_time() - began < 5


# Prompts of few tokens, so that many begin alike.
PROMPT = st.lists(st.integers(0, 1), min_size=1, max_size=12)
COSTS = st.builds(Cost, st.integers(0, 9), st.integers(1, 3), st.integers(1, 4))
ROOM = Cost(40, 8, 10)


def distinct(prompts: Sequence[Sequence[int]], start: int) -> int:
    """Return how many tokens from `start` on differ in what is before them or who reads them."""
    found = set()
    for number, prompt in enumerate(prompts):
        inner = {tuple(prompt[:at]) for at in range(start + 1, len(prompt))}
        found |= inner | {(*prompt, -1 - number)}
    return len(found)


def over(
    prompts: Sequence[Sequence[int]], costs: Sequence[Cost], start: int, room: Cost = ROOM
) -> bool:
    return (
        distinct(prompts, start) + sum(cost.tokens for cost in costs) > room.tokens
        or sum(cost.sequences for cost in costs) > room.sequences
        or sum(cost.outputs for cost in costs) > room.outputs
    )


@given(
    st.lists(st.tuples(PROMPT, COSTS), max_size=30),
    st.lists(st.integers(0, 1), max_size=4),
)
def test_bins_hold_every_prompt_once_and_never_too_much(
    pairs: list[tuple[list[int], Cost]], beginning: list[int]
) -> None:
    prompts, costs = [beginning + prompt for prompt, _ in pairs], [cost for _, cost in pairs]
    start = len(beginning)
    made = packing.bins(prompts, start, costs, ROOM)
    assert sorted(at for held in made for at in held) == list(range(len(prompts)))
    for held in made:
        mine, theirs = [prompts[at] for at in held], [costs[at] for at in held]
        # Those that begin alike are neighbours, as `tree` takes them.
        assert mine == sorted(mine)
        assert len(held) == 1 or not over(mine, theirs, start)
    firsts = [min(held) for held in made]
    assert firsts == sorted(firsts)
    # As many as fit: the next in order would have been too much.
    in_order = sorted(made, key=lambda held: [prompts[at] for at in held])
    for one, other in itertools.pairwise(in_order):
        whole = [*one, other[0]]
        assert over([prompts[at] for at in whole], [costs[at] for at in whole], start) or (
            prompts[one[-1]] == prompts[other[0]]
        )


def test_a_prompt_larger_than_the_room_is_alone() -> None:
    prompts, cost = [[1] * 9, [2] * 50, [3] * 9], Cost(0, 1, 1)
    assert packing.bins(prompts, 0, [cost] * 3, ROOM) == [[0], [1], [2]]
    assert packing.bins(prompts[:1] + prompts[2:], 0, [cost] * 2, ROOM) == [[0, 1]]
    for room in (Cost(17, 9, 9), Cost(99, 1, 9), Cost(99, 9, 1)):
        assert len(packing.bins(prompts[:1] + prompts[2:], 0, [cost] * 2, room)) == 2


def test_what_prompts_share_is_counted_once() -> None:
    start = list(range(30))
    prompts = [[*start, at] for at in range(9)]
    costs = [Cost(0, 1, 1)] * 9
    assert len(packing.bins(prompts, 0, costs, Cost(39, 99, 99))) == 1
    assert len(packing.bins(prompts, 0, costs, Cost(38, 99, 99))) == 2
    # What is kept of them is not computed at all.
    assert len(packing.bins(prompts, 30, costs, Cost(9, 99, 99))) == 1
    assert packing.bins([], 0, [], ROOM) == []


@given(
    st.lists(PROMPT, min_size=1, max_size=12).map(sorted),
    st.lists(st.integers(0, 1), max_size=4),
    st.data(),
)
def test_a_tree_holds_every_prompt_in_its_sequences(
    ends: list[list[int]], beginning: list[int], data: st.DataObject
) -> None:
    prompts, start = [beginning + end for end in ends], len(beginning)
    numbers = iter(range(1, 99))
    counts = data.draw(st.lists(st.integers(1, 3), min_size=len(ends), max_size=len(ends)))
    sequences = [tuple(next(numbers) for _ in range(count)) for count in counts]
    made = packing.tree(prompts, start, sequences)
    assert len(made) == len(prompts)
    flat = [entry for part in made for entry in part]
    assert len(flat) == distinct(prompts, start)
    for number, (prompt, mine) in enumerate(zip(prompts, sequences, strict=True)):
        for sequence in mine:
            seen = [entry for entry in flat if sequence in entry.sequences]
            # Each position once and in this order, or it would see others.
            assert [entry.position for entry in seen] == list(range(start, len(prompt)))
            assert [entry.token for entry in seen] == prompt[start:]
        # The last token is its own, and read for it.
        *inner, last = made[number]
        assert (last.position, last.sequences, last.read) == (len(prompt) - 1, mine, (number, END))
        assert all(entry.read is None for entry in inner)
    # A token that two of them share is shared by all sequences of both.
    for entry in flat:
        assert len(entry.sequences) == len(set(entry.sequences))
        for mine in sequences:
            assert set(mine) <= set(entry.sequences) or not set(mine) & set(entry.sequences)


PROMPTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=80), min_size=1, max_size=6)


@given(PROMPTS, st.lists(st.integers(0, 1), max_size=60), st.integers(0, 100))
def test_units_are_what_all_prompts_begin_with(
    ends: list[list[int]], start: list[int], known: int
) -> None:
    prompts = [start + end for end in ends]
    made = packing.units(prompts, known)
    beginning = [token for unit in made for token in unit]
    assert all(made)
    assert len(made) <= 2
    for prompt in prompts:
        assert prompt[: len(beginning)] == beginning
        assert len(beginning) < len(prompt)
    # Nothing is said to be known but what is, whoever is asked beside.
    same = min(packing.common(a, b) for a in prompts for b in prompts)
    if made and known:
        assert len(made[0]) == min(known, same, min(map(len, prompts)) - 1)


def test_units_by_chance_have_to_be_worth_it() -> None:
    start = list(range(100))
    prompts = [[*start, 1, 5], [*start, 2]]
    assert packing.units(prompts, 60) == [tuple(start[:60]), tuple(start[60:])]
    assert packing.units(prompts, 0) == [tuple(start)]
    near = 100 - packing.WORTH + 1
    assert packing.units(prompts, near) == [tuple(start[:near])]
    # One prompt shares with nobody by chance.
    assert packing.units(prompts[:1], 60) == [tuple(start[:60])]
    assert packing.units([[1], [2]], 0) == []


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 3), max_size=30),
    st.lists(st.integers(0, 3), max_size=30),
)
def test_common_beginnings(one: list[int], other: list[int]) -> None:
    at = packing.common(one, other)
    assert one[:at] == other[:at]
    assert at == min(len(one), len(other)) or one[at] != other[at]


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 9), st.integers(1, 5))
def test_pieces_are_as_large_as_they_may_be(reads: list[bool], tokens: int, outputs: int) -> None:
    entries = [
        PackedEntry(at, at, (0,), (at, END) if read else None) for at, read in enumerate(reads)
    ]
    made = list(packing.pieces(entries, tokens, outputs))
    assert [entry for part in made for entry in part] == entries

    def wanted(part: Sequence[PackedEntry]) -> int:
        return sum(entry.read is not None for entry in part)

    for part in made:
        assert 1 <= len(part) <= tokens
        assert wanted(part) <= outputs
    for one, other in itertools.pairwise(made):
        assert len(one) == tokens or wanted([*one, other[0]]) > outputs
