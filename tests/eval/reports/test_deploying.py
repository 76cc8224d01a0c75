"""What was decided is what runs: the decision in the manifest, and who reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest
from conftest import ROOT
from made_reports import floor, put, result

from tel_edge.eval.commands import report
from tel_edge.export.output import Output
from tel_edge.runtime.answerer import Answerer
from tel_edge.runtime.bundles import bundle, formats, manifest
from tel_edge.runtime.bundles.manifest import BundleFile
from tel_edge.runtime.errors import InputError

Command = Callable[..., tuple[int, str, str]]
N = 2000


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A bundle in F16 and Q4_K_M, and results of its files by which Q4_K_M is worth it."""
    made = fake.bundle(tmp_path / "bundles" / "tel-nano")
    floor(tmp_path, 900, N)
    digests = {file.quant: file.sha256 for file in made.files if file.kind == "backbone"}
    adapter = made.find("adapter", category="oranbench")
    assert adapter is not None
    known = result("base-F16").summary.made_with
    put(tmp_path, result("base-F16", right=500, of=N,
                         made_with={**known, "backbone": digests["F16"]}))  # fmt: skip
    for quant, digest in digests.items():
        known = result(f"lora-{quant}").summary.made_with
        put(tmp_path, result(f"lora-{quant}", right=1600, of=N,
                             made_with={**known, "backbone": digest,
                                        "adapter": adapter.sha256}))  # fmt: skip
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


def test_of_what_was_not_decided_for_it_is_warned(home: Path, tel_report: Command) -> None:
    """And the router sends nothing there."""
    assert tel_report()[0] == 0
    made = bundle.read(folder(home))
    assert made.deploy is not None
    manifest.write(
        replace(made, deploy=replace(made.deploy, categories=("teleqna",))), folder(home)
    )
    said = opened(home, only="oranbench")[1]
    assert said == [
        "warning: the report decided for teleqna only; in oranbench the answers were not found "
        "worth deploying"
    ]
    assert opened(home, quant="Q4_K_M") == ("nano-Q4_K_M.gguf", [])


def test_a_decision_outlives_an_export_and_not_its_files(home: Path, tel_report: Command) -> None:
    assert tel_report()[0] == 0
    made = bundle.read(folder(home))
    assert made.deploy is not None
    assert Output(folder(home), made.backbone, force=False).manifest.deploy == made.deploy
    assert opened(home, format="gguf") == ("nano-Q4_K_M.gguf", [])
    said = opened(home, format="onnx")[1] if made.quants(format="onnx") else []
    assert not said or "--format onnx takes another file" in said[0]
    changed = replace(made.deploy, adapters={"oranbench": "e" * 64})
    manifest.write(replace(made, deploy=changed), folder(home))
    said = opened(home)[1]
    assert "with another oranbench adapter than this bundle has now" in said[0]
    # A decision whose file is of another type than its name says is none.
    other = made.find("backbone", "F16")
    assert other is not None
    manifest.write(replace(made, deploy=replace(made.deploy, sha256=other.sha256)), folder(home))
    assert "whose file is not in this bundle any more" in opened(home)[1][0]


def test_what_was_decided_for_is_shipped(home: Path, tel_report: Command, tmp_path: Path) -> None:
    out = tmp_path / "device"
    code, said, err = tel_report("--ship", str(out))
    assert (code, f"copied to {out}" in said) == (0, True), err
    made = bundle.read(out)
    assert [file.path for file in made.files] == [
        file.path
        for file in bundle.read(folder(home)).files
        if file.quant == "Q4_K_M" or file.category == "oranbench"
    ]
    with Answerer.of_bundle(out, opener=fake.FakeOpener()) as answerer:
        assert answerer.name == "nano-Q4_K_M.gguf"
    # Again into the same place, and never over something else.
    assert tel_report("--ship", str(out))[0] == 0
    (tmp_path / "notes").mkdir()
    code, _, err = tel_report("--ship", str(tmp_path / "notes"))
    assert (code, "is there and is no bundle" in err) == (2, True)


def test_the_adapters_have_to_be_those_that_were_scored(home: Path, tel_report: Command) -> None:
    made = bundle.read(folder(home))
    without = replace(made, files=tuple(file for file in made.files if file.kind != "adapter"))
    manifest.write(without, folder(home))
    code, _, err = tel_report()
    assert code == 2
    assert "does not hold the oranbench adapter that was evaluated" in err
    assert bundle.read(folder(home)).deploy is None


def test_who_deploys_nothing_takes_an_earlier_decision_out(home: Path, tel_report: Command) -> None:
    assert tel_report()[0] == 0
    code, _, err = tel_report("--max-mb", "0.1")
    assert (code, bundle.read(folder(home)).deploy) == (2, None)
    assert "that lora-Q4_K_M was decided for before was taken out of the bundle" in err


def bench(home: Path, file: BundleFile, **changes: Any) -> Path:
    """Write what tel-bench --json prints, with the table before it."""
    made = {
        "sha256": file.sha256, "adapter": "oranbench", "questions_per_second": 4.0,
        "memory": {"anonymous": 99_000_000}, "machine": "Nano 8, 6 cores, features x",
        "settings": {"threads": 4}, "date": "2026-11-28",
    }  # fmt: skip
    path = home / "bench.json"
    path.write_text("questions/s  4.00\n" + json.dumps(made | changes) + "\n")
    return path


def test_figures_of_the_device_decide(home: Path, tel_report: Command) -> None:
    file = bundle.read(folder(home)).find("backbone", "Q4_K_M")
    assert file is not None
    path = str(bench(home, file))
    code, said, _ = tel_report("--bench", path, "--max-ms", "300", "--json")
    document = json.loads(said.splitlines()[-1])
    assert (code, document["decision"]["variant"]) == (0, "lora-Q4_K_M")
    assert document["device"]["lora-Q4_K_M"]["milliseconds"] == 250
    assert (
        "99.0 MB of memory beside the mapped file, 250 ms a question (tel-bench on Nano 8, 6 "
        "cores, 4 threads" in " ".join(said.split())
    )
    assert document["decision"]["over_budget"] == {"lora-F16": "not measured on the device"}
    code, _, err = tel_report("--bench", path, "--max-ms", "200")
    assert code == 2
    assert "undecided: lora-F16 may fit the budget, and tel-bench did not measure it" in err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sha256": "0" * 64}, "measured of other files than those that were evaluated"),
        ({"adapter": None}, "measured of other files"),
        ({"questions_per_second": 0.0}, "not what tel-bench --json prints"),
        ({"memory": 4}, "not what tel-bench --json prints"),
    ],
)
def test_figures_of_something_else_are_refused(
    home: Path, tel_report: Command, changes: Any, said: str
) -> None:
    file = bundle.read(folder(home)).find("backbone", "Q4_K_M")
    assert file is not None
    code, _, err = tel_report("--bench", str(bench(home, file, **changes)))
    assert (code, said in err, err.count("\n") <= 2) == (2, True, True)
    (home / "none.json").write_text("")
    assert "no JSON of tel-bench" in tel_report("--bench", str(home / "none.json"))[2]


def test_the_schema_knows_it(home: Path, tel_report: Command) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    assert tel_report()[0] == 0
    schema = json.loads((ROOT / "docs" / "manifest.schema.json").read_text())
    jsonschema.validate(json.loads((folder(home) / "manifest.json").read_text()), schema)


def test_nothing_is_written_where_nothing_is_deployed(home: Path, tel_report: Command) -> None:
    before = (folder(home) / "manifest.json").read_bytes()
    code, _, err = tel_report("--max-mb", "0.1")
    assert code == 2
    assert err.startswith("tel-report: --write: do not deploy: nothing that may stand for the")
    assert err.endswith("nothing was written\n")
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
