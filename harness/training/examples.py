"""Documents of a task to training examples: rendered by the task's YAML, encoded, packed, with their right answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.data import document_key
from harness.models.heads import HeadLayout, head_sequences
from harness.scoring.encoding import ScoredSequence, TextEncoder
from harness.scoring.packing import PackedSequence, pack
from harness.tasks.rendering import render_document

# What may be shortened where a document is longer than the recipe's limit: the text that is asked about, never the
# question, the answers or the sentence to be judged.
_PASSAGES = {"muserc": "paragraph", "danetqa": "passage", "rucos": "passage", "terra": "premise", "rcb": "premise"}


# Sequences are cut by `max_tokens` in their passages alone, never from the left.
_UNLIMITED = 1 << 30


@dataclass(frozen=True)
class Example:
    """One document (for MuSeRC a paragraph with all its answers), as one packed sequence.

    Attributes:
        task: short name.
        docs: the rows of the document, one a question (MuSeRC: one an answer).
        packed: its sequences, one a choice, question by question.
        questions: for each choice the number of its question, int64 [choices].
        right: for each choice whether it is a right one, bool [choices].
        cut: tokens dropped from the passage.
        soft: a teacher's probability of each choice, float32 [choices], zeros in a question without a soft label; None
            where the document has none.
    """

    task: str
    docs: tuple[dict[str, Any], ...]
    packed: PackedSequence
    questions: np.ndarray
    right: np.ndarray
    cut: int = 0
    soft: np.ndarray | None = None


def make_examples(
    name: str,
    task: Any,
    rows: Iterable[dict[str, Any]],
    encoder: TextEncoder,
    tokenizer: Any,
    layout: HeadLayout,
    max_tokens: int,
    chat_template: bool,
) -> list[Example]:
    """Examples of a task's documents, in their order.

    Args:
        name: short name of the task.
        task: lm-eval's task, which renders.
        rows: the documents' rows; rows of one document stand together.
        encoder, tokenizer: of the base model.
        layout: of the heads.
        max_tokens: a longer sequence loses tokens from the end of its passage.
        chat_template: render through the tokenizer's chat template.
    """
    documents: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        documents.setdefault(document_key(row), []).append(row)
    return [
        _example(name, task, docs, encoder, tokenizer, layout, max_tokens, chat_template) for docs in documents.values()
    ]


def _example(
    name: str,
    task: Any,
    docs: list[dict[str, Any]],
    encoder: TextEncoder,
    tokenizer: Any,
    layout: HeadLayout,
    max_tokens: int,
    chat_template: bool,
) -> Example:
    def encoded(shown: list[dict[str, Any]]) -> list[list[ScoredSequence]]:
        requests = [[r.args for r in render_document(task, doc, tokenizer, chat_template)] for doc in shown]
        return [head_sequences(encoder, layout, name, pairs, _UNLIMITED) for pairs in requests]

    questions = encoded(docs)
    whole = longest = _longest(questions)
    excess = 0
    while longest > max_tokens and name in _PASSAGES and excess < whole:
        # More than once where the prompt does not show all of a passage's text (RuCoS's marks).
        excess += longest - max_tokens
        questions = encoded([_shortened(doc, _PASSAGES[name], excess, encoder) for doc in docs])
        longest = _longest(questions)
    flat = [sequence for question in questions for sequence in question]
    numbers = [number for number, question in enumerate(questions) for _ in question]
    right = [
        is_right
        for doc, question in zip(docs, questions, strict=True)
        for is_right in right_choices(name, doc, len(question))
    ]
    return Example(
        name,
        tuple(docs),
        pack(flat),
        np.array(numbers, dtype=np.int64),
        np.array(right, dtype=bool),
        whole - longest,
    )


def _longest(questions: Sequence[Sequence[ScoredSequence]]) -> int:
    return max(len(sequence.tokens) for question in questions for sequence in question)


def right_choices(task: str, doc: dict[str, Any], choices: int) -> list[bool]:
    """Which choices are right: one by the label, for RuCoS every entity that is among the answers."""
    if task == "rucos":
        return [entity in doc["answers"] for entity in doc["entities"]]
    return [choice == doc["label"] for choice in range(choices)]


def _shortened(doc: dict[str, Any], field: str, excess: int, encoder: TextEncoder) -> dict[str, Any]:
    """The document with `excess` tokens fewer in its passage, cut from the end at a space."""
    text = doc[field]
    tokens = len(encoder.encode(text))
    share = max(0.0, 1 - (excess + 1) / tokens)
    while share > 0 and tokens - len(encoder.encode(text[: int(len(text) * share)])) < excess:
        share -= 0.02
    kept = text[: max(0, int(len(text) * share))]
    return {**doc, field: kept.rsplit(" ", 1)[0]}
