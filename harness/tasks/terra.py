"""TERRa: does the premise entail the hypothesis?"""

from __future__ import annotations

from harness.tasks.document import BinaryLabel, Document, Index
from harness.tasks.metrics import accuracy_metrics
from harness.tasks.spans import unwrap_csv_quotes
from harness.tasks.task import InputField, Task


class TERRa(Document):
    """A premise and a hypothesis."""

    premise: str
    hypothesis: str
    idx: Index
    label: BinaryLabel


def _clean(document: TERRa) -> TERRa:
    """Some official premises are wrapped in doubled quotation marks."""
    return document.model_copy(
        update={
            "premise": unwrap_csv_quotes(document.premise),
            "hypothesis": unwrap_csv_quotes(document.hypothesis),
        }
    )


TASK = Task(
    name="terra",
    title="TERRa",
    document=TERRa,
    fields=(InputField("premise"), InputField("hypothesis")),
    metrics=accuracy_metrics(),
    official=("acc",),
    labels=("entailment", "not_entailment"),
    sizes={"train": 2616, "validation": 307, "test": 3198},
    passage="premise",
    generated=("да", "нет"),
    compared=("premise", "hypothesis"),
    clean=_clean,
)
