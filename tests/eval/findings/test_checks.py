"""The report's own checks: each finds what is planted for it, and none finds a sound pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import made_answers
import numpy as np
import pytest
from numpy.typing import NDArray

from tel_edge.eval.findings import answers, checks
from tel_edge.eval.findings.answers import Answers
from tel_edge.eval.findings.checks import Finding, Trained
from tel_edge.eval.statistics import share

Table = NDArray[np.float64]
REFERENCE, BASE = "lora-F16", "base-F16"


def normal(logits: Table) -> Table:
    """Return logits [n, m] as log-probabilities; a missing option stays -inf."""
    made: Table = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return made


def table(
    logprobs: Table, gold: NDArray[np.integer[Any]], name: str = REFERENCE, **changes: Any
) -> Answers:
    """Return columns with a summary that fits them, without the cost of a record each."""
    count, pick = len(gold), logprobs.argmax(axis=1).astype(np.int16)
    made = made_answers.summary([], name, **changes)
    right = share(int((pick == gold).sum()), count)
    mass = float(np.exp(logprobs).sum(axis=1).mean())
    made = replace(made, questions=count, pass1=right, majority=right, label_mass=mass)
    ids = tuple(f"{made.category}/{at}" for at in range(count))
    return Answers(
        made,
        ids,
        ("",) * count,
        gold.astype(np.int16),
        pick,
        pick,
        logprobs.astype(np.float32),
        np.ones(count, np.float32),
    )


def knowing(
    rng: np.random.Generator, gold: NDArray[np.integer[Any]], options: int, skill: float
) -> Table:
    """Return peaked logits of a model that knows the right answer the better the higher `skill`.

    It likes some letters better than others, as small models do.
    """
    logits = rng.normal(0, 3, (len(gold), options)) + rng.normal(0, 1.5, options)
    logits[np.arange(len(gold)), gold] += skill
    return logits


class Category:
    """A category of `count` questions: a bare backbone, an adapter, and its quantized variants."""

    def __init__(self, count: int = 300, options: int = 4, skill: float = 8.0, seed: int = 1):
        rng = np.random.default_rng(seed)
        self.rng, self.gold = rng, rng.integers(0, options, count)
        self.base = knowing(rng, self.gold, options, rng.uniform(0, 1))
        self.lora = knowing(rng, self.gold, options, skill)

    def noisy(self, logits: Table, noise: float = 0.2) -> Table:
        return normal(logits + self.rng.normal(0, noise, logits.shape))

    def sound(self, types: int = 3, noise: float = 0.2, **changes: Any) -> list[Answers]:
        made = [
            table(normal(self.base), self.gold, BASE, **changes),
            table(normal(self.lora), self.gold, REFERENCE, **changes),
        ]
        for at in range(types):
            logprobs = self.noisy(self.lora, noise)
            made.append(table(logprobs, self.gold, f"lora-Q{at}", **changes))
        return made

    def planted(self, logprobs: Table, name: str = "lora-Q4_K_M") -> list[Answers]:
        return [*self.sound(1), table(logprobs, self.gold, name)]


def found(variants: list[Answers], **changes: Any) -> tuple[Finding, ...]:
    given: dict[str, Any] = {"reference": REFERENCE, "base": BASE, "trained": None, **changes}
    return checks.findings("oranbench", variants, **given)


def only(findings: tuple[Finding, ...], kind: str, variant: str, certain: bool = False) -> str:
    """Return the text of the one finding there is, which is this one."""
    assert [(f.kind, f.variant, f.certain) for f in findings] == [(kind, variant, certain)]
    assert variant in findings[0].text
    assert findings[0].text.endswith(checks.KINDS[kind])
    return findings[0].text


def rotated(logprobs: Table, by: int = 1) -> Table:
    return np.roll(logprobs, by, axis=1)


def swapped(logprobs: Table) -> Table:
    return logprobs[:, [1, 0, *range(2, logprobs.shape[1])]]


def test_sound_tables_of_any_accuracy_and_size_have_no_finding() -> None:
    rng = np.random.default_rng(42)
    for seed in range(200):
        options, count = int(rng.choice([2, 4, 5, 16])), int(10 ** rng.uniform(1.3, 3.3))
        made = Category(count, options, rng.uniform(0, 14), seed)
        variants = made.sound(2, noise=rng.choice([0.003, 0.1, 0.3, 1.0]))
        right = int((made.rng.random(count) < variants[1].summary.pass1.value).sum())
        trained = Trained(share(right, count), "validation")
        assert found(variants, trained=trained) == ()


def test_questions_that_a_type_hits_hard_are_not_taken_for_permuted_ones() -> None:
    for seed in range(20):
        made = Category(2000, 4, seed=seed)
        # One question in 50 has 30 times the noise of the others.
        noise = 0.1 * np.where(made.rng.random((2000, 1)) < 0.02, 30, 1)
        logprobs = normal(made.lora + made.rng.normal(0, 1, made.lora.shape) * noise)
        assert found([*made.sound(0), table(logprobs, made.gold, "lora-Q4_K_M")]) == ()


def test_a_model_that_has_one_letter_only_is_not_taken_for_exchanged_letters() -> None:
    made = Category(1000)
    skewed = np.where(made.rng.random(1000) < 0.75, 0, made.rng.integers(0, 4, 1000))
    peaked = np.tile(np.log([0.91, 0.03, 0.03, 0.03]), (1000, 1))
    wrong = table(rotated(peaked), skewed)
    assert found([wrong]) == ()
    mostly = normal(knowing(made.rng, skewed, 4, 20))
    variants = [table(mostly, skewed), table(rotated(peaked), skewed, "lora-Q4_K_M")]
    assert [f.kind for f in found(variants)] == ["adapter"]


def sure(picks: NDArray[np.integer[Any]]) -> Table:
    """Return log-probabilities of four options with these picks."""
    return normal(np.eye(4)[picks] * 9)


def test_letters_that_are_mixed_up_are_not_taken_for_exchanged_ones() -> None:
    made = Category(1000)
    letters = np.arange(1000) * 10 // 1000
    # Of ten questions four have A, two each other letter; the variant says B for A and for B.
    gold = np.array([0, 0, 0, 0, 1, 1, 2, 2, 3, 3])[letters]
    mixed = table(sure(np.where(gold == 0, 1, gold)), gold, "lora-Q4_K_M")
    assert found([table(sure(gold), gold), mixed]) == ()
    # A third of the answers are the next letter, the others any.
    next_or_any = np.where(made.rng.random(1000) < 0.35, gold + 1, made.rng.integers(0, 4, 1000))
    loose = table(sure(next_or_any % 4), gold, "lora-Q4_K_M")
    assert [f.kind for f in found([table(sure(gold), gold), loose])] == ["adapter"]
    # Often the next letter, but right more often than by chance.
    often = np.where(made.rng.random(1000) < 0.65, gold + 1, gold)
    assert found([table(sure(often % 4), gold)]) == ()


@pytest.mark.parametrize("change", [rotated, swapped, lambda logprobs: logprobs[:, ::-1]])
@pytest.mark.parametrize("options", [2, 4, 5, 16])
def test_exchanged_letters_in_one_variant(change: Any, options: int) -> None:
    count = 1200 if change is swapped and options == 16 else 150
    made = Category(count, options)
    text = only(found(made.planted(change(made.noisy(made.lora)))), "letters", "lora-Q4_K_M")
    assert "A became " in text
    assert f"questions with {options} options" in text


def test_exchanged_letters_of_a_weak_model_that_likes_one_letter() -> None:
    made = Category(1000, skill=1.0)
    only(found(made.planted(rotated(made.noisy(made.lora, 0.5)))), "letters", "lora-Q4_K_M")


def test_letters_are_exchanged_for_one_number_of_options() -> None:
    made = Category(400, 5)
    made.base[::2, 4] = made.lora[::2, 4] = -np.inf
    made.gold[::2] %= 4
    bent = made.noisy(made.lora)
    bent[::2, :4] = rotated(bent[::2, :4])
    text = only(found(made.planted(bent)), "letters", "lora-Q4_K_M")
    assert "200 questions with 4 options" in text


@pytest.mark.parametrize("change", [rotated, swapped])
def test_exchanged_letters_in_all_variants(change: Any) -> None:
    made = Category(300)
    right, made.lora = made.lora, change(made.lora)
    # A variant that is right is not the one to blame.
    variants = [*made.sound(2), table(normal(right), made.gold, "lora-Q8_0")]
    text = only(found(variants), "letters", REFERENCE)
    assert "are right if they are exchanged back" in text


@pytest.mark.parametrize(("options", "noise"), [(4, 0.1), (5, 0.2), (5, 0.3), (16, 0.3)])
def test_single_permuted_option_lists(options: int, noise: float) -> None:
    caught = 0
    for seed in range(20):
        made = Category(500, options, seed=seed)
        logprobs = made.noisy(made.lora, noise)
        logprobs[77] = rotated(logprobs[77:78])[0]
        findings = found([*made.sound(1, noise), table(logprobs, made.gold, "lora-Q4_K_M")])
        caught += bool(findings)
        assert not findings or "oranbench/77;" in only(findings, "options", "lora-Q4_K_M")
    # Probabilities that are nearly even look alike in any order.
    assert caught >= 15


def test_one_variant_was_given_another_adapter() -> None:
    made, other = Category(150), Category(150, seed=2)
    # The other category's adapter answers, but not these questions.
    text = only(found(made.planted(normal(other.lora))), "adapter", "lora-Q4_K_M")
    assert "as if its adapter were another one" in text


def test_one_variant_was_given_no_adapter() -> None:
    made = Category(150)
    text = only(found(made.planted(made.noisy(made.base))), "adapter", "lora-Q4_K_M")
    assert "answers as base-F16 does in 9" in text


def test_the_adapter_of_the_reference_does_nothing() -> None:
    made = Category(150)
    made.lora = made.base
    assert "as if no adapter were applied" in only(found(made.sound(0)), "adapter", REFERENCE)


def test_the_export_answers_worse_than_training_measured() -> None:
    variants = Category(120, skill=2).sound()
    assert found(variants, trained=Trained(share(60, 120), "validation")) == ()
    text = only(
        found(variants, trained=Trained(share(108, 120), "validation")), "training", REFERENCE
    )
    assert "90.0% on the validation part" in text


def of_records(**changes: Any) -> Answers:
    """Return four sound records as columns, with this changed in the first."""
    peaks = [[0.85 if at == gold else 0.05 for at in range(4)] for gold in range(4)]
    records = [made_answers.record(f"q/{gold}", gold, peaks[gold]) for gold in range(4)]
    summary = made_answers.summary(records)
    records[0] = replace(records[0], **changes)
    return answers.of_records(summary, records)


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({}, []),
        ({"gold": 3}, ["Pass@1 is 4 of 4 in the summary, 3 of 4", "Maj@4 is 4 of 4"]),
        ({"draws": (1, 1, 2, 3)}, ["Maj@4 is 4 of 4 in the summary, 3 of 4 by the records"]),
        ({"id": "q/1"}, ["questions that have several records: q/1;"]),
        ({"gold": 4, "pick": 4, "draws": (4,)}, ["none of the options: q/0", "not the likeliest"]),
        ({"pick": 1, "gold": 1, "draws": (1,)}, ["the answer is not the likeliest label: q/0;"]),
        ({"logprobs": (float("nan"), -1.0, -1.0, -2.0)}, ["not the likeliest label: q/0"]),
    ],
)
def test_records_that_contradict_their_summary(
    changes: Mapping[str, Any], texts: list[str]
) -> None:
    findings = [f for f in found([of_records(**changes)]) if f.kind == "records"]
    assert len(findings) == len(texts)
    assert all(f.certain for f in findings)
    assert all(text in finding.text for text, finding in zip(texts, findings, strict=True))


def test_records_of_another_run_are_missing() -> None:
    one = of_records()
    fewer = replace(one, summary=replace(one.summary, questions=5))
    assert "4 records of the summary's run r" in found([fewer])[0].text


def test_a_question_that_was_asked_otherwise() -> None:
    variants = Category(30).sound(1)
    *others, last = variants
    last = replace(last, asked=("0f",) * 30)
    # Older records do not say how they were asked.
    assert found([*others, last]) == ()
    others[1] = replace(others[1], asked=(*["0f"] * 25, *["f0"] * 5))
    text = only(found([*others, last]), "questions", "lora-Q0", certain=True)
    assert "oranbench/25, oranbench/26, oranbench/27 and 2 more;" in text
    last = replace(last, asked=others[1].asked, gold=last.gold[::-1].copy())
    assert "or with another right answer" in found([*others, last])[-1].text


def test_files_that_must_be_one() -> None:
    variants = Category(30).sound(1)
    made = {**variants[1].summary.made_with, "adapter": "x" * 64, "backbone": "y" * 64}
    bent = [*variants, replace(variants[1], summary=replace(variants[1].summary, made_with=made))]
    adapter, backbone = found(bent)[:2]
    assert "not of one GGUF adapter" in adapter.text
    assert adapter.certain
    assert adapter.variant == "lora-F16, lora-Q0, lora-F16"
    assert "not of one GGUF F16 backbone" in backbone.text
    assert backbone.certain
    assert {adapter.kind, backbone.kind} == {"digests"}


def test_swapped_adapters_of_two_categories() -> None:
    names = ["oranbench", "teleqna", "teletables"]
    tables = {
        name: Category(120, skill=2 if at < 2 else 12, seed=at).sound(category=name)
        for at, name in enumerate(names)
    }
    trained = dict.fromkeys(names, Trained(share(110, 120), "validation"))
    (finding,) = checks.across(tables, REFERENCE, trained)
    assert (finding.kind, finding.category) == ("swapped", "oranbench, teleqna")
    assert "looks as if their adapters were swapped: oranbench and teleqna answer" in finding.text
    del tables["teleqna"]
    assert checks.across(tables, REFERENCE, trained) == ()


def test_categories_that_share_an_adapter_are_named_unless_all_do() -> None:
    def shared(name: str, digest: str) -> list[Answers]:
        made_with = {"adapter": digest}
        return Category(30).sound(0, category=name, made_with=made_with)[1:]

    joint = {name: shared(name, "x" * 64) for name in ("oranbench", "teleqna")}
    assert checks.across(joint, REFERENCE, {}) == ()
    (finding,) = checks.across({**joint, "teletables": shared("t", "z" * 64)}, REFERENCE, {})
    assert "oranbench and teleqna have the very same adapter file" in finding.text


def test_nothing_to_compare_with_is_no_error() -> None:
    made = Category(5)
    empty = answers.of_records(made_answers.summary([]), [])
    texts = table(np.zeros((5, 4)), made.gold, "lora-Q4_K_M")
    texts = replace(texts, logprobs=np.zeros((5, 0), np.float32))
    for variants in ([], [empty], [texts], [empty, texts], [*made.sound(0), texts, empty]):
        assert found(variants) == ()
    assert found([*Category(30).sound(0)], reference="none", base=None) == ()
