"""The official metrics on validation while a model is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness.tasks.answers import pick_choice, to_item
from harness.tasks.metrics import METRICS, Item, compute
from harness.training.examples import Example


def task_figures(task: str, answered: Sequence[tuple[Example, np.ndarray]]) -> dict[str, float]:
    """Every metric of a task.

    Args:
        task: short name.
        answered: examples with the scores of their choices, float [choices].
    """
    items = [item for example, scores in answered for item in _items(example, scores)]
    known = [item for item in items if item.gold is not None]
    return {name: compute(metric, known) for name, metric in METRICS[task].items() if name in ("rsg", "acc", "f1a")}


def _items(example: Example, scores: np.ndarray) -> list[Item]:
    items = []
    for number, doc in enumerate(example.docs):
        choice: Any = pick_choice(list(scores[example.questions == number]))
        items.append(to_item(example.task, doc, doc["entities"][choice] if example.task == "rucos" else choice))
    return items


def mean_figure(figures: Mapping[str, Mapping[str, float]]) -> float:
    """Mean of the tasks' official figures."""
    return float(np.mean([parts["rsg"] for parts in figures.values()]))
