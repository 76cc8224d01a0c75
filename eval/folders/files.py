"""Files of a model folder, refused by name where they are not what they are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tel_edge.runtime.errors import InputError

# What git leaves in place of a large file; source: git-lfs, docs/spec.md.
POINTER = b"version https://git-lfs.github.com/spec/"


def check_regular(path: Path) -> None:
    """Raise `InputError` for what is no file: a folder, a pipe, a link to nothing.

    Reading a pipe would wait for ever.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: not a regular file but a folder, a pipe, or a link to nothing; remove it, or "
            "copy or download the file again"
        )


def check_fetched(path: Path) -> None:
    """Raise `InputError` if a file is a git-lfs pointer, which stands for one that is not here."""
    with path.open("rb") as stream:
        if stream.read(len(POINTER)) == POINTER:
            raise InputError(
                f"{path}: a git-lfs pointer, not the file itself; run git lfs pull in {path.parent}"
            )


def json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or raise `InputError` naming the file."""
    try:
        check_fetched(path)
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: missing; copy or download the folder again") from None
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: wanted a JSON object")
    return document
