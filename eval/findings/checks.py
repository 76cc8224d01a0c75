"""Checks of a report's own answers: what a wrong pipeline leaves in them and a sound one does not.

Labels in another order, an adapter that is not applied or is another category's, questions that one
variant was asked differently: each runs without an error and gives plausible figures. A check is
silent unless the answers contradict each other or are less likely than `UNLIKELY` by chance, so a
report of a hundred sound tables has no finding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tel_edge.eval.findings import likeness
from tel_edge.eval.findings.answers import Answers
from tel_edge.eval.findings.likeness import (
    ROUNDING,
    UNLIKELY_ONCE,
    LikePair,
    choices_of,
    listed,
    name_of,
    some,
)
from tel_edge.eval.scoring import records
from tel_edge.eval.statistics import Share, same_share

# What a finding can be about, and where to look then.
KINDS: Mapping[str, str] = {
    "records": "evaluate again with tel-eval, after removing the records",
    "questions": "evaluate all variants again on one data set, with one version of tel-edge",
    "letters": "look at the tokens of the labels and at the order of the options",
    "options": "look at the order of the options of these questions",
    "adapter": "look at the adapter that the engine was given and at its prefix cache",
    "digests": "export the bundle again and evaluate all of it",
    "split": "evaluate with the --dataset and --seed of the training",
    "training": "look at the parity figures in the manifest, then at the adapter's scale",
    "trainings": "export all types of one adapter and evaluate all of them",
    "mixed": "evaluate all categories again with one bundle, engine and data set",
    "swapped": "compare the adapters' categories and digests in the manifest",
}


@dataclass(frozen=True)
class Finding:
    """Something that a sound pipeline does not do, in a sentence or two.

    `kind` is one of `KINDS`, `certain` tells a contradiction from an improbable result. `category`
    and `variant` hold several names with commas where it is about several.
    """

    kind: str
    category: str
    variant: str
    text: str
    certain: bool


@dataclass(frozen=True)
class Trained:
    """The Pass@1 that training measured with PEFT on the questions of `part`."""

    pass1: Share
    part: str


def findings(
    category: str,
    variants: Sequence[Answers],
    reference: str,
    base: str | None,
    trained: Trained | None,
) -> tuple[Finding, ...]:
    """Return what is wrong with the variants of one category, all on the same part.

    `reference` and `base` are names of variants: of the one that others are compared with and of
    a bare backbone; comparisons with one that is not among `variants` are left out, as are those
    of rotated questions. `trained` is what the reference's adapter had before the export.
    """
    found: list[Finding] = []

    def say(kind: str, one: Answers | str, text: str, certain: bool = False) -> None:
        name = one if isinstance(one, str) else name_of(one)
        found.append(Finding(kind, category, name, f"{name}: {text}; {KINDS[kind]}", certain))

    for one in variants:
        for text in _contradictions(one):
            say("records", one, text, certain=True)
        if trained_split := _made(one, "trained_split"):
            text = f"trained on another split ({trained_split[:12]}): it may know these questions"
            say("split", one, text, certain=True)
    for name, text in _digests(variants):
        say("digests", name, text, certain=True)
    lengths = {one.summary.too_long for one in variants if not one.summary.rotated}
    if len(lengths) > 1:
        names = ", ".join(name_of(one) for one in variants if one.summary.too_long)
        text = "questions that others were asked are too long for it, and count as wrong"
        say("questions", names, text, certain=True)
    plain = {name_of(one): one for one in variants if not one.summary.rotated and one.ids}
    to, bare = plain.get(reference), plain.get(base or "")
    if several := _trainings(variants):
        say("trainings", *several, certain=True)
    if to is None:
        return tuple(found)
    flipped = likeness.flipped_gold(to)
    if flipped:
        say("letters", to, flipped)
    for one in plain.values():
        # What differs between two trainings is no sign of anything.
        if one is not to and records.same_training(one.summary, to.summary):
            _compare(LikePair(one, to), None if one is bare else bare, bool(flipped), say)
    if bare and bare is not to and (same := likeness.unmoved(to, bare)):
        say("adapter", to, same)
    if trained and (lost := _worse(to, trained)):
        say("training", to, lost)
    return tuple(found)


def between(category: str, before: Answers, after: Answers) -> tuple[Finding, ...]:
    """Return what is wrong with one variant beside another on the same questions."""
    found: list[Finding] = []

    def say(kind: str, one: Answers, text: str, certain: bool = False) -> None:
        name = name_of(one)
        found.append(Finding(kind, category, name, f"{name}: {text}; {KINDS[kind]}", certain))

    for one in (before, after):
        for text in _contradictions(one):
            say("records", one, text, certain=True)
    if before.ids and after.ids:
        _compare(LikePair(after, before), None, bool(likeness.flipped_gold(before)), say)
    return tuple(found)


def of_records(one: Answers) -> tuple[Finding, ...]:
    """Return how a table contradicts its own summary, whatever part or order it is of."""
    where = f"{name_of(one)} ({one.summary.part}{', rotations' if one.summary.rotated else ''})"
    return tuple(
        Finding(
            "records",
            one.summary.category,
            name_of(one),
            f"{where}: {text}; {KINDS['records']}",
            True,
        )
        for text in _contradictions(one)
    )


def across(
    by_category: Mapping[str, Sequence[Answers]], reference: str, trained: Mapping[str, Trained]
) -> tuple[Finding, ...]:
    """Return what only several categories together show: adapters that were swapped or are one.

    `trained` is by category, as in `findings`; categories without it are not judged.
    """
    found = []
    worse = [
        category
        for category, variants in by_category.items()
        if category in trained
        for one in variants
        if name_of(one) == reference and not one.summary.rotated and _worse(one, trained[category])
    ]
    if len(worse) > 1:
        text = (
            f"looks as if their adapters were swapped: {listed(worse)} answer worse than "
            f"training measured; {KINDS['swapped']}"
        )
        found.append(Finding("swapped", ", ".join(worse), reference, text, False))
    owners: dict[tuple[str, str], dict[str, set[str]]] = {}
    for category, variants in by_category.items():
        for one in variants:
            if digest := _adapter(one):
                owners.setdefault(_type(one), {}).setdefault(digest, set()).add(category)
    shared = {
        tuple(sorted(categories))
        for by_digest in owners.values()
        if len(by_digest) > 1
        for categories in by_digest.values()
        if len(categories) > 1
    }
    for own in sorted(shared):
        text = (
            f"{listed(own)} have the very same adapter file, other categories have their own; "
            f"{KINDS['swapped']}"
        )
        found.append(Finding("swapped", ", ".join(own), reference, text, False))
    return (*found, *_mixed(by_category))


def _mixed(by_category: Mapping[str, Sequence[Answers]]) -> Iterator[Finding]:
    """Yield what is not the same in all categories of one variant, and should be."""
    known: dict[str, list[Answers]] = {}
    for variants in by_category.values():
        for one in variants:
            known.setdefault(name_of(one), []).append(one)
    for name, own in known.items():
        merged = own[0].summary.variant.merged
        for what, read, certain in MIXTURES:
            groups: dict[str, list[str]] = {}
            for one in own:
                if (value := read(one)) and not (merged and what == "backbone's file"):
                    groups.setdefault(value, []).append(one.summary.category)
            if len(groups) > 1:
                where = " and ".join(f"{listed(at)} ({value[:40]})" for value, at in groups.items())
                categories = ", ".join(category for at in groups.values() for category in at)
                text = f"{name}: not of one {what}: {where}; {KINDS['mixed']}"
                yield Finding("mixed", categories, name, text, certain)


def _compare(pair: LikePair, bare: Answers | None, blamed: bool, say: Callable[..., None]) -> None:
    """Say what is wrong with one variant beside the reference, `blamed` if that is wrong itself."""
    one = pair.one
    for text in _asked_differently(pair):
        say("questions", one, text, certain=True)
    if blamed:
        return
    if flipped := likeness.flipped(pair):
        say("letters", one, flipped)
        return
    # Answers read from texts differ from answers by letters in a sound pipeline too.
    if not one.summary.variant.adapter or one.scored != pair.to.scored:
        return
    other = (
        bare and (likeness.unmoved(one, bare) or likeness.nearer_to_bare(pair, bare))
    ) or likeness.unlike(pair)
    if other:
        say("adapter", one, other)
    elif permuted := likeness.permuted(pair):
        say("options", one, permuted)


def _contradictions(one: Answers) -> Iterator[str]:
    """Yield how the records contradict themselves or their summary."""
    summary, rows = one.summary, len(one.ids)
    if rows + summary.too_long != summary.questions:
        yield (
            f"{rows} records of the summary's run {summary.run} and {summary.too_long} questions "
            f"too long, but the summary counts {summary.questions}"
        )
    twice = [id for id, count in Counter(one.ids).items() if count > 1]
    if twice and not summary.rotated:
        yield f"questions that have several records: {some(twice)}"
    for name, share, right in (
        ("Pass@1", summary.pass1, one.right),
        (f"Maj@{summary.k}", summary.majority, one.voted),
    ):
        if (int(right.sum()), summary.questions) != (share.right, share.of):
            yield (
                f"{name} is {share.right} of {share.of} in the summary, {int(right.sum())} of "
                f"{summary.questions} by the records"
            )
    outside = (one.gold < 0) | (one.scored & (one.gold >= choices_of(one)))
    if outside.any():
        yield f"the right answer is none of the options: {_ids(one, outside)}"
    if one.scored:
        inside = (one.pick >= 0) & (one.pick < one.logprobs.shape[1])
        picked = one.logprobs[np.arange(rows), np.where(inside, one.pick, 0)]
        # The comparison is false for NaN too.
        best = inside & (picked >= one.logprobs.max(axis=1, initial=-np.inf) - ROUNDING)
        if not best.all():
            yield f"the answer is not the likeliest label: {_ids(one, ~best)}"


def _asked_differently(pair: LikePair) -> Iterator[str]:
    """Yield which questions of the same id are not the same."""
    one, to = pair.one, pair.to
    prompts = [_made(each, "prompt") for each in (one, to)]
    if all(prompts) and prompts[0] != prompts[1]:
        yield f"asked with another prompt than {name_of(to)}"
    # A question that was too long for the other has no record there.
    for here, there in ((one, to), (to, one)):
        lacking = sorted(set(here.ids) - set(there.ids))
        same = records.same_questions(here.summary, there.summary)
        if same and len(lacking) > there.summary.too_long:
            yield f"{name_of(here)} has questions that {name_of(there)} has not: {some(lacking)}"
            break
    different = one.gold[pair.rows] != to.gold[pair.to_rows]
    if one.scored and to.scored:
        different |= choices_of(one)[pair.rows] != pair.choices
    if one.asked != to.asked:
        mine, others = np.array(one.asked)[pair.rows], np.array(to.asked)[pair.to_rows]
        different |= (mine != others) & (mine != "") & (others != "")
    if different.any():
        ids = [one.ids[at] for at in pair.rows[different]]
        yield f"asked otherwise than {name_of(to)}, or with another right answer: {some(ids)}"


def _digests(variants: Sequence[Answers]) -> Iterator[tuple[str, str]]:
    """Yield (variants, text) where what must be one file has several digests."""
    adapters: dict[tuple[str, str], dict[str, list[str]]] = {}
    backbones: dict[tuple[str, str], dict[str, list[str]]] = {}
    for one in variants:
        variant = one.summary.variant
        if digest := _adapter(one):
            adapters.setdefault(_type(one), {}).setdefault(digest, []).append(variant.name)
        # Other options of the quantizer make another file of the same type.
        key = (variant.format, f"{variant.quant} {variant.options or ''}".strip())
        if not variant.merged and (digest := _made(one, "backbone")):
            backbones.setdefault(key, {}).setdefault(digest, []).append(variant.name)
    for what, by_type in (("adapter", adapters), ("backbone", backbones)):
        for (format, quant), names in by_type.items():
            if len(names) > 1:
                all_names = ", ".join(name for own in names.values() for name in own)
                kind = f"{format.upper()} {quant}".strip()
                digests = " and ".join(digest[:12] for digest in names)
                yield all_names, f"not of one {kind} {what}, its digests are {digests}"


def _trainings(variants: Sequence[Answers]) -> tuple[str, str] | None:
    """Return (variants, text) where adapters are of several trainings."""
    found: dict[str, list[str]] = {}
    for one in variants:
        if source := one.summary.variant.source:
            found.setdefault(source, []).append(name_of(one))
    if len(found) < 2:
        return None
    groups = " and ".join(f"{', '.join(own)} of {source[:12]}" for source, own in found.items())
    names = ", ".join(dict.fromkeys(name for own in found.values() for name in own))
    return names, f"adapters of {len(found)} trainings: {groups}"


def _worse(to: Answers, trained: Trained) -> str | None:
    """Return a sentence if the reference has surely lost what training measured."""
    exported = to.summary.pass1
    if exported.value >= trained.pass1.value:
        return None
    if same_share(exported, trained.pass1) >= UNLIKELY_ONCE:
        return None
    return (
        f"the export answers worse than PEFT did: Pass@1 {exported.value:.1%} on the "
        f"{to.summary.part} part, {trained.pass1.value:.1%} on the {trained.part} part in training"
    )


def _made(one: Answers, what: str) -> str:
    return str(one.summary.made_with.get(what) or "")


def _settings(one: Answers) -> str:
    known = one.summary.made_with.get("engine_settings") or {}
    return f"{known['context']} tokens" if known.get("context") else ""


# What all categories of one variant share, how it is read, and whether another one decides.
MIXTURES: Sequence[tuple[str, Callable[[Answers], str], bool]] = (
    ("backbone's weights", lambda one: _made(one, "weights"), True),
    ("backbone's file", lambda one: _made(one, "backbone"), True),
    ("prompt", lambda one: _made(one, "prompt"), True),
    ("engine", lambda one: _made(one, "engine"), False),
    ("context", _settings, False),
    ("data set", lambda one: one.summary.dataset, False),
)


def _adapter(one: Answers) -> str:
    """Return the digest of the adapter file, "" where it has none of its own."""
    return "" if one.summary.variant.merged else _made(one, "adapter")


def _type(one: Answers) -> tuple[str, str]:
    """Return what adapters of one category have to share to be one file."""
    return one.summary.variant.format, one.summary.variant.adapter_quant or ""


def _ids(one: Answers, rows: NDArray[np.bool_]) -> str:
    return some([one.ids[at] for at in np.flatnonzero(rows)])
