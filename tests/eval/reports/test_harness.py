"""The form of lm-evaluation-harness: golden documents, and its own code where it is installed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tel_edge.eval.reports import harness
from tel_edge.eval.scoring.records import (
    UNPARSED,
    Record,
    Summary,
    Variant,
    asked_digest,
    line,
    measures,
)
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.workspace import Workspace

DATE = 1_700_000_000.25
STAMP = "2023-11-14T22-13-20.250000"
SETTINGS = {"part": "test", "k": 4, "temperature": 0.7, "seed": 42, "limit": 64}
QUESTION = Question("oranbench/7", "oranbench", "Wöfür O1?", ("to manage", "to play"), 1)
# Half of what is no label, and a label at 0.4 above it: surely what the model would say.
RECORDS = [
    Record("run", "oranbench/7", 1, (math.log(0.3), math.log(0.4)), 1, (1, 1, 0, 0), 9, 1.0, None,
           asked_digest(QUESTION)),
    Record("run", "oranbench/9", 0, (-1.0, -0.75), 1, (0, 1, 0, 0), 9, 1.0),
    Record("run", "oranbench/11", 0, (-0.25, -2.0), 0, (0, 0, 0, 1), 9, 1.0),
]  # fmt: skip
TEXTS = [
    Record("run", "3gpp_tsg/0", 6, (), 6, (6, 6, 0, 1), 9, 1.0, "RAN3, I say"),
    Record("run", "3gpp_tsg/1", 0, (), UNPARSED, (UNPARSED,), 9, 1.0, "no idea"),
]


def summary(records: list[Record], category: str = "oranbench", **changes: Any) -> Summary:
    too_long = changes.pop("too_long", 0)
    made = Summary(
        backbone="nano", variant=Variant("lora-Q8_0", "Q8_0", "gguf", True, 9, 5),
        category=category, dataset="ot-mini", part="test", split="55", run="run",
        made_with={"settings": SETTINGS}, rejected=0, k=4,
        memory_anonymous=None, memory_file=1, memory_peak=2, **measures(records, too_long),
    )  # fmt: skip
    return replace(made, **changes)


@pytest.fixture(autouse=True)
def far_east() -> Iterator[None]:
    """Go where local time is not UTC: names of files are the same everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
def home(tmp_path: Path) -> Callable[..., tuple[Workspace, Path]]:
    """Write records of the variant, dated `DATE`; return the workspace and the file."""

    def made(text: str, category: str = "oranbench", date: float = DATE) -> tuple[Workspace, Path]:
        workspace = Workspace(tmp_path / "home")
        path = workspace.results("nano", "lora-Q8_0", category)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (date, date))
        return workspace, path

    return made


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def lines(records: list[Record]) -> str:
    return "".join(map(line, records))


def test_the_document_of_one_category_never_changes() -> None:
    one = replace(summary(RECORDS, too_long=1), majority_exact=0.5, label_mass=0.75)
    # Two of four are right: 0.5 * 0.5 / 3 is the square of the standard error.
    metrics = {
        "acc,none": 0.5, "acc_stderr,none": math.sqrt(0.25 / 3),
        "maj@4,none": 0.75, "maj@4_stderr,none": "N/A",
        "maj@4_exact,none": 0.5, "maj@4_exact_stderr,none": "N/A",
    }  # fmt: skip
    group = {
        "name": "ot", "alias": "ot-mini", "sample_len": 4, **metrics,
        "sample_count": {"acc,none": 4, "maj@4,none": 4, "maj@4_exact,none": 4},
    }  # fmt: skip
    better = {"acc": True, "maj@4": True, "maj@4_exact": True}
    task = {"name": "oranbench", "alias": "oranbench", "sample_len": 4, **metrics}
    assert harness.document([one], DATE, {"oranbench": "ab"}) == {
        "results": {"oranbench": task, "ot": group},
        "groups": {"ot": group},
        "group_subtasks": {"ot": ["oranbench"]},
        "configs": {"oranbench": {
            "task": "oranbench", "dataset_path": "ot-mini", "dataset_name": "oranbench",
            "test_split": "test", "output_type": "multiple_choice",
            "metric_list": [
                {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
                {"metric": "maj@4", "aggregation": "mean", "higher_is_better": True},
            ],
            "num_fewshot": 0, "repeats": 1,
            "metadata": {
                "version": 1, "split": "55", "run": "run", "made_with": {"settings": SETTINGS},
                "rejected": 0, "too_long": 1, "unparsed": 0, "label_mass": 0.75,
            },
        }},
        "versions": {"oranbench": 1, "ot": 1},
        "n-shot": {"oranbench": 0, "ot": 0},
        "higher_is_better": {"oranbench": better, "ot": better},
        "n-samples": {"oranbench": {"original": 4, "effective": 4}},
        "config": {
            "model": "tel-edge",
            "model_args": "backbone=nano,variant=lora-Q8_0,quant=Q8_0,format=gguf,adapter=True",
            "batch_size": None, "batch_sizes": [], "device": None, "use_cache": None,
            "limit": None, "bootstrap_iters": None, "gen_kwargs": None,
            "random_seed": 42, "numpy_seed": None, "torch_seed": None, "fewshot_seed": None,
        },
        "git_hash": None, "date": DATE, "pretty_env_info": None, "transformers_version": None,
        "lm_eval_version": "0.4.13", "upper_git_hash": None, "task_hashes": {"oranbench": "ab"},
        "model_source": "tel-edge", "model_name": "nano/lora-Q8_0",
        "model_name_sanitized": "nano__lora-Q8_0", "system_instruction": None,
        "system_instruction_sha": None, "fewshot_as_multiturn": False, "chat_template": None,
        "chat_template_sha": None, "total_evaluation_time_seconds": None,
    }  # fmt: skip


def test_the_group_is_the_mean_of_its_categories() -> None:
    of = [summary(RECORDS), summary(RECORDS[1:], "teleqna")]
    group = harness.document(of, DATE)["groups"]["ot"]
    assert group["acc,none"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    # Variances 2/9/2 and 1/4/1 of the means, over the square of two tasks.
    assert group["acc_stderr,none"] == pytest.approx(math.sqrt((1 / 9 + 1 / 4) / 4))
    # One question has no deviation; a generated text no exact majority.
    of = [summary(RECORDS), summary(TEXTS[:1], "teletables", majority_exact=None)]
    made = harness.document(of, DATE)
    assert made["results"]["teletables"]["acc_stderr,none"] == "N/A"
    assert made["groups"]["ot"]["acc_stderr,none"] == "N/A"
    assert "maj@4_exact,none" in made["results"]["oranbench"]
    assert "maj@4_exact,none" not in made["groups"]["ot"]
    assert made["configs"]["teletables"]["output_type"] == "generate_until"
    for wrong in ([], [of[0], of[0]], [of[0], replace(of[1], part="validation")]):
        with pytest.raises(ValueError, match="one variant and one part"):
            harness.document(wrong, DATE)


def test_the_line_of_a_sample_never_changes() -> None:
    (made,) = harness.samples(RECORDS[:1], summary(RECORDS[:1]), {"oranbench/7": QUESTION})
    asked = "Answer with one letter.\nWöfür O1?\nA) to manage\nB) to play\nAnswer:"
    low, high = str(math.log(0.3)), str(math.log(0.4))
    # What ends a line to some readers, such as U+2028, is written as an escape.
    assert made.endswith("}\n")
    assert made.isascii()
    doc = (
        '{\n  "id": "oranbench/7",\n  "question": "Wöfür O1?",\n'
        '  "choices": [\n    "to manage",\n    "to play"\n  ],\n  "answer": 1\n}'
    )
    assert json.loads(made) == {
        "doc_id": 7,
        "doc": {"id": "oranbench/7", "question": "Wöfür O1?", "answer": 1,
                "choices": ["to manage", "to play"]},
        "target": "1",
        "arguments": {
            "gen_args_0": {"arg_0": asked, "arg_1": " A"},
            "gen_args_1": {"arg_0": asked, "arg_1": " B"},
        },
        "resps": [[[low, "False"]], [[high, "True"]]],
        "filtered_resps": [[low, "False"], [high, "True"]],
        "filter": "none",
        "metrics": ["acc", "maj@4"],
        "doc_hash": sha256(doc), "prompt_hash": sha256(asked), "target_hash": sha256("1"),
        "acc": 1.0, "maj@4": 1.0,
    }  # fmt: skip


def test_without_questions_no_text_is_written() -> None:
    texts = [*TEXTS, replace(RECORDS[0], id="no row")]
    first, second, third = map(json.loads, harness.samples(texts, summary(TEXTS, "3gpp_tsg"), None))
    assert (first["doc"], first["doc_id"], third["doc_id"]) == ({"id": "3gpp_tsg/0"}, 0, 2)
    assert first["arguments"]["gen_args_0"]["arg_0"] == "3gpp_tsg/0"
    assert third["arguments"]["gen_args_1"] == {"arg_0": "no row", "arg_1": " B"}
    # A reply may repeat the question, so only what was read from it is there.
    assert (first["target"], first["resps"], first["filtered_resps"]) == (
        "RAN3", [["RAN3"]], ["RAN3"]
    )  # fmt: skip
    assert (second["resps"], second["acc"], second["maj@4"]) == ([["[invalid]"]], 0.0, 0.0)


def test_a_generated_text_is_the_reply() -> None:
    asked = {at.id: Question(at.id, "3gpp_tsg", "a text", ("x", "y"), at.gold) for at in TEXTS}
    first, second = map(json.loads, harness.samples(TEXTS, summary(TEXTS, "3gpp_tsg"), asked))
    assert (first["resps"], first["filtered_resps"]) == ([["RAN3, I say"]], ["RAN3"])
    assert (second["resps"], second["filtered_resps"]) == ([["no idea"]], ["[invalid]"])
    (arguments,) = first["arguments"].values()
    assert "a text" in arguments["arg_0"]
    assert arguments["arg_1"]["max_gen_toks"] == 64


def test_a_flag_is_set_only_where_nothing_else_can_be_likelier() -> None:
    """Of labels at 0.3 and 0.2 neither is surely the first of all tokens: 0.5 is left."""
    unsure = replace(RECORDS[0], logprobs=(math.log(0.2), math.log(0.3)))
    (made,) = map(json.loads, harness.samples([unsure], summary([unsure]), None))
    assert [flag for _, flag in made["filtered_resps"]] == ["False", "False"]


@pytest.mark.parametrize(
    ("question", "digest"),
    [
        (replace(QUESTION, text="Why E2?"), RECORDS[0].asked),
        # Records of older versions have no digest, only the right answer.
        (replace(QUESTION, answer=0), ""),
        (None, ""),
    ],
)
def test_texts_of_another_data_set_are_refused(question: Question | None, digest: str) -> None:
    asked = {"oranbench/7": question} if question else {}
    records = [replace(RECORDS[0], asked=digest)]
    with pytest.raises(InputError, match=r"oranbench/7: .* data set\npass the data set that was"):
        list(harness.samples(records, summary(records), asked))


def test_files_are_those_of_the_newest_records(
    home: Callable[..., tuple[Workspace, Path]], tmp_path: Path
) -> None:
    out, place = tmp_path / "out", tmp_path / "out" / "nano__lora-Q8_0"
    workspace, _ = home(lines(RECORDS))
    home(lines(TEXTS), "3gpp_tsg", DATE - 60)
    one = summary(RECORDS, too_long=1)
    other = summary(TEXTS, "3gpp_tsg", majority_exact=None)
    left_out = [replace(one, part="train"), replace(one, rotated=True), replace(one, backbone="x")]
    made = harness.write(out, workspace, "nano", [one, *left_out, other])
    names = [
        f"results_{STAMP}.json", f"samples_3gpp_tsg_{STAMP}.jsonl",
        f"samples_oranbench_{STAMP}.jsonl",
    ]  # fmt: skip
    assert [path.name for path in made] == sorted(path.name for path in place.iterdir()) == names
    document = json.loads(made[0].read_text())
    written = [json.loads(text) for text in made[2].read_text().splitlines()]
    assert [sample["doc_id"] for sample in written] == [7, 9, 11]
    assert [sample["acc"] for sample in written] == [1, 0, 1]
    hashes = "".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in written)
    assert document["task_hashes"]["oranbench"] == sha256(hashes)
    assert document["date"] == DATE
    assert list(document["results"]) == ["3gpp_tsg", "oranbench", "ot"]
    # Again the same; results of the harness stay, ours of an older date or without samples go.
    before = [path.read_bytes() for path in made]
    assert harness.write(out, workspace, "nano", [other, one]) == made
    assert [path.read_bytes() for path in made] == before
    foreign = [place / "results_2022.json", place / "samples_oranbench_2022.jsonl"]
    foreign[0].write_text('{"model_source": "hf"}')
    foreign[1].write_text("{}\n")
    home(lines(RECORDS), date=DATE + 0.75)
    newer = harness.write(out, workspace, "nano", [one])
    assert [path.name for path in newer] == [
        name.replace("20.25", "21.00") for name in names if "3gpp" not in name
    ]
    assert set(place.iterdir()) == {*newer, *foreign}
    (alone,) = harness.write(out, workspace, "nano", [one], with_samples=False)
    assert alone == newer[0]
    assert set(place.iterdir()) == {alone, *foreign}


@pytest.mark.parametrize("torn", [-5, -len(line(RECORDS[2])) - 5])
def test_records_that_are_not_the_summary_s_are_refused(
    torn: int, home: Callable[..., tuple[Workspace, Path]], tmp_path: Path
) -> None:
    workspace, path = home(lines(RECORDS)[:torn])
    with pytest.raises(InputError, match=r"oranbench\.jsonl: \d records of run run, .* counts 3"):
        harness.write(tmp_path / "out", workspace, "nano", [summary(RECORDS)])
    path.unlink()
    with pytest.raises(InputError, match=r"oranbench\.jsonl: there is a summary but no records"):
        harness.write(tmp_path / "out", workspace, "nano", [summary(RECORDS)])
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="a file is in the way"):
        harness.write(tmp_path / "file", workspace, "nano", [])


def test_the_harness_reads_it(home: Callable[..., tuple[Workspace, Path]], tmp_path: Path) -> None:
    """Its table shows our values, its names of files are ours, and no key is unknown to it."""
    pytest.importorskip("pytablewriter")
    utils = pytest.importorskip("lm_eval.utils")
    schema = pytest.importorskip("lm_eval.result_schema")
    workspace, _ = home(lines(RECORDS))
    results, samples = harness.write(tmp_path / "out", workspace, "nano", [summary(RECORDS)])
    document = json.loads(results.read_text())
    (row,) = [text for text in utils.make_table(document).splitlines() if "oranbench" in text]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["- oranbench", "1", "none", "0", "acc", "↑", "0.6667", "±", "0.3333"]
    assert "|ot-mini" in utils.make_table(document, "groups")
    assert utils.get_results_filenames([str(results)]) == [str(results)]
    assert utils.get_file_task_name(samples.name) == "oranbench"
    assert utils.get_file_datetime(samples.name) == STAMP
    assert utils.sanitize_model_name(document["model_name"]) == results.parent.name
    assert set(document) <= set(schema.EvalResults.__annotations__)
    assert set(document["config"]) <= set(schema._EvalConfig.__annotations__)
    sample = json.loads(samples.read_text().splitlines()[0])
    assert set(sample) == {*schema.SampleResult.__annotations__, *sample["metrics"]}
