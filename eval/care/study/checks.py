"""The report's own checks: what a sound study does not have, each told as a finding.

A finding that is `grave` says that the verdicts mean nothing; the others say what to look at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tel_edge.eval.care.judges.studies import Answer
from tel_edge.eval.care.judges.verdicts import PairVerdict
from tel_edge.eval.care.study.audit import Audit
from tel_edge.eval.care.study.strength import Fit, Standing
from tel_edge.eval.statistics import holm

# A judge takes the first, or the longer, in so many of cases: it judges nothing else.
COPIES = 0.9
# Below it a preference is told; corrected over judges. How often that is wrong: docs/studies.md.
ALARM = 0.01
# Verdicts that nobody could read, answers cut at the limit, the same answers of two systems.
UNREAD, CUT, SAME = 0.05, 0.1, 0.9
# The share of all answers from which on judges compared beginnings. One system that never ends is
# told apart, and has its place.
ALL_CUT = 0.5
# Scenarios below which intervals over them are not to be believed.
SCENARIOS = 30


@dataclass(frozen=True)
class StudyFinding:
    """Something to look at, in a sentence: of `kind`, about `about`."""

    kind: str
    about: str
    text: str
    grave: bool = False


def of_judges(audits: Sequence[Audit]) -> Iterator[StudyFinding]:
    """Yield what is wrong with judges, people left out."""
    own = [one for one in audits if one.kind != "people" and one.pairs]
    places = holm([one.first_p for one in own])
    lengths = holm([one.length_p for one in own])
    for one, place, length in zip(own, places, lengths, strict=True):
        share = one.first.value
        if max(share, 1 - share) >= COPIES:
            which = "first" if share > 0.5 else "second"
            text = f"takes the {which} answer in {max(share, 1 - share):.0%}: it reads no answer"
            yield StudyFinding("first", one.judge, f"{one.judge} {text}", grave=True)
        elif place < ALARM:
            yield StudyFinding(
                "first",
                one.judge,
                f"{one.judge} has the first answer win in {share:.1%}; both orders were asked, so "
                "ranks are safe, but flips cost certainty",
            )
        if one.longer.of and one.longer.value >= COPIES:
            yield StudyFinding(
                "length",
                one.judge,
                f"{one.judge} has the longer answer win in {one.longer.value:.0%}: it copies it",
                grave=True,
            )
        elif one.length and length < ALARM:
            kind = "longer" if one.length.value > 0 else "shorter"
            yield StudyFinding(
                "length",
                one.judge,
                f"{one.judge} prefers {kind} answers of the same systems "
                f"({one.length.value:+.2f} nats a standard deviation); see the ranks at equal "
                f"length. It may be right: {kind} answers may be the better ones",
            )
    for one in audits:
        if one.missing.value > UNREAD:
            text = f"{one.missing.value:.1%} of {one.judge}'s verdicts could not be read"
            yield StudyFinding("unread", one.judge, text, grave=one.missing.value > 0.5)
        if one.own:
            text = f"{one.judge} judges what is of its own family: {', '.join(one.own)}"
            yield StudyFinding("family", one.judge, text)


def of_answers(
    systems: Sequence[str], prompts: Sequence[str], answers: Mapping[tuple[str, str], Answer]
) -> Iterator[StudyFinding]:
    """Yield systems that answer the same, and answers that were cut off or are not there."""
    texts = {
        name: [of.text if (of := answers.get((name, prompt))) else None for prompt in prompts]
        for name in systems
    }
    for at, one in enumerate(systems):
        for other in systems[at + 1 :]:
            both = [
                (a, b)
                for a, b in zip(texts[one], texts[other], strict=True)
                if a is not None and b is not None
            ]
            same = sum(a == b for a, b in both)
            if both and same >= SAME * len(both):
                yield StudyFinding(
                    "same",
                    f"{one}, {other}",
                    f"{one} and {other} give the same text to {same} of {len(both)} prompts: "
                    "is one adapter used twice?",
                )
    ends = {
        name: [all(of.ended) for prompt in prompts if (of := answers.get((name, prompt)))]
        for name in systems
    }
    every = [ended for own in ends.values() for ended in own]
    if every.count(False) > ALL_CUT * len(every):
        text = f"{every.count(False):,} of all {len(every):,} answers were cut at the limit"
        text += ": beginnings were compared, no answers"
        yield StudyFinding("cut", "", text, grave=True)
    for name, own in ends.items():
        cut = own.count(False)
        if own and cut >= CUT * len(own):
            text = (
                f"{cut} of {len(own)} answers of {name} were cut at the limit: judges saw halves; "
                "answer again with a larger --max-tokens, or look at why it never ends"
            )
            yield StudyFinding("cut", name, text)
        if len(own) < len(prompts):
            text = f"{name} has no answer to {len(prompts) - len(own)} of {len(prompts)} prompts"
            yield StudyFinding("cut", name, text)


def of_verdicts(
    pairs: Sequence[PairVerdict], answers: Mapping[tuple[str, str], Answer]
) -> Iterator[StudyFinding]:
    """Yield that verdicts are of other texts than the study's answers are, by their lengths."""
    words = {at: answer.words for at, answer in answers.items()}
    other = sum(
        one.words != (words.get((one.first, one.prompt)), words.get((one.second, one.prompt)))
        for one in pairs
    )
    if other:
        text = f"{other:,} of {len(pairs):,} verdicts are of answers that have changed since"
        yield StudyFinding("changed", "", f"{text}; run tel-judge again", grave=True)


def of_data(scenarios: Mapping[str, str], trained: frozenset[str] | None) -> Iterator[StudyFinding]:
    """Yield prompts (scenarios by prompt) that were trained on; `trained` is None if unknown."""
    if trained is None:
        text = "the data set is not here, so nobody looked whether a prompt was trained on"
        yield StudyFinding("training", "", f"{text}; pass --dataset DIR")
        return
    found = sorted({of for of in scenarios.values() if of in trained})
    if found:
        text = f"{len(found)} of the prompts' scenarios are in the training part, as {found[0]}"
        yield StudyFinding("training", found[0], text, grave=True)


def of_size(
    fit: Fit | None, panel: Sequence[Standing], halves: int, pairs: int
) -> Iterator[StudyFinding]:
    """Yield what so few prompts cannot say, and what is not whole."""
    if halves:
        text = f"{halves:,} pairs were judged in one order only and are left out ({pairs:,} are in)"
        yield StudyFinding("few", "", text)
    if fit is None:
        return
    if fit.bounded:
        names = ", ".join(fit.bounded)
        text = f"{names}: won or lost everything, so the score has no bound and was given one"
        yield StudyFinding("few", names, text)
    if len(fit.moves) < SCENARIOS:
        text = (
            f"{len(fit.moves)} scenarios were judged, {SCENARIOS} are needed for intervals that "
            "hold what they say"
        )
        yield StudyFinding("few", "", text)
    elif panel and all(one.rank_low == 1 for one in panel):
        text = f"of {len(fit.moves)} scenarios no system is told from the best one"
        yield StudyFinding("few", "", text)
