"""The official Russian SuperGLUE metrics, each a function of sums over documents.

Definitions: Shavrina et al. 2020, "RussianSuperGLUE" (https://arxiv.org/abs/2010.15925), and the SuperGLUE code that it
follows. Every metric here is computed from counts that add up over documents, so the bootstrap of a thousand samples is
one matrix product: a sample only weighs the documents' counts.

An answer that could not be read from a generated text has the prediction None and counts as wrong.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BOOTSTRAP_SAMPLES = 1000
# Two-sided 95% of the normal distribution.
Z_95 = 1.959964


@dataclass(frozen=True)
class Item:
    """One answered example.

    Attributes:
        cluster: what the bootstrap draws: the document, for MuSeRC the paragraph.
        gold: the label's index; for RuCoS the tuple of right entities; None where it is hidden.
        prediction: of the same kind (RuCoS: a string); None for an answer that could not be read.
        group: what belongs together inside a cluster: for MuSeRC the question.
        categories: for LiDiRus the linguistic categories that the example tests.
        task: the task's name.
    """

    cluster: Hashable
    gold: Any
    prediction: Any
    group: Hashable = None
    categories: tuple[str, ...] = ()
    task: str = ""


@dataclass(frozen=True)
class Metric:
    """`value` maps summed counts [..., k] to the metric [...]; `counts` gives the counts [k] of one cluster's items."""

    name: str
    counts: Callable[[Sequence[Item]], np.ndarray]
    value: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """A figure, its standard error (bootstrap over clusters) and a 95% interval (percentiles of the bootstrap)."""

    value: float
    stderr: float
    interval: tuple[float, float]


def _confusion(labels: int) -> Callable[[Sequence[Item]], np.ndarray]:
    """Counts [labels × (labels + 1)]: gold by prediction, the last column for answers that could not be read."""

    def counts(items: Sequence[Item]) -> np.ndarray:
        table = np.zeros((labels, labels + 1))
        for item in items:
            table[item.gold, labels if item.prediction is None else item.prediction] += 1
        return table.ravel()

    return counts


def _as_table(sums: np.ndarray, labels: int) -> np.ndarray:
    return sums.reshape(*sums.shape[:-1], labels, labels + 1)


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Quotient, 0 where the denominator is 0 (as scikit-learn's zero_division=0)."""
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=below != 0)


def _accuracy(labels: int) -> Callable[[np.ndarray], np.ndarray]:
    def value(sums: np.ndarray) -> np.ndarray:
        table = _as_table(sums, labels)
        return _divide(np.trace(table, axis1=-2, axis2=-1), table.sum((-2, -1)))

    return value


def _macro_f1(labels: int) -> Callable[[np.ndarray], np.ndarray]:
    """Unweighted mean of the F1 of the labels that occur in the gold answers or the predictions."""

    def value(sums: np.ndarray) -> np.ndarray:
        table = _as_table(sums, labels)
        gold, predicted = table.sum(-1), table.sum(-2)[..., :labels]
        f1 = _divide(2 * np.diagonal(table, axis1=-2, axis2=-1), gold + predicted)
        return _divide(f1.sum(-1), (gold + predicted > 0).sum(-1))

    return value


def _matthews(labels: int) -> Callable[[np.ndarray], np.ndarray]:
    """Matthews correlation, multi-class form (Gorodkin 2004); 0 where one side is constant."""

    def value(sums: np.ndarray) -> np.ndarray:
        table = _as_table(sums, labels)
        gold = np.concatenate([table.sum(-1), np.zeros((*table.shape[:-2], 1))], axis=-1)
        predicted = table.sum(-2)
        right, total = np.trace(table, axis1=-2, axis2=-1), table.sum((-2, -1))
        covariance = right * total - (gold * predicted).sum(-1)
        spread = (total**2 - (gold**2).sum(-1)) * (total**2 - (predicted**2).sum(-1))
        return _divide(covariance, np.sqrt(spread))

    return value


def _muserc_counts(items: Sequence[Item]) -> np.ndarray:
    """Of one paragraph: true positives, false positives, false negatives, questions wholly right, questions, answers
    judged rightly, answers."""
    hits = sum(item.gold == 1 and item.prediction == 1 for item in items)
    false_alarms = sum(item.gold == 0 and item.prediction != 0 for item in items)
    misses = sum(item.gold == 1 and item.prediction != 1 for item in items)
    wrong_questions = {item.group for item in items if item.prediction != item.gold}
    questions = {item.group for item in items}
    judged = sum(item.prediction == item.gold for item in items)
    whole = len(questions - wrong_questions)
    return np.array([hits, false_alarms, misses, whole, len(questions), judged, len(items)], dtype=float)


def _muserc_f1a(sums: np.ndarray) -> np.ndarray:
    hits, false_alarms, misses = sums[..., 0], sums[..., 1], sums[..., 2]
    return _divide(2 * hits, 2 * hits + false_alarms + misses)


def _muserc_em(sums: np.ndarray) -> np.ndarray:
    return _divide(sums[..., 3], sums[..., 4])


def _muserc_accuracy(sums: np.ndarray) -> np.ndarray:
    return _divide(sums[..., 5], sums[..., 6])


def normalised(text: str) -> str:
    """RuCoS's normal form of an answer: lower case, no ASCII punctuation, single spaces."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def token_f1(prediction: str, gold: str) -> float:
    """F1 of the words two normalised texts share, as in SQuAD's evaluation; 0 where nothing is shared."""
    predicted, right = normalised(prediction).split(), normalised(gold).split()
    shared = sum((Counter(predicted) & Counter(right)).values())
    return 2 * shared / (len(predicted) + len(right)) if shared else 0.0


def _rucos_counts(items: Sequence[Item]) -> np.ndarray:
    """[sum of best token F1, exact matches, queries]."""
    f1 = exact = 0.0
    for item in items:
        if item.prediction is not None:
            f1 += max(token_f1(item.prediction, gold) for gold in item.gold)
            exact += max(normalised(item.prediction) == normalised(gold) for gold in item.gold)
    return np.array([f1, exact, len(items)], dtype=float)


def _share(column: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda sums: _divide(sums[..., column], sums[..., -1])


def _mean_of(*values: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda sums: np.mean([value(sums) for value in values], axis=0)


def accuracy_metrics() -> dict[str, Metric]:
    """Accuracy over two labels."""
    counts = _confusion(2)
    return {"rsg": Metric("rsg", counts, _accuracy(2)), "acc": Metric("acc", counts, _accuracy(2))}


def macro_f1_metrics(labels: int) -> dict[str, Metric]:
    """Macro F1 and accuracy; "rsg" is the mean of the two."""
    counts = _confusion(labels)
    return {
        "rsg": Metric("rsg", counts, _mean_of(_macro_f1(labels), _accuracy(labels))),
        "macro_f1": Metric("macro_f1", counts, _macro_f1(labels)),
        "acc": Metric("acc", counts, _accuracy(labels)),
    }


def _in_category(category: str) -> Callable[[Sequence[Item]], np.ndarray]:
    counts = _confusion(2)
    return lambda items: counts([item for item in items if category in item.categories])


def matthews_metrics(categories: Sequence[str]) -> dict[str, Metric]:
    """Matthews correlation over two labels, of all examples and of those in each category."""
    matthews = _matthews(2)
    metrics = [
        Metric("rsg", _confusion(2), matthews),
        Metric("mcc", _confusion(2), matthews),
        Metric("acc", _confusion(2), _accuracy(2)),
        *(Metric(f"mcc_{category}", _in_category(category), matthews) for category in categories),
    ]
    return {metric.name: metric for metric in metrics}


def answer_set_metrics() -> dict[str, Metric]:
    """MuSeRC: F1 of the right answers and exact match of questions; "rsg" is the mean of the two."""
    return {
        "rsg": Metric("rsg", _muserc_counts, _mean_of(_muserc_f1a, _muserc_em)),
        "f1a": Metric("f1a", _muserc_counts, _muserc_f1a),
        "em": Metric("em", _muserc_counts, _muserc_em),
        # Not official: of single answers, as some published figures count.
        "acc": Metric("acc", _muserc_counts, _muserc_accuracy),
    }


def entity_metrics() -> dict[str, Metric]:
    """RuCoS: token F1 and exact match, best over the right entities; "rsg" is the mean of the two."""
    return {
        "rsg": Metric("rsg", _rucos_counts, _mean_of(_share(0), _share(1))),
        "f1": Metric("f1", _rucos_counts, _share(0)),
        "em": Metric("em", _rucos_counts, _share(1)),
    }


def _cluster_counts(metric: Metric, items: Sequence[Item]) -> np.ndarray:
    """Counts [clusters, k]."""
    clusters: dict[Hashable, list[Item]] = {}
    for item in items:
        clusters.setdefault(item.cluster, []).append(item)
    return np.array([metric.counts(members) for members in clusters.values()])


def has_examples(metric: Metric, items: Sequence[Item]) -> bool:
    """False where no item counts for the metric, as for a linguistic category that none of them tests."""
    return bool(_cluster_counts(metric, items).any())


def compute(metric: Metric, items: Sequence[Item]) -> float:
    """The metric's value over all items."""
    return float(metric.value(_cluster_counts(metric, items).sum(0)))


def bootstrap_samples(metric: Metric, items: Sequence[Item], seed: int, samples: int = BOOTSTRAP_SAMPLES) -> np.ndarray:
    """The metric of `samples` resamplings of the clusters, drawn with replacement. Float array [samples]."""
    return metric.value(resampled_sums(_cluster_counts(metric, items), seed, samples))


def resampled_sums(counts: np.ndarray, seed: int, samples: int = BOOTSTRAP_SAMPLES) -> np.ndarray:
    """The sums over `samples` resamplings of the clusters, drawn with replacement.

    Args:
        counts: [clusters, k].
        seed: Of the draws.
        samples: Number of resamplings.

    Returns:
        Float array [samples, k].
    """
    rng = np.random.default_rng(seed)
    return np.stack(
        [np.bincount(rng.integers(0, len(counts), len(counts)), minlength=len(counts)) @ counts for _ in range(samples)]
    )


def estimate(metric: Metric, items: Sequence[Item], seed: int = 0) -> Estimate:
    """The metric with a bootstrap standard error and 95% interval."""
    draws = bootstrap_samples(metric, items, seed)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(compute(metric, items), float(draws.std(ddof=1)), (float(low), float(high)))


def mean_estimate(parts: Sequence[Estimate]) -> Estimate:
    """Mean of independent figures (the tasks'), with the standard error and the normal 95% interval of a mean."""
    value = float(np.mean([part.value for part in parts]))
    stderr = float(np.sqrt(np.sum([part.stderr**2 for part in parts])) / len(parts))
    return Estimate(value, stderr, (value - Z_95 * stderr, value + Z_95 * stderr))
