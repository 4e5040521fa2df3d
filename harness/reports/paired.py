"""Paired statistics of two runs' answers to the same documents.

Differences are paired: every document is compared with itself. Intervals come from a bootstrap over documents (MuSeRC:
paragraphs) that draws the same documents for both runs; accuracies are tested by McNemar's exact test (McNemar 1947,
with the binomial distribution in place of chi-squared), other metrics by the bootstrap; p-values are corrected over the
tasks after Holm (1979).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.models.heads import log_softmax
from harness.records.run import ForeignTaskRecord, SampleRecord
from harness.tasks import get_task
from harness.tasks.aggregation import find_aggregation, resampled
from harness.tasks.metrics import Item, bootstrap_samples, compute, resampled_sums

# More draws than a single interval takes: a p-value near 0.05 is read off the tail.
BOOTSTRAP_SAMPLES = 5000
# Of a metric that is computed anew for each sample, document by document.
SLOW_BOOTSTRAP_SAMPLES = 1000

# The samples of one example in both runs.
Pair = tuple[SampleRecord, SampleRecord]


@dataclass(frozen=True)
class Flip:
    """A document that the two runs answer differently, one of them rightly."""

    idx: Any
    gold: Any
    before: Any
    after: Any


@dataclass(frozen=True)
class TaskComparison:
    """One task of two runs. Scores and differences are shares, not percent.

    Attributes:
        before, after: the task's official score in each run.
        difference: after − before.
        interval: of the difference, 95%.
        p: of the hypothesis that nothing changed.
        p_holm: corrected over the compared tasks.
        test: "McNemar" or "bootstrap".
        lost, gained: answers that were right and are wrong now, and the other way round.
        divergence: mean Kullback–Leibler divergence of the choices' distribution, before from after, in nats; None for
            generated answers.
    """

    task: str
    before: float
    after: float
    interval: tuple[float, float]
    p: float
    p_holm: float
    test: str
    lost: tuple[Flip, ...]
    gained: tuple[Flip, ...]
    answers: int
    divergence: float | None
    metric: str = "rsg"

    @property
    def difference(self) -> float:
        return self.after - self.before


def compare_own_task(task: str, pairs: Sequence[Pair], seed: int) -> tuple[TaskComparison, np.ndarray]:
    """The comparison, its p not yet corrected, and the bootstrap's differences."""
    asked = get_task(task.removeprefix("gen_"))
    metric = asked.metrics["rsg"]
    items = [
        [asked.recorded_item(pair[side].idx, pair[side].gold, pair[side].prediction) for pair in pairs]
        for side in (0, 1)
    ]
    draws = [bootstrap_samples(metric, side, seed, BOOTSTRAP_SAMPLES) for side in items]
    differences = draws[1] - draws[0]
    lost, gained = [], []
    for pair, (was, now) in zip(pairs, zip(*items, strict=True), strict=True):
        flip = Flip(pair[0].idx, pair[0].gold, pair[0].prediction, pair[1].prediction)
        if _is_right(was) and not _is_right(now):
            lost.append(flip)
        elif _is_right(now) and not _is_right(was):
            gained.append(flip)
    by_mcnemar = asked.official == ("acc",)  # McNemar's test is about accuracy
    p = mcnemar(len(lost), len(gained)) if by_mcnemar else bootstrap_p(differences)
    comparison = TaskComparison(
        task=task,
        before=compute(metric, items[0]),
        after=compute(metric, items[1]),
        interval=interval_of(differences),
        p=p,
        p_holm=p,
        test="McNemar" if by_mcnemar else "bootstrap",
        lost=tuple(lost),
        gained=tuple(gained),
        answers=len(pairs),
        divergence=choice_divergence(pairs),
    )
    return comparison, differences


def comparable_metric(before: ForeignTaskRecord, after: ForeignTaskRecord) -> str | None:
    """Return the metric by which two runs of one of lm-eval's tasks can be compared.

    It is the task's main one where lm-eval can compute it from the documents' values, else the first other that both
    runs have; None where the task alone can compute them.
    """
    for name in (before.main, *before.metrics):
        if name in after.metrics and before.metrics[name].aggregation == after.metrics[name].aggregation:
            known = before.metrics[name].value is not None and after.metrics[name].value is not None
            if known and find_aggregation(before.metrics[name].aggregation):
                return name
    return None


def compare_foreign_task(
    task: str, record: ForeignTaskRecord, name: str, pairs: Sequence[Pair], seed: int
) -> TaskComparison | None:
    """The comparison of one of lm-eval's tasks by a comparable metric, its p not yet corrected.

    None where no document has a value of it in both runs.
    """
    metric = record.metrics[name]
    aggregate = find_aggregation(metric.aggregation)
    assert aggregate is not None
    pairs = [pair for pair in pairs if all(name in sample.values for sample in pair)]
    if not pairs:
        return None
    sides = [[pair[side].values[name] for pair in pairs] for side in (0, 1)]
    lost: list[Flip] = []
    gained: list[Flip] = []
    is_mean = metric.aggregation == "mean"
    yes_or_no = is_mean and all(value in (0, 1) for side in sides for value in side)
    if yes_or_no:
        right = 0 if metric.higher_is_better is False else 1
        for pair, was, now in zip(pairs, *sides, strict=True):
            if was != now:
                answers = [sample.prediction if sample.text is None else sample.text for sample in pair]
                (gained if now == right else lost).append(Flip(pair[0].idx, pair[0].gold, *answers))
    differences: np.ndarray | None
    if is_mean:
        sums = resampled_sums(np.array(sides, dtype=float).T, seed, BOOTSTRAP_SAMPLES)
        differences = (sums[:, 1] - sums[:, 0]) / len(pairs)
    else:
        draws = [resampled(side, aggregate, seed, SLOW_BOOTSTRAP_SAMPLES) for side in sides]
        differences = None if draws[0] is None or draws[1] is None else draws[1] - draws[0]
    by_draws = 1.0 if differences is None else bootstrap_p(differences)
    p = mcnemar(len(lost), len(gained)) if yes_or_no else by_draws
    return TaskComparison(
        task=task,
        before=aggregate(sides[0]),
        after=aggregate(sides[1]),
        # Where the metric is not defined for every sample, nothing is known of the difference.
        interval=(-math.inf, math.inf) if differences is None else interval_of(differences),
        p=p,
        p_holm=p,
        test="McNemar" if yes_or_no else "bootstrap",
        lost=tuple(lost),
        gained=tuple(gained),
        answers=len(pairs),
        divergence=choice_divergence(pairs) if record.output_type == "multiple_choice" else None,
        metric=name,
    )


def _is_right(item: Item) -> bool:
    return item.prediction in item.gold if isinstance(item.gold, tuple) else item.prediction == item.gold


def choice_divergence(pairs: Iterable[Pair]) -> float | None:
    """Return the mean KL(before ‖ after) over the choices, in nats; None where the answers have no scores, or the runs
    other choices."""
    values = []
    for before, after in pairs:
        if not before.scores or len(before.scores) != len(after.scores):
            return None
        was, now = log_softmax(before.scores), log_softmax(after.scores)
        values.append(float((np.exp(was) * (was - now)).sum()))
    return float(np.mean(values))


def interval_of(differences: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)


def mcnemar(lost: int, gained: int) -> float:
    """Return the two-sided p of McNemar's exact test: of `lost + gained` flips, each way is as likely as the other."""
    flips = lost + gained
    tail = sum(math.comb(flips, few) for few in range(min(lost, gained) + 1))
    return min(1.0, 2 * tail / 2**flips) if flips else 1.0


def bootstrap_p(differences: np.ndarray) -> float:
    """Return the two-sided p that the difference is zero: twice the smaller share of draws on either side of it."""
    if not differences.any():
        return 1.0
    draws = len(differences)
    below, above = int((differences <= 0).sum()), int((differences >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (draws + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number by Holm's step-down method."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected
