"""RWSD: does the pronoun refer to this noun phrase?"""

from __future__ import annotations

import re
from collections.abc import Iterator

from harness.tasks.document import BinaryLabel, Document, DocumentFault, Index, Row, Strict
from harness.tasks.metrics import accuracy_metrics
from harness.tasks.spans import find_span
from harness.tasks.task import BOOLEANS, InputField, Task, Writing


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


def _complete(row: Row) -> Row:
    """Add the token numbers of both spans, which must be whole words of the text and must not overlap."""
    places = {}
    bounds = []
    for span in ("span1", "span2"):
        found = re.search(rf"(?<!\w){re.escape(row[f'{span}_text'])}(?!\w)", row["text"], re.IGNORECASE)
        if found is None:
            raise DocumentFault(f"{span} is not in the text")
        bounds.append(found.span())
        places[f"{span}_index"] = len(row["text"][: found.start()].split())
    (start1, end1), (start2, end2) = bounds
    if start1 < end2 and start2 < end1:
        raise DocumentFault("the spans overlap")
    return {**row, **places}


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
    compared=("text",),
    writing=Writing(("text", "span1_text", "span2_text"), relatives=("lidirus",), complete=_complete),
    unasked={"span1_index": 0, "span2_index": 0},
    read=_read,
    clean=_clean,
)
