"""Scores on the validation documents while a model is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.tasks import get_task
from harness.tasks.answers import pick_choice
from harness.tasks.metrics import Item, compute
from harness.training.examples import Example

# Metrics that the log keeps: the official one, and the two that are easiest to compare with other trainings.
LOGGED_METRICS = ("rsg", "acc", "f1a")


@dataclass(frozen=True)
class ValidationScores:
    """Scores after some steps of training.

    Attributes:
        step: Steps done.
        mean: Mean of the tasks' official metrics.
        scores: Task -> metric -> value.
    """

    step: int
    mean: float
    scores: dict[str, dict[str, float]]


def validation_scores(step: int, scores: dict[str, dict[str, float]]) -> ValidationScores:
    """Return the tasks' scores with the mean of their official metrics."""
    return ValidationScores(step, float(np.mean([metrics["rsg"] for metrics in scores.values()])), scores)


def task_scores(answered: Sequence[tuple[Example, np.ndarray]]) -> dict[str, float]:
    """Return the logged metrics of one task.

    Args:
        answered: The task's examples, each with the scores of its choices, float [choices].
    """
    task = get_task(answered[0][0].task)
    items = [item for example, scores in answered for item in _items(example, scores)]
    known = [item for item in items if item.gold is not None]
    return {name: compute(metric, known) for name, metric in task.metrics.items() if name in LOGGED_METRICS}


def _items(example: Example, scores: np.ndarray) -> list[Item]:
    """Return what the metrics read of an example's questions: to each its most probable choice."""
    task = get_task(example.task)
    picked = [pick_choice(list(scores[example.questions == number])) for number in range(len(example.docs))]
    return [task.item(doc, task.prediction(doc, choice)) for doc, choice in zip(example.docs, picked, strict=True)]
