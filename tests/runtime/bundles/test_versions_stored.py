"""Versions of a bundle: made, checked, moved, and what of them travels."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fake_engine as fake
import for_shipping as made
import pytest

from tel_edge.runtime.answerer import Answerer
from tel_edge.runtime.bundles import manifest
from tel_edge.runtime.bundles.manifest import Deployed
from tel_edge.runtime.bundles.shipping import checking, differing, sources, store
from tel_edge.runtime.bundles.shipping.pulling import pull
from tel_edge.runtime.errors import InputError, WorkError

ADAPTER = "nano-oranbench-LoRA.gguf"
OTHER = "nano-teleqna-LoRA.gguf"


def pulled(source: Path | str, home: Path, **options: object) -> store.Added:
    return pull(*sources.opened(str(source)), home, **options)  # type: ignore[arg-type]


def test_a_version_is_a_bundle_called_by_its_digest(tmp_path: Path) -> None:
    work, home = made.bundle(tmp_path / "work"), tmp_path / "home"
    first = store.deploy(work, home)
    assert first.folder.name == manifest.of_folder(first.folder)
    assert (first.manifest.serial, first.new) == (1, True)
    assert (home / "latest").read_text() == first.folder.name + "\n"
    # Also after a run that was killed before it said so.
    (home / "latest").write_text("zz\n")
    store.deploy(work, home)
    assert (home / "latest").read_text() == first.folder.name + "\n"
    assert checking.check(first.folder) == first.manifest
    with Answerer.of_bundle(first.folder, opener=fake.FakeOpener()) as answerer:
        assert answerer.name == "nano-Q4_K_M.gguf"
    modes = {path.stat().st_mode & 0o777 for path in first.folder.rglob("*")}
    assert (modes, first.folder.stat().st_mode & 0o777) == ({0o444}, 0o555)
    # The same again is the same, and the workspace's own files stay as they were.
    assert store.deploy(work, home) == replace(first, new=False, moved=0)
    assert (work / ADAPTER).stat().st_mode & 0o200


def test_what_did_not_change_is_one_file_on_the_disk(tmp_path: Path) -> None:
    one, two = made.versions(tmp_path / "home", "x", "y")
    assert manifest.read(two).serial == 2
    assert (one / OTHER).samefile(two / OTHER)
    assert not (one / ADAPTER).samefile(two / ADAPTER)
    # What goes back to earlier files is a new version.
    back = store.deploy(made.bundle(tmp_path / "home-work", "x", 1000), tmp_path / "home")
    assert (back.manifest.serial, back.moved) == (3, 0)
    assert (one / ADAPTER).samefile(back.folder / ADAPTER)


def test_what_was_decided_for_is_what_goes(tmp_path: Path) -> None:
    work = made.bundle(tmp_path / "work", size=10)
    there = manifest.read(work)
    backbone, adapter = there.files[0], there.find("adapter", category="oranbench")
    assert adapter is not None
    decided = Deployed(
        "lora-Q4_K_M", backbone.sha256, ("oranbench",), {"oranbench": adapter.sha256}
    )
    manifest.write(replace(there, deploy=decided), work)
    first = store.deploy(work, tmp_path / "home")
    assert {file.path for file in first.manifest.files} == {backbone.path, adapter.path}
    assert not store.deploy(work, tmp_path / "home").new


def flip(folder: Path) -> None:
    content = bytearray((folder / ADAPTER).read_bytes())
    content[-1] ^= 1
    replaced(folder / ADAPTER, bytes(content))


def replaced(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def linked(folder: Path) -> None:
    shutil.move(folder / ADAPTER, folder.parent / "elsewhere")
    (folder / ADAPTER).symlink_to(folder.parent / "elsewhere")


WRONG: tuple[tuple[Callable[[Path], object], str], ...] = (
    (flip, f"{ADAPTER}: damaged, its SHA-256 is not that of manifest.json"),
    (lambda f: replaced(f / ADAPTER, b"GGUF"), f"{ADAPTER}: 4 bytes, manifest.json says"),
    (lambda f: (f / ADAPTER).unlink(), f"{ADAPTER}: missing, though manifest.json lists it"),
    (lambda f: (f / "more.bin").write_bytes(b""), "more.bin: manifest.json does not list it"),
    (lambda f: (f / "sub").mkdir() or (f / "sub" / "x").touch(), "sub/x: manifest.json does not"),
    (linked, f"{ADAPTER}: a symbolic link; a bundle has plain files alone"),
    (
        lambda f: manifest.write(replace(manifest.read(f), serial=9), f),
        "manifest.json: changed, the folder is called by its SHA-256",
    ),
    (lambda f: (f / "manifest.json").unlink(), "no manifest.json, so this is no bundle"),
)  # fmt: skip


@pytest.mark.parametrize(("harm", "said"), WRONG)
def test_what_is_not_as_it_was_made_is_named(
    harm: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    [one] = made.versions(tmp_path / "home", "x")
    checking.check(one)
    store.unsealed(one)
    harm(one)
    with pytest.raises(InputError) as refused:
        checking.check(one)
    assert said in str(refused.value)
    assert str(refused.value).count("\n") <= 1


@pytest.mark.parametrize("over_http", [False, True])
def test_an_update_of_one_adapter_moves_that_adapter(over_http: bool, tmp_path: Path) -> None:
    made.versions(tmp_path / "out", "x", size=made.ADAPTER)
    with made.served(tmp_path / "out") as (url, state):
        source = url if over_http else tmp_path / "out"
        first = pulled(source, tmp_path / "home")
        assert first.moved > 2 * made.ADAPTER
        made.versions(tmp_path / "out", "y", size=made.ADAPTER)
        state["sent"] = 0
        second = pulled(source, tmp_path / "home")
        adapter = second.manifest.find("adapter", category="oranbench")
        assert adapter is not None
        assert second.moved == adapter.bytes
        # With all that was asked to find that out.
        assert not over_http or adapter.bytes < state["sent"] <= 1.02 * adapter.bytes
    assert (first.folder / OTHER).samefile(second.folder / OTHER)
    assert checking.check(second.folder).serial == 2
    again = pulled(tmp_path / "out", tmp_path / "home")
    assert (again.new, again.moved) == (False, 0)


def test_a_stick_knows_neither_links_nor_modes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    monkeypatch.setattr(Path, "chmod", refuse)
    one, two = made.versions(tmp_path / "out", "x", "y")
    assert checking.check(two).serial == 2
    assert not (one / OTHER).samefile(two / OTHER)
    assert (one / OTHER).stat().st_mtime_ns == (two / OTHER).stat().st_mtime_ns
    assert pulled(tmp_path / "out", tmp_path / "home").folder.name == two.name


def test_rsync_moves_no_more(tmp_path: Path) -> None:
    rsync = shutil.which("rsync")
    if rsync is None:
        pytest.skip("no rsync")
    out, device = tmp_path / "out", tmp_path / "device"
    [first] = made.versions(out, "x", size=made.ADAPTER)
    shutil.copytree(first, device / first.name)
    (device / "current").symlink_to(first.name)
    [second] = made.versions(out, "y", size=made.ADAPTER)
    # As docs/shipping.md has it.
    done = subprocess.run(
        [rsync, "-ac", "--stats", "--link-dest=../current/", f"{second}/", device / second.name],
        check=True, capture_output=True, text=True, env={"LC_ALL": "C"},
    )  # fmt: skip
    [line] = [one for one in done.stdout.splitlines() if "Total bytes sent" in one]
    sent = int(line.rpartition(":")[2].replace(",", ""))
    assert sent <= 1.02 * (second / ADAPTER).stat().st_size
    assert (device / first.name / OTHER).samefile(device / second.name / OTHER)
    assert checking.check(device / second.name).serial == 2


def test_a_pull_that_ends_early_goes_on_where_it_was(tmp_path: Path) -> None:
    [one] = made.versions(tmp_path / "out", "x", size=made.ADAPTER)
    size = (one / ADAPTER).stat().st_size
    with made.served(tmp_path / "out") as (url, state):
        state["cut"] = True
        with pytest.raises(WorkError, match="run the same command again, which goes on"):
            pulled(url, tmp_path / "home")
        assert not (tmp_path / "home" / one.name).exists()
        came = state["sent"]
        done = pulled(url, tmp_path / "home")
    # The backbone and half of a file were there already.
    backbone, *adapters = done.manifest.files
    assert done.moved == manifest.total_bytes(adapters) - size // 2
    assert came > backbone.bytes + size // 2
    assert checking.check(done.folder)


def test_a_server_that_cannot_go_on_begins_anew(tmp_path: Path) -> None:
    made.versions(tmp_path / "out", "x", size=made.ADAPTER)
    with made.served(tmp_path / "out") as (url, state):
        state.update(cut=True, ranges=False)
        with pytest.raises(WorkError):
            pulled(url, tmp_path / "home")
        assert checking.check(pulled(url, tmp_path / "home").folder)


def test_what_was_begun_with_other_bytes_is_thrown_away(tmp_path: Path) -> None:
    [one] = made.versions(tmp_path / "out", "x")
    staging = tmp_path / "home" / f".{one.name}.partial"
    staging.mkdir(parents=True)
    (staging / ADAPTER).write_bytes(b"nonsense")
    assert checking.check(pulled(tmp_path / "out", tmp_path / "home").folder)


def test_no_other_server_is_asked(tmp_path: Path) -> None:
    made.versions(tmp_path / "out", "x")
    with made.served(tmp_path / "out") as (url, state), made.served(tmp_path) as (other, seen):
        state["redirect"] = other
        with pytest.raises(InputError, match=f"sends to another server, {other}, which is not"):
            pulled(url, tmp_path / "home")
        assert seen["asked"] == []
        state["redirect"] = None
        assert pulled(url, tmp_path / "home").new


def test_a_damaged_source_leaves_nothing(tmp_path: Path) -> None:
    [one] = made.versions(tmp_path / "out", "x")
    store.unsealed(one)
    flip(one)
    with pytest.raises(InputError, match=f"{ADAPTER}: damaged, or of another version"):
        pulled(tmp_path / "out", tmp_path / "home")
    linked(one)
    with pytest.raises(InputError, match=f"{ADAPTER}: no plain file, or behind a symbolic link"):
        pulled(tmp_path / "out", tmp_path / "home")
    manifest.write(replace(manifest.read(one), serial=9), one)
    with pytest.raises(InputError, match=r"manifest\.json: changed, its SHA-256 is not"):
        pulled(one, tmp_path / "home")
    assert store.versions(tmp_path / "home") == {}


def test_a_damaged_version_is_fetched_again(tmp_path: Path) -> None:
    [one] = made.versions(tmp_path / "out", "x", size=made.ADAPTER)
    there = pulled(tmp_path / "out", tmp_path / "home").folder
    store.unsealed(there)
    flip(there)
    again = pulled(one, tmp_path / "home")
    assert again.moved == (there / ADAPTER).stat().st_size
    assert checking.check(there)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("ftp://x/y", "a folder is needed, or a URL such as"),
        ("http:///y", "a folder is needed, or a URL such as"),
        ("https://x/y?z", "a folder is needed, or a URL such as"),
        ("file://x/y", "a folder is needed, or a URL such as"),
        ("nowhere", "nowhere: no such folder"),
    ],
)
def test_sources_that_are_none(source: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        sources.opened(source)


def test_any_bundle_is_a_source(tmp_path: Path) -> None:
    """One that no store made has no serial, and is older than all that have."""
    work = made.bundle(tmp_path / "with space", size=10)
    added = pulled(work.as_uri(), tmp_path / "home")
    assert (added.manifest.serial, added.folder.name) == (None, manifest.of_folder(work))
    # And a device's folder is one for the next.
    assert pulled(tmp_path / "home", tmp_path / "next").folder.name == added.folder.name


def test_what_is_different_is_told(tmp_path: Path) -> None:
    one, two = made.versions(tmp_path / "out", "x", "y")
    found = differing.differences(manifest.read(one), manifest.read(two))
    [row] = found["files"]
    assert (row["state"], row["path"]) == ("changed", ADAPTER)
    assert found["move"] == (two / ADAPTER).stat().st_size
    assert list(differing.told(found)) == [
        "serial 1 -> 2",
        f"changed {ADAPTER} (adapter oranbench gguf F16), 0.00 MB to move",
        f"to move: 0.00 of {found['bytes'] / 1e6:,.2f} MB",
    ]
    old, new = manifest.read(one), manifest.read(two)
    adapter = old.find("adapter", category="oranbench")
    assert adapter is not None
    measured = replace(adapter, parity={**fake.PARITY, "kl": 0.5})
    decided = replace(
        old.with_file(measured), deploy=Deployed("lora-Q4_K_M", "a" * 64, ("oranbench",))
    )
    decided = replace(decided, backbone=replace(old.backbone, tokenizer="d" * 64))
    lines = list(differing.told(differing.differences(old, decided)))
    assert lines[1] == "backbone tokenizer: cccccccccccc -> dddddddddddd"
    assert lines[2].endswith("0.00 MB to move, kl 0.0 -> 0.5")
    assert lines[3] == "decision: none -> lora-Q4_K_M in oranbench"
    gone = replace(new, files=new.files[:-1])
    assert [row["state"] for row in differing.differences(new, gone)["files"]] == ["removed"]


def test_a_version_is_not_put_into_another_one(tmp_path: Path) -> None:
    one, two = made.versions(tmp_path / "out", "x", "y")
    with pytest.raises(InputError, match="a bundle, no folder of versions"):
        pulled(two, one)
    assert not (one / two.name).exists()


def test_a_url_that_is_none_is_told() -> None:
    with pytest.raises(InputError, match="a folder is needed, or a URL such as"):
        sources.opened("http://[::1/x")
