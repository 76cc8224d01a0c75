"""What the report says of the router: a paragraph and two tables."""

from __future__ import annotations

from tel_edge.eval.reports.tables import Table, megabytes, percent
from tel_edge.eval.scoring.router_figures import Measured


def text(made: Measured) -> str:
    """Return what the router is, how it was measured and how its tables are read."""
    trained = "" if made.seconds is None else f", trained in {made.seconds:,.0f} s"
    return (
        f"A request without a category goes to one of {len(made.whole.categories)}, chosen by a "
        f"linear model over hashed n-grams ({megabytes(made.bytes)} MB{trained}; "
        f"{made.microseconds_p50:,.0f} µs a request), or below a probability of "
        f"{made.threshold:.2f} to the bare backbone. Measured on the {made.part} part of "
        f"{made.dataset}, {made.whole.right.of:,} questions; other fields are ones that it was "
        "never shown, such as law or music. Rows of the second table are what the requests "
        "(question and choices) are, columns where they went."
    )


def figures(made: Measured) -> Table:
    """Return the router's shares, with the choices and without."""
    wordings = {
        "right (an abstention is wrong)": "right",
        "right among those routed": "routed",
        "right without abstaining": "forced",
        "abstained": "abstained",
    }
    rows = [
        (wording, *(percent(getattr(each, name)) for each in (made.whole, made.alone)))
        for wording, name in wordings.items()
    ]
    if made.others and made.others_alone:
        left = f"left alone of {made.others.of} requests of other fields"
        rows.append((left, percent(made.others), percent(made.others_alone)))
    return Table(("percent (95 %)", "question and choices", "question alone"), tuple(rows))


def matrix(made: Measured) -> Table:
    """Return how many requests of each category went where."""
    return Table(
        ("", *made.whole.categories, "abstained"),
        tuple(
            (name, *(f"{count:,}" for count in row))
            for name, row in zip(made.whole.categories, made.whole.counts, strict=True)
        ),
    )
