"""The gate's figures, what it refuses, and how it says so."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tel_edge.export.gate import gate, parity
from tel_edge.export.gate.gate import Expected, Gate, Whole, check_numbers
from tel_edge.export.gate.parity import Asked, Parity, answers, changes, compared, error, sign_test
from tel_edge.export.gguf.quantize import QUANTS
from tel_edge.export.onnx.quantize import ONNX_QUANTS
from tel_edge.runtime.engines.engine import Item, Score
from tel_edge.runtime.errors import WorkError
from tel_edge.runtime.questions.prompt import labels, render
from tel_edge.runtime.questions.question import Question

ROWS = [[-1.0, -2.0, -3.0, -4.0]] * 3


def question(at: int) -> Question:
    return Question(f"q{at}", "oranbench", f"which {at}", ("a", "b", "c", "d"), 0)


ASKED = tuple(Asked(question(at), (7, at), ((1,), (2,), (3,), (4,))) for at in range(3))


class Engine:
    """An engine that gives each prompt its row of `rows`, by the file that was opened."""

    context = 1024

    def __init__(self, rows: Sequence[Sequence[float]], extra: int = 0) -> None:
        self.rows, self.extra, self.closed = rows, extra, False
        self.known = {render(one.question): one for one in ASKED}

    def tokenize(self, text: str) -> list[int]:
        for prompt, one in self.known.items():
            # The beginning that all share is that of the ids too.
            if prompt.startswith(text):
                return [*one.prompt, *[0] * self.extra] if text == prompt else [7]
            for label, end in zip(labels(one.question), one.labels, strict=True):
                if text == prompt + label:
                    return [*one.prompt, *[0] * self.extra, *end]
        raise KeyError(text)

    def score(self, items: Sequence[Item], adapter: str | None) -> Iterator[tuple[int, Score]]:
        for at, item in reversed(list(enumerate(items))):
            row = self.rows[item.prompt[1]]
            yield at, Score(tuple(row), len(item.prompt), len(item.prompt), 1.0)

    def close(self) -> None:
        self.closed = True


def judge(
    files: dict[str, Sequence[Sequence[float]]], wanted: dict[str | None, Any]
) -> tuple[Gate, list[Engine]]:
    """A gate over engines that answer by the name of the last file that they were given."""
    opened: list[Engine] = []

    def opener(path: Path, adapters: Any) -> Engine:
        opened.append(Engine(files["+".join([path.name, *(p.name for p in adapters.values())])]))
        return opened[-1]

    made = Gate(Path(), {}, opener)
    made._expected = Expected(ASKED, wanted, {})
    return made, opened


def moved(by: Sequence[float], rows: Sequence[Sequence[float]] = ROWS) -> list[list[float]]:
    return [[value + step for value, step in zip(row, by, strict=True)] for row in rows]


# Figures


def test_equal_answers_are_at_nought() -> None:
    assert compared(ROWS, ROWS) == Parity(3, 0.0, 0.0, 1.0, 0.0)


def test_figures_of_a_shift() -> None:
    made = compared(moved([0, 2, 0, 0]), ROWS)
    assert made.largest == 2.0
    assert made.picks == 0.0
    # The centred values are 1.5 0.5 -0.5 -1.5; the shift's are -0.5 1.5 -0.5 -0.5.
    assert made.error == pytest.approx((3.0 / 5.0) ** 0.5, abs=1e-6)
    assert made.kl > 0.1


def test_labels_that_have_no_chance_are_a_number() -> None:
    """Log-probabilities whose exponential is nought, on one side or on both."""
    for far in (-800.0, -1e6):
        made = compared([[far, 0.0]], [[0.0, far]])
        assert made.kl == pytest.approx(-far)
        assert math.isfinite(made.error)
        assert compared([[far, far]], [[far, far]]).kl == 0


@pytest.mark.parametrize(
    ("got", "wanted", "made"),
    [
        ([[0.0, 0.0]], [[0.0, 0.0]], 0.0),
        ([[1.0, 0.0]], [[0.0, 0.0]], math.inf),
        ([[0.0, 0.0]], [[1.0, 0.0]], 1.0),
        ([[-1.0, 0.0]], [[1.0, 0.0]], 2.0),
        ([[0.5, 0.0]], [[1.0, 0.0]], 0.5),
    ],
)
def test_the_error_of_a_change(got: Any, wanted: Any, made: float) -> None:
    """Nothing for nothing, 1 for what is not there, 2 for its opposite."""
    assert error(got, wanted) == pytest.approx(made)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_numbers_are_not_accepted(value: float) -> None:
    engine: Any = Engine([[-1.0, -2.0, -3.0, value]] * 3)
    with pytest.raises(WorkError, match=r"answer to q0 is no finite number; the file is not acc"):
        answers(engine, ASKED, None)


def test_other_tokens_are_not_accepted() -> None:
    engine: Any = Engine(ROWS, extra=1)
    with pytest.raises(WorkError, match="other tokens"):
        answers(engine, ASKED, None)


# Judgements


def test_each_judgement_is_beside_its_own_reference() -> None:
    """An adapter's change that a type's noise would hide is seen."""
    small = [0.02, -0.02, 0.0, 0.0]
    files = {
        "full": moved([0, 1e-5, 0, 0]),
        "rough": moved([0.6, 0, 0, 0]),
        "full+right": moved(small, moved([0, 1e-5, 0, 0])),
        "full+half": moved([x / 2 for x in small], moved([0, 1e-5, 0, 0])),
        "full+none": moved([0, 1e-5, 0, 0]),
    }
    made, opened = judge(files, {None: ROWS, "oranbench": moved(small)})
    whole = made.converted(Path("full"), QUANTS["F32"])
    assert whole.judged == {"conversion": pytest.approx(4e-6, abs=1e-6)}
    assert set(made.figures(whole)) == {*Parity.__annotations__, "conversion"}
    figures = made.quantized(whole, Path("rough"), QUANTS["Q4_K_M"])
    assert figures["quantization"] == pytest.approx(0.2324, abs=1e-3)
    assert figures["conversion"] == whole.judged["conversion"]
    with pytest.raises(
        WorkError, match=r"^the Q8_0 file does .* its quantization is 0\.23, at most 0\.2 is"
    ):
        made.quantized(whole, Path("rough"), QUANTS["Q8_0"])
    right = made.adapter(whole, Path("right"), "oranbench", "F16")
    assert right["adapter"] < 1e-3
    assert right["change"] == pytest.approx(0.0141, abs=1e-4)
    for name, apart in (("half", r"0\.5"), ("none", "1")):
        with pytest.raises(
            WorkError, match=f"^the oranbench adapter .* of its adapter is {apart},"
        ):
            made.adapter(whole, Path(name), "oranbench", "F16")
    assert all(engine.closed for engine in opened)


def test_a_conversion_that_is_another_model() -> None:
    made, _ = judge({"full": moved([0, 0.01, 0, 0])}, {None: ROWS})
    for row, type in ((QUANTS["F32"], "F32"), (ONNX_QUANTS["fp32"], "fp32")):
        with pytest.raises(
            WorkError, match=rf"^the conversion to {type} .* is 0\.0039, at most 0\.0002"
        ):
            made.converted(Path("full"), row)


def test_a_merged_model_is_judged_by_its_change() -> None:
    small = [0.02, -0.02, 0.0, 0.0]
    files = {"full": ROWS, "merged": moved(small), "half": moved([x / 2 for x in small])}
    made, _ = judge(files, {None: ROWS, "oranbench": moved(small)})
    whole = made.converted(Path("full"), QUANTS["F32"])
    merged = made.merged(whole, Path("merged"), "oranbench")
    assert set(merged.judged) == {"conversion", "adapter", "change"}
    # Its own answers are what its types are judged beside.
    assert made.quantized(merged, Path("merged"), QUANTS["F16"])["quantization"] == 0
    with pytest.raises(WorkError, match=r"of its adapter is 0\.5,"):
        made.merged(whole, Path("half"), "oranbench")


def test_a_merged_type_that_lost_its_adapter_is_refused() -> None:
    """What the type may cost is more than the adapter changes."""
    small = [0.02, -0.02, 0.0, 0.0]
    files = {
        "full": ROWS,
        "merged": moved(small),
        "bare": moved([0.001, 0.0, 0.0, 0.0]),
        "rough": moved(small, moved([0.006, 0.003, 0.0, 0.003])),
        "ruined": moved([0.0, 0.3, 0.0, 0.3]),
    }
    made, _ = judge(files, {None: ROWS, "oranbench": moved(small)})
    merged = made.merged(made.converted(Path("full"), QUANTS["F32"]), Path("merged"), "oranbench")
    with pytest.raises(WorkError, match=r"^the F16 file has \d% of the change that the oranbench"):
        made.quantized(merged, Path("bare"), QUANTS["F16"])
    rough = made.quantized(merged, Path("rough"), QUANTS["Q4_K_M"])
    assert rough["kept"] == pytest.approx(1, abs=0.2)
    # Where the type's noise is larger than the change nothing can be told.
    assert "kept" in made.quantized(merged, Path("ruined"), QUANTS["Q4_K_M"])


def test_a_change_below_what_float32_leaves_open_is_accepted() -> None:
    """A weak adapter is not refused for the engine's last digits, and one of some size is."""
    noise = [0.0, 4e-6, 0.0, 0.0]
    for size, refused in ((1e-6, False), (1e-5, False), (1e-2, True)):
        change = [size, -size, 0.0, 0.0]
        files = {"full": moved(noise), "full+none": moved([0.0, 0.0, 4e-6, 0.0])}
        made, _ = judge(files, {None: ROWS, "oranbench": moved(change)})
        whole = made.converted(Path("full"), QUANTS["F32"])
        if refused:
            with pytest.raises(WorkError, match="of its adapter is 1,"):
                made.adapter(whole, Path("none"), "oranbench", "F16")
        else:
            figures = made.adapter(whole, Path("none"), "oranbench", "F16")
            assert figures["change"] == pytest.approx(size / 2**0.5, rel=0.5)


def test_an_adapter_that_changes_nothing_is_one() -> None:
    made, _ = judge({"full": ROWS, "full+idle": ROWS}, {None: ROWS, "oranbench": ROWS})
    whole = Whole(Path("full"), None, ROWS, {})
    figures = made.adapter(whole, Path("idle"), "oranbench", "F16")
    assert (figures["adapter"], figures["change"]) == (0, 0)


@pytest.mark.parametrize("judgement", gate.CAUSES)
def test_causes_come_before_the_way_round(judgement: str) -> None:
    with pytest.raises(WorkError) as told:
        gate._accept("x", judgement, math.nan, 1)
    first, second = str(told.value).split("\n")
    assert "--no-verify" not in first
    assert second.startswith("likely: ")
    assert second.index("likely: ") < second.index("--no-verify")


def test_a_number_that_hardly_shows_is_compared() -> None:
    stated = {"llama.block_count": 4, "llama.attention.layer_norm_rms_epsilon": 1.00000000134e-5,
              "general.architecture": "llama"}  # fmt: skip
    check_numbers(stated, {"block_count": 4, "attention.layer_norm_rms_epsilon": 1e-5}, "f.gguf")
    with pytest.raises(WorkError, match=r"f\.gguf: llama\.attention\.layer_norm_rms_epsilon is "
                                        r"1e-05, transformers reads 1e-06"):  # fmt: skip
        check_numbers(stated, {"attention.layer_norm_rms_epsilon": 1e-6}, "f.gguf")


def test_prompts_are_of_every_category_and_nobodys_test() -> None:
    asked = parity.questions()
    assert len(asked) == parity.PROMPTS
    assert len({one.category for one in asked}) == 6
    assert changes(ROWS, ROWS) == [[0.0] * 4] * 3


# Accuracy


def accuracy(
    monkeypatch: pytest.MonkeyPatch, before: int, after: int, of: int, lost: float = 0.05
) -> Any:
    def right(count: int) -> list[tuple[float, float]]:
        return [(-1.0, -2.0) if at < count else (-2.0, -1.0) for at in range(of)]

    asked = tuple(
        Asked(Question(str(at), "oranbench", f"{at}?", ("a", "b"), 0), (), ()) for at in range(of)
    )
    wanted = Expected(asked, {"oranbench": right(before)}, {})
    monkeypatch.setattr(gate, "reference", lambda *_, **__: wanted)
    monkeypatch.setattr(gate, "answers", lambda *_: right(after))
    engine = Engine(())
    made = Gate(Path(), {"oranbench": Path()}, lambda *_: engine)
    row = ONNX_QUANTS["dynamic-int8"]
    try:
        return made.accuracy(Path("x.onnx"), row, Path("y"), "oranbench", lost)
    finally:
        assert engine.closed


@pytest.mark.parametrize(
    ("before", "after", "of"),
    [(80, 80, 96), (80, 90, 96), (80, 76, 96), (10, 6, 12), (80, 75, 1000), (0, 0, 96)],
)
def test_an_accuracy_that_passes(
    before: int, after: int, of: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within what is allowed, or within what chance explains."""
    assert accuracy(monkeypatch, before, after, of) == (before / of, after / of)


@pytest.mark.parametrize(("before", "after", "of"), [(80, 75, 96), (96, 0, 96), (10, 5, 12)])
def test_an_accuracy_that_is_refused(
    before: int, after: int, of: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = round(100 * (before - after) / of)
    wanted = (
        rf"x\.onnx loses {points} points of Pass@1 on oranbench \({before} right before, {after} "
        rf"after, of {of}\); 5 are allowed\ndynamic-int8 does not suit this model"
    )
    with pytest.raises(WorkError, match=wanted):
        accuracy(monkeypatch, before, after, of)


def test_a_sign_test() -> None:
    assert sign_test(0, 0) == 1
    assert sign_test(1, 0) == sign_test(0, 0) / 2
    assert sign_test(5, 0) == 1 / 32
    assert sign_test(4, 0) > gate.CHANCE > sign_test(5, 0)
    assert sign_test(3, 1) == 5 / 16
    assert sign_test(0, 4) == 1
    assert sign_test(7, 7) > 0.5
    assert sign_test(60, 40) == pytest.approx(0.02844, abs=1e-4)
