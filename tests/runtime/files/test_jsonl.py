"""Files of JSON lines: what is wrong with them is told in one go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import jsonl


def number(row: dict[str, Any]) -> int:
    if not isinstance(row.get("n"), int):
        raise InputError("n is no number")
    return int(row["n"])


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({3: '{"n"'}, "line 3: not JSON: "),
        ({2: '{"n": "x"}', 7: "[]"}, "line 2: n is no number; 1 more bad line: 7"),
        (
            dict.fromkeys(range(1, 9), "{}"),
            "line 1: n is no number; 7 more bad lines: 2, 3, 4, 5, 6, ...",
        ),
    ],
)
def test_every_bad_line_is_told(tmp_path: Path, bad: dict[int, str], told: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(bad.get(at, f'{{"n": {at}}}') for at in range(1, 11)))
    read = []
    with pytest.raises(InputError) as found:
        read.extend(jsonl.read(file, number))
    assert str(found.value).startswith(f"{file}: {told}")
    assert len(str(found.value).splitlines()) == 1


def test_lines_have_their_numbers(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('\ufeff{"n": 1}\n\n{"n": 3}\n')
    assert list(jsonl.read(file, number)) == [(1, 1), (3, 3)]


def test_another_kind_of_file_is_named_as_such(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes('{"n": 1}\n'.encode("utf-16"))
    with pytest.raises(InputError, match=r"rows\.jsonl: this is UTF-16, not UTF-8"):
        list(jsonl.read(file, number))
    file.write_bytes(bytes(100))
    with pytest.raises(InputError, match="this is no text: it begins with zero bytes"):
        list(jsonl.read(file, number))
