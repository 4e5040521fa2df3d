"""MuSeRC: is this answer to the question about the paragraph right? An example is one answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.tasks.document import BinaryLabel, Choice, Document, Index, Row, Strict
from harness.tasks.metrics import answer_set_metrics
from harness.tasks.task import InputField, Task


class AnswerIndex(Strict):
    """Question and answer numbers are unique across the file, not only within their paragraph."""

    paragraph: Index
    question: Index
    answer: Index


class MuSeRC(Document):
    """One answer to one question about a paragraph."""

    paragraph: str
    question: str
    answer: Choice
    idx: AnswerIndex
    label: BinaryLabel


class _Answer(Strict):
    text: str
    idx: Index
    label: Any = None


class _Question(Strict):
    question: str
    idx: Index
    answers: list[_Answer]


class _Paragraph(Strict):
    text: str
    questions: list[_Question]


class _Line(Strict):
    idx: Index
    passage: _Paragraph


def _read(line: Row) -> Iterator[Row]:
    parsed = _Line.model_validate(line)
    for question in parsed.passage.questions:
        for answer in question.answers:
            row: Row = {
                "paragraph": parsed.passage.text,
                "question": question.question,
                "answer": answer.text,
                "idx": {"paragraph": parsed.idx, "question": question.idx, "answer": answer.idx},
            }
            if "label" in answer.model_fields_set:
                row["label"] = answer.label
            yield row


TASK = Task(
    name="muserc",
    title="MuSeRC",
    document=MuSeRC,
    fields=(InputField("paragraph"), InputField("question"), InputField("answer")),
    metrics=answer_set_metrics(),
    official=("f1a", "em"),
    labels=("0", "1"),
    official_labels={"0": 0, "1": 1},
    hub_labels=("False", "True"),
    submitted_labels=(0, 1),
    sizes={"train": 11950, "validation": 2235, "test": 7614},
    clusters={"train": 500, "validation": 100, "test": 322},
    head="sigmoid",
    passage="paragraph",
    generated=("нет", "да"),
    group="question",
    unasked={"idx": {"paragraph": 0, "question": 0, "answer": 0}},
    read=_read,
)
