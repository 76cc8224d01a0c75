"""Questions about invented facts, the text that tel-nano is pretrained on.

Subjects, relations and objects are drawn from a lexicon of telecom words, code names and values,
and from the words and wordings of ot-mini, so the model learns how questions are put and how a
statement and an option match. Pairs are random: nothing here is a fact of the benchmark.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from tel_edge.eval.benchmarks import ot_mini
from tel_edge.runtime.questions.categories import WORKING_GROUPS
from tel_edge.runtime.questions.prompt import labels, render
from tel_edge.runtime.questions.question import Question

ADJECTIVES = """
adaptive aggregated ambient anchor backup bearer cell-free central cloud coarse coded coherent
common compact cooperative critical dedicated deferred delay-aware dense digital direct
distributed dual dynamic early edge elastic federated fixed flexible full global guarded
holographic hybrid idle indoor joint layered local logical low-power massive mobile multi-hop
narrow nested network non-real-time offline open optical outdoor paired passive periodic
persistent physical predictive primary private proactive quantized radio random real-time regional
remote rural secondary secure semantic shared short sliced soft sparse static sub-band terrestrial
tactile transient trusted uplink downlink urban virtual wideband wireless
""".split()

NOUNS = """
access agent alarm allocation anchor antenna assistant authentication band bandwidth beam bearer
block broker budget buffer cache call carrier catalogue cell channel cluster codec command
configuration connection container context controller core counter coverage data decoder delay
device digest domain drift drone encoder endpoint energy entity event exchange exposure factory
failure fallback feedback fibre file filter flow frame frequency function gain gateway grant graph
group guard handover header image index intent interface interval inventory key label latency
layer layout ledger level link load log loop loss manager map matrix measurement memory message
metric mirror mode model module monitor multicast network node notification object offset operator
orchestrator owner packet paging panel path payload peak phase pilot pipeline plane platform
policy pool port power preamble privacy probe procedure processor profile protocol proxy queue
radio range rate receiver record recovery reference registry relay release repeater report
repository request reservation resource response retry ring roaming route router rule sample
satellite scheduler schema scope security segment sensing sensor server service session signal
slice slot snapshot source spectrum split state station steering storage stream subscriber surface
switch symbol sync table task tenant terminal test threshold throughput timer token topology trace
traffic training transfer transport trigger tunnel twin update user vector vendor video voice
warning waveform window worker zone
""".split()

RELATIONS = """
anchor band bearer budget carrier class clause code controller duty entity field file function
group handler header host identifier index interface key layer limit list load location measure
method metric mode module name node object operation output owner parent peer plane point port
priority procedure profile protocol purpose range rate reference requirement resource role rule
section server service signal size source stage state step table target task technology test
thread timer type unit value window zone
""".split()

VERBS = """
assign attach bind carry cause choose configure confirm connect control cover decide declare
define deliver demand describe drive enable encode enforce execute expect expose favour fix
forward give govern guide handle hold identify include indicate join keep lead limit link list
maintain manage map mark measure name need offer own pick place prefer produce protect provide
quote reach record report require return run secure select send serve set specify start state
steer store supply support take tell terminate tie trigger use
""".split()

STATEMENTS = (
    "The {r} of {s} is {o}.",
    "{s} has {o} as its {r}.",
    "{o} is the {r} that {s} takes.",
    "For {s} the {r} is {o}.",
    "In the case of {s}, {o} serves as {r}.",
    "{s}: {r} {o}.",
    "One finds {o} as {r} for {s}.",
    "It is {o} that acts as the {r} of {s}.",
)

QUESTIONS = (
    "What is the {r} of {s}?",
    "Which {r} does {s} {v}?",
    "For {s}, which {r} applies?",
    "{s} has which {r}?",
    "Name the {r} that {s} takes.",
    "Which {r} is right for {s}?",
    "Where {s} is concerned, what is the {r}?",
    "What {r} would you {v} for {s}?",
    "An engineer looks up {s}; which {r} is found?",
    "Which of these is the {r} of {s}?",
    "What does {s} {v} as its {r}?",
    "Which {r} {v}s {s}?",
    "{s} is {v}ed by which {r}?",
    "To which {r} does {s} belong?",
    "Given {s}, pick the {r}.",
    "Which {r} goes with {s} in the {n}?",
    "In the {n}, {s} {v}s what {r}?",
    "When {s} is {v}ed, what {r} follows?",
    "The {n} lists {s} under which {r}?",
    "Which {r} should the {n} {v} for {s}?",
    "Say which {r} {s} {v}s.",
    "Under {s}, the {n} {v}s which {r}?",
    "By its {r}, {s} is tied to what?",
    "{s} and its {n}: which {r}?",
)


@dataclass(frozen=True)
class Fact:
    """An invented triple; `rivals` are other objects of the same relation and kind."""

    subject: str
    relation: str
    object: str
    rivals: tuple[str, ...]
    ways: tuple[str, ...]


@cache
def vocabulary() -> tuple[str, ...]:
    """Return the nouns, and the words that the subjects and objects of ot-mini are made of."""
    found = set(NOUNS)
    for category in ot_mini.LAYOUTS:
        for one in ot_mini.families(category):
            for pair in one.facts:
                found |= {
                    word for text in pair for word in re.split(r"[ _/]", text) if len(word) > 1
                }
    return tuple(sorted(found))


@cache
def wordings() -> tuple[tuple[str, ...], ...]:
    """Return the six ways to ask of each family of ot-mini, and sixes of `QUESTIONS`."""
    made = [one.templates for name in ot_mini.LAYOUTS for one in ot_mini.families(name)]
    return (
        *made,
        *(QUESTIONS[at::4] for at in range(4)),
        *(QUESTIONS[at : at + 6] for at in range(8)),
    )


def _code(rng: random.Random) -> str:
    letters = "".join(rng.choice("ABCDEFGHIKLMNOPRSTUWX") for _ in range(rng.randint(1, 4)))
    form = rng.randrange(5)
    if form == 0:
        return f"{letters}{rng.randint(1, 60)}"
    if form == 1:
        return letters + rng.choice("ABCDEFGHIKLMNOPRSTUWX")
    if form == 2:
        return f"{letters}-{rng.choice(['CP', 'UP', 'DU', 'CU', 'RU', 'A', 'B', 'N', 'X'])}"
    if form == 3:
        return f"{letters}_{rng.choice(['A', 'B', 'H', 'X'])}{rng.randint(1, 9)}"
    return f"{rng.choice(NOUNS)} {rng.randint(0, 99)}"


def _snake(rng: random.Random) -> str:
    return "_".join(rng.choice(vocabulary()).lower() for _ in range(rng.randint(2, 3)))


def _words(rng: random.Random) -> str:
    form, words = rng.randrange(4), vocabulary()
    if form == 0:
        return f"{rng.choice(ADJECTIVES)} {rng.choice(words)}"
    if form == 1:
        return f"{rng.choice(words)} {rng.choice(words)}"
    if form == 2:
        return f"{rng.choice(ADJECTIVES)} {rng.choice(words)} {rng.choice(words)}"
    joined = rng.choice(["of", "for", "in", "on", "with"])
    return f"{rng.choice(words)} {joined} {rng.choice(words)}"


def _value(rng: random.Random) -> str:
    unit = rng.choice(["", "", " ms", " MHz", " dB", " kHz", " %", " bits"])
    number = rng.choice([str(rng.randint(0, 999)), str(rng.randint(1, 99)), f"{rng.random():.2f}"])
    return number + unit


KINDS = (_words, _words, _words, _code, _snake, _value)


def family(rng: random.Random, size: int) -> list[Fact]:
    """Return `size` facts of one invented relation, their objects from one small pool."""
    relation = rng.choice(RELATIONS)
    subject_kind, object_kind = rng.choice(KINDS), rng.choice(KINDS)
    pool: list[str] = []
    while len(pool) < rng.randint(7, 16):
        if (made := object_kind(rng)) not in pool:
            pool.append(made)
    subjects: list[str] = []
    while len(subjects) < size:
        if (made := subject_kind(rng)) not in subjects and made not in pool:
            subjects.append(made)
    facts, ways = [], rng.choice(wordings())
    for subject in subjects:
        answer = rng.choice(pool)
        rivals = tuple(choice for choice in pool if choice != answer)
        facts.append(Fact(subject, relation, answer, rivals, ways))
    return facts


def labelled_family(rng: random.Random, size: int) -> list[Fact]:
    """Return facts whose objects are 16 invented codes always shown in one order."""
    pool: list[str] = []
    while len(pool) < 16:
        if (made := _code(rng)) not in pool:
            pool.append(made)
    relation = rng.choice(RELATIONS)
    subjects = {_words(rng) for _ in range(size)}
    ways = rng.choice(wordings())
    return [
        Fact(s, relation, pool[i % 16], tuple(pool), ways) for i, s in enumerate(sorted(subjects))
    ]


def borrowed(rng: random.Random) -> Fact:
    """Return a subject of ot-mini with an object of its family that is not the right one."""
    category = rng.choice(list(ot_mini.LAYOUTS))
    one = rng.choice(ot_mini.families(category))
    subject, right = rng.choice(one.facts)
    pool = list(dict.fromkeys(answer for _, answer in one.facts))
    wrong = rng.choice([answer for answer in pool if answer != right])
    rivals = WORKING_GROUPS if category == "3gpp_tsg" else sorted(set(pool) - {wrong})
    return Fact(subject, rng.choice(RELATIONS), wrong, tuple(rivals), one.templates)


def statement(fact: Fact, rng: random.Random) -> str:
    """Return the fact in words, one of eight ways."""
    return _fill(rng.choice(STATEMENTS), fact, rng)


def asked(fact: Fact, rng: random.Random) -> str:
    """Return a question for the fact's object in one of its ways."""
    return _fill(rng.choice(fact.ways), fact, rng)


def _fill(template: str, fact: Fact, rng: random.Random) -> str:
    # The verb and noun are a function of relation and template, so a relation keeps its wordings.
    own = random.Random(f"{fact.relation}{template}")
    text = template.format(
        r=fact.relation, s=fact.subject, o=fact.object, v=own.choice(VERBS), n=own.choice(NOUNS)
    )
    return text[0].upper() + text[1:] if rng.random() < 0.7 else text


@dataclass(frozen=True)
class Example:
    """`prompt` and the `label` that follows it.

    `clue` is the words in the prompt that say the answer, empty where nothing in it does; `closed`
    marks a question that has to be answered by heart.
    """

    prompt: str
    label: str
    clue: str = ""
    closed: bool = False


def example(fact: Fact, rng: random.Random, open_book: bool, letters: int = 4) -> Example:
    """Return a question about one fact, its statement standing in the prompt if `open_book`."""
    if len(fact.rivals) == 16:
        choices = list(fact.rivals)
    else:
        choices = rng.sample(fact.rivals, letters - 1)
        choices.insert(rng.randrange(letters), fact.object)
    text = asked(fact, rng)
    if open_book:
        said = statement(fact, rng)
        text = f"{said} {text}" if rng.random() < 0.5 else f"{said}\n{text}"
    question = Question("", "teleqna", text, tuple(choices), choices.index(fact.object))
    label = labels(question)[choices.index(fact.object)]
    return Example(render(question), label, fact.object if open_book else "", not open_book)


def fresh(rng: random.Random) -> Iterator[Example]:
    """Yield open-book examples, each on a fact made for it alone, without end."""
    while True:
        kind = rng.random()
        if kind > 0.6:
            fact, letters = borrowed(rng), rng.choice((4, 4, 5))
        elif kind < 0.08:
            fact, letters = rng.choice(labelled_family(rng, 16)), 16
        else:
            fact, letters = rng.choice(family(rng, 2)), 4 if kind < 0.45 else 5
        yield example(fact, rng, open_book=True, letters=letters)


class Window:
    """The facts to know by heart at present: families that are replaced when seen often enough.

    A family stays for `views` questions a fact; then an unheard one takes its place. So the model
    cannot settle on one set of facts, and has to stay able to take in new ones. Of a fact's six
    wordings two are used at first and the others come one by one, so that a fact learned in one
    wording alone is found out.
    """

    def __init__(self, live: int, views: int, rng: random.Random) -> None:
        self.rng, self.views = rng, views
        self.families: list[list[Fact]] = []
        while sum(map(len, self.families)) < live:
            self.families.append(self.new())
        # The first ones stay longer, since nothing is known by heart yet, and go one by one.
        self.due = [rng.randint(views, 4 * views) * len(facts) for facts in self.families]
        self.seen = [0] * len(self.families)

    def new(self) -> list[Fact]:
        """Return a family of 8 to 24 facts, each with its own order of wordings."""
        size = self.rng.randint(8, 24)
        # One family in twelve has 16 labels in a fixed order.
        make = labelled_family if self.rng.random() < 1 / 12 else family
        return [
            replace(fact, ways=tuple(self.rng.sample(fact.ways, len(fact.ways))))
            for fact in make(self.rng, size)
        ]

    def fact(self) -> Fact:
        """Return one of the present facts in the wordings open by now; every fact is as likely."""
        at = self.rng.choices(range(len(self.families)), [len(f) for f in self.families])[0]
        fact = self.rng.choice(self.families[at])
        age = self.seen[at] / self.due[at]
        self.seen[at] += 1
        if self.seen[at] >= self.due[at]:
            self.families[at] = self.new()
            self.due[at], self.seen[at] = self.views * len(self.families[at]), 0
        return replace(fact, ways=fact.ways[: 2 + int(5 * age)])

    def example(self) -> Example:
        """Return a closed-book question for one of the present facts."""
        letters = 4 if self.rng.random() < 0.7 else 5
        return example(self.fact(), self.rng, open_book=False, letters=letters)
