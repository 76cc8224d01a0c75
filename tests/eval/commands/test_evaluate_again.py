"""`tel-eval` again, after it was killed or with other settings: what is asked anew and what not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import fake_engine as fake
import for_evaluate
import pytest
from for_evaluate import Command, out, parts

from tel_edge.eval.scoring.records import read_records, read_summary
from tel_edge.runtime.bundles import manifest
from tel_edge.runtime.questions.votes import draws

installed = for_evaluate.installed
home = for_evaluate.home
tel_eval = for_evaluate.tel_eval


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
