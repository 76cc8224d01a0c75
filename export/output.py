"""The bundle being made: what of it can be reused, and one finished file after another."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tel_edge.export.made import outdated
from tel_edge.runtime.bundles import manifest as manifests
from tel_edge.runtime.bundles.formats import FORMATS
from tel_edge.runtime.bundles.manifest import BackboneInfo, BundleFile, Manifest
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import lock
from tel_edge.runtime.files.atomic import abandoned, remove, replacing, temporary, what_is
from tel_edge.runtime.files.onnx_header import TOKENIZER

# Takes a written file, gives its figures or raises.
Accept = Callable[[Path], Mapping[str, float]]


class Output:
    """A bundle folder and its manifest. Nothing is written before it is `owned`."""

    def __init__(self, folder: Path, info: BackboneInfo, force: bool) -> None:
        self.folder, self.info, self._force = folder, info, force
        # Of the files that were asked for, those with which version changed, and the older ones.
        self.changed: dict[str, str] = {}
        self.unknown: dict[str, None] = {}
        # Seconds that new files took, by path: (writing, judging).
        self.took: dict[str, tuple[float, float]] = {}
        if os.path.lexists(folder) and not folder.is_dir():
            raise InputError(f"--out: {folder} is {what_is(folder)}, wanted a folder")
        self._read()

    def _read(self) -> None:
        self.manifest = Manifest(self.info)
        self._left: tuple[BundleFile, ...] = ()
        if (self.folder / manifests.NAME).exists():
            self._take_over(self._force)

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
        # What was decided for stays decided for; whether its files are still there is for who opens
        # them to see.
        self.manifest = replace(old, backbone=self.info)

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

    @contextmanager
    def owned(self, wait: float, say: Callable[[str], None]) -> Iterator[bool]:
        """Have the bundle alone, from reading its manifest to writing the last file.

        Waits for another export into it up to `wait` seconds, see `lock.held`. Gives whether the
        manifest has changed since it was read, so that what was planned by it has to be planned
        again: `manifest` is the new one.
        """
        with lock.held(self.folder, wait, say, inside=True):
            before = self.manifest, self._left
            self._read()
            self._begin()
            yield (self.manifest, self._left) != before

    def _begin(self) -> None:
        """Remove what killed runs and a replaced bundle left."""
        for path in self.folder.glob(".*"):
            if abandoned(path):
                remove(path)
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
        begun = time.perf_counter()
        with replacing(self.folder / name) as partial:
            yield partial
            check = FORMATS[known["format"]]
            if known["kind"] == "adapter":
                check.adapter(partial, self.info.stated, self.info.name)
            else:
                check.weights(partial)
            parity = self._judged(name, partial, gate, begun)
        self._replace(manifests.describe(self.folder, self.folder / name, parity=parity, **known))

    @contextmanager
    def model(self, name: str, gate: Accept | None, **known: Any) -> Iterator[Path]:
        """Give a path for an ONNX backbone that has a data file beside it; see `file`.

        The tokenizer, which the engine reads, is beside it already.
        """
        begun = time.perf_counter()
        with self.room(name) as room:
            yield room / name
            FORMATS[known["format"]].weights(room / name)
            parity = self._judged(name, room / name, gate, begun)
            # The data first: with another one beside it the old model is refused by its digest.
            for part in (f"{name}.data", name):
                with replacing(self.folder / part) as partial:
                    os.replace(room / part, partial)
        about = {"format": known["format"], "quant": known["quant"]}
        data = manifests.describe(self.folder, self.folder / f"{name}.data", kind="data", **about)
        self.manifest = self.manifest.with_file(data)
        self._replace(manifests.describe(self.folder, self.folder / name, parity=parity, **known))

    def _judged(
        self, name: str, path: Path, gate: Accept | None, begun: float
    ) -> Mapping[str, float] | None:
        written = time.perf_counter()
        figures = gate(path) if gate else None
        self.took[name] = (written - begun, time.perf_counter() - written)
        return figures

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
        path = temporary(self.folder / name)
        try:
            yield path
        finally:
            remove(path)
