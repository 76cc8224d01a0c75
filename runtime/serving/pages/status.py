"""`/v1/status`: what answers and how much waits. No folder, no client and no question is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

import tel_edge
from tel_edge.runtime.serving.link import Link
from tel_edge.runtime.serving.metrics import Metrics
from tel_edge.runtime.serving.pages.bodies import Bundle, Load, State, Status


def status(state: State, stats: Mapping[str, Any], link: Link, metrics: Metrics) -> Status:
    """Return the service in figures; `stats` are the worker's, empty where none could be had."""
    info = link.info
    return Status(
        state,
        tel_edge.__version__,
        msgspec.convert({**info, "digest": info["bundle"]}, Bundle) if info else None,
        msgspec.convert(stats, Load) if stats else None,
        metrics.answers,
        link.refused,
        link.restarts,
    )
