"""PARus: which choice is the cause, or the effect, of the premise?"""

from __future__ import annotations

import re
from typing import Literal

from harness.tasks.document import BinaryLabel, Choice, Document, DocumentFault, Index, Row
from harness.tasks.metrics import accuracy_metrics
from harness.tasks.task import InputField, Task, Writing


class PARus(Document):
    """A premise and two choices."""

    premise: str
    choice1: Choice
    choice2: Choice
    question: Literal["cause", "effect"]
    idx: Index
    label: BinaryLabel


def _complete(row: Row) -> Row:
    first, second = (re.findall(r"\w+", row[name].lower().replace("ё", "е")) for name in ("choice1", "choice2"))
    if first == second:
        raise DocumentFault("both choices are the same")
    return row


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
    compared=("premise", "choice1", "choice2"),
    # A prompt spells the question in words, so a teacher that paraphrases does not see its value.
    writing=Writing(("premise", "question", "choice1", "choice2"), kept=("question",), complete=_complete),
)
