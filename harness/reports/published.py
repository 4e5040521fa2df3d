"""Published Russian SuperGLUE scores, for the reference table beside our own. published.json holds them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from harness.records.base import Record
from harness.tasks import RUSSIAN_SUPERGLUE, get_task

_FILE = Path(__file__).with_name("published.json")


class Published(Record):
    """One published row."""

    name: str
    # Of each task the parts of its official metric, or its score alone where no more is known.
    scores: Mapping[str, tuple[float, ...]]
    score: float  # as published, not computed again
    split: str  # what was measured on
    source: str

    def task_score(self, task: str) -> float:
        """Return the task's part of the score: the mean of the metric's parts."""
        parts = self.scores[task]
        return round(sum(parts) / len(parts), 4)  # the parts have three decimals


@functools.cache
def published() -> tuple[Published, ...]:
    """Return all published rows."""
    return TypeAdapter(tuple[Published, ...]).validate_json(_FILE.read_bytes())


REFERENCE_NOTE = """\
Not to be compared row for row with the tables above: these were measured on the hidden test set, the rows above on
(often limited) validation samples. The gemma-3-1b-it multitask row, which this project sets out to beat, has a
validation protocol of its own, and its score is a mean of validation scores. Two-part metrics are shown as the mean of
their parts; leaderboard.json holds the parts."""


def reference_rows() -> list[dict[str, Any]]:
    """Return the published rows as leaderboard.json holds them."""
    return [
        {
            "name": row.name,
            "split": row.split,
            "source": row.source,
            "score": row.score,
            "tasks": {task: _reference_score(row, task) for task in RUSSIAN_SUPERGLUE},
        }
        for row in published()
    ]


def _reference_score(row: Published, task: str) -> dict[str, Any]:
    names, values = get_task(task).official, row.scores[task]
    parts = dict(zip(names, values, strict=True)) if len(names) == len(values) else {}
    return {"value": row.task_score(task), "parts": parts}


def reference_cells() -> tuple[list[str], list[list[str]]]:
    """Return headers and rows of the reference table."""
    titles = [get_task(task).title for task in RUSSIAN_SUPERGLUE]
    headers = ["model", *titles, "score", "measured on", "source"]
    rows = [
        [
            row.name,
            *(f"{100 * row.task_score(task):.1f}" for task in RUSSIAN_SUPERGLUE),
            f"{100 * row.score:.1f}",
            row.split,
            row.source,
        ]
        for row in published()
    ]
    return headers, rows
