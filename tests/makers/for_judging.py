"""What the tests of judges share: systems of known quality, a sweep, a server that judges."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import for_answers
import pytest

from tel_edge.eval.care.answers import cases, records
from tel_edge.eval.care.answers.cases import Case
from tel_edge.eval.care.answers.measured import Table, measured
from tel_edge.eval.care.answers.records import Record, Summary
from tel_edge.eval.care.judges import studies
from tel_edge.eval.care.judges.verdicts import CRITERIA, PairVerdict
from tel_edge.eval.commands import judge
from tel_edge.eval.references import client
from tel_edge.eval.scoring.records import Variant

Command = Callable[..., tuple[int, str, str]]
# What a system adds to the reference, the best first; the server reads it, and `rules` the facts.
BACKBONE = "smollm2-135m"
QUALITY = {"great": 5, "good": 4, "weak": 2}
# All pairs of these in both orders of eight dialogues, and marks of each answer.
PAIRS, MARKS = 3 * 2 * 8, 3 * 8


def says(case: Case, name: str) -> str:
    """Return what a system answers: the weak one leaves the fix out."""
    text = " ".join(case.references)
    if name == "weak":
        text = f"Sorry to hear that. {case.facts['check']}."
    if name == "good":
        text = f"{text} Thank you for your patience with all of this today."
    return f"{text} Quality {QUALITY.get(name, 3)}."


def answered(path: Path, dataset: Path, name: str, says: Callable[[Case, str], str] = says) -> Path:
    """Write a system's answers to the test part, and the summary beside them."""
    of = cases.read(dataset, "test")
    table, run = Table(of.others), f"run of {name}"[:16]

    def record(case: Case) -> Record:
        texts = (says(case, name),)
        own = measured(texts, [], case.term, case.facts, case.wanted, table)
        return Record(run, case.id, case.scenario, case.asked, texts, ((1, 2),), (True,), 9, 1, own)

    path.parent.mkdir(parents=True, exist_ok=True)
    records.write(path, map(record, of.cases))
    variant = Variant("lora-F16", "F16", "gguf", True, 1000, 10)
    count = len(of.cases)
    made = Summary(BACKBONE, variant, of.dataset, "test", run, {}, count, 4, 0, {}, 1.0, None, {})
    records.write_summary(path, made)
    return path


def systems(home: Path, names: Mapping[str, Any] = QUALITY, count: int = 4) -> list[str]:
    """Write a data set and the answers of systems; return the options that name them."""
    data = for_answers.dataset(home / "data", count)
    made = [f"{name}={answered(home / name / 'care.jsonl', data, name)}" for name in names]
    return ["--dataset", str(data), "--answers", *made]


def sweep(home: Path, *runs: str) -> Path:
    """Write a sweep of care whose runs have answered."""
    data, place = for_answers.dataset(home / "data"), home / "home" / "sweeps" / "care"
    (place / "rows").mkdir(parents=True)
    for run in runs:
        row = {"run": run, "category": "care", "error": None, "options": {"backbone": BACKBONE}}
        (place / "rows" / f"{run}.json").write_text(json.dumps(row))
        results = place / "runs" / run / "results" / BACKBONE
        answered(results / "lora-F16" / "care.jsonl", data, run)
    return place


class Server:
    """An endpoint that judges by the quality that answers say, and keeps what it was sent."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[dict[str, Any]] = []
        self.raw: list[bytes] = []
        self.keys: set[str | None] = set()
        self.wait = 0.0
        # Returns (status, text) to send instead of a reply, or None.
        self.before: Callable[[dict[str, Any]], tuple[int, str] | None] = lambda _: None
        self.change: Callable[[str], str] = lambda text: text
        self.usage: dict[str, int] | None = {"prompt_tokens": 1000, "completion_tokens": 10}

    def reply(self, body: dict[str, Any]) -> tuple[int, str]:
        self.asked.append(body)
        time.sleep(self.wait)
        if instead := self.before(body):
            return instead
        text = self.change(json.dumps(self.said(body["messages"][-1]["content"])))
        made = {"choices": [{"message": {"content": text}}], "usage": self.usage}
        return 200, json.dumps(made)

    def said(self, told: str) -> dict[str, Any]:
        marks = [int(mark) for mark in re.findall(r"Quality (\d)", told)]
        if '"better"' not in told:
            return dict.fromkeys(CRITERIA, marks[0])
        one, other = marks
        return {"why": "x", "better": "tie" if one == other else "A" if one > other else "B"}


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            server.raw.append(raw)
            server.keys.add(self.headers.get("authorization"))
            status, text = server.reply(json.loads(raw))
            try:
                self.send_response(status)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())
            except OSError:
                # Whoever asked waits no more.
                pass

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def panel(home: Path, *judges: Mapping[str, Any]) -> list[str]:
    path = home / "panel.json"
    path.write_text(json.dumps({"judges": judges}))
    return ["--panel", str(path)]


def endpoint(url: str, name: str = "big", **fields: Any) -> dict[str, Any]:
    made = {"name": name, "kind": "endpoint", "url": url, "model": "org/Big-8B", "family": "big"}
    return {**made, **fields}


@pytest.fixture
def tel_judge(run_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setattr(client, "Client", partial(client.Client, pause=0.001))

    def run(*argv: str) -> tuple[int, str, str]:
        given = ["--workspace", str(tmp_path / "home"), "--quiet", *argv]
        made: tuple[int, str, str] = run_command(judge.parser(), judge.work, *given)
        return made

    return run


def study(tmp_path: Path, name: str = "answers") -> Path:
    """Return the folder of a study of the tests' workspace."""
    return studies.folder(tmp_path / "home", name)


def wins(verdicts: list[PairVerdict]) -> Counter[str]:
    """Return how often each system was chosen, and how often another word was said."""
    return Counter(
        {"first": one.first, "second": one.second}.get(str(one.choice), str(one.choice))
        for one in verdicts
        if not one.repeat
    )
