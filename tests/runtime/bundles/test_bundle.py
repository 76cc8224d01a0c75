"""Nothing of a bundle reaches the engine unless all of it belongs together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fake_engine as fake
import pytest

from tel_edge.runtime.bundles import bundle, manifest
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import digest


def opened(folder: Path, opener: fake.FakeOpener, category: str = "oranbench") -> None:
    """Open a bundle as the commands do."""
    made = bundle.read(folder)
    backbone = bundle.backbone_file(folder, made, None)
    adapter = bundle.adapter_file(folder, made, category)
    bundle.open_engine(folder, made, backbone, [adapter], opener=opener)


def test_a_whole_bundle_is_opened_in_its_smallest_type(tmp_path: Path) -> None:
    fake.bundle(tmp_path)
    opener = fake.FakeOpener()
    opened(tmp_path, opener)
    assert opener.opened == [(tmp_path / "nano-Q4_K_M.gguf", ["oranbench"])]
    adapter = opener.engines[0].adapters["oranbench"]
    assert adapter.check() == tmp_path / "nano-oranbench-LoRA.gguf"
    assert adapter.digest == digest.of_file(adapter.check())


@pytest.mark.parametrize("name", ["nano-Q4_K_M.gguf", "nano-oranbench-LoRA.gguf"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_file_opens_nothing(name: str, damage: str, tmp_path: Path) -> None:
    fake.bundle(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
        (tmp_path / name).write_bytes(content)
    elif damage == "cut":
        (tmp_path / name).write_bytes(content[:-3])
    else:
        (tmp_path / name).unlink()
    opener = fake.FakeOpener()
    with pytest.raises(InputError, match=f"{name}: .*; export it again: tel-export --quant"):
        opened(tmp_path, opener)
    assert opener.opened == []


def test_damage_elsewhere_is_no_hindrance(tmp_path: Path) -> None:
    fake.bundle(tmp_path, adapters=("oranbench", "teleqna"))
    (tmp_path / "nano-F16.gguf").unlink()
    (tmp_path / "nano-teleqna-LoRA.gguf").write_bytes(b"")
    opener = fake.FakeOpener()
    opened(tmp_path, opener)
    assert len(opener.opened) == 1


def relisted(folder: Path, name: str, content: bytes) -> None:
    """Replace a file and list it as it now is: a wrong file with right digests."""
    (folder / name).write_bytes(content)
    made = manifest.read(folder)
    for file in made.files:
        if file.path == name:
            known = {
                field: getattr(file, field)
                for field in ("kind", "format", "quant", "category", "backbone", "split")
            }
            made = made.with_file(manifest.describe(folder, folder / name, **known))
    manifest.write(made, folder)


ADAPTER = "nano-oranbench-LoRA.gguf"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("nano-Q4_K_M.gguf", b"no model at all, but long enough", "no GGUF file"),
        (ADAPTER, fake.gguf(general__type="model"), "no LoRA adapter"),
        (
            ADAPTER,
            fake.gguf(general__type="adapter", tel_edge__backbone__weights="0" * 64),
            "made for another backbone than tel-nano",
        ),
    ],
)
def test_a_wrong_file_opens_nothing(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    fake.bundle(tmp_path)
    relisted(tmp_path, name, content)
    opener = fake.FakeOpener()
    with pytest.raises(InputError, match=reason):
        opened(tmp_path, opener)
    assert opener.opened == []


def test_an_adapter_listed_for_another_backbone_is_refused(tmp_path: Path) -> None:
    made = fake.bundle(tmp_path)
    made = replace(made, backbone=replace(made.backbone, weights="9" * 64))
    manifest.write(made, tmp_path)
    opener = fake.FakeOpener()
    with pytest.raises(InputError, match=r"LoRA\.gguf: made for another backbone than tel-nano"):
        opened(tmp_path, opener)
    assert opener.opened == []


def test_another_prompt_is_refused(tmp_path: Path) -> None:
    fake.bundle(tmp_path, prompt="0" * 64)
    with pytest.raises(InputError, match="made for another prompt than this version's"):
        bundle.read(tmp_path)


def test_a_missing_adapter_is_told_with_the_commands(tmp_path: Path) -> None:
    fake.bundle(tmp_path, adapters=("teleqna",))
    with pytest.raises(InputError) as caught:
        opened(tmp_path, fake.FakeOpener())
    assert str(caught.value) == (
        f"{tmp_path}: no adapter for oranbench (there: teleqna); "
        "run: tel-train --category oranbench; tel-export --adapter oranbench"
    )


@pytest.mark.parametrize(
    ("quants", "wanted", "said"),
    [
        (("F16", "Q4_K_M"), "Q8_0", "no Q8_0 backbone (there: F16 Q4_K_M); "),
        ((), None, "no GGUF backbone (there: none); run: tel-export --quant Q4_K_M"),
    ],
)
def test_a_missing_type_is_told_with_the_command(
    quants: tuple[str, ...], wanted: str | None, said: str, tmp_path: Path
) -> None:
    made = fake.bundle(tmp_path, quants=quants)
    with pytest.raises(InputError) as caught:
        bundle.backbone_file(tmp_path, made, wanted)
    assert said in str(caught.value)
    assert f"run: tel-export --quant {wanted or 'Q4_K_M'}" in str(caught.value)


def test_a_lazily_opened_adapter_is_checked_when_it_is_asked_for(tmp_path: Path) -> None:
    made = fake.bundle(tmp_path, adapters=("oranbench", "teleqna"))
    damaged = tmp_path / "nano-teleqna-LoRA.gguf"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1])
    opener = fake.FakeOpener()
    files = [bundle.adapter_file(tmp_path, made, name) for name in made.adapters()]
    backbone = bundle.backbone_file(tmp_path, made, None)
    with pytest.raises(InputError, match=r"nano-teleqna-LoRA\.gguf: "):
        bundle.open_engine(tmp_path, made, backbone, files, opener=opener)
    assert opener.opened == []
    bundle.open_engine(tmp_path, made, backbone, files, opener=opener, lazily=True)
    adapters = opener.engines[0].adapters
    assert adapters["oranbench"].check() == tmp_path / ADAPTER
    for _ in range(2):
        with pytest.raises(InputError, match=r"nano-teleqna-LoRA\.gguf: "):
            adapters["teleqna"].check()
    damaged.write_bytes(whole)
    assert adapters["teleqna"].check() == damaged


def test_a_damaged_backbone_is_refused_before_any_adapter_is_asked_for(tmp_path: Path) -> None:
    made = fake.bundle(tmp_path)
    backbone = bundle.backbone_file(tmp_path, made, None)
    (tmp_path / backbone.path).write_bytes(b"GGUF")
    opener = fake.FakeOpener()
    with pytest.raises(InputError, match=r"nano-Q4_K_M\.gguf: "):
        bundle.open_engine(tmp_path, made, backbone, [], opener=opener, lazily=True)
    assert opener.opened == []


def loose(folder: Path, name: str, **metadata: str) -> Path:
    (folder / name).write_bytes(fake.gguf(**metadata))
    return folder / name


def test_loose_files_say_where_they_belong(tmp_path: Path) -> None:
    known = {"tel_edge__backbone__weights": "1" * 64}
    backbone = loose(tmp_path, "backbone.gguf", **known)
    foreign = loose(tmp_path, "foreign.gguf")
    mine = loose(tmp_path, "mine.gguf", general__type="adapter", **known)
    silent = loose(tmp_path, "silent.gguf", general__type="adapter")
    other = loose(
        tmp_path, "other.gguf", general__type="adapter", tel_edge__backbone__weights="2" * 64
    )
    found = bundle.loose_adapters(backbone, {"a": mine, "b": silent})
    assert {name: adapter.check() for name, adapter in found.items()} == {"a": mine, "b": silent}
    assert found["a"].digest == digest.of_file(mine)
    with pytest.raises(InputError, match=r"other\.gguf: made for another backbone than backbone"):
        bundle.loose_adapters(backbone, {"a": mine, "b": other})
    with pytest.raises(InputError, match=r"foreign\.gguf: no LoRA adapter"):
        bundle.loose_adapters(backbone, {"a": foreign})
    # A backbone from elsewhere says nothing, and so cannot be held against an adapter.
    assert bundle.loose_adapters(foreign, {"a": other})["a"].check() == other
