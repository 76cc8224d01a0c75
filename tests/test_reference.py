"""`tel-eval --reference` from the outside: endpoints, a GGUF file and a folder, asked alike."""

from __future__ import annotations

import argparse
import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.benchmarks.split import split
from tel_edge.eval.commands import evaluate
from tel_edge.eval.references import client, endpoint, reference
from tel_edge.eval.scoring.records import Summary, read_records, read_summary
from tel_edge.runtime import cli
from tel_edge.runtime.engines.engine import Sampling
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.prompt import render
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.scoring import Scorer

Command = Callable[..., tuple[int, str, str]]
Body = dict[str, Any]
KEY = "sk-very-secret"
ORAN = CATEGORIES["oranbench"]


class Server(ThreadingHTTPServer):
    """A server of `models` whose shape of replies is `shape`; what goes wrong is in `before`.

    It knows the right answers of `fake.rows`: 0.6 is given to the right letter after a space, 0.1
    to it without one, 0.05 to A and 0.01 to a word; other letters are not listed.
    """

    daemon_threads = True

    def __init__(self, shape: str = "texts", models: tuple[str, ...] = ("org/Big-8B",)) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.shape, self.models = shape, models
        self.asked: list[tuple[str, Body]] = []
        self.keys: set[str | None] = set()
        self.most = 100
        # Returns (status, text, headers) to send instead of a reply, or None.
        self.before: Callable[[int], tuple[int, str, dict[str, str]] | None] = lambda _: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.keys.add(self.headers.get("Authorization"))
        self._send(200, json.dumps({"data": [{"id": name} for name in self.server.models]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server, path = self.server, self.path.removeprefix("/v1")
        server.asked.append((path, body))
        server.keys.add(self.headers.get("Authorization"))
        if instead := server.before(len(server.asked)):
            return self._send(*instead)
        status, reply = answer(server, path, body)
        self._send(status, json.dumps(reply))

    def _send(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(text)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())


def answer(server: Server, path: str, body: Body) -> tuple[int, Body]:
    chat = path == endpoint.CHAT
    if server.shape == "chat" and not chat:
        return 404, {"error": {"message": "no such path"}}
    if "chat_template_kwargs" in body and server.shape != "chat":
        return 400, {"error": {"message": "unknown field chat_template_kwargs"}}
    if chat and server.shape == "no chat":
        return 404, {"error": {"message": "no such path"}}
    prompt = body["messages"][0]["content"] if chat else body["prompt"]
    listed = body.get("top_logprobs") if chat else body.get("logprobs")
    if listed and listed > server.most:
        return 400, {"error": {"message": f"at most {server.most} logprobs"}}
    if len(prompt) > 2000:
        return 400, {"error": {"message": "This model's maximum context length is 300 tokens."}}
    found = re.search(r"gold (\d+)", prompt)
    letter = "ABCD"[int(found[1]) if found else 0]
    shares = [(f" {letter}", 0.6), (letter, 0.1), (" A", 0.05), (" The", 0.01)]
    if letter == "A":
        shares.pop(2)
    if server.shape == "words":
        shares = [(" The", 0.6), (" I", 0.2)]
    rows = [{"token": text, "logprob": math.log(share)} for text, share in shares]
    logprobs: Any = {"top_logprobs": [{row["token"]: row["logprob"] for row in rows}]}
    if chat or server.shape == "content":
        logprobs = {"content": [{**rows[0], "top_logprobs": rows}]}
    text = f"ANSWER: {letter}" if body["temperature"] == 0 else f"ANSWER: {'AB'[body['seed'] % 2]}"
    choice: Body = {"message": {"content": text}} if chat else {"text": text}
    if listed and server.shape != "silent":
        choice["logprobs"] = logprobs
    return 200, {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


@contextmanager
def serving(*given: Any) -> Iterator[Server]:
    with Server(*given) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that wait a moment only, and no key of this machine's."""
    monkeypatch.setattr(client, "Client", partial(client.Client, timeout=5.0, pause=0.001))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("TEL_API_KEY", raising=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    fake.dataset(tmp_path / "data", "oranbench", fake.rows(60))
    return tmp_path


@pytest.fixture
def ask(home: Path, run_command: Command) -> Command:
    def work(args: argparse.Namespace) -> dict[str, Any]:
        return reference.work(args, evaluate.sources(args), isolated=False)

    def parser() -> cli.Parser:
        made = evaluate.parser()
        if "--reference" not in made.format_help():
            reference.add_options(made)
        return made

    def made(where: Any, *argv: str, quiet: bool = True) -> tuple[int, str, str]:
        common = ["--workspace", str(home / "w"), "--dataset", str(home / "data")]
        common += ["--category", "oranbench", "--reference", str(where)]
        return run_command(parser(), work, *common, *argv, *["--quiet"] * quiet)

    return made


def out(home: Path, name: str = "Big-8B", variant: str = "endpoint") -> Path:
    return home / "w" / "results" / name / f"reference-{variant}" / "oranbench.jsonl"


def summary(home: Path, *of: str) -> Summary:
    return read_summary(out(home, *of).with_suffix(".json"))


@pytest.mark.parametrize(
    ("shape", "path"),
    [("texts", "/completions"), ("content", "/completions"), ("chat", "/chat/completions")],
)
def test_labels_are_read_from_the_first_token(
    ask: Command, home: Path, shape: str, path: str
) -> None:
    with serving(shape) as server:
        code, said, error = ask(server.url)
        assert (code, error) == (0, "")
        body = server.asked[-1][1]
    test = split(benchmark.read(str(home / "data"), ORAN).questions, 42).test
    records = list(read_records(out(home)))
    assert [r.id for r in records] == [q.id for q in test]
    for record in records:
        for label, value in enumerate(record.logprobs):
            bound = math.log(0.01) - 1e-6
            shown = {record.gold: math.log(0.7), 0: math.log(0.7 if record.gold == 0 else 0.05)}
            assert value == pytest.approx(shown.get(label, bound), abs=2e-6)
        assert record.tokens == 7
    made = summary(home)
    assert made.pass1.value == 1
    assert (made.variant.format, made.variant.backbone_bytes) == ("endpoint", 0)
    assert made.memory_peak is None
    assert made.made_with["endpoint"]["path"] == path
    assert made.made_with["endpoint"]["unlisted"] == 0
    assert (body["max_tokens"], body["temperature"], body["model"]) == (1, 0, "org/Big-8B")
    prompts = [
        b["messages"][0]["content"] if path == endpoint.CHAT else b["prompt"]
        for p, b in server.asked
        if p == path
    ]
    assert {*prompts} == {render(question) for question in test}
    assert "Pass@1 1.000" in said


def test_fewer_tokens_are_asked_for_where_the_server_lists_no_more(
    ask: Command, home: Path
) -> None:
    with serving() as server:
        server.most = 5
        assert ask(server.url)[0] == 0
    asked = [body["logprobs"] for _, body in server.asked]
    assert asked == [20] + [5] * (len(asked) - 1)
    assert summary(home).made_with["endpoint"]["listed"] == 5


def test_picks_that_mean_nothing_are_counted(ask: Command, home: Path) -> None:
    with serving("words") as server:
        code, _, error = ask(server.url, quiet=False)
    assert code == 0
    made = summary(home)
    assert made.made_with["endpoint"]["unlisted"] == made.questions == 12
    assert "for 12 of 12 questions the server lists none of the labels" in error


def test_texts_are_parsed_and_drawn_with_a_seed_for_each(ask: Command, home: Path) -> None:
    with serving("no chat") as server:
        assert ask(server.url, "--protocol", "generate", "--max-tokens", "9")[0] == 0
    bodies = [body for path, body in server.asked if path == endpoint.COMPLETIONS]
    records = list(read_records(out(home, "Big-8B", "endpoint-generate")))
    assert all(record.pick == record.gold for record in records)
    assert len(bodies) == 5 * len(records)
    assert len({body["seed"] for body in bodies}) == len(bodies)
    assert [body["max_tokens"] for body in bodies] == [9] * len(bodies)
    assert {round(body["temperature"], 1) for body in bodies} == {0, 0.7}
    with serving("texts") as server:
        again = ask(server.url, "--protocol", "generate", "--reference-name", "other")
    assert again[0] == 0
    # Messages go before texts here, and a field that the server does not know is left out.
    assert {path for path, _ in server.asked} == {endpoint.CHAT}
    assert "chat_template_kwargs" not in server.asked[-1][1]
    other = list(read_records(out(home, "other", "endpoint-generate")))
    assert [r.draws for r in other] == [r.draws for r in records]


def test_results_do_not_depend_on_how_many_are_asked_at_a_time(ask: Command, home: Path) -> None:
    found = []
    for parallel in ("1", "7"):
        with serving() as server:
            server.before = lambda turn: time.sleep(0.02 * (turn % 3))
            name = f"p{parallel}"
            assert ask(server.url, "--parallel", parallel, "--reference-name", name)[0] == 0
        rows = read_records(out(home, name))
        found.append([(r.run, r.id, r.logprobs, r.draws) for r in rows])
    assert found[0] == found[1]


def test_a_server_that_is_busy_is_asked_again(ask: Command, home: Path) -> None:
    with serving() as server:
        busy = {1: (429, "{}", {"Retry-After": "0"}), 3: (503, "later", {}), 4: (500, "", {})}
        server.before = busy.get
        assert ask(server.url)[0] == 0
        assert len(server.asked) == summary(home).questions + 3


def test_a_run_goes_on_where_the_server_died(ask: Command, home: Path) -> None:
    with serving() as server:
        server.before = lambda turn: (500, '{"error": "out of memory"}', {}) if turn > 5 else None
        code, said, error = ask(server.url, "--parallel", "2")
    assert (code, said) == (1, "")
    assert error.count("\n") == 1
    assert "500 out of memory (6 attempts); what was scored is kept" in error
    assert len(list(read_records(out(home)))) == 5
    with serving() as server:
        assert ask(server.url)[0] == 0
        assert len(server.asked) == 12 - 5
        # Another address of the same model; all is there.
        code, said, _ = ask(server.url)
        assert (code, "scored before" in said, len(server.asked)) == (0, True, 7)
    # With its name given nothing is asked at all.
    assert ask("http://127.0.0.1:9/v1", "--reference-model", "org/Big-8B")[0] == 0
    with serving() as server:
        assert ask(server.url, "--temperature", "0.5")[0] == 0
        assert len(server.asked) == 12


def test_what_is_under_way_when_one_is_refused_is_kept(ask: Command, home: Path) -> None:
    with serving() as server:

        def before(turn: int) -> tuple[int, str, dict[str, str]] | None:
            # The third fails while those beside it are still asked.
            return (403, "{}", {}) if turn == 3 else time.sleep(0.3)

        server.before = before
        assert ask(server.url)[0] == 2
    assert 1 < len(list(read_records(out(home)))) < 6


def test_a_question_that_is_too_long_counts_as_wrong(ask: Command, home: Path) -> None:
    long = {**fake.rows(1)[0], "question": "gold 0 " + "long " * 500}
    fake.dataset(home / "data", "oranbench", [long, *fake.rows(20)])
    with serving() as server:
        assert ask(server.url, "--part", "test,validation,train")[0] == 0
    files = [out(home).with_name(f"oranbench{p}.json") for p in ("", ".validation", ".train")]
    assert sum(read_summary(file).too_long for file in files) == 1


def test_the_key_is_sent_and_nowhere_written(
    ask: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEL_API_KEY", KEY)
    with serving() as server:
        code, said, error = ask(server.url, "--json", quiet=False)
        assert code == 0
        assert server.keys == {f"Bearer {KEY}"}
        server.before = lambda _: (401, json.dumps({"error": {"message": f"wrong: {KEY}"}}), {})
        refused = ask(server.url, "--reference-name", "again")
    assert refused[0] == 2
    assert "401 wrong: ***; set TEL_API_KEY" in refused[2]
    written = "".join(path.read_text() for path in (home / "w").rglob("*") if path.is_file())
    assert written
    assert server.url not in written
    for text in (written, said, error, *refused[1:], repr(client.Client(server.url, KEY))):
        assert KEY not in text


def test_which_key_goes_where(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def key(url: str) -> str:
        return reference.connect(argparse.Namespace(reference=url, quiet=False)).key

    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    assert key("https://host/v1") == key("http://localhost:1/v1") == "theirs"
    assert key("http://host/v1") == ""
    monkeypatch.setenv("TEL_API_KEY", "ours")
    assert key("https://host/v1") == "ours"
    assert capsys.readouterr().err == ""
    assert key("http://host/v1") == "ours"
    assert "unencrypted; use https" in capsys.readouterr().err


def test_no_redirect_takes_the_key_elsewhere(ask: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEL_API_KEY", KEY)
    with serving() as other, serving() as server:
        server.before = lambda _: (302, "", {"Location": f"{other.url}/models"})
        code, _, error = ask(server.url)
    assert (code, other.keys) == (2, set())
    assert "302" in error


@pytest.mark.parametrize(
    ("shape", "before", "code", "said"),
    [
        ("silent", None, 2, "gives no log-probabilities; pass --protocol generate"),
        ("texts", (200, "<html>", {}), 2, "no JSON object comes back; is this the URL ending in"),
        ("texts", (200, "[]", {}), 2, "no JSON object comes back"),
        ("texts", (200, "{}", {}), 2, "no choices in the reply"),
        ("texts", (404, '{"error": {"message": "no model"}}', {}), 2, "completions: 404 no model"),
        ("texts", (502, "bad", {}), 1, "502 Bad Gateway (6 attempts)"),
    ],
)
def test_what_a_server_does_wrong_is_told_in_a_line(
    ask: Command, home: Path, shape: str, before: Any, code: int, said: str
) -> None:
    with serving(shape) as server:
        server.before = lambda _: before
        found, _, error = ask(server.url)
    assert (found, error.count("\n")) == (code, 1)
    assert said in error
    assert not out(home).with_suffix(".json").exists()


def test_a_reply_that_takes_too_long_is_a_failure() -> None:
    with serving() as server:
        server.before = lambda _: time.sleep(0.5)
        slow = client.Client(server.url, timeout=0.05, attempts=2, pause=0)
        with pytest.raises(WorkError, match=r"timed out \(2 attempts\)"):
            slow.request("/completions", {})


@pytest.mark.parametrize(
    ("where", "argv", "said"),
    [
        ("http://127.0.0.1:9/v1", (), "refused (6 attempts)"),
        ("http://me:word@host/v1", (), "no user or password in the URL"),
        ("http://host/v1?key=1", (), "the URL that ends in /v1"),
        ("http://host:port/v1", (), "Port could not be cast"),
        ("nothing.gguf", (), "no such file"),
        ("no-folder", (), "neither a URL, a .gguf file, a folder nor a hub id"),
        ("no-folder", ("--reference-name", "a/b"), "letters, digits and . _ - only"),
        ("no-folder", ("--reference-model", "x"), "--reference-model is for endpoints"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    ask: Command, where: str, argv: tuple[str, ...], said: str
) -> None:
    code, _, error = ask(where, *argv)
    assert code in (1, 2)
    assert said in error


def test_one_of_several_models_has_to_be_named(ask: Command, home: Path) -> None:
    with serving("texts", ("one", "two")) as server:
        code, _, error = ask(server.url)
        assert code == 2
        assert "2 models; pass --reference-model NAME (there: one two)" in error
        assert ask(server.url, "--reference-model", "two")[0] == 0
    assert out(home, "two").is_file()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random model as a folder and as a GGUF file."""
    import export_models as models

    from tel_edge.export.commands import export
    from tel_edge.runtime import cli as commands

    root = tmp_path_factory.mktemp("model")
    folder = models.backbone(root / "Large-2L", "llama", max_position_embeddings=512)
    argv = ["--backbone", str(folder), "--quant", "F32", "--out", str(root / "bundle")]
    argv += ["--workspace", str(root), "--quiet", "--no-verify"]
    assert commands.run(export.parser(), export.work, argv) == 0
    [file] = (root / "bundle").glob("*.gguf")
    return folder, file.rename(root / "Large-2L-F32.gguf")


QUESTIONS = [
    Question(f"q{at}", "oranbench", f"Which item? {'word ' * at}", ("red", "green", "blue"), 0)
    for at in (1, 40, 3)
] + [Question("spelled", "", "Say", ("A B", "A", "A B C", "not this"), 0, True)]


def test_a_folder_scores_and_writes_as_its_gguf_file_does(model: tuple[Path, Path]) -> None:
    from tel_edge.eval.references.with_transformers import TransformersEngine
    from tel_edge.runtime.engines.with_llama import LlamaEngine

    folder, file = model
    llama, torch = LlamaEngine(file), TransformersEngine(folder, dtype="float32")
    assert torch.context == llama.context == 512
    asked = [(question, None) for question in QUESTIONS]
    wanted, found = dict(Scorer(llama).many(asked)), dict(Scorer(torch).many(asked))
    assert len(found) == len(QUESTIONS)
    for at, score in found.items():
        assert score.tokens == wanted[at].tokens  # type: ignore[union-attr]
        assert score.logprobs == pytest.approx(wanted[at].logprobs, abs=1e-2)  # type: ignore[union-attr]
    assert max(map(len, Scorer(torch).item(QUESTIONS[-1]).labels)) > 1
    ids = torch.tokenize("Which interface")
    how = [(ids, Sampling(2, 0.7, 6, "7 id"))]
    [(_, ours)], [(_, theirs)] = torch.generate(how, None), llama.generate(how, None)
    assert ours.texts == theirs.texts
    assert ours.generated == theirs.generated
    llama.close()


def test_a_folder_and_a_gguf_file_are_evaluated_alike(
    ask: Command, home: Path, model: tuple[Path, Path]
) -> None:
    folder, file = model
    argv = ("--reference-dtype", "float32", "--reference-name", "folder")
    assert ask(folder, *argv)[0] == 0
    assert ask(file)[0] == 0
    one, other = summary(home, "folder", "hf"), summary(home, "Large-2L", "F32")
    assert (one.variant.quant, one.variant.format) == ("float32", "hf")
    assert (other.variant.quant, other.variant.format) == ("F32", "gguf")
    assert other.variant.backbone_bytes == file.stat().st_size
    assert one.variant.backbone_bytes == (folder / "model.safetensors").stat().st_size
    assert one.run != other.run
    pairs = zip(
        read_records(out(home, "folder", "hf")),
        read_records(out(home, "Large-2L", "F32")),
        strict=True,
    )
    for ours, theirs in pairs:
        assert ours.id == theirs.id
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-2)
    assert "scored before" in ask(folder, *argv)[1]
    assert "scored before" in ask(file)[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
         "pickled weights are never loaded"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
        (lambda folder: edit(folder / "config.json", auto_map={"AutoConfig": "x.Y"}), "auto_map"),
        (lambda folder: edit(folder / "tokenizer_config.json", auto_map={}), "auto_map"),
        (lambda folder: edit(folder / "config.json", model_type="new"), "cannot load it"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_safe_or_whole_is_refused(
    ask: Command, home: Path, model: tuple[Path, Path], change: Any, said: str
) -> None:
    import shutil

    folder = Path(shutil.copytree(model[0], home / "changed"))
    change(folder)
    code, _, error = ask(folder)
    assert code == 2
    assert said in error


def edit(path: Path, **more: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


def test_all_parts_of_a_split_file_are_needed(ask: Command, tmp_path: Path) -> None:
    first = tmp_path / "m-Q8_0-00001-of-00002.gguf"
    first.write_bytes(fake.gguf(general__name="part"))
    assert "m-Q8_0-00002-of-00002.gguf: missing" in ask(first)[2]
    second = tmp_path / "m-Q8_0-00002-of-00002.gguf"
    second.write_bytes(fake.gguf(general__name="part")[:-2])
    assert "pass the first one" in ask(second)[2]
    assert "truncated" in ask(first)[2]


def test_labels_are_matched_without_the_space_before_them() -> None:
    likely = [(" B", math.log(0.5)), ("B", math.log(0.25)), ("▁A", math.log(0.125)), ("BA", -9.0)]
    made = endpoint.label_logprobs(likely, (" A", " B", " C"))
    assert made == pytest.approx((math.log(0.125), math.log(0.75), -9.0), abs=2e-6)
    assert not endpoint.unlisted(made)
    with pytest.raises(InputError):
        client.Client("http://host/v1", "with\nnewline")
