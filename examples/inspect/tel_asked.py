"""The questions that tel-eval asked, for Inspect: its own solver and scorer, our prompt.

`file` is one that `tel-report --samples` writes. With `free` the model writes what it likes;
otherwise the service scores the letters alone (`guided_choice`), as tel-eval does.
"""

from functools import partial

from inspect_ai import Task, task
from inspect_ai.dataset import Sample, json_dataset
from inspect_ai.scorer import choice
from inspect_ai.solver import Generate, Solver, TaskState, multiple_choice, solver

LETTERS = "ABCDEFGHIJKLMNOP"
# What adapters were trained with. "Answer:" and a letter are the reply, since Inspect reads that.
TEMPLATE = "Answer with one letter.\n{question}\n{choices}\n"


@solver
def scored() -> Solver:
    """Let the service choose among the letters of each question."""
    inner = multiple_choice(template=TEMPLATE)

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        replies = [f"Answer: {letter}" for letter in LETTERS[: len(state.choices)]]
        return await inner(state, partial(generate, extra_body={"guided_choice": replies}))

    return solve


def sample(row: dict) -> Sample:
    """Return what Inspect asks of a line."""
    doc = row["doc"]
    target = LETTERS[doc["answer"]]
    return Sample(input=doc["question"], choices=doc["choices"], target=target, id=doc["id"])


@task
def tel_asked(file: str = "asked.jsonl", free: bool = False) -> Task:
    """Return the task."""
    plan = multiple_choice() if free else scored()
    return Task(dataset=json_dataset(file, sample), solver=plan, scorer=choice())
