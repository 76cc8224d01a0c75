"""What was measured of several variants side by side, and which of them is to answer.

A smaller type is often the faster one and answers worse, which no rate shows. What the gate found
when a file was made stands in the manifest, over a few prompts: enough to see a type that is far
away. What it costs in accuracy is `tel-eval`'s to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from tel_edge.runtime.measuring import tune
from tel_edge.runtime.measuring.measurement import K, Measurement
from tel_edge.runtime.measuring.probe import Subject

# So many times the Kullback-Leibler divergence of another variant is told: over a dozen prompts
# less is chance. And what is below this many nats changes hardly an answer.
FARTHER, NEAR = 3.0, 0.01


def table(of: Sequence[tuple[Subject, Measurement]]) -> str:
    """Return measurements as aligned lines, a column each, under titles if there are several."""
    columns = [_rows(made) + _near(what) for what, made in of]
    rows = [(row[0], *(column[at][1] for column in columns)) for at, row in enumerate(columns[0])]
    if len(of) > 1:
        rows.insert(0, ("", *(what.title for what, _ in of)))
    wide = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(wide[0]), *map(str.rjust, values, wide[1:])]).rstrip()
        for name, *values in rows
    )


def _rows(of: Measurement) -> list[tuple[str, str]]:
    first, swap, used = of.first_answer, of.swap, of.memory
    rows = [
        ("questions/s", f"{of.questions_per_second:,.2f}"),
        (f"  with Maj@{K}", f"{of.maj_per_second:,.2f}"),
        ("tokens/s", f"{of.tokens_per_second:,.1f}"),
        ("  plain prefill", f"{of.plain_rate:,.1f}"),
        ("  times plain prefill", f"{of.share:.2f}"),
        ("tokens a question", f"{of.tokens_per_question:,.1f}"),
        ("  computed", f"{of.computed_per_question:,.1f}"),
        ("first answer", _ms(first.total_ms)),
        ("  checks, library", _ms(first.checks_ms)),
        ("  load", _ms(first.load_ms)),
        ("  context", _ms(first.context_ms)),
        ("  adapter", _ms(first.adapter_ms)),
        ("  prefill", _ms(first.prefill_ms)),
    ]
    if swap:
        rows += [
            ("adapter swap", ""),
            ("  load, once", _ms(swap.load_ms)),
            ("  set", _ms(swap.set_ms)),
            ("  question after it", _ms(swap.prefill_ms)),
            ("  question without", _ms(swap.stay_ms)),
        ]
    rows += [
        ("memory, peak", _mb(used.peak)),
        ("  anonymous", _mb(used.anonymous)),
        ("  file-backed", _mb(used.file)),
        ("buffers", ""),
        ("  weights, mapped", _mb(used.weights)),
        ("  weights, copied", _mb(used.repacked)),
        ("  KV cache", _mb(used.kv)),
        ("  compute", _mb(used.compute)),
        ("  output", _mb(used.output)),
        ("  adapters", _mb(used.adapters)),
        ("  rest", _mb(used.rest)),
    ]
    return rows


def _near(of: Subject) -> list[tuple[str, str]]:
    known = of.backbone.parity or {}
    cells = [
        "-" if known.get(name) is None else f"{known[name]:{form}}"
        for name, form in (("kl", ".1e"), ("picks", ".0%"))
    ]
    return list(zip(("KL beside the float model", "  picks as it"), cells, strict=True))


def _ms(value: float) -> str:
    return f"{value:,.2f} ms"


def _mb(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e6:,.1f} MB"


def verdict(rates: Mapping[str, Sequence[float]]) -> str:
    """Return which of several has the highest rates in questions/s, and by how much."""
    (name, runs), (other, others), *_ = sorted(rates.items(), key=lambda one: -mean(one[1]))
    says = "faster" if len(rates) == 2 else "fastest"
    if _as_fast(others, runs):
        ranges = (
            f"{of} {min(own):,.2f}-{max(own):,.2f}" for of, own in ((name, runs), (other, others))
        )
        return f"no clear difference on this machine: {', '.join(ranges)} questions/s"
    rate, ratio = mean(runs), mean(runs) / mean(others)
    return f"{says} on this machine: {name}, {rate:,.2f} questions/s, {ratio:.2f} times {other}"


def _as_fast(runs: Sequence[float], best: Sequence[float]) -> bool:
    """Return whether rates are not below the best ones by more than a machine varies."""
    return max(runs) >= min(best) or mean(runs) * tune.GAIN >= mean(best)


def chosen(whats: Sequence[Subject], rates: Sequence[Sequence[float]]) -> int:
    """Return which variant is to answer: the fastest, of those that are as fast the nearest.

    Nearest is the one with the least divergence from the float model, where all of them have one.
    """
    best = max(rates, key=mean)
    fast = [at for at, runs in enumerate(rates) if _as_fast(runs, best)]
    near = {at: _divergence(whats[at]) for at in fast}
    known = None not in near.values()
    return min(fast, key=lambda at: (near[at] if known else 0, -mean(rates[at])))


def warning(whats: Sequence[Subject], at: int) -> str:
    """Return what to tell of the variant `at` if another one is much nearer, "" otherwise."""
    own = _divergence(whats[at])
    others = [(found, what) for what in whats if (found := _divergence(what)) is not None]
    if own is None or own <= NEAR or not others:
        return ""
    least, nearest = min(others, key=lambda one: one[0])
    if own <= FARTHER * least:
        return ""
    return (
        f"warning: {whats[at].title} is further from the float model than {nearest.title} "
        f"(KL {own:.1e}, {least:.1e}); tel-eval compares their accuracy, and --quant "
        f"{nearest.backbone.quant} answers with the nearer one"
    )


def _divergence(of: Subject) -> float | None:
    found = (of.backbone.parity or {}).get("kl")
    # It is none below 0 but by rounding.
    return None if found is None else max(found, 0.0)
