"""The tokenizer of a backbone's folder: there, readable, and of this embedding.

Source of what is added to it: transformers 5.23, `tokenization_utils_base._from_pretrained`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tel_edge.eval.folders.files import check_fetched, json_object
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.extras import need

FILE, SETTINGS, LEGACY = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"


def check(folder: Path, rows: int) -> None:
    """Raise `InputError` unless texts become ids of an embedding of `rows` tokens.

    A special token beyond it, as one for padding that was added later, is let be: inside a text
    it is text, and what is padded is masked.
    """
    path = folder / FILE
    if not path.is_file():
        raise InputError(f"{path}: missing; copy or download the folder again")
    check_fetched(path)
    library = need("tokenizers", "train")
    try:
        made = library.Tokenizer.from_file(str(path))
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise InputError(
            f"{path}: not a tokenizer of this format ({reason}); copy or download it again"
        ) from None
    ids: dict[str, int] = made.get_vocab(with_added_tokens=False)
    ids |= {t.content: at for at, t in made.get_added_tokens_decoder().items() if not t.special}
    around = {made.id_to_token(at): at for at in made.encode("").ids}
    beyond = {token: at for token, at in (ids | around).items() if at >= rows}
    if beyond:
        token = min(beyond, key=lambda token: beyond[token])
        raise InputError(
            f"{path}: token {token!r} has id {beyond[token]}, but config.json's vocab_size is "
            f"{rows}: the tokenizer of another model, or a token that the model has no row for"
        )
    for source, token in _added(folder):
        if made.token_to_id(token) is None:
            raise InputError(
                f"{source}: added token {token!r} is not in {FILE}, so transformers reads other "
                f"tokens than {FILE} says; save the tokenizer again, or remove it there"
            )


def _added(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the tokens that transformers adds where they are not special, and who says so."""
    settings: dict[str, Any] = {}
    if (folder / SETTINGS).is_file():
        settings = json_object(folder / SETTINGS)
    listed = settings.get("added_tokens_decoder")
    if isinstance(listed, dict):
        for entry in listed.values():
            if isinstance(entry, dict) and not entry.get("special"):
                yield folder / SETTINGS, str(entry.get("content"))
    elif (folder / LEGACY).is_file():
        named = {str(value) for key, value in settings.items() if key.endswith("_token")}
        for token in json_object(folder / LEGACY):
            if token not in named:
                yield folder / LEGACY, token
