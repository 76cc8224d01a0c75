"""`tel-bundle` from the outside: a bundle from the maker to the device, and what answers there."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import fake_engine as fake
import for_shipping as made
import pytest
from for_commands import entry

from tel_edge.runtime.bundles.shipping import store
from tel_edge.runtime.commands import bundle, run

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tel_bundle(run_command: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.delenv("TEL_BUNDLE_KEY", raising=False)

    def made_of(*argv: str | Path) -> tuple[int, str, str]:
        return run_command(bundle.parser(), bundle.work, *map(str, argv))

    return made_of


STAYS = "a tel-serve that runs stays with its version until it is reloaded or restarted\n"
DOUBT = "warning: not checked who made it; --key does (env TEL_BUNDLE_KEY)\n"


def test_a_signed_bundle_answers_on_the_device(
    tel_bundle: Command, run_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")
    private, public = made.keys(tmp_path)
    out, home = tmp_path / "out", tmp_path / "home"
    [one] = made.versions(out, "x")
    assert tel_bundle("sign", one, "--key", private) == (0, f"{one}/model.sig\n", "")
    with made.served(out) as (url, _):
        code, said, err = tel_bundle("pull", url, home, "--key", public)
    assert (code, said) == (0, f"{one.name}\n")
    assert err == "serial 1: 0.00 MB came\n"
    code, said, err = tel_bundle("activate", home, one.name[:12], "--key", public)
    assert (code, said, err) == (0, f"{home}/current -> {one.name}\n", STAYS)
    code, said, _ = tel_bundle("verify", home / "current", "--key", public)
    assert (code, said) == (
        0,
        f"{home}/current: 3 files are whole, signed by the key of {public}\n",
    )
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    work = partial(run.work, opener=fake.FakeOpener())
    argv = ["--category", "oranbench", "--choice", "a", "--choice", "b", "gold 1?"]
    code, said, err = run_command(run.parser(), work, "--bundle", str(home / "current"), *argv)
    assert (code, json.loads(said)["answer"]) == (0, "b")


def test_an_update_and_the_way_back(tel_bundle: Command, tmp_path: Path) -> None:
    out, home = tmp_path / "out", tmp_path / "home"
    names = []
    for text in "xy":
        made.versions(out, text)
        code, said, _ = tel_bundle("pull", out, home)
        names.append(said.strip())
        assert tel_bundle("activate", home, names[-1])[0] == 0
    assert tel_bundle("pull", out, home) == (
        0,
        f"{names[1]}\n",
        DOUBT + "serial 2: there already\n",
    )
    code, said, err = tel_bundle("activate", home, names[0])
    assert (code, said) == (2, "")
    assert f"{names[0][:12]} is older than what is active (serial 1, active is 2)" in err
    code, _, err = tel_bundle("pull", out / names[0], home)
    assert (code, "is older than what is active" in err) == (2, True)
    assert tel_bundle("pull", out / names[0], home, "--older", "--quiet") == (
        0, f"{names[0]}\n", DOUBT
    )  # fmt: skip
    assert tel_bundle("rollback", home) == (
        0, f"{home}/current -> {names[0]}\n", DOUBT + STAYS
    )  # fmt: skip
    code, said, _ = tel_bundle("list", home)
    lines = said.splitlines()
    assert lines[0].split()[:4] == ["*", names[0][:12], "serial", "1"]
    assert lines[1].split()[:3] == [names[1][:12], "serial", "2"]
    code, said, _ = tel_bundle("diff", home / names[0], home / names[1], "--json")
    assert (code, json.loads(said.splitlines()[-1])["serial"]) == (0, [1, 2])
    code, said, _ = tel_bundle("prune", home, "--keep", "0")
    assert (code, said) == (0, f"1 versions removed\n{names[1]}\n")


def test_over_an_oci_layout(tel_bundle: Command, tmp_path: Path) -> None:
    [one] = made.versions(tmp_path / "out", "x")
    layout, home = tmp_path / "layout", tmp_path / "home"
    code, said, _ = tel_bundle("oci", "export", one, layout)
    assert (code, said.startswith(f"{layout}: sha256:")) == (0, True)
    code, said, _ = tel_bundle("oci", "import", layout, home)
    assert (code, said) == (0, f"{one.name}\n")
    assert tel_bundle("oci", "export", one, layout, "--older")[0] == 2


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("", "say what to do, such as verify or pull"),
        ("verify nowhere", "nowhere: no such folder"),
        ("verify EMPTY", "no manifest.json, so this is no bundle"),
        ("sign EMPTY", "the following arguments are required: --key"),
        ("diff EMPTY EMPTY", "no manifest.json, so this is no bundle"),
        ("pull nowhere HOME", "nowhere: no such folder"),
        ("pull EMPTY HOME", "no manifest.json; name what tel-export --deploy made"),
        ("activate HOME abc", "home: no such folder; run: tel-bundle pull"),
        ("activate EMPTY abc", "no version 'abc'; there are: none; run: tel-bundle pull"),
        ("rollback EMPTY", "nothing was active before"),
        ("list EMPTY", "no versions; run: tel-bundle pull SOURCE"),
        ("oci import EMPTY HOME", "no OCI image layout with a bundle"),
        ("oci look EMPTY HOME", "invalid choice: 'look'"),
        ("verify EMPTY --older", "unrecognized arguments: --older"),
        ("prune EMPTY --keep -1", "argument --keep: '-1' is no whole number"),
    ],
)
def test_wrong_usage(argv: str, said: str, tel_bundle: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": str(tmp_path / "empty"), "HOME": str(tmp_path / "home")}
    code, out, err = tel_bundle(*(places.get(part, part) for part in argv.split()))
    assert (code, out) == (2, "")
    assert said in err
    assert len([line for line in err.splitlines() if line != DOUBT.strip()]) <= 2
    assert not (tmp_path / "home").exists()


def test_a_bundle_of_the_workspace_has_a_name(tel_bundle: Command, tmp_path: Path) -> None:
    made.bundle(tmp_path / "bundles" / "tel-nano", size=10)
    place = ("--workspace", tmp_path)
    assert tel_bundle(*place, "verify", "tel-nano")[0] == 0
    # Where commands have locked it; in a version nothing is written.
    (tmp_path / "bundles" / "tel-nano" / ".lock").touch()
    assert tel_bundle(*place, "verify", "tel-nano")[0] == 0
    [version] = made.versions(tmp_path / "out", "x")
    store.unsealed(version)
    (version / ".lock").touch()
    code, _, err = tel_bundle("verify", version)
    assert (code, "lock: manifest.json does not list it; remove it, or make a bundle" in err) == (
        2, True
    )  # fmt: skip


def test_a_damaged_version_is_listed(tel_bundle: Command, tmp_path: Path) -> None:
    home = tmp_path / "home"
    one, two = made.versions(home, "x", "y")
    tel_bundle("activate", home, two.name)
    store.unsealed(two)
    (two / "manifest.json").write_text("{")
    code, said, _ = tel_bundle("list", home)
    whole, damaged = said.splitlines()
    assert (code, whole.startswith(f"  {one.name[:12]}  serial")) == (0, True)
    assert damaged.startswith(f"* {two.name[:12]}  damaged: {two}/manifest.json: ")
    assert damaged.endswith("; tel-bundle pull of the same version mends it")


@pytest.mark.parametrize("argv", [["verify", ""], ["pull", "SOURCE", ""], ["list", ""]])
def test_an_empty_path_is_not_the_current_folder(argv: list[str], tel_bundle: Command) -> None:
    code, _, err = tel_bundle(*argv)
    assert (code, "an empty path; name a file or folder" in err) == (2, True)


# A device has none of these, nor what signs.
WITHOUT = ("torch", "transformers", "peft", "datasets", "matplotlib", "sklearn", "starlette")


def test_a_device_needs_nothing_heavy(tmp_path: Path) -> None:
    [one] = made.versions(tmp_path / "out", "x")
    home = tmp_path / "home"
    lines = [["pull", tmp_path / "out", home], ["activate", home, one.name], ["verify", one],
             ["rollback", home], ["oci", "export", one, tmp_path / "layout"]]  # fmt: skip
    env = {**os.environ}
    env.pop("TEL_BUNDLE_KEY", None)
    hide = f"import sys; sys.modules.update(dict.fromkeys({(*WITHOUT, 'cryptography')!r})); "
    for line in lines:
        done = subprocess.run(
            [sys.executable, "-c", hide + entry("tel-bundle"), *map(str, line)],
            capture_output=True, text=True, check=False, env=env,
        )  # fmt: skip
        wanted = 2 if line[0] == "rollback" else 0
        assert done.returncode == wanted, done.stderr
    done = subprocess.run(
        [sys.executable, "-c", hide + entry("tel-bundle"), "verify", one, "--key", "x"],
        capture_output=True, text=True, check=False, env=env,
    )  # fmt: skip
    assert done.returncode == 2
    assert (
        f"{one}: nobody signed it (no model.sig); whoever makes it does: tel-bundle sign"
        in done.stderr
    )
    store.unsealed(one)
    (one / "model.sig").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-c", hide + entry("tel-bundle"), "verify", one, "--key", "x"],
        capture_output=True, text=True, check=False, env=env,
    )  # fmt: skip
    assert done.stderr == (
        "tel-bundle: cryptography is not installed; run: pip install 'tel-edge[sign]'\n"
    )


def test_openssl_makes_the_keys(tel_bundle: Command, tmp_path: Path) -> None:
    """As docs/shipping.md says."""
    pytest.importorskip("cryptography")
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl")
    [one] = made.versions(tmp_path / "out", "x")
    for line in (
        "ecparam -name prime256v1 -genkey -noout -out key.pem",
        "ec -in key.pem -pubout -out key.pub",
    ):
        subprocess.run([openssl, *line.split()], check=True, cwd=tmp_path, capture_output=True)
    assert tel_bundle("sign", one, "--key", tmp_path / "key.pem")[0] == 0
    assert tel_bundle("verify", one, "--key", tmp_path / "key.pub")[0] == 0
