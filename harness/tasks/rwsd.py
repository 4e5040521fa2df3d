"""RWSD: does the pronoun refer to this noun phrase?"""

from __future__ import annotations

from collections.abc import Iterator

from harness.tasks.document import BinaryLabel, Document, Index, Row, Strict
from harness.tasks.metrics import accuracy_metrics
from harness.tasks.spans import find_span
from harness.tasks.task import BOOLEANS, InputField, Task


class RWSD(Document):
    """A text with two spans: the noun phrase and the pronoun.

    `*_index` is the official token number, wrong in many rows; `*_start` is the character offset in `text` at which the
    span really begins, -1 if it does not occur.
    """

    text: str
    span1_text: str
    span2_text: str
    span1_index: int
    span2_index: int
    span1_start: int = -1
    span2_start: int = -1
    idx: Index
    label: BinaryLabel


class _Target(Strict):
    span1_text: str
    span2_text: str
    span1_index: int
    span2_index: int


class _Line(Strict):
    target: _Target


def _read(line: Row) -> Iterator[Row]:
    yield line | _Line.model_validate(line).target.model_dump()


def _clean(document: RWSD) -> RWSD:
    return document.model_copy(
        update={
            "span1_start": find_span(document.text, document.span1_text, document.span1_index),
            "span2_start": find_span(document.text, document.span2_text, document.span2_index),
        }
    )


TASK = Task(
    name="rwsd",
    title="RWSD",
    document=RWSD,
    fields=(
        InputField("text"),
        InputField("span1_text", "the noun phrase"),
        InputField("span2_text", "the pronoun"),
    ),
    metrics=accuracy_metrics(),
    official=("acc",),
    labels=("False", "True"),
    official_labels=BOOLEANS,
    sizes={"train": 606, "validation": 204, "test": 154},
    generated=("нет", "да"),
    unasked={"span1_index": 0, "span2_index": 0},
    read=_read,
    clean=_clean,
)
