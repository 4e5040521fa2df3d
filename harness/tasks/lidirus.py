"""LiDiRus: does the first sentence entail the second? A diagnostic test set with linguistic categories."""

from __future__ import annotations

from harness.tasks.document import BinaryLabel, Document, Index
from harness.tasks.metrics import matthews_metrics
from harness.tasks.task import InputField, Task

CATEGORIES = ("knowledge", "lexical_semantics", "logic", "predicate_argument_structure")


class LiDiRus(Document):
    """Two sentences. The four categories name linguistic phenomena, "" where absent."""

    sentence1: str
    sentence2: str
    knowledge: str = ""
    lexical_semantics: str = ""
    logic: str = ""
    predicate_argument_structure: str = ""
    idx: Index
    label: BinaryLabel


TASK = Task(
    name="lidirus",
    title="LiDiRus",
    document=LiDiRus,
    fields=(InputField("sentence1"), InputField("sentence2")),
    metrics=matthews_metrics(CATEGORIES),
    official=("mcc",),
    labels=("entailment", "not_entailment"),
    files={"test": "LiDiRus.jsonl"},
    hidden=(),
    sizes={"test": 1104},
    # TERRa asks the same question with the same labels.
    borrows="terra",
    borrowed_columns={"sentence1": "premise", "sentence2": "hypothesis"},
    generated=("да", "нет"),
    compared=("sentence1", "sentence2"),
    categories=CATEGORIES,
)
