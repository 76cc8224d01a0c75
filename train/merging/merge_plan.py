"""What is to be merged and how: the methods, the adapters read and checked, the questions."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.benchmarks.split import Split, apart, key, split, without
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import digest
from tel_edge.runtime.questions import prompt
from tel_edge.runtime.questions.categories import CATEGORIES, category
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.workspace import Workspace
from tel_edge.train.job import RECORD, WEIGHTS

CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Method:
    """A way of merging: what it makes of the factors A and B of each projection.

    `same_rank` where all adapters need one rank, `prunes` where it takes a density, `random` where
    chance decides what is pruned.
    """

    name: str
    does: str
    same_rank: bool = True
    prunes: bool = False
    random: bool = False


# Source: peft 0.21, `LoraModel.add_weighted_adapter`. Each adapter's weight times its scale
# alpha / rank goes in as a root to both factors, or whole to one of them with `cat` and `svd`.
METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        Method(
            "linear",
            "adds the As and adds the Bs; their product has a term for each pair of adapters, so "
            "it is not the sum of the adapters",
        ),
        Method(
            "ties",
            "keeps the largest values of each A and B, and of each place the mean of those that "
            "have the sign of the majority",
            prunes=True,
        ),
        Method(
            "dare_linear",
            "drops random values of each A and B, scales up the rest, and adds as linear does",
            prunes=True,
            random=True,
        ),
        Method(
            "dare_ties",
            "drops random values of each A and B, scales up the rest, and takes means as ties does",
            prunes=True,
            random=True,
        ),
        Method(
            "svd",
            "adds the products B A and keeps the largest singular values, as many as the largest "
            "rank; minutes at a billion parameters",
            same_rank=False,
        ),
        Method(
            "cat",
            "puts the As under each other and the Bs side by side: exactly the weighted sum of the "
            "adapters, of the sum of their ranks and as large as all of them",
            same_rank=False,
        ),
    )
}


@dataclass(frozen=True)
class MergeSource:
    """A finished adapter of the workspace: its record, its PEFT configuration, its digest."""

    name: str
    folder: Path
    record: Mapping[str, Any]
    config: Mapping[str, Any]
    digest: str

    @property
    def splits(self) -> dict[str, str]:
        """Return the digests of the splits it was trained on, by category."""
        return dict(self.record.get("splits") or {self.record["category"]: self.record["split"]})


@dataclass(frozen=True)
class MergePlan:
    """What is to be merged, and how. Two plans with one `digest` are the same merge.

    With one version of peft they give the same adapter.

    `density` is the share of values kept, None where the method keeps all; `seed` decides which
    where that is left to chance.
    """

    method: Method
    sources: tuple[MergeSource, ...]
    weights: tuple[float, ...]
    density: float | None
    seed: int

    @property
    def digest(self) -> str:
        """Return a SHA-256 over the sources, their weights, and how they are merged."""
        of = [[source.name, source.digest] for source in self.sources]
        seed = self.seed if self.method.random else None
        return digest.of_value([self.method.name, of, self.weights, self.density, seed])

    @property
    def dataset(self) -> str:
        """Return the name of the data set, or those of several."""
        return "+".join(dict.fromkeys(str(source.record["dataset"]) for source in self.sources))

    @property
    def splits(self) -> dict[str, str]:
        """Return the digests of all splits by category; `InputError` where two differ."""
        made: dict[str, str] = {}
        for source in self.sources:
            for name, value in source.splits.items():
                if made.setdefault(name, value) != value:
                    raise InputError(
                        f"{source.folder}: {name} was split otherwise for another adapter; train "
                        "all with one --dataset and one --seed"
                    )
        return made


def plan(args: argparse.Namespace, home: Workspace, backbone: str) -> MergePlan:
    """Return what `args` ask for, checked. Raises `InputError` naming what does not fit."""
    if args.method not in METHODS:
        raise InputError(f"--method {args.method}: there are: {' '.join(METHODS)}")
    method = METHODS[args.method]
    folder = home.adapter(backbone, "x").parent
    there = [name for name in CATEGORIES if (folder / name / RECORD).is_file()]
    names = there if args.adapter == "all" else list(dict.fromkeys(args.adapter.split(",")))
    if len(names) < 2:
        raise InputError(
            f"{folder}: {len(names)} finished adapters to merge, two are the least; "
            f"run: tel-train --backbone {args.backbone} --category all"
        )
    sources = tuple(_source(folder / name) for name in names)
    weights = _weights(args.weights, len(sources))
    if not 0 < args.density <= 1:
        raise InputError(f"--density {args.density}: a number above 0 and up to 1 is needed")
    _check(sources, method)
    return MergePlan(method, sources, weights, args.density if method.prunes else None, args.seed)


def _source(folder: Path) -> MergeSource:
    try:
        record, config = (
            json.loads((folder / name).read_text(encoding="utf-8")) for name in (RECORD, CONFIG)
        )
        made = MergeSource(folder.name, folder, record, config, digest.of_adapter(folder))
        if not (folder / WEIGHTS).is_file():
            raise InputError(f"{folder}: no {WEIGHTS}; train the adapter again")
        # All that is asked for later.
        _ = made.splits, record["backbone"]["weights"], record["prompt"], record["dataset"]
        _ = config["r"], config["target_modules"]
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no finished adapter ({error})") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder}: not the record of a training ({error!r})") from None
    return made


def _weights(text: str | None, count: int) -> tuple[float, ...]:
    if text is None:
        return (1.0,) * count
    try:
        made = tuple(float(part) for part in text.split(","))
    except ValueError:
        made = ()
    if len(made) != count or not all(map(math.isfinite, made)) or not any(made):
        raise InputError(f"--weights {text}: {count} numbers with commas are needed, not all 0")
    return made


def _check(sources: Sequence[MergeSource], method: Method) -> None:
    """Raise `InputError` unless all adapters can become one."""
    first = sources[0]
    for source in sources[1:]:
        for name, value in _facts(source, method).items():
            if value != (wanted := _facts(first, method)[name]):
                raise InputError(
                    f"{source.folder}: {name} {_short(value)}, but {_short(wanted)} in "
                    f"{first.folder}, so {method.name} cannot merge them"
                )
    if first.record["prompt"] != prompt.digest():
        raise InputError(
            f"{first.folder}: made for another prompt than this version's; train it again"
        )


def _facts(source: MergeSource, method: Method) -> dict[str, Any]:
    """Return what has to be the same in all adapters, by name."""
    targets = source.config["target_modules"]
    rank = {"rank": source.config["r"]} if method.same_rank else {}
    return {
        "backbone": source.record["backbone"]["weights"],
        "prompt": source.record["prompt"],
        "tokenizer": source.record["backbone"].get("tokenization"),
        "trained over file": (source.record.get("over") or {}).get("sha256"),
        "target modules": sorted(targets) if isinstance(targets, list) else targets,
        **rank,
    }


def _short(value: Any) -> str:
    text = ",".join(value) if isinstance(value, list) else str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text


def splits(
    plan: MergePlan, dataset: str, seed: int, strict: bool, say: benchmark.Say
) -> dict[str, Split]:
    """Return the splits of all categories; `InputError` unless the adapters had those."""
    made: dict[str, Split] = {}
    for name, wanted in plan.splits.items():
        made[name] = split(benchmark.read(dataset, category(name), strict, say).questions, seed)
        if made[name].digest != wanted:
            raise InputError(
                f"{name}: --dataset {dataset} --seed {seed} split it otherwise than for its "
                f"adapter, so the test part was trained on; pass those of tel-train "
                f"({plan.dataset}, seed {plan.sources[0].record.get('seed')})"
            )
    return made


def unseen(plan: MergePlan, parts: Mapping[str, Split]) -> dict[str, tuple[Question, ...]]:
    """Return the test questions of each category whose text stands in no source's train parts.

    Each adapter was trained without a look at the others' test parts, so a text that two
    categories share may be the one's test question and have been trained on by the other.
    """
    trained: set[str] = set()
    for source in plan.sources:
        own = {name: parts[name] for name in source.splits}
        if "shared" in (source.record.get("rows") or {}):
            own = apart(own)
        trained |= {key(question.text) for made in own.values() for question in made.train}
    return {name: without(made.test, trained) for name, made in parts.items()}
