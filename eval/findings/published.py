"""What the reference paper prints, as data to lay beside results, never among them.

Source: "Towards Edge-deployable Telecom Intelligence with Efficient Small Language Models", its
Table 2 and Figure 3; shares are in percent. Its split, prompt and precision are its own, so these
are figures to compare with and none to be equal to.
"""

from __future__ import annotations

from dataclasses import dataclass

# Of the paper's MB: 16 x 704,512 float32 weights are 43.00 such on Llama-3.2-1B, 45.09 x 10^6.
MEBIBYTE = 2**20


@dataclass(frozen=True)
class ModelPair:
    """A cell of Table 2: Pass@1 of an adapted backbone on the train part and on the test part."""

    backbone: str
    category: str
    seen: float
    unseen: float

    @property
    def gap(self) -> float:
        """Return seen less unseen, in points."""
        return self.seen - self.unseen


@dataclass(frozen=True)
class Rank:
    """A point of Figure 3: Maj@4 with an adapter of this rank, and its size where printed."""

    backbone: str
    category: str
    rank: int
    majority: float
    megabytes: float | None = None


TABLE_2 = (
    ModelPair("llama-3.2-1b", "teleqna", 66.38, 57.15),
    ModelPair("llama-3.2-1b", "sixg_bench", 63.28, 61.74),
    ModelPair("llama-3.2-1b", "3gpp_tsg", 53.50, 45.25),
    ModelPair("llama-3.2-1b", "oranbench", 75.78, 61.67),
    ModelPair("llama-3.2-1b", "srsranbench", 92.12, 86.05),
    ModelPair("llama-3.2-1b", "teletables", 58.33, 27.00),
    ModelPair("qwen3-0.6b", "teleqna", 72.02, 58.15),
    ModelPair("qwen3-0.6b", "sixg_bench", 30.14, 28.05),
    ModelPair("qwen3-0.6b", "3gpp_tsg", 36.33, 30.00),
    ModelPair("qwen3-0.6b", "oranbench", 50.67, 45.00),
    ModelPair("qwen3-0.6b", "srsranbench", 76.47, 78.41),
    ModelPair("qwen3-0.6b", "teletables", 21.00, 12.00),
    ModelPair("exaone-4.0-1.2b", "teleqna", 69.40, 56.45),
    ModelPair("exaone-4.0-1.2b", "sixg_bench", 83.48, 79.60),
    ModelPair("exaone-4.0-1.2b", "3gpp_tsg", 26.00, 19.00),
    ModelPair("exaone-4.0-1.2b", "oranbench", 65.33, 64.33),
    ModelPair("exaone-4.0-1.2b", "srsranbench", 79.36, 78.74),
    ModelPair("exaone-4.0-1.2b", "teletables", 25.67, 17.00),
)
# The backbone is inferred: of the three, only Llama-3.2-1B's adapters have these sizes.
FIGURE_3 = (
    Rank("llama-3.2-1b", "3gpp_tsg", 4, 34.25),
    Rank("llama-3.2-1b", "3gpp_tsg", 8, 41.75),
    Rank("llama-3.2-1b", "3gpp_tsg", 16, 40.75, 43.03),
    Rank("llama-3.2-1b", "3gpp_tsg", 32, 41.75, 86.03),
)


def pair(backbone: str, category: str) -> ModelPair | None:
    """Return the cell of Table 2, None where the paper has none."""
    return next((r for r in TABLE_2 if (r.backbone, r.category) == (backbone, category)), None)


def rank_bytes(point: Rank) -> float:
    """Return the adapter's size in bytes; where none is printed, in proportion to the rank."""
    if point.megabytes is not None:
        return point.megabytes * MEBIBYTE
    printed = next(row for row in FIGURE_3 if row.megabytes is not None)
    return rank_bytes(printed) * point.rank / printed.rank


def rank_source() -> str:
    """Return the sentences on where the values of Figure 3 are from."""
    sizes = " and ".join(
        f"{row.megabytes:.2f} MB at rank {row.rank}" for row in FIGURE_3 if row.megabytes
    )
    return (
        "paper Maj@4: published in Figure 3 of the reference paper, in percent, with another split "
        f"and prompt; its adapters have {sizes} (MB of 2^20 bytes), which are those of "
        "Llama-3.2-1B. No figures to be equal to, but a shape to compare."
    )
