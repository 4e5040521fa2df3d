"""Two runs over the same documents: did the second really get better or worse?

Differences are paired: every document is compared with itself. Intervals come from a bootstrap over documents (MuSeRC:
paragraphs) that draws the same documents for both runs; accuracies are tested by McNemar's exact test (McNemar 1947,
with the binomial distribution in place of chi-squared), other metrics by the bootstrap; p-values are corrected over the
tasks after Holm (1979).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from harness.errors import UserError
from harness.models.heads import log_softmax
from harness.records.run import RunRecord, SampleRecord, TaskRecord, read_run, read_samples
from harness.tasks import get_task
from harness.tasks.metrics import Item, bootstrap_samples, compute

SIGNIFICANT = 0.05
# More draws than a single interval takes: a p-value near 0.05 is read off the tail.
BOOTSTRAP_SAMPLES = 5000


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

    @property
    def difference(self) -> float:
        return self.after - self.before


@dataclass(frozen=True)
class Comparison:
    """Two runs. `mean`: the mean over the compared tasks, whose p-value is not corrected: it is one test."""

    before: RunRecord
    after: RunRecord
    tasks: tuple[TaskComparison, ...]
    mean_before: float
    mean_after: float
    mean_interval: tuple[float, float]
    left_out: tuple[str, ...]  # tasks that only one of the runs has

    @property
    def mean_difference(self) -> float:
        return self.mean_after - self.mean_before


def compare(before: Path, after: Path, seed: int = 0) -> Comparison:
    """Compare two run directories.

    Args:
        before, after: directories of finished runs over the same documents and prompts.
        seed: of the bootstrap.

    Raises:
        UserError: no records, no task in common, other documents or prompts, or hidden answers.
    """
    records = read_run(before), read_run(after)
    shared = [task for task in records[0].tasks if task in records[1].tasks]
    if not shared:
        raise UserError(f"{before} and {after} have no task in common", "compare runs over the same tasks")
    for task in shared:
        _refuse_if_unlike(task, records[0].tasks[task], records[1].tasks[task])
    samples = _by_task(before, shared), _by_task(after, shared)
    found, draws = [], []
    for task in shared:
        comparison, differences = _compare_task(task, samples[0][task], samples[1][task], seed)
        found.append(comparison)
        draws.append(differences)
    corrected = holm([comparison.p for comparison in found])
    tasks = tuple(replace(comparison, p_holm=p) for comparison, p in zip(found, corrected, strict=True))
    mean_before = float(np.mean([task.before for task in tasks]))
    mean_after = float(np.mean([task.after for task in tasks]))
    # Tasks are independent, so one draw of each makes a draw of the mean.
    rng = np.random.default_rng(seed)
    shuffled = np.mean([rng.permutation(differences) for differences in draws], axis=0)
    left_out = tuple(task for record in records for task in record.tasks if task not in shared)
    return Comparison(*records, tasks, mean_before, mean_after, _interval(shuffled), left_out)


def _refuse_if_unlike(task: str, before: TaskRecord, after: TaskRecord) -> None:
    for what, key in (
        ("documents", "data_sha256"),
        ("splits", "split"),
        ("numbers of documents", "documents"),
        ("prompts", "prompt"),
        ("rendered prompts", "prompt_sha256"),
    ):
        values = getattr(before, key), getattr(after, key)
        if values[0] != values[1]:
            shown = " and ".join(str(value)[:12] for value in values)
            raise UserError(f"the runs have different {what} in {task} ({shown})", "compare runs made alike")
    if before.score is None:
        raise UserError(f"the answers of {task} are hidden in this split", "compare runs over the validation split")


def _by_task(directory: Path, tasks: Sequence[str]) -> dict[str, dict[Hashable, SampleRecord]]:
    """Return task -> index of the example -> its sample, in the order of the file.

    Raises:
        UserError: A task of the record has no samples.
    """
    found: dict[str, dict[Hashable, SampleRecord]] = {}
    for sample in read_samples(directory):
        found.setdefault(sample.task, {})[_frozen(sample.idx)] = sample
    lost = [task for task in tasks if task not in found]
    if lost:
        raise UserError(f"{directory} is damaged: its samples lack {', '.join(lost)}", "run it again")
    return found


def _frozen(idx: Any) -> Hashable:
    return tuple(sorted(idx.items())) if isinstance(idx, Mapping) else idx


def _compare_task(
    task: str, before: Mapping[Hashable, SampleRecord], after: Mapping[Hashable, SampleRecord], seed: int
) -> tuple[TaskComparison, np.ndarray]:
    """The comparison, its p not yet corrected, and the bootstrap's differences."""
    if before.keys() != after.keys():
        raise UserError(f"the runs' samples of {task} are not of the same examples", "compare runs made alike")
    pairs = [(before[idx], after[idx]) for idx in before]
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
        interval=_interval(differences),
        p=p,
        p_holm=p,
        test="McNemar" if by_mcnemar else "bootstrap",
        lost=tuple(lost),
        gained=tuple(gained),
        answers=len(pairs),
        divergence=_divergence(pairs),
    )
    return comparison, differences


def _is_right(item: Item) -> bool:
    return item.prediction in item.gold if isinstance(item.gold, tuple) else item.prediction == item.gold


def _divergence(pairs: Iterable[tuple[SampleRecord, SampleRecord]]) -> float | None:
    values = []
    for before, after in pairs:
        if not before.scores:
            return None
        was, now = log_softmax(before.scores), log_softmax(after.scores)
        values.append(float((np.exp(was) * (was - now)).sum()))
    return float(np.mean(values))


def _interval(differences: np.ndarray) -> tuple[float, float]:
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


def verdict(difference: float, interval: tuple[float, float], p: float | None = None) -> str:
    """Put a difference in words, in points: `no loss shown: −0.4 points, interval −1.6 to +0.8`.

    Args:
        difference, interval: as shares.
        p: corrected; None: the interval alone decides.
    """
    is_real = (interval[0] > 0 or interval[1] < 0) and (p is None or p < SIGNIFICANT)
    if is_real:
        word = "better" if difference > 0 else "worse"
    elif difference == 0 and interval == (0.0, 0.0):
        word = "the same"
    else:
        word = "no loss shown" if difference <= 0 else "no gain shown"
    low, high = (points(bound) for bound in interval)
    return f"{word}: {points(difference)} points, interval {low} to {high}"


def points(share: float) -> str:
    """Format a difference × 100 with its sign: +1.2, −0.4, 0.0."""
    text = f"{100 * abs(share):.1f}"
    if float(text) == 0:
        return text
    return f"{'+' if share > 0 else '−'}{text}"


def comparison_text(found: Comparison, flips: int = 0) -> str:
    """Format a comparison: a row a task, a verdict, and this many flipped documents a task."""
    rows = [
        [
            task.task,
            f"{100 * task.before:.1f}",
            f"{100 * task.after:.1f}",
            points(task.difference),
            " to ".join(points(bound) for bound in task.interval),
            f"{task.p_holm:.3f} ({task.test})",
            f"{len(task.lost)} / {len(task.gained)} of {task.answers}",
            "–" if task.divergence is None else f"{task.divergence:.4f}",
            verdict(task.difference, task.interval, task.p_holm).partition(":")[0],
        ]
        for task in found.tasks
    ]
    headers = ["task", "before", "after", "points", "95% interval", "p (Holm)", "lost / gained", "KL, nats", "verdict"]
    lines = [
        f"before: {_name(found.before)}",
        f"after:  {_name(found.after)}",
        "",
        tabulate(rows, headers=headers, disable_numparse=True),
        "",
        f"mean of {len(rows)}: {100 * found.mean_before:.1f} and {100 * found.mean_after:.1f}, "
        + verdict(found.mean_difference, found.mean_interval),
    ]
    if found.left_out:
        lines.append(f"not in both runs: {', '.join(found.left_out)}")
    for task in found.tasks:
        for word, kept in (("lost", task.lost[:flips]), ("gained", task.gained[:flips])):
            lines.extend(
                f"{task.task} {word}: document {flip.idx}, gold {flip.gold}, {flip.before} → {flip.after}"
                for flip in kept
            )
    return "\n".join(lines)


def _name(record: RunRecord) -> str:
    return f"{record.model.name} · {record.backend} ({record.model.weights}), executed by {record.execution}"
