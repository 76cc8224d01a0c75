"""The front's end of the engine's process: starts it, asks it, starts it again where it died."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

from tel_edge.runtime.device import child
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.serving.problems import BROKEN, RESTARTING, STARTING, Failed

# Bytes of a message from the engine's process: more than what it may answer to the largest body.
MOST_LINE = 1 << 26
# Seconds before a process that died is started again: the first time, and at most.
AGAIN, LONGEST = 0.05, 10.0

Starter = Callable[[int, str], subprocess.Popen[Any]]


def start(fd: int, options: str) -> subprocess.Popen[Any]:
    """Start the engine's process with its end of a socket."""
    argv = [
        *child.command("tel_edge.runtime.serving.process", "tel-serve engine"),
        str(fd),
        options,
    ]
    return child.started(argv, pass_fds=(fd,))


class Link:
    """What asks the engine's process. All methods belong to one event loop.

    `info` is what the process said of itself when it was ready, None until then; `restarts` counts;
    `reloading` says that a bundle is exchanged; `refused` is given the code of every error that the
    process sends.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        say: Callable[[str], None],
        starter: Starter = start,
        *,
        refused: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.options, self.say, self.starter = dict(options), say, starter
        self.refused = refused
        self.info: dict[str, Any] | None = None
        self.restarts = 0
        self.stopping = self.reloading = False
        self._asked: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._parts: dict[str, Callable[[str], None]] = {}
        self._numbers = itertools.count()
        self._writer: asyncio.StreamWriter | None = None
        self._process: subprocess.Popen[Any] | None = None

    async def run(self) -> None:
        """Keep a process running until `stop`. Raises `InputError` for one that cannot start."""
        wait = AGAIN
        while not self.stopping:
            failure = await self._once()
            if failure is not None:
                raise InputError(failure)
            if self.stopping:
                return
            if self.info is not None:
                wait = AGAIN
            self.info = None
            self.restarts += 1
            self.say(f"warning: the engine's process ended ({self._ending()}); starting it again")
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST)

    def _ending(self) -> str:
        assert self._process
        return child.ending(self._process.wait())

    async def _once(self) -> str | None:
        """Run one process to its end; return why it cannot start, None otherwise."""
        here, there = socket.socketpair()
        options = json.dumps({**self.options, "again": self.restarts > 0})
        self._process = self.starter(there.fileno(), options)
        there.close()
        reader, self._writer = await asyncio.open_unix_connection(sock=here, limit=MOST_LINE)
        failure = None
        try:
            while line := await reader.readline():
                message = json.loads(line)
                kind = message.get("event")
                if kind is None:
                    self._answered(message)
                elif kind == "ready":
                    self.info = message
                elif kind == "said":
                    self.say(message["text"])
                else:
                    failure = message["text"]
        except (ConnectionError, ValueError):
            pass
        finally:
            self._writer.close()
            self._writer = None
            await asyncio.to_thread(self._ended)
            lost, self._asked = self._asked, {}
            for future in lost.values():
                if not future.done():
                    future.set_exception(
                        Failed(RESTARTING, "the engine's process ended; it starts again", 1.0)
                    )
        return failure

    def _ended(self) -> None:
        """Wait for the process, and kill one that closed its socket and does not end."""
        assert self._process
        try:
            self._process.wait(child.GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()

    def _answered(self, message: Mapping[str, Any]) -> None:
        if "part" in message:
            if part := self._parts.get(str(message["id"])):
                part(message["part"])
            return
        future = self._asked.pop(str(message["id"]), None)
        if future is None or future.done():
            return
        if "error" in message:
            error = message["error"]
            kind = error["status"], error["code"]
            self.refused(kind[1])
            future.set_exception(Failed(kind, error["message"], error.get("after")))
        else:
            future.set_result(message["reply"])

    async def ask(
        self, message: Mapping[str, Any], part: Callable[[str], None] | None = None
    ) -> dict[str, Any]:
        """Return the reply to a message, or raise `Failed`. Cancelled, it takes it back.

        `part` is given what comes of a text before the reply.
        """
        if self.info is None or self._writer is None:
            raise Failed(STARTING, "the engine is not ready yet", 1.0)
        id = str(next(self._numbers))
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked[id] = future
        if part:
            self._parts[id] = part
        try:
            self._send({**message, "id": id})
            return await future
        except asyncio.CancelledError:
            self._send({"op": "cancel", "id": id})
            raise
        finally:
            self._asked.pop(id, None)
            self._parts.pop(id, None)

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._writer is None:
            raise Failed(BROKEN, "the engine is gone")
        self._writer.write(json.dumps(message).encode() + b"\n")

    @property
    def folder(self) -> str:
        """Return the folder of the bundle that answers."""
        return str(self.options["bundle"])

    async def reload(self, folder: str) -> dict[str, Any]:
        """Answer with the adapters of another bundle; a process started again opens that one."""
        self.reloading = True
        try:
            reply = await self.ask({"op": "reload", "bundle": folder})
        finally:
            self.reloading = False
        self.options["bundle"] = folder
        return reply

    def drain(self) -> None:
        """Let the process answer what waits and then end."""
        self.stopping = True
        if self._writer is not None:
            self._send({"op": "drain"})

    def kill(self) -> None:
        """End the process now."""
        self.stopping = True
        if self._process and self._process.poll() is None:
            self._process.kill()
