"""How far long work is: what is seen on a terminal, in a log, and of what is over soon."""

import io
import os

import pytest

from tel_edge.runtime import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the seconds that tqdm's clock shows."""
    import tqdm.std

    now = [1000.0]
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    return now


def through(
    clock: list[float], seconds: float, total: int | None = 10, quiet: bool = False
) -> None:
    with progress.bar("care", "step", total, quiet) as bar:
        for _ in range(10):
            clock[0] += seconds
            bar.update()


def test_a_log_has_whole_lines_now_and_then(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    through(clock, 16)
    assert capsys.readouterr().err.splitlines() == [
        "care: step 2 of 10 after 00:32, 02:08 left",
        "care: step 4 of 10 after 01:04, 01:36 left",
        "care: step 6 of 10 after 01:36, 01:04 left",
        "care: step 8 of 10 after 02:08, 00:32 left",
        "care: step 10 of 10 after 02:40, 00:00 left",
    ]


@pytest.mark.parametrize(
    ("seconds", "total", "quiet"), [(2, 10, False), (16, None, False), (16, 10, True)]
)
def test_a_log_has_none_of_what_is_over_soon_has_no_end_or_is_quiet(
    clock: list[float],
    capsys: pytest.CaptureFixture[str],
    seconds: float,
    total: int | None,
    quiet: bool,
) -> None:
    through(clock, seconds, total, quiet)
    assert capsys.readouterr().err == ""


def test_of_the_first_of_many_nobody_knows_how_long_the_rest_takes(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    through(clock, 16, 40)
    assert capsys.readouterr().err.splitlines()[:2] == [
        "care: step 2 of 40 after 00:32",
        "care: step 4 of 40 after 01:04, 09:36 left",
    ]


def test_a_line_comes_where_nothing_moves_on_too(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.bar("tel-generate", "dialogue", 10) as bar:
        for refused in range(4):
            clock[0] += 16
            bar.set_postfix_str(f"{refused} tries refused", refresh=False)
            bar.update(0)
    assert capsys.readouterr().err.splitlines() == [
        "tel-generate: dialogue 0 of 10 after 00:32, 1 tries refused",
        "tel-generate: dialogue 0 of 10 after 01:04, 3 tries refused",
    ]


def test_a_terminal_has_a_bar_that_is_gone_at_the_end(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", shown)
    through(clock, 16)
    last = shown.getvalue().split("\r")
    assert any("10/10" in line for line in last)
    assert not last[-1].strip()


def test_without_a_stderr_nothing_is_shown(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress.sys, "stderr", None)
    through(clock, 16)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("size", "room"), [((80, 24), True), ((0, 0), False), ((80, 0), False)])
def test_a_terminal_without_a_size_is_written_to_as_a_log(
    size: tuple[int, int], room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = os.openpty()
    monkeypatch.setattr(progress.sys, "stderr", os.fdopen(other, "w"))
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size(size))
    assert progress._has_room() is room
    os.close(own)
