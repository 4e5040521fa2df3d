"""lm-eval's aggregations: how the values of a task's documents become one figure, and how sure that figure is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from adapters.base import library_errors
from harness.errors import UserError
from harness.quiet import quiet_libraries

# Corpus metrics that take seconds for one sample: lm-eval draws as few.
SLOW_AGGREGATIONS = {"bleu": 100, "chrf": 100, "chrf++": 100, "ter": 100}

Aggregation = Callable[[Sequence[Any]], float]


def mean(values: Sequence[Any]) -> float:
    """Return the mean; lm-eval's aggregation where a task names none."""
    return float(np.mean(values))


def find_aggregation(name: str) -> Aggregation | None:
    """Return lm-eval's aggregation of this name; None for one that a task brought along."""
    return mean if name == "mean" else _registered().get(name)


def aggregation_name(aggregate: Callable[..., Any]) -> str:
    """Return the name by which an aggregation can be found again; its own where it is not lm-eval's."""
    for name, found in _registered().items():
        if found is aggregate:
            return name
    return "mean" if aggregate is mean else getattr(aggregate, "__name__", "")


def _registered() -> dict[str, Aggregation]:
    import lm_eval.api.metrics  # noqa: F401  # registers them
    from lm_eval.api.registry import aggregation_registry

    return {str(name): aggregation_registry[name] for name in aggregation_registry}


def resampled(values: Sequence[Any], aggregate: Aggregation, seed: int, samples: int) -> np.ndarray | None:
    """Return the figure of resamplings of the documents, drawn with replacement; None where it is no finite number.

    The same seed draws the same places for as many values.
    """
    rng = np.random.default_rng(seed)
    samples = min(samples, SLOW_AGGREGATIONS.get(aggregation_name(aggregate), samples))
    try:
        with library_errors("no figure for a sample"), quiet_libraries():
            draws = [
                float(aggregate([values[number] for number in rng.integers(0, len(values), len(values))]))
                for _ in range(samples)
            ]
    except UserError:  # it is not defined for some sample
        return None
    return np.array(draws) if np.isfinite(draws).all() else None
