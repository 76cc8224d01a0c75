"""`tel-eval` with an engine that has no model: records, runs and what ends them."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_engine as fake
import for_evaluate
import pytest
from for_evaluate import Command, out, parts

from tel_edge.eval.scoring import scored
from tel_edge.eval.scoring.records import UNPARSED, read_records, read_summary
from tel_edge.eval.statistics import share
from tel_edge.runtime.bundles import manifest
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


def test_draws_are_the_same_in_every_order(tel_eval: Command, home: Path) -> None:
    assert tel_eval()[0] == 0
    before = {record.id: record.draws for record in read_records(out(home, "base-F16"))}
    lines = out(home, "base-F16").read_text().splitlines(keepends=True)
    out(home, "base-F16").write_text("".join(lines[3:]))
    out(home, "base-F16", ".json").unlink()
    assert tel_eval()[0] == 0
    after = list(read_records(out(home, "base-F16")))
    assert {record.id: record.draws for record in after} == before
    assert [record.id for record in after][-3:] == list(before)[:3]


def test_a_second_run_opens_nothing(tel_eval: Command, home: Path) -> None:
    assert tel_eval()[0] == 0
    before = {path: path.read_bytes() for path in (home / "results").rglob("*.json*")}
    opener = fake.FakeOpener()
    code, said, _ = tel_eval(opener=opener)
    assert (code, opener.opened) == (0, [])
    assert said.count("(scored before)") == 3
    assert before == {path: path.read_bytes() for path in (home / "results").rglob("*.json*")}


def test_a_torn_line_is_mended_and_only_the_missing_are_scored(
    tel_eval: Command, home: Path
) -> None:
    assert tel_eval()[0] == 0
    path = out(home, "lora-F16")
    whole = path.read_text()
    path.write_text(whole[:-40])
    out(home, "lora-F16", ".json").unlink()
    opener = fake.FakeOpener()
    assert tel_eval(opener=opener)[0] == 0
    assert [len(engine.asked) for engine in opener.engines] == [1]
    assert path.read_text() == whole
    assert read_summary(out(home, "lora-F16", ".json")).questions == 6


def test_records_of_other_files_are_dropped(tel_eval: Command, home: Path) -> None:
    assert tel_eval()[0] == 0
    old = {record.run for record in read_records(out(home, "lora-F16"))}
    base = out(home, "base-F16").read_bytes()
    bundle = home / "bundles" / "tel-nano"
    made = manifest.read(bundle)
    keys = {"general__type": "adapter", "tel_edge__backbone__weights": fake.WEIGHTS}
    path = bundle / "nano-oranbench-LoRA.gguf"
    path.write_bytes(fake.gguf(**keys, again="yes"))
    known = {"quant": "F16", "category": "oranbench", "backbone": fake.WEIGHTS}
    file = manifest.describe(bundle, path, kind="adapter", format="gguf", **known)
    manifest.write(made.with_file(replace(file, split=parts(home).digest)), bundle)
    code, said, _ = tel_eval()
    assert code == 0
    assert said.count("(scored before)") == 1
    new = {record.run for record in read_records(out(home, "lora-F16"))}
    assert len(new) == 1
    assert not new & old
    assert out(home, "base-F16").read_bytes() == base


def test_the_results_of_another_bundle_are_kept_and_found_again(
    tel_eval: Command, home: Path
) -> None:
    """A second bundle takes the place of the first one's results, and erases nothing."""
    assert tel_eval()[0] == 0
    first = {path: path.read_bytes() for path in (home / "results").rglob("*.json*")}
    fake.bundle(home / "other", split=parts(home).digest, quants=("Q4_K_M",))
    opener = fake.FakeOpener()
    code, said, _ = tel_eval("--bundle", str(home / "other"), opener=opener)
    assert (code, len(opener.opened)) == (0, 2)
    folder = home / "results" / "tel-nano" / "lora-Q4_K_M"
    assert len(list((folder / "earlier").glob("oranbench.*.jsonl"))) == 1
    opener = fake.FakeOpener()
    code, said, _ = tel_eval(opener=opener)
    assert (code, opener.opened, said.count("(scored before)")) == (0, [], 3)
    assert {path: path.read_bytes() for path in first} == first


@pytest.mark.parametrize("argv", [["-k", "8"], ["--temperature", "1"], ["-k", "2", "--seed", "42"]])
def test_votes_are_drawn_of_records(argv: list[str], tel_eval: Command, home: Path) -> None:
    """The probabilities are there, so no question is asked again, and none is lost."""
    assert tel_eval()[0] == 0
    before = list(read_records(out(home, "lora-F16")))
    opener = fake.FakeOpener()
    code, said, _ = tel_eval(*argv, opener=opener)
    assert (code, opener.opened, said.count("(scored before)")) == (0, [], 3)
    after = list(read_records(out(home, "lora-F16")))
    made = read_summary(out(home, "lora-F16", ".json"))
    how = made.made_with["settings"]
    assert {record.run for record in after} == {made.run} != {record.run for record in before}
    assert [r.draws for r in after] == [
        draws(r.logprobs, how["k"], how["temperature"], how["seed"], r.id) for r in before
    ]
    assert [replace(r, run="", draws=()) for r in after] == [
        replace(r, run="", draws=()) for r in before
    ]
    # As if they had been asked again.
    shutil.rmtree(home / "results")
    assert tel_eval(*argv)[0] == 0
    again = read_summary(out(home, "lora-F16", ".json"))
    assert (again.run, again.majority, again.majority_exact) == (
        made.run, made.majority, pytest.approx(made.majority_exact, abs=1e-5)
    )  # fmt: skip


def test_a_limit_is_a_part_of_more(tel_eval: Command, home: Path) -> None:
    def ids(variant: str = "lora-F16") -> list[str]:
        return [record.id for record in read_records(out(home, variant))]

    opener = fake.FakeOpener()
    assert tel_eval("--limit", "2", opener=opener)[0] == 0
    two, test = ids(), [question.id for question in parts(home).test]
    assert [id for id in test if id in two] == two
    made = read_summary(out(home, "lora-F16", ".json"))
    assert (made.questions, made.left_out) == (2, 4)
    assert tel_eval("--limit", "4")[0] == 0
    assert set(two) < set(ids())
    opener = fake.FakeOpener()
    assert tel_eval(opener=opener)[0] == 0
    assert [len(engine.asked) for engine in opener.engines] == [2, 2, 2]
    # Who wants fewer is served by all.
    code, said, _ = tel_eval("--limit", "2", opener=(opener := fake.FakeOpener()))
    assert (code, opener.opened, said.count("(scored before)")) == (0, [], 3)
    assert read_summary(out(home, "lora-F16", ".json")).left_out == 0


def test_a_limit_keeps_what_a_killed_run_has_scored(tel_eval: Command, home: Path) -> None:
    assert tel_eval()[0] == 0
    whole = out(home, "lora-F16").read_text()
    out(home, "lora-F16").write_text("".join(whole.splitlines(keepends=True)[:5]))
    out(home, "lora-F16", ".json").unlink()
    assert tel_eval("--limit", "1")[0] == 0
    opener = fake.FakeOpener()
    assert tel_eval(opener=opener)[0] == 0
    assert [len(engine.asked) for engine in opener.engines] == [1]


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


@pytest.mark.parametrize(
    "argv",
    [
        ["--context", "2048"],
        ["--exact"],
        ["--gpu-layers", "-1"],
    ],
)
def test_other_settings_are_another_run(argv: list[str], tel_eval: Command, home: Path) -> None:
    assert tel_eval()[0] == 0
    code, said, _ = tel_eval(*argv)
    assert code == 0
    assert "(scored before)" not in said
    assert len({record.run for record in read_records(out(home, "lora-F16"))}) == 1


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


def test_an_engine_that_dies_is_told_and_its_records_kept(tel_eval: Command, home: Path) -> None:
    # Of one length, since the engine scores the longest first.
    rows = [
        {**row, "question": f"Item {at:02}, gold {at % 4}?"} for at, row in enumerate(fake.rows(30))
    ]
    fake.dataset(home / "data", "oranbench", rows)
    fake.bundle(home / "bundles" / "tel-nano", quants=("F16",), split=parts(home).digest)
    dying = fake.FakeOpener(rule=fake.dies)
    code, _, err = tel_eval(opener=dying, isolated=True)
    assert code == 1
    assert "oranbench base-F16: the engine died; what was scored is kept in" in err
    assert len(err.splitlines()) == 2
    kept = list(read_records(out(home, "base-F16")))
    assert len(kept) == 2
    assert not out(home, "base-F16", ".json").exists()
    # The same command goes on where that one ended.
    assert tel_eval()[0] == 0
    assert list(read_records(out(home, "base-F16")))[:2] == kept
    assert read_summary(out(home, "base-F16", ".json")).questions == 6


def test_threads_are_no_other_run(tel_eval: Command, home: Path) -> None:
    assert tel_eval()[0] == 0
    opener = fake.FakeOpener()
    code, said, _ = tel_eval("--threads", "7", opener=opener)
    assert (code, opener.opened) == (0, [])
    assert said.count("(scored before)") == 3
    made = read_summary(out(home, "lora-F16", ".json")).made_with["engine_settings"]
    assert made["context"] == 4096
    assert not {"threads", "max_adapters"} & made.keys()


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
