"""A GGUF file taken apart, changed and put together, and opened where a crash does no harm."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tel_edge.runtime.files.gguf_header import ARRAY, SCALARS, STRING

ALIGNMENT = 32


@dataclass
class Tensor:
    shape: list[int]
    kind: int
    offset: int


@dataclass
class File:
    """`keys` are (value type, bytes) by name; `data` is what follows the header."""

    keys: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    data: bytes = b""

    @classmethod
    def of(cls, content: bytes) -> File:
        made, at = cls(), 24
        tensors, keys = struct.unpack_from("<QQ", content, 8)

        def number(code: str) -> Any:
            nonlocal at
            at += struct.calcsize("<" + code)
            return struct.unpack_from("<" + code, content, at - struct.calcsize("<" + code))[0]

        def string() -> str:
            nonlocal at
            size = number("Q")
            at += size
            return content[at - size : at].decode()

        def skip(kind: int) -> None:
            if kind == STRING:
                string()
            elif kind == ARRAY:
                inner, count = number("I"), number("Q")
                for _ in range(count):
                    skip(inner)
            else:
                number(SCALARS[kind])

        for _ in range(keys):
            name, kind = string(), number("I")
            begin = at
            skip(kind)
            made.keys[name] = kind, content[begin:at]
        for _ in range(tensors):
            name = string()
            shape = [number("Q") for _ in range(number("I"))]
            made.tensors[name] = Tensor(shape, number("I"), number("Q"))
        made.data = content[-(-at // ALIGNMENT) * ALIGNMENT :]
        return made

    def put(self, name: str, value: float | str, kind: int = 4) -> File:
        """Set a key; numbers are uint32 if nothing else is said."""
        if isinstance(value, str):
            text = value.encode()
            self.keys[name] = STRING, struct.pack("<Q", len(text)) + text
        else:
            self.keys[name] = kind, struct.pack("<" + SCALARS[kind], value)
        return self

    def rename(self, tensor: str, name: str) -> File:
        """Give a tensor another name; it stays where it is."""
        self.tensors = {name if one == tensor else one: at for one, at in self.tensors.items()}
        return self

    def bytes(self) -> bytes:
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.keys))
        for name, (kind, value) in self.keys.items():
            head += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value
        for name, tensor in self.tensors.items():
            head += struct.pack("<Q", len(name)) + name.encode()
            head += struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
            head += struct.pack("<IQ", tensor.kind, tensor.offset)
        return head + bytes(-len(head) % ALIGNMENT) + self.data


OPENER = """
import sys
from pathlib import Path
from tel_edge.runtime.engines.engine import EngineSettings, Item
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.bundles.formats import of_file
from tel_edge.runtime.bundles import bundle
for line in sys.stdin:
    backbone, *adapter = map(Path, line.rstrip("\\n").split("\\t"))
    said = "answered"
    try:
        of_file(backbone).weights(backbone)
        adapters = bundle.loose_adapters(backbone, {"oranbench": one for one in adapter})
        engine = bundle.native(backbone, adapters, EngineSettings(threads=1, context=64))
        try:
            asked = [Item(engine.tokenize("a b"), ((5,), (6, 7)))]
            list(engine.score(asked, "oranbench" if adapter else None))
        finally:
            engine.close()
    except (InputError, WorkError) as error:
        said = "refused " + " ".join(str(error).split())
    print(said, flush=True)
"""


@contextmanager
def _child(script: str) -> Iterator[subprocess.Popen[str]]:
    # A debugger that prints where it was is of no use here, and slow.
    environment = os.environ | {"GGML_NO_BACKTRACE": "1"}
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=pipe, stdout=pipe, stderr=null, text=True, env=environment,
    )  # fmt: skip
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def opened(files: Iterable[tuple[Path, ...]], script: str = OPENER) -> Iterator[str]:
    """Open each backbone (and adapter) and ask it; yield what became of it.

    That is "answered", "refused ..." or "died N". A process serves until it dies. Another script
    reads the files of a line, with tabs between them, and prints one.
    """
    rest = iter(files)
    one = next(rest, None)
    while one is not None:
        with _child(script) as child:
            assert child.stdin
            assert child.stdout
            said = "?"
            while one is not None and said:
                print(*one, sep="\t", file=child.stdin, flush=True)
                said = child.stdout.readline().rstrip("\n")
                yield said or f"died {child.wait()}"
                one = next(rest, None)
