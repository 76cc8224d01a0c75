"""The tables of answers: for the terminal, as Markdown, and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tel_edge.eval import documents
from tel_edge.eval.care.answers.against import RULE, Against
from tel_edge.eval.care.answers.cases import Cases
from tel_edge.eval.care.answers.measured import THRESHOLD
from tel_edge.eval.care.answers.records import Summary
from tel_edge.runtime.files.atomic import write_text

SCHEMA_VERSION = 1
REFERENCES = "the data set's"
# Figures in their order, how each is headed and shown (`_shown`).
FIGURES = (
    (
        "Facts, %",
        (
            ("f1", "F1", "percent"),
            ("precision", "precision", "percent"),
            ("recall", "recall", "percent"),
            ("check", "check", "percent"),
            ("fix", "fix", "percent"),
            ("escalate", "escalation", "percent"),
            ("unasked", "unasked", "percent"),
            ("named", "term", "percent"),
        ),
    ),
    (
        "Form: shares in %, words and tokens",
        (
            ("stopped", "stopped", "percent"),
            ("words", "words", "count"),
            ("tokens", "tokens", "count"),
            ("repeated", "repeated", "percent"),
            ("loops", "loops", "percent"),
            ("asks_secret", "asks secret", "percent"),
            ("asks_personal", "asks who", "percent"),
            ("personal", "invents", "percent"),
            ("too_long", "too long", "percent"),
        ),
    ),
)
# Whose intervals the terminal shows.
NARROW = frozenset(("f1", "stopped"))
Rows = list[list[str]]
LEGEND = (
    "Escalation: said where the data set's answer says it; unasked: where that does not. Term: "
    "named. Stopped: ended by the model's own end token within the limit. Repeated: share of "
    "4-grams of words that were there before. Loops: the end goes in circles. Asks secret: for a "
    "PIN, password or code; asks who: for the customer's name, address or numbers. Invents: has an "
    "address or a number of somebody that the customer has not written."
)


def name(part: str) -> str:
    """Return what the report of a part is called, without its suffix."""
    return "care" if part == "test" else f"care.{part}"


def document(
    backbone: str,
    cases: Cases,
    summaries: Sequence[Summary],
    beside: Sequence[Against],
    references: Mapping[str, Any],
) -> dict[str, Any]:
    """Return all that was measured of one part, as the report's JSON has it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "category": "care",
        "backbone": backbone,
        "dataset": cases.dataset,
        "part": cases.part,
        "dialogues": len(cases.cases),
        "scenarios": len({case.scenario for case in cases.cases}),
        "left_out": cases.left_out,
        "said": f"a fact is said by a text that has {THRESHOLD:.0%} of its content words",
        "rule": RULE,
        "references": references,
        "variants": [asdict(one) for one in summaries],
        "against": [asdict(one) for one in beside],
    }


def write(folder: Path, part: str, made: Mapping[str, Any]) -> None:
    """Write the report's two files, `care.json` and `care.md` for the test part."""
    documents.write(folder / f"{name(part)}.json", made)
    write_text(folder / f"{name(part)}.md", markdown(made))


def told(summary: Summary) -> str:
    """Return the line that the terminal shows once a variant has answered."""
    made = asdict(summary)["figures"]
    return (
        f"care         {summary.variant.name:<12} F1 {_shown(made['f1'], 'percent', True)}  "
        f"stopped {_shown(made['stopped'], 'percent', False)}  "
        f"{summary.milliseconds_p50:,.0f} ms"
    )


def text(made: Mapping[str, Any]) -> str:
    """Return the tables as the terminal shows them: with the intervals that matter most."""
    parts = [_head(made)]
    for title, rows in _tables(made, wide=False):
        widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if at == 0 else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        parts.append("\n".join([title, *lines]))
    if verdicts := _verdicts(made):
        parts.append("\n".join([*verdicts, made["rule"]]))
    return "\n\n".join(parts) + "\n"


def markdown(made: Mapping[str, Any]) -> str:
    """Return the report as Markdown."""
    parts = [f"# Answers to customers: {made['backbone']}", _head(made)]
    for title, (head, *rows) in _tables(made, wide=True):
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
        parts += [f"## {title}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    verdicts = _verdicts(made)
    if verdicts:
        parts += ["## Is anything lost", "\n".join(f"- {one}" for one in verdicts), made["rule"]]
    parts.append(LEGEND)
    parts.append(
        f"Measured without judges: {made['said']}, whatever else it says of it. Precision counts "
        "facts of other scenarios as wrong. Intervals are of 95 %, clustered by scenario."
    )
    return "\n\n".join(parts) + "\n"


def _head(made: Mapping[str, Any]) -> str:
    left = f", {made['left_out']:,} left out" if made["left_out"] else ""
    return (
        f"{made['dialogues']:,} dialogues of {made['scenarios']:,} scenarios ({made['part']} part "
        f"of {made['dataset']}{left}); greedy."
    )


def _tables(made: Mapping[str, Any], wide: bool) -> list[tuple[str, Rows]]:
    """Return tables with their titles; `wide` with all intervals, else with those of `NARROW`."""
    rows = [(one["variant"]["name"], one["figures"]) for one in made["variants"]]
    rows.append((REFERENCES, made["references"]))
    found = [(title, _figures(rows, columns, wide)) for title, columns in FIGURES]
    for title, shown in AGAINST if made["against"] else ():
        cells = [[show(one) for show in shown.values()] for one in made["against"]]
        found.append((title, [[*shown], *cells]))
    return found


def _figures(
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    columns: Sequence[tuple[str, str, str]],
    wide: bool,
) -> Rows:
    # What says that something was wrong is left out where nothing was.
    long = any(_of(of, "too_long") for _, of in rows)
    kept = [column for column in columns if long or column[0] != "too_long"]
    return [
        ["variant", *(head for _, head, _ in kept)],
        *(
            [called, *(_shown(of.get(key), how, wide or key in NARROW) for key, _, how in kept)]
            for called, of in rows
        ),
    ]


def _of(figures: Mapping[str, Any], key: str) -> float:
    return float(figures[key]["value"]) if key in figures else 0.0


def _shown(figure: Mapping[str, Any] | None, how: str, wide: bool) -> str:
    """Return a share in percent or a mean of counts, `wide` with its interval."""
    if figure is None or not figure["of"]:
        return "-"
    scale, digits = (100, 1) if how == "percent" else (1, 0)

    def number(value: float) -> str:
        return f"{value * scale:.{digits}f}"

    low, high = figure["low"], figure["high"]
    ends = f" [{number(max(0.0, low))}, {number(high)}]" if wide and low is not None else ""
    return number(figure["value"]) + ends


def _points(f1: Mapping[str, Any]) -> str:
    low, high = f1["low"], f1["high"]
    ends = "" if low is None else f" [{low * 100:+.1f}, {high * 100:+.1f}]"
    return f"{f1['value'] * 100:+.1f}{ends}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _value(figure: Mapping[str, Any] | None) -> float | None:
    return None if figure is None else float(figure["value"])


Column = Callable[[Mapping[str, Any]], str]
AGAINST: tuple[tuple[str, Mapping[str, Column]], ...] = (
    (
        "Along the reference's answers, token by token",
        {
            "variant": lambda one: str(one["variant"]),
            "reference": lambda one: str(one["reference"]),
            "same likeliest, %": lambda one: _shown(one["agreed"], "percent", True),
            "KL mean": lambda one: _number(_value(one["kl"]), ".4f"),
            "KL p99": lambda one: _number(one["kl_p99"], ".3f"),
            "log-prob. lost": lambda one: _number(_value(one["gap"]), "+.4f"),
        },
    ),
    (
        "Own answers beside the reference's",
        {
            "variant": lambda one: str(one["variant"]),
            "same text, %": lambda one: _shown(one["same"], "percent", False),
            "parts at token": lambda one: _number(one["first"], ".0f"),
            "facts lost/won": lambda one: f"{one['lost']}/{one['won']}",
            "wrong more/less": lambda one: f"{one['wrong_more']}/{one['wrong_less']}",
            "F1 points": lambda one: _points(one["f1"]),
        },
    ),
)


def _verdicts(made: Mapping[str, Any]) -> list[str]:
    return [
        f"{one['variant']} beside {one['reference']}, {one['dialogues']:,} dialogues: "
        f"{one['verdict']}"
        for one in made["against"]
    ]
