"""The router of requests without a category: training it, measuring it, writing it.

Trained on the train parts that the adapters are trained on, calibrated on the validation parts and
measured on the test parts, of which nothing here has seen a text: one that two categories share is
left out where the other one holds it out. It tells the categories of its data set from each other.
What belongs to none of them it was never shown, and seldom abstains from.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tel_edge.eval import documents
from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.benchmarks.split import Split, apart, split
from tel_edge.eval.statistics import Share, quantile, share
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.extras import need
from tel_edge.runtime.files import digest
from tel_edge.runtime.files.atomic import replacing
from tel_edge.runtime.questions import router as runtime
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.router import Router
from tel_edge.runtime.workspace import Workspace

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA_VERSION = 1
BUCKETS = 2**16
# Inverse strength of the regularisation; the weights of categories go with size to the -BALANCE.
C, BALANCE = 1.0, 0.5
# The threshold's rule: see `threshold`.
LEAST, WANTED, MOST_ABSTAINED = 0.5, 0.995, 0.01


@dataclass(frozen=True)
class Confusion:
    """Where questions of each category went.

    `counts` has a row for each of `categories`, which the questions are of, and a column for each,
    which they were sent to, and last one for abstentions. `right` counts an abstention as wrong,
    `routed` leaves it out, `forced` takes the likeliest category however unlikely it is.
    """

    categories: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    right: Share
    routed: Share
    forced: Share
    abstained: Share


@dataclass(frozen=True)
class Measured:
    """What a router is worth on `part` of a data set, and what it costs.

    `whole` is measured on requests with their choices, `alone` on their questions alone. `source`
    and `sha256` are of the router's file, `splits` the digests of the splits by category;
    `seconds` is what training took, None where a router was only measured, `microseconds_p50` and
    `_p95` what one request takes.
    """

    dataset: str
    part: str
    seed: int
    source: str
    sha256: str
    bytes: int
    buckets: int
    temperature: float
    threshold: float
    splits: Mapping[str, str]
    whole: Confusion
    alone: Confusion
    seconds: float | None
    microseconds_p50: float
    microseconds_p95: float
    schema_version: int = SCHEMA_VERSION


def sources(
    dataset: str, seed: int, strict: bool = False, say: benchmark.Say = lambda _: None
) -> dict[str, Split]:
    """Read and split every category that `dataset` has, in the order of the table of categories.

    `say` is told what `benchmark.read` tells. Raises `InputError` as that does, and for a data set
    of fewer than two categories.
    """
    folder = Path(dataset)
    names = list(CATEGORIES)
    if dataset not in ("ot-mini", "ot-full") and folder.is_dir():
        names = [name for name in names if (folder / name).is_dir()]
    if len(names) < 2:
        raise InputError(
            f"{dataset}: has {len(names)} of the categories {' '.join(CATEGORIES)}; "
            "a router needs two to choose from"
        )
    return {
        name: split(benchmark.read(dataset, CATEGORIES[name], strict, say).questions, seed)
        for name in names
    }


def source(splits: Mapping[str, Split]) -> str:
    """Return the digest of what a router is made of: the digests of the parts, and how."""
    how = [runtime.FEATURE_VERSION, BUCKETS, C, BALANCE, LEAST, WANTED, MOST_ABSTAINED]
    return digest.of_value([how, [(name, made.digest) for name, made in apart(splits).items()]])


def train(splits: Mapping[str, Split], seed: int) -> Router:
    """Train on the train parts, then set temperature and threshold on the validation parts.

    Questions whose text another category holds out are left out (`split.apart`), and each is shown
    twice, with its choices and without, since a request may lack them. The result is a function of
    the arguments. Raises `InputError` if scikit-learn is not installed or a train
    part is empty.
    """
    import numpy as np

    splits = apart(splits)
    if empty := [name for name, made in splits.items() if not made.train]:
        raise InputError(f"{empty[0]}: no train questions to train the router on")
    need("sklearn", "report")  # Brings threadpoolctl.
    svm, sparse = need("sklearn.svm", "report"), need("scipy.sparse", "report")
    rows, golds = [], []
    for at, made in enumerate(splits.values()):
        for question in made.train:
            for choices in (question.choices, ()):
                rows.append(runtime.features(question.text, choices, BUCKETS))
                golds.append(at)
    indices, values = zip(*rows, strict=True)
    ends = np.cumsum([0, *map(len, indices)])
    matrix = sparse.csr_matrix(
        (np.concatenate(values), np.concatenate(indices), ends), shape=(len(rows), BUCKETS)
    )
    counts = np.bincount(golds)
    weights = {at: float(counts.mean() / count) ** BALANCE for at, count in enumerate(counts)}
    model = svm.LinearSVC(C=C, dual=True, tol=1e-2, class_weight=weights, random_state=seed)
    with need("threadpoolctl", "report").threadpool_limits(1):
        model.fit(matrix, golds)
    fitted, bias = model.coef_, model.intercept_
    if len(splits) == 2:
        # Of two classes scikit-learn keeps the second one's row only.
        fitted, bias = np.vstack([-fitted, fitted]), np.concatenate([-bias, bias])
    plain = Router(
        categories=tuple(splits),
        # Rounded before anything is measured: figures are those of the file.
        weights=fitted.astype("<f2"),
        bias=bias.astype("<f4"),
        temperature=1.0,
        threshold=0.0,
        source=source(splits),
    )
    return calibrated(plain, {name: made.validation for name, made in splits.items()})


def calibrated(plain: Router, parts: Mapping[str, Sequence[Question]]) -> Router:
    """Return the router with the temperature and the threshold that suit the questions.

    Without any question it stays as it is.
    """
    import numpy as np

    asked = [(plain.categories.index(name), q) for name, part in parts.items() for q in part]
    if not asked:
        return plain
    golds = np.asarray([gold for gold, _ in asked])
    logits = np.stack([plain.logits(q.text, q.choices) for _, q in asked])
    warmth = temperature(logits, golds)
    shares = np.exp((logits - logits.max(axis=1, keepdims=True)) / warmth)
    shares /= shares.sum(axis=1, keepdims=True)
    rights = shares.argmax(axis=1) == golds
    return replace(plain, temperature=warmth, threshold=threshold(shares.max(axis=1), rights))


def temperature(logits: NDArray[Any], golds: NDArray[Any]) -> float:
    """Return the temperature with the least cross-entropy, from 0.01 to 100.

    `logits` is [questions, categories], `golds` [questions] holds indices. Source: Guo et al., "On
    Calibration of Modern Neural Networks", ICML 2017.
    """
    import numpy as np

    own = logits[np.arange(len(golds)), golds]
    low, high = 0.01, 100.0
    # The loss is convex in 1 / temperature, so its slope tells the side at each halving.
    for _ in range(50):
        inverse = (low + high) / 2
        shares = np.exp(inverse * (logits - logits.max(axis=1, keepdims=True)))
        shares /= shares.sum(axis=1, keepdims=True)
        falls = ((shares * logits).sum(axis=1) - own).mean() < 0
        low, high = (inverse, high) if falls else (low, inverse)
    return round(2 / (low + high), 6)


def threshold(confidences: NDArray[Any], rights: NDArray[Any]) -> float:
    """Return the least of 0.50, 0.51, ... 0.99 at which 0.995 of what is routed is right.

    Where that would abstain from more than 0.01 of the questions, the largest that does not, and
    never below 0.50: a category that is more likely wrong than right is not chosen.
    `confidences` [questions] are probabilities of the likeliest category, `rights` whether it was.
    """
    found = LEAST
    for hundredths in range(round(LEAST * 100), 100):
        at = hundredths / 100
        routed = confidences >= at
        if (~routed).mean() > MOST_ABSTAINED:
            break
        found = at
        if rights[routed].mean() >= WANTED:
            break
    return found


def measure(
    router: Router, parts: Mapping[str, Sequence[Question]], choices: bool = True
) -> Confusion:
    """Route every question, with its choices or without, and count where it went.

    `parts` gives the questions by category, each of them one of the router's.
    """
    names = router.categories
    counts = [[0] * (len(names) + 1) for _ in names]
    forced = 0
    for name, part in parts.items():
        gold = names.index(name)
        for question in part:
            made = router.route(question.text, question.choices if choices else ())
            to = len(names) if made.category is None else names.index(made.category)
            counts[gold][to] += 1
            forced += max(names, key=made.probabilities.__getitem__) == name
    of, abstained = sum(map(sum, counts)), sum(row[-1] for row in counts)
    right = sum(row[at] for at, row in enumerate(counts))
    return Confusion(
        categories=names,
        counts=tuple(map(tuple, counts)),
        right=share(right, of),
        routed=share(right, of - abstained),
        forced=share(forced, of),
        abstained=share(abstained, of),
    )


def evaluate(
    router: Router,
    path: Path,
    splits: Mapping[str, Split],
    *,
    dataset: str,
    seed: int,
    seconds: float | None,
    part: str = "test",
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Measure the router that lies at `path` on a part of the splits, and its time per request."""
    parts = {name: made.part(part) for name, made in splits.items()}
    times = []
    for question in (question for questions in parts.values() for question in questions):
        began = clock()
        router.route(question.text, question.choices)
        times.append((clock() - began) * 1e6)
    times = times or [0.0]
    return Measured(
        # A folder goes by its own name, as in `benchmark.read`.
        dataset=Path(dataset).resolve().name,
        part=part,
        seed=seed,
        source=router.source,
        sha256=digest.of_file(path),
        bytes=path.stat().st_size,
        buckets=int(router.weights.shape[1]),
        temperature=router.temperature,
        threshold=router.threshold,
        splits={name: made.digest for name, made in splits.items()},
        whole=measure(router, parts),
        alone=measure(router, parts, choices=False),
        seconds=seconds,
        microseconds_p50=quantile(times, 0.5),
        microseconds_p95=quantile(times, 0.95),
    )


def dumps(router: Router) -> bytes:
    """Return the router as a safetensors file, the same bytes for the same router."""
    import numpy as np

    settings = {
        "categories": router.categories,
        "source": router.source,
        "temperature": float(router.temperature),
        "threshold": float(router.threshold),
    }
    header: dict[str, Any] = {
        runtime.METADATA: {
            runtime.VERSION: runtime.FEATURE_VERSION,
            runtime.SETTINGS: json.dumps(settings, sort_keys=True),
        }
    }
    data = b""
    for name, (dtype, _) in runtime.TENSORS.items():
        array = np.asarray(getattr(router, name), runtime.DTYPES[dtype])
        part = array.tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": array.shape,
            "data_offsets": [len(data), len(data) + len(part)],
        }
        data += part
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    # Readers that map the file want the data at a multiple of 8.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def save(router: Router, path: Path) -> None:
    """Write the router to `path` in one step, and only what the runtime reads again."""
    data = dumps(router)
    runtime.loads(data)
    with replacing(path) as partial:
        partial.write_bytes(data)


def report_path(workspace: Workspace) -> Path:
    """Return where the figures of the workspace's router are kept."""
    return workspace.root / "results" / "router" / "router.json"


def write(workspace: Workspace, made: Measured) -> Path:
    """Write the figures to the workspace in one step and return the file."""
    path = report_path(workspace)
    documents.write(path, asdict(made))
    return path


def read(path: Path) -> Measured:
    """Read what `write` wrote. Raises `InputError` if it is something else."""
    try:
        document = documents.read(path, SCHEMA_VERSION)
        known = {each.name: document[each.name] for each in fields(Measured)}
        known |= {name: _confusion(document[name]) for name in ("whole", "alone")}
        numbers = ("temperature", "threshold", "microseconds_p50", "microseconds_p95")
        known |= {name: float(document[name]) for name in numbers}
        if known["seconds"] is not None:
            known["seconds"] = float(known["seconds"])
        known["bytes"] = int(document["bytes"])
        return Measured(**known)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: no figures of a router ({error}); tel-export --router") from None


def _confusion(document: Mapping[str, Any]) -> Confusion:
    names = tuple(map(str, document["categories"]))
    counts = tuple(tuple(int(count) for count in row) for row in document["counts"])
    if [len(row) for row in counts] != [len(names) + 1] * len(names):
        raise ValueError("counts are not a row for each category")
    made = {name: document[name] for name in ("right", "routed", "forced", "abstained")}
    shares = {
        name: Share(
            right=int(each["right"]),
            of=int(each["of"]),
            value=float(each["value"]),
            low=float(each["low"]),
            high=float(each["high"]),
        )
        for name, each in made.items()
    }
    return Confusion(names, counts, **shares)
