"""`tel-generate`: whoever writes, nothing is lost, asked twice, or taken that is not right."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasketch")
pytest.importorskip("sacrebleu")

from tel_edge.eval.care import templates
from tel_edge.eval.care.scenarios import scenarios
from tel_edge.eval.commands import generate
from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.engines.engine import Generation, Sampling, Template, Unanswered
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import gguf_header

Command = Callable[..., tuple[int, str, str]]
BY_BRIEF = {one.brief: one for one in scenarios()}


class Server:
    """An endpoint that writes what it is asked for, and counts."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.change: Callable[[str, int], str] = lambda text, _: text
        self.wait = 0.0
        self.lock = threading.Lock()

    def reply(self, body: dict[str, Any]) -> str:
        text = body["messages"][-1]["content"]
        brief = text.split("\n")[1]
        one = BY_BRIEF[brief]
        with self.lock:
            name = f"{one.id} {body['seed']}"
            self.asked.append(name)
        time.sleep(self.wait)
        made = templates.write(one, "plain", "medium", 1, name)
        rows = json.dumps({"messages": [asdict(message) for message in made]})
        return self.change(rows, len(self.asked))


@contextmanager
def serving() -> Iterator[tuple[Server, str]]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            text = server.reply(body)
            made = {
                "choices": [{"message": {"content": text}}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 50},
            }
            self._send(made)

        def do_GET(self) -> None:
            self._send({"data": [{"id": "writer-1"}]})

        def _send(self, made: dict[str, Any]) -> None:
            raw = json.dumps(made).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield server, f"http://127.0.0.1:{http.server_port}/v1"
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def tel_generate(run_command: Any, tmp_path: Path) -> Command:
    def run(*argv: str) -> tuple[int, str, str]:
        given = ["--out", str(tmp_path / "set"), "--quiet", *argv]
        made: tuple[int, str, str] = run_command(generate.parser(), generate.work, *given)
        return made

    return run


def digests(folder: Path) -> dict[str, str]:
    files: dict[str, Any] = json.loads((folder / "files.json").read_text())["files"]
    return {name: of["sha256"] for name, of in files.items()}


SMALL = ("--limit", "60", "--each", "3")


def test_templates_are_the_same_for_a_seed(tel_generate: Command, tmp_path: Path) -> None:
    code, said, err = tel_generate(*SMALL)
    assert (code, err) == (0, "")
    first = digests(tmp_path / "set")
    assert [*first] == ["train.jsonl", "validation.jsonl", "test.jsonl", "unseen.jsonl"]
    assert "180 dialogues of 60 scenarios" in said
    rows = [json.loads(line) for line in (tmp_path / "set" / "train.jsonl").open()]
    assert {*rows[0]} == {"id", "scenario", "messages", "facts", "style", "source"}
    assert rows[0]["facts"]["fix"] in rows[0]["messages"][-1]["content"]
    assert rows[0]["source"]["kind"] == "template"
    # Again, and anew: nothing is different.
    assert tel_generate(*SMALL)[0] == 0
    assert digests(tmp_path / "set") == first
    (tmp_path / "set" / "written.jsonl").unlink()
    assert tel_generate(*SMALL)[0] == 0
    assert digests(tmp_path / "set") == first
    assert tel_generate(*SMALL, "--seed", "1")[0] == 0
    assert digests(tmp_path / "set") != first


def test_the_library_of_data_sets_reads_it(tel_generate: Command, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    assert tel_generate("--limit", "40", "--each", "2", "--turns", "2-4")[0] == 0
    read = datasets.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert {*read} == {"train", "validation", "test", "unseen"}
    messages = read["train"][0]["messages"]
    assert [one["role"] for one in messages[:2]] == ["user", "assistant"]


def test_an_endpoint_is_asked_once_for_each(tel_generate: Command, tmp_path: Path) -> None:
    with serving() as (server, url):
        argv = [*SMALL, "--from", url, "--price", "1,2"]
        code, _, err = tel_generate(*argv)
        assert (code, err) == (0, "")
        assert len(server.asked) == len({*server.asked}) == 180
        assert tel_generate(*argv)[0] == 0
        assert len(server.asked) == 180
    made = json.loads((tmp_path / "set" / "files.json").read_text())
    assert made["source"]["model"] == "writer-1"
    assert made["tokens"] == {"read": 18000, "written": 9000}
    assert made["cost"] == pytest.approx(0.036)


def test_what_is_not_right_is_asked_for_again(tel_generate: Command, tmp_path: Path) -> None:
    with serving() as (server, url):
        bad = iter(["no JSON at all", '{"messages": []}', '{"messages": [{"role": "user"}]}'] * 9)
        server.change = lambda text, count: next(bad) if count % 20 == 0 else text
        code, _, err = tel_generate(*SMALL, "--from", url)
        assert (code, err) == (0, "")
        assert len(server.asked) == len({*server.asked}) > 180
        made = json.loads((tmp_path / "set" / "files.json").read_text())
        assert made["rejects"] == {"form": len(server.asked) - 180}
        server.change = lambda text, _: re.sub("First|Please|Then", "PIN", "nothing of it")
        code, _, err = tel_generate(*SMALL, "--from", url, "--seed", "2")
        assert code == 2
        assert "none of 180 dialogues passed the gates: form 540" in err


def test_it_stops_where_the_money_does(tel_generate: Command, tmp_path: Path) -> None:
    with serving() as (server, url):
        argv = [*SMALL, "--from", url, "--price", "1000,2000", "--parallel", "1"]
        code, _, err = tel_generate(*argv, "--limit-cost", "1")
        assert code == 1
        assert "1.00 were spent, --limit-cost is 1.00" in err
        assert len(server.asked) <= 7
        done = len((tmp_path / "set" / "written.jsonl").read_text().splitlines())
        assert done == 5
        assert tel_generate(*argv)[0] == 0
        assert len({*server.asked}) == 180
        assert len(server.asked) <= 182


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--from", "nowhere"], "--from nowhere: neither templates"),
        (["--from", "https://api.example/v1"], "sent to api.example; pass --send"),
        (["--from", "http://a:b@localhost/v1"], "--from: no user or password"),
        (["--turns", "5"], "1 to 4 exchanges"),
        (["--turns", "3-2"], "1 to 4 exchanges"),
        (["--price", "1"], "two prices"),
        (["--limit-cost", "1"], "--limit-cost needs --price"),
        (["--glossary", "none.tsv"], "none.tsv"),
    ],
)
def test_what_is_refused(tel_generate: Command, argv: list[str], said: str) -> None:
    code, _, err = tel_generate(*argv)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) <= 2


def test_few_scenarios_are_of_all_kinds(tel_generate: Command, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    assert tel_generate("--limit", "40", "--each", "1")[0] == 0
    made = json.loads((tmp_path / "set" / "files.json").read_text())
    assert made["panel"]["cells"]["of"] > 20
    assert tel_generate("--limit", "1", "--each", "1")[0] == 0
    datasets.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))


def test_half_a_character_spoils_no_folder(tel_generate: Command) -> None:
    with serving() as (server, url):
        server.change = lambda text, _: text.replace("First", "\\ud800", 1).replace(
            "e", "\\ud800", 1
        )
        assert tel_generate("--limit", "4", "--each", "1", "--from", url)[0] == 2
        server.change = lambda text, _: text
        assert tel_generate("--limit", "4", "--each", "2", "--from", url)[0] == 0


def test_a_journal_of_something_else(tel_generate: Command, tmp_path: Path) -> None:
    assert tel_generate("--limit", "8", "--each", "1")[0] == 0
    path = tmp_path / "set" / "written.jsonl"
    path.write_bytes(path.read_bytes() + b'{"half": ')
    assert tel_generate("--limit", "8", "--each", "1")[0] == 0
    assert path.read_bytes().endswith(b"}\n")
    path.write_text('{"other": 1}\n')
    code, _, err = tel_generate("--limit", "8", "--each", "1")
    assert code == 2
    assert "line 1 is none of tel-generate's" in err


def killed_and_again(tmp_path: Path, kills: int) -> None:
    with serving() as (server, url):
        server.wait = 0.01
        argv = [sys.executable, "-m", "tel_edge.eval.commands.generate", "--quiet", "--limit",
                "40", "--each", "3", "--from", url, "--out"]  # fmt: skip
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        for turn in range(kills):
            process = subprocess.Popen([*argv, str(tmp_path / "killed")], env=env)
            before = len(server.asked)
            until = time.monotonic() + 30
            while len(server.asked) < before + 1 + turn % 7 and time.monotonic() < until:
                if process.poll() is not None:
                    break
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            process.wait()
        subprocess.run([*argv, str(tmp_path / "killed")], env=env, check=True, capture_output=True)
        # Nothing but what was in flight, of which each kill may lose as many as there are at once.
        assert len({*server.asked}) == 120
        assert len(server.asked) <= 120 + 5 * kills
        subprocess.run([*argv, str(tmp_path / "whole")], env=env, check=True, capture_output=True)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    killed_and_again(tmp_path, 2)


@pytest.mark.slow
def test_twenty_killed_runs_go_on(tmp_path: Path) -> None:
    killed_and_again(tmp_path, 20)


@pytest.mark.slow
def test_the_whole_set(tel_generate: Command, tmp_path: Path) -> None:
    began = time.process_time()
    assert tel_generate()[0] == 0
    assert time.process_time() - began < 60
    made = json.loads((tmp_path / "set" / "files.json").read_text())
    assert sum(of["rows"] for of in made["files"].values()) > 31_000
    assert all(of["share"] <= 0.05 for of in made["panel"]["opening"].values())
    assert made["rejects"] == {}


class Written:
    """An engine that writes what it is asked for, the last first, and one prompt never."""

    template = Template("{{ messages[-1].content }}", "", "")

    def marked(self, text: str) -> list[int]:
        return [*text.encode()]

    def generate(
        self, prompts: Sequence[tuple[Sequence[int], Sampling]], adapter: str | None
    ) -> Iterator[tuple[int, Generation]]:
        for at in reversed(range(1, len(prompts))):
            ids, how = prompts[at]
            one = BY_BRIEF[bytes(ids).decode().split("\n")[1]]
            made = templates.write(one, "plain", "medium", 1, how.seed)
            text = json.dumps({"messages": [asdict(message) for message in made]})
            yield at, Generation(("", f"Here it is: {text}"), 50, 50, 50, 1.0)
        raise Unanswered({0: InputError("too long")})

    def close(self) -> None:
        pass


def test_a_model_file_writes_several_at_a_time(
    tel_generate: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    monkeypatch.setattr(gguf_header, "check", lambda _: None)
    monkeypatch.setattr(bundle, "native", lambda file, *_: opened.append(file) or Written())
    for content in ("one", "two"):
        (tmp_path / content).mkdir()
        (tmp_path / content / "model.gguf").write_text(content)

    def write(content: str) -> tuple[set[str], set[str]]:
        file = str(tmp_path / content / "model.gguf")
        code, _, err = tel_generate("--limit", "12", "--each", "1", "--from", file)
        assert (code, err) == (0, "warning: 1 of 12 could not be written: form 3\n")
        rows = [
            json.loads(line) for path in (tmp_path / "set").glob("*.jsonl")
            if path.name != "written.jsonl" for line in path.open()
        ]  # fmt: skip
        assert all(row["facts"]["term"] in row["messages"][0]["content"] for row in rows)
        assert len(rows) == 11
        return {row["source"]["model"] for row in rows}, {row["id"] for row in rows}

    [first], _ = write("one")
    assert re.fullmatch(r"model\.gguf@[0-9a-f]{12}", first)
    [second], _ = write("two")
    assert second != first, "another file of the same name writes its own"
    lines = (tmp_path / "set" / "written.jsonl").read_text().splitlines()
    assert sum('"messages"' in one for one in lines) == 22


def test_what_others_have_there_stays(tel_generate: Command, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    own = tmp_path / "set" / "train.jsonl"
    own.write_text("precious")
    code, out, err = tel_generate("--limit", "4", "--each", "1")
    assert (code, out) == (2, "")
    assert "train.jsonl is there, and no tel-generate wrote it; name another --out" in err
    assert own.read_text() == "precious"
