"""Published Russian SuperGLUE figures, for the reference table beside our own.

The leaderboard of russiansuperglue.com, with the baselines of Shavrina et al. 2020 (https://arxiv.org/abs/2010.15925).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from harness.data.official import DIRECTORIES as OFFICIAL_NAMES

LEADERBOARD_SOURCE = "russiansuperglue.com leaderboard; Shavrina et al. 2020, arXiv:2010.15925"

# The parts of each task's official metric, in the order of the figures below.
METRIC_PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "lidirus": ("mcc",),
        "rcb": ("macro_f1", "acc"),
        "parus": ("acc",),
        "muserc": ("f1a", "em"),
        "terra": ("acc",),
        "russe": ("acc",),
        "rwsd": ("acc",),
        "danetqa": ("acc",),
        "rucos": ("f1", "em"),
    }
)


@dataclass(frozen=True)
class Published:
    """One published row.

    Attributes:
        figures: of each task the parts of its metric (see METRIC_PARTS), or its figure alone where no more is known.
        score: as published, not computed anew.
        split: what the figures were measured on.
        source: where they stand.
    """

    name: str
    figures: Mapping[str, tuple[float, ...]]
    score: float
    split: str
    source: str

    def task_figure(self, task: str) -> float:
        """What counts in the score: the mean of the metric's parts."""
        parts = self.figures[task]
        return round(sum(parts) / len(parts), 4)  # the parts have three decimals


def _test_set(name: str, score: float, **figures: tuple[float, ...]) -> Published:
    return Published(name, MappingProxyType(figures), score, "test", LEADERBOARD_SOURCE)


PUBLISHED: tuple[Published, ...] = (
    _test_set(
        "human benchmark",
        0.811,
        lidirus=(0.626,),
        rcb=(0.68, 0.702),
        parus=(0.982,),
        muserc=(0.806, 0.42),
        terra=(0.92,),
        russe=(0.805,),
        rwsd=(0.84,),
        danetqa=(0.915,),
        rucos=(0.93, 0.89),
    ),
    _test_set(
        "RuBERT plain",
        0.521,
        lidirus=(0.191,),
        rcb=(0.367, 0.463),
        parus=(0.574,),
        muserc=(0.711, 0.324),
        terra=(0.642,),
        russe=(0.726,),
        rwsd=(0.669,),
        danetqa=(0.639,),
        rucos=(0.32, 0.314),
    ),
    _test_set(
        "majority heuristic",
        0.468,
        lidirus=(0.147,),
        rcb=(0.4, 0.438),
        parus=(0.478,),
        muserc=(0.671, 0.237),
        terra=(0.549,),
        russe=(0.595,),
        rwsd=(0.669,),
        danetqa=(0.642,),
        rucos=(0.26, 0.257),
    ),
    _test_set(
        "TF-IDF 1.1",
        0.434,
        lidirus=(0.06,),
        rcb=(0.301, 0.441),
        parus=(0.486,),
        muserc=(0.587, 0.242),
        terra=(0.471,),
        russe=(0.57,),
        rwsd=(0.662,),
        danetqa=(0.621,),
        rucos=(0.26, 0.252),
    ),
    Published(
        "gemma-3-1b-it multitask",
        MappingProxyType(
            {
                "lidirus": (0.24,),
                "rcb": (0.48,),
                "parus": (0.55,),
                "muserc": (0.58,),
                "terra": (0.57,),
                "russe": (0.72,),
                "rwsd": (0.55,),
                "danetqa": (0.60,),
                "rucos": (0.25,),
            }
        ),
        0.504,
        "its own validation protocol",
        "as its authors report",
    ),
)

REFERENCE_NOTE = """\
Not to be compared row for row with the tables above: these were measured on the hidden test set, the rows above on
(often limited) validation samples. The gemma-3-1b-it multitask row, which this project sets out to beat, has a
validation protocol of its own, and its score is a mean of validation figures. Two-part metrics are shown as the mean of
their parts; leaderboard.json holds the parts."""


def reference_rows() -> list[dict[str, Any]]:
    """The published rows as leaderboard.json holds them."""
    return [
        {
            "name": row.name,
            "split": row.split,
            "source": row.source,
            "score": row.score,
            "tasks": {task: _reference_figure(row, task) for task in METRIC_PARTS},
        }
        for row in PUBLISHED
    ]


def _reference_figure(row: Published, task: str) -> dict[str, Any]:
    names, values = METRIC_PARTS[task], row.figures[task]
    parts = dict(zip(names, values, strict=True)) if len(names) == len(values) else {}
    return {"value": row.task_figure(task), "parts": parts}


def reference_cells() -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the reference table."""
    headers = ["model", *(OFFICIAL_NAMES[task] for task in METRIC_PARTS), "score", "measured on", "source"]
    rows = [
        [
            row.name,
            *(f"{100 * row.task_figure(task):.1f}" for task in METRIC_PARTS),
            f"{100 * row.score:.1f}",
            row.split,
            row.source,
        ]
        for row in PUBLISHED
    ]
    return headers, rows
