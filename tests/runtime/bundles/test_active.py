"""Which version is active: exchanged in one step, refused when older, back, whoever is killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_engine as fake
import for_shipping as made
import pytest
from conftest import MAKERS, ROOT

from tel_edge.runtime.answerer import Answerer
from tel_edge.runtime.bundles import bundle, manifest
from tel_edge.runtime.bundles.shipping import active, checking, store
from tel_edge.runtime.errors import InputError, WorkError


def test_back_and_forth(tmp_path: Path) -> None:
    home = tmp_path / "home"
    one, two, three = (path.name for path in made.versions(home, "x", "y", "z"))
    assert active.current(home) is None
    with pytest.raises(InputError, match="nothing was active before"):
        active.rollback(home)
    for name in (one, two[:10], three):
        assert (home / active.activate(home, name)).is_dir()
    assert os.readlink(home / "current") == three
    assert bundle.read(home / "current") == manifest.read(home / three)
    assert [active.rollback(home), active.rollback(home)] == [two, one]
    with pytest.raises(InputError, match="nothing was active before"):
        active.rollback(home)
    # What was gone back from is no way back.
    active.activate(home, three)
    assert active.rollback(home) == one
    assert active.activate(home, one) == one


def test_going_back_ends_though_a_version_was_active_twice(tmp_path: Path) -> None:
    home = tmp_path / "home"
    one, two = (path.name for path in made.versions(home, "x", "y"))
    for name in (one, two, one):
        active.activate(home, name, older=True)
    assert [active.rollback(home), active.rollback(home)] == [two, one]
    with pytest.raises(InputError, match="nothing was active before"):
        active.rollback(home)


def test_who_is_killed_while_going_back_has_a_way_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    one, two, three = (path.name for path in made.versions(home, "x", "y", "z"))
    for name in (one, two, three):
        active.activate(home, name)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(active, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            active.rollback(home)
    assert active.current(home) == two
    assert active.rollback(home) == one


def test_nothing_is_removed_where_it_is_not_known_what_has_to_stay(tmp_path: Path) -> None:
    home = tmp_path / "home"
    one, two, three = made.versions(home, "x", "y", "z")
    for path in (one, three):
        active.activate(home, path.name)
    past = (home / "history.json").read_text()
    for damaged in ("", "{", "null", '{"a": 1}'):
        (home / "history.json").write_text(damaged)
        with pytest.raises(InputError, match=r"history\.json: damaged, so what was active before"):
            [*active.prune(home, 0)]
    (home / "history.json").write_text(past)
    three.rename(tmp_path / "gone")
    with pytest.raises(InputError, match="current: leads to no version that is here"):
        [*active.prune(home, 0)]
    assert set(store.versions(home)) == {one.name, two.name}
    # What was active before is known though the active one is gone.
    assert active.rollback(home) == one.name
    assert [*active.prune(home, 0)] == [two.name]


def test_an_older_version_is_refused_by_name(tmp_path: Path) -> None:
    home = tmp_path / "home"
    one, two = made.versions(home, "x", "y")
    active.activate(home, two.name)
    with pytest.raises(InputError) as refused:
        active.activate(home, one.name)
    assert str(refused.value) == (
        f"{home}: {one.name[:12]} is older than what is active (serial 1, active is 2); "
        "tel-bundle rollback goes back, --older takes any"
    )
    assert active.current(home) == two.name
    assert active.activate(home, one.name, older=True) == one.name


def test_a_damaged_version_that_is_active_is_named_as_that(tmp_path: Path) -> None:
    home = tmp_path / "home"
    one, two = made.versions(home, "x", "y")
    active.activate(home, one.name)
    store.unsealed(one)
    (one / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"active version: tel-bundle pull .* mends it, --older"):
        active.activate(home, two.name)
    assert active.activate(home, two.name, older=True) == two.name


def test_what_is_damaged_stays_inactive(tmp_path: Path) -> None:
    home = tmp_path / "home"
    one, two, three = made.versions(home, "x", "y", "z")
    active.activate(home, one.name)
    store.unsealed(two)
    (two / "extra").touch()
    with pytest.raises(InputError, match=r"extra: manifest.json does not list it"):
        active.activate(home, two.name)
    assert active.current(home) == one.name
    active.activate(home, three.name)
    store.unsealed(one)
    (one / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"no manifest\.json"):
        active.rollback(home)
    assert active.current(home) == three.name


def test_what_this_version_cannot_open_stays_inactive(tmp_path: Path) -> None:
    work = made.bundle(tmp_path / "work", size=10)
    text = (work / "manifest.json").read_text()
    prompt = manifest.read(work).backbone.prompt
    made_for = text.replace(prompt, "e" * 64).encode()
    added = store.add(tmp_path / "home", made_for, None, store.Folder(work))
    with pytest.raises(InputError, match="made for another prompt than this version's"):
        active.activate(tmp_path / "home", added.folder.name)


def test_who_opened_a_version_stays_with_it(tmp_path: Path) -> None:
    """Though adapters are loaded when they are first asked for."""
    home = tmp_path / "home"
    one, two = made.versions(home, "x", "y")
    active.activate(home, one.name)
    with Answerer.of_bundle(home / "current", opener=fake.FakeOpener()) as answerer:
        active.activate(home, two.name)
        assert answerer.answer("gold 1?", ["a", "b"], "oranbench").choice == "b"


def test_versions_are_named_by_their_beginning(tmp_path: Path) -> None:
    home = tmp_path / "home"
    [one] = made.versions(home, "x")
    for wrong in ("", "..", "../x", "zz", one.name + "0"):
        with pytest.raises(InputError, match=f"no version .*; there are: {one.name[:12]}"):
            active.activate(home, wrong)
    (home / f"{one.name[:63]}{'0' if one.name[63] != '0' else '1'}").mkdir()
    with pytest.raises(InputError, match="several versions"):
        active.activate(home, one.name[:8])


def test_what_is_in_the_way_is_left_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    [one] = made.versions(home, "x")
    (home / "current").mkdir()
    with pytest.raises(InputError, match="current: a folder, in the place of the link"):
        active.activate(home, one.name)


def test_a_file_system_without_links_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    home = tmp_path / "home"
    [one] = made.versions(home, "x")
    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(WorkError, match="its file system has no symbolic links"):
        active.activate(home, one.name)


def test_old_versions_are_removed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    names = [path.name for path in made.versions(home, *"abcdef")]
    for name in (names[1], names[2]):
        active.activate(home, name)
    (home / f".{'e' * 64}.partial").mkdir()
    (home / ".current.99999999@elsewhere.partial").touch()
    assert set(active.prune(home, 2)) == {names[0], names[3]}
    assert set(store.versions(home)) == {names[1], names[2], names[4], names[5]}
    hidden = {path.name for path in home.iterdir() if path.name.startswith(".")}
    # Another machine's may still be written to.
    assert hidden <= {".lock", ".current.99999999@elsewhere.partial"}
    for name in store.versions(home):
        checking.check(home / name)
    assert active.rollback(home) == names[1]


FOREVER = """
import sys
import time
from pathlib import Path
from tel_edge.runtime.bundles.shipping import active
home, *names = map(Path, sys.argv[1:])
while True:
    for name in names:
        print(flush=True)
        active.activate(home, name.name, older=True)
    print(flush=True)
    active.rollback(home)
"""


def test_a_kill_anywhere_leaves_a_whole_version_active(tmp_path: Path) -> None:
    """Twenty times, at a random moment of one activation after the other."""
    home = tmp_path / "home"
    names = [path.name for path in made.versions(home, "x", "y", "z", size=100)]
    active.activate(home, names[0])
    seen, dice = set(), random.Random(7)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(MAKERS)])}
    for _ in range(20):
        child = subprocess.Popen(
            [sys.executable, "-c", FOREVER, home, *names], stdout=subprocess.PIPE, env=env
        )
        assert child.stdout
        with child.stdout as out:
            for _ in range(dice.randint(1, 4)):
                out.readline()
            time.sleep(dice.random() * 0.02)
            child.kill()
        assert child.wait() == -signal.SIGKILL
        now = active.current(home)
        assert now in names
        checking.check(home / "current")
        seen.add(now)
    assert len(seen) > 1
    # And the way back is still one.
    active.activate(home, names[2], older=True)
    assert active.rollback(home) in names
