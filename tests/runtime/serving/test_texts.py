"""Plain prompts: what a public harness gets is what the engine computes."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

for name in ("onnx", "onnxscript", "onnxruntime", "tokenizers", "msgspec"):
    pytest.importorskip(name)
import for_onnx_engine  # noqa: E402
import msgspec  # noqa: E402
from for_engine import PROMPTS  # noqa: E402

from tel_edge.runtime.answerer import Answerer  # noqa: E402
from tel_edge.runtime.engines.likelihood import likelihoods  # noqa: E402
from tel_edge.runtime.errors import InputError  # noqa: E402
from tel_edge.runtime.questions import writing  # noqa: E402
from tel_edge.runtime.serving import texts  # noqa: E402
from tel_edge.runtime.serving.pages import bodies  # noqa: E402
from tel_edge.runtime.serving.worker import Worker  # noqa: E402

folder = for_onnx_engine.folder
new = for_onnx_engine.new
engine = for_onnx_engine.engine

USUAL = {"max_tokens": 1, "temperature": 0, "seed": 1, "logprobs": True, "echo": True}


def made(engine: Any, adapter: str | None = None, **of: Any) -> dict[str, Any]:
    """Return the reply of a worker to one completion."""
    sent: list[dict[str, Any]] = []
    worker = Worker(Answerer(engine, adapters=("oranbench",)), "base", sent.append)
    worker.take({"op": "complete", "id": "1", "model": adapter, **USUAL, **of})
    worker.take({"op": "drain"})
    worker.run()
    [one] = sent
    if "error" in one:
        raise InputError(one["error"]["message"])
    reply: dict[str, Any] = one["reply"]
    return reply


def test_what_a_harness_sums_is_the_likelihood_of_the_continuation(engine: Any) -> None:
    """As lm-evaluation-harness reads it: `token_logprobs[ctxlen:-1]`, greedy by equal floats."""
    context, whole = engine.tokenize(PROMPTS[0]), engine.tokenize(PROMPTS[0] + " A B")
    found = made(engine, prompt=whole)["logprobs"]
    steps = likelihoods(engine, whole, None)
    start = len(context)
    values = found["token_logprobs"][start:-1]
    assert values == [step.logprob for step in steps[start - 1 : -1]]
    greedy = [
        value == max(top.values())
        for value, top in zip(values, found["top_logprobs"][start:-1], strict=True)
    ]
    assert greedy == [step.token == step.best for step in steps[start - 1 : -1]]
    assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
    assert len(found["tokens"]) == len(found["text_offset"]) == len(whole) + 1
    # The generated one is the likeliest.
    assert found["token_logprobs"][-1] == max(found["top_logprobs"][-1].values())


def test_ids_are_taken_as_they_are(engine: Any) -> None:
    ids = engine.tokenize(PROMPTS[0])
    assert made(engine, prompt=ids[3:])["prompt_tokens"] == len(ids) - 3
    assert made(engine, prompt=PROMPTS[0])["prompt_tokens"] == len(ids)


def test_without_echo_only_what_is_generated_is_there(engine: Any) -> None:
    ids = engine.tokenize(PROMPTS[0])
    one = made(engine, prompt=ids, echo=False)["logprobs"]
    assert len(one["tokens"]) == len(one["token_logprobs"]) == 1
    none = made(engine, prompt=ids, max_tokens=0)
    assert len(none["logprobs"]["tokens"]) == len(ids)
    text = made(engine, prompt=ids, max_tokens=4, logprobs=False, echo=False)
    assert text["text"]
    assert "logprobs" not in text
    both = made(engine, prompt=ids, max_tokens=4, logprobs=False)
    assert both["text"] == engine.text(ids) + text["text"]


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ({"prompt": []}, "no tokens"),
        ({"prompt": [10**7]}, "token 10000000"),
        ({"prompt": "x", "max_tokens": 2}, "max_tokens 2 with logprobs"),
    ],
)
def test_what_is_no_prompt(engine: Any, of: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        made(engine, **of)


def test_tokens_and_texts(engine: Any) -> None:
    ids = writing.tokenized(engine, "A text.", False)
    assert texts.detokenized(engine, ids) == "A text."
    assert texts.bordered(engine, "A text.", True) == engine.tokenize("A text.")
    token, name = engine.end()
    assert engine.ends(token)
    assert texts.bordered(engine, f"A text.{name}", False) == [*ids, token]
    # What a harness does that takes no BOS of its own: it puts the name before its prompts.
    whole = texts.bordered(engine, f"{texts.first(engine)}A text.", False)
    assert whole == engine.tokenize("A text.") != ids


def test_questions_and_prompts_in_one_worker(engine: Any) -> None:
    sent: list[dict[str, Any]] = []
    answerer = Answerer(engine, adapters=("oranbench", "teleqna"))
    worker = Worker(answerer, "base", sent.append)
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    ids = engine.tokenize(PROMPTS[0])
    row = {"question": "Which?", "choices": ["x", "y"]}
    worker.take({"op": "ask", "id": 1, "row": row, "model": "oranbench"})
    worker.take({"op": "complete", "id": 2, "prompt": ids, "model": "oranbench", **USUAL})
    worker.take({"op": "complete", "id": 3, "prompt": ids, "model": "base", **USUAL})
    worker.take({"op": "complete", "id": 4, "prompt": [10**7], **USUAL})
    worker.take({"op": "complete", "id": 5, "prompt": ids * 99, **USUAL})
    worker.take({"op": "tokenizer", "id": 6})
    until = time.monotonic() + 20
    while len(sent) < 6 and time.monotonic() < until:
        time.sleep(0.01)
    worker.stop()
    thread.join(5)
    found = {str(one["id"]): one for one in sent}
    assert found["1"]["reply"]["adapter"] == "oranbench"
    with_adapter, bare = (found[id]["reply"]["logprobs"]["token_logprobs"][1:] for id in "23")
    assert with_adapter == [step.logprob for step in likelihoods(engine, ids, "oranbench")]
    assert bare == [step.logprob for step in likelihoods(engine, ids, None)]
    assert found["4"]["error"]["code"] == "invalid_request"
    assert found["5"]["error"]["code"] == "context_length_exceeded"
    assert found["6"]["reply"]["eos_token"]
    # As it is described.
    for made, kind in (
        (found["2"]["reply"]["logprobs"], bodies.Logprobs),
        (found["6"]["reply"], bodies.Tokenizer),
        ({"prompt": texts.detokenized(engine, ids)}, bodies.Detokenized),
    ):
        assert msgspec.to_builtins(msgspec.convert(made, kind)) == made
