"""Who may ask, and connections that ask for nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

for name in ("starlette", "uvicorn", "httpx"):
    pytest.importorskip(name)
import httpx  # noqa: E402
import uvicorn  # noqa: E402

from tel_edge.runtime.errors import InputError  # noqa: E402
from tel_edge.runtime.serving import guard, sockets  # noqa: E402
from tel_edge.runtime.serving.guard import Guard, keys  # noqa: E402

KEY = "k" * 20


async def says_who(scope: Any, receive: Any, send: Any) -> None:
    client = scope.get("state", {}).get("client", "")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": client.encode()})


def asked(
    headers: dict[str, str],
    path: str = "/v1/models",
    keyed: bool = True,
    refused: Callable[[str], None] = lambda _: None,
) -> httpx.Response:
    known = {"dash": guard.sha256(KEY.encode()).digest(), "other": b"x" * 32} if keyed else None
    app = Guard(says_who, known, frozenset({"localhost", "127.0.0.1", "::1"}), refused)

    async def work() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(work())


@pytest.mark.parametrize(
    ("headers", "status", "body"),
    [
        ({"authorization": f"Bearer {KEY}"}, 200, "dash"),
        ({"authorization": f"bearer  {KEY} "}, 200, "dash"),
        ({"authorization": f"Basic {KEY}"}, 401, "invalid_api_key"),
        ({"authorization": f"Bearer {KEY}x"}, 401, "invalid_api_key"),
        ({"authorization": "Bearer "}, 401, "invalid_api_key"),
        ({}, 401, "invalid_api_key"),
    ],
)
def test_a_key_is_asked_for(headers: dict[str, str], status: int, body: str) -> None:
    reply = asked(headers)
    assert reply.status_code == status
    assert body in reply.text
    assert ("www-authenticate" in reply.headers) == (status == 401)
    # Probes have none.
    assert asked(headers, "/livez").status_code == 200
    # An empty one has to pass where no key is asked for.
    assert asked(headers, keyed=False).status_code == 200


def test_what_is_refused_is_counted() -> None:
    counted: list[str] = []
    asked({}, refused=counted.append)
    asked({"host": "evil.example"}, refused=counted.append)
    asked({"authorization": f"Bearer {KEY}"}, refused=counted.append)
    assert counted == ["invalid_api_key", "forbidden"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:8080"}, 200),
        ({"host": "LOCALHOST"}, 200),
        ({"host": "[::1]:8080"}, 200),
        ({"host": "evil.example:8080"}, 403),
        ({"host": "[broken"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://localhost:3000"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_pages_of_others_cannot_ask(headers: dict[str, str], status: int) -> None:
    assert asked(headers, keyed=False).status_code == status


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no key"),
        ("# only this\n", "no key"),
        (f"a:{KEY}\na:{KEY}1\n", "line 2: 'a' is there twice"),
        ("a:short\n", "line 1"),
        (f"{KEY}\n", "line 1"),
        (f"a:{KEY}é\n", "line 1"),
    ],
)
def test_what_is_no_file_of_keys(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(InputError, match=said):
        keys(file)


def test_keys_that_others_may_read(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of the dashboard\n\na:{KEY}\n")
    file.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        keys(file)
    file.chmod(0o600)
    assert [*keys(file)] == ["a"]
    with pytest.raises(InputError, match="nowhere"):
        keys(tmp_path / "nowhere")


# Connections


@asynccontextmanager
async def listening() -> AsyncIterator[int]:
    config = uvicorn.Config(
        says_who, port=0, http=sockets.Protocol, ws="none", lifespan="off", log_level="error"
    )
    server = uvicorn.Server(config)
    task = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await task


async def closed(reader: asyncio.StreamReader, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await reader.read() == b""
    except TimeoutError:
        return False


WHOLE = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_who_asks_for_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "HEAD_SECONDS", 0.8)

    async def work() -> None:
        async with listening() as port:
            silent, _quiet = await asyncio.open_connection("127.0.0.1", port)
            slow, trickle = await asyncio.open_connection("127.0.0.1", port)
            kept, client = await asyncio.open_connection("127.0.0.1", port)
            for byte in WHOLE[:4]:
                trickle.write(bytes([byte]))
                await asyncio.sleep(0.06)
            assert await closed(slow, 5)
            assert await closed(silent, 5)
            # One that has asked stays, and one that came late was let go, whatever it sends now.
            assert await closed(kept, 5)
            client.close()
            again, asks = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(2):
                asks.write(WHOLE)
                assert (await again.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
                await again.readuntil(b"0\r\n\r\n")
                await asyncio.sleep(1.1)

    asyncio.run(work())


def test_of_too_many_the_one_that_has_waited_longest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "MOST_CONNECTIONS", 3)

    async def work() -> None:
        async with listening() as port:
            idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            # In the order in which they came.
            await asyncio.sleep(0.05)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(WHOLE)
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
            assert await closed(idle[0][0], 5)
            assert not await closed(idle[1][0], 0.05)

    asyncio.run(work())
