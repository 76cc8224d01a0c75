"""`tel-bench` with an engine that has no model: measuring and tuning."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fake_engine as fake
import for_bench
import pytest
from for_bench import Command, Engine, LikesSmallBatches

from tel_edge.runtime.device import profile
from tel_edge.runtime.engines.engine import (
    Item,
    Score,
)

_clock = for_bench._clock
home = for_bench.home
tel_bench = for_bench.tel_bench


class IsInterrupted(Engine):
    def score(self, items: Sequence[Item], adapter: str | None) -> Iterator[tuple[int, Score]]:
        if self.settings.batch == 256:
            raise KeyboardInterrupt
        return super().score(items, adapter)


def test_the_command_measures_with_safe_settings(tel_bench: Command) -> None:
    code, out, err = tel_bench("--questions", "16", "--repeat", "1", "--json")
    assert code == 0
    *lines, last = out.splitlines()
    assert lines[0].startswith("questions/s ")
    # The bundle's order, in which the manifest sorts its adapters.
    assert err.splitlines()[0] == "tel-nano Q4_K_M, 3gpp_tsg adapter, 16 questions"
    assert "nothing tuned, so safe settings: threads all, batch auto" in err
    document = json.loads(last)
    assert document["adapter"] == "3gpp_tsg"
    assert document["questions"] == 16
    assert document["settings"]["extra_buffers"] is False
    assert set(document["swap"]) == {"load_ms", "set_ms", "prefill_ms", "stay_ms"}
    assert document["memory"]["weights"] == 700


def test_tuning_saves_what_measuring_then_uses(tel_bench: Command, home: Path) -> None:
    code, out, err = tel_bench("--tune", "--questions", "8", "--repeat", "1", "--json",
                               opener=LikesSmallBatches)  # fmt: skip
    assert code == 0
    *lines, last = out.splitlines()
    assert lines[0].split() == [
        "knob", "value", "before", "questions/s", "before", "ratio", "drift", "verdict"
    ]  # fmt: skip
    assert lines[-1].startswith(f"saved in {home / 'profile.json'} for tel-nano/Q4_K_M: threads ")
    assert "batch 256" in lines[-1]
    assert "batch 128: 2000.00 questions/s, 512: 1000.00; taken" in err
    assert "batch 256: 8000.00 questions/s, 128: 2000.00; taken" in err
    assert "batch 1024: 1000.00 questions/s, 256: 8000.00; not faster" in err
    document = json.loads(last)
    assert document["settings"]["batch"] == 256
    assert {finding["field"] for finding in document["findings"]} >= {"batch", "kv", "flash"}
    saved = profile.read(home / "profile.json")
    assert saved is not None
    assert list(saved.entries) == ["tel-nano/Q4_K_M"]
    assert saved.entries["tel-nano/Q4_K_M"].tokens_per_second > 0
    assert saved.entries["tel-nano/Q4_K_M"].engine == profile.engine("gguf")
    code, out, err = tel_bench("--questions", "8", "--repeat", "1", "--json")
    assert code == 0
    assert f"settings of {home / 'profile.json'}: threads " in err
    assert json.loads(out.splitlines()[-1])["settings"]["batch"] == 256


def test_an_interrupt_leaves_no_half_profile(tel_bench: Command, home: Path) -> None:
    code, _, err = tel_bench("--tune", "--questions", "8", opener=IsInterrupted)
    assert code == 130
    assert "interrupted" in err
    assert sorted(path.name for path in home.iterdir()) == ["bundles"]


def test_a_damaged_profile_stops_measuring_and_not_tuning(tel_bench: Command, home: Path) -> None:
    (home / "profile.json").write_text("{")
    code, _, err = tel_bench("--questions", "8")
    assert code == 2
    assert "profile.json: not JSON" in err
    code, _, err = tel_bench("--tune", "--questions", "8", "--repeat", "1")
    assert code == 0
    assert "it is replaced" in err
    assert profile.read(home / "profile.json") is not None


def test_questions_of_a_file_are_those_of_the_category(tel_bench: Command, home: Path) -> None:
    row = {"question": "Why?", "choices": ["a", "b"], "category": "oranbench"}
    rows = [row | {"category": "teleqna"}] + [row | {"question": f"Why {n}?"} for n in range(12)]
    file = home / "asked.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ("--jsonl", str(file), "--category", "oranbench", "--repeat", "1", "--json")
    code, out, _ = tel_bench(*argv)
    assert code == 0
    assert json.loads(out.splitlines()[-1])["questions"] == 12
    assert json.loads(tel_bench(*argv, "--questions", "9")[1].splitlines()[-1])["questions"] == 9
    file.write_text(json.dumps(row) + "\n{\n")
    code, _, err = tel_bench(*argv)
    assert code == 2
    assert f"{file}: line 2: not JSON" in err


def test_a_bundle_without_adapters_is_measured_bare(tel_bench: Command, home: Path) -> None:
    fake.bundle(home / "bare", adapters=())
    code, out, err = tel_bench("--bundle", str(home / "bare"), "--questions", "8", "--json")
    assert code == 0
    assert "the bundle has no adapter: the bare backbone is measured" in err
    assert json.loads(out.splitlines()[-1])["adapter"] is None


# Arguments, exit code, what is said on stderr.
COMMANDS: tuple[tuple[list[str], int, str], ...] = (
    (["--questions", "0"], 2, "argument --questions: '0' is no whole number above 0"),
    (["--questions", "7"], 2, "7 questions; 8 or more are needed to measure anything"),
    (["--category", "poetry"], 2, "no adapter for poetry"),
    (["--category", "poetry", "--no-adapter"], 2, "unknown category 'poetry'"),
    (["--category", "teleqna"], 2, "no adapter for teleqna (there: 3gpp_tsg oranbench)"),
    (["--quant", "Q8_0"], 2, "no Q8_0 backbone (there: F16 Q4_K_M)"),
    (["--jsonl", "nothing.jsonl"], 2, "nothing.jsonl: No such file or directory"),
    (["--context", "40"], 2, "question probe-0: the prompt has"),
    (["--quant", "F16,"], 2, "argument --quant: 'F16,' has an empty name"),
    (["--quant", "F16,int4"], 2, "no int4 backbone (there: F16 Q4_K_M)"),
    (["--quant", "F16,Q4_K_M", "--context", "40"], 2, "question probe-0: the prompt has"),
)


@pytest.mark.parametrize(("argv", "code", "said"), COMMANDS)
def test_wrong_usage(argv: list[str], code: int, said: str, tel_bench: Command) -> None:
    found, out, err = tel_bench("--quiet", *argv)
    assert (found, out) == (code, "")
    assert said in err
    assert err.startswith("tel-bench: ")


def test_an_engine_that_tells_nothing_cannot_be_measured(tel_bench: Command) -> None:
    def silent(*given: Any) -> Any:
        return argparse.Namespace(version="other 1")

    code, _, err = tel_bench(opener=silent)
    assert code == 2
    assert "other 1 cannot be measured; a GGUF or ONNX bundle is needed" in err
