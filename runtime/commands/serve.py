"""`tel-serve`: answer questions over HTTP with the workspace's bundle."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tel_edge.runtime import cli, extras
from tel_edge.runtime.bundles import backbones, bundle
from tel_edge.runtime.bundles.manifest import Manifest
from tel_edge.runtime.device.system import System
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import lock

LOCAL = ("127.0.0.1", "::1", "localhost")
# Seconds for what waits when the service is told to stop, and for clients to read their answers.
DRAIN, LAST = 60.0, 5.0
# And for another service that takes its socket.
SOON = 5.0


def work(args: argparse.Namespace) -> dict[str, Any]:
    """Serve until a signal, then let what waits be answered."""
    for module in ("starlette", "uvicorn", "msgspec", "prometheus_client"):
        extras.check(module, "serve")
    if sys.platform == "win32":
        raise InputError("tel-serve needs a system with Unix sockets; on Windows use WSL")
    cli.check_draws(args)
    if bool(args.tls_cert) != bool(args.tls_key):
        raise InputError("--tls-cert and --tls-key go together")
    if not _local(args.host) and not (args.keys and args.tls_cert):
        raise InputError(
            f"--host {args.host}: for other machines --keys, --tls-cert and --tls-key are needed; "
            f"without them this one's own addresses are served ({', '.join(LOCAL)})"
        )
    folder = cli.bundle_folder(args, backbones.find(args.backbone).name)
    # What is wrong with the bundle is told before anything is started.
    made = bundle.read(folder)
    if args.unit:
        print(_unit(args, folder, made), end="")
        return {}
    if not args.no_tune and System().arm:
        from tel_edge.runtime.measuring import first

        say = partial(cli.say, args)
        first.start(folder, args.quant, args.format, cli.engine_settings(args), say)
    options = {
        "bundle": str(folder.absolute()),
        "quant": args.quant,
        "format": args.format,
        "bare": args.no_adapter,
        "threshold": args.threshold,
        "engine": asdict(cli.engine_settings(args)),
        "how": {"k": args.k, "temperature": args.temperature, "seed": args.seed},
        "seconds": args.queue_seconds,
        "guard": args.guard,
    }
    return asyncio.run(_served(args, options))


def _unit(args: argparse.Namespace, folder: Path, made: Manifest) -> str:
    """Return the systemd unit of a service with these options."""
    from tel_edge.runtime.answerer import selected
    from tel_edge.runtime.device import needs, profile
    from tel_edge.runtime.serving import unit

    say = partial(cli.say, args)
    file, _ = selected(folder, made, args.quant, args.format, say)
    put, _ = profile.settings(
        cli.engine_settings(args), made.backbone.name, file.quant, file.format
    )
    need = needs.need(folder, made, file, put)
    files = {name: getattr(args, name) for name in ("keys", "tls_cert", "tls_key")}
    handed = {name.replace("_", "-"): str(p.absolute()) for name, p in files.items() if p}
    without = ["unit", "bundle", "backbone", "workspace", "json", "quiet", *files]
    options = unit.given(args, parser().parse_args([]), without)
    # The script beside this interpreter, whatever started it.
    beside = shutil.which("tel-serve", path=os.path.dirname(sys.executable))
    # A link, such as `current` of a store, is followed at each start.
    place = os.path.abspath(args.bundle or folder)
    command = beside or shutil.which("tel-serve") or sys.argv[0]
    paths = (os.path.abspath(command), place)
    home = any(path.startswith(("/home/", "/root/")) for path in paths)
    if home or any(path.startswith(("/tmp/", "/var/tmp/")) for path in paths):
        said = " and ".join(paths)
        say(f"warning: the service sees neither homes nor /tmp; put {said} elsewhere")
    title = f"{made.backbone.name} {file.quant}"
    return unit.unit(
        unit.Service(
            title, paths[0], ("--bundle", place, *options), unit.memory(need), _local(args.host),
            bool(args.gpu_layers or args.provider), home, args.admin is not None, handed,
        )
    )  # fmt: skip


async def _served(args: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    from tel_edge.runtime.serving.link import Link

    known = None
    if args.keys:
        from tel_edge.runtime.serving import guard

        known = guard.keys(args.keys)
    public = _listening(args.host, args.port)
    private = None
    if args.admin:
        # Two that begin at one time must not both take a socket for one that was left.
        with lock.held(args.admin, SOON, partial(cli.say, args)):
            private = _own(args.admin)
    link = Link(options, partial(cli.say, args))
    stop, now = asyncio.Event(), asyncio.Event()

    def end() -> None:
        # Who asks twice does not want to wait.
        (now if stop.is_set() else stop).set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, end)
    engine = asyncio.ensure_future(link.run())
    try:
        # The engine opens while this process reads its own libraries, which takes as long.
        await asyncio.sleep(0)
        return await _fronted(args, link, engine, (public, private), known, (stop, now))
    finally:
        link.kill()
        if private:
            args.admin.unlink(missing_ok=True)


async def _fronted(
    args: argparse.Namespace, link: Any, engine: asyncio.Future[Any],
    listening: tuple[socket.socket, socket.socket | None], known: Any,
    signals: tuple[asyncio.Event, asyncio.Event],
) -> dict[str, Any]:  # fmt: skip
    """Answer on both sockets what the engine's process computes, until a signal or its end.

    `known` are the keys, and the second one of `signals` says not to wait.
    """
    import uvicorn

    from tel_edge.runtime.device import power
    from tel_edge.runtime.serving import admin, guard, notify, sockets
    from tel_edge.runtime.serving.front import Front
    from tel_edge.runtime.serving.metrics import Metrics

    (public, private), (stop, now) = listening, signals
    metrics = Metrics()
    link.refused = metrics.refused
    front = Front(link, metrics)
    hosts = frozenset(name.lower() for name in (*LOCAL, args.host, *args.allow_host))

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Leave signals to this command, which lets what waits be answered first."""
            yield

    # Whoever sends what is no HTTP fills no log.
    quiet: dict[str, Any] = {"log_level": "error", "access_log": False, "lifespan": "off"}
    server = Server(
        uvicorn.Config(
            guard.Guard(front.app, known, hosts, metrics.refused), host=args.host, port=args.port,
            http=sockets.Protocol, ws="none", h11_max_incomplete_event_size=sockets.MOST_HEAD,
            timeout_keep_alive=30, server_header=False, **_tls(args), **quiet,
        )
    )  # fmt: skip
    owner = Server(uvicorn.Config(admin.app(front, stop.set), **quiet)) if private else None
    http = asyncio.ensure_future(server.serve([public]))
    also = asyncio.ensure_future(owner.serve([private])) if owner and private else None
    told = asyncio.ensure_future(_tell(args, link, server))
    ended = asyncio.ensure_future(stop.wait())
    fed = asyncio.ensure_future(notify.feed(link))
    try:
        with power.told(front.power, partial(_changed, args, metrics)):
            await asyncio.wait({engine, http, ended}, return_when=asyncio.FIRST_COMPLETED)
        front.draining = True
        notify.notify(notify.STOPPING)
        if engine.done():
            engine.result()
        hurry = asyncio.ensure_future(now.wait())
        whole = await _drained(link, engine, hurry)
        await _closed(server, http, hurry)
        if owner and also:
            await _closed(owner, also, hurry)
        hurry.cancel()
    finally:
        for task in (told, ended, fed):
            task.cancel()
    cli.say(args, "stopped: all that waited was answered" if whole else "stopped at once")
    return {"restarts": link.restarts}


def _changed(args: argparse.Namespace, metrics: Any, text: str) -> None:
    """Say and count that the power is set anew."""
    cli.say(args, text)
    metrics.power_changes.inc()


async def _drained(link: Any, engine: asyncio.Future[Any], hurry: asyncio.Future[Any]) -> bool:
    """Let what waits be answered, then end the engine's process; return whether all was."""
    if link.info is None:
        link.kill()
    else:
        link.drain()
    await asyncio.wait({engine, hurry}, timeout=DRAIN, return_when=asyncio.FIRST_COMPLETED)
    whole = engine.done()
    link.kill()
    return whole


async def _closed(server: Any, serving: asyncio.Future[Any], hurry: asyncio.Future[Any]) -> None:
    """End a server; nobody is waited for long who does not read what was answered."""
    server.should_exit = True
    done = asyncio.FIRST_COMPLETED
    await asyncio.wait({serving, hurry}, timeout=LAST, return_when=done)
    server.force_exit = True
    await asyncio.wait({serving}, timeout=1)


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens there. Raises `InputError` where none can."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        made = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: {error.strerror or error}") from None
    # What it accepts is alike. asyncio sets it only where a socket names its protocol, and else a
    # reply in two pieces waits for the client's delayed acknowledgement, 40 ms.
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def _local(host: str) -> bool:
    """Return whether only this machine reaches that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tls(args: argparse.Namespace) -> dict[str, Any]:
    if not args.tls_cert:
        return {}
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(args.tls_cert, args.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"--tls-cert {args.tls_cert}, --tls-key {args.tls_key}: {error}") from None
    return {"ssl_certfile": args.tls_cert, "ssl_keyfile": args.tls_key}


def _own(path: Path) -> socket.socket:
    """Return a Unix socket that this user alone may use, from its first moment on."""
    # A service that was killed leaves its socket behind; one that runs keeps it.
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise InputError(f"--admin {path}: another service listens there")
        path.unlink()
    made = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        made.bind(str(path))
        made.listen()
    except OSError as error:
        raise InputError(f"--admin {path}: {error.strerror or error}") from None
    finally:
        os.umask(mask)
    return made


async def _tell(args: argparse.Namespace, link: Any, server: Any) -> None:
    """Say once where the service is, as soon as it answers."""
    from tel_edge.runtime.serving.notify import READY, notify

    while link.info is None or not server.started:
        await asyncio.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    host = f"[{args.host}]" if ":" in args.host else args.host
    scheme = "https" if args.tls_cert else "http"
    said = f"{link.info['file']} at {scheme}://{host}:{port}"
    print(f"tel-serve: {said}", flush=True)
    notify(READY, f"STATUS={said}")


def parser() -> cli.Parser:
    """Return the command's options."""
    made = cli.parser("tel-serve", "Answer questions over HTTP with the workspace's bundle.",
                      "backbone", "seed")  # fmt: skip
    made.add_argument("--host", default="127.0.0.1", help="(%(default)s)")
    made.add_argument("--port", type=cli.whole(0, 65535), default=8080, help="(%(default)s)")
    made.add_argument(
        "--admin",
        type=Path,
        metavar="SOCKET",
        help="a Unix socket for this user alone: /reload, /rollback, /drain, /status",
    )
    made.add_argument(
        "--keys", type=Path, metavar="FILE", help="ask for a key of this file: lines NAME:KEY"
    )
    made.add_argument("--tls-cert", type=Path, metavar="FILE", help="of the service, in PEM form")
    made.add_argument("--tls-key", type=Path, metavar="FILE", help="of that certificate")
    made.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name that the service is asked by; repeatable",
    )
    cli.engine_options(made)
    cli.draw_options(made)
    cli.variant_options(made)
    cli.adapters_option(made)
    made.add_argument(
        "--guard",
        action="store_true",
        help="in conversations: mask numbers of people, refuse account data and secrets",
    )
    made.add_argument(
        "--queue-seconds",
        type=cli.above_zero,
        default=60.0,
        metavar="S",
        help="of work that may wait before requests are refused (%(default)g)",
    )
    made.add_argument(
        "--unit", action="store_true", help="print a systemd unit for these options, and end"
    )
    return made


def main() -> None:
    """Run the command."""
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
