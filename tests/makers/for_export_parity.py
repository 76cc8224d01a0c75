"""What the tests of export parity share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tel_edge.runtime.bundles.bundle import loose_adapters
from tel_edge.runtime.bundles.manifest import read
from tel_edge.runtime.engines.engine import EngineSettings, Item
from tel_edge.runtime.engines.with_llama import LlamaEngine

PROMPTS = (
    "Answer with one letter.\nWhich interface joins the SMO and the non-RT RIC?\nA) a\nAnswer:",
    "The near-RT RIC hosts xApps. " * 12 + "\nAnswer:",
)
MOST = 5e-3


def engine(bundle: Path, quant: str) -> LlamaEngine:
    made = read(bundle)
    paths = {f.category: bundle / f.path for f in made.files if f.kind == "adapter" and f.category}
    backbone = made.find("backbone", quant)
    assert backbone
    path = bundle / backbone.path
    return LlamaEngine(path, loose_adapters(path, paths), EngineSettings(threads=1, context=256))


def expected(base: Path, adapter: Path | None) -> Iterator[Any]:
    """Yield (ids, log-probabilities of all tokens) of each prompt, in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    tok = AutoTokenizer.from_pretrained(base)
    for text in PROMPTS:
        ids = tok(text)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        yield ids, torch.log_softmax(logits, -1)


def farthest(made: LlamaEngine, base: Path, adapter: Path | None, name: str | None) -> float:
    worst = 0.0
    for text, (ids, wanted) in zip(PROMPTS, expected(base, adapter), strict=True):
        assert made.tokenize(text) == ids
        labels = range(40, 90)
        [(_, got)] = made.score([Item(ids, tuple((at,) for at in labels))], name)
        pairs = zip(got.logprobs, labels, strict=True)
        worst = max(worst, *(abs(value - float(wanted[at])) for value, at in pairs))
    return worst
