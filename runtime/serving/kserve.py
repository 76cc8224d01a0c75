"""Questions as tensors, for inference platforms: `/v2/models/NAME/infer`.

Source: the Open Inference Protocol v2 (kserve/open-inference-protocol,
`specification/protocol/inference_rest.md`): data is row-major, flat or nested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec

from tel_edge.runtime.serving.problems import INVALID, Failed

# The names of what goes in and out, with their types; -1 is any size.
INPUTS = (("question", "BYTES", [-1]), ("choices", "BYTES", [-1, -1]))
OUTPUTS = (("answer", "BYTES", [-1]), ("index", "INT64", [-1]), ("probabilities", "FP64", [-1, -1]))
PARAMETERS = ("k", "temperature", "seed", "exact", "timeout_ms")
# What clients say of a tensor beside its data, where it means what is done here anyway.
MEANT: Mapping[str, object] = {"binary_data": False, "content_type": "str"}


class Tensor(msgspec.Struct, forbid_unknown_fields=True):
    """One tensor."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class Given(Tensor, forbid_unknown_fields=True):
    """A tensor that comes in; its `parameters` may say nothing but what is meant anyway."""

    parameters: dict[str, Any] = {}


class Output(msgspec.Struct, forbid_unknown_fields=True):
    """The name of a tensor that is wanted."""

    name: str
    parameters: dict[str, Any] = {}


class Infer(msgspec.Struct, forbid_unknown_fields=True):
    """The body; `parameters` are fields of a question, the same for all."""

    inputs: list[Given]
    id: str | None = None
    parameters: dict[str, Any] = {}
    outputs: list[Output] = []


def questions(given: Infer) -> list[dict[str, Any]]:
    """Return the fields of each question; raise `Failed` for tensors that are none."""
    tensors = {tensor.name: tensor for tensor in given.inputs}
    names = {name for name, _, _ in INPUTS}
    if len(tensors) < len(given.inputs) or not {"question"} <= {*tensors} <= names:
        raise Failed(INVALID, f"inputs {', '.join(one.name for one in given.inputs)!r}: question "
                     "is needed, choices may be there")  # fmt: skip
    if other := [name for name in given.parameters if name not in PARAMETERS]:
        raise Failed(INVALID, f"parameters: {other[0]} is none of {' '.join(PARAMETERS)}")
    made = [name for name, _, _ in OUTPUTS]
    if other := [one.name for one in given.outputs if one.name not in made]:
        raise Failed(INVALID, f"outputs: {other[0]} is none of {' '.join(made)}")
    said = [(part.name, part.parameters) for part in given.inputs]
    for tensor, parameters in [*said, *((part.name, part.parameters) for part in given.outputs)]:
        for name, value in parameters.items():
            if name not in MEANT or value != MEANT[name]:
                raise Failed(INVALID, f"{tensor}: parameters: {name} {value!r}; data is JSON")
    asked = _texts(tensors["question"])
    rows: list[dict[str, Any]] = [{"question": text, **given.parameters} for text in asked]
    if choices := tensors.get("choices"):
        if len(choices.shape) != 2 or choices.shape[0] != len(asked):
            raise Failed(INVALID, f"choices: shape {choices.shape}, [{len(asked)}, N] is needed")
        flat, width = _texts(choices), choices.shape[1]
        for at, row in enumerate(rows):
            row["choices"] = flat[at * width : (at + 1) * width]
    return rows


def _texts(tensor: Tensor) -> list[str]:
    flat = tensor.data
    while flat and all(isinstance(one, list) for one in flat):
        flat = list(chain.from_iterable(flat))
    count = 1
    for size in tensor.shape:
        count *= size
    if tensor.datatype != "BYTES" or not all(isinstance(one, str) for one in flat):
        raise Failed(INVALID, f"{tensor.name}: texts are needed, datatype BYTES")
    if count != len(flat) or not tensor.shape or min(tensor.shape) < 1:
        raise Failed(INVALID, f"{tensor.name}: shape {tensor.shape} and {len(flat)} texts")
    return flat


def reply(
    given: Infer, model: str, version: str, answers: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the answers as tensors, those that are wanted; all have as many choices."""
    wanted = [one.name for one in given.outputs]
    widths = {len(one["probabilities"]) for one in answers}
    if len(widths) > 1:
        raise Failed(INVALID, "the questions have different numbers of labels; ask them apart")
    columns: dict[str, list[Any]] = {
        "answer": [one["answer"] for one in answers],
        "index": [one["index"] for one in answers],
        "probabilities": [value for one in answers for value in one["probabilities"]],
    }
    outputs = [
        {
            "name": name,
            "shape": [len(answers), *widths][: len(shape)],
            "datatype": kind,
            "data": columns[name],
        }
        for name, kind, shape in OUTPUTS
        if not wanted or name in wanted
    ]
    id = {} if given.id is None else {"id": given.id}
    return {"model_name": model, "model_version": version, **id, "outputs": outputs}


def described() -> dict[str, Any]:
    """Return the tensors of a model, as its metadata has them."""
    return {
        kind: [{"name": name, "datatype": of, "shape": shape} for name, of, shape in rows]
        for kind, rows in (("inputs", INPUTS), ("outputs", OUTPUTS))
    }
