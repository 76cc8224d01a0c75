"""What `--adapter` means: which PEFT folders, and for which category each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tel_edge.export.sources import foreign
from tel_edge.export.sources.adapter import CONFIG, TRAINING, WEIGHTS
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions import categories
from tel_edge.runtime.questions.categories import CATEGORIES, SPOKEN
from tel_edge.runtime.workspace import Workspace


@dataclass(frozen=True)
class Chosen:
    """A PEFT folder; `category` is None where its training.json has to say it."""

    folder: Path
    category: str | None


def chosen(text: str | None, category: str | None, home: Workspace, backbone: str) -> list[Chosen]:
    """Return the folders that `--adapter NAME|DIR|all` (or a comma list) stands for.

    A name is a category, whose adapter is in the workspace; `category` is for the one folder
    given. Raises `InputError` for what is not there.
    """
    made: list[Chosen] = []
    for part in dict.fromkeys((text or "").split(",")):
        if part == "all":
            made += _finished(home, backbone)
        elif part in (*CATEGORIES, *SPOKEN):
            made.append(_named(home, backbone, part))
        elif part:
            made.append(Chosen(_folder(part), None))
    if category is None:
        return made
    named = (SPOKEN[category],) if category in SPOKEN else categories.categories(category)
    if len(made) != 1 or made[0].category:
        raise InputError("--category names the category of one folder given as --adapter DIR")
    return [Chosen(made[0].folder, one.name) for one in named]


def _finished(home: Workspace, backbone: str) -> list[Chosen]:
    made = []
    for name in (*CATEGORIES, *SPOKEN):
        folder = home.adapter(backbone, name)
        # The trainer puts a finished folder in place as a whole; training.json is part of it.
        if (folder / TRAINING).is_file() and (folder / WEIGHTS).is_file():
            made.append(Chosen(folder, name))
    if not made:
        raise InputError(
            f"{home.adapter(backbone, 'x').parent}: no finished adapter; run tel-train with the "
            "same --backbone and --category NAME"
        )
    return made


def _named(home: Workspace, backbone: str, name: str) -> Chosen:
    folder = home.adapter(backbone, name)
    if not (folder / CONFIG).is_file():
        data = " --dataset DIR" if name in SPOKEN else ""
        raise InputError(
            f"{folder}: no adapter for {name}; run tel-train with the same --backbone and "
            f"--category {name}{data}"
        )
    return Chosen(folder, name)


def _folder(part: str) -> Path:
    folder = Path(part)
    if folder.is_file():
        raise InputError(f"--adapter: {part} is a file; pass the PEFT folder that it lies in")
    if not folder.is_dir():
        raise InputError(
            f"--adapter: {part!r} is neither a folder nor 'all' nor one of "
            f"{' '.join((*CATEGORIES, *SPOKEN))}"
        )
    foreign.check_folder(folder)
    return folder


def agreed(one: Chosen, trained: str | None, several: bool) -> str:
    """Return the adapter's category; `trained` is what its training.json says, or None.

    An adapter that is for `several`, trained or merged so, is for the one that is named. Raises
    `InputError` where the two differ or neither says it.
    """
    if several:
        if one.category is None:
            raise InputError(
                f"{one.folder}: a {trained} adapter; name with --category what it is to answer, or "
                "all"
            )
        if one.category in SPOKEN:
            raise InputError(
                f"{one.folder}: trained on questions, not for {one.category}; see its {TRAINING}"
            )
        return one.category
    if one.category and trained and one.category != trained:
        raise InputError(
            f"{one.folder}: trained for {trained}, not for {one.category}; see its {TRAINING}"
        )
    name = one.category or trained
    if name is None:
        raise InputError(
            f"{one.folder}: no {TRAINING}, so its category is unknown; add --category NAME"
        )
    return name if name in SPOKEN else categories.category(name).name
