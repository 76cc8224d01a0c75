"""The benchmark beside other engines: its tables, who is left out, llama-perplexity's file."""

from __future__ import annotations

import argparse
import json
import math
import struct
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import bench_peers
import peer_contenders
import peer_tables
from contender_tasks import WARM
from peer_contenders import Choice
from peer_tables import GGUF, MERGED, ON, ONNX, REFERENCE, Contender
from runtime_tables import Log

from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.questions.question import Question

SURE = [math.log(0.9), math.log(0.1)]


def values(seconds: float, picks: list[int], logprobs: list[list[float]] | None = None) -> Any:
    made: dict[str, Any] = {"seconds": seconds, "picks": picks}
    return {"pass": made | ({"logprobs": logprobs} if logprobs else {}), "maj": made}


def nothing() -> dict[str, Any]:
    raise AssertionError("it is measured already")


@pytest.fixture
def log(tmp_path: Path) -> Log:
    made = Log(tmp_path / "log.jsonl", "2 questions", False)
    made.add(REFERENCE, 0, {"logprobs": [SURE] * (WARM + 2)})
    for turn, slower in enumerate((1, 2, 2)):
        made.add(GGUF, turn, values(2.0 * slower, [0, 0], [SURE, SURE]))
        made.add(ONNX, turn, values(1.0 * slower, [0, 1], [SURE, SURE[::-1]]))
        made.add("other", turn, {"pass": {"seconds": 0.5, "picks": [-1, 0]}})
    return made


def cells(text: str, table: str, name: str) -> list[str]:
    own = text.split(f"<!-- table: {table} -->")[1].split("\n\n", maxsplit=1)[0]
    [row] = [line for line in own.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def named(log: Log, missing: dict[str, str]) -> str:
    three = [Contender(GGUF, "Q4_K_M", ON, nothing), Contender(ONNX, "dynamic-int8", ON, nothing)]
    three += [Contender("other", "int8", MERGED, nothing), Contender("gone", "x", MERGED, nothing)]
    return peer_tables.tables(three, log, missing, "a machine")


def test_ratios_are_taken_round_by_round(log: Log) -> None:
    text = named(log, {})
    assert cells(text, "peers-speed", ONNX)[1:4] == [
        "1.00 (1.00-2.00)",
        "2.00 (2.00-2.00)",
        "1.00 (1.00-1.00)",
    ]
    # 4 questions/s in every round, beside 1, 0.5 and 0.5, and no votes.
    assert cells(text, "peers-speed", "other")[2] == "8.00 (4.00-8.00)"
    assert cells(text, "peers-speed", "other")[4:] == ["", "", ""]


def test_agreement_is_with_float32(log: Log) -> None:
    text = named(log, {})
    assert cells(text, "peers-agreement", GGUF)[3:] == ["2 of 2", "0.0000"]
    # One of two is turned around: half of 0.9 ln 9 + 0.1 ln(1/9).
    assert cells(text, "peers-agreement", ONNX)[3:] == ["1 of 2", f"{0.4 * math.log(9):.4f}"]
    assert cells(text, "peers-agreement", "other")[2:] == [MERGED, "1 of 2", "it gives none"]


def test_the_fastest_and_who_is_missing_are_named(log: Log) -> None:
    text = named(log, {"gone": "not installed"})
    assert f"fastest: Pass@1 other (4.00 questions/s), Maj@4 {ONNX} (1.00 questions/s)" in text
    assert "\nleft out: gone: not installed\n" in text
    assert "| gone |" not in text


@pytest.mark.parametrize("error", [InputError("not\ninstalled"), WorkError("crashed (SIGILL)")])
def test_one_that_fails_does_not_stop_the_others(tmp_path: Path, error: Exception) -> None:
    calls: list[str] = []

    def fails() -> dict[str, Any]:
        calls.append("bad")
        raise error

    def works() -> dict[str, Any]:
        calls.append("good")
        return values(1.0, [0, 0])

    log = Log(tmp_path / "log.jsonl", "x", False)
    args = argparse.Namespace(rounds=2, small=False, quiet=True)
    both = [Contender("bad", "", ON, fails), Contender("good", "", ON, works)]
    missing = bench_peers.measured(args, both, log)
    assert missing == {"bad": " ".join(str(error).split())}
    assert calls == ["bad", "good", "good"]
    # A second run goes on where it was, and tries again what failed.
    bench_peers.measured(args, both, Log(tmp_path / "log.jsonl", "x", False))
    assert calls == ["bad", "good", "good", "bad"]


@pytest.mark.parametrize(
    ("measure", "said"),
    [
        (
            lambda task: bench_peers.apart(None, Path("merged"), task),
            "install_peers.sh DIR ctranslate2",
        ),
        (
            lambda task: bench_peers.by_program(Path("no/such"), "llama-server", nothing, task),
            "pass --llama-server FILE",
        ),
    ],
)
def test_what_is_not_installed_says_what_to_do(measure: Callable[..., Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        measure(peer_contenders.PeerTask("ctranslate2", "model", {}, ""))


def test_a_file_of_choices_is_read_back() -> None:
    made = [Choice("Wörter?\nAnswer:", ("A", "B", "C"), 2), Choice("Two", ("A", "B"), 0)]
    data = peer_contenders.packed_choices(made)
    assert peer_contenders.unpacked_choices(data) == made
    assert struct.unpack_from("<3I", data) == (2, 12, 12 + 4 + 16 + 4 + 3 * 5 + 3 * 4 + 4)


def test_percentages_so_far_give_each_answer() -> None:
    right = [True, False, False, True, True]
    counts = [sum(right[: at + 1]) for at in range(len(right))]
    lines = [f"{at + 1}\t{100 * count / (at + 1):.8f}" for at, count in enumerate(counts)]
    assert peer_contenders.each_right(lines) == right


SERVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def answer(self, made):
        data = json.dumps(made).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def do_GET(self): self.answer({"status": "ok"})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/completion" and body["n_predict"] == 1
        if "logit_bias" in body:
            # In the order of their probability, as llama-server has them.
            top = [{"id": 8, "prob": 0.75}, {"id": 7, "prob": 0.25}]
            assert [token for token, _ in body["logit_bias"]] == [7, 8]
            return self.answer({"completion_probabilities": [{"top_probs": top}]})
        assert body["grammar"] == 'root ::= " " [AB]'
        # A prompt of one token is answered with a space, which is no letter.
        self.answer({"content": " B" if len(body["prompt"]) > 1 else " "})

at = sys.argv.index("--port")
HTTPServer(("127.0.0.1", int(sys.argv[at + 1])), Handler).serve_forever()
"""


def test_a_server_is_started_asked_and_ended(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text(f"#!{sys.executable}\n{SERVER}")
    program.chmod(0o755)
    count = WARM + 2
    asked = [asdict(Question(str(at), "", "Which?", ("x", "y"))) for at in range(count)]
    (tmp_path / "asked").write_text("".join(json.dumps(one) + "\n" for one in asked))
    ids = [[1, 2]] * (count - 1) + [[1]]
    prompts = peer_contenders.Prompts(ids, [[7, 8]] * count, [SURE] * count)
    (tmp_path / "prompts").write_text(json.dumps(prompts._asdict()))
    task = peer_contenders.PeerTask(
        *("x", "x.gguf", {"oranbench": ("x", "x")}, str(tmp_path / "asked")),
        prompts=str(tmp_path / "prompts"), program=str(program), slots=2,
    )  # fmt: skip
    made = peer_contenders.server(task)
    assert made["pass"]["picks"] == (1, -1)
    assert made["pass"]["logprobs"] == [pytest.approx([math.log(0.25), math.log(0.75)])] * 2
    program.write_text("#!/bin/sh\necho error: no such model >&2; exit 1\n")
    with pytest.raises(WorkError, match="llama-server: exit code 1: error: no such model"):
        peer_contenders.server(task)
