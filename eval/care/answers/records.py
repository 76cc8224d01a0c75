"""What an evaluation of answers leaves: a line a dialogue, and figures that follow from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tel_edge.eval import documents
from tel_edge.eval.care.answers.measured import FACTS, Measured
from tel_edge.eval.scoring.records import Variant
from tel_edge.eval.statistics import Mean, Share, clustered_mean, clustered_share, quantile
from tel_edge.runtime.files.atomic import make_folder, replacing
from tel_edge.runtime.workspace import Workspace

T = TypeVar("T")
BROKEN = "{path}, line {number}: no record ({error}); delete the file and run tel-eval"
SCHEMA_VERSION = 1
EARLIER = "earlier"


@dataclass(frozen=True)
class Record:
    """One dialogue, answered. `run` is the digest of all that the answers depend on.

    There is a text for each message of the customer, with its `tokens` and whether it `ended` with
    the model's own end token within the limit; none where a prompt was too long (`fault` says so).
    `prompt` is the longest prompt in tokens, `milliseconds` the share of what was computed
    together, `asked` the digest of the dialogue (`Case.asked`).
    """

    run: str
    id: str
    scenario: str
    asked: str
    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    ended: tuple[bool, ...]
    prompt: int
    milliseconds: float
    measured: Measured
    fault: str = ""

    @property
    def stopped(self) -> bool:
        """Return whether all of its texts ended by themselves."""
        return bool(self.ended) and all(self.ended)


@dataclass(frozen=True)
class Along:
    """One dialogue's reference answers, as another variant would have written them.

    A number for each of the reference's tokens, the one that ended it too: `kl` is the divergence
    of the whole vocabulary's distribution from the reference's in nats, `gap` by how much the
    reference gives its token a higher log-probability; `agreed` counts positions with the same
    likeliest token. `asked` is the digest of the dialogue and of the reference's tokens.
    """

    run: str
    id: str
    scenario: str
    asked: str
    kl: tuple[float, ...]
    gap: tuple[float, ...]
    agreed: int


def place(workspace: Workspace, backbone: str, variant: str, part: str) -> Path:
    """Return the JSONL file of a variant's answers; its summary has the suffix `.json`."""
    return workspace.results(backbone, variant, "care", part)


def along_place(out: Path) -> Path:
    """Return where the divergences of the answers at `out` are."""
    return out.with_suffix(".along.jsonl")


def line(record: Record | Along) -> str:
    """Return the record as one line of JSON."""
    made = asdict(record)
    for name in ("kl", "gap"):
        if name in made:
            made[name] = [round(value, 6) for value in made[name]]
    return json.dumps(made, separators=(",", ":"), ensure_ascii=False) + "\n"


def write(path: Path, records: Iterable[Record | Along]) -> None:
    """Write a JSONL file of records in one step."""
    with replacing(path) as partial:
        partial.write_text("".join(map(line, records)), encoding="utf-8")


def read(path: Path, run: str | None = None) -> Iterator[Record]:
    """Yield the answers of a file, only those of `run` if it is given; see `_read`."""

    def made(row: dict[str, Any]) -> Record:
        found: dict[str, Any] = row["measured"]
        lists = {name: tuple(found[name]) for name in ("wanted", "right", "wrong")}
        fields: dict[str, Any] = row | {
            "texts": tuple(row["texts"]),
            "tokens": tuple(map(tuple, row["tokens"])),
            "ended": tuple(row["ended"]),
            "measured": Measured(**found | lists),
        }
        return Record(**fields)

    for record in _read(path, made):
        if run in (None, record.run):
            yield record


def read_along(path: Path, run: str) -> Iterator[Along]:
    """Yield the divergences of a file that are of `run`; see `_read`."""

    def made(row: dict[str, Any]) -> Along:
        return Along(**row | {"kl": tuple(row["kl"]), "gap": tuple(row["gap"])})

    for record in _read(path, made):
        if record.run == run:
            yield record


def _read(path: Path, made: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    """Yield what `made` makes of each whole line; see `documents.lines`."""
    return documents.lines(path, made, BROKEN)


def put_away(out: Path, run: str) -> None:
    """Put what is at `out` away if it is of another run, and what is kept of `run` back.

    Summaries are made again from records, so none is kept; and so are divergences, which no text
    has to be written for.
    """
    there = next((row["run"] for row in _read(out, dict)), run)
    if there != run:
        make_folder(out.parent / EARLIER)
        out.replace(out.parent / EARLIER / f"{out.stem}.{there}.jsonl")
        out.with_suffix(".json").unlink(missing_ok=True)
    kept = out.parent / EARLIER / f"{out.stem}.{run}.jsonl"
    if not out.exists() and kept.exists():
        kept.replace(out)


@dataclass(frozen=True)
class Summary:
    """One variant's answers to one part of a data set; times in milliseconds, memory in bytes.

    `figures` are functions of the records (`figures`); `made_with` spells out what `run` is the
    digest of. `left_out` counts the part's dialogues that were not wanted (`--limit`).
    """

    backbone: str
    variant: Variant
    dataset: str
    part: str
    run: str
    made_with: Mapping[str, Any]
    dialogues: int
    scenarios: int
    left_out: int
    figures: Mapping[str, Share | Mean]
    milliseconds_p50: float
    memory_peak: int | None
    measured: Mapping[str, Any]
    category: str = "care"
    schema_version: int = SCHEMA_VERSION


def write_summary(out: Path, summary: Summary) -> None:
    """Write the summary beside its records, in one step."""
    documents.write(out.with_suffix(".json"), asdict(summary))


def measured_before(out: Path, run: str) -> dict[str, Any]:
    """Return where answers of `run` were timed and what memory they took, if a summary says so."""
    try:
        document = documents.read(out.with_suffix(".json"), SCHEMA_VERSION)
        own: dict[str, Any] = {name: document[name] for name in ("memory_peak", "measured")}
        return own if document["run"] == run else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def grouped(records: Sequence[Any], of: Callable[[Any], Any]) -> list[list[Any]]:
    """Return what `of` makes of records, those of a scenario together."""
    groups: dict[str, list[Any]] = {}
    for record in records:
        groups.setdefault(record.scenario, []).append(of(record))
    return list(groups.values())


def shared(records: Sequence[Any], of: Callable[[Any], tuple[int, int]]) -> Share:
    """Return the share of all that `of` counts (right, count), clustered by scenario."""
    groups = [(sum(r for r, _ in one), sum(n for _, n in one)) for one in grouped(records, of)]
    return clustered_share([one for one in groups if one[1]])


def _of_shares(mean: Mean) -> Mean:
    """Return a mean of shares, whose interval ends where shares do."""
    if mean.low is None or mean.high is None:
        return mean
    return replace(mean, low=max(0.0, mean.low), high=min(1.0, mean.high))


def figures(records: Sequence[Record]) -> dict[str, Share | Mean]:
    """Return all that is measured of answers, with 95 % intervals clustered by scenario.

    Shares of dialogues, but `precision` of facts said, `recall` of facts wanted, and `check`,
    `fix`, `escalate` of those where it is wanted; `unasked` is of those where no escalation is.
    `f1`, `words`, `tokens` and `repeated` are means over dialogues.
    """

    def each(of: Callable[[Measured], bool]) -> Share:
        return shared(records, lambda record: (int(of(record.measured)), 1))

    def kind(name: str) -> Share:
        return shared(
            records,
            lambda r: (
                int(name in r.measured.wanted and name in r.measured.right),
                int(name in r.measured.wanted),
            ),
        )

    def mean(of: Callable[[Record], float]) -> Mean:
        return clustered_mean(grouped(records, of))

    return {
        "precision": shared(
            records,
            lambda r: (len(r.measured.right), len(r.measured.right) + len(r.measured.wrong)),
        ),
        "recall": shared(records, lambda r: (r.measured.found, len(r.measured.wanted))),
        "f1": _of_shares(mean(lambda r: r.measured.f1)),
        **{name: kind(name) for name in FACTS},
        "unasked": shared(
            records,
            lambda r: (
                int("escalate" not in r.measured.wanted and "escalate" in r.measured.right),
                int("escalate" not in r.measured.wanted),
            ),
        ),
        "named": each(lambda m: m.named),
        "stopped": shared(records, lambda r: (int(r.stopped), 1)),
        "words": mean(lambda r: r.measured.words),
        "tokens": mean(lambda r: sum(map(len, r.tokens))),
        "repeated": _of_shares(mean(lambda r: r.measured.repeated)),
        "loops": each(lambda m: m.loops),
        "asks_secret": each(lambda m: m.asks_secret),
        "asks_personal": each(lambda m: m.asks_personal),
        "personal": each(lambda m: m.personal),
        "too_long": shared(records, lambda r: (int(bool(r.fault)), 1)),
    }


def milliseconds(records: Sequence[Record]) -> float:
    """Return the median time of a dialogue."""
    return quantile([record.milliseconds for record in records] or [0.0], 0.5)
