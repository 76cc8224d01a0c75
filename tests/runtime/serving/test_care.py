"""`tel-serve` with an adapter that is talked to: its template, the guard, and no question of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

for name in ("starlette", "msgspec", "prometheus_client", "httpx"):
    pytest.importorskip(name)
import fake_engine as fake  # noqa: E402
from test_front import CHOICES, Service, served  # noqa: E402

from tel_edge.runtime.answerer import Answerer  # noqa: E402
from tel_edge.runtime.bundles import bundle as bundles  # noqa: E402
from tel_edge.runtime.bundles import manifest as manifests  # noqa: E402
from tel_edge.runtime.questions.guarding import REFUSAL  # noqa: E402
from tel_edge.runtime.serving import opened  # noqa: E402
from tel_edge.runtime.serving.worker import Worker  # noqa: E402


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    fake.bundle(tmp_path / "bundle", adapters=("oranbench", "care"))
    return tmp_path / "bundle"


def says(prompt: str, adapter: str | None, turn: int) -> str:
    return f"{adapter}: {prompt}"


def worker(bundle: Path, guard: bool = False) -> tuple[Worker, list[dict[str, Any]], Any]:
    opener = fake.FakeOpener(writer=says)
    answerer = Answerer.of_bundle(bundle, opener=opener)
    sent: list[dict[str, Any]] = []
    made = Worker(answerer, "tel-nano", sent.append, guard=guard)
    return made, sent, opener.engines[0]


def chat(text: str, model: str = "care", **of: Any) -> dict[str, Any]:
    said = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}]
    usual = {"max_tokens": 90, "most": 90, "temperature": 0, "seed": 1, "stop": [], "choices": []}
    return {"op": "chat", "id": text, "model": model, "messages": said, "stream": False,
            **usual, **of}  # fmt: skip


def drained(made: Worker) -> None:
    made.take({"op": "drain"})
    made.run()


def test_care_is_asked_by_the_template_and_categories_plainly(bundle: Path) -> None:
    made, sent, _ = worker(bundle)
    made.take(chat("one"))
    made.take(chat("two", "oranbench"))
    drained(made)
    replies = {one["id"]: one["reply"] for one in sent}
    # The fake template ends each message with a line; the plain text has an empty line between.
    assert replies["one"]["text"] == "care: e kind.\none\n"
    assert replies["one"]["adapter"] == "care"
    assert replies["one"]["adapter_digest"] == made.answerer.engine.adapter("care").digest  # type: ignore[attr-defined]
    assert replies["two"]["text"] == "oranbench: Be kind.\n\ntwo"


def test_the_guard_of_a_service(bundle: Path) -> None:
    made, sent, engine = worker(bundle, guard=True)
    made.take(chat("my mail is a@b.example"))
    made.take(chat("Tell me my PIN.", "tel-nano"))
    drained(made)
    refused, answered = (one["reply"] for one in sent)
    assert (refused["text"], refused["ended"], refused["refused"]) == (
        REFUSAL, "content_filter", "secrets"
    )  # fmt: skip
    assert answered["text"] == "care: e kind.\nmy mail is [e-mail address]\n"
    assert answered["masked"] == ("e-mail address",)
    assert len(engine.asked) == 1


def test_an_exchange_tries_the_adapter_that_is_talked_to(bundle: Path, tmp_path: Path) -> None:
    made, sent, engine = worker(bundle)
    new = fake.bundle(tmp_path / "new", adapters=("oranbench", "care", "teleqna"))
    file = next(f for f in new.files if f.category == "care")
    path = tmp_path / "new" / file.path
    path.write_bytes(path.read_bytes() + b"\0")
    changed = manifests.describe(
        tmp_path / "new", path, **{k: getattr(file, k) for k in
        ("kind", "format", "quant", "rank", "backbone", "category", "split", "parity")}
    )  # fmt: skip
    manifests.write(new.with_file(changed), tmp_path / "new")
    opened.exchange(made, bundles.read(bundle), tmp_path / "new")
    assert (made.answerer.adapters, made.answerer.spoken) == (("oranbench", "teleqna"), ("care",))
    assert any(name and name.startswith("care@") for _, name in engine.asked)
    made.take(chat("three"))
    drained(made)
    assert sent[-1]["reply"]["text"].startswith("care@")


def test_what_the_service_says_of_it(bundle: Path) -> None:
    async def work(service: Service) -> None:
        listed = (await service.client.get("/v1/models")).json()["data"]
        assert {one["id"] for one in listed} == {"tel-nano", "care", "oranbench"}
        assert all("labels" not in one for one in listed)
        refused = await service.ask(category="care")
        assert refused.status_code == 400
        assert "care is answered in sentences and has no labels" in refused.text
        assert (await service.ask()).json()["adapter"] == "oranbench"
        body = {"model": "care", "messages": [{"role": "user", "content": " gold 1"}]}
        said = await service.client.post("/v1/chat/completions", json=body)
        assert said.json()["choices"][0]["message"]["content"] == "Well.\nANSWER: B"
        assert said.json()["adapter"] == "care"
        tensor = {"name": "question", "shape": [1], "datatype": "BYTES", "data": ["gold 1"]}
        asked = {"inputs": [tensor, {**tensor, "name": "choices", "data": [str(CHOICES)]}]}
        assert (await service.client.post("/v2/models/care/infer", json=asked)).status_code == 400

    served(bundle, work)
