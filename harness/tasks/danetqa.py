"""DaNetQA: a yes/no question about a passage."""

from __future__ import annotations

from harness.tasks.document import BinaryLabel, Document, Index
from harness.tasks.metrics import accuracy_metrics
from harness.tasks.task import BOOLEANS, InputField, Task


class DaNetQA(Document):
    """A passage and a question."""

    question: str
    passage: str
    idx: Index
    label: BinaryLabel


TASK = Task(
    name="danetqa",
    title="DaNetQA",
    document=DaNetQA,
    fields=(InputField("passage"), InputField("question")),
    metrics=accuracy_metrics(),
    official=("acc",),
    labels=("false", "true"),
    official_labels=BOOLEANS,
    sizes={"train": 1749, "validation": 821, "test": 805},
    passage="passage",
    generated=("нет", "да"),
)
