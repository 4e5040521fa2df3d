"""Comparisons of two real pairs of runs against statsmodels, scipy and scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import special, stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from harness.records.run import SampleRecord, read_samples
from harness.reports.compare import Comparison, compare, verdict
from harness.reports.paired import TaskComparison

RUNS = Path(__file__).parents[2] / "results" / "runs"
BASE, TRAINED, ROUNDED = (
    RUNS / name
    for name in (
        "2026-11-24-213000-gemma-3-270m-torch",
        "2026-11-24-103618-gemma-3-270m-rsg-torch",
        "2026-11-24-103618-gemma-3-270m-rsg-mlx-q8",
    )
)
ACCURACY = ("parus", "terra", "russe", "rwsd", "danetqa")
FIGURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    **dict.fromkeys(ACCURACY, accuracy_score),
    "rcb": lambda gold, found: (f1_score(gold, found, average="macro") + accuracy_score(gold, found)) / 2,
    "lidirus": matthews_corrcoef,
}


@pytest.fixture(scope="module", params=[(TRAINED, ROUNDED), (BASE, TRAINED)], ids=["by chance", "really"])
def pair(request: pytest.FixtureRequest) -> tuple[Comparison, Path, Path]:
    return compare(*request.param), *request.param


def tasks_of(comparison: Comparison) -> dict[str, TaskComparison]:
    return {task.task: task for task in comparison.tasks}


def samples(directory: Path, task: str) -> list[SampleRecord]:
    found = [sample for sample in read_samples(directory) if sample.task == task]
    return sorted(found, key=lambda sample: str(sample.idx))


def test_p_values(pair: tuple[Comparison, Path, Path]) -> None:
    comparison, before, after = pair
    for task in ACCURACY:
        was, now = ([one.prediction == one.gold for one in samples(run, task)] for run in (before, after))
        table = np.zeros((2, 2))
        np.add.at(table, (np.array(was, int), np.array(now, int)), 1)
        assert tasks_of(comparison)[task].p == pytest.approx(mcnemar(table, exact=True).pvalue)
    p_values = [task.p for task in comparison.tasks]
    np.testing.assert_allclose([task.p_holm for task in comparison.tasks], multipletests(p_values, method="holm")[1])


@pytest.mark.parametrize("task", FIGURES)
def test_differences_and_intervals(pair: tuple[Comparison, Path, Path], task: str) -> None:
    comparison, before, after = pair
    was, now = samples(before, task), samples(after, task)
    gold = np.array([one.gold for one in was])
    predictions = [np.array([one.prediction for one in run]) for run in (was, now)]

    def difference(gold: np.ndarray, was: np.ndarray, now: np.ndarray) -> float:
        return FIGURES[task](gold, now) - FIGURES[task](gold, was)

    found = tasks_of(comparison)[task]
    assert found.difference == pytest.approx(difference(gold, *predictions))
    drawn = stats.bootstrap(
        (gold, *predictions), difference, paired=True, vectorized=False, method="percentile", n_resamples=400, rng=1
    )
    # Two bootstraps differ in their draws: by up to a tenth of the interval's width, and a document's weight.
    tolerance = 0.12 * (found.interval[1] - found.interval[0]) + 1 / len(gold)
    np.testing.assert_allclose(found.interval, drawn.confidence_interval, atol=tolerance)


def test_divergences(pair: tuple[Comparison, Path, Path]) -> None:
    comparison, before, after = pair
    for task, found in tasks_of(comparison).items():
        distributions = [[special.softmax(one.scores) for one in samples(run, task)] for run in (before, after)]
        expected = np.mean([stats.entropy(was, now) for was, now in zip(*distributions, strict=True)])
        assert found.divergence == pytest.approx(expected, abs=1e-9)


def test_verdicts() -> None:
    by_chance, really = compare(TRAINED, ROUNDED), compare(BASE, TRAINED)
    assert verdict(by_chance.mean_difference, by_chance.mean_interval).startswith("no loss shown")
    assert verdict(really.mean_difference, really.mean_interval).startswith("better")
    assert min(task.p_holm for task in by_chance.tasks) > 0.5
    assert {task.task for task in really.tasks if task.p_holm < 0.05} == {"rcb", "muserc", "danetqa"}
