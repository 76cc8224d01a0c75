"""Judges that fail, hang, refuse or talk nonsense, and runs that are ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import for_judging as made_of
import pytest
from conftest import until
from for_judging import MARKS, PAIRS, Command, endpoint, panel, serving, study, wins

pytest.importorskip("sacrebleu")

from tel_edge.eval.care.judges import studies

tel_judge = made_of.tel_judge


def refusing(status: int, text: str) -> Any:
    return lambda _: (status, json.dumps({"error": {"message": text}}))


def test_a_server_that_fails_stops_nobody_else(tel_judge: Command, tmp_path: Path) -> None:
    argv = [*made_of.systems(tmp_path), "--no-rubric"]
    with serving() as broken, serving() as sound:
        both = panel(tmp_path, endpoint(broken.url, "broken"), endpoint(sound.url, "sound"))
        broken.before = refusing(500, "out of order")
        code, said, _ = tel_judge(*argv, *both)
        assert code == 1
        # Three attempts for each of three, one after the other since none came back.
        assert len(broken.asked) == 9
        line = next(one for one in said.splitlines() if one.startswith("broken: "))
        assert "not asked, since 3 in a row had failed" in line
        assert "3 x http" in line
        assert "500 out of order" in line
        assert wins(studies.read_pairs(study(tmp_path))) == {"great": 32, "good": 16}
        # The same command asks for those alone that are missing.
        broken.before, count = (lambda _: None), len(sound.asked)
        code, said, _ = tel_judge(*argv, *both)
        assert (code, len(sound.asked)) == (0, count)
        assert "broken (org/Big-8B): " in said
        assert len({one.judge for one in studies.read_pairs(study(tmp_path))}) == 2


def test_a_server_that_hangs_is_left_alone(tel_judge: Command, tmp_path: Path) -> None:
    argv = [*made_of.systems(tmp_path), "--no-rubric", "--prompts", "1"]
    with serving() as server:
        server.wait = 0.3
        started = time.monotonic()
        code, said, _ = tel_judge(*argv, *panel(tmp_path, endpoint(server.url, timeout=0.02)))
        assert code == 1
        assert time.monotonic() - started < 1.5
        assert "timed out" in said
        assert len(server.asked) == 9


def test_one_refused_dialogue_is_missing_alone(tel_judge: Command, tmp_path: Path) -> None:
    argv = [*made_of.systems(tmp_path), "--no-rubric"]
    with serving() as server:
        refused = []

        def long(body: dict[str, Any]) -> tuple[int, str] | None:
            told = body["messages"][-1]["content"]
            refused.extend([told] * (not refused and len(server.asked) > 4))
            refusal = refusing(400, "maximum context length is 300")
            return refusal(body) if refused and told == refused[0] else None

        server.before = long
        code, said, _ = tel_judge(*argv, *panel(tmp_path, endpoint(server.url, parallel=1)))
        assert code == 1
        assert "maximum context length is 300" in said
        made = studies.read_pairs(study(tmp_path))
        assert PAIRS - 2 <= len([one for one in made if not one.repeat]) < PAIRS


def test_a_server_without_temperature(tel_judge: Command, tmp_path: Path) -> None:
    argv = [*made_of.systems(tmp_path), "--no-rubric", "--prompts", "2"]
    with serving() as server:

        def strict(body: dict[str, Any]) -> tuple[int, str] | None:
            for field in ("chat_template_kwargs", "temperature", "max_tokens"):
                if field in body:
                    made: tuple[int, str] = refusing(400, f"unsupported: {field}")(body)
                    return made
            return None

        server.before = strict
        code, said, _ = tel_judge(*argv, *panel(tmp_path, endpoint(server.url)))
        assert code == 0
        assert "big: takes no temperature" in said
        made = studies.read_pairs(study(tmp_path))
        # It is found out once.
        assert len(server.asked) == len(made) + 3
        assert server.asked[-1]["max_completion_tokens"] > 4000


def test_nonsense_is_asked_for_again_and_then_missing(tel_judge: Command, tmp_path: Path) -> None:
    argv = [*made_of.systems(tmp_path), *panel(tmp_path, endpoint("http://localhost/v1"))]
    with serving() as server:
        argv[-2:] = panel(tmp_path, endpoint(server.url))

        def plainly(text: str) -> str:
            asked = server.asked[-1]["messages"][-1]["content"]
            return text if "read by a program" in asked else "I like both."

        server.change = plainly
        one = [*argv, "--parallel", "1", "--no-rubric", "--prompts", "1"]
        code, said, _ = tel_judge(*one)
        assert code == 0
        assert wins(studies.read_pairs(study(tmp_path))) == {"great": 4, "good": 2}
        count = len(server.asked)
        server.change = lambda _: '{"better": "C"} {"correctness": 6, "clarity": "good"}'
        code, said, _ = tel_judge(*argv, "--parallel", "1", "--prompts", "2")
        assert code == 1
        new = [v for v in studies.read_pairs(study(tmp_path)) if v.choice is None]
        marks = studies.read_rubric(study(tmp_path))
        assert {one.scores for one in marks} == {None}
        assert len(server.asked) - count == 2 * (len(new) + len(marks))
        assert f"{len(new) + len(marks)} unreadable" in said
        assert "replies.jsonl, and is not asked for again" in said
        # It is known that nothing can be read.
        count = len(server.asked)
        assert tel_judge(*argv, "--parallel", "1", "--prompts", "2")[0] == 1
        assert len(server.asked) == count


def test_it_stops_where_the_money_does(tel_judge: Command, tmp_path: Path) -> None:
    argv = [*made_of.systems(tmp_path), "--price", "100,0", "--parallel", "1"]
    with serving() as server:
        argv += panel(tmp_path, endpoint(server.url), {"name": "rules", "kind": "standin"})
        code, said, _ = tel_judge(*argv, "--limit-cost", "1")
        assert (code, len(server.asked)) == (1, 10)
        assert "1.00 were spent, --limit-cost is 1.00" in said
        # Who costs nothing is asked all the same.
        rules = [one for one in studies.read_pairs(study(tmp_path)) if one.judge == "rules"]
        assert len(rules) >= PAIRS
        assert tel_judge(*argv, "--limit-cost", "1")[0] == 1
        assert len(server.asked) == 10
        server.usage = None
        code, said, _ = tel_judge(*argv, "--limit-cost", "2")
        assert (code, len(server.asked)) == (1, 11)
        assert "does not say how many tokens it used" in said


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    with serving() as server:
        server.wait = 0.02
        argv = [sys.executable, "-m", "tel_edge.eval.commands.judge", "--quiet", "--workspace",
                str(tmp_path / "home"), *made_of.systems(tmp_path), "--parallel", "2",
                *panel(tmp_path, endpoint(server.url))]  # fmt: skip
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL)
        until(lambda: len(server.asked) >= 8)
        process.send_signal(signal.SIGKILL)
        process.wait()
        folder = study(tmp_path)
        kept = len(studies.read_pairs(folder))
        assert kept >= 4
        for name in ("pairs.jsonl", "replies.jsonl"):
            with (folder / name).open("a") as file:
                file.write('{"judge": "bi')
        assert len(studies.read_pairs(folder)) == kept
        server.wait = 0
        subprocess.run(argv, env=env, check=True, capture_output=True)
        told = [one["messages"][-1]["content"] for one in server.asked]
        made = [*studies.read_pairs(folder), *studies.read_rubric(folder)]
        assert len([one for one in made if not one.repeat]) == PAIRS + MARKS
        replies = [json.loads(line) for line in (folder / "replies.jsonl").open()]
        assert {reply["key"] for reply in replies} == {one.key for one in made}
        # Nothing but what was in flight is asked for once more.
        assert len(told) <= len(made) + 4
