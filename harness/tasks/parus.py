"""PARus: which choice is the cause, or the effect, of the premise?"""

from __future__ import annotations

from typing import Literal

from harness.tasks.document import BinaryLabel, Document, Index
from harness.tasks.metrics import accuracy_metrics
from harness.tasks.task import InputField, Task


class PARus(Document):
    """A premise and two choices."""

    premise: str
    choice1: str
    choice2: str
    question: Literal["cause", "effect"]
    idx: Index
    label: BinaryLabel


TASK = Task(
    name="parus",
    title="PARus",
    document=PARus,
    fields=(
        InputField("premise"),
        InputField("question", options=("cause", "effect")),
        InputField("choice1"),
        InputField("choice2"),
    ),
    metrics=accuracy_metrics(),
    official=("acc",),
    labels=("choice1", "choice2"),
    official_labels={"0": 0, "1": 1},
    hub_labels=("choice1", "choice2"),
    submitted_labels=(0, 1),
    sizes={"train": 400, "validation": 100, "test": 500},
    head="ranking",
    generated=("1", "2"),
)
