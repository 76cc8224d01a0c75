"""The router of requests without a category: training it, measuring it, writing it.

Trained on the train parts that the adapters are trained on, calibrated on the validation parts and
measured on the test parts, of which nothing here has seen a text: one that two categories share is
left out where the other one holds it out. Requests of other fields are a class of their own
(`other_fields`): what is like none of the categories is the bare backbone's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tel_edge.eval.benchmarks import benchmark, other_fields
from tel_edge.eval.benchmarks.split import Split, apart, split
from tel_edge.eval.scoring.router_figures import Confusion, Measured
from tel_edge.eval.statistics import Share, quantile, share
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.extras import need
from tel_edge.runtime.files import digest
from tel_edge.runtime.files.atomic import replacing
from tel_edge.runtime.questions import router as runtime
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.router import Router

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUCKETS = 2**16
# Inverse strength of the regularisation; the weights of categories go with size to the -BALANCE.
C, BALANCE = 1.0, 0.5
# Of the validation questions, which may be taken for something else.
STRANGE = 0.01
# The threshold's rule: see `threshold`.
LEAST, WANTED, MOST_ABSTAINED = 0.5, 0.995, 0.01


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
    how: list[Any] = [
        runtime.FEATURE_VERSION,
        BUCKETS,
        C,
        BALANCE,
        STRANGE,
        LEAST,
        WANTED,
        MOST_ABSTAINED,
    ]
    how.append([asdict(request) for request in other_fields.parts()[0]])
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
    for request in other_fields.parts()[0]:
        for choices in (request.choices, ()):
            rows.append(runtime.features(request.text, choices, BUCKETS))
            golds.append(len(splits))
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
    plain = Router(
        categories=(*splits, runtime.NONE),
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
    plain = _watchful(plain, [question for _, question in asked])
    golds = np.asarray([gold for gold, _ in asked])
    logits = np.stack([plain.logits(q.text, q.choices) for _, q in asked])
    warmth = temperature(logits, golds)
    shares = np.exp((logits - logits.max(axis=1, keepdims=True)) / warmth)
    shares /= shares.sum(axis=1, keepdims=True)
    rights = shares.argmax(axis=1) == golds
    return replace(plain, temperature=warmth, threshold=threshold(shares.max(axis=1), rights))


def _watchful(plain: Router, asked: Sequence[Question]) -> Router:
    """Return the router with as much weight on none of the categories as the questions bear.

    Few requests of other fields stand against thousands of questions, so by itself the class seldom
    wins; here it does over the share `STRANGE` of the questions that are least like their category.
    """
    import numpy as np

    none = plain.categories.index(runtime.NONE)
    logits = np.stack([plain.logits(q.text, own) for q in asked for own in (q.choices, ())])
    ahead = np.delete(logits, none, axis=1).max(axis=1) - logits[:, none]
    bias = plain.bias.copy()
    # Of few questions the least like is not far from the others; half way is enough there.
    bias[none] += min(np.quantile(ahead, STRANGE), np.median(ahead) / 2)
    return replace(plain, bias=bias)


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
    names = tuple(name for name in router.categories if name != runtime.NONE)
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


def measure_others(router: Router, choices: bool = True) -> Share:
    """Return the share of requests of fields that it was not trained on that it leaves alone."""
    asked = other_fields.parts()[1]
    routes = (router.route(one.text, one.choices if choices else ()) for one in asked)
    return share(sum(route.category is None for route in routes), len(asked))


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
        others=measure_others(router),
        others_alone=measure_others(router, choices=False),
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
