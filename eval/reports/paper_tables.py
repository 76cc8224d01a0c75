"""The reference paper's tables, and its figures as tables, from measured results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from tel_edge.eval.findings import published
from tel_edge.eval.findings.paper import RANKED, Line, Paper
from tel_edge.eval.reports.tables import Table, megabytes, percent, points
from tel_edge.eval.scoring.records import Summary
from tel_edge.runtime.questions.categories import CATEGORIES

# Questions of the train, validation and test part, by category.
Questions = Mapping[str, tuple[int, int, int]]
TOO_SMALL = "n too small"
MEAN = f"plain mean of all {len(CATEGORIES)}"


def tables(paper: Paper, questions: Questions | None = None) -> tuple[tuple[str, Table], ...]:
    """Return titles and tables, those without rows left out.

    With `questions`, Table 1 is there too, and Table 2 says where fewer were scored than there are.
    """
    made = (
        ("Table 1: questions of each category by part", parts(questions or {})),
        ("Table 2: seen and unseen", seen_unseen(paper, questions or {})),
        ("Figures 1 and 2: before and after", before_after(paper)),
        ("Figure 3: rank", ranks(paper)),
    )
    return tuple((title, table) for title, table in made if table.rows)


def parts(questions: Questions) -> Table:
    """Return Table 1."""
    rows = []
    for name, counts in questions.items():
        title = CATEGORIES[name].title if name in CATEGORIES else name
        rows.append((title, *(f"{count:,}" for count in (sum(counts), *counts))))
    return Table(("category", "all", "train", "validation", "test"), tuple(rows))


def seen_unseen(paper: Paper, questions: Questions) -> Table:
    """Return Table 2: Pass@1 in percent, the gap in points; without seen parts it has no rows."""
    beside = any(line.published for line in paper.lines)
    rows = []
    if beside or any(line.seen for line in paper.lines):
        for group in _backbones(paper):
            rows += [_pair(line, questions, beside) for line in group if line.seen or line.after]
            rows += _mean_pair(group, beside)
    named = ("published seen", "published unseen", "published gap") if beside else ()
    header = ("backbone", "category", "n seen", "n unseen", "seen Pass@1 (95 %)")
    return Table((*header, "unseen Pass@1 (95 %)", "gap (95 %)", *named), tuple(rows), words=2)


def before_after(paper: Paper) -> Table:
    """Return the values of Figures 1 and 2 in percent, where there is an after."""
    large = any(paper.reference(line) for line in paper.lines)
    k = votes(paper)
    header = ["backbone", "category", *(["large reference"] if large else [])]
    for name in ("Pass@1", k):
        header += [f"{name} before", f"{name} after", *([f"{name} reference"] if large else [])]
    rows = []
    for group in _backbones(paper):
        # Without an after it is the main table's row and no comparison.
        shown = [line for line in group if line.after]
        for line in shown:
            reference = paper.reference(line)
            trio = [line.before, line.after, *([reference] if large else [])]
            cells = [percent(s.pass1) if s else "-" for s in trio]
            cells += [percent(s.majority) if s else "-" for s in trio]
            named = [reference.backbone if reference else "-"] if large else []
            rows.append((line.backbone, line.category, *named, *cells))
        rows += _mean_before_after(paper, shown, large)
    return Table(tuple(header), tuple(rows), words=3 if large else 2)


def ranks(paper: Paper) -> Table:
    """Return the values of Figure 3, Maj@4 in percent."""
    beside = any(point.published for found in paper.ranks.values() for point in found)
    rows = []
    for name, found in paper.ranks.items():
        for point in found:
            share, paper_has = point.majority, point.published
            cells = [name, str(point.rank), f"{share.of:,}" if share else "-"]
            cells += [megabytes(point.adapter_bytes), percent(share) if share else "-"]
            if beside:
                size = paper_has.megabytes if paper_has else None
                cells += [f"{paper_has.majority:.2f}" if paper_has else "-"]
                cells += ["-" if size is None else f"{size:.2f}"]
            rows.append(tuple(cells))
    header = ["backbone", "rank", "n", "adapter MB", f"Maj@4 on {RANKED} (95 %)"]
    header += ["published Maj@4", "published MB (2^20)"] if beside else []
    return Table(tuple(header), tuple(rows))


def notes(paper: Paper, questions: Questions | None = None) -> tuple[str, ...]:
    """Return what a reader of the tables must know, a sentence each."""
    said = []
    if any(line.seen for line in paper.lines):
        said.append(
            "seen: the train part, unseen: the test part; gap: seen less unseen Pass@1 in points, "
            "with Newcombe's 95 % interval for independent shares"
        )
    if questions and any("of" in row[2] + row[3] for row in seen_unseen(paper, questions).rows):
        said.append("n is written as scored of all where only some of a part's questions were")
    if any(line.published for line in paper.lines):
        said.append(
            "published: the reference paper's Table 2, made with its own split and prompt; "
            "not measured here"
        )
    if any(point.published for found in paper.ranks.values() for point in found):
        said.append(
            "published MB are of 2^20 bytes by their size, the measured ones of 10^6; the backbone "
            "of the published ranks is inferred from these sizes"
        )
    return (*said, *paper.notes)


def votes(paper: Paper) -> str:
    """Return what the majority of the draws is called: Maj@4, or Maj@k if results differ in k."""
    made = {s.k for line in paper.lines for s in (line.before, line.after) if s}
    made |= {s.k for s in paper.references}
    return f"Maj@{made.pop() if len(made) == 1 else 'k'}"


def _backbones(paper: Paper) -> list[list[Line]]:
    by: dict[str, list[Line]] = {}
    for line in paper.lines:
        by.setdefault(line.backbone, []).append(line)
    return list(by.values())


def _pair(line: Line, questions: Questions, beside: bool) -> tuple[str, ...]:
    whole = questions.get(line.category)
    cells = [line.backbone, line.category]
    cells += [_count(line.seen, whole and whole[0]), _count(line.after, whole and whole[2])]
    cells += [percent(s.pass1) if s else "-" for s in (line.seen, line.after)]
    cells.append(_gap(line))
    if beside:
        made = line.published
        cells += [f"{made.seen:.2f}", f"{made.unseen:.2f}"] if made else ["-", "-"]
        cells.append(f"{made.gap:+.2f}" if made else "-")
    return tuple(cells)


def _count(made: Summary | None, whole: int | None) -> str:
    if made is None:
        return "-"
    # Questions too long for the context are among `questions`, but none was asked.
    asked = made.questions - made.too_long
    return f"{asked:,}" if whole in (None, asked) else f"{asked:,} of {whole:,}"


def _gap(line: Line) -> str:
    if not line.seen or not line.after:
        return "-"
    return points(line.gap) if line.gap else TOO_SMALL


def _mean_pair(group: Sequence[Line], beside: bool) -> list[tuple[str, ...]]:
    """Return the row of means, if a part was scored in all categories."""
    seen = _mean(group, partial(_value, lambda line: line.seen, "pass1"))
    unseen = _mean(group, partial(_value, lambda line: line.after, "pass1"))
    if seen is None and unseen is None:
        return []
    cells = [group[0].backbone, MEAN, "", ""]
    cells += ["-" if value is None else f"{value * 100:.1f}" for value in (seen, unseen)]
    gap = _mean(group, lambda line: line.gap.value if line.gap else None)
    alone = TOO_SMALL if None not in (seen, unseen) else "-"
    cells.append(alone if gap is None else f"{round(gap * 100, 1) + 0.0:+.1f}")
    if beside:
        pairs = [line.published for line in group if line.category in CATEGORIES]
        made: list[published.ModelPair] = [pair for pair in pairs if pair]
        for name, form in (("seen", ".2f"), ("unseen", ".2f"), ("gap", "+.2f")):
            mean = sum(getattr(pair, name) for pair in made) / max(1, len(made))
            cells.append(format(mean, form) if len(made) == len(CATEGORIES) else "-")
    return [tuple(cells)]


def _mean_before_after(paper: Paper, group: Sequence[Line], large: bool) -> list[tuple[str, ...]]:
    picks: list[Callable[[Line], Summary | None]] = [lambda line: line.before]
    picks += [lambda line: line.after, *([paper.reference] if large else [])]
    means = [
        _mean(group, partial(_value, pick, name))
        for name in ("pass1", "majority")
        for pick in picks
    ]
    cells = ["-" if mean is None else f"{mean * 100:.1f}" for mean in means]
    if set(cells) <= {"-"}:
        return []
    return [(group[0].backbone, MEAN, *([""] if large else []), *cells)]


def _value(pick: Callable[[Line], Summary | None], measure: str, line: Line) -> float | None:
    made = pick(line)
    return float(getattr(made, measure).value) if made else None


def _mean(group: Sequence[Line], of: Callable[[Line], float | None]) -> float | None:
    """Return the plain mean over the categories of the data set, None if one is missing."""
    values = {line.category: value for line in group if (value := of(line)) is not None}
    if not values.keys() >= CATEGORIES.keys():
        return None
    return sum(values[name] for name in CATEGORIES) / len(CATEGORIES)
