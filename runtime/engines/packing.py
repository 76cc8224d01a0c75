"""Which tokens go into one decode, and what is read from it. Knows no engine.

Prompts that begin alike are a tree, and behind each of them its labels are a trie, whose inner
tokens are known before anything is decoded. So all of it goes into one decode: a token belongs to
the sequences of all leaves below it, and attention sees a token's own branch only.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

END = -1
# The most sequences that the labels of one prompt may take.
BRANCHES = 63
# Tokens that prompts have to share by chance before they are computed apart.
WORTH = 32


@dataclass(frozen=True)
class Node:
    """An inner token of the labels' trie: `depth` tokens after the prompt, 1 the first.

    `sequences` are numbers, counted from 0, of the branches that run through it.
    """

    token: int
    depth: int
    sequences: tuple[int, ...]


@dataclass(frozen=True)
class Trie:
    """The labels of one prompt.

    `nodes` are the tokens to decode after the prompt, parents first; `branches` is how many
    sequences that takes. `paths` holds, for each label, pairs of (node whose logits are read, or
    `END` for the prompt's end; token); `ends` pairs of (last node; tokens with which longer labels
    go on there), None where none does.
    """

    nodes: tuple[Node, ...]
    branches: int
    paths: tuple[tuple[tuple[int, int], ...], ...]
    ends: tuple[tuple[int, tuple[int, ...]] | None, ...]

    def reads(self) -> dict[int, tuple[int, ...]]:
        """Return which tokens' logits are read at which node."""
        found: dict[int, dict[int, None]] = {}
        for path in self.paths:
            for node, token in path:
                found.setdefault(node, {})[token] = None
        return {node: tuple(tokens) for node, tokens in found.items()}

    def logprobs(self, read: Callable[[int, int], float]) -> tuple[float, ...]:
        """Return the log-probability of each label; `read(node, token)` gives that of a token.

        A label that longer ones begin with has the probability that it comes and that none of
        their next tokens does, so the probabilities of all labels sum to at most 1.
        """
        made = []
        for path, end in zip(self.paths, self.ends, strict=True):
            value = math.fsum(read(node, token) for node, token in path)
            if end is not None:
                node, children = end
                going_on = math.fsum(math.exp(read(node, child)) for child in children)
                value += math.log(max(1 - going_on, 1e-300))
            made.append(value)
        return tuple(made)


@lru_cache(256)
def trie(labels: tuple[tuple[int, ...], ...]) -> Trie:
    """Return the trie of `labels`, none of which may be empty."""
    # What follows each node, and the number of each inner token by (node before it, token).
    following: defaultdict[int, dict[int, None]] = defaultdict(dict)
    inner: dict[tuple[int, int], int] = {}
    paths: list[tuple[tuple[int, int], ...]] = []
    for label in labels:
        at = END
        path: list[tuple[int, int]] = []
        for token in label:
            # Only what something follows is decoded.
            if path:
                at = inner.setdefault(path[-1], len(inner))
            following[at][token] = None
            path.append((at, token))
        paths.append(tuple(path))
    lasts = [inner.get(path[-1]) for path in paths]
    ends = tuple(None if last is None else (last, tuple(following[last])) for last in lasts)
    below: list[list[int]] = [[] for _ in inner]
    depths: list[int] = []
    for before, _ in inner:
        depths.append(1 if before == END else depths[before] + 1)
    branches = 0
    # Parents come first, so backwards all that is below a node is known.
    for (before, _), at in reversed(inner.items()):
        if not below[at]:
            below[at].append(branches)
            branches += 1
        if before != END:
            below[before] += below[at]
    nodes = tuple(
        Node(token, depth, tuple(sequences))
        for (_, token), depth, sequences in zip(inner, depths, below, strict=True)
    )
    return Trie(nodes, max(branches, 1), tuple(paths), ends)


def units(prompts: Sequence[Sequence[int]], known: int) -> list[tuple[int, ...]]:
    """Return what all prompts begin with, in the parts in which it is computed.

    First the `known` tokens that prompts of their kind begin with, whoever is asked beside them;
    then, if it is worth a decode of its own, what these ones happen to share beyond. Every prompt
    keeps its last token to itself.
    """
    most = min(map(len, prompts)) - 1
    # What the first and the last in order share, all others between them share too.
    ordered = sorted(map(tuple, prompts))
    chance = min(most, common(ordered[0], ordered[-1]))
    # Prompts of two kinds may share less than the beginning of either.
    known = min(known, chance)
    ends = [known] + ([chance] if len(prompts) > 1 and chance - known >= WORTH else [])
    starts = [0, *ends[:-1]]
    return [
        tuple(prompts[0][start:end]) for start, end in zip(starts, ends, strict=True) if end > start
    ]


def common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return the length of the longest common beginning."""
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return at
    return min(len(one), len(other))


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens of two prompts can be one: each keeps its last token to itself."""
    return min(common(one, other), len(one) - 1, len(other) - 1)


@dataclass(frozen=True)
class Cost:
    """What a prompt needs of a decode beside its own tokens, or what a decode has room for."""

    tokens: int
    sequences: int
    outputs: int


def bins(
    prompts: Sequence[Sequence[int]], start: int, costs: Sequence[Cost], room: Cost
) -> list[list[int]]:
    """Return which prompts share a decode.

    In the order of their tokens, so that those that begin alike are together and what they share
    beyond `start` is computed once; as many as fit. A prompt larger than `room` is alone. Decodes
    come in the order of the first prompt that they hold, so that answers can go out early.
    """
    made: list[list[int]] = []
    free = [0, 0, 0]
    last: Sequence[int] = ()
    for at in sorted(range(len(prompts)), key=lambda i: tuple(prompts[i])):
        prompt, cost = prompts[at], costs[at]
        fresh = len(prompt) - max(start, shared(last, prompt)) if last else len(prompt) - start
        if not made or any(
            need > left
            for need, left in zip(
                (fresh + cost.tokens, cost.sequences, cost.outputs), free, strict=True
            )
        ):
            made.append([])
            free = [room.tokens, room.sequences, room.outputs]
            fresh = len(prompt) - start
        made[-1].append(at)
        free = [free[0] - fresh - cost.tokens, free[1] - cost.sequences, free[2] - cost.outputs]
        last = prompt
    return sorted(made, key=min)


@dataclass(frozen=True)
class PackedEntry:
    """One token of a decode; `read` is (item, node) where its logits are wanted."""

    token: int
    position: int
    sequences: tuple[int, ...]
    read: tuple[int, int] | None = None


def tree(
    prompts: Sequence[Sequence[int]], start: int, sequences: Sequence[tuple[int, ...]]
) -> list[list[PackedEntry]]:
    """Return the tokens from `start` on that are decoded for each prompt, in the order of `bins`.

    What a prompt shares with those before it is theirs: the token is in the sequences of all.
    """
    shares = [0, *(shared(one, other) for one, other in pairwise(prompts))]
    made = []
    for number, prompt in enumerate(prompts):
        begin = max(start, shares[number])
        # How far each of the next prompts shares this one's tokens; no later one does for longer.
        followers: list[tuple[int, tuple[int, ...]]] = []
        least = len(prompt)
        for share, theirs in zip(shares[number + 1 :], sequences[number + 1 :], strict=True):
            least = min(least, share)
            if least <= begin:
                break
            followers.append((least, theirs))
        entries = []
        for at in range(begin, len(prompt)):
            where = sequences[number]
            for end, theirs in followers:
                if at >= end:
                    break
                where += theirs
            read = (number, END) if at == len(prompt) - 1 else None
            entries.append(PackedEntry(prompt[at], at, where, read))
        made.append(entries)
    return made


def pieces(
    entries: Sequence[PackedEntry], tokens: int, outputs: int
) -> Iterator[list[PackedEntry]]:
    """Yield `entries` in parts of at most so many tokens and outputs each."""
    part: list[PackedEntry] = []
    wanted = 0
    for entry in entries:
        reads = entry.read is not None
        if part and (len(part) == tokens or (reads and wanted == outputs)):
            yield part
            part, wanted = [], 0
        part.append(entry)
        wanted += reads
    if part:
        yield part
