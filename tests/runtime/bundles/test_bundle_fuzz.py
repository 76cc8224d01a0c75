"""A bundle changed at random is refused or means the same; nothing crashes or hangs."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import export_models as models
import fake_engine as fake
import pytest
from gguf_files import File, opened

from tel_edge.export.commands import export
from tel_edge.runtime import cli
from tel_edge.runtime.bundles import bundle, manifest
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files.gguf_header import check

Change = Callable[[bytearray, random.Random], None]


def flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def drop(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randint(1, 16)]


def insert(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data) + 1) : 0] = rng.randbytes(rng.randint(1, 16))


def number(data: bytearray, rng: random.Random) -> None:
    """Put a number that lengths and counts trip over at a random place."""
    value = rng.choice((0, 1, 0x7F, 0xFF, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1))
    at = rng.randrange(max(1, len(data) - 8))
    data[at : at + 8] = value.to_bytes(8, "little")


def double(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    data[at:at] = data[at : at + rng.randint(1, 200)]


CHANGES: tuple[Change, ...] = (flip, cut, drop, insert, number, double)


def mutated(data: bytes, rng: random.Random, head: int | None = None) -> bytes:
    """Return `data` changed in one way, within its first `head` bytes if that is given."""
    part = bytearray(data[:head])
    rng.choice(CHANGES)(part, rng)
    return bytes(part) + (data[head:] if head is not None else b"")


def test_two_thousand_changed_bundles(tmp_path: Path) -> None:
    fake.bundle(tmp_path / "b", adapters=("oranbench",))
    whole = {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    wanted = manifest.read(tmp_path / "b")
    rng = random.Random(7)
    accepted = 0
    for turn in range(2_000):
        name = rng.choice(sorted(whole))
        changed = mutated(whole[name], rng)
        (tmp_path / "b" / name).write_bytes(changed)
        opener = fake.FakeOpener()
        began, refused = time.monotonic(), ""
        try:
            made = bundle.read(tmp_path / "b")
            files = [bundle.backbone_file(tmp_path / "b", made, "F16")]
            files += [bundle.adapter_file(tmp_path / "b", made, name) for name in made.adapters()]
            bundle.open_engine(tmp_path / "b", made, files[0], files[1:], opener=opener)
        except InputError as error:
            refused = str(error)
        if refused:
            assert refused.count("\n") <= 2, turn
            assert not opener.opened, turn
        else:
            accepted += 1
            # Only what decides nothing may differ: a name, white space, a type that is not opened.
            if changed != whole[name] and name == manifest.NAME:
                same = {(f.sha256, f.bytes, f.category) for f in wanted.files}
                assert {(f.sha256, f.bytes, f.category) for f in files} <= same, turn
            else:
                assert changed == whole[name] or name not in {f.path for f in files}, turn
        assert time.monotonic() - began < 2, turn
        (tmp_path / "b" / name).write_bytes(whole[name])
    assert accepted < 700


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a small exported model, `bundle/base-Q8_0.gguf`."""
    root = tmp_path_factory.mktemp("fuzz")
    models.backbone(root / "base", "llama")
    models.bind(models.adapter(root / "lora", root / "base"), root / "base")
    argv = ["--backbone", str(root / "base"), "--quant", "Q8_0", "--out", str(root / "bundle")]
    argv += ["--adapter", str(root / "lora")]
    assert cli.run(export.parser(), export.work, [*argv, "--quiet", "--no-verify"]) == 0
    return root


def header_size(path: Path) -> int:
    return path.read_bytes().index(b"output_norm.weight") + 100


def test_two_thousand_changed_headers(model: Path, tmp_path: Path) -> None:
    """Lengths, counts and offsets without the digest that would find any change."""
    path = model / "bundle" / "base-Q8_0.gguf"
    data, head = path.read_bytes(), header_size(path)
    rng = random.Random(8)
    for turn in range(2_000):
        (tmp_path / "m.gguf").write_bytes(mutated(data, rng, head))
        began, refused = time.monotonic(), "m.gguf"
        try:
            check(tmp_path / "m.gguf")
        except InputError as error:
            refused = str(error)
        assert "m.gguf" in refused, turn
        assert time.monotonic() - began < 2, turn


def keys(file: File, rng: random.Random) -> None:
    """Change what the engine reads as a number, a name or a shape; mostly one thing."""
    for _ in range(rng.choice((1, 1, 1, 2))):
        kind = rng.choice(("number", "number", "number", "real", "text", "type", "shape", "tensor"))
        architecture = "llama."
        if kind in ("number", "real"):
            code = 4 if kind == "number" else 6
            there = [name for name, (type, _) in file.keys.items() if type == code]
            name = rng.choice(
                [*there, *(architecture + more for more in (NUMBERS, REALS)[code // 6])]
            )
            file.put(name, rng.choice((COUNTS, FIGURES)[code // 6]), code)
        elif kind == "text":
            there = [name for name, (type, _) in file.keys.items() if type == 8]
            name = rng.choice([*there, architecture + "rope.scaling.type"])
            file.put(name, rng.choice(WORDS))
        elif kind == "type":
            file.put(rng.choice(sorted(file.keys)), 1, rng.choice((0, 5, 6, 7, 10)))
        else:
            tensor = file.tensors[rng.choice(sorted(file.tensors))]
            if kind == "tensor":
                tensor.kind = rng.choice((0, 1, 8, 12, 30))
            else:
                at = rng.randrange(len(tensor.shape))
                tensor.shape[at] = rng.choice((1, 2, 32, 64, 256))


COUNTS = (0, 1, 2, 3, 4, 7, 64, 128, 256, 512, 513, 600, 1025, 1 << 16, 1 << 26, 1 << 31, 2**32 - 1)
FIGURES = (0.0, -1.0, float("nan"), float("inf"), 1e-30, 1e30)
WORDS = ("", "x", "none", "llama", "bert", "t5", "rwkv", "gpt2", "linear", "yarn")
NUMBERS = (
    *("block_count", "block_count", "expert_count", "expert_used_count", "expert_group_count"),
    *("nextn_predict_layers", "pooling_type", "attention.key_length", "attention.value_length"),
    *("attention.head_count_kv", "rope.dimension_count", "attention.sliding_window"),
)
REALS = ("attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.factor")


def crashes(model: Path, folder: Path, count: int, seed: int) -> list[str]:
    """Open changed backbones and adapters in another process; return how it died."""
    bundle = model / "bundle"
    backbone = bundle / "base-Q8_0.gguf"
    [adapter] = bundle.glob("*LoRA.gguf")
    head = header_size(backbone)
    rng = random.Random(seed)
    made: list[bytes] = []

    def files() -> Iterator[tuple[Path, ...]]:
        for turn in range(count):
            which = adapter if turn % 5 == 4 else backbone
            content = which.read_bytes()
            if turn % 3:
                file = File.of(content)
                keys(file, rng)
                content = file.bytes()
            else:
                content = mutated(content, rng, min(head, len(content)))
            made.append(content)
            (folder / which.name).write_bytes(content)
            yield (folder / which.name,) if which == backbone else (backbone, folder / which.name)

    found = []
    for turn, said in enumerate(opened(files())):
        if said.startswith("died"):
            found.append(f"{turn}: {said}")
            (folder / f"crash-{turn}.gguf").write_bytes(made[turn])
    return found


def test_what_passes_the_check_does_not_crash_the_loader(model: Path, tmp_path: Path) -> None:
    """Forged files with right digests: beyond what a digest protects from."""
    assert crashes(model, tmp_path, 300, 9) == []


@pytest.mark.slow
def test_two_thousand_files_that_do_not_crash_the_loader(model: Path, tmp_path: Path) -> None:
    assert crashes(model, tmp_path, 2_000, 10) == []


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an ONNX model with a matrix in a file beside it, as onnx writes it."""
    onnx, np = pytest.importorskip("onnx"), pytest.importorskip("numpy")
    from onnx import TensorProto, helper, numpy_helper

    made = helper.make_graph(
        [helper.make_node("MatMul", ["a", "w"], ["b"])],
        "g",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, ["n", 48])],
        [numpy_helper.from_array(np.ones((64, 48), np.float32), "w")],
    )
    whole = helper.make_model(made, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    path = tmp_path_factory.mktemp("onnx") / "x.onnx"
    onnx.save_model(
        whole, path, save_as_external_data=True, location="x.onnx.data", size_threshold=0
    )
    return path


NAMES = ("../x.onnx.data", "/etc/passwd", "..", ".", "", "x.onnx", "a/b", "x.onnx.dat", "x" * 300)
PLACES = ("0", "-1", "12288", "12289", "1" * 30, "0x10", "4096", " 1", "")


def test_five_hundred_changed_onnx_models(graph: Path, tmp_path: Path) -> None:
    """Names, places and dims of the data beside it, and any byte; in another process."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    (tmp_path / "x.onnx.data").write_bytes(graph.with_name("x.onnx.data").read_bytes())
    whole, rng = graph.read_bytes(), random.Random(11)

    def changed() -> bytes:
        if rng.random() < 0.3:
            return mutated(whole, rng)
        made = onnx.ModelProto.FromString(whole)
        tensor = made.graph.initializer[0]
        place = rng.choice(tensor.external_data)
        choice = rng.random()
        if choice < 0.6:
            place.value = rng.choice(NAMES if place.key == "location" else PLACES)
        elif choice < 0.8:
            tensor.dims[rng.randrange(2)] = rng.choice((0, 1, 47, 1 << 31, (1 << 63) - 1, -1))
        else:
            tensor.data_type = rng.randrange(30)
        return bytes(made.SerializeToString())

    def files() -> Iterator[tuple[Path, ...]]:
        for _ in range(500):
            (tmp_path / "x.onnx").write_bytes(changed())
            yield (tmp_path / "x.onnx",)

    said = list(opened(files(), LOADER))
    assert len(said) == 500
    assert not [one for one in said if one.startswith("died")]
    # Nothing but the file that is there was opened.
    assert {one for one in said if not one.startswith("refused")} <= {
        "loaded x.onnx.data",
        "loaded",
    }
    assert sum(one.startswith("refused") for one in said) > 250


LOADER = """
import sys
from pathlib import Path
import onnxruntime
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files.onnx_header import check
onnxruntime.set_default_logger_severity(4)
for line in sys.stdin:
    path = Path(line.rstrip("\\n"))
    try:
        said = " ".join(["loaded", *check(path).data])
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except InputError as error:
        said = "refused " + " ".join(str(error).split())
    except Exception as error:
        said = "refused by the engine"
    print(said, flush=True)
"""
