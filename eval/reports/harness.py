"""The results in the form of EleutherAI's lm-evaluation-harness, so that its viewers read them.

The form is that of release 0.4.13 of https://github.com/EleutherAI/lm-evaluation-harness:
`EvalResults` and `SampleResult` in `lm_eval/result_schema.py`, names of files and what becomes a
string as in `lm_eval/loggers/evaluation_tracker.py` (both the same at commit
4e7e0d47f33bc71070c1d38394bafbb52b117163), standard errors as in `lm_eval/api/metrics.py`. tel-edge
wrote the files all the same, and says so: `model_source` is "tel-edge", `lm_eval_version` the
release whose form it is, and what only a run of the harness knows is null.

A task is a category. `acc` is Pass@1, `maj@K` the majority of the draws, `maj@K_exact` its
expectation; a question that did not fit the context counts as wrong but has no sample.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tel_edge.eval import documents
from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.scoring.records import Record, Summary, asked_digest, read_records
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files.atomic import write_text
from tel_edge.runtime.questions import prompt, protocol
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.votes import majority, mass
from tel_edge.runtime.workspace import Workspace

FORM = "0.4.13"
SOURCE = "tel-edge"
# The group of all categories, and the version of group and tasks.
GROUP = "ot"
TASK_VERSION = 1
# What the harness's own filters put where a text gives no answer.
UNREAD = "[invalid]"
UNKNOWN = "N/A"


def document(
    of: Sequence[Summary], date: float, hashes: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the document of `results_<date>.json`: one variant, its categories of one part.

    `date` is in seconds since 1970, `hashes` maps a category to the hash of its samples. The
    group `ot` is the mean over the categories that are there, each with the same weight. Raises
    `ValueError` if the summaries are of several variants or parts, or of a category twice.
    """
    tasks = {summary.category: summary for summary in sorted(of, key=lambda one: one.category)}
    kinds = {(one.backbone, one.variant.name, one.part, one.rotated) for one in of}
    if len(kinds) != 1 or len(tasks) < len(of):
        raise ValueError("not the categories of one variant and one part")
    first = of[0]
    metrics = {name: _metrics(one) for name, one in tasks.items()}
    group = _mean(metrics, "+".join(sorted({one.dataset for one in of})))
    better = {name: dict.fromkeys(_names(one), True) for name, one in metrics.items()}
    name = f"{first.backbone}/{first.variant.name}"
    return {
        "results": {**metrics, GROUP: group},
        "groups": {GROUP: group},
        "group_subtasks": {GROUP: list(tasks)},
        "configs": {name: _task_config(one) for name, one in tasks.items()},
        "versions": dict.fromkeys([*tasks, GROUP], TASK_VERSION),
        "n-shot": dict.fromkeys([*tasks, GROUP], 0),
        "higher_is_better": {**better, GROUP: dict.fromkeys(_names(group), True)},
        "n-samples": {
            name: {"original": one.questions, "effective": one.questions}
            for name, one in tasks.items()
        },
        "config": _config(of),
        "git_hash": None,
        "date": date,
        "pretty_env_info": None,
        "transformers_version": None,
        "lm_eval_version": FORM,
        "upper_git_hash": None,
        "task_hashes": dict(hashes or {}),
        "model_source": SOURCE,
        "model_name": name,
        "model_name_sanitized": _sanitized(name),
        "system_instruction": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": False,
        "chat_template": None,
        "chat_template_sha": None,
        "total_evaluation_time_seconds": None,
    }


def samples(
    records: Iterable[Record], summary: Summary, questions: Mapping[str, Question] | None
) -> Iterator[str]:
    """Yield a line of `samples_<task>_<date>.jsonl` for each record.

    `questions` maps ids to questions. Without it, texts of the data set are left out: the id
    stands in place of document and prompt, and what was read from a generated text in place of
    the text, which may repeat the question. The hashes are those of what the line holds.
    `doc_id` is the number at the end of the id, the row of the data set. Raises `InputError` if
    a question is missing or is not the one that was asked.
    """
    for sample in _samples(records, summary, questions):
        yield json.dumps(sample) + "\n"


def write(
    folder: Path,
    workspace: Workspace,
    backbone: str,
    summaries: Sequence[Summary],
    with_samples: bool = True,
    questions: Mapping[str, Question] | None = None,
) -> tuple[Path, ...]:
    """Write `folder/<backbone>__<variant>/` for every variant and return the files.

    Only the test part in the order of the data set is written: a viewer takes every file for
    another task, and a second part or the rotations would count twice in a mean over them. Files
    are called after the time (UTC) of the variant's newest record, so the same records give the
    same files. What tel-edge wrote into these folders before goes away; results of the harness
    itself stay. Raises `InputError` where the records are not those of the summary; nothing is
    written for that variant then.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: a file is in the way; choose another folder")
    variants: dict[str, list[Summary]] = {}
    for summary in sorted(summaries, key=lambda one: (one.variant.name, one.category)):
        if summary.backbone == backbone and summary.part == "test" and not summary.rotated:
            variants.setdefault(summary.variant.name, []).append(summary)
    written: list[Path] = []
    for name, of in variants.items():
        paths = {one.category: workspace.results(backbone, name, one.category) for one in of}
        date = max(map(_modified, paths.values()))
        made = {
            one.category: _read(paths[one.category], one, questions) for one in of if with_samples
        }
        hashes = {category: sha256 for category, (_, sha256) in made.items()}
        place = folder / _sanitized(f"{backbone}/{name}")
        stamp = _stamp(date)
        # Results come first and go last: they say whose the samples of the same date are.
        files = [place / f"results_{stamp}.json"]
        documents.write(files[0], document(of, date, hashes))
        for category, (lines, _) in made.items():
            files.append(place / f"samples_{category}_{stamp}.jsonl")
            write_text(files[-1], lines)
        _remove_older(place, files)
        written += files
    return tuple(written)


def _metrics(summary: Summary) -> dict[str, Any]:
    value, of = summary.pass1.value, summary.questions
    made = {
        "name": summary.category,
        "alias": summary.category,
        "sample_len": of,
        "acc,none": value,
        # The standard error of a mean of zeros and ones, with the sample's deviation.
        "acc_stderr,none": math.sqrt(value * (1 - value) / (of - 1)) if of > 1 else UNKNOWN,
        f"maj@{summary.k},none": summary.majority.value,
        f"maj@{summary.k}_stderr,none": UNKNOWN,
    }
    if summary.majority_exact is not None:
        made[f"maj@{summary.k}_exact,none"] = summary.majority_exact
        made[f"maj@{summary.k}_exact_stderr,none"] = UNKNOWN
    return made


def _names(metrics: Mapping[str, Any]) -> list[str]:
    """Return the metrics without the filter behind the comma, and without standard errors."""
    found = [key.partition(",")[0] for key in metrics if "," in key]
    return [name for name in found if not name.endswith("_stderr")]


def _mean(tasks: Mapping[str, Mapping[str, Any]], alias: str) -> dict[str, Any]:
    """Return the mean over tasks of every metric that all of them have."""
    rows = list(tasks.values())
    total = sum(row["sample_len"] for row in rows)
    made: dict[str, Any] = {"name": GROUP, "alias": alias, "sample_len": total}
    counts = {}
    for name in _names(rows[0]):
        key, error = f"{name},none", f"{name}_stderr,none"
        if any(key not in row for row in rows):
            continue
        made[key] = math.fsum(row[key] for row in rows) / len(rows)
        errors = [row[error] for row in rows]
        # Means of independent tasks: their variances add up.
        made[error] = UNKNOWN if UNKNOWN in errors else math.hypot(*errors) / len(rows)
        counts[key] = total
    return {**made, "sample_count": counts}


def _settings(summary: Summary) -> Mapping[str, Any]:
    found: Mapping[str, Any] = summary.made_with.get("settings", {})
    return found


def _task_config(summary: Summary) -> dict[str, Any]:
    generated = summary.majority_exact is None
    return {
        "task": summary.category,
        "dataset_path": benchmark.HUB if summary.dataset == "ot-full" else summary.dataset,
        "dataset_name": summary.category,
        "test_split": summary.part,
        "output_type": "generate_until" if generated else "multiple_choice",
        **({"generation_kwargs": _generation(summary)} if generated else {}),
        # What every sample has a value of; a viewer looks each of them up there.
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True}
            for name in ("acc", f"maj@{summary.k}")
        ],
        "num_fewshot": 0,
        "repeats": 1,
        "metadata": {
            "version": TASK_VERSION,
            "split": summary.split,
            "run": summary.run,
            "made_with": dict(summary.made_with),
            "rejected": summary.rejected,
            "too_long": summary.too_long,
            "unparsed": summary.unparsed,
            "label_mass": summary.label_mass,
        },
    }


def _generation(summary: Summary) -> dict[str, Any]:
    return {"do_sample": False, "max_gen_toks": _settings(summary).get("limit"), "until": []}


def _config(of: Sequence[Summary]) -> dict[str, Any]:
    variant = of[0].variant
    args = {
        "backbone": of[0].backbone,
        "variant": variant.name,
        "quant": variant.quant,
        "format": variant.format,
        "adapter": variant.adapter,
    }
    seeds = {_settings(summary).get("seed") for summary in of}
    return {
        "model": SOURCE,
        "model_args": ",".join(f"{name}={value}" for name, value in args.items()),
        "batch_size": None,
        "batch_sizes": [],
        "device": None,
        "use_cache": None,
        "limit": None,
        "bootstrap_iters": None,
        "gen_kwargs": None,
        # The draws of Maj@k come from Python's generator; the others have no part in a score.
        "random_seed": seeds.pop() if len(seeds) == 1 else None,
        "numpy_seed": None,
        "torch_seed": None,
        "fewshot_seed": None,
    }


def _samples(
    records: Iterable[Record], summary: Summary, questions: Mapping[str, Question] | None
) -> Iterator[dict[str, Any]]:
    for at, record in enumerate(records):
        question = None if questions is None else _asked(record, questions)
        doc: dict[str, Any] = {"id": record.id}
        if question:
            doc |= {
                "question": question.text,
                "choices": list(question.choices),
                "answer": question.answer,
            }
        asked, target, arguments, replies = (
            _scored(record, question) if record.logprobs else _generated(record, question, summary)
        )
        row = record.id.rpartition("/")[2]
        vote = majority(record.draws) if record.draws else record.pick
        yield {
            "doc_id": int(row) if row.isdecimal() else at,
            "doc": doc,
            "target": target,
            "arguments": {
                f"gen_args_{index}": {"arg_0": asked, "arg_1": argument}
                for index, argument in enumerate(arguments)
            },
            "resps": [[reply] for reply, _ in replies],
            "filtered_resps": [filtered for _, filtered in replies],
            "filter": "none",
            "metrics": ["acc", f"maj@{summary.k}"],
            "doc_hash": _sha256(json.dumps(doc, indent=2, ensure_ascii=False)),
            "prompt_hash": _sha256(asked),
            "target_hash": _sha256(target),
            "acc": float(record.pick == record.gold),
            f"maj@{summary.k}": float(vote == record.gold),
        }


# The prompt, the target, what each request asks for beside the prompt, and (reply, what a filter
# made of it) of each request.
_Replies = tuple[str, str, list[Any], list[tuple[Any, Any]]]


def _scored(record: Record, question: Question | None) -> _Replies:
    """Return a request for each label; the harness writes log-probability and flag as strings.

    The flag says whether the label is what the model would say of itself. That is certain if its
    probability is above all that is left for what is no label; otherwise the flag is False.
    """
    labels = [f" {letter}" for letter in prompt.LETTERS[: len(record.logprobs)]]
    left = 1 - mass(record.logprobs)
    greedy = record.pick if math.exp(record.logprobs[record.pick]) > left else None
    replies = [[str(value), str(at == greedy)] for at, value in enumerate(record.logprobs)]
    asked = prompt.render(question) if question else record.id
    return asked, str(record.gold), list(labels), [(reply, reply) for reply in replies]


def _generated(record: Record, question: Question | None, summary: Summary) -> _Replies:
    read, target = (_answer(index, summary.category) for index in (record.pick, record.gold))
    asked, text = (protocol.render(question), record.text or "") if question else (record.id, read)
    return asked, target, [_generation(summary)], [(text, read)]


def _answer(index: int, category: str) -> str:
    names = CATEGORIES[category].labels or tuple(prompt.LETTERS)
    return names[index] if 0 <= index < len(names) else UNREAD


def _asked(record: Record, questions: Mapping[str, Question]) -> Question:
    question = questions.get(record.id)
    if (
        question is None
        or question.answer != record.gold
        or (record.asked and record.asked != asked_digest(question))
    ):
        raise InputError(
            f"{record.id}: {'not in' if question is None else 'another question in'} this data set"
            "\npass the data set that was scored, or write the samples without texts"
        )
    return question


def _read(
    path: Path, summary: Summary, questions: Mapping[str, Question] | None
) -> tuple[str, str]:
    """Return the lines of the summary's run, as many as it says, and the harness's task hash."""
    lines, sha = [], hashlib.sha256()
    for sample in _samples(read_records(path, summary.run), summary, questions):
        for part in ("doc_hash", "prompt_hash", "target_hash"):
            sha.update(sample[part].encode())
        lines.append(json.dumps(sample) + "\n")
    wanted = summary.questions - summary.too_long
    if len(lines) != wanted:
        raise InputError(
            f"{path}: {len(lines)} records of run {summary.run}, but its summary counts {wanted}"
            "\ndelete both and run tel-eval again"
        )
    return "".join(lines), sha.hexdigest()


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        raise InputError(f"{path}: there is a summary but no records; run tel-eval") from None


def _stamp(date: float) -> str:
    """Return the date as in the harness's file names, always with microseconds: names sort."""
    made = datetime.fromtimestamp(date, UTC).replace(tzinfo=None)
    return made.isoformat(timespec="microseconds").replace(":", "-")


def _sanitized(name: str) -> str:
    """Return a model's name as the harness calls its folder: a slash becomes two underscores."""
    return re.sub(r'["<>:/|\\?*\[\]]+', "__", name)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _remove_older(place: Path, kept: Sequence[Path]) -> None:
    """Delete the results that tel-edge wrote there before, with the samples of their dates."""
    for results in sorted(place.glob("results_*.json")):
        try:
            ours = json.loads(results.read_text(encoding="utf-8"))["model_source"] == SOURCE
        except (ValueError, TypeError, KeyError):
            continue
        if ours:
            date = results.stem.removeprefix("results_")
            for file in (*place.glob(f"samples_*_{date}.jsonl"), results):
                if file not in kept:
                    file.unlink()
