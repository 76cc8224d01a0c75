"""`tel-merge`: several adapters of one backbone made one, and the comparison of all kinds."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tel_edge.runtime import backbones, cli, digest, extras
from tel_edge.runtime.atomic import replace_folder, write_text
from tel_edge.runtime.categories import CATEGORIES
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.question import Question
from tel_edge.runtime.workspace import Workspace
from tel_edge.train import compared
from tel_edge.train.job import JOINT, RECORD, WEIGHTS
from tel_edge.train.merge_plan import METHODS, Plan, plan, tested
from tel_edge.train.train import SCHEMA_VERSION, versions


def merge(
    plan: Plan, model: Path, out: Path, name: str, questions: Sequence[Question] | None
) -> dict[str, Any]:
    """Merge and put the PEFT folder with its `training.json` at `out`; return the record.

    `model` is the backbone's folder. `questions`, if any, are scored with the merged adapter.
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
        },
        "seconds": round(seconds, 1),
        "versions": versions(),
    }
    if questions is not None:
        record["test"] = _scores(peft, plan, model, questions)
    write_text(partial / "merged" / RECORD, json.dumps(record, indent=1) + "\n")
    replace_folder(partial / "merged", out)
    shutil.rmtree(partial)
    return record


def _merged(plan: Plan, model: Path) -> Any:
    """Return the backbone with the sources and, active, the adapter `merged`.

    The merging itself is done on the CPU, so that a seed gives the same bytes everywhere.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    base = AutoModelForCausalLM.from_pretrained(
        model,
        dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
    )
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


def _scores(peft: Any, plan: Plan, model: Path, questions: Sequence[Question]) -> Any:
    import torch
    from transformers import AutoConfig, AutoTokenizer

    from tel_edge.train.scoring import document, score

    longest = int(AutoConfig.from_pretrained(model).max_position_embeddings)
    batch = 2 * int((plan.sources[0].record.get("config") or {}).get("batch", 16))
    placed = peft.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(model)
    return document(score(placed, tokenizer, questions, longest, plan.seed, batch))


def finished(out: Path, plan: Plan, scored: bool) -> dict[str, Any] | None:
    """Return the record of this very merge at `out`, with scores where they are wanted, or None."""
    try:
        record: dict[str, Any] = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = record.get("digest") == plan.digest and (out / WEIGHTS).is_file()
    return record if same and ("test" in record or not scored) else None


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
    model = backbones.fetch(backbone, None if backbone.folder else known.get("revision"))
    if digest.of_weights(model) != known["weights"]:
        raise InputError(
            f"{wanted.sources[0].folder}: made for another backbone than {model}; pass that one"
        )
    if args.score and known.get("tokenization") not in (None, digest.of_tokenization(model)):
        raise InputError(
            f"{wanted.sources[0].folder}: trained with another tokenizer than {model} has now; put "
            "the files of the training back, or train again"
        )
    asked = tested(wanted, args.dataset, args.seed, args.strict) if args.score else None
    out = home.adapter(backbone.name, name)
    record = finished(out, wanted, args.score)
    if record:
        cli.say(args, f"{name}: merged before, reused")
    else:
        cli.say(args, f"{name}: {wanted.method.name} {wanted.method.does}")
        record = merge(wanted, model, out, name, asked)
    megabytes = (out / WEIGHTS).stat().st_size / 1e6
    rank = record["config"]["rank"]
    print(f"{name}: {len(wanted.sources)} adapters, rank {rank}, {megabytes:.2f} MB  {out}")
    for scored in record.get("test") or ():
        print(
            f"  {scored['category']:<12} test Pass@1 {scored['pass1']['value']:.3f}  "
            f"Maj@4 {scored['majority']['value']:.3f}  of {scored['questions']}"
        )
    return {"name": name, "path": str(out), "rank": rank, "test": record.get("test")}


def parser() -> cli.Parser:
    """Return the command's options."""
    made = cli.parser(
        "tel-merge",
        "Make one adapter of several, and compare one a category, one for all and merged ones.",
        "backbone",
        "dataset",
        "seed",
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
    sys.exit(cli.run(parser(), work))


if __name__ == "__main__":
    main()
