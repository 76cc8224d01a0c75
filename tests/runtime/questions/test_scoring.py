"""From questions to tokens, and from an engine's scores back, a category at a time."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine, gold, uniform

from tel_edge.runtime.engines import packing
from tel_edge.runtime.engines.engine import Item, LoraFile, Score, Unanswered
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions import protocol
from tel_edge.runtime.questions.prompt import LETTERS, beginning, render
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.scoring import Scorer, TooLong, label_ids

WORDS = (" yes", " no")


class Letters(FakeEngine):
    """A space and a letter are two tokens, a letter alone is one."""

    def tokenize(self, text: str) -> list[int]:
        return [256, *text.encode()]


class Merging(FakeEngine):
    """The label swallows the colon before it."""

    def tokenize(self, text: str) -> list[int]:
        ids = super().tokenize(text)
        return [*ids[:-2], 999, 999] if ids[-1] > 256 and len(ids) > 2 else ids


class Silent(FakeEngine):
    """Has no tokens for anything that is no ASCII."""

    def tokenize(self, text: str) -> list[int]:
        return [256, *text.encode("ascii", "ignore")]


def engine(of: type[FakeEngine] = FakeEngine, context: int = 4000, **more: Any) -> FakeEngine:
    return of(uniform, context, {}, **more)


def question(id: str = "1", text: str = "What?", count: int = 4, category: str = "") -> Question:
    return Question(id, category, text, tuple(f"choice {at}" for at in range(count)))


def spelled(*answers: str, text: str = "What?") -> Question:
    return Question("1", "", text, answers, spelled=True)


def test_label_ids_are_those_after_the_prompt() -> None:
    ends = label_ids(engine().tokenize, "Q:", tuple(f" {x}" for x in LETTERS))
    assert ends == tuple((at,) for at in range(257, 273))


def test_a_label_may_be_several_tokens() -> None:
    assert label_ids(engine(Letters).tokenize, "Q:", WORDS) == ((32, *b"yes"), (32, *b"no"))


def test_a_label_has_its_space_whatever_its_tokens() -> None:
    """Without it, it would be the end of a word that the prompt does not begin."""
    assert label_ids(engine(Letters).tokenize, "Q:", (" A", " B")) == ((32, 65), (32, 66))
    assert label_ids(engine(Letters).tokenize, "Q:", (" A", " no")) == ((32, 65), (32, *b"no"))


@pytest.mark.parametrize(
    ("of", "labels", "said"),
    [
        (Merging, (" A", " B"), "label ' A' has no tokens of its own for this tokenizer"),
        (Silent, (" yes", "é"), "label 'é' has no tokens of its own for this tokenizer"),
        (Silent, (" yes", " yesé"), "label ' yes' has the same tokens as another label"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(
    of: type[FakeEngine], labels: tuple[str, ...], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        label_ids(engine(of).tokenize, "Answer:", labels)
    assert str(caught.value) == said


def test_the_longest_prompt_is_the_context() -> None:
    asked = question()
    length = len(render(asked).encode()) + 1
    made = engine(context=length)
    assert Scorer(made)(asked, None).tokens == length
    assert made.asked == [(render(asked), None)]
    with pytest.raises(TooLong) as caught:
        Scorer(engine(context=length - 1))(asked, None)
    assert str(caught.value) == (f"the prompt has {length} tokens, the context holds {length - 1}")


def test_the_inner_tokens_of_labels_need_room_too() -> None:
    asked = spelled("yes", "yet", "no")
    length = len(render(asked).encode()) + 1
    # " ", "y", "e" and "n": the last token of a label is read and not decoded.
    item = Scorer(engine(context=length + 4)).item(asked)
    assert (len(item.prompt), len(packing.trie(item.labels).nodes)) == (length, 4)
    with pytest.raises(TooLong, match=f"{length} tokens and 4 more, the context holds"):
        Scorer(engine(context=length + 3)).item(asked)


def test_labels_of_any_length_are_refused_quickly() -> None:
    """And so early that nothing of them is kept."""
    scorer, made = Scorer(engine()), packing.trie.cache_info().misses
    with pytest.raises(TooLong, match=r"and 10\d\d\d\d more"):
        scorer.item(spelled("yes" * 35_000, "no"))
    assert packing.trie.cache_info().misses == made
    read: list[int] = []

    class Watched(FakeEngine):
        def tokenize(self, text: str) -> list[int]:
            read.append(len(text))
            return super().tokenize(text)

    with pytest.raises(TooLong):
        Scorer(engine(Watched)).item(
            spelled(*(f"label {at}" for at in range(200)), text="long " * 1000)
        )
    assert len(read) == 1


def test_labels_of_more_branches_than_an_engine_has_sequences_are_refused() -> None:
    most = packing.BRANCHES
    words = [f"{chr(0x100 + at)}x" for at in range(most + 1)]

    class Characters(FakeEngine):
        def tokenize(self, text: str) -> list[int]:
            return [1, *map(ord, text)]

        def score(self, items: Sequence[Item], adapter: str | None) -> Iterator[tuple[int, Score]]:
            for at, item in enumerate(items):
                yield at, Score((0.0,) * len(item.labels), 1, 1, 1.0)

    scorer = Scorer(engine(Characters))
    # The space is shared; each word is a branch behind it.
    assert len(scorer.item(spelled(*words[:most])).labels) == most
    said = f"the labels have {most + 1} branches, at most {most} work"
    with pytest.raises(InputError, match=said):
        scorer.item(spelled(*words))
    # It is the trouble of that question alone.
    asked = [(spelled(*words), None), (spelled("yes", "no"), None)]
    made = dict(scorer.many(asked))
    assert str(made[0]) == said
    assert isinstance(made[1], Score)


def test_questions_with_other_numbers_of_choices_get_their_own_labels() -> None:
    scorer = Scorer(engine())
    for count in (2, 5, 2, 16):
        assert len(scorer(question(count=count), None).logprobs) == count


def test_what_prompts_of_a_kind_begin_with_is_known() -> None:
    scorer = Scorer(engine())
    for asked in (question(), question(category="3gpp_tsg"), spelled("yes", "no")):
        for text in ("What?", "Why not?"):
            item = scorer.item(Question("1", asked.category, text, asked.choices, None,
                                        asked.spelled))  # fmt: skip
            assert item.known == len(beginning(asked).encode()) + 1
            assert render(asked).encode()[: item.known - 1].decode() == beginning(asked)


def test_labels_of_a_stream_do_not_pile_up() -> None:
    scorer = Scorer(engine())
    for at in range(300):
        scorer.item(spelled(f"yes {at}", f"no {at}"))
    scorer.item(question())
    assert len(scorer._ids) <= 101


def scorers(folder: Path) -> tuple[Scorer, FakeEngine]:
    """Return a scorer whose engine has a whole adapter and a damaged one."""

    def damaged() -> Path:
        raise InputError("damaged.gguf: corrupted")

    adapters = {
        "oranbench": LoraFile(lambda: folder, "1" * 64),
        "teleqna": LoraFile(damaged, "2" * 64),
    }
    made = FakeEngine(gold, 300, adapters)
    return Scorer(made), made


def test_questions_are_scored_an_adapter_at_a_time(tmp_path: Path) -> None:
    scorer, made = scorers(tmp_path)
    rng = random.Random(1)
    adapters = [rng.choice(("oranbench", None)) for _ in range(20)]
    asked = [(question(str(at), f"gold {at % 4}?"), name) for at, name in enumerate(adapters)]
    got = list(scorer.many(asked))
    assert sorted(index for index, _ in got) == list(range(20))
    # In the order in which adapters are first asked for.
    counts = [(adapters.count(name), name) for name in dict.fromkeys(adapters)]
    assert made.calls == counts
    for index, score in got:
        assert isinstance(score, Score)
        alone = scorer(*asked[index])
        assert score.logprobs == alone.logprobs


def test_what_cannot_be_asked_stands_among_the_answers(tmp_path: Path) -> None:
    scorer, made = scorers(tmp_path)
    asked = [
        (question(text="gold 1?"), "teleqna"),
        (question(text="long " * 100), "oranbench"),
        (question(text="gold 2?"), "oranbench"),
        (question(text="gold 3?"), "teleqna"),
        (question(text="gold 0?"), None),
    ]
    got = dict(scorer.many(asked))
    assert sorted(got) == [0, 1, 2, 3, 4]
    assert isinstance(got[1], TooLong)
    for at in (0, 3):
        assert str(got[at]) == "damaged.gguf: corrupted"
    for at in (2, 4):
        assert isinstance(got[at], Score)
    assert [adapter for _, adapter in made.calls] == ["teleqna", "oranbench", None]


def test_an_adapter_that_fails_later_takes_nothing_back(tmp_path: Path) -> None:
    class Failing(FakeEngine):
        def score(self, items: Sequence[Item], adapter: str | None) -> Iterator[tuple[int, Score]]:
            yield 1, Score((-1.0,), 1, 1, 1.0)
            raise InputError("gone")

    got = list(Scorer(engine(Failing)).many([(question(str(at)), None) for at in range(3)]))
    assert [(index, type(result)) for index, result in got] == [
        (1, Score), (0, InputError), (2, InputError)
    ]  # fmt: skip


def test_items_without_an_answer_say_each_why() -> None:
    class Choosy(FakeEngine):
        def score(self, items: Sequence[Item], adapter: str | None) -> Iterator[tuple[int, Score]]:
            yield 1, Score((-1.0,), 1, 1, 1.0)
            raise Unanswered({2: InputError("too wide"), 0: InputError("too long")})

    got = dict(Scorer(engine(Choosy)).many([(question(str(at)), None) for at in range(3)]))
    assert isinstance(got[1], Score)
    assert (str(got[0]), str(got[2])) == ("too long", "too wide")


def test_texts_are_asked_for_with_a_seed_for_each_question() -> None:
    class Watched(FakeEngine):
        def generate(self, prompts: Any, adapter: str | None) -> Any:
            seen.extend(prompts)
            return super().generate(prompts, adapter)

    seen: list[Any] = []
    made = engine(Watched)
    asked = [(question(f"q/{at}"), None) for at in range(3)]
    got = dict(Scorer(made).texts(asked, 2, 0.5, 9, 42))
    assert sorted(got) == [0, 1, 2]
    assert [how.seed for _, how in seen] == ["42 q/0", "42 q/1", "42 q/2"]
    for ids, how in seen:
        assert (how.k, how.temperature, how.limit) == (2, 0.5, 9)
        assert ids == made.tokenize(protocol.render(asked[0][0]))
        assert how.known == len(made.tokenize(protocol.beginning(asked[0][0])))


def test_texts_need_room_behind_the_prompt() -> None:
    asked = [(question(), None)]
    length = len(protocol.render(asked[0][0]).encode()) + 1
    scorer = Scorer(engine(context=length + 3 * 10))
    assert not isinstance(dict(scorer.texts(asked, 2, 0.7, 10, 42))[0], InputError)
    assert isinstance(dict(scorer.texts(asked, 3, 0.7, 10, 42))[0], TooLong)
    assert isinstance(dict(scorer.texts(asked, 2, 0.7, 11, 42))[0], TooLong)


def test_labels_in_words_are_not_generated() -> None:
    got = dict(Scorer(engine()).texts([(spelled("yes", "no"), None)], 2, 0.7, 10, 42))
    assert "can be scored only" in str(got[0])
