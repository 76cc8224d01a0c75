"""Bodies that nobody thought of: none is an error of the service's own, and none stops it."""

from __future__ import annotations

import json
import random
import resource
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

for name in ("starlette", "msgspec", "prometheus_client", "httpx"):
    pytest.importorskip(name)
import test_front  # noqa: E402
from test_front import CHOICES, Service, served  # noqa: E402

bundle = test_front.bundle

ASK = {"question": "gold 1", "choices": CHOICES, "category": "oranbench", "k": 2, "id": "a"}
SAID = [{"role": "user", "content": "gold 1"}]
BODIES: dict[str, Any] = {
    "/v1/answer": ASK,
    "/v1/answer#": {"questions": [ASK, {**ASK, "labels": ["x", "y"]}]},
    "/v1/completions": {"prompt": "gold 1", "max_tokens": 3, "temperature": 0, "stop": ["x"]},
    "/v1/completions#": {"prompt": [[256, 65, 66]], "max_tokens": 2, "model": "oranbench"},
    "/v1/chat/completions": {"messages": SAID, "max_tokens": 3, "temperature": 0, "stream": True},
    "/v1/chat/completions#": {"messages": SAID, "guided_choice": ["a", "b"], "model": "auto"},
    "/tokenize": {"prompt": "a text", "add_special_tokens": False},
    "/detokenize": {"tokens": [65, 66]},
    "/v2/models/oranbench/infer": {
        "inputs": [
            {"name": "question", "shape": [1], "datatype": "BYTES", "data": ["gold 1"]},
            {"name": "choices", "shape": [1, 4], "datatype": "BYTES", "data": [CHOICES]},
        ],
        "parameters": {"k": 3, "seed": 1},
    },
}
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 1e308, -0.0, 0.5),
    *("", "x", "a\x00b", "\ud800", "\u202e", "é" * 50, "x" * 3000, "oranbench", "auto", "tel-nano"),
    *([], [[]], [None], ["x"], [1, "x"], [[1], [2]], {}, {"a": 1}, [{}], [[[1]]]),
)


def changed(value: Any, chance: random.Random) -> Any:
    """Return a body with one or a few of its parts left out, exchanged or doubled."""
    value = json.loads(json.dumps(value))
    for _ in range(chance.choice((1, 1, 2, 4))):
        at: Any = value
        while True:
            keys = [*at] if isinstance(at, dict) else [*range(len(at))]
            if not keys:
                break
            key = chance.choice(keys)
            if isinstance(at[key], dict | list) and chance.random() < 0.6:
                at = at[key]
                continue
            what = chance.random()
            if what < 0.2:
                del at[key]
            elif what < 0.9 or isinstance(at, dict):
                at[key] = deepcopy(chance.choice(ODD))
            else:
                at.append(deepcopy(at[key]))
            break
        if isinstance(at, dict) and chance.random() < 0.05:
            at[chance.choice(("other", "", "n", "model", "echo"))] = deepcopy(chance.choice(ODD))
    return value


def body(value: Any, chance: random.Random) -> bytes:
    raw = json.dumps(value).encode()
    if chance.random() < 0.1:
        place = chance.randrange(len(raw))
        raw = raw[:place] + bytes([chance.randrange(256)]) + raw[place + chance.randrange(3) :]
    return raw


async def thrown(service: Service, count: int, seed: int) -> dict[int, int]:
    chance, found = random.Random(seed), dict[int, int]()
    for _ in range(count):
        name = chance.choice([*BODIES])
        sent = body(changed(BODIES[name], chance), chance)
        lines = {"content-type": "application/x-ndjson"} if chance.random() < 0.05 else {}
        path = name.rstrip("#")
        reply = await service.client.post(path, content=sent, headers=lines)
        status = reply.status_code
        found[status] = found.get(status, 0) + 1
        assert status in (200, 400, 404, 413), (path, sent, reply.text)
        if status != 200:
            said = reply.json()["error"]["message"]
            assert len(said.splitlines()) == 1, said
            assert len(said) < 400, said
    assert service.link.restarts == 0
    assert (await service.ask("gold 3")).json()["index"] == 3
    return found


def test_generated_bodies(bundle: Path) -> None:
    async def work(service: Service) -> None:
        found = await thrown(service, 600, 1)
        assert found[200] > 60
        assert found[400] > 200

    served(bundle, work)


@pytest.mark.slow
def test_ten_thousand_generated_bodies(bundle: Path) -> None:
    async def work(service: Service) -> None:
        await thrown(service, 1000, 2)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        await thrown(service, 10_000, 3)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 20 * 1024, f"{grown} KiB"

    served(bundle, work)
