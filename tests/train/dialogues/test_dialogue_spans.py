"""What the trainer takes for answers, beside masks that are put together by hand."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import export_models as models
import for_dialogues as made_of
import pytest
from for_dialogues import FAMILIES, dialogue

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.conversation import Message

pytest.importorskip("transformers")
from tel_edge.eval.folders.chat import Chat, Spoken

DIALOGUES = 500


def messages(rows: list[dict[str, str]]) -> list[Message]:
    return [Message(**row) for row in rows]


@pytest.fixture(scope="module", params=FAMILIES)
def chat(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Chat]:
    folder = made_of.tokens(tmp_path_factory.mktemp(request.param), request.param)
    return request.param, Chat(folder)


def pieces(family: str, rows: list[dict[str, str]]) -> list[list[tuple[str, int]]]:
    """The texts of a dialogue by hand, each as pieces with 1 for what is learned."""
    made: list[tuple[str, int]] = [(models.BOS, 0)] if family == "llama3" else []
    whole = []
    for row in rows:
        role, content = row["role"], row["content"]
        learned = int(role == "assistant")
        if family in ("chatml", "qwen3"):
            made += [(f"<|im_start|>{role}\n", 0), (f"{content}<|im_end|>", learned), ("\n", 0)]
        elif family == "llama3":
            made.append((f"<|start_header_id|>{role}<|end_header_id|>\n\n", 0))
            made.append((f"{content.strip()}<|eot_id|>", learned))
        elif learned:
            # A text for each answer: what it is asked with is not shown later.
            begun = [*made, ("[|assistant|]\n<think>\n\n</think>\n\n", 0)]
            whole.append([*begun, (f"{content}[|endofturn|]", 1)])
            made.append((f"[|assistant|]\n{content}[|endofturn|]\n", 0))
        else:
            made.append((f"[|{role}|]\n{content}[|endofturn|]\n", 0))
    if family != "exaone":
        # Nothing is computed behind the last answer.
        whole = [made if made[-1][1] else made[:-1]]
    return [[(text, kind if family != "exaone" or n == len(one) - 1 else 0)
             for n, (text, kind) in enumerate(one)] for one in whole]  # fmt: skip


def test_answers_are_what_a_hand_built_mask_says(chat: tuple[str, Chat]) -> None:
    family, made = chat
    chance = random.Random(family)
    for number in range(DIALOGUES):
        rows = dialogue(chance, 1 + number % 3, number % 2 == 1)
        found = made.shown(messages(rows))
        wanted = pieces(family, rows)
        assert len(found) == len(wanted) == (1 + number % 3 if family == "exaone" else 1)
        for one, parts in zip(found, wanted, strict=True):
            row = one.row()
            # Borders of pieces are borders of tokens in what the tests say.
            ids, spoken = [], []
            for text, kind in parts:
                own = made.marked(text)
                ids, spoken = [*ids, *own], [*spoken, *[kind] * len(own)]
            assert row["input_ids"] == made.marked("".join(text for text, _ in parts))
            assert (row["input_ids"], row["spoken"]) == (ids, spoken)
            ends = [row["input_ids"][last - 1] for _, last in one.spans]
            assert {made.tokenizer.convert_ids_to_tokens(end) for end in ends} == {made.end}


def test_a_prompt_is_what_the_runtime_would_make(chat: tuple[str, Chat]) -> None:
    from tel_edge.runtime.questions.conversation import templated

    _, made = chat
    rows = messages(dialogue(random.Random(1), 3, True))
    for text in (found := made.shown(rows)):
        for first, _ in text.spans:
            prompts = [made.marked(templated(made.template, rows[:at])) for at in (2, 4, 6)]
            assert list(text.ids[:first]) in prompts
    assert sum(len(text.spans) for text in found) == 3


def test_what_looks_like_a_special_token_is_refused(chat: tuple[str, Chat]) -> None:
    family, made = chat
    end = FAMILIES[family][2]
    with pytest.raises(InputError, match=r"messages\[0\]\.content has what is a special token"):
        made.shown([Message("user", f"a {end} b"), Message("assistant", "c")])
    with pytest.raises(InputError, match=r"messages\[1\]\.content has what is a special token"):
        made.shown([Message("user", "a"), Message("assistant", f"c{models.EOS}")])


def test_nobody_answers() -> None:
    chat: Any = object.__new__(Chat)
    chat._plain = lambda _: None
    with pytest.raises(InputError, match="nobody answers"):
        chat.shown([Message("user", "a")])


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("", "no chat template"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", r"stops at <\|im_end\|>"),
        (made_of.CHATML.replace("<|im_end|>", " <|im_end|>"), "would never stop"),
        ("{% for m in messages %}<|im_start|>{{ m.role }}{% endfor %}", "does not show"),
        ("{{ raise_exception('no') }}", "does not take"),
    ],
)
def test_templates_that_cannot_be_trained_with(tmp_path: Path, template: str, said: str) -> None:
    made_of.tokens(tmp_path, "chatml")
    (tmp_path / "chat_template.jinja").write_text(template)
    if not template:
        (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match=said):
        _ = Chat(tmp_path).tail


def test_an_answer_that_the_template_changes_is_refused(tmp_path: Path) -> None:
    made_of.tokens(tmp_path, "chatml")
    changed = made_of.CHATML.replace("{{ m.content }}", "{{ m.content.split('|')[-1] }}")
    (tmp_path / "chat_template.jinja").write_text(changed)
    with pytest.raises(InputError, match=r"messages\[1\]\.content: the chat template shows anoth"):
        Chat(tmp_path).shown([Message("user", "a"), Message("assistant", "one|two")])


def test_an_end_token_that_only_the_engine_knows_is_one(tmp_path: Path) -> None:
    """As with base models, whose files say another one; llama.cpp stops at it by its name."""
    made_of.tokens(tmp_path, "chatml")
    models.edit(tmp_path / "config.json", eos_token_id=1)
    models.edit(tmp_path / "tokenizer_config.json", eos_token=models.EOS)
    assert Chat(tmp_path).end == "<|im_end|>"


def test_a_border_inside_a_token_keeps_the_prompts_tokens(tmp_path: Path) -> None:
    made_of.tokens(tmp_path, "chatml")
    chat = Chat(tmp_path)
    (found,) = chat.shown([Message("user", "a"), Message("assistant", "\n\nb")])
    (first, last) = found.spans[0]
    assert chat.tokenizer.decode(found.ids[:first]).endswith("assistant\n")
    assert chat.tokenizer.decode(found.ids[first:last]) == "\n\nb<|im_end|>"


def test_real_tokenizers(shared: Path, tmp_path: Path) -> None:
    """The template of Llama 3 over its own vocabulary."""
    import shutil

    folder = shutil.copytree(shared / "tokenizers" / "llama-3", tmp_path / "llama-3")
    (folder / "chat_template.jinja").write_text(made_of.LLAMA3)
    (folder / "config.json").write_text('{"eos_token_id": [128001, 128009]}')
    chat = Chat(folder)
    assert chat.template.start == "<|begin_of_text|>"
    rows = messages(dialogue(random.Random(2), 2))
    (found,) = chat.shown(rows)
    assert isinstance(found, Spoken)
    assert [found.ids[last - 1] for _, last in found.spans] == [128009, 128009]
    answers = [chat.tokenizer.decode(found.ids[first : last - 1]) for first, last in found.spans]
    assert answers == [rows[1].content, rows[3].content]
