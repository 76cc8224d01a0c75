"""Processes that commands start: they end with their parent, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_engine as fake
import pytest
from conftest import INTERRUPTIBLE, MAKERS, ROOT, alive, until

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.benchmarks.split import split
from tel_edge.eval.scoring.records import read_records, read_summary
from tel_edge.runtime.device.child import in_child
from tel_edge.runtime.questions.categories import CATEGORIES

# Where a child writes its number, and what it does then.
NOTE = "TEL_TEST_NOTE"


def nap() -> None:
    with Path(os.environ[NOTE]).open("a") as note:
        note.write(f"{os.getpid()}\n")
    time.sleep(60)


# As the `main` of a command.
main = nap
DONE: list[str] = []


def sleeping(prompt: str, adapter: str | None, labels: int) -> list[float]:
    """Score two questions, and none after them."""
    DONE.append(prompt)
    if len(DONE) == 3:
        nap()
    return fake.uniform(prompt, adapter, labels)


# What parents do; each begins with the folders of this module and of what it imports.
PLACES = os.pathsep.join([str(Path(__file__).parent), str(MAKERS), str(ROOT / "tests")])
COMMAND = INTERRUPTIBLE + (
    "import os, sys; sys.path[:0] = sys.argv.pop(1).split(os.pathsep); import test_children\n"
)
PARENTS = {
    "measuring": COMMAND
    + """
from tel_edge.runtime import cli
from tel_edge.runtime.device.child import in_child
parser = cli.parser("tel-bench", "x")
sys.exit(cli.run(parser, lambda _: in_child(None, test_children.nap)))
""",
    "a stage of the demo": COMMAND
    + """
from tel_edge import demo
from tel_edge.runtime import cli
demo.STAGES["nap"] = "test_children"
sys.exit(cli.run(cli.parser("tel-demo", "x"), lambda _: {"s": demo.run(["nap"])}))
""",
}
EVAL = (
    COMMAND
    + """
from functools import partial
import fake_engine as fake
from tel_edge.eval.commands import evaluate
from tel_edge.runtime import cli
opener = fake.FakeOpener(rule=test_children.sleeping)
sys.exit(cli.run(evaluate.parser(), partial(evaluate.work, opener=opener)))
"""
)


def started(
    code: str, note: Path, *argv: str, group: bool = False
) -> tuple[subprocess.Popen[bytes], int]:
    """Start a parent; return it and the number of its child once that is there."""
    path = os.pathsep.join([PLACES, os.environ.get("PYTHONPATH", "")])
    parent = subprocess.Popen(
        [sys.executable, "-c", code, PLACES, *argv],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, NOTE: str(note), "PYTHONPATH": path},
        start_new_session=group,
    )
    until(lambda: note.is_file() and note.read_text().endswith("\n"))
    return parent, int(note.read_text().split()[-1])


# How the parent is ended, and its exit code.
ENDS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("parent", PARENTS)
def test_a_child_ends_with_its_parent(parent: str, how: signal.Signals, tmp_path: Path) -> None:
    running, child = started(PARENTS[parent], tmp_path / "pid")
    running.send_signal(how)
    _, err = running.communicate(timeout=20)
    assert running.returncode == ENDS[how]
    assert b"Traceback" not in err
    until(lambda: not alive(child), 5)


def test_an_interrupt_at_the_terminal_ends_both_without_a_traceback(tmp_path: Path) -> None:
    running, child = started(PARENTS["a stage of the demo"], tmp_path / "pid", group=True)
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=20)
    assert running.returncode == 130
    assert b"tel-demo: interrupted; what was finished is kept\n" in err
    until(lambda: not alive(child), 5)


@pytest.mark.parametrize("how", ENDS)
def test_an_evaluation_that_is_ended_leaves_no_process_and_keeps_its_records(
    how: signal.Signals, tmp_path: Path
) -> None:
    fake.dataset(tmp_path / "data", "oranbench", fake.rows(30))
    questions = benchmark.read(str(tmp_path / "data"), CATEGORIES["oranbench"]).questions
    fake.bundle(tmp_path / "bundles" / "tel-nano", adapters=(), split=split(questions, 42).digest)
    argv = ["--workspace", str(tmp_path), "--dataset", str(tmp_path / "data")]
    argv += ["--category", "oranbench"]
    running, child = started(EVAL, tmp_path / "pid", *argv)
    running.send_signal(how)
    _, err = running.communicate(timeout=20)
    assert (running.returncode, b"Traceback" in err) == (ENDS[how], False)
    until(lambda: not alive(child), 5)
    out = tmp_path / "results" / "tel-nano" / "base-F16" / "oranbench.jsonl"
    kept = list(read_records(out))
    (tmp_path / "pid").unlink()
    # The next one has the file to itself, and goes on.
    running, child = started(EVAL, tmp_path / "pid", *argv)
    assert list(read_records(out))[: len(kept)] == kept
    running.kill()
    running.communicate()
    until(lambda: not alive(child), 5)
    assert not out.with_suffix(".json").exists()
    code = EVAL.replace("test_children.sleeping", "fake.uniform")
    done = subprocess.run(
        [sys.executable, "-c", code, PLACES, *argv],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert read_summary(out.with_suffix(".json")).questions == 6
    assert len(list(read_records(out))) == 6


def barred(wait: float) -> int:
    """Show a bar, as an evaluation does."""
    from tqdm import tqdm

    for _ in tqdm(range(3)):
        pass
    if wait:
        nap()
    return 9


BARRED = (
    COMMAND
    + """
from tel_edge.runtime import cli
from tel_edge.runtime.device.child import in_child
wait = float(sys.argv.pop(1))
work = lambda _: {"made": in_child(None, test_children.barred, wait, shown=True)}
sys.exit(cli.run(cli.parser("tel-eval", "x"), work))
"""
)


def test_a_child_with_a_bar_leaves_nothing_to_complain_of() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BARRED, PLACES, "0", "--json"],
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b'{"made": 9}\n')
    assert b"3/3" in done.stderr, "the bar is shown"
    assert b"resource_tracker" not in done.stderr


@pytest.mark.parametrize("how", ENDS)
def test_a_child_with_a_bar_that_is_ended_leaves_nothing_either(
    how: signal.Signals, tmp_path: Path
) -> None:
    running, child = started(BARRED, tmp_path / "pid", "1")
    running.send_signal(how)
    # Until all that have its stderr are gone, the one that complains too.
    _, err = running.communicate(timeout=20)
    assert running.returncode == ENDS[how]
    assert b"3/3" in err
    assert b"resource_tracker" not in err
    until(lambda: not alive(child), 5)


def leaves(path: str) -> None:
    """Write a file once all is said; a child calls nothing of `atexit`."""
    from multiprocessing.util import Finalize

    def slowly() -> None:
        time.sleep(0.2)
        Path(path).touch()

    Finalize(None, slowly, exitpriority=1)


def test_a_child_that_has_said_all_may_end_in_order(tmp_path: Path) -> None:
    in_child(None, leaves, str(tmp_path / "ended"))
    assert (tmp_path / "ended").exists()


def test_one_module_starts_all_processes() -> None:
    """What starts them elsewhere would leave them behind."""
    starts = ("subprocess.Popen(", "subprocess.run(", "get_context(", "ProcessPoolExecutor(")
    files = [path for top in ("runtime", "eval", "train", "export") for path in
             (ROOT / top).rglob("*.py")] + [ROOT / "src" / "tel_edge" / "demo.py"]  # fmt: skip
    found = {path.name for path in files if any(text in path.read_text() for text in starts)}
    # system.py asks programs what the machine is, within seconds.
    assert found == {"child.py", "system.py"}
