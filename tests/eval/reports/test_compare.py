"""`tel-report --compare`: what can be named, what is paired, what is left out and said."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from conftest import shown
from made_reports import Result, put, result

from tel_edge.eval import documents
from tel_edge.eval.commands import report
from tel_edge.eval.statistics import paired_difference
from tel_edge.runtime.bundles import manifest
from tel_edge.runtime.bundles.manifest import BackboneInfo, BundleFile, Manifest
from tel_edge.runtime.workspace import Workspace

Command = Callable[..., tuple[int, str, str]]
EVIL = "<script>alert('x')</script>|a"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A workspace with three variants: Q8_0 loses two answers and wins one, Q4_K_M loses 30."""
    put(
        tmp_path / "one",
        result("base-F16", wrong=range(80, 300)),
        result("lora-F16", wrong=range(0, 60)),
        result("lora-Q8_0", wrong={*range(1, 60), 70, 71}),
        result("lora-Q4_K_M", wrong=range(0, 90)),
    )
    return tmp_path / "one"


@pytest.fixture
def compare(home: Path, run_command: Command) -> Command:
    def made(*names: object, argv: tuple[str, ...] = ()) -> tuple[int, str, str]:
        line = ("--workspace", str(home), "--compare", *map(str, names), *argv)
        return run_command(report.parser(), report.work, *line)

    return made


def rows(said: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line) for line in said.splitlines()]


def test_two_variants_of_one_workspace(compare: Command, home: Path) -> None:
    code, said, err = compare("lora-F16", "lora-Q8_0", argv=("--json",))
    assert (code, err) == (0, "")
    header, row, last, _ = rows(said)
    assert header == [
        "variant", "category", "n", "Pass@1 before", "after", "points (95 %)", "lost/won",
        "p (Holm)", "verdict", "disk MB", "ms p50",
    ]  # fmt: skip
    assert row == [
        "lora-F16 -> lora-Q8_0", "oranbench", "300", "80.0 [75.1-84.1]", "79.7 [74.8-83.8]",
        "-0.3 [-2.1, +1.3]", "2/1", "1.000", "n too small", "9.5 -> 5.5", "10.0 -> 10.0",
    ]  # fmt: skip
    assert last == [
        f"{home / 'reports' / 'compare.md'}; lora-F16 -> lora-Q8_0: -0.3 [-2.1, +1.3] points, "
        "n too small"
    ]
    document = json.loads(said.splitlines()[-1])
    assert document == json.loads((home / "reports" / "compare.json").read_text())
    assert document["names"] == ["lora-F16", "lora-Q8_0"]
    (pair,) = document["pairs"]["lora-F16 -> lora-Q8_0"]
    change = paired_difference(1, 2, 300)
    assert pair["change"]["points"] == {
        "value": change.value, "low": change.low, "high": change.high
    }  # fmt: skip
    assert pair["change"]["verdict"] == "n too small"
    assert document["pooled"]["lora-F16 -> lora-Q8_0"]["lost"] == 2
    assert shown(home / "reports") == [
        "compare.json", "compare.md"
    ]  # fmt: skip


def test_the_way_round(compare: Command) -> None:
    assert rows(compare("lora-Q8_0", "lora-F16")[1])[1][5:7] == ["+0.3 [-1.3, +2.1]", "1/2"]


def test_two_workspaces_pair_variants_by_name(compare: Command, home: Path) -> None:
    other = home.parent / "two"
    put(
        other,
        result("lora-F16", wrong=range(0, 60)),
        result("lora-Q4_K_M", wrong=range(0, 60)),
        result("lora-Q4_K_M", "teletables"),
        result("lora-Q2_K", wrong=range(0, 60)),
    )
    code, said, err = compare(home, other)
    assert (code, err) == (0, "")
    assert [row[:2] for row in rows(said)[1:3]] == [
        ["lora-F16", "oranbench"], ["lora-Q4_K_M", "oranbench"]
    ]  # fmt: skip
    assert rows(said)[2][6:9] == ["0/30", "<0.001", "gain"]
    # What only one of them has is said, and none of it compared.
    notes = [
        "base-F16: in one of the two only",
        "lora-Q8_0: in one of the two only",
        "lora-Q2_K: in one of the two only",
        "lora-Q4_K_M, teletables: scored in one of the two only",
    ]
    assert said.splitlines()[3:7] == notes
    assert json.loads((home / "reports" / "compare.json").read_text())["left_out"] == notes
    assert "; lora-F16: +0.0 [-1.3, +1.3] points, n too small; lora-Q4_K_M: +10.0" in said


def test_several_categories_have_a_row_together(compare: Command, home: Path) -> None:
    put(
        home,
        result("lora-F16", "teletables", wrong=range(0, 60)),
        result("lora-Q8_0", "teletables", wrong=range(0, 73)),
    )
    *made, together, last = rows(compare("lora-F16", "lora-Q8_0")[1])
    # p 0.0002 of 13 lost, times two categories.
    assert [row[1:2] + row[6:9] for row in made[1:]] == [
        ["oranbench", "2/1", "1.000", "n too small"], ["teletables", "13/0", "<0.001", "loss"]
    ]  # fmt: skip
    assert together == [
        "lora-F16 -> lora-Q8_0", "all", "600", "-2.3 [-3.9, -1.2]", "15/1", "<0.001", "loss"
    ]  # fmt: skip
    assert last[0].endswith("points, loss in teletables")


def test_folders_of_results(compare: Command, home: Path) -> None:
    folder = home / "results" / "tel-nano"
    code, said, _ = compare(folder / "lora-F16", folder / "lora-Q4_K_M")
    assert code == 0
    assert rows(said)[1][0] == "lora-F16 -> lora-Q4_K_M"
    assert rows(said)[1][6:9] == ["30/0", "<0.001", "loss"]


def bundle(home: Path, quant: str) -> Path:
    """Write the manifest of a bundle whose digests are those of the results."""
    made = result(f"lora-{quant}").summary
    files = tuple(
        BundleFile(f"{kind}.gguf", kind, "gguf", quant, 1, str(made.made_with[kind]), category)
        for kind, category in (("backbone", None), ("adapter", "oranbench"))
    )
    folder = home.parent / f"bundle-{quant}"
    folder.mkdir()
    info = BackboneInfo("tel-nano", "llama", "a" * 64, "b" * 64, "c" * 64)
    digests = [replace(f, sha256=digest(f.sha256)) for f in files]
    manifest.write(Manifest(info, tuple(digests)), folder)
    return folder


def digest(text: str) -> str:
    """Return `text` as 64 hexadecimal digits, which a manifest's have to be."""
    return text.encode().hex()[:64].ljust(64, "0")


def hexed(made: Result) -> Result:
    """Return a result whose digests are those that `bundle` writes."""
    own = made.summary.made_with
    digests = {name: own[name] and digest(own[name]) for name in ("backbone", "adapter")}
    return Result(replace(made.summary, made_with={**own, **digests}), made.records)


def test_two_bundles_are_found_by_the_digests_of_their_files(
    run_command: Command, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    for name in ("base-F16", "lora-F16", "lora-Q8_0", "lora-Q4_K_M"):
        put(home, hexed(result(name, right=240 - len(name))))
    # One with an adapter that no bundle has.
    stale = hexed(result("lora-F16"))
    made = {**stale.summary.made_with, "adapter": "f" * 64}
    variant = replace(stale.summary.variant, name="lora-F16-old")
    put(home, Result(replace(stale.summary, made_with=made, variant=variant), stale.records))
    large, small = bundle(home, "F16"), bundle(home, "Q4_K_M")
    argv = ("--workspace", str(home), "--compare")
    code, said, err = run_command(report.parser(), report.work, *argv, str(small), "lora-F16")
    assert (code, err) == (0, "")
    assert rows(said)[1][0] == "lora-Q4_K_M -> lora-F16"
    # The first has a bare backbone too, whose type is not in the second.
    code, said, err = run_command(report.parser(), report.work, *argv, str(large), str(small))
    assert (code, err) == (0, "")
    assert rows(said)[1][:2] == ["lora-F16 -> lora-Q4_K_M", "oranbench"]
    # A bundle that nothing was scored of says how.
    for file in (home / "results" / "tel-nano" / "lora-Q4_K_M").iterdir():
        file.unlink()
    code, _, err = run_command(report.parser(), report.work, *argv, str(large), str(small))
    assert (code, err) == (
        2,
        f"tel-report: {small}: no results to compare; score it: tel-eval --bundle {small}\n",
    )


def test_other_questions_are_left_out_and_said(compare: Command, home: Path) -> None:
    put(
        home,
        result("lora-F16", "teletables"),
        result("lora-Q8_0", "teletables", split="another"),
    )
    code, said, _ = compare("lora-F16", "lora-Q8_0")
    note = "lora-F16 -> lora-Q8_0, teletables: scored on other questions"
    assert code == 0
    assert [row[1] for row in rows(said)[1:2]] == ["oranbench"]
    assert said.splitlines()[2] == note
    assert (
        note.replace("_", r"\_").replace(">", r"\>")
        in (home / "reports" / "compare.md").read_text()
    )


def test_without_records_the_summaries_are_shown(compare: Command, home: Path) -> None:
    for file in home.glob("results/*/lora-Q8_0/*.jsonl"):
        file.unlink()
    code, said, _ = compare("lora-F16", "lora-Q8_0")
    assert code == 0
    assert rows(said)[1][3:9] == ["80.0 [75.1-84.1]", "79.7 [74.8-83.8]", *"----"]
    assert said.splitlines()[2].endswith("no records, only the summaries are shown")
    assert said.splitlines()[-1].endswith("; no records to compare by")


def test_the_train_part_and_other_orders_are_not_compared(compare: Command, home: Path) -> None:
    made = result("lora-Q8_0", right=0)
    for change in ({"part": "train"}, {"rotated": True}):
        put(home, Result(replace(made.summary, **change), made.records))
    assert rows(compare("lora-F16", "lora-Q8_0")[1])[1][6] == "2/1"


NOTHING = (
    ("lora-F16", "nothing", "nothing: no results to compare; name a bundle, a workspace or a "
     "variant (there: base-F16, lora-F16, lora-Q4_K_M, lora-Q8_0)"),
    ("lora-F16", "EMPTY", "no results to compare; name a folder such as results/tel-nano/lora-F16"),
    ("lora-F16", "OTHER", "nothing of lora-F16 and "),
    ("lora-F16", "BROKEN", "lora-F16/oranbench.jsonl, line 3: no record"),
)  # fmt: skip


@pytest.mark.parametrize(("first", "second", "said"), NOTHING)
def test_what_cannot_be_compared_is_said_in_a_line_or_two(
    compare: Command, home: Path, first: str, second: str, said: str
) -> None:
    if second in ("EMPTY", "OTHER", "BROKEN"):
        other = home.parent / second
        if second == "EMPTY":
            other.mkdir()
        else:
            put(other, result("lora-F16", "teletables" if second == "OTHER" else "oranbench"))
        if second == "BROKEN":
            path = Workspace(other).results("tel-nano", "lora-F16", "oranbench")
            lines = path.read_text().splitlines(keepends=True)
            path.write_text("".join([*lines[:2], "{}\n", *lines[3:]]))
        second = str(other)
    code, out, err = compare(first, second)
    assert (code, out) == (2, "")
    assert said in err
    assert 1 <= len(err.splitlines()) <= 2
    assert not (home / "reports").exists()


def test_names_are_no_markup_in_markdown(compare: Command, home: Path) -> None:
    evil = result("lora-Q8_0", category=EVIL)
    (first, second) = (
        Result(replace(evil.summary, variant=replace(evil.summary.variant, name=name)), ())
        for name in ("lora-F16", "lora-Q8_0")
    )
    for made, name in ((first, "lora-F16"), (second, "lora-Q8_0")):
        path = Workspace(home).results("tel-nano", name, "evil")
        documents.write(path.with_suffix(".json"), asdict(made.summary))
    assert compare("lora-F16", "lora-Q8_0")[0] == 0
    text = (home / "reports" / "compare.md").read_text()
    assert r"\<script\>alert('x')\</script\>\|a" in text
    assert "<script" not in text.replace(r"\<script", "")


def test_the_same_inputs_give_the_same_bytes(compare: Command, home: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert compare("lora-F16", "lora-Q4_K_M", argv=("--out", str(tmp_path / name)))[0] == 0
    for name in ("compare.md", "compare.json"):
        one, other = ((tmp_path / at / name).read_bytes() for at in "ab")
        assert one == other
        assert len(one) > 300


def test_variants_without_a_name_in_common_are_refused(
    run_command: Command, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    put(one, result("lora-F16"), result("lora-Q8_0"))
    put(two, result("lora-Q4_K_M"), result("lora-Q6_K"))
    argv = ("--workspace", str(one), "--compare", str(one), str(two))
    code, _, err = run_command(report.parser(), report.work, *argv)
    assert (code, err) == (
        2,
        f"tel-report: nothing of {one} and {two} can be compared: variants lora-F16, lora-Q8_0 "
        "against lora-Q4_K_M, lora-Q6_K have no name in common\n",
    )
