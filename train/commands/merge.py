"""`tel-merge`: several adapters of one backbone made one, and the comparison of all kinds."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tel_edge.eval.folders import checkpoint, loading
from tel_edge.eval.from_gguf import fetching
from tel_edge.runtime import cli, extras
from tel_edge.runtime.bundles import backbones
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import digest, lock, ownership
from tel_edge.runtime.files.atomic import replace_folder, write_text
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.workspace import Workspace
from tel_edge.train.job import JOINT, RECORD, WEIGHTS
from tel_edge.train.merging import compared
from tel_edge.train.merging.merge_plan import METHODS, MergePlan, plan, splits, unseen
from tel_edge.train.training import SCHEMA_VERSION, spin_shortly, versions


def merge(
    plan: MergePlan,
    model: Path,
    out: Path,
    name: str,
    questions: Sequence[Question] | None,
    contaminated: Mapping[str, int] | None,
    quiet: bool,
) -> dict[str, Any]:
    """Merge and put the PEFT folder with its `training.json` at `out`; return the record.

    `model` is the backbone's folder. `questions`, if any, are scored with the merged adapter.
    `contaminated` are the numbers of test questions that a source was trained on, None if unknown.
    """
    began = time.monotonic()
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    peft = _merged(plan, model)
    peft.save_pretrained(partial, selected_adapters=["merged"], save_embedding_layers=False)
    seconds = time.monotonic() - began
    rank = peft.peft_config["merged"].r
    first = plan.sources[0].record
    record = {
        "schema_version": SCHEMA_VERSION,
        "digest": plan.digest,
        "category": name,
        "dataset": plan.dataset,
        "split": digest.of_value(plan.splits),
        "splits": plan.splits,
        "seed": plan.seed,
        "backbone": first["backbone"],
        "over": first.get("over"),
        "prompt": first["prompt"],
        "config": {
            "rank": rank,
            "alpha": rank,
            "targets": peft.peft_config["merged"].target_modules,
        },
        "merged": {
            "method": plan.method.name,
            "weights": list(plan.weights),
            "density": plan.density,
            "sources": {source.name: source.digest for source in plan.sources},
            "contaminated": contaminated,
        },
        "seconds": round(seconds, 1),
        "versions": versions(),
    }
    if questions is not None:
        record["test"] = _scores(peft, plan, model, questions, quiet)
    write_text(partial / "merged" / RECORD, json.dumps(record, indent=1) + "\n")
    replace_folder(partial / "merged", out)
    shutil.rmtree(partial)
    return record


def _merged(plan: MergePlan, model: Path) -> Any:
    """Return the backbone with the sources and, active, the adapter `merged`.

    The merging itself is done on the CPU, so that a seed gives the same bytes everywhere.
    """
    import torch
    from peft import PeftModel

    base = loading.model(model, torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    # Names of modules, which the names of folders need not be fit for.
    names = [f"source{at}" for at in range(len(plan.sources))]
    peft: Any = None
    for name, source in zip(names, plan.sources, strict=True):
        if peft is None:
            peft = PeftModel.from_pretrained(
                base, source.folder, adapter_name=name, torch_device="cpu"
            )
        else:
            peft.load_adapter(source.folder, adapter_name=name, torch_device="cpu")
    for name in names:
        # The scales are in the merged values; a copied rsLoRA would scale them once more.
        peft.peft_config[name].use_rslora = False
    torch.manual_seed(plan.seed)
    pruned = {} if plan.density is None else {"density": plan.density}
    with warnings.catch_warnings():
        # It warns of a density of 1, which is asked for.
        warnings.simplefilter("ignore")
        peft.add_weighted_adapter(
            names,
            list(plan.weights),
            "merged",
            combination_type=plan.method.name,
            svd_full_matrices=False,
            **pruned,
        )
    peft.set_adapter("merged")
    merged = peft.peft_config["merged"]
    # A set would be written in another order by each process.
    if not isinstance(merged.target_modules, str):
        merged.target_modules = sorted(merged.target_modules)
    return peft


def _scores(
    peft: Any, plan: MergePlan, model: Path, questions: Sequence[Question], quiet: bool
) -> Any:
    import torch
    from transformers import AutoConfig

    from tel_edge.train.scoring import document, score

    longest = int(AutoConfig.from_pretrained(model).max_position_embeddings)
    batch = 2 * int((plan.sources[0].record.get("config") or {}).get("batch", 16))
    placed = peft.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = loading.tokenizer(model)
    return document(score(placed, tokenizer, questions, longest, plan.seed, batch, quiet))


def finished(
    out: Path, plan: MergePlan, scored: bool, contaminated: Mapping[str, int] | None
) -> dict[str, Any] | None:
    """Return the record of this very merge at `out`, with scores where they are wanted, or None.

    One from before contaminated questions were left out is this one's only if there are none.
    """
    try:
        record: dict[str, Any] = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = record.get("digest") == plan.digest and (out / WEIGHTS).is_file()
    if not same or (scored and "test" not in record):
        return None
    if contaminated is not None and (record["merged"].get("contaminated") or {}) != contaminated:
        return None
    return record


def work(args: argparse.Namespace) -> dict[str, Any]:
    """Merge, compare, or both."""
    home, backbone = cli.workspace(args), backbones.find(args.backbone)
    if not args.method and not args.compare:
        raise InputError("nothing to do: pass --method, --compare or both")
    document: dict[str, Any] = {"backbone": backbone.name}
    if args.method:
        document["merged"] = _work(args, home, backbone)
    if args.compare:
        found, text = compared.compare(home, backbone.name)
        print(text, end="")
        document["compared"] = found
    return document


def _work(
    args: argparse.Namespace, home: Workspace, backbone: backbones.Backbone
) -> dict[str, Any]:
    for module in ("torch", "transformers", "peft"):
        extras.check(module, "train")
    name = args.name or f"merged-{args.method}"
    if not re.fullmatch(r"\w[\w.-]*", name) or name in (*CATEGORIES, JOINT):
        raise InputError(f"--name {name}: not a category, {JOINT} or a path; a name of its own")
    wanted = plan(args, home, backbone.name)
    if args.score and wanted.sources[0].record.get("over"):
        raise InputError("--score: these adapters belong to a quantized file; export and tel-eval")
    known = wanted.sources[0].record["backbone"]
    # A folder of the hub's cache has a revision too, but is here already.
    model = fetching.fetch(
        backbone, None if backbone.folder else known.get("revision"), partial(cli.say, args)
    ).folder
    checkpoint.load(model, slides=True)
    if digest.of_weights(model) != known["weights"]:
        raise InputError(
            f"{wanted.sources[0].folder}: made for another backbone than {model}; pass that one"
        )
    ownership.check_adapters(home, backbone.name, known["weights"])
    if args.score and known.get("tokenization") not in (None, digest.of_tokenization(model)):
        raise InputError(
            f"{wanted.sources[0].folder}: trained with another tokenizer than {model} has now; put "
            "the files of the training back, or train again"
        )
    asked, contaminated = _asked(args, wanted)
    out = home.adapter(backbone.name, name)
    record = finished(out, wanted, args.score, contaminated)
    if record:
        cli.say(args, f"{name}: merged before, reused")
        if contaminated is not None and record["merged"].get("contaminated") is None:
            record["merged"]["contaminated"] = contaminated
            write_text(out / RECORD, json.dumps(record, indent=1) + "\n")
    else:
        with lock.held(out, args.wait, partial(cli.say, args)):
            # Another command may have made it meanwhile.
            record = finished(out, wanted, args.score, contaminated)
            if record is None:
                cli.say(args, f"{name}: {wanted.method.name} {wanted.method.does}")
                scored = asked if args.score else None
                record = merge(wanted, model, out, name, scored, contaminated, args.quiet)
    megabytes = (out / WEIGHTS).stat().st_size / 1e6
    rank = record["config"]["rank"]
    print(f"{name}: {len(wanted.sources)} adapters, rank {rank}, {megabytes:.2f} MB  {out}")
    for scored in record.get("test") or ():
        print(
            f"  {scored['category']:<12} test Pass@1 {scored['pass1']['value']:.3f}  "
            f"Maj@4 {scored['majority']['value']:.3f}  of {scored['questions']}"
        )
    return {"name": name, "path": str(out), "rank": rank, "test": record.get("test")}


def _asked(
    args: argparse.Namespace, wanted: MergePlan
) -> tuple[list[Question], dict[str, int] | None]:
    """Return the test questions that no source was trained on, and how many it was, by category.

    The numbers are None where the data set at hand is not the adapters'.
    """
    seed = args.seed if args.score else wanted.sources[0].record.get("seed", args.seed)
    try:
        parts = splits(wanted, args.dataset, seed, args.strict, partial(cli.say, args))
    except InputError:
        if args.score:
            raise
        cli.say(
            args,
            f"--dataset {args.dataset} is not what these adapters were trained on, so whether one "
            "knows another's test questions is not known",
        )
        return [], None
    asked = unseen(wanted, parts)
    known = {name: len(parts[name].test) - len(kept) for name, kept in asked.items()}
    known = {name: count for name, count in known.items() if count}
    for name, count in known.items():
        cli.say(
            args,
            f"{name}: {count} of {len(parts[name].test)} test questions stand in the train part "
            "of another category; they are not scored",
        )
    return [question for kept in asked.values() for question in kept], known


def parser() -> cli.Parser:
    """Return the command's options."""
    made = cli.parser(
        "tel-merge",
        "Make one adapter of several, and compare one a category, one for all and merged ones.",
        "backbone",
        "dataset",
        "seed",
        "wait",
    )
    # One line of help a method would be six; the table in the documentation has them.
    made.add_argument("--method", choices=tuple(METHODS), help="how the factors become one")
    made.add_argument(
        "--adapter",
        default="all",
        metavar="all|A,B",
        help="which of the workspace's adapters, all being those of the categories (%(default)s)",
    )
    made.add_argument("--weights", metavar="W,W", help="of each adapter, in that order (all 1)")
    made.add_argument(
        "--density",
        type=float,
        default=0.5,
        metavar="D",
        help="share of values that ties and dare keep (%(default)s)",
    )
    made.add_argument(
        "--score", action="store_true", help="score the test part of every category afterwards"
    )
    made.add_argument("--name", metavar="NAME", help="of the merged adapter (merged-METHOD)")
    made.add_argument(
        "--compare",
        action="store_true",
        help="write reports/adapters.md and .json: own, joint and merged adapters side by side",
    )
    return made


def main() -> None:
    """Run the command."""
    spin_shortly()
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
