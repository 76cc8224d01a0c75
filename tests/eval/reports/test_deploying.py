"""What was decided is what runs: the decision in the manifest, and who reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fake_engine as fake
import pytest
from conftest import ROOT
from made_reports import floor, put, result

from tel_edge.eval.commands import report
from tel_edge.runtime.answerer import Answerer
from tel_edge.runtime.bundles import bundle, formats, manifest
from tel_edge.runtime.errors import InputError

Command = Callable[..., tuple[int, str, str]]
N = 2000


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A bundle in F16 and Q4_K_M, and results of its files by which Q4_K_M is worth it."""
    made = fake.bundle(tmp_path / "bundles" / "tel-nano")
    floor(tmp_path, 900, N)
    digests = {file.quant: file.sha256 for file in made.files if file.kind == "backbone"}
    known = result("base-F16").summary.made_with
    put(tmp_path, result("base-F16", right=500, of=N,
                         made_with={**known, "backbone": digests["F16"]}))  # fmt: skip
    for quant, digest in digests.items():
        known = result(f"lora-{quant}").summary.made_with
        put(tmp_path, result(f"lora-{quant}", right=1600, of=N,
                             made_with={**known, "backbone": digest}))  # fmt: skip
    return tmp_path


@pytest.fixture
def tel_report(home: Path, run_command: Command) -> Command:
    def made(*argv: str) -> tuple[int, str, str]:
        return run_command(
            report.parser(), report.work, "--workspace", str(home), "--quiet", "--write", *argv
        )

    return made


def folder(home: Path) -> Path:
    return home / "bundles" / "tel-nano"


def opened(home: Path, **options: str) -> tuple[str, list[str]]:
    said: list[str] = []
    with Answerer.of_bundle(
        folder(home), opener=fake.FakeOpener(), say=said.append, **options
    ) as answerer:  # type: ignore[arg-type]
        return answerer.name, said


def test_the_decision_is_what_tel_run_takes(home: Path, tel_report: Command) -> None:
    before = manifest.dumps(bundle.read(folder(home)))
    assert '"deploy"' not in before
    code, said, _ = tel_report("--margin", "0.0001")
    assert (code, "tel-run takes lora-F16 by default" in said) == (0, True)
    made = bundle.read(folder(home))
    assert made.deploy is not None
    assert (made.deploy.variant, made.deploy.categories) == ("lora-F16", ("oranbench",))
    # Without it the smallest is taken, and who names a type gets that one.
    assert opened(home) == ("nano-F16.gguf", [])
    assert opened(home, quant="Q4_K_M") == ("nano-Q4_K_M.gguf", [])
    manifest.write(replace(made, deploy=None), folder(home))
    assert opened(home) == ("nano-Q4_K_M.gguf", [])
    assert manifest.dumps(bundle.read(folder(home))) == before
    # Whatever is exported later keeps the decision.
    manifest.write(made, folder(home))
    assert made.with_file(made.files[0]).deploy == made.deploy


def test_the_schema_knows_it(home: Path, tel_report: Command) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    assert tel_report()[0] == 0
    schema = json.loads((ROOT / "docs" / "manifest.schema.json").read_text())
    jsonschema.validate(json.loads((folder(home) / "manifest.json").read_text()), schema)


def test_nothing_is_written_where_nothing_is_deployed(home: Path, tel_report: Command) -> None:
    before = (folder(home) / "manifest.json").read_bytes()
    code, _, err = tel_report("--max-mb", "0.1")
    assert code == 2
    assert err.startswith("tel-report: --write: do not deploy: nothing fits the budget")
    assert (folder(home) / "manifest.json").read_bytes() == before


def test_another_bundle_is_not_written_to(home: Path, tel_report: Command) -> None:
    other = home / "other"
    fake.bundle(other, quants=("F16",))
    code, _, err = tel_report("--bundle", str(other))
    assert code == 2
    assert "does not hold the file that lora-Q4_K_M was evaluated with" in err


def test_a_file_that_has_gone_is_told(
    home: Path, tel_report: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tel_report("--margin", "0.0001")[0] == 0
    made = bundle.read(folder(home))
    row = replace(formats.FORMATS["gguf"])
    with monkeypatch.context() as away:
        away.setattr(type(row), "installed", lambda _: False)
        assert "but llama-cpp-python is not installed here" in opened(home)[1][0]
    manifest.write(replace(made, files=made.files[1:]), folder(home))
    name, said = opened(home)
    assert name == "nano-Q4_K_M.gguf"
    assert said == [
        "warning: the report decided for lora-F16, whose file is not in this bundle any more; "
        "evaluate again, then tel-report --write"
    ]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ([], "field 'deploy' is missing or not dict"),
        ({"variant": "x"}, "deploy: field 'sha256' is missing"),
        ({"variant": "../x", "sha256": "a" * 64, "categories": []}, "no possible value"),
        ({"variant": "x", "sha256": "a", "categories": []}, "no possible value"),
        ({"variant": "x", "sha256": "a" * 64, "categories": [1]}, "no plain names"),
    ],
)
def test_a_damaged_decision_is_refused(home: Path, entry: object, said: str) -> None:
    path = folder(home) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"deploy": entry}))
    with pytest.raises(InputError, match=said):
        bundle.read(folder(home))
