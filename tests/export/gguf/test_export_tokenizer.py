"""The engine makes the same ids of a text as transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import export_models as models
import pytest

from tel_edge.export.gguf import container, tokenizer
from tel_edge.export.gguf.quantize import silence
from tel_edge.runtime.engines.readable import NO_TEXT
from tel_edge.runtime.errors import InputError


def ids_of(vocabulary: tokenizer.Vocabulary, path: Path) -> Callable[[str], list[int]]:
    """Load a GGUF file of the vocabulary alone and return its tokenizer."""
    import ctypes

    from llama_cpp import llama_cpp as llama

    llama.llama_log_set(silence(), ctypes.c_void_p(0))
    keys = {"llama.block_count": 1, "llama.context_length": 8, "llama.embedding_length": 8}
    container.write(path, "llama", {**keys, **tokenizer.metadata(vocabulary)}, [], lambda _: None)
    params = llama.llama_model_default_params()
    params.vocab_only = True
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    assert model
    vocab = llama.llama_model_get_vocab(model)

    def made(text: str) -> list[int]:
        data = text.encode()
        room = (ctypes.c_int32 * (len(data) + 8))()
        count = llama.llama_tokenize(vocab, data, len(data), room, len(room), True, False)
        assert model, "the vocabulary lives as long as the model"
        return list(room[:count])

    return made


def ids_wanted(tok: Any, text: str) -> list[int]:
    # Inside a text, what looks like a special token is text.
    return list(tok(text, split_special_tokens=True)["input_ids"])


@pytest.mark.parametrize(
    ("kind", "ignore_merges", "pre"),
    [
        ("llama", True, "llama-bpe"),
        ("llama", False, "dbrx"),
        ("qwen3", False, "qwen2"),
        ("gpt2", False, "gpt-2"),
    ],
)
def test_ids_are_those_of_transformers(
    kind: str, ignore_merges: bool, pre: str, tmp_path: Path
) -> None:
    tok = models.tokenizer(kind, ignore_merges=ignore_merges)
    tok.add_tokens(["<think>"])
    tok.save_pretrained(tmp_path)
    vocabulary = tokenizer.load(tmp_path, len(tok) + 3)
    assert vocabulary.pre == pre
    assert vocabulary.add_bos == (kind == "llama")
    assert vocabulary.tokens[-1] == f"[PAD{len(tok) + 2}]"
    assert vocabulary.types[:2] == (tokenizer.CONTROL, tokenizer.CONTROL)
    assert vocabulary.types[-4:] == (tokenizer.USER_DEFINED, *[tokenizer.UNUSED] * 3)
    made = ids_of(vocabulary, tmp_path / "v.gguf")
    for text in (*models.TRICKY, "a <think>b"):
        assert made(text) == ids_wanted(tok, text), text


@pytest.mark.parametrize(("name", "pre"), [("llama-3", "llama-bpe"), ("qwen2", "qwen2")])
def test_real_vocabularies(name: str, pre: str, tmp_path: Path) -> None:
    folder = models.shared() / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip(f"no tokenizer of {name} here; TEL_SHARED says where")
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(folder)
    vocabulary = tokenizer.load(folder, len(tok) + 10)
    assert vocabulary.pre == pre
    made = ids_of(vocabulary, tmp_path / "v.gguf")
    for text in (*models.TRICKY, *models.CORPUS):
        assert made(text) == ids_wanted(tok, text), text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-3", "qwen2"])
def test_every_real_question(name: str, shared: Path, tmp_path: Path) -> None:
    """Prompt and answer of all questions of the benchmark, in both real vocabularies."""
    import unicodedata

    from transformers import AutoTokenizer

    from tel_edge.eval.benchmarks import benchmark
    from tel_edge.runtime.questions.categories import CATEGORIES
    from tel_edge.runtime.questions.prompt import labels, render

    folder = shared / "tokenizers" / name
    tok = AutoTokenizer.from_pretrained(folder)
    vocabulary = tokenizer.load(folder, len(tok) + 10)
    made = ids_of(vocabulary, tmp_path / "v.gguf")
    form: Any = vocabulary.normalizer
    asked = 0
    for row in CATEGORIES.values():
        found = benchmark.read(str(shared / "ot-full"), row).questions
        texts = [render(q) + labels(q)[q.answer or 0] for q in found]
        wanted = tok(texts, split_special_tokens=True)["input_ids"]
        for question, text, ids in zip(found, texts, wanted, strict=True):
            # The runtime normalizes, since the engine does not.
            shown = unicodedata.normalize(form, text) if form else text
            assert made(shown) == ids, question.id
        asked += len(found)
    assert asked > 15_000


@pytest.mark.parametrize(
    ("add_bos", "template", "wanted"),
    [
        (None, True, 1),
        # The setting says nothing beside a tokenizer.json.
        (True, True, 1),
        (True, False, 0),
        (False, True, 1),
        (None, False, 0),
    ],
)
def test_one_bos_or_none(add_bos: bool | None, template: bool, wanted: int, tmp_path: Path) -> None:
    tok = models.tokenizer("llama")
    tok.save_pretrained(tmp_path)
    if add_bos is not None:
        models.edit(tmp_path / "tokenizer_config.json", add_bos_token=add_bos)
    if not template:
        models.edit(tmp_path / "tokenizer.json", post_processor=None)
    from transformers import AutoTokenizer

    made = ids_of(tokenizer.load(tmp_path, len(tok)), tmp_path / "v.gguf")
    assert made("which one") == ids_wanted(AutoTokenizer.from_pretrained(tmp_path), "which one")
    assert made("which one").count(tok.bos_token_id) == wanted
    # What a text says of it is text.
    assert made(models.BOS + "x").count(tok.bos_token_id) == wanted


def test_merges_in_the_old_form(tmp_path: Path) -> None:
    models.tokenizer("llama").save_pretrained(tmp_path)
    new = tokenizer.load(tmp_path, 600)
    path = tmp_path / "tokenizer.json"
    document = json.loads(path.read_text())
    document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
    path.write_text(json.dumps(document))
    assert tokenizer.load(tmp_path, 600) == new


def test_a_token_for_padding_needs_no_row_in_the_embedding(tmp_path: Path) -> None:
    tok = models.tokenizer("llama")
    tok.add_special_tokens({"pad_token": "<pad>"})
    tok.save_pretrained(tmp_path)
    made = tokenizer.load(tmp_path, len(tok) - 1)
    assert (len(made.tokens), made.pad, made.eos) == (len(tok) - 1, None, 1)
    assert tokenizer.load(tmp_path, len(tok)).pad == len(tok) - 1


def test_ids_and_template_of_the_folder(tmp_path: Path) -> None:
    models.tokenizer("qwen3").save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 5, "eos_token_id": [7, 8]}))
    made = tokenizer.load(tmp_path, 600)
    assert (made.bos, made.eos, made.pad) == (5, 1, 1)
    assert made.chat_template == "{{ messages }}"
    models.edit(tmp_path / "tokenizer_config.json", eos_token=None)
    assert tokenizer.load(tmp_path, 600).eos == 7


@pytest.mark.parametrize("decoder", [None, {}])
def test_special_tokens_of_an_old_folder(decoder: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    models.tokenizer("llama").save_pretrained(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": models.BOS}))
    if decoder is not None:
        models.edit(tmp_path / "tokenizer_config.json", added_tokens_decoder=decoder)
    wanted = AutoTokenizer.from_pretrained(tmp_path).eos_token_id
    assert tokenizer.load(tmp_path, 600).eos == wanted


def lack(document: dict[str, Any], char: str) -> None:
    """Take a byte's token out of the vocabulary, and all that hold it."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    model, letter = document["model"], bytes_to_unicode()[ord(char)]
    model["vocab"] = {token: at for token, at in model["vocab"].items() if letter not in token}
    model["merges"] = [pair for pair in model["merges"] if letter not in "".join(pair)]


Change = Callable[[dict[str, Any]], Any]
REFUSALS: dict[str, tuple[Change, str]] = {
    "unigram": (
        lambda d: d["model"].update(type="Unigram"),
        "a Unigram (SentencePiece) tokenizer cannot be exported to GGUF, a byte-level BPE can; "
        "--format onnx takes any tokenizer.json",
    ),
    "wordpiece": (lambda d: d["model"].update(type="WordPiece"), "a WordPiece tokenizer"),
    "sentencepiece": (
        lambda d: (d["model"].update(byte_fallback=True), lack(d, " ")),
        "a SentencePiece tokenizer",
    ),
    "unknown": (
        lambda d: (d["model"].update(unk_token=models.EOS), lack(d, "\x04")),
        "1 bytes have no token, 0x04 first, and '<|end_of_text|>' stands for them",
    ),
    "fallback": (
        lambda d: (
            d["model"].update(byte_fallback=True),
            lack(d, "\x04"),
            d["model"]["vocab"].update({"<0xC4>": 500, "<0x84>": 501}),
        ),
        "and '<0xC4>' stands for them, where the engine leaves them out",
    ),
    "added byte": (
        lambda d: (lack(d, "!"), d["added_tokens"][0].update(content="!")),
        "the added token '!' is spelled as byte 0x21",
    ),
    "suffix": (lambda d: d["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
    "part": (lambda d: d["model"]["vocab"].pop("e"), "is not of tokens"),
    "merges": (lambda d: d["model"].update(merges=[["a b", "c"]]), "has a space inside"),
    "no merges": (lambda d: d["model"].update(merges=[]), "without merges"),
    "normalizer": (lambda d: d.update(normalizer={"type": "Lowercase"}), "Lowercase"),
    "regex": (
        lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": "x+"}),
        "split x+ then bytes (ignore_merges=True)",
    ),
    "behaviour": (
        lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
        "Removed",
    ),
    "prefix": (
        lambda d: d["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        "add_prefix_space",
    ),
    "no rules": (lambda d: d.update(pre_tokenizer=None), "no pre-tokenizer none"),
    "template": (
        lambda d: d["post_processor"]["single"].insert(
            0, {"SpecialToken": {"id": models.EOS, "type_id": 0}}
        ),
        "the template",
    ),
    "post": (
        lambda d: d.update(post_processor={"type": "BertProcessing"}),
        "the post-processor BertProcessing",
    ),
    "strip": (
        lambda d: d["added_tokens"][0].update(special=False, lstrip=True),
        "lstrip cannot be exported",
    ),
    "twice": (lambda d: d["added_tokens"][0].update(content="<other>"), "id 0 is both"),
    "beyond": (
        lambda d: d["added_tokens"][0].update(content="<o>", id=9999, special=False),
        "is beyond",
    ),
    "damaged": (lambda d: d["model"].pop("vocab"), "not a tokenizer of this format"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_name_the_rule(name: str, tmp_path: Path) -> None:
    models.tokenizer("llama").save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    document = json.loads(path.read_text())
    change, fragment = REFUSALS[name]
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"tokenizer\.json") as caught:
        tokenizer.load(tmp_path, 600)
    assert fragment in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("settings", [{"byte_fallback": True}, {"unk_token": models.EOS}])
@pytest.mark.parametrize("bytes_", ["all", "those of texts"])
def test_settings_that_no_text_reaches(settings: Any, bytes_: str, tmp_path: Path) -> None:
    """What stands for a byte without a token does not matter where each byte of a text has one."""
    from transformers import AutoTokenizer

    models.tokenizer("llama").save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    document = json.loads(path.read_text())
    document["model"].update(settings)
    if bytes_ != "all":
        for byte in NO_TEXT:
            lack(document, chr(byte))
    path.write_text(json.dumps(document))
    tok = AutoTokenizer.from_pretrained(tmp_path)
    vocabulary = tokenizer.load(tmp_path, 600)
    assert vocabulary.missing == b""
    made = ids_of(vocabulary, tmp_path / "v.gguf")
    for text in models.TRICKY:
        assert made(text) == ids_wanted(tok, text), text


def test_nfc_is_noted_for_the_engine(tmp_path: Path) -> None:
    models.tokenizer("qwen3").save_pretrained(tmp_path)
    models.edit(tmp_path / "tokenizer.json", normalizer={"type": "NFC"})
    keys = tokenizer.metadata(tokenizer.load(tmp_path, 600))
    assert keys["tel_edge.tokenizer.normalizer"] == "NFC"
