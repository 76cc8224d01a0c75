"""Adapters change under load: no question fails, and each answer says which adapter it is of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest

for name in ("starlette", "msgspec", "prometheus_client", "httpx"):
    pytest.importorskip(name)
import test_front  # noqa: E402
from test_front import Service, running  # noqa: E402

from tel_edge.runtime.bundles import manifest  # noqa: E402
from tel_edge.runtime.bundles.manifest import describe  # noqa: E402
from tel_edge.runtime.serving.problems import Failed  # noqa: E402


def retrained(folder: Path, *categories: str, text: str = "y") -> Path:
    """Write the same backbone with other adapters for these categories."""
    fake.bundle(folder, adapters=("oranbench", "teleqna"))
    made = manifest.read(folder)
    for category in categories:
        path = folder / f"nano-{category}-LoRA.gguf"
        keys = {"general__type": "adapter", "tel_edge__backbone__weights": fake.WEIGHTS}
        path.write_bytes(fake.gguf(**keys, tel_edge__category=category, general__name=text))
        known = {"backbone": fake.WEIGHTS, "category": category, "parity": fake.PARITY}
        made = made.with_file(
            describe(folder, path, kind="adapter", format="gguf", quant="F16", rank=8, **known)
        )
    manifest.write(made, folder)
    return folder


def served(folder: Path, work: Callable[[Service], Coroutine[Any, Any, None]]) -> None:
    async def all_of_it() -> None:
        async with running(folder) as service:
            await work(service)

    asyncio.run(all_of_it())


def digests(folder: Path) -> dict[str | None, str]:
    return {f.category: f.sha256 for f in manifest.read(folder).files if f.kind == "adapter"}


bundle = test_front.bundle


def test_answers_are_of_the_bundle_that_they_name(bundle: Path, tmp_path: Path) -> None:
    others = [
        bundle,
        retrained(tmp_path / "b", "oranbench"),
        retrained(tmp_path / "c", "oranbench", "teleqna", text="z"),
    ]
    wanted = {folder: digests(folder) for folder in others}

    async def work(service: Service) -> None:
        done = False
        answers: list[dict[str, Any]] = []

        async def client(category: str) -> None:
            while not done:
                reply = await service.ask("gold 1", category=category)
                assert reply.status_code == 200, reply.text
                answers.append(reply.json())

        clients = [asyncio.ensure_future(client(one)) for one in ("oranbench", "teleqna") * 3]
        named: dict[str, Path] = {service.link.info["bundle"]: bundle}  # type: ignore[index]
        for turn in range(12):
            folder = others[(turn + 1) % 3]
            named[(await service.link.reload(str(folder)))["bundle"]] = folder
            await asyncio.sleep(0.02)
        done = True
        await asyncio.gather(*clients)
        assert len(named) == 3
        for answer in answers:
            assert answer["adapter_digest"] == wanted[named[answer["bundle"]]][answer["adapter"]]
        assert len({answer["bundle"] for answer in answers}) == 3

    served(bundle, work)


def test_a_bundle_that_does_not_fit_changes_nothing(bundle: Path, tmp_path: Path) -> None:
    broken = retrained(tmp_path / "b", "oranbench")
    (broken / "nano-oranbench-LoRA.gguf").write_bytes(b"GGUF")
    other = tmp_path / "c"
    fake.bundle(other, quants=("Q8_0",))
    (other / "nano-Q8_0.gguf").write_bytes(fake.gguf(general__name="another"))

    async def work(service: Service) -> None:
        before = service.link.info["bundle"]  # type: ignore[index]
        for folder, said in ((broken, "goes on"), (other, "backbone"), (tmp_path / "none", "none")):
            with pytest.raises(Failed, match=said):
                await service.link.reload(str(folder))
            answer = (await service.ask()).json()
            assert (answer["bundle"], answer["index"]) == (before, 2)

    served(bundle, work)


def test_a_process_started_again_opens_the_bundle_that_answered(
    bundle: Path, tmp_path: Path
) -> None:
    later = retrained(tmp_path / "b", "oranbench")

    async def work(service: Service) -> None:
        digest = (await service.link.reload(str(later)))["bundle"]
        assert (await service.ask("die")).status_code == 503
        await asyncio.wait_for(service.ready(), 20)
        answer = (await service.ask()).json()
        assert answer["bundle"] == digest
        assert answer["adapter_digest"] == digests(later)["oranbench"]

    served(bundle, work)
