"""The report's tables as text cells: results, ladder, leakage, footprint and the rest."""

from __future__ import annotations

from statistics import median

from tel_edge.eval.findings.findings import Report, formats, variants
from tel_edge.eval.findings.ladder import Rung
from tel_edge.eval.findings.leakage import Rotations
from tel_edge.eval.findings.sections import Section, VariantRow, best
from tel_edge.eval.findings.sizes import Footprint
from tel_edge.eval.reports.tables import Table, megabytes, number, percent, points, probability
from tel_edge.eval.scoring.records import Summary

# Behind a Pass@1 that a trivial baseline reaches.
MARK = "!"
# Of the terminal's table: letters of a name, and rows.
LONGEST, MOST = 16, 16


def results(report: Report, section: Section) -> Table:
    """Return the table of one category, a row for each variant.

    There is a column for the format as soon as one of them is not GGUF.
    """
    named = ("format",) if set(formats(report)) != {"gguf"} else ()
    votes = sorted({row.summary.k for each in report.sections for row in each.rows})
    header = (
        "category",
        "variant",
        *named,
        "n",
        "Pass@1 (95 %)",
        f"Maj@{votes[0] if len(votes) == 1 else 'k'} (95 %)",
        "points (95 %)",
        "lost/won",
        "verdict",
        "disk MB",
    )
    rows = tuple(_cells(report, row, bool(named)) for row in section.rows)
    return Table(header, rows, words=2 + len(named))


def _cells(report: Report, row: VariantRow, named: bool) -> tuple[str, ...]:
    made, change = row.summary, row.change
    verdict = "reference" if made.variant.name == report.reference else "-"
    return (
        made.category,
        made.variant.name,
        *((made.variant.format.upper(),) if named else ()),
        f"{made.questions:,}",
        percent(made.pass1) + (MARK if row.trivial else ""),
        percent(made.majority),
        points(change.points) if change else "-",
        f"{change.lost}/{change.won}" if change else "-",
        change.verdict if change else verdict,
        megabytes(row.disk),
    )


def statistics(report: Report) -> Table:
    """Return what the verdicts rest on, a row for each variant and category."""
    return Table(
        ("category", "variant", "Maj@k exact", "p", "p (Holm)", "other wrong", "same answer",
         "KL mean", "KL p99", "calibration error", "label mass"),
        tuple(_statistics(row) for section in report.sections for row in section.rows),
        words=2,
    )  # fmt: skip


def _statistics(row: VariantRow) -> tuple[str, ...]:
    made, change = row.summary, row.change
    exact = None if made.majority_exact is None else 100 * made.majority_exact
    error = None if row.calibration_error is None else 100 * row.calibration_error
    mass = None if made.label_mass is None else 100 * made.label_mass
    small = change is not None and change.kl_mean is not None and change.kl_p99 is None
    changed = (
        probability(change.p), probability(change.adjusted), f"{change.other}",
        f"{100 * change.agreement.value:.1f}", number(change.kl_mean, 4),
        "n too small" if small else number(change.kl_p99, 3),
    ) if change else ("-",) * 6  # fmt: skip
    return (
        made.category, made.variant.name, number(exact), *changed, number(error), number(mass)
    )  # fmt: skip


def ladder(report: Report) -> Table:
    """Return every variant over all categories, large before small; `*` is the Pareto front."""
    joules = {rung.variant: _joules(report, rung) for rung in report.ladder}
    measured = any(value is not None for value in joules.values())
    return Table(
        ("variant", "disk MB", "Pass@1", "Maj@k", "points (95 %)", "p", "same answer", "KL mean",
         "verdict", "front", "memory MB", "ms p50", *(("J/question",) if measured else ())),
        tuple(
            (*_rung(report, rung), *((number(joules[rung.variant], 2),) if measured else ()))
            for rung in report.ladder
        ),
    )  # fmt: skip


def short(report: Report) -> tuple[Table, int]:
    """Return the variants over all categories in few columns, and how many have no row.

    Of many these are the reference, those that were looked at to decide, and the first others.
    """
    decided = {report.reference, *report.decision.passed, report.decision.variant}
    kept = sorted(report.ladder, key=lambda rung: rung.variant not in decided)[:MOST]
    rows = tuple(_short(report, rung) for rung in report.ladder if rung in kept)
    head = ("variant", "MB", "Pass@1", "points (95 %)", "verdict", "RAM MB", "ms")
    return Table(head, rows), len(report.ladder) - len(rows)


def _short(report: Report, rung: Rung) -> tuple[str, ...]:
    name, size, right, _, change, *_, verdict, _, memory, time = _rung(report, rung)
    # The longest names would take the line over 80 columns.
    named = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}~"
    return named, size, right, change, verdict.replace(" in ", " "), memory, time


def _rung(report: Report, rung: Rung) -> tuple[str, ...]:
    change = rung.change
    own = rung.variant == report.reference
    verdict = "reference" if own else rung.verdict
    if rung.worst and not own:
        verdict += f" in {len(rung.worst)} of {len(report.sections)}"
    compared = (
        points(change.points), probability(change.p), f"{100 * change.agreement.value:.1f}",
        number(change.kl_mean, 4),
    ) if change and not own else ("-",) * 4  # fmt: skip
    return (
        rung.variant,
        megabytes(rung.bytes),
        f"{100 * rung.pass1:.1f}",
        f"{100 * rung.majority:.1f}",
        *compared,
        verdict,
        "*" if rung.front else "",
        megabytes(rung.memory),
        number(rung.milliseconds),
    )


def _joules(report: Report, rung: Rung) -> float | None:
    known = [s.joules_per_question for s in _summaries(report, rung.variant)]
    found = [value for value in known if value is not None]
    return sum(found) / len(found) if found and len(found) == len(known) else None


def _summaries(report: Report, variant: str) -> list[Summary]:
    rows = [row.summary for section in report.sections for row in section.rows]
    return [summary for summary in rows if summary.variant.name == variant]


def footprint(report: Report) -> Table:
    """Return memory and time of each variant: the largest, or the median, over the categories."""
    return Table(
        ("variant", "disk MB", "anonymous MB", "file MB", "peak MB", "KV KiB/token",
         "KV MB, full context", "first answer ms", "ms p50", "ms p95", "J/question", "power mode"),
        tuple(_footprint(report, name) for name in variants(report)),
    )  # fmt: skip


def _footprint(report: Report, name: str) -> tuple[str, ...]:
    made = _summaries(report, name)
    kv = max((s.kv_bytes_per_token for s in made if s.kv_bytes_per_token), default=None)
    context = max((s.context for s in made if s.context), default=None)
    first = [s.first_answer_ms for s in made if s.first_answer_ms is not None]
    joules = [s.joules_per_question for s in made if s.joules_per_question is not None]
    return (
        name,
        megabytes(max(s.variant.disk for s in made)),
        megabytes(max((s.memory_anonymous for s in made if s.memory_anonymous), default=None)),
        megabytes(max((s.memory_file for s in made if s.memory_file), default=None)),
        megabytes(max((s.memory_peak for s in made if s.memory_peak), default=None)),
        number(kv and kv / 1024),
        megabytes(kv * context if kv and context else None),
        number(median(first) if first else None),
        number(median(s.milliseconds_p50 for s in made)),
        number(max(s.milliseconds_p95 for s in made)),
        number(sum(joules) / len(joules) if joules else None, 2),
        " or ".join(dict.fromkeys(s.power_mode for s in made if s.power_mode)) or "-",
    )


def leakage(report: Report) -> Table:
    """Return the trivial baselines and the checks of each category beside the reference's score."""
    return Table(
        ("category", report.reference, "chance", "best trivial baseline", "near-duplicates",
         "Pass@1 on them", "on the rest", "all orders", "spread (by chance)", "same option"),
        tuple(_leakage(report, section) for section in report.sections),
    )  # fmt: skip


def _leakage(report: Report, section: Section) -> tuple[str, ...]:
    row = next((r for r in section.rows if r.summary.variant.name == report.reference), None)
    made, top, leaks = section.baselines, best(section.baselines), section.leakage
    cells = [
        section.category,
        percent(row.summary.pass1) + (MARK if row.trivial else "") if row else "-",
        f"{100 * made.chance:.1f}" if made else "-",
        f"{top.name} {100 * top.share.value:.1f}" if top else "-",
    ]
    seen = leaks.seen if leaks else None
    cells += (
        [f"{seen.count} of {seen.of:,}", percent(seen.alike) if seen.count else "-",
         percent(seen.rest)]
        if seen
        else ["-"] * 3
    )  # fmt: skip
    turned = [r for r in (leaks.rotations if leaks else ()) if r.variant == report.reference]
    cells += (
        [percent(turned[0].mean), _spread(turned[0]), f"{100 * turned[0].steady.value:.1f}"]
        if turned
        else ["-"] * 3
    )  # fmt: skip
    return tuple(cells)


def _spread(made: Rotations) -> str:
    """Return the spread of the orders beside the one that noise alone seldom exceeds."""
    return f"{100 * made.spread:.1f} ({100 * made.spread_by_chance:.1f})"


def positions(report: Report) -> Table:
    """Return Pass@1 of the reference by the place of the right answer."""
    return Table(
        ("category", "right answer", "questions", "Pass@1 (95 %)", "of all answers",
         "of all picks"),
        tuple(
            (
                section.category, each.label, f"{each.right.of:,}", percent(each.right),
                f"{100 * each.gold:.1f}", f"{100 * each.picked:.1f}",
            )
            for section in report.sections
            if section.leakage
            for each in section.leakage.positions
        ),
        words=2,
    )  # fmt: skip


def rotations(report: Report) -> Table:
    """Return Pass@1 over all cyclic orders of the options, a row for each variant that has it."""
    return Table(
        ("category", "variant", "questions", "all orders (95 %)", "by places moved",
         "spread (by chance)",
         "same option in all"),
        tuple(
            (
                section.category, each.variant, f"{each.questions:,}", percent(each.mean),
                " ".join(f"{100 * one.value:.1f}" for one in each.by_shift),
                _spread(each), percent(each.steady),
            )
            for section in report.sections
            if section.leakage
            for each in section.leakage.rotations
        ),
        words=2,
    )  # fmt: skip


def reliability(report: Report) -> Table:
    """Return the bins of the reliability plot."""
    return Table(
        ("variant", "confidence", "answers", "mean confidence", "right (95 %)"),
        tuple(
            (
                name, f"{100 * each.low:.0f}-{100 * each.high:.0f}", f"{each.count:,}",
                f"{100 * each.confidence:.1f}", percent(each.accuracy),
            )
            for name, bins in report.reliability.items()
            for each in bins
        ),
        words=2,
    )  # fmt: skip


def checks(report: Report) -> Table:
    """Return what the report's own checks found."""
    return Table(
        ("check", "category", "variant", "what"),
        tuple(
            (("" if each.certain else "perhaps: ") + each.kind, each.category, each.variant,
             each.text)
            for each in report.checks
        ),
        words=4,
    )  # fmt: skip


def floor(section: Section) -> str:
    """Return the sentence on chance and the best trivial baseline, or nothing."""
    made, top = section.baselines, best(section.baselines)
    if not made or not top:
        return ""
    return f"chance {made.chance:.1%}, best trivial baseline {top.name} {top.share.value:.1%}"


def disk(report: Report) -> Table:
    """Return the disk table: one backbone with all adapters against a merged model each."""
    return Table(
        ("type", "adapters", "backbone MB", "adapters MB", "together MB", "merged models MB"),
        tuple(
            (
                f"{made.quant} ({made.format.upper()})",
                str(made.categories),
                megabytes(made.backbone),
                megabytes(made.adapters),
                megabytes(made.together),
                _merged(made),
            )
            for made in report.footprints
        ),
    )


def _merged(made: Footprint) -> str:
    """Return the sum that the disk of a merged model each is."""
    shared = f" + {megabytes(made.tokenizer)}" if made.tokenizer else ""
    each = megabytes(made.backbone - made.tokenizer)
    return f"{made.categories} x {each}{shared} = {megabytes(made.merged)}"


def baselines(report: Report) -> Table:
    """Return every trivial baseline of every category."""
    return Table(
        ("category", "baseline", "n", "right (95 %)"),
        tuple(
            (section.category, made.name, str(made.share.of), percent(made.share))
            for section in report.sections
            if section.baselines
            for made in section.baselines.baselines
        ),
        words=2,
    )


def trainings(report: Report) -> Table:
    """Return time, size and configuration of each adapter's training."""
    return Table(
        ("category", "configuration", "seconds", "parameters"),
        tuple(
            (
                made.category,
                ", ".join(f"{name} {value}" for name, value in sorted(made.config.items())) or "-",
                "-" if made.seconds is None else f"{made.seconds:,.0f}",
                "-" if made.parameters is None else f"{made.parameters:,}",
            )
            for made in report.trainings
        ),
        words=2,
    )


def settings(report: Report) -> Table:
    """Return what the results were made with."""
    return Table(("setting", "value"), tuple(sorted(report.settings.items())), words=2)
