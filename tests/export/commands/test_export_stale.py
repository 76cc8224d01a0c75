"""What enters a file is compared before the file is reused, and old bundles are kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import export_models as models
import fake_engine as fake
import pytest

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.benchmarks.split import split
from tel_edge.export.commands import export
from tel_edge.runtime import cli
from tel_edge.runtime.bundles import manifest
from tel_edge.runtime.files import digest, gguf_header
from tel_edge.runtime.questions.categories import CATEGORIES


@pytest.fixture(scope="module")
def root(tmp_path_factory: Any) -> Path:
    """Return a folder with the backbone `base` and its adapter `one`."""
    folder: Path = tmp_path_factory.mktemp("stale")
    base = models.backbone(folder / "base", "llama")
    parts = split(benchmark.read("ot-mini", CATEGORIES["oranbench"]).questions)
    models.bind(models.adapter(folder / "one", base), base, split=parts.digest)
    return folder


@pytest.fixture
def home(root: Path, tmp_path: Path) -> Path:
    """Return a copy of it."""
    return shutil.copytree(root, tmp_path / "home")


def tel_export(home: Path, *argv: str) -> int:
    common = ["--backbone", str(home / "base"), "--out", str(home / "b"), "--workspace", str(home)]
    return cli.run(export.parser(), export.work, [*common, "--no-verify", "--json", *argv])


def states(home: Path, capsys: Any, *argv: str) -> dict[str, str]:
    capsys.readouterr()
    assert tel_export(home, *argv) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    return {file["path"]: file["state"] for file in document["files"]}


def template(home: Path) -> None:
    (home / "base" / "chat_template.jinja").write_text("{{ messages[0] }}")


def generation(home: Path) -> None:
    (home / "base" / "generation_config.json").write_text('{"top_k": 7, "temperature": 0.5}')


def card(home: Path) -> None:
    (home / "base" / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")


@pytest.mark.parametrize("edit", [template, generation, card])
def test_a_file_is_made_again_when_what_it_holds_has_changed(
    edit: Callable[[Path], None], home: Path, capsys: Any
) -> None:
    argv = ("--quant", "F16,Q8_0")
    assert set(states(home, capsys, *argv).values()) == {"written"}
    assert set(states(home, capsys, *argv).values()) == {"reused"}
    before = manifest.read(home / "b").find("backbone", "F16")
    edit(home)
    # The type that is made first must not be made of the old F16 file.
    assert states(home, capsys, "--quant", "Q8_0") == {"base-Q8_0.gguf": "written"}
    assert states(home, capsys, *argv)["base-F16.gguf"] == "written"
    after = manifest.read(home / "b")
    assert before
    assert after.find("backbone", "F16") != before
    both = [gguf_header.check(home / "b" / f"base-{q}.gguf").metadata for q in ("F16", "Q8_0")]
    keys = [{k: v for k, v in one.items() if k != "general.file_type"} for one in both]
    assert keys[0] == keys[1]


def test_files_of_another_version_of_the_quantizer_are_made_again(
    home: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tel_edge.export import made

    argv = ("--quant", "F16,Q8_0")
    states(home, capsys, *argv)
    file = manifest.read(home / "b").find("backbone", "Q8_0")
    assert file
    assert file.made_by
    assert file.made_by["llama_cpp"].startswith("llama-cpp-python ")
    assert set(file.made_by) == {"layout", "tel-edge", "gguf", "llama_cpp"}
    real = made.installed
    newer = {"llama_cpp": "llama-cpp-python 99.0"}
    monkeypatch.setattr(made, "installed", lambda name: newer.get(name) or real(name))
    assert tel_export(home, *argv) == 0
    told = capsys.readouterr()
    found = json.loads(told.out.splitlines()[-1])["files"]
    # The F16 file is the exporter's own work.
    assert {f["path"]: f["state"] for f in found} == {
        "base-F16.gguf": "reused", "base-Q8_0.gguf": "written",
    }  # fmt: skip
    assert "now llama-cpp-python 99.0, so made again: base-Q8_0.gguf" in told.err
    monkeypatch.setattr(made, "layout", lambda _: "0")
    assert set(states(home, capsys, *argv).values()) == {"written"}


def test_graphs_from_before_they_were_fused_are_made_again() -> None:
    from tel_edge.export import made

    before = {"layout": "1", "tel-edge": "0.1.0"}
    assert made.outdated(before) is None
    assert made.outdated({**before, "onnx": str(made.installed("onnx"))}) == "layout 1, now 3"
    # An adapter's file is what it was.
    assert made.made_by("onnxruntime")["layout"] == "1"


def test_an_old_bundle_is_kept_and_one_line_says_what_is_not_known(home: Path, capsys: Any) -> None:
    argv = ("--quant", "F16,Q8_0", "--adapter", str(home / "one"))
    states(home, capsys, *argv)
    path = home / "b" / manifest.NAME
    document = json.loads(path.read_text())
    document["backbone"].pop("tokenization")
    for file in document["files"]:
        file.pop("made_by")
        file.pop("inputs", None)
    path.write_text(json.dumps(document))
    template(home)
    assert tel_export(home, *argv) == 0
    told = capsys.readouterr()
    assert {f["state"] for f in json.loads(told.out.splitlines()[-1])["files"]} == {"reused"}
    lines = [line for line in told.err.splitlines() if "cannot be known" in line]
    assert len(lines) == 1
    assert "base-F16.gguf" in lines[0]
    assert "--force makes them anew" in lines[0]
    # A new type is not made of a file of which nobody knows what is in it.
    assert states(home, capsys, "--quant", "Q4_0") == {"base-Q4_0.gguf": "written"}
    keys = gguf_header.check(home / "b" / "base-Q4_0.gguf").metadata
    assert keys["tokenizer.chat_template"] == "{{ messages[0] }}"


def test_an_importance_matrix_is_of_the_prompts_and_not_of_a_name(home: Path, capsys: Any) -> None:
    data = fake.dataset(home / "data", "oranbench", fake.rows(20))

    def bound() -> None:
        parts = split(benchmark.read(str(data), CATEGORIES["oranbench"]).questions)
        models.edit(home / "one" / "training.json", split=parts.digest)

    bound()
    argv = ["--quant", "Q4_0", "--adapter", str(home / "one"), "--imatrix", "pooled"]
    argv += ["--dataset", str(data)]
    assert states(home, capsys, *argv)["base-Q4_0.gguf"] == "written"
    assert states(home, capsys, *argv)["base-Q4_0.gguf"] == "reused"
    moved = data.rename(home / "elsewhere")
    again = [*argv[:-1], str(moved)]
    assert states(home, capsys, *again)["base-Q4_0.gguf"] == "reused"
    moved.rename(data)
    rows = [{**row, "question": f"Other: {row['question']}"} for row in fake.rows(20)]
    fake.dataset(data, "oranbench", rows)
    bound()
    assert states(home, capsys, *argv)["base-Q4_0.gguf"] == "written"


def trained(home: Path, **more: str) -> None:
    """Let training.json say what the trainer says of the backbone."""
    base = home / "base"
    known = {"name": "base", "weights": digest.of_weights(base), **more}
    models.edit(home / "one" / "training.json", backbone=known)


def without_bos(home: Path) -> None:
    file = home / "base" / "tokenizer.json"
    tokens = json.loads(file.read_text())
    tokens["post_processor"]["single"] = tokens["post_processor"]["single"][1:]
    file.write_text(json.dumps(tokens))


def chat(home: Path) -> None:
    models.edit(home / "base" / "tokenizer_config.json", chat_template="{{ x }}", pad_token=None)
    template(home)


@pytest.mark.parametrize(("edit", "code"), [(without_bos, 2), (chat, 0)])
def test_an_adapter_is_of_the_tokenizer_that_it_was_trained_with(
    edit: Callable[[Path], None], code: int, home: Path, capsys: Any
) -> None:
    base = home / "base"
    trained(home, tokenizer=digest.of_tokenizer(base), tokenization=digest.of_tokenization(base))
    edit(home)
    assert tel_export(home, "--quant", "F16", "--adapter", str(home / "one")) == code
    assert ("trained with another tokenizer than base has now" in capsys.readouterr().err) == (
        code == 2
    )


def test_an_older_adapter_is_refused_only_if_the_files_differ(home: Path, capsys: Any) -> None:
    argv = ("--quant", "F16", "--adapter", str(home / "one"))
    trained(home, tokenizer=digest.of_tokenizer(home / "base"))
    assert tel_export(home, *argv) == 0
    template(home)
    assert tel_export(home, *argv) == 0
    without_bos(home)
    assert tel_export(home, *argv, "--force") == 2
    assert "is too old to tell whether prompts become the same tokens" in capsys.readouterr().err
