"""What the service counts, in Prometheus' names and text form."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from tel_edge.runtime.device.power import Power
from tel_edge.runtime.serving.problems import FULL

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """All counters of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        of: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter(
            "tel_requests", "Requests by endpoint and code.", ["endpoint", "code"], **of
        )
        self.seconds = Histogram(
            "tel_request_seconds", "Time of a request.", ["endpoint"], buckets=SECONDS, **of
        )
        self.questions = Counter("tel_questions", "Questions answered.", ["category"], **of)
        self.queued = Histogram(
            "tel_queue_seconds", "Time that a question waited.", buckets=SECONDS, **of
        )
        self.prompt = Counter("tel_prompt_tokens", "Tokens of prompts.", **of)
        self.decoded = Counter("tel_decoded_tokens", "Tokens that were computed.", **of)
        self.packed = Histogram(
            "tel_decode_questions", "Questions of a decode.", buckets=(1, 2, 4, 8, 16, 32, 63), **of
        )
        self.waiting = Gauge("tel_queue_requests", "Questions that wait.", **of)
        self.tokens = Gauge("tel_queue_tokens", "Tokens that wait.", **of)
        self.restarts = Gauge("tel_engine_restarts", "Times the engine was started again.", **of)
        self.reloads = Counter("tel_reloads", "Changes of the bundle.", ["result"], **of)
        self.rejected = Counter("tel_rejected", "What got no answer, by code.", ["reason"], **of)
        self.bundle = Gauge("tel_bundle_info", "What answers.", ["digest", "backbone"], **of)
        self.power_changes = Counter("tel_power_changes", "Times the power was set anew.", **of)
        # Only where there is something to read, since 0 would say that nothing was used.
        self.joules: Counter | None = None
        self.mode: Gauge | None = None

    @contextmanager
    def request(self, path: str) -> Iterator[Callable[[int], None]]:
        """Time a request; what is given is told its status."""
        began = time.perf_counter()
        code = 500

        def told(status: int) -> None:
            nonlocal code
            code = status

        try:
            yield told
        finally:
            self.requests.labels(path, str(code)).inc()
            self.seconds.labels(path).observe(time.perf_counter() - began)

    def answered(self, reply: Mapping[str, Any]) -> None:
        """Count a question."""
        self.questions.labels(reply.get("adapter") or "none").inc()
        self.queued.observe(reply["queue_ms"] / 1000)
        self.prompt.inc(reply["tokens"])
        self.decoded.inc(reply["decoded"])
        self.packed.observe(reply["packed"])

    def written(self, reply: Mapping[str, Any]) -> None:
        """Count a text, or a choice."""
        self.queued.observe(reply["queue_ms"] / 1000)
        self.prompt.inc(reply["prompt_tokens"])
        self.decoded.inc(reply["prompt_tokens"] + reply["generated"])

    def refused(self, code: str) -> None:
        """Count what the engine's process gave an error for."""
        self.rejected.labels(code).inc()

    def powered(self, joules: float | None, power: Power) -> None:
        """Count energy since the last time, and note how power is set, where they can be read."""
        if joules is not None:
            self.joules = self.joules or Counter(
                "tel_joules", "Energy of the machine's parts.", registry=self.registry
            )
            self.joules.inc(joules)
        if power.key:
            names = ["mode", "governor", "cores_online"]
            self.mode = self.mode or Gauge(
                "tel_power_mode_info", "How the power is set.", names, registry=self.registry
            )
            self.mode.clear()
            values = (power.mode, power.governor, power.online)
            self.mode.labels(*("" if value is None else str(value) for value in values)).set(1)

    @property
    def answers(self) -> int:
        """Return how many questions were answered."""
        return round(sum(_totals(self.questions).values()))

    @property
    def overloads(self) -> int:
        """Return how often too much waited."""
        return round(_totals(self.rejected).get((FULL[1],), 0))

    def text(
        self, stats: Mapping[str, Any], info: Mapping[str, Any] | None, restarts: int
    ) -> tuple[bytes, str]:
        """Return all of it and its media type."""
        self.waiting.set(stats.get("waiting", 0))
        self.tokens.set(stats.get("waiting_tokens", 0))
        self.restarts.set(restarts)
        if info:
            self.bundle.clear()
            self.bundle.labels(info["bundle"], info["backbone"]).set(1)
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


def _totals(counter: Counter) -> dict[tuple[str, ...], float]:
    [counted] = counter.collect()
    return {
        tuple(one.labels.values()): one.value
        for one in counted.samples
        if one.name.endswith("_total")
    }
