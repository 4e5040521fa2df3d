"""RCB: does the premise entail the hypothesis, contradict it, or neither?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from harness.tasks.document import Document, Index, Row
from harness.tasks.metrics import macro_f1_metrics
from harness.tasks.task import InputField, Task, Writing

# The hub's script looked for `negation` only and wrote "" for the two train rows that have the key `no_negation`.
_LOST_NEGATION = {36: "no_negation", 354: "negation"}


class RCB(Document):
    """A premise and a hypothesis. `verb` and `negation` describe the premise, "" where absent."""

    premise: str
    hypothesis: str
    verb: str = ""
    negation: str = ""
    idx: Index
    label: Literal[-1, 0, 1, 2]


def _read(line: Row) -> Iterator[Row]:
    """Two train rows have their negation under another key."""
    yield {"negation": line.get("no_negation", ""), **line}


def _read_hub(row: Row, split: str) -> Row:
    if split == "train" and row.get("negation") == "":
        row["negation"] = _LOST_NEGATION.get(row.get("idx", -1), "")
    return row


TASK = Task(
    name="rcb",
    title="RCB",
    document=RCB,
    fields=(InputField("premise"), InputField("hypothesis")),
    metrics=macro_f1_metrics(3),
    official=("macro_f1", "acc"),
    labels=("entailment", "contradiction", "neutral"),
    sizes={"train": 438, "validation": 220, "test": 438},
    passage="premise",
    generated=("да", "нет", "неизвестно"),
    compared=("premise", "hypothesis"),
    writing=Writing(("premise", "hypothesis"), relatives=("terra", "lidirus")),
    read=_read,
    read_hub=_read_hub,
)
