"""RUSSE: does the word have the same sense in both sentences?"""

from __future__ import annotations

from harness.tasks.document import BinaryLabel, Document, Index, Offset
from harness.tasks.metrics import accuracy_metrics
from harness.tasks.spans import word_bounds
from harness.tasks.task import BOOLEANS, InputField, Task


class RUSSE(Document):
    """A word and two sentences. `sentence[start:end]` is the word's form there."""

    word: str
    sentence1: str
    sentence2: str
    start1: Offset
    end1: Offset
    start2: Offset
    end2: Offset
    idx: Index
    label: BinaryLabel


def _clean(document: RUSSE) -> RUSSE:
    start1, end1 = word_bounds(document.sentence1, document.start1, document.end1, document.word)
    start2, end2 = word_bounds(document.sentence2, document.start2, document.end2, document.word)
    return document.model_copy(update={"start1": start1, "end1": end1, "start2": start2, "end2": end2})


TASK = Task(
    name="russe",
    title="RUSSE",
    document=RUSSE,
    fields=(InputField("word"), InputField("sentence1"), InputField("sentence2")),
    metrics=accuracy_metrics(),
    official=("acc",),
    labels=("false", "true"),
    official_labels=BOOLEANS,
    sizes={"train": 19845, "validation": 8505, "test": 18892},
    generated=("нет", "да"),
    unasked={"start1": 0, "end1": 0, "start2": 0, "end2": 0},
    clean=_clean,
)
