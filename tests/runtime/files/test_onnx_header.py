"""The check of an ONNX model: good files pass, damaged or hostile ones are refused at once."""

from __future__ import annotations

import dataclasses
import random
import time
from pathlib import Path

import pytest
from for_onnx_header import entry, external, message, model, tensor, varint

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files.onnx_header import BITS, OnnxHeader, check


def value_info(name: str, *dims: int | str | None) -> bytes:
    parts = [message(*([] if d is None else [(1 if isinstance(d, int) else 2, d)])) for d in dims]
    shape = message(*((1, part) for part in parts))
    return message((1, name), (2, message((1, message((1, 1), (2, shape))))))


def checked(content: bytes, folder: Path) -> OnnxHeader:
    path = folder / "x.onnx"
    path.write_bytes(content)
    return check(path)


GOOD = (
    model(
        (1, message((1, "ids"), (2, "out"), (4, "Identity"))),
        (5, tensor(3, 5, location="x.onnx.data", offset=4, length=60)),
        (5, tensor(4, 2, name="m.lora_A", kind=10)),
        (11, value_info("ids", "batch", 7, None, -1)),
        (11, value_info("m.lora_A", 4, "r")),
        (11, message((1, "bare"))),
        (12, value_info("out", 1)),
    )
    + message((14, entry("made by", "naïve")))
    + message((8, message((1, "com.microsoft"), (2, 1))))
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "x.onnx.data").write_bytes(bytes(64))
    return tmp_path


def test_a_good_file_passes(folder: Path) -> None:
    header = checked(GOOD, folder)
    assert header == OnnxHeader(
        inputs={"ids": ("batch", 7, None, None), "m.lora_A": (4, "r"), "bare": ()},
        outputs=("out",),
        defaults=frozenset({"m.lora_A"}),
        metadata={"made by": "naïve"},
        opsets={"": 21, "com.microsoft": 1},
        data=("x.onnx.data",),
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        header.data = ()  # type: ignore[misc]


def test_dims_may_be_packed_and_data_without_a_length_is_measured(folder: Path) -> None:
    entries = (13, entry("location", "x.onnx.data")), (14, 1)
    packed = message((1, varint(2) + varint(8)), (2, 1), *entries)
    assert checked(model((5, packed)), folder).data == ("x.onnx.data",)
    (folder / "x.onnx.data").write_bytes(bytes(63))
    with pytest.raises(InputError, match="63 bytes, the model asks for 64"):
        checked(model((5, packed)), folder)


def test_every_type_has_the_size_onnx_gives_it(folder: Path) -> None:
    onnx = pytest.importorskip("onnx")
    for kind, bits in BITS.items():
        # Below a byte, numpy keeps one value a byte, so the names tell.
        narrow = {21: 4, 22: 4, 23: 4, 25: 2, 26: 2}
        width = onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize * 8
        assert bits == narrow.get(kind, width), kind
        size = (3 * bits + 7) // 8
        made = model((5, tensor(3, kind=kind, location="x.onnx.data", length=size)))
        assert checked(made, folder).data
        wrong = model((5, tensor(3, kind=kind, location="x.onnx.data", length=size + 1)))
        with pytest.raises(InputError, match="its dims make"):
            checked(wrong, folder)


def in_a_node(made: bytes, field: int = 5) -> tuple[int, bytes]:
    attribute = message((1, "value"), (20, 4), (field, made))
    return 1, message((2, "c"), (4, "Constant"), (5, attribute))


def deep(made: bytes, levels: int) -> bytes:
    for _ in range(levels):
        made = message(in_a_node(made, 6))
    return made


OUT = external(location="../x.onnx.data")
BAD_GRAPHS: dict[str, tuple[bytes, str]] = {
    "absolute": (external(location="/etc/passwd"), "'/etc/passwd', a file name is allowed"),
    "above": (OUT, "a file name is allowed"),
    "below": (external(location="a/x.onnx.data"), "a file name is allowed"),
    "backslash": (external(location="..\\x"), "a file name is allowed"),
    "drive": (external(location="c:x"), "a file name is allowed"),
    "parent": (external(location=".."), "a file name is allowed"),
    "itself": (external(location="."), "a file name is allowed"),
    "zero byte": (external(location="x.onnx.data\0y"), "a file name is allowed"),
    "memory": (external(location="*/_ORT_MEM_ADDR_/*"), "a file name is allowed"),
    "empty": (external(location=""), "a file name is allowed"),
    "no location": (tensor(2, offset=0), "a file name is allowed"),
    "only marked": (message((1, 2), (2, 1), (14, 1)), "a file name is allowed"),
    "missing": (external(location="y.data"), "y.data: is missing, x.onnx needs it"),
    "folder": (external(location="folder"), "folder: is no file"),
    "long name": (external(location="y" * 5_000), "name too long"),
    "size": (tensor(5, 5, location="x.onnx.data"), "64 bytes, the model asks for 100; copy or"),
    "offset": (external(offset=49), "64 bytes, the model asks for 65; copy or export it again"),
    "huge offset": (external(offset=10**19 - 1), "the model asks for"),
    "longer offset": (external(offset=10**19), "external data with offset"),
    "negative offset": (external(offset=-1), "external data with offset '-1'"),
    "spaced offset": (external(offset=" 1"), "external data with offset ' 1'"),
    "other digits": (external(offset="\u0661"), "external data with offset"),
    "no length": (external(length=""), "external data with length ''"),
    "length": (external(length=12), "12 bytes of external data, its dims make 16"),
    "zero length": (external(length=0), "0 bytes of external data, its dims make 16"),
    "negative dims": (tensor(-1, location="x.onnx.data"), "negative dims [-1]"),
    "many dims": (tensor(*[1] * 33), "more than 32 dimensions"),
    "many packed dims": (message((1, b"\1" * 40)), "more than 32 dimensions"),
    "product": (tensor(*[1 << 62] * 32, location="x.onnx.data"), "the model asks for"),
    "strings": (tensor(2, kind=8, location="x.onnx.data"), "external data of type number 8"),
    "type": (tensor(2, kind=99, location="x.onnx.data"), "external data of type number 99"),
    "hidden type": (tensor(2, kind=1 << 32 | 11, location="x.onnx.data", length=8), "make 16"),
    "prepacked": (external(prepacked_0="w|0|8"), "key 'prepacked_0' twice or unknown"),
    "twice": (external() + message((13, entry("location", "y"))), "key 'location' twice"),
    "key is a number": (message((13, message((1, 5)))), "wire type 0 of field 1"),
    "name is a number": (message((8, 5)), "wire type 0 of field 8"),
    "not UTF-8": (message((8, b"\xff")), "no UTF-8"),
}
HIDDEN: dict[str, tuple[bytes, str]] = {
    "sparse": (model((15, message((1, OUT)))), "a file name is allowed"),
    "attribute": (model(in_a_node(OUT)), "a file name is allowed"),
    "attribute's list": (model(in_a_node(OUT, 10)), "a file name is allowed"),
    "attribute's sparse": (model(in_a_node(message((2, OUT)), 22)), "a file name is allowed"),
    "attribute's graph": (model(in_a_node(message((5, OUT)), 6)), "a file name is allowed"),
    "graph in a graph": (
        message((1, 10), (7, deep(message((5, OUT)), 3))), "a file name is allowed"
    ),
    "attribute twice": (
        model((1, message((5, message((5, external()), (5, external())))))), "field 5 twice"
    ),
    "function": (
        model() + message((25, message((11, message((5, OUT)))))), "a file name is allowed"
    ),
    "function's node": (
        model() + message((25, message((7, in_a_node(OUT)[1])))), "a file name is allowed"
    ),
    "training": (
        model() + message((20, message((1, message((5, OUT)))))), "a file name is allowed"
    ),
    "too deep": (model() + message((20, message((1, deep(OUT, 400))))), "nested deeper than 32"),
}  # fmt: skip
HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no ONNX model, 0 bytes"),
    "short": (b"\x08\x0a", "no ONNX model, 2 bytes"),
    "text": (b"hello, this is no model", "no ONNX model"),
    "zeros": (bytes(64), "no ONNX model: field 0"),
    "no graph": (message((1, 10), (2, "writer")), "no ONNX model (no graph)"),
    "no version": (message((7, b"")) + bytes([0x2A, 0]), "no ONNX model (no ir_version)"),
    "two graphs": (model() + message((7, b"")), "a second graph"),
    "graph is a number": (message((1, 10), (7, 10)), "wire type 0 of field 7"),
    "version is text": (message((1, "10"), (7, b"")), "wire type 2 of field 1"),
    "long number": (model() + b"\x28" + b"\xff" * 10 + b"\x01", "a number of more than 10 bytes"),
    "endless number": (model() + b"\x28\xff", "has no end"),
    "group": (model() + b"\x2b\x2c", "wire type 3"),
    "end of a group": (model() + b"\x2c", "wire type 4"),
    "wire type": (model() + b"\x2f", "wire type 7"),
    "field 0": (model() + b"\x00\x00", "field 0"),
    "field beyond": (model() + varint(1 << 32) + b"\x00", "field 536870912"),
    "length": (model() + b"\x12\x05abcd", "leads beyond"),
    "huge length": (model() + b"\x12" + varint(-1), "leads beyond"),
    "beyond the graph": (message((1, 10), (7, b"\x12\x05ab"), (2, "abcd")), "leads beyond"),
    "fixed": (model() + b"\x29\0\0\0", "leads beyond"),
    "input twice": (model((11, value_info("a")), (11, value_info("a"))), "input 'a' twice"),
    "metadata twice": (model() + 2 * message((14, entry("k", "v"))), "metadata 'k' twice"),
    "opset twice": (model() + message((8, b"")), "opset '' twice"),
    **{f"tensor: {name}": (model((5, made)), why) for name, (made, why) in BAD_GRAPHS.items()},
    **{f"hidden: {name}": made for name, made in HIDDEN.items()},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_is_refused_at_once(name: str, folder: Path) -> None:
    content, reason = HOSTILE[name]
    (folder / "folder").mkdir()
    began = time.process_time()
    with pytest.raises(InputError, match=r"x\.onnx|y\.data|folder|yyy") as caught:
        checked(content, folder)
    # The system's own words for a name that is too long begin with a capital letter.
    assert reason in str(caught.value) or reason in str(caught.value).lower()
    assert len(str(caught.value)) < 6_000
    assert time.process_time() - began < 0.5


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.onnx: No such file"):
        check(tmp_path / "none.onnx")
    with pytest.raises(InputError, match="is no file"):
        check(tmp_path)


def test_a_file_of_more_than_two_gigabytes_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "x.onnx").open("wb") as stream:
        stream.truncate(1 << 31)
    with pytest.raises(InputError, match="no ONNX model, 2,147,483,648 bytes"):
        check(tmp_path / "x.onnx")


def test_links_must_stay_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    made = model((5, external()))
    data = folder / "x.onnx.data"
    (tmp_path / "outside").write_bytes(bytes(64))
    (folder / "inside").write_bytes(bytes(64))
    data.symlink_to("inside")
    assert checked(made, folder).data == ("x.onnx.data",)
    # The folder itself may be reached through a link.
    (tmp_path / "link").symlink_to(folder)
    assert check(tmp_path / "link" / "x.onnx").data == ("x.onnx.data",)
    data.unlink()
    data.symlink_to("../outside")
    with pytest.raises(InputError, match="leads out of the model's folder"):
        checked(made, folder)
    data.unlink()
    data.symlink_to("x.onnx.data")
    with pytest.raises(InputError, match=r"x\.onnx\.data: "):
        checked(made, folder)


def test_a_cut_file_is_refused_wherever_it_is_cut(folder: Path) -> None:
    # A cut between two fields of the model leaves a model, so one is cut that ends with its graph.
    made = message((1, 10), (7, message((5, external()), (11, value_info("ids", 1, "n")))))
    assert checked(made, folder)
    for size in range(len(made)):
        with pytest.raises(InputError, match=r"x\.onnx: .*; export it again: tel-export"):
            checked(made[:size], folder)


def fuzzed(content: bytes, folder: Path, turns: int) -> int:
    """Change or cut the content at random places; return how many times it was refused."""
    rng, refused = random.Random(7), 0
    for turn in range(turns):
        changed = bytearray(content)
        at = rng.randrange(len(content))
        if turn % 3:
            changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, changed[at] ^ 1 << rng.randrange(8)))
        else:
            del changed[at : len(content) if turn % 2 else at + rng.randint(1, 8)]
        try:
            checked(bytes(changed), folder)
        except InputError:
            refused += 1
    return refused


def test_changed_bytes_are_refused_or_harmless(folder: Path) -> None:
    hidden = [message((7, in_a_node(external())[1]), (11, message((5, external()))))]
    content = GOOD + message(*((25, made) for made in hidden))
    assert checked(content, folder)
    began = time.process_time()
    assert fuzzed(content, folder, 300) > 100
    assert time.process_time() - began < 3


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the reference writer, about as large as a backbone: 3,000 nodes, 600 tensors."""
    onnx = pytest.importorskip("onnx")
    np = pytest.importorskip("numpy")
    from onnx import TensorProto, helper, numpy_helper

    nodes, tensors = [], []
    value = "ids"
    inputs = [helper.make_tensor_value_info("ids", TensorProto.FLOAT, ["batch", 8])]
    for turn in range(3_000):
        name = f"/model/layers.{turn // 100}/mlp/down_proj/Add_{turn}_output_0"
        attributes = {"axis": 1, "scale": 0.5, "mode": "mode"}
        nodes.append(
            helper.make_node("Odd", [value, f"weight.{turn % 600}"], [name], name, **attributes)
        )
        value = name
    for turn in range(600):
        tensors.append(numpy_helper.from_array(np.ones((8, 8), np.float32), f"weight.{turn}"))
    constant = numpy_helper.from_array(np.ones((16, 16), np.float32), "constant")
    nodes.append(helper.make_node("Constant", [], ["constant"], value=constant))
    tensors.append(numpy_helper.from_array(np.zeros((8, 0), np.float32), "m.lora_A"))
    inputs.append(helper.make_tensor_value_info("m.lora_A", TensorProto.FLOAT, [8, "r"]))
    outputs = [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", 8])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    helper.set_model_props(made, {"tel_edge.backbone.weights": "ab" * 32})
    path = tmp_path_factory.mktemp("onnx") / "x.onnx"
    onnx.save_model(
        made, path, save_as_external_data=True, location="x.onnx.data", size_threshold=0,
        convert_attribute=True,
    )  # fmt: skip
    return path


def test_a_model_of_the_reference_writer_passes(written: Path) -> None:
    header = check(written)
    assert header.inputs == {"ids": ("batch", 8), "m.lora_A": (8, "r")}
    assert header.outputs == ("/model/layers.29/mlp/down_proj/Add_2999_output_0",)
    assert header.defaults == {"m.lora_A"}
    assert header.metadata == {"tel_edge.backbone.weights": "ab" * 32}
    assert header.opsets == {"": 21}
    assert header.data == ("x.onnx.data",)


def test_the_check_of_a_backbone_takes_no_time(written: Path) -> None:
    def measured() -> float:
        began = time.process_time()
        check(written)
        return time.process_time() - began

    # About 20 ms; the rest is for slower machines than that.
    assert min(measured() for _ in range(5)) < 0.2


def test_the_constant_of_a_node_is_checked(written: Path, tmp_path: Path) -> None:
    content = written.read_bytes()
    data = written.with_name("x.onnx.data").read_bytes()
    # The writer puts the constant behind the tensors, so its end is the end of the file.
    (tmp_path / "x.onnx.data").write_bytes(data[:-1])
    with pytest.raises(InputError, match="the model asks for"):
        checked(content, tmp_path)


def test_what_onnxruntime_loads_passes(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    np = pytest.importorskip("numpy")
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "w"], ["b"])],
        "g",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.ones((4, 3), np.float32), "w")],
    )
    made = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    path = tmp_path / "x.onnx"
    onnx.save_model(
        made, path, save_as_external_data=True, location="x.onnx.data", size_threshold=0
    )
    assert check(path).data == ("x.onnx.data",)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"a": np.ones((2, 4), np.float32)})
    assert result.tolist() == [[4.0] * 3] * 2
