"""Documents to training examples: rendered by the task file, encoded, packed, with their right choices."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.models.chat import Template
from harness.models.heads import HeadLayout, head_sequences
from harness.scoring.encoding import ScoredSequence, TextEncoder
from harness.scoring.packing import PackedSequence, pack
from harness.tasks import Row, Task, document_key
from harness.tasks.rendering import render_document

# Sequences lose tokens of their passages alone, by `max_tokens`; nothing is cut from the left.
_UNLIMITED = 1 << 30


@dataclass(frozen=True)
class Example:
    """One document (for MuSeRC a paragraph with all its answers), as one packed sequence.

    Attributes:
        task: The task's name.
        docs: The rows of the document, one per question (MuSeRC: one per answer).
        packed: Its sequences, one per choice, question by question.
        questions: The number of each choice's question, int64 [choices].
        right: Whether each choice is a right one, bool [choices].
        cut: Tokens dropped from the passage.
        soft: A teacher's probability of each choice, float32 [choices], zeros in a question without a soft label; None
            where the document has none.
    """

    task: str
    docs: tuple[Row, ...]
    packed: PackedSequence
    questions: np.ndarray
    right: np.ndarray
    cut: int = 0
    soft: np.ndarray | None = None


@dataclass(frozen=True)
class Encoding:
    """How rendered documents become token sequences.

    Attributes:
        encoder: Of the base model's tokenizer.
        template: The chat template and whether it is applied.
        layout: Of the heads.
        max_tokens: A longer sequence loses tokens from the end of its passage.
    """

    encoder: TextEncoder
    template: Template
    layout: HeadLayout
    max_tokens: int


def make_examples(task: Task, renderer: Any, rows: Iterable[Row], encoding: Encoding) -> list[Example]:
    """Return the examples of a task's documents, in their order.

    Args:
        task: The task.
        renderer: lm-eval's task object with the chosen prompt.
        rows: The documents' rows.
        encoding: How they become token sequences.
    """
    documents: dict[Hashable, list[Row]] = {}
    for row in rows:
        documents.setdefault(document_key(row), []).append(row)
    return [_example(task, renderer, docs, encoding) for docs in documents.values()]


def _example(task: Task, renderer: Any, docs: list[Row], encoding: Encoding) -> Example:
    questions = _encoded(task, renderer, docs, encoding)
    whole = longest = _longest(questions)
    excess = 0
    while longest > encoding.max_tokens and task.passage and excess < whole:
        # More than one round where the prompt does not show all of a passage's text (RuCoS's marks).
        excess += longest - encoding.max_tokens
        shortened = [_shortened(doc, task.passage, excess, encoding.encoder) for doc in docs]
        questions = _encoded(task, renderer, shortened, encoding)
        longest = _longest(questions)
    right = [
        is_right
        for doc, question in zip(docs, questions, strict=True)
        for is_right in task.right_choices(doc, len(question))
    ]
    return Example(
        task=task.name,
        docs=tuple(docs),
        packed=pack([sequence for question in questions for sequence in question]),
        questions=np.array([number for number, question in enumerate(questions) for _ in question], dtype=np.int64),
        right=np.array(right, dtype=bool),
        cut=whole - longest,
    )


def _encoded(task: Task, renderer: Any, docs: Sequence[Row], encoding: Encoding) -> list[list[ScoredSequence]]:
    """Return the sequences of each document's choices."""
    rendered = [[request.args for request in render_document(renderer, doc, encoding.template)] for doc in docs]
    return [head_sequences(encoding.encoder, encoding.layout, task.name, pairs, _UNLIMITED) for pairs in rendered]


def _longest(questions: Sequence[Sequence[ScoredSequence]]) -> int:
    return max(len(sequence.tokens) for question in questions for sequence in question)


def _shortened(doc: Row, field: str, excess: int, encoder: TextEncoder) -> Row:
    """Return the document with at least `excess` tokens fewer in its passage, cut from the end at a space."""
    text = doc[field]
    tokens = len(encoder.encode(text))
    share = max(0.0, 1 - (excess + 1) / tokens)
    while share > 0 and tokens - len(encoder.encode(text[: int(len(text) * share)])) < excess:
        share -= 0.02
    kept = text[: max(0, int(len(text) * share))]
    return {**doc, field: kept.rsplit(" ", 1)[0]}
