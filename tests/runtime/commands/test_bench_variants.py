"""`tel-bench` on several types and formats at a time."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_engine as fake
import for_bench
import pytest
from for_bench import CLOCK, Command, Engine, GetsSlower, LikesSmallBatches

from tel_edge.runtime.answerer import Answerer
from tel_edge.runtime.bundles import bundle, formats
from tel_edge.runtime.commands import bench
from tel_edge.runtime.device import profile
from tel_edge.runtime.engines.engine import (
    Item,
    Score,
)
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.measuring import comparison

_clock = for_bench._clock
home = for_bench.home
tel_bench = for_bench.tel_bench


class OnnxIsFaster(Engine):
    """As engines of both formats are: 1 ms and 2 ms, and ONNX tells little about its memory."""

    def cost(self) -> float:
        return 0.001 if self.path.suffix == ".onnx" else 0.002

    def memory_split(self) -> dict[str, int]:
        return {"kv": 60, "adapters": 4} if self.path.suffix == ".onnx" else super().memory_split()


class RefusesOnnx(Engine):
    def score(self, items: Sequence[Item], adapter: str | None) -> Iterator[tuple[int, Score]]:
        if self.path.suffix == ".onnx":
            raise InputError("no\n room")
        return super().score(items, adapter)


@pytest.fixture
def both(home: Path) -> Path:
    """The workspace's bundle, with ONNX beside GGUF."""
    folder = home / "bundles" / "tel-nano"
    fake.onnx(folder)
    return folder


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The formats whose engine is installed, both if nothing is taken out."""
    there = {"gguf", "onnx"}
    monkeypatch.setattr(formats.Format, "installed", lambda self: self.name in there)
    return there


@pytest.mark.usefixtures("both", "installed")
def test_the_smallest_of_each_format_are_compared_in_one_table(tel_bench: Command) -> None:
    code, out, err = tel_bench("--questions", "8", "--repeat", "1", "--json", opener=OnnxIsFaster)
    assert code == 0
    head, first, *lines, verdict, last = out.splitlines()
    assert head.split() == ["Q4_K_M", "(gguf)", "int4", "(onnx)"]
    assert first.split() == ["questions/s", "4,000.00", "8,000.00"]
    assert verdict == (
        "faster on this machine: int4 (onnx), 8,000.00 questions/s, 2.00 times Q4_K_M (gguf)"
    )
    shown = {line[:20].strip(): line[20:].split() for line in lines}
    assert shown["KV cache"] == ["0.0", "MB", "0.0", "MB"]
    assert shown["compute"] == ["0.0", "MB", "-"]
    assert shown["rest"][-1] == "-"
    assert shown["picks as it"] == ["100%", "100%"]
    # The rows are those of one variant.
    alone = tel_bench("--questions", "8", "--repeat", "1", "--quant", "int4")[1].splitlines()
    assert [line[:20].strip() for line in alone] == ["questions/s", *shown]
    said = err.splitlines()
    # Of the bundle's two adapters, the one that both formats have.
    assert said[0] == "tel-nano Q4_K_M and int4, oranbench adapter, 8 questions"
    assert said[1].startswith("Q4_K_M (gguf): nothing tuned, so safe settings: threads all, batch")
    assert said[2] == "int4 (onnx): nothing tuned, so safe settings: threads all, batch auto"
    assert said[3:] == [
        "Q4_K_M (gguf): 4,000.00 questions/s",
        "int4 (onnx): 8,000.00 questions/s",
    ]
    document = json.loads(last)
    assert set(document) == {"variants", "fastest", "chosen"}
    assert document["fastest"] == document["chosen"] == "int4"
    assert [one["quant"] for one in document["variants"]] == ["Q4_K_M", "int4"]
    engines = [one["engine"] for one in document["variants"]]
    assert engines == [profile.engine("gguf"), profile.engine("onnx")]
    _, out, _ = tel_bench("--questions", "8", "--repeat", "1", "--quant", "F16", "--json")
    assert set(document["variants"][0]) == set(json.loads(out.splitlines()[-1]))


# What is installed, arguments, what is measured.
CHOSEN: tuple[tuple[set[str], list[str], list[str]], ...] = (
    ({"gguf"}, [], ["Q4_K_M"]),
    ({"onnx"}, [], ["int4"]),
    (set(), [], ["Q4_K_M"]),
    ({"gguf", "onnx"}, [], ["Q4_K_M", "int4"]),
    ({"gguf", "onnx"}, ["--format", "onnx"], ["int4"]),
    ({"gguf", "onnx"}, ["--format", "gguf"], ["Q4_K_M"]),
    ({"gguf", "onnx"}, ["--quant", "fp32"], ["fp32"]),
    ({"gguf", "onnx"}, ["--tune"], ["Q4_K_M", "int4"]),
    ({"gguf", "onnx"}, ["--tune", "--quant", "int4,int4"], ["int4"]),
    ({"gguf", "onnx"}, ["--quant", "int4, F16,fp32,int4"], ["int4", "F16", "fp32"]),
    ({"gguf", "onnx"}, ["--quant", "fp32,int4", "--format", "onnx"], ["fp32", "int4"]),
)


@pytest.mark.parametrize(("there", "argv", "wanted"), CHOSEN)
def test_what_is_measured(
    there: set[str], argv: list[str], wanted: list[str], both: Path, installed: set[str]
) -> None:
    installed.intersection_update(there)
    args = bench.parser().parse_args(["--bundle", str(both), "--quiet", *argv])
    whats = bench.subjects(args)
    assert [what.backbone.quant for what in whats] == wanted
    assert len({(what.category, what.questions) for what in whats}) == 1
    assert all(what.adapter and what.adapter.format == what.backbone.format for what in whats)


@pytest.mark.usefixtures("installed")
def test_an_adapter_that_one_format_lacks_is_used_for_none(tel_bench: Command, home: Path) -> None:
    folder = home / "bundles" / "tel-nano"
    fake.onnx(folder, adapters=())
    code, out, err = tel_bench("--questions", "8", "--repeat", "1", "--json")
    assert code == 0
    assert "no adapter is there in every format: the bare backbones are measured" in err
    assert "adapter swap" not in out
    document = json.loads(out.splitlines()[-1])
    assert [one["adapter"] for one in document["variants"]] == [None, None]
    code, _, err = tel_bench("--category", "oranbench")
    assert code == 2
    assert "tel-export --format onnx --adapter oranbench" in err


def test_a_machine_that_slows_down_favours_neither(
    tel_bench: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("for_bench.SLOWER", [])
    opened: list[str] = []

    def opener(path: Path, *given: Any) -> Engine:
        opened.append(path.name)
        return GetsSlower(path, *given)

    argv = ("--quant", "F16,Q4_K_M", "--questions", "8", "--json", "--repeat")
    code, out, _ = tel_bench(*argv, "3", opener=opener)
    assert code == 0
    assert opened == [f"nano-{quant}.gguf" for quant in ("F16", "Q4_K_M", "Q4_K_M", "F16")]
    first, other = json.loads(out.splitlines()[-1])["variants"]
    assert first["questions_per_second"] == pytest.approx(other["questions_per_second"], rel=1e-3)
    assert "no clear difference on this machine: " in out
    opened.clear()
    assert tel_bench(*argv, "1", opener=opener)[0] == 0
    assert opened == ["nano-F16.gguf", "nano-Q4_K_M.gguf"]


def test_the_fastest_of_three_is_told_beside_the_next() -> None:
    assert comparison.verdict({"a": [2.0], "b": [5.0], "c": [4.0]}) == (
        "fastest on this machine: b, 5.00 questions/s, 1.25 times c"
    )
    assert comparison.verdict({"a": [2.0], "b": [2.02]}).startswith(
        "no clear difference on this machine: b"
    )


def subject(quant: str, kl: float | None) -> Any:
    known = None if kl is None else {"kl": kl, "picks": 0.5}
    return SimpleNamespace(title=quant, backbone=SimpleNamespace(quant=quant, parity=known))


def test_of_those_that_are_as_fast_the_nearest_answers() -> None:
    near, far, unknown = subject("Q8_0", 0.001), subject("Q2_K", 0.4), subject("F16", None)
    assert comparison.chosen([far, near], [[5.0], [4.95]]) == 1
    assert comparison.chosen([far, near], [[5.0], [4.0]]) == 0
    # What nobody knows of one says nothing of the other.
    assert comparison.chosen([far, unknown], [[5.0], [4.95]]) == 0
    assert comparison.chosen([near, unknown], [[4.95], [5.0]]) == 1


def test_rounds_that_overlap_are_no_difference() -> None:
    said = comparison.verdict({"a": [33.2, 35.6], "b": [34.1, 33.3]})
    assert said == ("no clear difference on this machine: a 33.20-35.60, b 33.30-34.10 questions/s")
    assert comparison.verdict({"a": [35.0, 35.6], "b": [33.1, 34.3]}).startswith("faster")
    near, far = subject("Q8_0", 0.001), subject("Q2_K", 0.4)
    assert comparison.chosen([far, near], [[33.2, 35.6], [34.1, 33.3]]) == 1


def test_a_fast_variant_that_is_far_away_is_told() -> None:
    near, far = subject("Q8_0", 0.001), subject("Q2_K", 0.4)
    said = comparison.warning([near, far], 1)
    assert said.startswith("warning: Q2_K is further from the float model than Q8_0 (KL 4.0e-01,")
    assert "--quant Q8_0" in said
    assert comparison.warning([near, far], 0) == ""
    assert comparison.warning([far, subject("F16", None)], 0) == ""
    assert comparison.warning([subject("a", 0.04), subject("b", 0.03)], 0) == ""
    nothing: Any = SimpleNamespace(
        title="x", backbone=SimpleNamespace(quant="x", parity={"kl": None, "picks": None})
    )
    assert comparison.warning([near, nothing], 1) == ""
    assert [cell for _, cell in comparison._near(nothing)] == ["-", "-"]
    # Three times next to nothing is next to nothing.
    assert comparison.warning([subject("a", 0.004), near], 0) == ""


def test_each_variant_has_a_process_of_its_own(
    both: Path, run_command: Command, installed: set[str]
) -> None:
    before = CLOCK.now
    argv = ["--bundle", str(both), "--questions", "8", "--repeat", "1", "--quiet", "--json"]
    code, out, _ = run_command(bench.parser(), partial(bench.work, opener=OnnxIsFaster), *argv)
    assert code == 0
    assert [one["quant"] for one in json.loads(out.splitlines()[-1])["variants"]] == [
        "Q4_K_M", "int4"
    ]  # fmt: skip
    # This process has opened no engine.
    assert CLOCK.now == before
    work = partial(bench.work, opener=RefusesOnnx)
    code, out, err = run_command(bench.parser(), work, *argv, "--quant", "int4,fp32")
    assert (code, out, err) == (2, "", "tel-bench: int4 (onnx): question probe-0: no room\n")


@pytest.mark.usefixtures("both")
def test_a_damaged_file_stops_before_anything_is_measured(tel_bench: Command, both: Path) -> None:
    (both / "nano-int4.onnx.data").write_bytes(b"")
    code, out, err = tel_bench("--quant", "Q4_K_M,int4", opener=None)
    assert (code, out) == (2, "")
    assert "nano-int4.onnx.data: 0 bytes" in err


def test_a_missing_engine_is_told_before_anything_is_measured(
    tel_bench: Command, both: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.modules", {**sys.modules, "onnxruntime": None})
    code, out, err = tel_bench("--quant", "Q4_K_M,int4", opener=bundle.native)
    assert (code, out) == (2, "")
    assert "onnxruntime is not installed; run: pip install 'tel-edge[onnx]'" in err


def test_tuning_onnx_saves_an_entry_beside_the_others(
    tel_bench: Command, both: Path, home: Path
) -> None:
    for quant in ("Q4_K_M", "int4"):
        code, out, err = tel_bench("--tune", "--quant", quant, "--questions", "8", "--repeat", "1",
                                   opener=LikesSmallBatches)  # fmt: skip
        assert code == 0
    assert out.splitlines()[-1].startswith(
        f"saved in {home / 'profile.json'} for tel-nano/int4: threads "
    )
    assert out.splitlines()[-1].endswith(", batch 256")
    assert "kv" not in err
    saved = profile.read(home / "profile.json")
    assert saved is not None
    assert {name: made.engine for name, made in saved.entries.items()} == {
        "tel-nano/Q4_K_M": profile.engine("gguf"), "tel-nano/int4": profile.engine("onnx")
    }  # fmt: skip
    code, out, err = tel_bench("--quant", "int4,Q4_K_M", "--questions", "8", "--repeat", "1")
    assert code == 0
    for title in ("int4 (onnx)", "Q4_K_M (gguf)"):
        assert f"{title}: settings of {home / 'profile.json'}: threads " in err


@pytest.mark.usefixtures("installed")
def test_tuning_both_formats_says_which_one_answers(
    tel_bench: Command, both: Path, home: Path, installed: set[str]
) -> None:
    code, out, _ = tel_bench("--tune", "--questions", "8", "--repeat", "1", opener=OnnxIsFaster)
    assert code == 0
    path = home / "profile.json"
    assert out.splitlines()[-1] == f"saved in {path}: tel-nano answers with int4 (onnx)"
    saved = profile.read(path)
    assert saved is not None
    assert set(saved.entries) == {"tel-nano/Q4_K_M", "tel-nano/int4"}
    assert saved.chosen["tel-nano"].rates == {"Q4_K_M": 4000, "int4": 8000}

    def opened(**of: Any) -> tuple[str, list[str]]:
        said: list[str] = []
        with Answerer.of_bundle(both, opener=OnnxIsFaster, say=said.append, **of) as made:
            engine: Any = made.engine
            return engine.path.name, said

    name, said = opened()
    assert name == "nano-int4.onnx"
    assert "int4 was chosen here of Q4_K_M, int4 (tel-bench --tune)" in said
    argv = ("--quant", "F16,Q4_K_M", "--questions", "8", "--repeat", "1")
    out = tel_bench("--tune", *argv, opener=OnnxIsFaster)[1]
    assert out.splitlines()[-1].endswith(", no longer with int4 (onnx), which was not measured now")
    assert tel_bench("--tune", *argv[2:], opener=OnnxIsFaster)[0] == 0
    # What is asked for stays, and what is not installed is not taken.
    assert opened(format="gguf")[0] == opened(quant="Q4_K_M")[0] != name
    installed.discard("onnx")
    assert opened()[0] == opened(quant="Q4_K_M")[0]


@pytest.mark.parametrize(
    "chosen", [[], {"tel-nano": 1}, {"tel-nano": {"format": "exe", "quant": "int4"}}]
)
def test_a_choice_that_is_none(chosen: Any, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    given = {"schema_version": 2, "machine": profile.machine(), "entries": {}, "chosen": chosen}
    path.write_text(json.dumps(given))
    with pytest.raises(InputError, match=r"chosen.*\n.*tel-bench --tune"):
        profile.read(path)


def test_a_profile_that_cannot_be_written_stops_before_the_work(
    tel_bench: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEL_PROFILE", str(home))
    code, _, err = tel_bench("--tune", "--quiet", opener=None)
    assert code == 2
    assert "no plain file, so no profile" in err
