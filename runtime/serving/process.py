"""The engine's process: opens the bundle, says so, and works until its parent ends or drains it."""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any, cast

from tel_edge.runtime.answerer import Answerer, Answering
from tel_edge.runtime.bundles import bundle, manifest
from tel_edge.runtime.device.energy import Meter
from tel_edge.runtime.engines.engine import EngineSettings
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.serving import opened
from tel_edge.runtime.serving.problems import INVALID, Failed
from tel_edge.runtime.serving.worker import Worker

# How a bundle that cannot be opened ends the process: nobody has to try again.
HOPELESS = 2


def serve(pipe: socket.socket, options: dict[str, Any], opener: bundle.Opener) -> int:
    """Open what the options name, then take messages, a line each, until the other end closes."""
    sending = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        line = json.dumps(message, ensure_ascii=True).encode() + b"\n"
        with sending:
            pipe.sendall(line)

    try:
        answerer = Answerer.of_bundle(
            Path(options["bundle"]),
            Answering(**options["how"]),
            quant=options["quant"],
            format=options["format"],
            bare=options["bare"],
            threshold=options["threshold"],
            engine=EngineSettings(**options["engine"]),
            opener=opener,
            say=lambda text: send({"event": "said", "text": text}),
        )
        # Nobody is promised an adapter that cannot answer; one that is damaged later ends nothing.
        names = (*(answerer.adapters or ()), *answerer.spoken)
        for name in () if options.get("again") else names:
            cast(Any, answerer.engine).adapter(name).check()
    except (InputError, WorkError) as error:
        send({"event": "failed", "text": str(error)})
        return HOPELESS
    with answerer:
        folder = Path(options["bundle"])
        made = bundle.read(folder)
        worker = Worker(
            answerer,
            made.backbone.name,
            send,
            options["seconds"],
            manifest.of_folder(folder),
            bool(options.get("guard")),
        )
        send(opened.told(worker, made))
        computing = threading.Thread(target=_computing, args=(worker, pipe), daemon=True)
        computing.start()
        meter = Meter()
        meter.begin()
        with pipe.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                if message.get("op") == "energy":
                    # Since it was asked for last.
                    send({"id": message["id"], "reply": {"joules": meter.read().joules}})
                    continue
                if message.get("op") != "reload":
                    worker.take(message)
                    continue
                try:
                    made = opened.exchange(worker, made, Path(message["bundle"]))
                except Exception as error:
                    # Whatever is in the folder: what answers goes on.
                    worker.fail(message["id"], Failed(INVALID, str(error)))
                    continue
                send(opened.told(worker, made))
                send({"id": message["id"], "reply": {"bundle": worker.bundle}})
        worker.stop()
        computing.join()
    return 0


def _computing(worker: Worker, pipe: socket.socket) -> None:
    """Compute until all is done, then close the pipe, which ends the reader too."""
    try:
        worker.run()
    finally:
        pipe.shutdown(socket.SHUT_RDWR)


def main() -> None:
    """Serve on the socket whose number is the first argument, as the second says."""
    # An interrupt at the terminal reaches this process too, and the parent says what to do.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    pipe = socket.socket(fileno=int(sys.argv[1]))
    sys.exit(serve(pipe, json.loads(sys.argv[2]), bundle.native))
