"""What an evaluation leaves: a JSONL line a question and a summary that is a function of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tel_edge.eval import documents
from tel_edge.eval.statistics import Share, quantile, share, stored_share
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import digest
from tel_edge.runtime.files.atomic import replacing
from tel_edge.runtime.questions.categories import SPOKEN
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.votes import majority, majority_share, mass, probabilities
from tel_edge.runtime.workspace import Workspace

SCHEMA_VERSION = 2
# What a large reference model is scored with, and how its variants are called.
REFERENCE_FORMATS, REFERENCE_PREFIX = ("endpoint", "hf"), "reference-"
PARTS = ("test", "validation", "train")
# The end of a variant's name that says how it was asked.
ASKED = re.compile(r"-(generate|orders\d+)$")
# What a generated text says that names none of the answers.
UNPARSED = -2


@dataclass(frozen=True)
class Record:
    """One scored question. `run` is the digest of the files, settings and engine behind the answer.

    The machine is no part of it: on another processor the last digits may be others.

    `logprobs` are natural logarithms over the whole vocabulary, one for each choice; `pick` is
    their argmax, `draws` the sampled answers of Maj@k; `gold` is the right index. Answers read
    from generated texts have no log-probabilities; `text` is then the greedy one, and an answer
    that it does not give is `UNPARSED`. `asked` is the digest of the question as it was asked
    (`asked_digest`), empty in records of older versions.
    """

    run: str
    id: str
    gold: int
    logprobs: tuple[float, ...]
    pick: int
    draws: tuple[int, ...]
    tokens: int
    milliseconds: float
    text: str | None = None
    asked: str = ""


def asked_digest(question: Question) -> str:
    """Return eight hexadecimal digits over text, choices in their order, and the right answer."""
    return digest.of_value([question.text, question.choices, question.answer])[:8]


@dataclass(frozen=True)
class Variant:
    """What was scored: a backbone in one type, alone, with the category's adapter, or merged.

    The sizes are those of the files in the bundle, in bytes: of the backbone with all that it
    needs, of which `tokenizer_bytes` are a file that all types share (0 where it is inside), and
    of the adapter, 0 for the bare backbone. `source` is the digest of the PEFT folder that the
    adapter, merged in or not, was made of: which training it is. It is None without an adapter, and
    where the bundle or an older result does not say.
    """

    name: str
    quant: str
    format: str
    adapter: bool
    backbone_bytes: int
    adapter_bytes: int
    tokenizer_bytes: int = 0
    merged: bool = False
    adapter_quant: str | None = None
    options: str | None = None
    source: str | None = None

    @property
    def kind(self) -> str:
        """Return `base`, `lora` or `merged`; `reference` is a large model to compare with."""
        if self.merged:
            return "merged"
        if self.format in REFERENCE_FORMATS or self.name.startswith(REFERENCE_PREFIX):
            return "reference"
        return "lora" if self.adapter else "base"

    @property
    def asked(self) -> str:
        """Return how it was asked: `generate`, `orders4`, or nothing for letters, once."""
        found = ASKED.search(self.name)
        return found[1] if found else ""

    @property
    def disk(self) -> int:
        """Return the bytes of the backbone and the adapter."""
        return self.backbone_bytes + self.adapter_bytes


@dataclass(frozen=True)
class Summary:
    """One variant on one category; times in milliseconds, memory in bytes (None: not readable).

    `dataset`, `part`, `split` say which questions; `rejected` rows were malformed, `too_long`
    questions did not fit the context and count as wrong, as do `unparsed` texts. `majority` is
    Maj@k as drawn, `majority_exact` its expectation over all draws, `label_mass` the probability of
    all labels together; the last two are None for generated texts. Milliseconds are a question's
    share of the decode that it was packed into. `run` binds it to its records, and
    `made_with` spells out what `run` is the digest of.

    `rotated` says that every question was asked with its options in every cyclic order, a record
    each. `first_answer_ms` is from opening the engine to the first answers, `kv_bytes_per_token`
    what the engine keeps for a token of its `context`, `joules_per_question` what the counters of
    the machine measured (None: no counter), `power_mode` that of a Jetson. `measured` says where
    the times are from: `machine`, `threads`, `date` and `load`, what else ran there before.
    `left_out` counts the part's questions that were not wanted (`--limit`).
    """

    backbone: str
    variant: Variant
    category: str
    dataset: str
    part: str
    split: str
    run: str
    made_with: Mapping[str, Any]
    questions: int
    rejected: int
    too_long: int
    unparsed: int
    pass1: Share
    majority: Share
    majority_exact: float | None
    k: int
    label_mass: float | None
    tokens_mean: float
    milliseconds_p50: float
    milliseconds_p95: float
    memory_anonymous: int | None
    memory_file: int | None
    memory_peak: int | None
    schema_version: int = SCHEMA_VERSION
    rotated: bool = False
    first_answer_ms: float | None = None
    kv_bytes_per_token: int | None = None
    context: int | None = None
    joules_per_question: float | None = None
    power_mode: str | None = None
    measured: Mapping[str, Any] | None = None
    left_out: int = 0


def measures(
    records: Sequence[Record], too_long: int, k: int = 4, temperature: float = 0.7
) -> dict[str, Any]:
    """Return the fields of `Summary` that are functions of the records and of Maj@k's settings."""
    of = len(records) + too_long
    scored = [record for record in records if record.logprobs]
    exact = math.fsum(
        majority_share(probabilities(record.logprobs, temperature), k, record.gold)
        for record in scored
        if record.gold >= 0
    )
    times = [record.milliseconds for record in records] or [0.0]
    count = max(1, len(records))
    return {
        "questions": of,
        "too_long": too_long,
        "unparsed": sum(record.pick == UNPARSED for record in records),
        "pass1": share(sum(r.pick == r.gold for r in records), of),
        "majority": share(sum(majority(r.draws) == r.gold for r in records), of),
        "majority_exact": exact / max(1, of) if scored or not records else None,
        "label_mass": (
            math.fsum(mass(record.logprobs) for record in scored) / len(scored) if scored else None
        ),
        "tokens_mean": sum(record.tokens for record in records) / count,
        "milliseconds_p50": quantile(times, 0.5),
        "milliseconds_p95": quantile(times, 0.95),
    }


def whole(summary: Summary, ids: Sequence[str]) -> bool:
    """Return whether a summary can be that of records with these ids, each question once.

    Of two commands that wrote one file at the same time it cannot.
    """
    return len(ids) == len(set(ids)) == summary.questions - summary.too_long


def line(record: Record) -> str:
    """Return the record as one line of JSON."""
    made = asdict(record)
    made["logprobs"] = [round(value, 6) for value in record.logprobs]
    made["milliseconds"] = round(record.milliseconds, 3)
    return json.dumps(made, separators=(",", ":")) + "\n"


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write a JSONL file of records in one step."""
    with replacing(path) as partial:
        partial.write_text("".join(map(line, records)), encoding="utf-8")


def read_records(path: Path, run: str | None = None) -> Iterator[Record]:
    """Yield the records of a JSONL file, only those of `run` if it is given.

    A torn last line, which a killed run leaves, ends the file; a broken line before it raises
    `InputError`.
    """
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, text in enumerate(lines, start=1):
        try:
            fields_ = json.loads(text)
            record = Record(**{**fields_, "logprobs": tuple(fields_["logprobs"]),
                               "draws": tuple(fields_["draws"])})  # fmt: skip
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines) and not text.endswith("\n"):
                return
            raise InputError(
                f"{path}, line {number}: no record ({error}); delete the file and run tel-eval"
            ) from None
        if run in (None, record.run):
            yield record


def write_summary(path: Path, summary: Summary) -> None:
    """Write the summary beside its records, in one step."""
    documents.write(path.with_suffix(".json"), asdict(summary))


def read_summary(path: Path) -> Summary:
    """Read one summary. Raises `InputError` if it is none, or of another version."""
    try:
        document = documents.read(path, SCHEMA_VERSION)
        # Fields that have a default are younger than some of the files.
        known = {
            field.name: document[field.name]
            for field in fields(Summary)
            if field.name in document or field.default is MISSING
        }
        known["variant"] = _checked(Variant(**document["variant"]))
        known["pass1"] = stored_share(document["pass1"])
        known["majority"] = stored_share(document["majority"])
        made: Summary = _checked(Summary(**known))
        if made.part not in PARTS:
            raise ValueError(f"part is {made.part!r}, wanted one of {' '.join(PARTS)}")
        return made
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: no summary ({error}); run tel-eval again") from None


def _checked(made: Any) -> Any:
    """Return a record whose values are of the types it declares, no number below 0 or infinite."""
    for field in fields(made):
        value, kinds = getattr(made, field.name), str(field.type).split(" | ")
        if value is None and "None" in kinds:
            continue
        if ("int" in kinds and type(value) is int) or "float" in kinds:
            documents.number({field.name: value}, field.name)
        elif type(value).__name__ not in kinds and kinds[0] in ("str", "int", "bool"):
            raise ValueError(f"{field.name} is {value!r}, wanted {kinds[0]}")
        elif kinds[0].startswith("Mapping") and not isinstance(value, Mapping):
            raise ValueError(f"{field.name} is {value!r}, wanted an object")
    return made


def summaries(workspace: Workspace, backbone: str) -> list[Summary]:
    """Return all summaries of a backbone, sorted by category and variant.

    Raises `InputError` for one that is none, and for two of the same.
    """
    every = sorted((workspace.root / "results" / backbone).glob("*/*.json"))
    files = [file for file in every if not spoken(file)]
    found: dict[tuple[str, str, str, bool], tuple[Path, Summary]] = {}
    for file in files:
        of = read_summary(file)
        key = (of.category, of.variant.name, of.part, of.rotated)
        if key in found:
            raise InputError(
                f"{file}: {found[key][0]} is a summary of {of.variant.name} on {of.category} too; "
                "remove the one that was copied"
            )
        found[key] = file, of
    return [found[key][1] for key in sorted(found)]


def spoken(file: Path) -> bool:
    """Return whether a file of results is of answers in sentences, which have their own report."""
    return file.name.partition(".")[0] in SPOKEN


def questions_of(summary: Summary) -> tuple[str, str, str, int]:
    """Return what says which questions were asked: data set, part, split and their number."""
    return summary.dataset, summary.part, summary.split, summary.questions


def same_questions(one: Summary, other: Summary) -> bool:
    """Return whether two summaries are about the same questions."""
    return questions_of(one) == questions_of(other)


def same_training(one: Summary, other: Summary) -> bool:
    """Return whether no more than the files' types differs: not two adapters of two trainings.

    An adapter that is not known to be of another training passes.
    """
    return len({s.variant.source for s in (one, other)} - {None}) < 2


def comparable(one: Summary, other: Summary) -> bool:
    """Return whether the answers can stand side by side: of the same questions and training."""
    return same_questions(one, other) and same_training(one, other)


def baselines_path(workspace: Workspace, category: str) -> Path:
    """Return where the trivial baselines of a category are kept."""
    return workspace.root / "results" / "baselines" / f"{category}.json"


def duplicates_path(workspace: Workspace, category: str) -> Path:
    """Return where a category's near-duplicates between the parts are kept."""
    return workspace.root / "results" / "baselines" / f"{category}.duplicates.json"
