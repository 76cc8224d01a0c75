"""The bundle being made: what of it can be reused, and one finished file after another."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tel_edge.export.made import outdated
from tel_edge.runtime import manifest as manifests
from tel_edge.runtime.atomic import replacing
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.formats import FORMATS
from tel_edge.runtime.manifest import BackboneInfo, BundleFile, Manifest
from tel_edge.runtime.onnx_header import TOKENIZER

# Takes a written file, gives its figures or raises.
Accept = Callable[[Path], Mapping[str, float]]
PARTIAL = re.compile(r"\..+\.(\d+)\.partial")


class Output:
    """A bundle folder and its manifest. Nothing is written before `begin`."""

    def __init__(self, folder: Path, info: BackboneInfo, force: bool) -> None:
        self.folder, self.info = folder, info
        self.manifest = Manifest(info)
        # Of the files that were asked for, those with which version changed, and the older ones.
        self.changed: dict[str, str] = {}
        self.unknown: dict[str, None] = {}
        self._left: tuple[BundleFile, ...] = ()
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--out: {folder} is a file, wanted a folder")
        if (folder / manifests.NAME).exists():
            self._take_over(force)

    def _take_over(self, force: bool) -> None:
        try:
            old = manifests.read(self.folder)
        except InputError as error:
            if force:
                return
            raise InputError(f"{error}\npass another --out, or --force to start it anew") from None
        for field in ("weights", "tokenizer", "prompt"):
            if getattr(old.backbone, field) != getattr(self.info, field):
                if not force:
                    what = {"weights": "backbone"}.get(field, field)
                    raise InputError(
                        f"{self.folder}: holds a bundle of {old.backbone.name} with another {what} "
                        f"than {self.info.name}'s\npass another --out, or --force to replace it"
                    )
                self._left = old.files
                return
        self.manifest = Manifest(self.info, old.files)

    def intact(
        self,
        kind: str,
        quant: str,
        category: str | None,
        source: str,
        options: str | None = None,
        format: str = "gguf",
        *,
        inputs: str | None = None,
        former: str | None = None,
        known: bool = False,
    ) -> BundleFile | None:
        """Return the manifest's entry if it was made of `source` so, and its file is whole.

        `inputs` and the versions are compared where the entry has them; one that is older is
        compared by `former` options too, and not taken where all has to be `known`.
        """
        file = self.manifest.find(kind, quant, category, format)
        if file is None or file.source != source:
            return None
        if file.made_by is None:
            if known or file.options not in (options, former):
                return None
        elif (file.options, file.inputs) != (options, inputs):
            return None
        elif changed := outdated(file.made_by):
            self.changed[file.path] = changed
            return None
        try:
            for part in self.manifest.parts(file):
                manifests.verified(self.folder, part)
        except InputError:
            return None
        if file.made_by is None and file.kind not in manifests.NOT_MEASURED:
            self.unknown[file.path] = None
        return file

    def told(self) -> Iterator[str]:
        """Yield what there is to say of the files that were asked for, a line for each reason."""
        for reason in dict.fromkeys(self.changed.values()):
            names = ", ".join(path for path, why in self.changed.items() if why == reason)
            yield f"made with {reason}, so made again: {names}"
        if self.unknown:
            yield (
                "kept, though made before inputs and versions were noted, so that changes of them "
                f"cannot be known: {', '.join(self.unknown)}; --force makes them anew"
            )

    def begin(self) -> None:
        """Make the folder, and remove what killed runs and a replaced bundle left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(".*.partial"):
            match = PARTIAL.fullmatch(path.name)
            if match and not _alive(int(match[1])):
                _remove(path)
        if self._left:
            manifests.write(self.manifest, self.folder)
            for file in self._left:
                (self.folder / file.path).unlink(missing_ok=True)

    @contextmanager
    def file(self, name: str, gate: Accept | None, **known: Any) -> Iterator[Path]:
        """Give a temporary path to write a file to; on success it is in the manifest.

        `gate` measures the file before it is accepted, None lets every file pass; `known` is what
        the manifest says of it beside its size, digest and those figures.
        """
        parity = None
        with replacing(self.folder / name) as partial:
            yield partial
            check = FORMATS[known["format"]]
            if known["kind"] == "adapter":
                check.adapter(partial, self.info.weights, self.info.name)
            else:
                check.weights(partial)
            parity = gate(partial) if gate else None
        self._replace(manifests.describe(self.folder, self.folder / name, parity=parity, **known))

    @contextmanager
    def model(self, name: str, gate: Accept | None, **known: Any) -> Iterator[Path]:
        """Give a path for an ONNX backbone that has a data file beside it; see `file`.

        The tokenizer, which the engine reads, is beside it already.
        """
        with self.room(name) as room:
            yield room / name
            FORMATS[known["format"]].weights(room / name)
            parity = gate(room / name) if gate else None
            # The data first: with another one beside it the old model is refused by its digest.
            for part in (f"{name}.data", name):
                with replacing(self.folder / part) as partial:
                    os.replace(room / part, partial)
        about = {"format": known["format"], "quant": known["quant"]}
        data = manifests.describe(self.folder, self.folder / f"{name}.data", kind="data", **about)
        self.manifest = self.manifest.with_file(data)
        self._replace(manifests.describe(self.folder, self.folder / name, parity=parity, **known))

    @contextmanager
    def room(self, name: str) -> Iterator[Path]:
        """Give a folder beside the bundle's files, with the bundle's tokenizer in it."""
        with self.scratch(f"{name}.room") as room:
            room.mkdir()
            tokenizer = self.folder / TOKENIZER
            if tokenizer.is_file():
                shutil.copyfile(tokenizer, room / TOKENIZER)
            yield room

    def tokenizer(self, source: Path) -> None:
        """Put the tokenizer of a Hugging Face folder into the bundle, if it is not there."""
        there = self.manifest.find("tokenizer", format="onnx")
        if there is not None and self.intact("tokenizer", there.quant, None, self.info.tokenizer,
                                             format="onnx"):  # fmt: skip
            return
        with replacing(self.folder / TOKENIZER) as partial:
            shutil.copyfile(source / TOKENIZER, partial)
        self.add(
            manifests.describe(
                self.folder, self.folder / TOKENIZER, kind="tokenizer", format="onnx",
                quant="json", source=self.info.tokenizer,
            )
        )  # fmt: skip

    def _replace(self, made: BundleFile) -> None:
        old = self.manifest.find(made.kind, made.quant, made.category, made.format)
        self.add(made)
        if old is not None and old.path != made.path:
            (self.folder / old.path).unlink(missing_ok=True)

    def add(self, file: BundleFile) -> None:
        """Put a finished file into the manifest."""
        self.manifest = self.manifest.with_file(file)
        manifests.write(self.manifest, self.folder)

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Give a path in the bundle's folder for a file or folder that is not kept."""
        path = self.folder / f".{name}.{os.getpid()}.partial"
        try:
            yield path
        finally:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
