"""Bodies of the service's own paths, what is asked and what is answered: one Struct each.

`openapi` describes them as they stand here. Replies that come from the engine's process as they are
have no code that makes them from these; a test reads real ones back.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from tel_edge.runtime.serving.kserve import Tensor

# A media type: a JSON value a line.
NDJSON = "application/x-ndjson"
# Where the document that `openapi` makes keeps a Struct.
PLACE = "#/components/schemas/{name}"


class Question(msgspec.Struct, forbid_unknown_fields=True):
    """One question of `/v1/answer`; a field that is not here is refused by name."""

    question: str
    choices: list[str] | None = None
    labels: list[str] | None = None
    category: str | None = None
    id: str | int | None = None
    model: str | None = None
    k: int | None = None
    temperature: float | None = None
    seed: int | None = None
    exact: bool = False
    timeout_ms: int | None = None


class Questions(msgspec.Struct, forbid_unknown_fields=True):
    """Several of them."""

    questions: list[Question]


class Answer(msgspec.Struct):
    """An answer: `probabilities` in the order of the choices, `index` the likeliest one.

    `mass` is the probability of all choices together, `packed` the questions of its decode.
    `category` and `route_probability` are the router's, where it chose.
    """

    id: str | int
    answer: str
    index: int
    probabilities: list[float]
    mass: float
    votes: list[int]
    majority: int
    adapter: str | None
    adapter_digest: str | None
    bundle: str
    tokens: int
    decoded: int
    packed: int
    queue_ms: float
    engine_ms: float
    category: str | UnsetType | None = UNSET
    route_probability: float | UnsetType = UNSET


class Problem(msgspec.Struct):
    """Why there is no answer, in the form of OpenAI's API."""

    message: str
    type: str
    code: str
    status: int


class Failure(msgspec.Struct):
    """The body of an error."""

    error: Problem


class Unanswered(msgspec.Struct):
    """One of several questions that has no answer; `id` is its own, if it has one."""

    error: Problem
    id: str | int | UnsetType = UNSET


EITHER = [{"$ref": PLACE.format(name=kind.__name__)} for kind in (Answer, Unanswered)]


class Answers(msgspec.Struct):
    """Answers to several questions, in their order, each with its own error."""

    # msgspec knows no union of Structs without tags.
    answers: Annotated[list[Any], msgspec.Meta(extra_json_schema={"items": {"anyOf": EITHER}})]


class Model(msgspec.Struct):
    """What may be asked for; `labels` are the answers that its questions always have."""

    id: str
    object: Literal["model"]
    owned_by: str
    adapter_digest: str | UnsetType = UNSET
    labels: list[str] | UnsetType = UNSET


class Models(msgspec.Struct):
    """All of them, in OpenAI's form, and the digest of the bundle that answers."""

    object: Literal["list"]
    data: list[Model]
    bundle: str


class Logprobs(msgspec.Struct):
    """Natural logarithms of tokens' probabilities; null for what nothing comes before."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Text(msgspec.Struct):
    """What one prompt was completed with."""

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: str


class Usage(msgspec.Struct):
    """Tokens of all prompts and completions together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completed(msgspec.Struct):
    """The reply of `/v1/completions`; `system_fingerprint` is the bundle's digest."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Text]
    usage: Usage


class Message(msgspec.Struct):
    """What a conversation is answered with."""

    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(msgspec.Struct):
    """The one answer to a conversation."""

    index: int
    message: Message
    logprobs: None
    finish_reason: str


class Chatted(msgspec.Struct):
    """The reply of `/v1/chat/completions`; `probabilities` are by choice, where there were some.

    With `--guard` `masked` names what was hidden from the model, `refused` why it was not asked.
    """

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
    probabilities: dict[str, float] | UnsetType = UNSET
    adapter: str | UnsetType = UNSET
    adapter_digest: str | UnsetType = UNSET
    queue_ms: float | UnsetType = UNSET
    engine_ms: float | UnsetType = UNSET
    masked: list[str] | UnsetType = UNSET
    refused: str | UnsetType = UNSET


class Tokenized(msgspec.Struct):
    """The ids of a text."""

    tokens: list[int]
    count: int
    max_model_len: int


class Detokenized(msgspec.Struct):
    """The text of ids."""

    prompt: str


class Tokenizer(msgspec.Struct):
    """The tokens that end a text and stand before one, if one does, and how many there are."""

    eos_token: str
    eos_token_id: int
    vocabulary: int
    bos_token: str | None


class Live(msgspec.Struct):
    """That the front works."""

    status: Literal["alive"]
    live: bool


State = Literal["ready", "starting", "draining"]


class Ready(msgspec.Struct):
    """Whether questions are answered now."""

    status: State
    ready: bool


class Described(msgspec.Struct):
    """A tensor of a model; -1 is any size."""

    name: str
    datatype: str
    shape: list[int]


class Served(msgspec.Struct):
    """A model in the form of KServe's protocol."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[Described]
    outputs: list[Described]


class Inferred(msgspec.Struct):
    """The reply of `/v2/models/NAME/infer`."""

    model_name: str
    model_version: str
    outputs: list[Tensor]
    id: str | UnsetType = UNSET


class Missing(msgspec.Struct):
    """A model that is not there, in the form of KServe's protocol."""

    error: str


class Bundle(msgspec.Struct):
    """What answers: digests are SHA-256, `context` is in tokens, `file` the backbone's.

    `auto` says whether a question may leave its category out.
    """

    digest: str
    backbone: str
    file: str
    engine: str
    context: int
    auto: bool
    adapters: dict[str, str]


class Load(msgspec.Struct):
    """What waits and runs now. `tokens_per_second` is a running mean, and a guess at first."""

    waiting: int
    waiting_tokens: int
    flows: int
    running_tokens: int
    tokens_per_second: float


class Status(msgspec.Struct):
    """The service in figures; `bundle` and `load` are null while no engine runs.

    `answered`, `refused` (too much waited) and `restarts` (of the engine) count from the start.
    """

    status: State
    version: str
    bundle: Bundle | None
    load: Load | None
    answered: int
    refused: int
    restarts: int
