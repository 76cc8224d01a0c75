"""Labels in words, generated texts, the router and loose files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import fake_engine as fake
import for_run
import numpy as np
from for_run import ASK, MIXED, Command, jsonl, records

from tel_edge.eval.scoring.router import save
from tel_edge.runtime.bundles import manifest
from tel_edge.runtime.questions.router import Router, features

home = for_run.home
tel_run = for_run.tel_run


def test_labels_in_words(tel_run: Command) -> None:
    argv = ["--category", "oranbench", "--labels", "yes, no ,maybe not"]
    rows = (
        {"question": "gold 1"},
        {"question": "gold 0", "labels": ["up", "down"]},
        {**ASK, "question": "gold 3"},
    )
    opener = fake.FakeOpener()
    code, out, _ = tel_run(*argv, lines=jsonl(*rows), opener=opener)
    assert code == 0
    assert [record["answer"] for record in records(out)] == ["no", "up", "d"]
    prompts = {text for text, _ in opener.engines[0].asked}
    assert "gold 1\nAnswer:" in prompts
    assert not any("maybe" in prompt for prompt in prompts)
    assert tel_run(*argv, "is it gold 2?")[1].startswith('{"id": "1", "answer": "maybe not"')


def test_labels_cannot_be_generated(tel_run: Command) -> None:
    lines = jsonl({"question": "gold 0", "labels": ["up", "down"]}, ASK)
    argv = ["--category", "oranbench", "--protocol", "generate"]
    code, out, _ = tel_run(*argv, lines=lines)
    assert code == 1
    assert "labels of a request can be scored only" in records(out)[0]["error"]
    assert records(out)[1]["index"] == 2


def test_answers_are_read_from_generated_texts(tel_run: Command) -> None:
    """The second sampled text says nothing."""
    argv = ["--category", "oranbench", "--protocol", "generate", "--quiet"]
    code, out, err = tel_run(*argv, lines=jsonl(ASK))
    assert (code, err) == (0, "")
    assert records(out) == [
        {
            "id": "1",
            "answer": "c",
            "index": 2,
            "text": "Well.\nANSWER: C",
            "votes": [2, None, 2, 2],
            "majority": 2,
            "adapter": "oranbench",
        }
    ]
    code, out, _ = tel_run("--no-adapter", *argv[2:], "-k", "2", lines=jsonl(ASK))
    assert code == 0
    assert records(out) == [
        {
            "id": "1",
            "answer": None,
            "index": None,
            "text": "Hard to say.",
            "votes": [None, None],
            "majority": None,
            "adapter": None,
        }
    ]


def test_generation_is_asked_for_as_it_is_told(tel_run: Command) -> None:
    class Watched(fake.FakeEngine):
        def generate(self, prompts: Any, adapter: str | None) -> Any:
            ways.extend(how for _, how in prompts)
            return super().generate(prompts, adapter)

    ways: list[Any] = []
    argv = ["--protocol", "generate", "-k", "3", "--temperature", "0.5", "--max-tokens", "7"]
    argv += ["--category", "3gpp_tsg", "--seed", "9"]
    opener = fake.FakeOpener(engine=Watched, writer=lambda *_: "I say SA4-bis, SA4")
    code, out, _ = tel_run(*argv, lines=jsonl({"question": "x", "id": "q"}), opener=opener)
    assert code == 0
    assert [(how.k, how.temperature, how.limit, how.seed) for how in ways] == [(3, 0.5, 7, "9 q")]
    # The first run that looks like a group counts, and SA4-bis is none.
    assert records(out)[0]["index"] is None
    opener = fake.FakeOpener(writer=lambda *_: "SA4.")
    _, out, _ = tel_run(*argv, lines=jsonl({"question": "x"}), opener=opener)
    assert records(out)[0]["answer"] == "SA4"


def routed(home: Path, threshold: float = 0.5) -> None:
    """Put a router into the bundle that finds oranbench likely, and 3gpp_tsg for "tdoc"."""
    folder = home / "bundles" / "tel-nano"
    weights = np.zeros((2, 2**12), np.float16)
    weights[1, features("tdoc", (), 2**12)[0]] = 50
    bias = np.array([2.0, 0.0], np.float32)
    path = folder / "router.safetensors"
    save(Router(("oranbench", "3gpp_tsg"), weights, bias, 1.0, threshold, "ab" * 32), path)
    known = {"kind": "router", "format": "safetensors", "quant": "F16", "source": "ab" * 32}
    made = manifest.read(folder)
    manifest.write(made.with_file(manifest.describe(folder, path, **known)), folder)


def test_a_router_finds_the_category_of_a_request_without_one(tel_run: Command, home: Path) -> None:
    routed(home)
    lines = jsonl(ASK, {"question": "tdoc gold 3"}, {**ASK, "category": "oranbench"})
    opener = fake.FakeOpener()
    code, out, _ = tel_run(lines=lines, opener=opener)
    assert code == 0
    one, two, three = records(out)
    assert list(one)[:3] == ["id", "category", "route_probability"]
    # 3gpp_tsg is none that a request with choices may have.
    assert (one["category"], one["route_probability"], one["answer"]) == ("oranbench", 1, "c")
    assert (two["category"], two["answer"]) == ("3gpp_tsg", "CT6")
    assert two["route_probability"] > 0.9
    assert "category" not in three
    assert Counter(adapter for _, adapter in opener.engines[0].asked) == {
        "oranbench": 2,
        "3gpp_tsg": 1,
    }
    # Where all of them are named, nothing is routed.
    _, out, _ = tel_run("--category", "oranbench", lines=jsonl(ASK))
    assert "category" not in records(out)[0]


def test_below_the_threshold_the_bare_backbone_answers(tel_run: Command, home: Path) -> None:
    routed(home, threshold=0.95)
    lines = jsonl({"question": "gold 1", "labels": ["up", "down"]})
    found = []
    for argv in ([], ["--threshold", "0.5"]):
        opener = fake.FakeOpener()
        code, out, _ = tel_run(*argv, lines=lines, opener=opener)
        assert code == 0
        (record,) = records(out)
        # 1 / (1 + exp(-2)): the router is as sure as before.
        assert record["route_probability"] == 0.880797
        found.append((record["category"], opener.engines[0].asked))
    assert found == [
        (None, [("gold 1\nAnswer:", None)]),
        ("oranbench", [("gold 1\nAnswer:", "oranbench")]),
    ]


def test_a_request_sent_to_a_category_without_adapter_is_the_bare_backbones(
    tel_run: Command, home: Path
) -> None:
    folder = home / "bundles" / "tel-nano"
    (folder / "manifest.json").unlink()
    fake.bundle(folder, adapters=("3gpp_tsg",))
    routed(home)
    opener = fake.FakeOpener()
    code, out, _ = tel_run(lines=jsonl(ASK, {**ASK, "category": "oranbench"}), opener=opener)
    assert code == 1
    first, second = records(out)
    assert (first["category"], first["adapter"]) == (None, None)
    assert [adapter for _, adapter in opener.engines[0].asked] == [None]
    # Who names the category means its adapter.
    assert second == {"id": "2", "line": 2, "error": "no adapter for oranbench (there: 3gpp_tsg)"}


def test_a_damaged_router_is_refused(tel_run: Command, home: Path) -> None:
    routed(home)
    path = home / "bundles" / "tel-nano" / "router.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    opener = fake.FakeOpener()
    code, out, err = tel_run(lines=jsonl(ASK), opener=opener)
    assert (code, out, opener.opened) == (2, "", [])
    assert "router.safetensors: " in err
    # Who names the category needs none.
    assert tel_run("--category", "oranbench", lines=jsonl(ASK))[0] == 0


def test_loose_files_are_opened_with_a_warning(tel_run: Command, home: Path) -> None:
    folder = home / "bundles" / "tel-nano"
    (folder / "manifest.json").unlink()
    backbone, adapter = folder / "nano-F16.gguf", folder / "nano-oranbench-LoRA.gguf"
    opener = fake.FakeOpener()
    argv = ["--backbone-file", str(backbone), "--adapter-file", str(adapter)]
    code, out, err = tel_run(*argv, "--category", "oranbench", lines=jsonl(ASK), opener=opener)
    assert code == 0
    assert records(out)[0]["answer"] == "c"
    assert opener.opened == [(backbone, ["oranbench"])]
    assert "warning: nothing binds nano-F16.gguf and its 1 adapters to each other" in err
    assert "1 answered with nano-F16.gguf, 0 refused" in err
    # Several, each under the category that it is for.
    argv = ["--backbone-file", str(backbone)]
    for name in ("oranbench", "3gpp_tsg"):
        argv += ["--adapter-file", f"{name}={folder / f'nano-{name}-LoRA.gguf'}"]
    code, out, _ = tel_run(*argv, lines=jsonl(*MIXED), opener=opener)
    assert code == 0
    assert opener.opened[-1] == (backbone, ["3gpp_tsg", "oranbench"])
    # Without one it is the bare backbone that is asked.
    _, out, _ = tel_run("--backbone-file", str(backbone), lines=jsonl(ASK), opener=opener)
    assert records(out)[0]["probabilities"] == [0.25] * 4


def test_loose_files_that_do_not_belong_together_are_refused(tel_run: Command, home: Path) -> None:
    folder = home / "bundles" / "tel-nano"
    backbone, adapter = folder / "bound.gguf", folder / "nano-oranbench-LoRA.gguf"
    backbone.write_bytes(fake.gguf(tel_edge__backbone__weights="0" * 64))
    opener = fake.FakeOpener()
    argv = ["--backbone-file", str(backbone), "--adapter-file"]
    for text, said in (
        (f"oranbench={adapter}", "nano-oranbench-LoRA.gguf: made for another backbone than bound"),
        (f"oranbench={backbone}", "bound.gguf: no LoRA adapter (general.type)"),
        (f"poetry={adapter}", "unknown category 'poetry'"),
        (str(adapter), "pass --category, or CATEGORY="),
        ("oranbench=nowhere.gguf", "nowhere.gguf"),
    ):
        code, out, err = tel_run(*argv, text, lines=jsonl(ASK), opener=opener)
        assert (code, out, opener.opened) == (2, "", []), text
        assert said in err
        assert len(err.splitlines()) <= 2
