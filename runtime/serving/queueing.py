"""Who is computed next: fair between clients and adapters, bounded, and never too late.

A flow is a client's key and what may be computed together, which is what goes through one adapter.
Flows take turns, a decode each, and inside a flow the first comes first; the room that is left in a
decode goes to what is short enough for it, and to other flows of the same group, which pay for it.
So a request alone in its flow waits for at most one decode of every other flow and the one that
runs. Knows no engine, no clock and no threads: the caller passes the time and holds the lock.

Source: M. Shreedhar, G. Varghese, "Efficient fair queueing using deficit round robin", 1996.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")
# How many that find no room in a decode later ones may pass.
PASSED = 8
# A client's key, and the group that what is computed together has in common.
Flow = tuple[str, Hashable]


@dataclass(frozen=True)
class Job(Generic[T]):
    """One question that waits. `tokens` is what it takes; `until` is when it is too late."""

    name: str
    flow: Flow
    tokens: int
    payload: T
    until: float = math.inf


@dataclass(frozen=True)
class Bounds:
    """How much may wait: `seconds` of work, but `fewest` questions in any case.

    `decode` is the most tokens that are computed together.
    """

    decode: int
    seconds: float = 60.0
    fewest: int = 256


class Refused(Exception):
    """A question that is not taken; `reason` is "full" or "late", `after` seconds to come again."""

    def __init__(self, reason: str, after: float) -> None:
        super().__init__(reason)
        self.reason, self.after = reason, after


@dataclass
class _Line(Generic[T]):
    jobs: deque[Job[T]] = field(default_factory=deque)
    tokens: int = 0
    credit: int = 0


class Queue(Generic[T]):
    """The questions that wait, by flow. `rate` is how many tokens a second are computed."""

    def __init__(self, bounds: Bounds, rate: float) -> None:
        self.bounds, self.rate = bounds, rate
        self._lines: OrderedDict[Flow, _Line[T]] = OrderedDict()
        self._where: dict[str, Flow] = {}
        self.tokens = 0

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._where)

    def groups(self) -> set[Hashable]:
        """Return the groups that something waits for."""
        return {group for _, group in self._lines}

    @property
    def flows(self) -> int:
        """Return how many flows wait."""
        return len(self._lines)

    def admit(self, job: Job[T], now: float, running: int = 0) -> float:
        """Take a job and return the seconds until it is likely done.

        `running` is the tokens that are being computed. Raises `Refused` for one that is too much,
        or that would be too late.
        """
        wait = self.expected(job, running)
        bound = self.rate * self.bounds.seconds
        if len(self) >= self.bounds.fewest and self.tokens + job.tokens > bound:
            over = self.tokens + job.tokens - bound
            raise Refused("full", max(1.0, over / self.rate))
        if now + wait > job.until:
            raise Refused("late", max(1.0, now + wait - job.until))
        line = self._lines.setdefault(job.flow, _Line())
        line.jobs.append(job)
        line.tokens += job.tokens
        self.tokens += job.tokens
        self._where[job.name] = job.flow
        return wait

    def again(self, job: Job[T], back: int) -> None:
        """Put a job that was taken out at the front of its flow, which gets `back` tokens back."""
        line = self._lines.setdefault(job.flow, _Line())
        line.jobs.appendleft(job)
        line.credit += back
        line.tokens += job.tokens
        self.tokens += job.tokens
        self._where[job.name] = job.flow

    def expected(self, job: Job[T], running: int = 0) -> float:
        """Return the seconds until a job would be done if it came now."""
        line = self._lines.get(job.flow)
        own = (line.tokens if line else 0) + job.tokens
        turns = -(-own // self.bounds.decode)
        others = sum(
            min(other.tokens, turns * self.bounds.decode)
            for flow, other in self._lines.items()
            if flow != job.flow
        )
        return (running + own + others) / self.rate

    def cancel(self, name: str) -> bool:
        """Take a job out, and return whether it still waited."""
        flow = self._where.get(name)
        if flow is None:
            return False
        line = self._lines[flow]
        for job in line.jobs:
            if job.name == name:
                line.jobs.remove(job)
                self._gone(flow, job)
                break
        return True

    def late(self, now: float) -> Iterator[Job[T]]:
        """Yield and take out what is too late by now."""
        for flow in list(self._lines):
            for job in [job for job in self._lines[flow].jobs if job.until <= now]:
                self._lines[flow].jobs.remove(job)
                yield job
                self._gone(flow, job)
                if flow not in self._lines:
                    break

    def turn(self) -> list[Job[T]]:
        """Take out what the next decode computes, all of one group; nothing if none waits."""
        taken: list[Job[T]] = []
        while self._lines and not taken:
            flow, line = next(iter(self._lines.items()))
            self._lines.move_to_end(flow)
            # One that was a guest of others, or took more than a decode, has to wait a turn for it.
            line.credit += self.bounds.decode
            taken = self._taken(flow, line, self.bounds.decode, False)
        if not taken:
            return []
        left = self.bounds.decode - sum(job.tokens for job in taken)
        for other in [one for one in self._lines if one[1] == flow[1] and one != flow]:
            if left <= 0:
                break
            more = self._taken(other, self._lines[other], left, True)
            left -= sum(job.tokens for job in more)
            taken += more
        return taken

    def _taken(self, flow: Flow, line: _Line[T], room: int, guest: bool) -> list[Job[T]]:
        taken: list[Job[T]] = []
        passed = 0
        for job in list(islice(line.jobs, room)):
            # What is longer than a decode goes alone, in its own flow's turn, and is paid later.
            alone = not taken and not guest and job.tokens > self.bounds.decode
            fits = job.tokens <= room and (guest or job.tokens <= line.credit)
            if not guest and taken and job.tokens > room and passed < PASSED:
                # It goes in the next turn anyway, which no guest of others could be sure of.
                passed += 1
                continue
            if not (fits or (alone and line.credit > 0)):
                break
            line.jobs.remove(job)
            taken.append(job)
            line.credit -= job.tokens
            room -= job.tokens
            self._gone(flow, job)
            if alone:
                break
        return taken

    def _gone(self, flow: Flow, job: Job[T]) -> None:
        line = self._lines[flow]
        line.tokens -= job.tokens
        self.tokens -= job.tokens
        del self._where[job.name]
        if not line.jobs:
            # A flow that waits for nothing saves nothing up, and owes nothing.
            del self._lines[flow]
