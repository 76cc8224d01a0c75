"""An adapter for dialogues: exported beside others, judged along what it says, and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import export_models as models
import for_dialogues as made_of
import pytest

from tel_edge.eval.folders.chat import Chat
from tel_edge.export.commands import export
from tel_edge.export.gate import along
from tel_edge.export.gate.along import Along
from tel_edge.export.gate.gate import Gate
from tel_edge.runtime.answerer import Answerer
from tel_edge.runtime.bundles import bundle, manifest
from tel_edge.runtime.engines.engine import EngineSettings, Sampling
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.files import gguf_header
from tel_edge.runtime.questions.conversation import Message, templated

pytest.importorskip("torch")
pytest.importorskip("llama_cpp")

Command = Callable[..., tuple[int, str, str]]
ENDS = made_of.FAMILIES["chatml"][2]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone that converses, with an adapter for questions and one for dialogues."""
    root = tmp_path_factory.mktemp("along")
    base = made_of.backbone(root / "base", hidden_size=64)
    for name, seed in (("oranbench", 1), ("care", 2)):
        models.adapter(root / name, base, seed=seed)
    models.bind(root / "oranbench", base)
    bind(root / "care", base)
    return root


def bind(folder: Path, base: Path, **changed: Any) -> None:
    template = Chat(base).template.digest
    models.bind(folder, base, category="care", template=template, dataset="dialogues", **changed)


@pytest.fixture(scope="module", autouse=True)
def few() -> Iterator[None]:
    """Two dialogues are enough to see whether they are compared."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(along, "PROMPTS", 2)
        yield


@pytest.fixture(scope="module")
def made(root: Path) -> Path:
    """The bundle of both, in one type."""
    args = export.parser().parse_args(argv(root, root / "bundle", "care", "oranbench"))
    export.work(args)
    return root / "bundle"


def argv(root: Path, out: Path, *adapters: str) -> list[str]:
    folders = ",".join(str(root / name) for name in adapters)
    more = ["--adapter", folders, "--quant", "F16", "--out", str(out), "--quiet"]
    return ["--workspace", str(out.parent / "home"), "--backbone", str(root / "base"), *more]


def test_the_manifest_says_how_it_is_asked(root: Path, made: Path) -> None:
    known = manifest.read(made)
    template = Chat(root / "base").template.digest
    assert known.backbone.template == template
    file = known.find("adapter", "F16", "care")
    other = known.find("adapter", "F16", "oranbench")
    assert file
    assert other
    assert file.parity
    assert (file.template, other.template) == (template, None)
    # Judged at every token of the dialogues' answers.
    assert file.parity["prompts"] > 100
    assert file.parity["picks"] > 0.99
    assert file.parity["adapter"] < 0.02
    assert file.parity["change"] > 0.01
    header = gguf_header.check(made / file.path).metadata
    assert header["tel_edge.template"] == template
    assert "tel_edge.prompt" not in header
    assert "tel_edge.template" not in gguf_header.check(made / other.path).metadata


def test_the_template_is_exported_as_it_is(root: Path, made: Path) -> None:
    known = manifest.read(made)
    engine: Any = bundle.open_engine(made, known, known.files[0], ())
    try:
        assert engine.template == Chat(root / "base").template
        rows = [Message("user", "Is it lost?")]
        text = templated(engine.template, rows)
        assert engine.marked(text) == Chat(root / "base").marked(text)
        assert engine.ends(Chat(root / "base").marked(ENDS)[0])
    finally:
        engine.close()


def test_questions_are_answered_as_without_it(root: Path, made: Path, tmp_path: Path) -> None:
    code = export.work(export.parser().parse_args(argv(root, tmp_path / "bundle", "oranbench")))
    assert code
    asked: Any = ("What is O-RAN?", ("a", "b", "c"), "oranbench")
    exact = EngineSettings(context=256, exact=True)
    with Answerer.of_bundle(tmp_path / "bundle", engine=exact) as alone:
        wanted = alone.answer(*asked)
    with Answerer.of_bundle(made, engine=exact) as both:
        assert both.answer(*asked).logprobs == wanted.logprobs
        with pytest.raises(InputError, match="care"):
            both.answer("Is it lost?", ("a", "b"), "care")
        # The engine has it for whoever converses.
        prompt = both.engine.tokenize("hello")
        [(_, text)] = both.engine.generate([(prompt, Sampling(0, 0.0, 2, "0"))], "care")
        assert text.generated <= 2


def test_another_template_is_refused(
    root: Path, made: Path, tmp_path: Path, run_command: Command
) -> None:
    other = shutil.copytree(root / "base", tmp_path / "base")
    (other / "chat_template.jinja").write_text(made_of.CHATML + " ")
    asked = argv(root, tmp_path / "bundle", "care")
    asked[asked.index(str(root / "base"))] = str(other)
    code, _, err = run_command(export.parser(), export.work, *asked)
    assert code == 2
    assert "trained by another chat template than base has now" in err
    (other / "chat_template.jinja").unlink()
    loose = shutil.copytree(root / "care", tmp_path / "loose")
    (loose / "training.json").unlink()
    asked = [*asked, "--category", "care"]
    asked[asked.index("--adapter") + 1] = str(loose)
    code, _, err = run_command(export.parser(), export.work, *asked)
    assert code == 2
    assert "no chat template, by which care is answered" in err
    # A bundle whose backbone has another one now.
    moved = shutil.copytree(made, tmp_path / "moved")
    models.edit(moved / "manifest.json", backbone={
        **json.loads((moved / "manifest.json").read_text())["backbone"], "template": "1" * 64
    })  # fmt: skip
    with pytest.raises(InputError, match="by another chat template"):
        bundle.adapter_file(moved, manifest.read(moved), "care")
    assert bundle.adapter_file(moved, manifest.read(moved), "oranbench")


def test_categories_that_do_not_agree(root: Path, tmp_path: Path, run_command: Command) -> None:
    asked = [*argv(root, tmp_path / "bundle", "care"), "--category", "oranbench"]
    code, _, err = run_command(export.parser(), export.work, *asked)
    assert code == 2
    assert "trained for care, not for oranbench" in err
    joint = shutil.copytree(root / "oranbench", tmp_path / "joint")
    models.bind(joint, root / "base", splits={"oranbench": "5" * 64, "teleqna": "6" * 64})
    asked = [*argv(root, tmp_path / "bundle", "care"), "--category", "care"]
    asked[asked.index("--adapter") + 1] = str(joint)
    code, _, err = run_command(export.parser(), export.work, *asked)
    assert code == 2
    assert "trained on questions, not for care" in err
    asked = [*argv(root, tmp_path / "bundle", "care"), "--imatrix", "category"]
    code, _, err = run_command(export.parser(), export.work, *asked)
    assert code == 2
    assert "care has no questions to show" in err


def test_another_adapter_than_was_trained_is_not_accepted(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What PEFT computes is changed, and the file is not: the gate sees it along the dialogues."""
    other = models.adapter(tmp_path / "care", root / "base", seed=9)
    reference = along.reference
    monkeypatch.setattr(along, "reference", lambda folder, *_: reference(folder, other))
    with pytest.raises(WorkError, match="the care adapter does not answer as the model it was"):
        export.work(export.parser().parse_args(argv(root, tmp_path / "bundle", "care")))


def test_a_merged_model_is_judged_along_dialogues(root: Path, tmp_path: Path) -> None:
    asked = [*argv(root, tmp_path / "bundle", "care"), "--merge"]
    export.work(export.parser().parse_args(asked))
    known = manifest.read(tmp_path / "bundle")
    (file,) = [file for file in known.files if file.kind == "merged"]
    assert file.parity
    assert file.parity["prompts"] > 100
    assert file.parity["kept"] == pytest.approx(1, abs=0.05)


def test_the_dialogues_are_of_scenarios_to_train_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from tel_edge.eval.care import scenarios

    train = {one.id for one in scenarios.split(scenarios.scenarios(), 42)["train"]}
    monkeypatch.setattr(along, "PROMPTS", 12)
    made = along.dialogues()
    assert len(made) == 12
    assert made.keys() <= train
    assert made == along.dialogues()
    assert len({name.split(".")[1] for name in made}) > 4
    assert all([said.role for said in one] == ["user", "assistant"] for one in made.values())


class Deaf:
    """An engine that reads other tokens, or does not stop where the template ends an answer."""

    def __init__(self, ids: tuple[int, ...], ends: bool) -> None:
        self.read, self.stops = ids, ends

    def marked(self, _: str) -> list[int]:
        return list(self.read)

    def ends(self, _: int) -> bool:
        return self.stops

    def name(self, _: int) -> str:
        return ENDS


def test_it_is_told_how_far_the_original_is(root: Path) -> None:
    told: list[tuple[str, int, int]] = []

    @contextmanager
    def bar(total: int, label: str) -> Iterator[Callable[[int], None]]:
        steps: list[int] = []
        yield steps.append
        told.append((label, total, sum(steps)))

    made = Gate(root / "base", {n: root / n for n in ("oranbench", "care")}, lambda *_: None, bar)
    made.wanted("care")
    assert told == [("care by PEFT", 6, 6), ("the original by PEFT", 24, 24)]


def test_what_an_engine_reads_and_where_it_stops_is_checked() -> None:
    asked = [Along("one", "text", (1, 2, 3), 2, ((3,),))]
    engine: Any = Deaf((1, 4), True)
    with pytest.raises(WorkError, match="reads the dialogue one as other tokens"):
        along.answers(engine, asked, None)
    engine = Deaf((1, 2), False)
    with pytest.raises(WorkError, match=r"does not stop at <\|im_end\|>"):
        along.answers(engine, asked, None)


def test_an_onnx_backbone_brings_its_template(root: Path) -> None:
    from tel_edge.eval.folders import checkpoint
    from tel_edge.export.onnx.make import _metadata
    from tel_edge.runtime.bundles.manifest import BackboneInfo

    info = BackboneInfo("base", "llama", "1" * 64, "2" * 64, "3" * 64)
    found = _metadata(checkpoint.load(root / "base"), info)
    template = Chat(root / "base").template
    named = ("chat_template", "chat_start", "chat_end")
    assert [found[f"tel_edge.{name}"] for name in named] == [
        template.text, template.start, template.end
    ]  # fmt: skip
