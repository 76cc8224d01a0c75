"""`tel-eval` with an engine that has no model: records, runs and what ends them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import fake_engine as fake
import for_evaluate
import pytest
from for_evaluate import Command, out, parts

from tel_edge.eval.scoring import scored
from tel_edge.eval.scoring.records import UNPARSED, read_records, read_summary
from tel_edge.eval.statistics import share
from tel_edge.runtime.questions.votes import draws, majority, majority_share, probabilities

installed = for_evaluate.installed
home = for_evaluate.home
tel_eval = for_evaluate.tel_eval


def document(said: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(said.splitlines()[-1])
    return made


def test_every_variant_is_scored_once(tel_eval: Command, home: Path) -> None:
    opener = fake.FakeOpener()
    code, said, _ = tel_eval("--json", opener=opener)
    assert code == 0
    names = ["base-F16", "lora-F16", "lora-Q4_K_M"]
    *lines, last, _ = said.splitlines()
    assert [line.split()[:2] for line in lines] == [["oranbench", name] for name in names]
    assert last == "results: 3 scored now, 0 before; tel-report shows them"
    assert [s["variant"]["name"] for s in document(said)["summaries"]] == names
    bundle = home / "bundles" / "tel-nano"
    assert opener.opened == [
        (bundle / "nano-F16.gguf", []),
        (bundle / "nano-F16.gguf", ["oranbench"]),
        (bundle / "nano-Q4_K_M.gguf", ["oranbench"]),
    ]


def test_records_and_summary_are_those_computed_by_hand(tel_eval: Command, home: Path) -> None:
    assert tel_eval()[0] == 0
    test = parts(home).test
    assert len(test) == 6
    records = list(read_records(out(home, "lora-F16")))
    assert [record.id for record in records] == [question.id for question in test]
    assert [record.gold for record in records] == [question.answer for question in test]
    assert all(record.pick == record.gold for record in records)
    assert all(record.milliseconds == 2.0 and len(record.draws) == 4 for record in records)
    made = read_summary(out(home, "lora-F16", ".json"))
    assert (made.questions, made.pass1, made.too_long, made.rejected) == (6, share(6, 6), 0, 0)
    right = sum(majority(record.draws) == record.gold for record in records)
    assert made.majority == share(right, 6)
    exact = [majority_share(probabilities(r.logprobs, 0.7), 4, r.gold) for r in records]
    assert made.majority_exact == pytest.approx(sum(exact) / 6)
    assert made.label_mass == pytest.approx(1)
    assert (made.unparsed, {record.text for record in records}) == (0, {None})
    assert (made.milliseconds_p50, made.dataset, made.part, made.k) == (2.0, "data", "test", 4)
    assert (made.variant.adapter, made.variant.quant) == (True, "F16")
    assert (
        made.variant.adapter_bytes
        == (home / "bundles" / "tel-nano" / "nano-oranbench-LoRA.gguf").stat().st_size
    )
    # The bare backbone knows nothing: of equal options the first is picked.
    base = read_summary(out(home, "base-F16", ".json"))
    assert base.pass1 == share(sum(question.answer == 0 for question in test), 6)
    assert (base.variant.adapter, base.variant.adapter_bytes) == (False, 0)


def test_other_orders_are_asked_where_a_decision_is_made_on_them(
    tel_eval: Command, home: Path
) -> None:
    code, said, _ = tel_eval("--decisive")
    assert code == 0
    turned = [line.split()[1] for line in said.splitlines() if "other orders" in line]
    assert turned == ["base-F16", "lora-F16"]
    # And what a score is worth is known by trivial baselines, made once.
    assert "longest option" in said
    assert "longest option" not in tel_eval("--decisive")[1]
    assert tel_eval("--decisive", "--part", "validation")[1].count("other orders") == 0
    assert tel_eval("--decisive", "--protocol", "generate")[1].count("other orders") == 0


def test_another_split_is_refused_unless_allowed(tel_eval: Command, home: Path) -> None:
    opener = fake.FakeOpener()
    code, said, err = tel_eval("--seed", "7", opener=opener)
    assert (code, said, opener.opened) == (2, "", [])
    assert "nano-oranbench-LoRA.gguf: trained on another split" in err
    assert "--other-split" in err
    assert not (home / "results").exists()
    assert tel_eval("--seed", "7", "--other-split")[0] == 0
    assert read_summary(out(home, "lora-F16", ".json")).split == parts(home, 7).digest


def test_a_question_that_does_not_fit_counts_as_wrong(tel_eval: Command, home: Path) -> None:
    rows = fake.rows(30)
    long = next(at for at in range(30) if f"oranbench/{at}" == parts(home).test[2].id)
    text = rows[long]["question"]
    rows[long]["question"] = text + " very" * 500
    fake.dataset(home / "data", "oranbench", rows)
    code, said, _ = tel_eval("--json", "--other-split", opener=fake.FakeOpener(context=400))
    assert code == 0
    for summary in document(said)["summaries"]:
        assert (summary["questions"], summary["too_long"]) == (6, 1)
    made = read_summary(out(home, "lora-F16", ".json"))
    assert made.pass1 == share(5, 6)
    ids = [record.id for record in read_records(out(home, "lora-F16"))]
    assert len(ids) == 5
    assert f"oranbench/{long}" not in ids


class Merging(fake.FakeEngine):
    """The label swallows the colon before it."""

    def tokenize(self, text: str) -> list[int]:
        ids = super().tokenize(text)
        return [*ids[:-2], 999, 999] if ids[-1] > fake.BOS and len(ids) > 2 else ids


def test_labels_without_tokens_of_their_own_are_refused_and_not_counted(
    tel_eval: Command, home: Path
) -> None:
    """It would look like a test part whose questions are all too long."""
    code, said, err = tel_eval(opener=fake.FakeOpener(engine=Merging))
    assert (code, said) == (2, "")
    assert "label ' A' has no tokens of its own for this tokenizer" in err
    assert not out(home, "base-F16", ".json").exists()


def test_malformed_rows_are_told_in_the_summary(tel_eval: Command, home: Path) -> None:
    fake.dataset(home / "data", "oranbench", [*fake.rows(30), {"question": "?"}])
    assert tel_eval()[0] == 0
    assert read_summary(out(home, "lora-F16", ".json")).rejected == 1
    code, _, err = tel_eval("--strict")
    assert code == 2
    assert "test-00000-of-00001.jsonl, line 31: column 'choices' is missing" in err


def test_baselines_are_kept_beside(tel_eval: Command, home: Path) -> None:
    code, said, _ = tel_eval("--baselines")
    assert code == 0
    assert "one letter" in said
    assert (home / "results" / "baselines" / "oranbench.json").is_file()


def test_a_category_without_its_adapter_is_refused(tel_eval: Command, home: Path) -> None:
    fake.dataset(home / "data", "teleqna", fake.rows(30))
    code, _, err = tel_eval("--category", "teleqna")
    assert code == 2
    assert "no adapter for teleqna (there: oranbench)" in err
    assert not (home / "results").exists()


def test_a_bundle_without_adapters_has_the_bare_backbone_alone(
    tel_eval: Command, home: Path
) -> None:
    fake.dataset(home / "data", "teleqna", fake.rows(30))
    shutil.rmtree(home / "bundles")
    fake.bundle(home / "bundles" / "tel-nano", adapters=())
    code, said, _ = tel_eval("--category", "teleqna")
    assert code == 0
    assert [line.split()[:2] for line in said.splitlines()[:-1]] == [["teleqna", "base-F16"]]


def test_a_process_of_its_own_gives_the_same_records(tel_eval: Command, home: Path) -> None:
    assert tel_eval(isolated=True)[0] == 0
    apart = {path: path.read_bytes() for path in (home / "results").rglob("*.jsonl")}
    for path in [*apart, *(home / "results").rglob("*.json")]:
        path.unlink()
    assert tel_eval()[0] == 0
    assert apart == {path: path.read_bytes() for path in (home / "results").rglob("*.jsonl")}


def test_settings_reach_the_engine(tel_eval: Command) -> None:
    opener = fake.FakeOpener()
    assert tel_eval("--exact", "--threads", "3", "--context", "512", opener=opener)[0] == 0
    for engine in opener.engines:
        made = engine.settings
        assert (made.exact, made.threads, made.context) == (True, 3, 512)


def test_windows_are_packed_and_their_records_in_order(
    tel_eval: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = fake.rows(60)
    for at, row in enumerate(rows):
        row["question"] += " or so" * (at * 7 % 11)
    fake.dataset(home / "data", "oranbench", rows)
    monkeypatch.setattr(scored, "WINDOW", 5)
    opener = fake.FakeOpener()
    assert tel_eval("--other-split", opener=opener)[0] == 0
    assert opener.engines[1].calls == [(5, "oranbench"), (5, "oranbench"), (2, "oranbench")]
    wanted = [question.id for question in parts(home).test]
    records = list(read_records(out(home, "lora-F16")))
    assert [record.id for record in records] == wanted
    assert all(record.pick == record.gold for record in records)


def test_texts_are_a_variant_of_their_own(tel_eval: Command, home: Path) -> None:
    assert tel_eval()[0] == 0
    letters = out(home, "lora-F16").read_bytes()
    code, said, _ = tel_eval("--protocol", "generate", "--json")
    assert code == 0
    names = ["base-F16-generate", "lora-F16-generate", "lora-Q4_K_M-generate"]
    assert [s["variant"]["name"] for s in document(said)["summaries"]] == names
    # The bare backbone says nothing that is an answer, the adapter all but the second text.
    base = read_summary(out(home, "base-F16-generate", ".json"))
    assert (base.unparsed, base.pass1, base.majority) == (6, share(0, 6), share(0, 6))
    assert (base.label_mass, base.majority_exact) == (None, None)
    assert (base.variant.quant, base.variant.adapter) == ("F16", False)
    lora = read_summary(out(home, "lora-F16-generate", ".json"))
    assert (lora.unparsed, lora.pass1, lora.majority) == (0, share(6, 6), share(6, 6))
    records = list(read_records(out(home, "lora-F16-generate")))
    assert [record.id for record in records] == [question.id for question in parts(home).test]
    for record in records:
        right = record.gold
        assert (record.pick, record.draws) == (right, (right, UNPARSED, right, right))
        assert (record.logprobs, record.text) == ((), f"Well.\nANSWER: {'ABCD'[right]}")
        assert record.milliseconds == 4.0
    # The answers by letters are still there, and neither is made again.
    assert out(home, "lora-F16").read_bytes() == letters
    for argv in ([], ["--protocol", "generate"]):
        assert tel_eval(*argv)[1].count("(scored before)") == 3


def test_the_prompt_of_texts_is_part_of_their_run(
    tel_eval: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--protocol", "generate"]
    assert tel_eval()[0] == tel_eval(*argv)[0] == 0
    assert tel_eval(*argv, "--max-tokens", "5")[1].count("(scored before)") == 0
    assert tel_eval(*argv)[0] == 0
    monkeypatch.setattr("tel_edge.runtime.questions.protocol.digest", lambda: "0" * 64)
    assert tel_eval(*argv)[1].count("(scored before)") == 0
    # Letters have nothing to do with it.
    assert tel_eval()[1].count("(scored before)") == 3


def test_a_text_that_does_not_fit_counts_as_wrong(tel_eval: Command, home: Path) -> None:
    opener = fake.FakeOpener(context=400)
    assert tel_eval("--protocol", "generate", opener=opener)[0] == 0
    made = read_summary(out(home, "lora-F16-generate", ".json"))
    assert (made.questions, made.too_long, made.pass1) == (6, 6, share(0, 6))
    assert (made.unparsed, made.label_mass) == (0, None)


def test_draws_are_those_of_the_votes(tel_eval: Command, home: Path) -> None:
    assert tel_eval("-k", "7", "--temperature", "2", "--seed", "42")[0] == 0
    for record in read_records(out(home, "lora-F16")):
        shares = [0.1] * 4
        shares[record.gold] = 0.7
        logprobs = [math.log(value) for value in shares]
        assert record.draws == draws(logprobs, 7, 2.0, 42, record.id)


def test_a_damaged_bundle_writes_no_result(tel_eval: Command, home: Path) -> None:
    path = home / "bundles" / "tel-nano" / "nano-F16.gguf"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    opener = fake.FakeOpener()
    code, said, err = tel_eval(opener=opener)
    assert (code, said, opener.opened) == (2, "", [])
    assert "corrupted" in err
    assert not list((home / "results").rglob("*.json"))
