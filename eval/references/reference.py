"""`tel-eval --reference`: large models without adapters on the questions of the small ones.

They are asked with the same prompts and read in the same way; the results lie beside those of any
backbone. The model is behind an endpoint, in a GGUF file, or in a Hugging Face folder.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tel_edge.eval.benchmarks.source import Asked, CategorySource
from tel_edge.eval.benchmarks.source import asked as questions_of
from tel_edge.eval.references import with_transformers
from tel_edge.eval.references.located import Reference, find
from tel_edge.eval.scoring import scored
from tel_edge.eval.scoring.records import Record, Summary
from tel_edge.eval.scoring.resumed import complete, told
from tel_edge.eval.scoring.scored import ScoringTask, Settings, Used
from tel_edge.runtime import cli
from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.device import memory, profile
from tel_edge.runtime.engines.engine import Engine, EngineSettings, LoraFile
from tel_edge.runtime.files import digest
from tel_edge.runtime.questions import prompt, protocol

if TYPE_CHECKING:
    # Its HTTP client is a tenth of what --help takes.
    from tel_edge.eval.references.client import Client
    from tel_edge.eval.references.endpoint import Endpoint


def made_with(task: ScoringTask, source: CategorySource, of: Reference) -> dict[str, Any]:
    """Return everything that a record depends on; its digest is the record's `run`.

    The address of an endpoint is no part of it: the model is.
    """
    made: dict[str, Any] = {
        "reference": {"format": of.format, **of.digests},
        "prompt": prompt.digest(),
        "split": source.parts.digest,
        "settings": asdict(task.settings),
    }
    if of.format == "hf":
        made["engine_settings"] = {"context": task.engine.context}
    if task.settings.protocol != "letters":
        made["protocol_prompt"] = protocol.digest()
    if task.rotated:
        made["rotations"] = True
    return made


def work(
    args: argparse.Namespace,
    all_of: Sequence[CategorySource],
    opener: bundle.Opener = bundle.native,
    isolated: bool = True,
) -> dict[str, Any]:
    """Score the reference on everything that is not scored yet; return the document of `--json`."""
    from tel_edge.eval.references import endpoint
    from tel_edge.eval.scoring import provenance

    server = connect(args) if re.match(r"https?://", args.reference) else None
    of = find(args, server)
    asked = endpoint.Endpoint(server, of.model, args.parallel) if server else None
    variant, summaries, before = of.variant(args.protocol), [], 0
    for source in all_of:
        for of_part in questions_of(args, source):
            if of_part.rotated and not args.rotations:
                continue
            task = _task(args, source, of, of_part)
            if of.format == "gguf":
                task = replace(task, run=digest.of_value(provenance.made_with(task, source))[:16])
                summary, reused = provenance.evaluate(task, source, variant, opener, isolated)
            else:
                made = made_with(task, source, of)
                task = replace(task, run=digest.of_value(made)[:16])
                run = (
                    partial(_ask, asked)
                    if asked
                    else partial(_with_transformers, of.quant, isolated)
                )
                more = partial(_how, asked) if asked else None
                summary, reused = complete(task, source, variant, made, run, None, more)
            summaries.append(summary)
            before += reused
            _unlisted(args, summary)
            print(told(summary, max(12, len(variant.name)), reused), flush=True)
    print(f"results: {len(summaries) - before} scored now, {before} before; tel-report shows them")
    return {"backbone": of.name, "summaries": [asdict(summary) for summary in summaries]}


def _unlisted(args: argparse.Namespace, of: Summary) -> None:
    if count := of.made_with.get("endpoint", {}).get("unlisted"):
        cli.say(
            args,
            f"warning: {of.category}: for {count} of {of.questions} questions the server lists "
            "none of the labels; their picks say nothing",
        )


def connect(args: argparse.Namespace) -> Client:
    """Return the client of `--reference URL`, with the key of the environment."""
    from tel_edge.eval.references import client

    return client.connect(args.reference, "--reference", partial(cli.say, args))


def _task(
    args: argparse.Namespace,
    source: CategorySource,
    of: Reference,
    of_part: Asked,
) -> ScoringTask:
    made, variant, category = of.manifest(), of.variant(args.protocol), source.category.name
    engine = cli.engine_settings(args)
    if of.format == "gguf":
        engine, _ = profile.settings(engine, of.name, of.quant, of.format)
    return ScoringTask(
        folder=of.path if of.path.is_dir() else of.path.parent,
        manifest=made,
        backbone=made.files[0],
        adapter=None,
        questions=of_part.questions,
        out=cli.workspace(args).results(
            of.name, variant.name, category, of_part.part, of_part.rotated
        ),
        run="",
        settings=Settings(
            of_part.part,
            args.k,
            args.temperature,
            args.seed,
            args.protocol,
            args.max_tokens or cli.TEXT,
        ),
        engine=engine,
        title=f"{category} {of.name}",
        quiet=args.quiet,
        rotated=of_part.rotated,
        wait=args.wait,
        left_out=of_part.left_out,
    )


def _how(asked: Endpoint, found: Sequence[Record]) -> dict[str, Any]:
    """Return how the endpoint was asked, empty where no question was left to ask."""
    from tel_edge.eval.references import endpoint

    way = asked.way
    how = {"path": way.path, "listed": way.listed, "fields": sorted(way.extra)} if way else {}
    unlisted = sum(endpoint.unlisted(record.logprobs) for record in found)
    return {"endpoint": {**how, "unlisted": unlisted}}


def _open(
    dtype: str, path: Path, adapters: Mapping[str, LoraFile], settings: EngineSettings
) -> Engine:
    """Open the folder of a configuration, as an `Opener` with `dtype` put in."""
    return with_transformers.TransformersEngine(
        path.parent, settings.context, dtype, settings.threads
    )


def _with_transformers(dtype: str, isolated: bool, task: ScoringTask) -> Used:
    return (scored.in_child if isolated else scored.score)(task, partial(_open, dtype))


def _ask(asked: Endpoint, task: ScoringTask) -> Used:
    """Append a record for each question of `task`; memory says nothing of the model here."""
    too_long, _ = scored.append(task, asked)
    return Used(too_long, memory.Memory(None, None, 0))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `--reference` to a command."""
    made = parser.add_argument_group("reference models")
    made.add_argument(
        "--reference",
        metavar="WHERE",
        help="score this large model instead of the bundle: the URL of an OpenAI-compatible "
        "endpoint, ending in /v1 (key: env TEL_API_KEY), a .gguf file, a Hugging Face folder or "
        "a hub id",
    )
    made.add_argument(
        "--reference-model", metavar="NAME", help="of the endpoint's models (the only one)"
    )
    made.add_argument(
        "--reference-name", metavar="NAME", help="what results call it (the model's own name)"
    )
    made.add_argument(
        "--reference-dtype",
        choices=with_transformers.DTYPES,
        default="bfloat16",
        help="that a folder is computed in (%(default)s)",
    )
    made.add_argument(
        "--parallel",
        type=cli.positive,
        default=4,
        metavar="N",
        help="requests to an endpoint at a time (%(default)s)",
    )
