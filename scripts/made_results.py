"""Made-up results at the real benchmark's size, for `bench_report.py`.

Six categories with the real numbers of questions, a seen and an unseen part, and variants that
differ from the reference by noise, so that some answers flip. All of it is a function of the seeds.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tel_edge.eval.benchmarks import benchmark, duplicates
from tel_edge.eval.benchmarks.split import Split, split
from tel_edge.eval.scoring import baselines, records
from tel_edge.eval.scoring.baselines import Baseline, Baselines
from tel_edge.eval.scoring.records import Record, Summary, Variant
from tel_edge.eval.scoring.scored import Settings
from tel_edge.eval.statistics import share
from tel_edge.runtime.engines.engine import EngineSettings
from tel_edge.runtime.files import digest
from tel_edge.runtime.files.atomic import replacing, write_text
from tel_edge.runtime.questions import votes
from tel_edge.runtime.questions.categories import CATEGORIES, WORKING_GROUPS, Category
from tel_edge.runtime.questions.orders import rotations
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.workspace import Workspace

# Of what is made; files of another one are made anew.
GENERATOR = 1
BACKBONE, DATASET = "bench-1b", "bench-full"
SEED, K, TEMPERATURE = 42, 4, 0.7
# Usable questions of each category of the real data set, and the characters of a text.
QUESTIONS = {
    "teleqna": (9982, 120),
    "sixg_bench": (3721, 350),
    "3gpp_tsg": (2000, 2000),
    "oranbench": (1496, 120),
    "srsranbench": (1501, 120),
    "teletables": (496, 150),
}
# The share of questions that are a rewording of the one before.
REWORDED = 0.03
# How much likelier the right answer is, in nats: without an adapter, with one, with one on what it
# was trained on.
BARE, ADAPTED, SEEN = 0.8, 2.6, 2.0
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Made:
    """A made-up variant and the noise on its log-probabilities, in nats."""

    kind: str
    quant: str
    format: str
    megabytes: int
    noise: float
    suffix: str = ""
    adapter_quant: str = ""

    @property
    def variant(self) -> Variant:
        """Return it as tel-eval would call it."""
        adapter = "" if self.kind != "lora" else self.adapter_quant or "F16"
        return Variant(
            name=f"{self.kind}-{self.quant}{self.suffix}",
            quant=self.quant,
            format=self.format,
            adapter=self.kind != "base",
            backbone_bytes=self.megabytes * 1_000_000 + 123_456,
            adapter_bytes={"": 0, "F16": 22_573_120, "Q8_0": 12_058_624}[adapter],
            tokenizer_bytes=9_085_657 if self.format == "onnx" else 0,
            merged=self.kind == "merged",
            adapter_quant=adapter or None,
        )


# The reference first, then one of each kind: --variants and --rotations take them from the front.
VARIANTS = (
    Made("lora", "F16", "gguf", 2480, 0.0),
    Made("lora", "Q4_K_M", "gguf", 808, 0.15),
    Made("base", "F16", "gguf", 2480, 0.0),
    Made("lora", "int4", "onnx", 1240, 0.30),
    Made("lora", "Q8_0", "gguf", 1321, 0.02),
    Made("lora", "Q6_K", "gguf", 1022, 0.04),
    Made("lora", "Q5_K_M", "gguf", 912, 0.08),
    Made("lora", "Q4_K_M", "gguf", 808, 0.10, suffix="-imatrix"),
    Made("lora", "Q4_K_M", "gguf", 808, 0.16, suffix="+Q8_0", adapter_quant="Q8_0"),
    Made("lora", "Q4_0", "gguf", 771, 0.25),
    Made("lora", "Q3_K_M", "gguf", 691, 0.40),
    Made("lora", "Q2_K", "gguf", 581, 1.0),
    Made("merged", "Q8_0", "gguf", 1321, 0.03),
    Made("merged", "Q4_K_M", "gguf", 808, 0.17),
    Made("base", "Q4_K_M", "gguf", 808, 0.15),
    Made("base", "fp32", "onnx", 4960, 0.01),
    Made("lora", "fp32", "onnx", 4960, 0.01),
    Made("lora", "fp16", "onnx", 2490, 0.015),
    Made("lora", "int8", "onnx", 1700, 0.20),
    Made("merged", "int4", "onnx", 1240, 0.32),
)


def write(
    data: Path, workspace: Workspace, variants: int, rotated: int, say: Callable[[str], None]
) -> int:
    """Write data set and results of the first of `VARIANTS`; return the number of records."""
    count = 0
    for name in QUESTIONS:
        category = CATEGORIES[name]
        dataset(data, category)
        parts = split(benchmark.read(str(data), category, strict=True).questions, SEED)
        test = Asked.of(category, parts, "test")
        every = [test, Asked.of(category, parts, "train")]
        if not category.labels:
            every.append(test.rotated())
        for asked in every:
            of = VARIANTS[: min(rotated, variants) if asked.moved else variants]
            summaries = [scored(workspace, asked, variant) for variant in of]
            count += len(asked.questions) * len(of)
            if asked is test:
                beside(workspace, parts, summaries[0])
        say(f"{name}: {len(parts.train):,} seen, {len(parts.test):,} unseen questions")
    return count


def dataset(folder: Path, category: Category) -> None:
    """Write the rows of one category in the hub's layout."""
    count, length = QUESTIONS[category.name]
    rng = random.Random(f"{SEED} {category.name}")
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(4000)]
    mean = sum(map(len, words)) / len(words) + 1
    text: list[str] = []
    rows = []
    for at in range(count):
        if at and rng.random() < REWORDED:
            text = [rng.choice(words), *text[1:]]
        else:
            text = rng.choices(words, k=max(8, round(length / mean * rng.uniform(0.6, 1.4))))
            text.append(str(at))
        row: dict[str, Any] = {"question": " ".join(text) + "?"}
        if category.labels:
            row["question"] = f"Which group?\n###TEXT: {row['question']}"
            row["answer"] = rng.choice(WORKING_GROUPS)
        else:
            width = 5 if category.name == "teleqna" and rng.random() < 0.6 else 4
            row["choices"] = [f"{' '.join(rng.choices(words, k=5))} {n}" for n in range(width)]
            row["answer"] = rng.randrange(width)
        if category.name == "teleqna":
            row["subject"] = rng.choice(("Lexicon", "Research overview", "Standards overview"))
        elif category.name in ("sixg_bench", "oranbench"):
            row["difficulty"] = rng.choice(("easy", "medium", "hard"))
        rows.append(json.dumps(row) + "\n")
    write_text(folder / category.name / "test.jsonl", "".join(rows))


@dataclass(frozen=True, eq=False)
class Asked:
    """The n questions of a part and the logits that all variants share, [n, most choices].

    A choice that a question does not have is -inf.
    """

    category: Category
    part: str
    split: str
    questions: tuple[Question, ...]
    digests: tuple[str, ...]
    bare: Floats
    adapted: Floats
    moved: bool = False

    @classmethod
    def of(cls, category: Category, parts: Split, part: str) -> Asked:
        """Draw the logits of a part's questions."""
        questions = parts.part(part)
        rng = _generator(category.name, part)
        widths = np.array([len(question.choices) for question in questions])
        gold = np.array([question.answer for question in questions])
        shape = (len(questions), widths.max())
        none = np.arange(shape[1]) >= widths[:, None]

        def logits(skill: float) -> Floats:
            values = rng.normal(0, 1.5, shape)
            values[np.arange(len(gold)), gold] += rng.normal(skill, 2.0, len(gold))
            values[none] = -np.inf
            return values

        skill = ADAPTED + SEEN * (part == "train")
        digests = tuple(map(records.asked_digest, questions))
        bare = logits(BARE)
        return cls(category, part, parts.digest, questions, digests, bare, logits(skill))

    def rotated(self) -> Asked:
        """Return the questions with their options in every other cyclic order."""
        questions, rows = [], []
        for at, question in enumerate(self.questions):
            for by, other in enumerate(rotations(question), start=1):
                order = np.arange(self.bare.shape[1])
                order[: len(other.choices)] = np.roll(order[: len(other.choices)], -by)
                questions.append(other)
                rows.append((at, order))
        took = np.array([at for at, _ in rows])[:, None], np.array([order for _, order in rows])
        digests = tuple(map(records.asked_digest, questions))
        return replace(
            self, questions=tuple(questions), digests=digests, moved=True,
            bare=self.bare[took], adapted=self.adapted[took],
        )  # fmt: skip

    def logprobs(self, of: Made) -> Floats:
        """Return what a variant makes of them, with all but a little of the mass on the labels."""
        rng = _generator(self.category.name, self.part, of.variant.name, str(self.moved))
        values = self.bare if of.kind == "base" else self.adapted
        values = values + (of.noise + 0.2 * self.moved) * rng.normal(size=values.shape)
        top = values.max(axis=1, keepdims=True)
        total = top + np.log(np.exp(values - top).sum(axis=1, keepdims=True))
        lost = rng.exponential(1e-3, (len(values), 1))
        logprobs: Floats = np.round(values - total - lost, 6)
        return logprobs


def _generator(*names: str) -> np.random.Generator:
    return np.random.default_rng([SEED, zlib.crc32(" ".join(names).encode())])


def scored(workspace: Workspace, asked: Asked, of: Made) -> Summary:
    """Write the records and the summary of one variant on one part."""
    category, variant = asked.category.name, of.variant
    settings = Settings(asked.part, K, TEMPERATURE, SEED)
    made_with: dict[str, Any] = {
        "backbone": digest.of_value([variant.quant, variant.format, variant.merged]),
        "adapter": digest.of_value([category, of.kind, of.adapter_quant, of.format])
        if of.kind == "lora"
        else None,
        "weights": digest.of_value(BACKBONE),
        "prompt": digest.of_value("prompt"),
        "engine": "made up",
        "engine_settings": asdict(EngineSettings(batch=512)),
        "split": asked.split,
        "settings": asdict(settings),
        **({"rotations": True} if asked.moved else {}),
    }
    run = digest.of_value(made_with)[:16]
    logprobs = asked.logprobs(of)
    picks = logprobs.argmax(axis=1).tolist()
    rng = _generator("times", category, variant.name)
    times = (2 + variant.backbone_bytes / 1e8 * rng.lognormal(0, 0.2, len(picks))).tolist()
    rows = []
    for at, (question, values) in enumerate(zip(asked.questions, logprobs.tolist(), strict=True)):
        own = tuple(values[: len(question.choices)])
        drawn = votes.draws(own, K, TEMPERATURE, SEED, question.id)
        tokens = 30 + len(question.text) // 4
        rows.append(
            Record(
                run, question.id, question.answer or 0, own, picks[at], drawn, tokens, times[at],
                None, asked.digests[at],
            )
        )  # fmt: skip
    path = workspace.results(BACKBONE, variant.name, category, asked.part, asked.moved)
    with replacing(path) as partial:
        partial.write_text("".join(map(records.line, rows)), encoding="utf-8")
    known = records.measures([replace(row, logprobs=()) for row in rows], 0, K, TEMPERATURE)
    known["majority_exact"] = _exact(logprobs, [row.gold for row in rows])
    known["label_mass"] = float(np.exp(logprobs).sum(axis=1).mean())
    summary = Summary(
        backbone=BACKBONE,
        variant=variant,
        category=category,
        dataset=DATASET,
        part=asked.part,
        split=asked.split,
        run=run,
        made_with=made_with,
        rejected=0,
        k=K,
        memory_anonymous=250_000_000,
        memory_file=variant.backbone_bytes,
        memory_peak=variant.backbone_bytes + 300_000_000,
        rotated=asked.moved,
        first_answer_ms=900.0,
        kv_bytes_per_token=32_768,
        context=4096,
        **known,
    )
    records.write_summary(path, summary)
    return summary


def _exact(logprobs: Floats, gold: Sequence[int]) -> float:
    """Return the mean of `votes.majority_share` over the questions, all of them at once."""
    weights = np.exp((logprobs - logprobs.max(axis=1, keepdims=True)) / TEMPERATURE)
    # The sums and products of `majority_shares` are those of columns just as well.
    columns: Any = list((weights / weights.sum(axis=1, keepdims=True)).T)
    shares = np.stack(votes.majority_shares(columns, K))
    return float(shares[np.array(gold), np.arange(len(gold))].mean())


def beside(workspace: Workspace, parts: Split, of: Summary) -> None:
    """Write the trivial baselines, made up, the near-duplicates and the record of the training."""
    category, count = CATEGORIES[of.category], of.questions
    names = ["one letter", "longest option", "surface features", "options only"]
    if category.labels:
        names = ["one letter", "text classifier"]
    chance = baselines.chance(parts.test)
    rules = tuple(
        Baseline(name, share(round(count * chance * (1 + at / 10)), count))
        for at, name in enumerate(names)
    )
    floor = Baselines(category.name, DATASET, of.part, of.split, chance, rules)
    baselines.write(workspace, floor)
    alike = duplicates.measure(parts, category, DATASET)
    duplicates.write(records.duplicates_path(workspace, category.name), alike)
    curve = [
        {"step": 50 * at, "epoch": at / 4, "loss": 1.4 / at, "validation_loss": 0.4 + 1 / at}
        for at in range(1, 13)
    ]
    training = {
        "seconds": 600.0,
        "parameters": 11_272_192,
        "config": {"rank": 16, "alpha": 32},
        "curve": curve,
        "best": {**curve[-1], "validation_pass1": of.pass1.value},
        "rows": {"train": len(parts.train), "validation": len(parts.validation)},
    }
    path = workspace.adapter(BACKBONE, of.category) / "training.json"
    write_text(path, json.dumps(training, indent=1) + "\n")
