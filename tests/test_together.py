"""Commands that write one place at the same time: nothing is lost, nothing is there twice.

`TEL_ROUNDS` is how often the slow tests start the real commands together.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import export_models as models
import fake_engine as fake
import pytest
from conftest import MAKERS, shown
from for_commands import entry

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.benchmarks.split import split
from tel_edge.eval.commands import evaluate
from tel_edge.eval.findings import answers
from tel_edge.eval.scoring.records import read_records, read_summary
from tel_edge.runtime.bundles import manifest
from tel_edge.runtime.files import lock
from tel_edge.runtime.questions.categories import CATEGORIES

Command = Callable[..., tuple[int, str, str]]
ROUNDS = int(os.environ.get("TEL_ROUNDS", "20"))
# Each process says that it is ready, and goes on when all are.
BEGIN = """
import sys; sys.path.insert(0, sys.argv.pop(1))
import math, time
from pathlib import Path
def ready():
    place = Path(sys.argv.pop(1))
    print("ready", flush=True)
    while not place.exists():
        time.sleep(0.001)
"""
EXPORTER = BEGIN + """
import fake_engine as fake
from tel_edge.export.output import Output
from tel_edge.runtime.bundles.manifest import BackboneInfo
folder, quant = Path(sys.argv[2]), sys.argv[3]
info = BackboneInfo("nano", "llama", fake.WEIGHTS, "c" * 64, "d" * 64)
out = Output(folder, info, False)
ready()
known = {"kind": "backbone", "format": "gguf", "quant": quant, "source": fake.WEIGHTS}
with out.owned(math.inf, print):
    for at in range(3):
        with out.file(f"{quant}.gguf", None, **known) as path:
            path.write_bytes(fake.gguf(general__name=quant, again=str(at)))
"""  # fmt: skip
EVALUATION = BEGIN + """
from functools import partial
import fake_engine as fake
from tel_edge.eval.commands import evaluate
from tel_edge.runtime import cli
def slow(prompt, adapter, labels):
    time.sleep(0.02)
    return fake.gold(prompt, adapter, labels)
ready()
work = partial(evaluate.work, opener=fake.FakeOpener(rule=slow), isolated=False)
sys.exit(cli.run(evaluate.parser(), work))
"""  # fmt: skip


def together(codes: Sequence[Sequence[str]], go: Path | None = None) -> list[tuple[int, str, str]]:
    """Start processes at the same time and return (exit code, stdout, stderr) of each.

    `go` is made once all have said that they are ready.
    """
    running = [
        subprocess.Popen(
            [sys.executable, "-c", *code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for code in codes
    ]
    if go is not None:
        for child in running:
            assert child.stdout
            assert child.stdout.readline() == "ready\n", child.communicate()[1]
        go.touch()
    ended = [child.communicate(timeout=600) for child in running]
    done = [(child.returncode, out, err) for child, (out, err) in zip(running, ended, strict=True)]
    for code, _, err in done:
        assert "Traceback" not in err, err
        assert code in (0, 1, 2)
    return done


def test_every_file_of_three_exports_is_in_the_manifest(tmp_path: Path) -> None:
    quants = ("F16", "Q8_0", "Q4_K_M")
    bundle, go = tmp_path / "bundle", tmp_path / "go"
    done = together([[EXPORTER, str(MAKERS), str(go), str(bundle), one] for one in quants], go)
    assert [code for code, *_ in done] == [0, 0, 0]
    made = manifest.read(bundle)
    assert sorted(file.quant for file in made.files) == sorted(quants)
    for file in made.files:
        manifest.verified(bundle, file)
    assert shown(bundle) == sorted(["manifest.json", *(f"{quant}.gguf" for quant in quants)])


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """A workspace with a bundle and, in `data`, 60 questions of which 12 are in the test part."""
    fake.dataset(tmp_path / "data", "oranbench", fake.rows(60))
    dealt = split(benchmark.read(str(tmp_path / "data"), CATEGORIES["oranbench"]).questions, 42)
    fake.bundle(tmp_path / "bundles" / "tel-nano", quants=("F16",), split=dealt.digest)
    return tmp_path


def options(home: Path) -> list[str]:
    return ["--workspace", str(home), "--dataset", str(home / "data"), "--category", "oranbench"]


@pytest.mark.parametrize("rotations", [["--no-rotations"], []])
def test_two_evaluations_score_each_question_once(scored: Path, rotations: list[str]) -> None:
    go = scored / "go"
    code = [EVALUATION, str(MAKERS), str(go), *options(scored), *rotations]
    done = together([code, code], go)
    assert [code for code, *_ in done] == [0, 0]
    results = scored / "results" / "tel-nano"
    paths = sorted(results.rglob("*.jsonl"))
    assert len(paths) == 2 * (1 if rotations else 2)
    for path in paths:
        ids = [record.id for record in read_records(path)]
        assert len(set(ids)) == len(ids) == read_summary(path.with_suffix(".json")).questions
    said = "".join(err for *_, err in done)
    assert "; waiting until it ends" in said
    # What one had scored, the other one has not scored again.
    assert sum(out.count("(scored before)") for _, out, _ in done) == len(paths)


@pytest.fixture
def tel_eval(scored: Path, run_command: Command) -> Command:
    def run(*argv: str, opener: Any = None) -> tuple[int, str, str]:
        work = partial(evaluate.work, opener=opener or fake.FakeOpener(), isolated=False)
        plain = [*options(scored), "--no-rotations", "--quiet"]
        return run_command(evaluate.parser(), work, *plain, *argv)

    return run


# What two evaluations at once used to leave: every record twice, and summaries that count them so
# or, where one began later, only what it added.
@pytest.mark.parametrize("counted", [24, 7, 12])
def test_a_summary_of_two_evaluations_at_once_is_found_and_mended(
    counted: int, scored: Path, tel_eval: Command
) -> None:
    assert tel_eval()[0] == 0
    path = scored / "results" / "tel-nano" / "lora-F16" / "oranbench.jsonl"
    whole, summary = path.read_text(), json.loads(path.with_suffix(".json").read_text())
    path.write_text("".join(line * 2 for line in whole.splitlines(keepends=True)))
    damaged = {**summary, "questions": counted}
    path.with_suffix(".json").write_text(json.dumps(damaged))
    with pytest.raises(ValueError, match=r"24 records of 12 questions.*run tel-eval again"):
        answers.read(path, read_summary(path.with_suffix(".json")))
    opener = fake.FakeOpener()
    code, out, _ = tel_eval(opener=opener)
    assert (code, opener.opened, out.count("(scored before)")) == (0, [], 1)
    assert path.read_text() == whole
    made = read_summary(path.with_suffix(".json"))
    assert (made.questions, made.pass1.value) == (12, 1.0)


def test_records_that_something_else_adds_make_no_summary(scored: Path, tel_eval: Command) -> None:
    path = scored / "results" / "tel-nano" / "base-F16" / "oranbench.jsonl"

    code, _, err = tel_eval(opener=fake.FakeOpener(rule=Adding(path)))
    assert code == 1
    assert f"{path}: " in err
    assert "for 12 questions: something else writes there too" in err
    assert not path.with_suffix(".json").exists()
    assert tel_eval()[0] == 0
    assert len(list(read_records(path))) == 12


class Adding:
    """An engine's rule beside which another process adds a record."""

    def __init__(self, path: Path) -> None:
        self.path, self.done = path, False

    def __call__(self, prompt: str, adapter: str | None, labels: int) -> list[float]:
        lines = self.path.read_text().splitlines(keepends=True)
        if lines and not self.done:
            self.done = True
            with self.path.open("a") as file:
                file.write(lines[0])
        return fake.uniform(prompt, adapter, labels)


def test_a_training_that_runs_is_left_alone(tmp_path: Path, run_command: Command) -> None:
    pytest.importorskip("torch")
    from tel_edge.train.commands import train

    fake.dataset(tmp_path / "data", "oranbench", fake.rows(30))
    out = tmp_path / "adapters" / "tel-nano" / "oranbench"
    checkpoint = out.with_name(".oranbench.partial") / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    with lock.held(out, 0, print):
        began = time.monotonic()
        for argv in ([], ["--no-resume"], ["--wait", "0.2"]):
            given = [*options(tmp_path), "--epochs", "1", "--quiet", *argv]
            code, said, err = run_command(train.parser(), train.work, *given)
            assert (code, said) == (1, "")
            assert f"tel-train: {out} is in use by " in err
            assert len(err.splitlines()) == 1
        assert time.monotonic() - began > 0.2
    assert checkpoint.is_dir()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backbone, an adapter for it and a data set."""
    torch = pytest.importorskip("torch")
    root = tmp_path_factory.mktemp("together")
    base = models.backbone(root / "base", "llama", dtype=torch.float32)
    models.bind(models.adapter(root / "one", base), base)
    fake.dataset(root / "data", "oranbench", fake.rows(60))
    return root


def common(root: Path, home: Path) -> list[str]:
    return ["--workspace", str(home), "--backbone", str(root / "base")]


@pytest.mark.slow
def test_three_exports_into_one_bundle(trained: Path, tmp_path: Path) -> None:
    parts = (
        ["--quant", "F16,Q8_0"],
        ["--quant", "Q4_0,Q8_0"],
        ["--quant", "F16", "--adapter", str(trained / "one")],
    )
    for at in range(ROUNDS):
        home = tmp_path / str(at)
        done = together([[entry("tel-export"), *common(trained, home), *part] for part in parts])
        assert [code for code, *_ in done] == [0, 0, 0], done
        bundle = home / "bundles" / "base"
        made = manifest.read(bundle)
        assert set(made.quants()) == {"F16", "Q8_0", "Q4_0"}
        assert made.adapters() == ("oranbench",)
        for file in made.files:
            manifest.verified(bundle, file)
        listed = {*(file.path for file in made.files), "manifest.json", "README.md"}
        assert set(shown(bundle)) == listed
        # Each was made by one of the three.
        assert sum(out.count("  written") for _, out, _ in done) == 4


@pytest.mark.slow
def test_two_evaluations_of_one_workspace(trained: Path, tmp_path: Path) -> None:
    source = ["--dataset", str(trained / "data"), "--category", "oranbench"]
    made = [entry("tel-export"), *common(trained, tmp_path), "--quant", "F16", "--no-verify"]
    assert together([made])[0][0] == 0
    for _ in range(ROUNDS):
        code = [entry("tel-eval"), *common(trained, tmp_path), *source]
        done = together([code, code])
        assert [code for code, *_ in done] == [0, 0], done
        path = tmp_path / "results" / "base" / "base-F16" / "oranbench.jsonl"
        assert read_summary(path.with_suffix(".json")).questions == 12
        assert len({record.id for record in read_records(path)}) == 12
        assert len(list(read_records(path))) == 12
        assert sum(out.count("(scored before)") for _, out, _ in done) == 1
        path.unlink()
        path.with_suffix(".json").unlink()


@pytest.mark.slow
def test_two_trainings_of_one_category(trained: Path, tmp_path: Path) -> None:
    argv = ["--dataset", str(trained / "data"), "--category", "oranbench", "--epochs", "2"]
    argv += ["--rank", "2", "--batch", "6"]
    for at in range(ROUNDS):
        home = tmp_path / str(at)
        wait = ["--wait"] * (at % 2)
        code = [entry("tel-train"), *common(trained, home), *argv, *wait]
        done = together([code, code])
        codes = sorted(code for code, *_ in done)
        # Without --wait one is refused, unless the other had ended before it began.
        assert codes in ([0, 0], [0, 1]), done
        assert not (wait and 1 in codes), done
        said = "".join(err for *_, err in done)
        assert said.count("questions to train on") == 1
        assert ("is in use by tel-train" in said) or "finished before" in said
        folder = home / "adapters" / "base"
        assert shown(folder) == ["oranbench"]
        assert (folder / "oranbench" / "adapter_model.safetensors").is_file()
