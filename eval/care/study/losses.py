"""Whether the losses rank systems as the judges do: the study's question, and its answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tel_edge.eval.agreement import RankCorrelation, least_tau, rank_correlations
from tel_edge.eval.care.judges.verdicts import PANEL
from tel_edge.eval.care.study.strength import Fit, Standing, apart
from tel_edge.eval.reports.tables import Table
from tel_edge.eval.statistics import FEWEST, Z95, holm

# The parts that losses are of, the one that the epoch was chosen by first.
PARTS = ("validation", "test", "unseen")
AGREE, DISAGREE, UNTOLD = "agree", "disagree", "cannot be told"
# Source: the abstract of arXiv 2606.05176; its data, judges and sixteen rows are its own.
PAPER = (
    "published in arXiv 2606.05176 (Qwen2.5-3B, other dialogues, two judges, 16 configurations): "
    "the lowest validation loss, 0.5024, was ranked 6th to 7th, the highest, 0.6807, first by both"
)
PUBLISHED = ("0.5024", "6 to 7", "0.6807", "1")


@dataclass(frozen=True)
class LossRank:
    """How one part's loss ranks systems beside one judge: -1 where the lower loss is the better.

    `adjusted` is the p value of tau, corrected by Holm over the judges of that part; the panel,
    which is of the same verdicts, has a test of its own.
    """

    judge: str
    part: str
    tau: RankCorrelation
    rho: RankCorrelation
    adjusted: float | None


@dataclass(frozen=True)
class Verdict:
    """The answer: `kind` is agree, disagree or cannot be told; `headline` is one sentence."""

    kind: str
    headline: str
    sentences: tuple[str, ...]


Losses = Mapping[str, Sequence[float | None]]


def against(losses: Losses, scores: Mapping[str, Sequence[float]]) -> tuple[LossRank, ...]:
    """Return the correlations of each part's losses with each judge's scores, in systems' order.

    Systems without a loss are left out; of fewer than `FEWEST` with one there is nothing.
    """
    found: list[LossRank] = []
    for part, values in losses.items():
        made = []
        for judge, own in scores.items():
            known = [(a, b) for a, b in zip(values, own, strict=True) if a is not None]
            both = rank_correlations([a for a, _ in known], [b for _, b in known])
            if both:
                tau, rho = both
                made.append(LossRank(judge, part, tau, rho, None))
        single = [one for one in made if one.judge != PANEL and one.tau.p is not None]
        adjusted = holm([float(one.tau.p or 0) for one in single])
        by = {one.judge: p for one, p in zip(single, adjusted, strict=True)}
        found += [replace(one, adjusted=by.get(one.judge, one.tau.p)) for one in made]
    return tuple(found)


def decided(
    ranks: Sequence[LossRank],
    losses: Sequence[float | None],
    panel: Sequence[Standing],
    fit: Fit | None,
    broken: Sequence[str],
    who: str,
) -> Verdict:
    """Return whether validation losses and the panel agree, whose judges are called `who`.

    `broken` says why nothing can be believed.

    They agree where tau is below 0 beyond chance. They disagree where it is above 0 beyond chance,
    or where the system with the lowest loss is beyond doubt not the best.
    """
    known = [pair for pair in zip(losses, panel, strict=False) if pair[0] is not None]
    tau = next((one.tau for one in ranks if (one.judge, one.part) == (PANEL, PARTS[0])), None)
    both, why = f"the validation loss and the {who}", ""
    if fit is None:
        why = "no chain of judged pairs joins all systems; go on with tel-judge"
    elif broken:
        why = f"{broken[0]}; see the checks"
    elif tau is None:
        why = f"{len(known)} systems have a validation loss, {FEWEST} are needed"
    elif tau.value is None:
        why = "all losses or all scores are equal"
    if fit is None or tau is None or why:
        return Verdict(UNTOLD, f"whether {both} agree cannot be told, because {why}", ())
    order = sorted(known, key=lambda pair: (pair[0], pair[1].system))
    least, most = order[0][1], order[-1][1]
    value, p = float(tau.value or 0), float(tau.p or 0)
    sentences = (
        f"Kendall's tau-b {value:+.2f} over {tau.n} systems (-1: the loss ranks as the panel "
        f"does), p {_p(p)}; chance reaches |tau| {least_tau(tau.n):.2f} in 5 %",
        f"the lowest validation loss, {least.system}, is ranked {places(least)}; the highest, "
        f"{most.system}, {places(most)}",
        _parts(ranks),
        _judges(ranks),
    )
    kind, headline = DISAGREE, f"{both} disagree, because "
    if p < 0.05 and value < 0:
        top = "" if least.rank_low == 1 else ", though not on which is best"
        kind, headline = AGREE, f"{both} agree{top}"
    elif p < 0.05:
        headline += "systems with a lower loss are ranked lower"
    elif least.rank_low > 1:
        headline += f"the lowest loss, {least.system}, is ranked {places(least)}"
    else:
        why = _unsure(value, p, panel, fit)
        kind, headline = UNTOLD, f"whether {both} agree cannot be told, because {why}"
    return Verdict(kind, headline, tuple(one for one in sentences if one))


def places(one: Standing) -> str:
    """Return a rank with its interval."""
    if one.rank_low == one.rank_high:
        return str(one.rank)
    return f"{one.rank} [{one.rank_low}-{one.rank_high}]"


def beside(losses: Sequence[float | None], panel: Sequence[Standing]) -> Table:
    """Return where the lowest and the highest validation loss are ranked, ours and published."""
    header = ("", "lowest loss", "its rank", "highest loss", "its rank")
    known = [pair for pair in zip(losses, panel, strict=False) if pair[0] is not None]
    if not known:
        return Table(header, ())
    low, high = (of(known, key=lambda pair: (pair[0], pair[1].system)) for of in (min, max))
    own = (f"{low[0]:.4f}", places(low[1]), f"{high[0]:.4f}", places(high[1]))
    return Table(header, (("this study", *own), ("published, others' data", *PUBLISHED)))


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "below 0.001"


def _unsure(value: float, p: float, panel: Sequence[Standing], fit: Fit) -> str:
    """Return why nothing can be told: order as by chance, and how far ranks are from sure."""
    said = f"chance gives a tau of {value:+.2f} or stronger with p {_p(p)}"
    if wanted := prompts_for_best(panel, fit):
        said += (
            f", and the best two are not told apart: of {len(fit.moves)} scenarios, about "
            f"{wanted:,} would be needed if the difference is real"
        )
    return said


def prompts_for_best(panel: Sequence[Standing], fit: Fit) -> int | None:
    """Return of how many scenarios the first would be told from the second, None where it is.

    By the difference that there is, at 5 % two-sided and with a power of 80 %.
    """
    order = sorted(range(len(panel)), key=lambda at: -panel[at].score.value)
    gap, error = apart(fit, order[0], order[1])
    if not error or gap > Z95 * error:
        return None
    # Of no difference at all no number is enough.
    times = (Z95 + 0.8416) * error / max(gap, 1e-3)
    return math.ceil(len(fit.moves) * times**2)


def _parts(ranks: Sequence[LossRank]) -> str:
    """Return how the other losses rank, which tells a loss that misranks from parts that differ."""
    own = [one for one in ranks if one.judge == PANEL and one.part != PARTS[0]]
    said = [
        f"{one.part} {one.tau.value:+.2f} (p {_p(one.tau.p)})"
        for one in own
        if one.tau.value is not None and one.tau.p is not None
    ]
    if not said:
        return ""
    return (
        f"by the losses on other parts tau is {', '.join(said)}: test is of the judged prompts' "
        "own references, unseen of terms that no training has"
    )


def _judges(ranks: Sequence[LossRank]) -> str:
    own = [one for one in ranks if one.judge != PANEL and one.part == PARTS[0]]
    said = [
        f"{one.judge} {one.tau.value:+.2f} (p {_p(one.adjusted)})"
        for one in own
        if one.tau.value is not None and one.adjusted is not None
    ]
    if len(said) < 2:
        return ""
    return f"single judges, p corrected by Holm over {len(said)}: {', '.join(said)}"
