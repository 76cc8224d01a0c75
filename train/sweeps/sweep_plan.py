"""What a sweep runs: presets and grids, turned into trainings and checked before any begins."""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tel_edge.eval.findings import published
from tel_edge.runtime.bundles import backbones
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import digest
from tel_edge.runtime.questions.categories import categories
from tel_edge.train import recipes
from tel_edge.train.dialogues.job import check, spoken

# What a run can differ in, all of them options of tel-train; the second lot takes no value there.
VALUES = (
    *("rank", "alpha", "dropout", "targets", "loss", "select-by", "recipe", "epochs", "batch"),
    *("learning-rate", "max-train", "seed", "backbone", "category", "dataset", "over-quant"),
    *("orders", "exchanged", "told", "revision", "stop-rate"),
)
FLAGS = ("rslora", "checkpointing", "strict")
DATASETS = ("ot-mini", "ot-full")
# File systems take names of up to 255 bytes.
LONGEST = 120
Axes = Mapping[str, Sequence[str]]


# What `--backbone` is where nobody says it.
DEFAULT = "tel-nano"


@dataclass(frozen=True)
class Preset:
    """A grid by name. With `doubled` alpha is twice the rank, so that the scale stays.

    `reference` are published Maj@4 by rank, in percent, for `category`, and `source` where from.
    """

    name: str
    grid: Axes
    category: str = "3gpp_tsg"
    doubled: bool = True
    reference: Mapping[str, str] = field(default_factory=dict)
    source: str = ""


RANKS = ("4", "8", "16", "32")
TARGETS = ("qv", "attention", "mlp", "all")
PRESETS: dict[str, Preset] = {
    row.name: row
    for row in (
        Preset(
            "rank",
            {"rank": RANKS},
            reference={str(row.rank): f"{row.majority:.2f}" for row in published.FIGURE_3},
            source=published.rank_source(),
        ),
        Preset("modules", {"targets": TARGETS, "rank": RANKS}),
        # "PEFT of SLM for Telecommunications Customer Support" has sixteen configurations too, of
        # ranks 16 and 32 over 2, 4 or 7 projections; which they are is not published, so these
        # are the project's own.
        Preset(
            "care",
            {"targets": TARGETS, "rank": ("16", "32"), "learning-rate": ("1e-4", "2e-4")},
            category="care",
        ),
        Preset(
            "backbones",
            {"backbone": ("llama-3.2-1b", "qwen3-0.6b", "exaone-4.0-1.2b")},
            doubled=False,
        ),
    )
}


@dataclass(frozen=True)
class SweepRun:
    """One training of a sweep: its name, and tel-train's options by name without dashes."""

    name: str
    options: Mapping[str, str]

    @property
    def argv(self) -> tuple[str, ...]:
        """Return the options as tel-train takes them."""
        return tuple(
            f"--{name}" if name in FLAGS else f"--{name}={value}"
            for name, value in self.options.items()
        )

    @property
    def digest(self) -> str:
        """Return a SHA-256 of the options; `sweep_reuse` compares what they named."""
        return digest.of_value(dict(self.options))


def plan(
    args: argparse.Namespace, parser: Callable[[], argparse.ArgumentParser]
) -> tuple[SweepRun, ...]:
    """Return the runs that the command line names, all checked as far as can be done here.

    `parser` gives that of tel-train, which reads the options of each.

    Raises `InputError` for an option or a value that tel-train would not take, and for one that is
    given twice.
    """
    preset = PRESETS[args.preset] if args.preset else Preset("", {}, "all", doubled=False)
    grid, same = _pairs("--grid", args.grid), _pairs("--set", args.set)
    axes: dict[str, Sequence[str]] = dict(preset.grid)
    axes |= {name: tuple(dict.fromkeys(values.split(","))) for name, values in grid.items()}
    if not axes:
        raise InputError("nothing to vary; name a --preset, or --grid OPTION=A,B")
    # The default is nobody's wish.
    given = None if args.backbone == DEFAULT else args.backbone
    direct = {"backbone": given, "category": args.category}
    for name in axes:
        if name in same or direct.get(name) is not None:
            raise InputError(f"{name} varies in this sweep; leave it out elsewhere, or use --grid")
    base = {"backbone": args.backbone, "dataset": args.dataset}
    base |= {"seed": str(args.seed)} | ({"strict": "yes"} if args.strict else {}) | same
    if "category" not in axes:
        # An adapter each, so a run each.
        asked = same.get("category", args.category or preset.category)
        chosen = (asked,) if spoken(asked) else tuple(of.name for of in categories(asked))
        base["category"] = chosen[0]
        axes |= {"category": chosen} if len(chosen) > 1 else {}
    runs: dict[str, SweepRun] = {}
    for values in itertools.product(*axes.values()):
        own = dict(zip(axes, values, strict=True))
        options = base | own
        if preset.doubled and "alpha" not in options and options.get("rank", "").isdigit():
            options["alpha"] = str(2 * int(options["rank"]))
        where = " ".join(f"{option}={value}" for option, value in own.items())
        made = _checked(where, options, parser())
        shown = (f"{option}-{_shown(option, made.get(option, 'no'))}" for option in own)
        run = SweepRun(_short("_".join(shown)), made)
        if run.name in runs:
            raise InputError(f"{where}: the same as another run, or named like it ({run.name})")
        runs[run.name] = run
    return tuple(runs.values())


def _pairs(flag: str, given: Sequence[str]) -> dict[str, str]:
    """Return what the repeatable option `flag` says, by tel-train's option."""
    made: dict[str, str] = {}
    for text in given:
        name, sign, value = text.partition("=")
        name = name.removeprefix("--").replace("_", "-")
        if not sign or "" in value.split(","):
            raise InputError(f"{flag} {text!r}: OPTION=VALUE is needed, such as rank=8")
        if name not in (*VALUES, *FLAGS):
            raise InputError(
                f"{flag}: no option {name!r} of tel-train that a sweep takes; there are: "
                f"{' '.join((*VALUES, *FLAGS))}"
            )
        if name in made:
            raise InputError(f"{flag}: {name} is given twice; put all in one")
        made[name] = value
    return made


def _shown(option: str, value: str) -> str:
    """Return the value as it stands in a run's name."""
    if option == "backbone":
        value = backbones.find(value).name
    if option == "dataset":
        value = Path(value).resolve().name
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", value)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}-{digest.of_value(name)[:8]}"


def _checked(
    where: str, options: Mapping[str, str], reader: argparse.ArgumentParser
) -> dict[str, str]:
    """Return the options as tel-train reads them, in one spelling, or raise `InputError`."""
    made: dict[str, str] = {}
    for option, value in options.items():
        if option not in FLAGS:
            # A comma parts the values of a grid, so within a value it is written as a plus.
            made[option] = value.replace("+", ",") if option == "targets" else value
        elif value not in ("yes", "no"):
            raise InputError(f"{where}: {option}={value}: yes or no is needed")
        elif value == "yes":
            made[option] = value
    reader.exit_on_error = False
    try:
        read = reader.parse_args(SweepRun(where, made).argv)
    except argparse.ArgumentError as error:
        raise InputError(f"{where}: {error}") from None
    _meant(where, read)
    for option in made:
        if option in VALUES:
            made[option] = str(getattr(read, option.replace("-", "_")))
    for option in ("backbone", "dataset"):
        # A worker has another working directory.
        if made[option] not in (*backbones.BACKBONES, *DATASETS):
            made[option] = str(Path(made[option]).resolve())
    return made


def _meant(where: str, read: argparse.Namespace) -> None:
    """Refuse what tel-train itself would refuse only after it has read the data."""
    if spoken(read.category):
        check(read)
    elif len(categories(read.category)) > 1:
        raise InputError(f"{where}: one category a run; as a grid: --grid category=A,B")
    elif read.stop_rate is not None:
        raise InputError(f"{where}: stop-rate is for --category care")
    backbones.find(read.backbone)
    recipes.recipe(read.recipe or "paper")
    recipes.targets(read.targets or "all")
    if read.dataset not in DATASETS and not Path(read.dataset).is_dir():
        raise InputError(f"no data set {read.dataset!r}: neither ot-mini, ot-full nor a folder")
    if said := recipes.wrong(vars(read)):
        raise InputError(f"{where}: {said}")
