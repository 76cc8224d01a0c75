"""From a PEFT folder to a LoRA GGUF file, checked to belong to the backbone.

The engine computes alpha / rank with the one alpha of the file and each tensor's own rank. What
PEFT scales otherwise (rsLoRA, alpha_pattern, rank_pattern) is folded into `lora_b`, so that every
tensor's effective scale is PEFT's. What cannot be folded is refused by name. Source: peft 0.21,
`LoraConfig` and `save_pretrained`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tel_edge.eval.folders import architectures
from tel_edge.eval.folders.architectures import Shape, Tensor
from tel_edge.eval.folders.files import json_object
from tel_edge.eval.folders.tensors import HALF_MOST, Stored, check, floats, listed
from tel_edge.export.sources import foreign, lora_fields, targets
from tel_edge.runtime.bundles.manifest import BackboneInfo
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import digest
from tel_edge.runtime.questions import prompt
from tel_edge.runtime.questions.categories import SPOKEN

if TYPE_CHECKING:
    pass

CONFIG, WEIGHTS, TRAINING = foreign.CONFIG, foreign.WEIGHTS, "training.json"
KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")

# Initialisations that subtract the adapter from the backbone, which then is another one.
CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
OUTER = ("embed_tokens", "lm_head")


@dataclass(frozen=True)
class LoraPair:
    """The two matrices of one projection, A [rank, in] and B [out, rank].

    `fold` is what B is multiplied by, so that the engine's alpha / rank gives PEFT's scale.
    """

    tensor: Tensor
    a: Stored
    b: Stored
    fold: float


@dataclass(frozen=True)
class PeftAdapter:
    """A checked PEFT folder. `bound` tells whether training.json ties it to the backbone.

    `category`, `split` and `dataset` are training.json's or None, `splits` pairs of category and
    split of one for several; `base` is the backbone's name that the folder gives, `source` the
    folder's digest. `notes` are what looks wrong and is exported all the same, a line each.
    `contaminated` is how many test questions of its categories it was trained on for another of
    them, None where nobody counted.
    """

    folder: Path
    pairs: tuple[LoraPair, ...]
    rank: int
    alpha: float
    base: str
    bound: bool
    category: str | None
    split: str | None
    splits: tuple[tuple[str, str], ...]
    source: str
    notes: tuple[str, ...] = ()
    contaminated: int | None = 0
    dataset: str | None = None

    @property
    def size(self) -> int:
        """Return the number of values."""
        return sum(pair.a.size + pair.b.size for pair in self.pairs)


def load(folder: Path, shape: Shape, info: BackboneInfo, half: bool) -> PeftAdapter:
    """Open a PEFT folder and check all of it against the backbone; `half` if it is to be F16.

    Raises `InputError` for an adapter made for another backbone or prompt, one that a LoRA file
    cannot hold, a tensor that does not fit, and values that are not finite or beyond F16.
    """
    config = json_object(folder / CONFIG)
    foreign.check_config(folder, config)
    training = json_object(folder / TRAINING) if (folder / TRAINING).is_file() else None
    if training is not None:
        _check_binding(folder, training, info)
    _check_config(folder / CONFIG, config)
    if not (folder / WEIGHTS).is_file():
        raise InputError(
            f"{folder}: no {WEIGHTS}; pickled adapters are never loaded, save it with safetensors"
        )
    pairs = _pairs(folder, config, shape)
    notes = _compared(folder, config, pairs, shape)
    if not max([_check_values(pair, half) for pair in pairs]):
        notes += ("every lora_B is zero: this adapter changes nothing",)
    known = training or {}
    return PeftAdapter(
        folder=folder,
        pairs=pairs,
        rank=int(config["r"]),
        alpha=float(config["lora_alpha"]),
        base=str(config.get("base_model_name_or_path")),
        bound=training is not None,
        category=known.get("category"),
        split=known.get("split"),
        splits=_splits(folder, known),
        source=digest.of_adapter(folder),
        notes=notes,
        contaminated=_contaminated(known),
        dataset=known.get("dataset"),
    )


def _contaminated(known: Mapping[str, Any]) -> int | None:
    if len(known.get("splits") or ()) < 2:
        return 0
    if merged := known.get("merged"):
        counts = merged.get("contaminated")
        return None if counts is None else sum(counts.values())
    return 0 if "shared" in (known.get("rows") or {}) else None


def _splits(folder: Path, known: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    splits = known.get("splits") or {}
    if not isinstance(splits, dict) or not all(isinstance(v, str) for v in splits.values()):
        raise InputError(f"{folder / TRAINING}: field 'splits' is damaged; train the adapter again")
    return tuple(splits.items())


def _check_binding(folder: Path, training: Mapping[str, Any], info: BackboneInfo) -> None:
    path = folder / TRAINING
    backbone = training.get("backbone")
    if not isinstance(backbone, dict) or not isinstance(backbone.get("weights"), str):
        raise InputError(f"{path}: field backbone.weights is missing; train the adapter again")
    spoken = training.get("category") in SPOKEN
    for field in ("category", "split", "template" if spoken else "prompt"):
        if not isinstance(training.get(field), str):
            raise InputError(f"{path}: field {field!r} is missing; train the adapter again")
    if backbone["weights"] != info.weights:
        raise InputError(
            f"{folder}: made for another backbone ({backbone.get('name')}) than {info.name}: the "
            "weights differ\npass that one with --backbone, or train the adapter again"
        )
    _check_tokenizer(folder, backbone, info)
    if spoken and training["template"] != info.template:
        raise InputError(
            f"{folder}: trained by another chat template than {info.name} has now; put the "
            "template of the training back (chat_template.jinja), or train the adapter again"
        )
    if not spoken and training["prompt"] != prompt.digest():
        raise InputError(
            f"{folder}: made for another prompt than this version's; train the adapter again"
        )


def _check_tokenizer(folder: Path, trained: Mapping[str, Any], info: BackboneInfo) -> None:
    """Refuse an adapter whose prompts were other tokens in training than they are now."""
    then = trained.get("tokenization")
    if then is not None and then != info.tokenization:
        raise InputError(
            f"{folder}: trained with another tokenizer than {info.name} has now: prompts become "
            "other tokens (see tokenizer.json and add_bos_token in tokenizer_config.json)\n"
            "put the files of the training back, or train the adapter again"
        )
    # Older records have the digest of the files alone, which is that of a chat template too.
    files = trained.get("tokenizer")
    if then is None and files is not None and files != info.tokenizer:
        raise InputError(
            f"{folder}: trained with other tokenizer files than {info.name} has now, and its "
            f"{TRAINING} is too old to tell whether prompts become the same tokens\n"
            "put the files of the training back (a new chat template can be in "
            "chat_template.jinja), or train the adapter again"
        )


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise InputError(f"{path}: peft_type {kind!r} cannot be exported; LORA can")
    lora_fields.check(path, config)
    if config.get("bias", "none") != "none":
        raise InputError(
            f"{path}: bias={config['bias']!r} cannot be exported: the engine has no place for "
            "biases; train with bias='none'"
        )
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(CHANGING):
        raise InputError(
            f"{path}: init_lora_weights={start!r} changes the backbone itself; convert the adapter "
            "to plain LoRA (peft: path_initial_model_for_weight_conversion), or train without it"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise InputError(f"{path}: r is {rank!r}, wanted a whole number above 0")
    # The engine takes an alpha of 0 for "no alpha", which is a scale of 1.
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < math.inf:
        raise InputError(f"{path}: lora_alpha is {alpha!r}, wanted a number above 0")
    for field in ("rank_pattern", "alpha_pattern"):
        values = (config.get(field) or {}).values()
        if not all(isinstance(value, (int, float)) for value in values):
            raise InputError(f"{path}: {field} holds something that is no number")


def _pairs(folder: Path, config: Mapping[str, Any], shape: Shape) -> tuple[LoraPair, ...]:
    found: dict[tuple[str, str], Stored] = {}
    path = folder / WEIGHTS
    for name, stored in listed(path).items():
        match = KEY.fullmatch(name)
        reason = foreign.why(name)
        if reason or not match or match[1].split(".")[-1] in OUTER:
            reason = reason or _strange(name)
            raise InputError(f"{path}: tensor {name} cannot be exported: {reason}")
        found[match[1], match[2]] = stored
    made = []
    for tensor in architectures.projections(shape):
        module = tensor.source.removesuffix(".weight")
        a, b = found.pop((module, "A"), None), found.pop((module, "B"), None)
        if a and b:
            _check_fit(tensor, a, b, int(_pattern(config, "rank_pattern", module, "r")))
            made.append(LoraPair(tensor, a, b, _fold(config, module)))
        elif a or b:
            raise InputError(f"{path}: {module} has only one of lora_A and lora_B")
    if found:
        module = next(iter(found))[0]
        raise InputError(
            f"{path}: module {module} cannot be exported: the backbone, "
            f"{shape.architecture.model_type} with {shape.layers} layers, has none of that name"
        )
    if not made:
        raise InputError(f"{path}: no LoRA tensors; train the adapter again")
    return tuple(made)


def _strange(name: str) -> str:
    if "lora_magnitude" in name:
        return "DoRA rescales the backbone's own rows"
    if "lora_embedding" in name or any(part in name.split(".") for part in OUTER):
        return "the embedding or the head was trained; train the projections only"
    return "it is no lora_A or lora_B of a projection"


def _check_fit(tensor: Tensor, a: Stored, b: Stored, rank: int) -> None:
    for stored, wanted in ((a, (rank, tensor.shape[1])), (b, (tensor.shape[0], rank))):
        if stored.shape != wanted:
            raise InputError(
                f"{stored.file}: tensor {stored.name} is {list(stored.shape)}, the backbone and "
                f"the adapter's rank make it {list(wanted)}"
            )


def _compared(
    folder: Path, config: Mapping[str, Any], pairs: tuple[LoraPair, ...], shape: Shape
) -> tuple[str, ...]:
    """Return what is to be said where the tensors are not those of the modules that PEFT wraps.

    Raises `InputError` where PEFT would leave a tensor unread, or compute with a random one.
    """
    linear = [tensor.source.removesuffix(".weight") for tensor in architectures.projections(shape)]
    try:
        wrapped = targets.wrapped(config, linear, shape.architecture.targets)
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from None
    there = {pair.tensor.source.removesuffix(".weight") for pair in pairs}
    if unread := [module for module in linear if module in there and module not in wrapped]:
        raise InputError(
            f"{folder / WEIGHTS}: {unread[0]} has tensors, which PEFT ignores, since the target "
            f"modules of {CONFIG} leave it out ({len(unread)} such modules)\n"
            "name them there, or remove their tensors"
        )
    lost = [module for module in wrapped if module not in there]
    if not lost:
        return ()
    what = f"{len(lost)} of {len(wrapped)} target modules have no tensors, the first {lost[0]}"
    if config.get("init_lora_weights", True) in targets.RANDOM:
        raise InputError(
            f"{folder / WEIGHTS}: {what}; with this init_lora_weights PEFT fills them at random"
        )
    return (f"{what}; PEFT takes them for untrained, and so does the file",)


def _pattern(config: Mapping[str, Any], field: str, module: str, default: str) -> float:
    """Return what `field` gives for the module as PEFT matches it, or the default's value."""
    for key, value in (config.get(field) or {}).items():
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                return float(value)
        except re.error:
            raise InputError(f"{field}: {key!r} is no regular expression") from None
    return float(config[default])


def _fold(config: Mapping[str, Any], module: str) -> float:
    rank = _pattern(config, "rank_pattern", module, "r")
    alpha = _pattern(config, "alpha_pattern", module, "lora_alpha")
    wanted = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return wanted / (float(config["lora_alpha"]) / rank)


def _check_values(pair: LoraPair, half: bool) -> float:
    """Return B's largest magnitude; raise `InputError` for values that cannot be written."""
    check(pair.a, half, "--adapter-quant F32")
    check(pair.b, half, "--adapter-quant F32")
    top = max(float(abs(part).max()) for part in floats(pair.b))
    if half and top * abs(pair.fold) > HALF_MOST:
        raise InputError(
            f"{pair.b.file}: tensor {pair.b.name} goes beyond {HALF_MOST:.0f}, the largest of "
            "F16, when its scale is folded in; export with --adapter-quant F32"
        )
    return top


@dataclass(frozen=True)
class AdapterExport:
    """One adapter to be exported for one category."""

    category: str
    adapter: PeftAdapter

    def known(self, info: BackboneInfo) -> dict[str, Any]:
        """Return what the manifest says of the adapter's file in any format."""
        return {
            "kind": "adapter",
            "category": self.category,
            "source": self.adapter.source,
            "backbone": info.weights,
            "split": self.adapter.split,
            "rank": self.adapter.rank,
            "dataset": self.adapter.dataset,
            "template": info.template if self.category in SPOKEN else None,
        }
